"""Everything a run needs, checked before anything is written: the run file, the plugins, the weights, the items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from minerua.config import ModelConfig, RunConfig, TaskConfig, read_yaml, validate
from minerua.errors import CheckpointError, ConfigError, unknown
from minerua.evaluation import Task, deal, item_faults
from minerua.evolution.variants import VARIANTS, Variant
from minerua.registry import Registry
from minerua.run.providers import Faults, evaluator_of, model_of
from minerua.values import EvaluatorSpec, MergeMethodSpec, ModelSpec, RunContext
from minerua.weights import Checkpoint, Expert, find_non_finite, is_adapter, open_checkpoint, open_expert

S = TypeVar("S", ModelConfig, TaskConfig)

ROWS = ("base", "mean", "aggregate", "best")
"""Rows of the report beside experts and merges; no expert may have such a name, or that of a merge."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that can start.

    Args:
        config: The run file.
        variant: The variant's settings with the run file's own in their place.
        model: How weights become callable.
        merges: The merge methods whose merges join the experts as seeds.
        base: The checkpoint that all experts share.
        experts: The experts, in the run file's order.
        tasks: The tasks with their items dealt out, in the run file's order.
    """

    config: RunConfig
    variant: Variant
    model: ModelSpec
    merges: tuple[MergeMethodSpec, ...]
    base: Checkpoint
    experts: tuple[Expert, ...]
    tasks: tuple[Task, ...]


def prepare(path: str | Path, registry: Registry, *, workers: int = 1) -> Prepared:
    """Reads a run file and opens everything that it names, without writing anything.

    Args:
        path: The run file; relative paths in it start at its folder.
        registry: Where models, evaluators and merge methods are found.
        workers: How many items an evaluator may work on at the same time.

    Raises:
        ConfigError: If anything at all stands in the way; every fault at once, those of the weights and the plugins
            included.
    """
    path = Path(path)
    content = read_yaml(path)
    config, found = validate(content)
    faults = Faults(found)
    context = RunContext(path.parent, _base_path(path.parent, content), workers)
    model, evaluators = _providers(faults, registry, content, context)
    base, experts = _weights(faults, path.parent, content)
    variant = _variant(config) if config else None
    wanted = variant.merges if variant else _texts(content.get("evolution"), "merges")
    found_merges = [faults.attempt(partial(registry.merge_methods.__getitem__, name)) for name in wanted]
    merges = [merge for merge in found_merges if merge]
    if config and variant:
        faults += _disagreements(config, variant, model, evaluators, merges)
    dealt = None
    if config:
        dealt = faults.attempt(partial(deal, evaluators, config.splits.fractions, seed=config.seed))
    else:
        faults += item_faults(evaluators)
    if faults or not (config and variant and model and base and dealt):
        raise ConfigError(f"{path} cannot be run", faults)
    return Prepared(config, variant, model, tuple(merges), base, tuple(experts), dealt)


def _base_path(folder: Path, content: Mapping[str, Any]) -> Path | None:
    named = content.get("base")
    return folder / named if isinstance(named, str) else None


def _providers(
    faults: Faults, registry: Registry, content: Mapping[str, Any], context: RunContext
) -> tuple[ModelSpec | None, list[EvaluatorSpec]]:
    """Returns the model kind and the evaluators as far as the run file names them."""
    model = _section(ModelConfig, content.get("model"))
    kind = faults.attempt(lambda: model_of(registry, model, context)) if model else None
    entries = content.get("tasks")
    tasks = [_section(TaskConfig, entry) for entry in entries] if isinstance(entries, list) else []
    once = {task.name: task for task in tasks if task}.values()
    found = [faults.attempt(partial(evaluator_of, registry, task, context)) for task in once]
    return kind, [spec for spec in found if spec]


def _section(kind: type[S], value: Any) -> S | None:
    """Returns a section of the run file, if it is valid; its validation has told the rest."""
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError:
        return None


def _texts(section: Any, key: str) -> list[str]:
    """Returns the texts in a list of the run file, as far as it is one; its validation has told the rest."""
    found = section.get(key) if isinstance(section, dict) else None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _weights(faults: Faults, folder: Path, content: Mapping[str, Any]) -> tuple[Checkpoint | None, list[Expert]]:
    """Opens the base and the experts as far as the run file names them."""
    named = _base_path(folder, content)
    base = faults.attempt(partial(_open_base, named)) if named else None
    experts = content.get("experts")
    paths = experts if isinstance(experts, dict) else {}
    opened = []
    for name, path in paths.items():
        if not isinstance(path, str):
            continue
        if base is None:  # nothing to compare with, but a broken file is still worth telling
            if not is_adapter(folder / path):
                faults.attempt(partial(open_checkpoint, folder / path))
        elif expert := faults.attempt(partial(open_expert, str(name), folder / path, base)):
            opened.append(expert)
    return base, opened


def _open_base(path: Path) -> Checkpoint:
    base = open_checkpoint(path)
    faults = find_non_finite(base)
    if faults:
        raise CheckpointError(f"the base at {path} holds numbers that are not finite; restore it from a copy", faults)
    return base


def _variant(config: RunConfig) -> Variant:
    """Returns the variant's settings with those that the run file gives in their place."""
    given = {f.name: getattr(config.evolution, f.name) for f in dataclasses.fields(Variant)}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(VARIANTS[config.evolution.variant], **changes)


