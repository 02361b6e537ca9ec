"""The hooks: families of evaluators, which run files give settings, and a small world; all else is imported later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minerua import EvaluatorSpec, Skill, hookimpl
from minerua.values import RunContext

__all__ = ["minerua_evaluators", "minerua_skills"]


@hookimpl
def minerua_evaluators() -> list[EvaluatorSpec]:
    """Returns the families `coding`, `database` and `operating-system`."""
    return [
        EvaluatorSpec(name="coding", configure=_coding),
        EvaluatorSpec(name="database", configure=_database),
        EvaluatorSpec(name="operating-system", configure=_operating_system),
    ]


def _coding(settings: Mapping[str, Any], context: RunContext) -> EvaluatorSpec:
    from .coding import configure_coding

    return configure_coding(settings, context)


def _database(settings: Mapping[str, Any], context: RunContext) -> EvaluatorSpec:
    from .database import configure_database

    return configure_database(settings, context)


def _operating_system(settings: Mapping[str, Any], context: RunContext) -> EvaluatorSpec:
    from .operating_system import configure_operating_system

    return configure_operating_system(settings, context)


@hookimpl
def minerua_skills() -> list[Skill]:
    """Returns the skill `agent-skills-world`, which writes tasks, examples and a small model into a folder."""
    ports: dict[str, type] = {"folder": str}
    return [Skill("agent-skills-world", call=_write_world, inputs={**ports, "seed": int}, outputs=ports)]


def _write_world(folder: str, seed: int) -> dict[str, str]:
    from .world import write_world

    write_world(folder, seed=seed)
    return {"folder": folder}
