"""A small world of agent tasks that needs no download: coding, databases and the shell, for a tiny model.

What it is made of is imported when it is asked for: its hook is loaded at every start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .writing import SKILLS, Sizes, write_world

__all__ = ["SKILLS", "Sizes", "write_world"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import writing

    return getattr(writing, name)