def _disagreements(
    config: RunConfig,
    variant: Variant,
    model: ModelSpec | None,
    evaluators: list[EvaluatorSpec],
    merges: list[MergeMethodSpec],
) -> list[str]:
    """Says which settings, each valid alone, do not go together."""
    faults = []
    taken = sorted(config.experts.keys() & {*ROWS, *variant.merges})
    if taken:
        faults.append(f"experts: {', '.join(taken)}: the report has rows of this name already; choose another one")
    if variant.mutation == "expert" and len(config.experts) != len(config.tasks):
        faults.append(
            "evolution.mutation: 'expert' needs one expert per task, in the same order; "
            f"found {len(config.experts)} experts and {len(config.tasks)} tasks"
        )
    faults += [
        f"evolution.active: {unknown('task', name, config.task_names)}"
        for name in config.evolution.active or ()
        if name not in config.task_names
    ]
    for name in ("lower_bounds", "upper_bounds"):
        bounds = getattr(config.evolution, name)
        if bounds is not None and len(bounds) != len(config.tasks):
            faults.append(
                f"evolution.{name}: one number per task is needed: found {len(bounds)} for {len(config.tasks)} tasks"
            )
    lower, upper = config.evolution.lower_bounds or (), config.evolution.upper_bounds or ()
    for task, low, high in zip(config.task_names, lower, upper, strict=False):
        if not low < high:
            faults.append(
                f"evolution: the bounds of {task} are {low:g} and {high:g}: the upper must be above its lower bound"
            )
    faults += [
        f"evolution.merges: {merge.name} cannot seed a population, because a run file cannot set its "
        f"{', '.join(missing)}; merge with `minerua merge`, and name the result as an expert"
        for merge in merges
        if (missing := [p.name for p in merge.parameters if p.default is None and p.name != "weight"])
    ]
    hungry = [merge.name for merge in merges if merge.uses in ("grams", "model")]
    if hungry and model and model.activations is None:
        faults.append(
            f"evolution.merges: {', '.join(hungry)} needs activations, which model {model.name!r} cannot give; "
            "write `merges: [mean]` to go without"
        )
    blind = [evaluator.name for evaluator in evaluators if evaluator.inputs is None]
    if hungry and blind:
        faults.append(
            f"evolution.merges: {', '.join(hungry)} needs unlabelled inputs, which {', '.join(blind)} cannot give; "
            "write `merges: [mean]` to go without"
        )
    if hungry and len(config.experts) != len(config.tasks):
        faults.append(
            f"evolution.merges: {', '.join(hungry)} needs one expert per task, in the same order; "
            f"found {len(config.experts)} experts and {len(config.tasks)} tasks; write `merges: [mean]` to go without"
        )
    return faults
