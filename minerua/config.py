"""The run file: what `minerua evolve` reads, validated with every fault at once."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from minerua.errors import ConfigError
from minerua.values import SPLITS


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class SplitsConfig(_Section):
    """How each task's items are dealt out; the three shares sum to one.

    Args:
        search: What evolution sees.
        select: What the final model is chosen on.
        test: What only the report sees.
    """

    search: float = pydantic.Field(0.4, gt=0, lt=1)
    select: float = pydantic.Field(0.2, gt=0, lt=1)
    test: float = pydantic.Field(0.4, gt=0, lt=1)

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
        crossover_deviation: Standard deviation of the crossover weights around 1.
        crossover_per_tensor: Whether every tensor draws weights of its own.
        mutation: How singular values change, by name.
        mutation_strength: How much.
        sampling: How parents are drawn, by name.
        merges: Merges that join the experts as seeds, by name.
        lower_bounds: Lowest score of each task's first bin, in the order of the tasks; default: from the experts.
        upper_bounds: Highest score of each task's last bin; default: from the experts.
    """

    variant: Literal["minerua", "paper", "repo"] = "minerua"
    evaluations: int = pydantic.Field(1200, ge=1)
    batch: int = pydantic.Field(1, ge=1)
    bins: int = pydantic.Field(15, ge=1, le=1000)
    crossover_deviation: float | None = pydantic.Field(None, ge=0)
    crossover_per_tensor: bool | None = None
    mutation: Literal["literal", "additive", "two-sided", "expert", "gaussian", "none"] | None = None
    mutation_strength: float | None = pydantic.Field(None, ge=0)
    sampling: Literal["elite", "elite-repository", "uniform"] | None = None
    merges: tuple[str, ...] | None = None
    lower_bounds: tuple[float, ...] | None = None
    upper_bounds: tuple[float, ...] | None = None


class RunConfig(_Section):
    """A whole run.

    Args:
        minerua: The run file's format: 1.
        seed: Seed of everything random.
        base: Checkpoint that all experts were fine-tuned from; relative paths start at the run file.
        experts: Name → checkpoint or LoRA adapter folder, at least two.
        model: Name of the model kind that turns weights into something callable.
        tasks: Names of the evaluators, at least two; archive i has task i as quality.
        evolution: How the population evolves.
        splits: How items are dealt out.
        time_limit_seconds: How long one model may take on one task.
    """

    minerua: Literal[1]
    seed: int = pydantic.Field(0, ge=0, lt=2**63)
    base: Path
    experts: dict[str, Path] = pydantic.Field(min_length=2)
    model: str
    tasks: tuple[str, ...] = pydantic.Field(min_length=2)
    evolution: EvolutionConfig = EvolutionConfig()
    splits: SplitsConfig = SplitsConfig()
    time_limit_seconds: float = pydantic.Field(600.0, gt=0)

    @pydantic.field_validator("tasks")
    @classmethod
    def _unique(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("a task is named twice")
        return tasks

    def plain(self) -> dict[str, Any]:
        """Returns the file as JSON would hold it, defaults filled in."""
        return self.model_dump(mode="json")


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice, which YAML itself would let pass silently."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
    twice = [key for i, key in enumerate(keys) if key in keys[:i]]
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} stands here twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


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
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, RecursionError) as error:
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
        return None, [_fault(fault) for fault in error.errors()]


_FIELDS = {(): RunConfig, ("evolution",): EvolutionConfig, ("splits",): SplitsConfig}


def _fault(fault: Any) -> str:
    """Says in one line where a mistake is and what to do about it."""
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = list(_FIELDS[fault["loc"][:-1]].model_fields)
        nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
        return f"{place}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{place}: missing; this key is required"
    found = "" if isinstance(fault["input"], dict) else f", found {fault['input']!r}"
    return f"{place or 'the file'}: {fault['msg'].removeprefix('Value error, ')}{found}"
