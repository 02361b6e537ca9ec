"""The run file: what `minerua evolve` reads, validated with every fault at once."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from minerua.errors import ConfigError
from minerua.values import SPLITS

LONGEST_SHOWN = 80
"""How many characters of a wrong value a message shows; a slip of the keyboard can make a value of megabytes."""


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


def _number(value: Any) -> Any:
    """Refuses `yes` and `true`, which Python would take for 1; texts pass, because YAML reads `3e-4` as one."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Whole = Annotated[int, pydantic.BeforeValidator(_number)]
Real = Annotated[float, pydantic.BeforeValidator(_number)]


class SplitsConfig(_Section):
    """How each task's items are dealt out; the three shares sum to one.

    Args:
        search: What evolution sees.
        select: What the final model is chosen on.
        test: What only the report sees.
    """

    search: Real = pydantic.Field(default=0.4, gt=0, lt=1)
    select: Real = pydantic.Field(default=0.2, gt=0, lt=1)
    test: Real = pydantic.Field(default=0.4, gt=0, lt=1)

    @pydantic.model_validator(mode="after")
    def _sum(self) -> SplitsConfig:
        total = self.search + self.select + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"search, select and test must sum to 1, found {total:g}")
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """Split → its share."""
        return {split: getattr(self, split) for split in SPLITS}


class EvolutionConfig(_Section):
    """How the population evolves. Whatever is left out is as the variant has it (`minerua/evolution/variants.py`).

    Args:
        variant: `minerua` (ours), `paper` (the printed formulas) or `repo` (the public code).
        evaluations: How many children to evaluate; seeds come on top.
        batch: Children asked for at once, before any of them is told.
        bins: Bins per behaviour characteristic.
        active: The tasks whose archives give parents, by turns; all by default. One alone is evolution without a cycle.
        crossover: How two parents are mixed, by name.
        crossover_width: How far the weights lie from 1.
        crossover_per_tensor: Whether every tensor draws weights of its own.
        mutation: How singular values change, by name.
        mutation_strength: How much.
        mutation_top: How many of the largest singular values have a multiplier of their own while the rest share one.
        mutation_probability: The share of children that are mutated.
        sampling: How parents are drawn, by name.
        bounds: Where the bins lie, by name.
        merges: Merges that join the experts as seeds, by name.
        soups: Whether the final model is chosen among means of many elites.
        lower_bounds: Lowest score of each task's first bin, in the order of the tasks; in place of `bounds`.
        upper_bounds: Highest score of each task's last bin; the same.
        precision: In which the singular vectors of the mutation are found: `float32` or `float64`.
    """

    variant: Literal["minerua", "paper", "repo"] = "minerua"
    evaluations: Whole = pydantic.Field(default=1200, ge=1)
    batch: Whole = pydantic.Field(default=1, ge=1)
    bins: Whole = pydantic.Field(default=15, ge=1, le=1000)
    active: tuple[str, ...] | None = pydantic.Field(default=None, min_length=1)
    crossover: Literal["gaussian", "directed"] | None = None
    crossover_width: Real | None = pydantic.Field(default=None, ge=0)
    crossover_per_tensor: bool | None = None
    mutation: Literal["literal", "additive", "two-sided", "expert", "gaussian", "none"] | None = None
    mutation_strength: Real | None = pydantic.Field(default=None, ge=0)
    mutation_top: Whole | None = pydantic.Field(default=None, ge=0)
    mutation_probability: Real | None = pydantic.Field(default=None, ge=0, le=1)
    sampling: Literal["elite", "elite-repository", "uniform"] | None = None
    bounds: Literal["experts", "best-seed"] | None = None
    merges: tuple[str, ...] | None = None
    soups: bool | None = None
    lower_bounds: tuple[Real, ...] | None = None
    upper_bounds: tuple[Real, ...] | None = None
    precision: Literal["float32", "float64"] = "float32"

    @pydantic.model_validator(mode="after")
    def _spectrum(self) -> EvolutionConfig:
        if self.mutation_top is not None and self.mutation in ("gaussian", "none"):
            raise ValueError(
                f"mutation_top is about singular values, which the mutation {self.mutation!r} does not touch; "
                "leave one of the two out"
            )
        return self


class ModelConfig(_Section):
    """How weights become something callable; a bare text is its name.

    Args:
        name: Name of the model kind.
        settings: What a kind that has settings is made from.
    """

    name: str
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        if not isinstance(value, (str, dict, cls)):
            raise ValueError("must be a name, or a mapping with name and settings")
        return {"name": value} if isinstance(value, str) else value

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, handler: pydantic.SerializerFunctionWrapHandler) -> Any:
        return handler(self) if self.settings else self.name


