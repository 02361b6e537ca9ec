"""What is special in settings of pictures: their folders and their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minerua.settings import Settings

__all__ = ["LARGEST", "read_folders", "read_size", "size_of"]

LARGEST = 4096
"""Pixels along one side."""


def read_folders(told: Settings) -> tuple[Path, ...]:
    """Returns what `path` names: one folder, or several in a list."""
    if isinstance(told.value("path", None), str):
        return (told.path("path"),)
    return told.paths("path", what="a folder, or a list of folders")


def read_size(told: Settings, default: int) -> tuple[int, int]:
    """Returns height and width, which `size` names."""
    given = told.value("size", default)
    found = size_of(given)
    if found is None:
        told.fault(f"size is {given!r:.60}; expected one side or [height, width], each from 8 to {LARGEST} pixels")
    return found or (default, default)


def size_of(value: Any) -> tuple[int, int] | None:
    """Returns height and width that a value stands for: one side of a square, or both; `None` if it is neither.

    Example:
        >>> size_of(48), size_of([48, 64]), size_of("48")
        ((48, 48), (48, 64), None)
    """
    sides = value if isinstance(value, list | tuple) else [value, value]
    whole = [side for side in sides if isinstance(side, int) and not isinstance(side, bool) and 8 <= side <= LARGEST]
    return (whole[0], whole[1]) if len(whole) == len(sides) == 2 else None
