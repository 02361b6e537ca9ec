"""The hooks: families of evaluators, each of which a run file gives settings; nothing else is imported until then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minerua import EvaluatorSpec, hookimpl
from minerua.values import RunContext

__all__ = ["minerua_evaluators"]


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