class TaskConfig(_Section):
    """A task; a bare text is its name and its evaluator's.

    Args:
        name: What it is called in this run; by default its evaluator's name.
        evaluator: What scores it; by default of the same name.
        settings: What an evaluator that has settings is made from.
    """

    name: str
    evaluator: str
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        if not isinstance(value, (str, dict, cls)):
            raise ValueError("must be an evaluator's name, or a mapping with evaluator, settings and name")
        if isinstance(value, str):
            return {"name": value, "evaluator": value}
        if isinstance(value, dict) and ("name" in value) != ("evaluator" in value):
            either = value.get("name", value.get("evaluator"))
            return {"name": either, "evaluator": either, **value}
        return value

    @pydantic.model_serializer(mode="wrap")
    def _as_written(self, handler: pydantic.SerializerFunctionWrapHandler) -> Any:
        return handler(self) if self.settings or self.name != self.evaluator else self.name


class RunConfig(_Section):
    """A whole run.

    Args:
        minerua: The run file's format: 1.
        seed: Seed of everything random.
        base: Checkpoint that all experts were fine-tuned from; relative paths start at the run file.
        experts: Name → checkpoint or LoRA adapter folder, at least two.
        model: The model kind that turns weights into something callable: its name, or `name` and `settings`.
        tasks: At least two; archive i has task i as quality. An evaluator's name, or `evaluator`, `settings` and a
            `name` for the task.
        evolution: How the population evolves.
        splits: How items are dealt out.
        time_limit_seconds: How long one model may take on one task.
    """

    minerua: Annotated[Literal[1], pydantic.BeforeValidator(_number)]
    seed: Whole = pydantic.Field(default=0, ge=0, lt=2**63)
    base: Path
    experts: dict[str, Path] = pydantic.Field(min_length=2)
    model: ModelConfig
    tasks: tuple[TaskConfig, ...] = pydantic.Field(min_length=2)
    evolution: EvolutionConfig = EvolutionConfig()
    splits: SplitsConfig = SplitsConfig()
    time_limit_seconds: Real = pydantic.Field(default=600.0, gt=0)

    @pydantic.field_validator("tasks")
    @classmethod
    def _unique(cls, tasks: tuple[TaskConfig, ...]) -> tuple[TaskConfig, ...]:
        if len({task.name for task in tasks}) < len(tasks):
            raise ValueError("a task is named twice")
        return tasks

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in order."""
        return tuple(task.name for task in self.tasks)

    def plain(self) -> dict[str, Any]:
        """Returns the file as JSON would hold it, defaults filled in."""
        return self.model_dump(mode="json")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without repeated keys, aliases and tags.

    YAML itself lets a key written twice pass silently, and a few lines of aliases can make a value that fills the
    memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are refused: write the value out", mark)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise yaml.composer.ComposerError(None, None, f"the tag {tag!r} is refused", mark)
        return super().compose_node(parent, index)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
        word = loader.construct_object(key)
        if word in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {word!r} stands here twice", key.start_mark)
        seen.add(word)
    mapping: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return mapping


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping, safely.

    Raises:
        ConfigError: If it cannot be read, is no YAML, repeats a key, or holds something else than a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # ValueError: bytes, dates, huge numbers
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, found {type(content).__name__}")
    return content


def validate(content: dict[str, Any]) -> tuple[RunConfig | None, list[str]]:
    """Checks the content of a run file.

    Returns:
        The configuration, or `None` with one fault per mistake: its place, what was found, what to write instead.
    """
    try:
        return RunConfig.model_validate(content), []
    except pydantic.ValidationError as error:
        faults = error.errors()
        places = [fault["loc"] for fault in faults]
        return None, [_fault(fault) for fault in faults if not _is_consequence(fault, places)]


_SECTIONS: dict[str, type[_Section]] = {
    "": RunConfig,
    "evolution": EvolutionConfig,
    "splits": SplitsConfig,
    "model": ModelConfig,
    "tasks": TaskConfig,
}


def _is_consequence(fault: Any, places: list[tuple[int | str, ...]]) -> bool:
    """Whether a list is too short only because some of what stands in it is wrong."""
    place = fault["loc"]
    return fault["type"] == "too_short" and any(other[: len(place)] == place != other for other in places)


def _fault(fault: Any) -> str:
    """Says in one line where a mistake is and what to do about it."""
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = list(_SECTIONS[fault["loc"][0] if len(fault["loc"]) > 1 else ""].model_fields)
        nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
        return f"{place}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{place}: missing; this key is required"
    found = "" if isinstance(fault["input"], dict) else f", found {_short(fault['input'])}"
    return f"{place or 'the file'}: {fault['msg'].removeprefix('Value error, ')}{found}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
