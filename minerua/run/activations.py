"""What flows through a model on a task's unlabelled inputs, for merge methods that look at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from minerua.config import SplitsConfig
from minerua.errors import ConfigError, PluginError
from minerua.evaluation import Task, deal
from minerua.registry import Registry
from minerua.values import ModelSpec

T = TypeVar("T")

Activations = Callable[[Mapping[str, np.ndarray], int], Mapping[str, np.ndarray]]
"""`activations(tensors, k)` runs a model with these tensors on task k's inputs; see `values.MergeInputs`."""


def activations_of(model: ModelSpec, tasks: Sequence[Task]) -> Activations:
    """Returns the function that merge methods call, on the tasks' search items alone.

    Args:
        model: Gives activations.
        tasks: Task k's inputs belong to expert k.

    Raises:
        ConfigError: When called, if the model or a task has nothing to give.
    """

    def activations(tensors: Mapping[str, np.ndarray], k: int) -> Mapping[str, np.ndarray]:
        task = tasks[k]
        if model.activations is None or task.evaluator.inputs is None:
            raise ConfigError(f"model {model.name} and task {task.name} must give activations and inputs")
        return model.activations(model.build(tensors), task.evaluator.inputs(task.ids["search"]))

    return activations


def open_activations(model: str, tasks: Sequence[str], *, registry: Registry) -> Activations:
    """Returns the function that merge methods call, for a model and tasks by name.

    Args:
        model: Name of the model kind.
        tasks: Names of the evaluators, one per expert; their items are dealt out as in a run file without `splits`.
        registry: Where they are found.

    Raises:
        ConfigError: A name is unknown, or its owner has nothing to give; lists all faults.
    """
    faults: list[str] = []
    kind = _named(registry.models, model, faults)
    found = [_named(registry.evaluators, name, faults) for name in tasks]
    specs = [spec for spec in found if spec is not None]
    if kind is not None and kind.activations is None:
        faults.append(f"model {model!r} cannot give activations; name another in activations.model")
    faults += [f"task {spec.name!r} cannot give unlabelled inputs" for spec in specs if spec.inputs is None]
    if faults or kind is None:
        raise ConfigError("the activations that the recipe asks for cannot be had", faults)
    return activations_of(kind, deal(specs, SplitsConfig().fractions, seed=0))


def _named(known: Mapping[str, T], name: str, faults: list[str]) -> T | None:
    try:
        return known[name]
    except PluginError as error:
        faults.append(str(error))
        return None
