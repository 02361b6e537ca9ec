"""A small world of agent tasks that needs no download: coding, databases and the shell, for a tiny model."""

from __future__ import annotations

from .writing import SKILLS, Sizes, write_world

__all__ = ["SKILLS", "Sizes", "write_world"]
