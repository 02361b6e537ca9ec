"""minerua's own skills, found through minerua's own entry point; what they need is imported when they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minerua.hookspecs import hookimpl
from minerua.values import Skill, SkillContext


@hookimpl
def minerua_skills() -> list[Skill]:
    """Provides the skill that a checkpoint or an evolved child becomes."""
    return [Skill("minerua-model", configure=_model)]


def _model(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    from minerua.run.skills import configure

    return configure(settings, context)
