"""Skills that a run's data needs: one that makes a dataset, one that makes ids of text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minerua.errors import BrokenPlugin, ConfigError, MineruaError, unknown
from minerua.values import Setup, Skill, SkillContext


def named_skill(skills: Mapping[str, Skill], name: str) -> Skill:
    """Returns a skill by its name.

    Raises:
        ConfigError: If nobody provides it, with the nearest names.
    """
    try:
        return skills[name]
    except MineruaError as error:  # a registry's own words: who might have it, or who quarrels over it
        raise ConfigError(error.message, error.faults) from error
    except KeyError:
        raise ConfigError(unknown("skill", name, tuple(skills))) from None


def call_of(skill: Skill, settings: Mapping[str, Any], folder: Path) -> tuple[Callable[..., Any], bool]:
    """Returns what calls a skill, and whether the settings were its configuration rather than its inputs.

    Args:
        skill: With `call`, `load` or `configure`.
        settings: What it is configured with.
        folder: Where relative paths in the settings begin.

    Raises:
        ConfigError: If it can be called only by a chain: a coroutine or a generator.
        BrokenPlugin: If it gives nothing that can be called.
    """
    configured = skill.configure is not None
    if skill.configure is not None:
        skill = skill.configure(settings, SkillContext(folder))
    call = skill.call if skill.call is not None else skill.load(Setup()) if skill.load is not None else None
    if call is None:
        raise BrokenPlugin(f"skill {skill.name!r} has nothing to call: neither call, load nor configure gave it")
    if any(
        is_kind(call)
        for is_kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    ):
        raise ConfigError(f"skill {skill.name!r} is a coroutine or a generator; data needs a plain function")
    return call, configured


def dataset_of(skill: Skill, settings: Mapping[str, Any], folder: Path) -> Any:
    """Returns the dataset that a skill makes; it is called once, with the settings as its inputs.

    Raises:
        ConfigError: If the settings are not what it takes, or it raises.
        BrokenPlugin: If its output has no `dataset`.
    """
    call, configured = call_of(skill, settings, folder)
    try:
        made = call() if configured else call(**settings)
    except MineruaError:
        raise
    except Exception as error:
        raise ConfigError(
            f"skill {skill.name!r} could not make a dataset of {dict(settings)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Mapping) or "dataset" not in made:
        found = f"a mapping of {', '.join(map(str, made))}" if isinstance(made, Mapping) else type(made).__name__
        raise BrokenPlugin(f"skill {skill.name!r} returned {found}; data needs a mapping with the key 'dataset'")
    return made["dataset"]
