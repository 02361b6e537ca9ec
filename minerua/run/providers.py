"""Model kinds and evaluators by name, made from the run file's settings where they take some."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from minerua.config import ModelConfig, TaskConfig
from minerua.errors import BrokenPlugin, ConfigError, MineruaError
from minerua.registry import Registry
from minerua.values import EvaluatorSpec, ModelSpec, RunContext

T = TypeVar("T")
Family = TypeVar("Family", EvaluatorSpec, ModelSpec)


class Faults(list[str]):
    """Collects what is wrong, so that one message can say it all."""

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Returns what a step returns, or `None` and keeps the faults of the error that it raised."""
        try:
            return step()
        except MineruaError as error:
            self += [f"{error.message}: {fault}" for fault in error.faults] or [error.message]
            return None


def model_of(registry: Registry, config: ModelConfig, context: RunContext) -> ModelSpec:
    """Returns the model kind that a run file names.

    Raises:
        MineruaError: If it is unknown, or its settings are not in order; lists all faults.
    """
    return _configured(registry.models[config.name], config.settings, context, f"model {config.name!r}")


def evaluator_of(registry: Registry, config: TaskConfig, context: RunContext) -> EvaluatorSpec:
    """Returns a task's evaluator under the task's name.

    Raises:
        MineruaError: If it is unknown, or its settings are not in order; lists all faults.
    """
    known = registry.evaluators[config.evaluator]
    place = f"evaluator {config.evaluator!r}" if config.name == config.evaluator else f"task {config.name!r}"
    return dataclasses.replace(_configured(known, config.settings, context, place), name=config.name)


def _configured(spec: Family, settings: Mapping[str, Any], context: RunContext, place: str) -> Family:
    """Returns a spec that can be used as it is: made from the settings, if it is a family."""
    if spec.configure is None:
        if settings:
            raise ConfigError(f"{place} takes no settings, found {', '.join(settings)}; leave them out")
        return spec
    try:
        made: Any = spec.configure(settings, context)
    except MineruaError as error:
        raise ConfigError(f"{place}: {error.message}", error.faults) from error
    except Exception as error:
        raise BrokenPlugin(f"{place} cannot be configured: {type(error).__name__}: {error}") from error
    if not isinstance(made, type(spec)) or made.configure is not None:
        raise BrokenPlugin(
            f"{place}: configure must return {'an' if isinstance(spec, EvaluatorSpec) else 'a'} {type(spec).__name__} "
            f"that needs no settings, found {made!r:.200}"
        )
    return made
