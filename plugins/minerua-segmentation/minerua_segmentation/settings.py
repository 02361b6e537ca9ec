"""Settings of run files and training files: read by name and type, all faults at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minerua.errors import ConfigError, unknown

__all__ = ["LARGEST", "Settings", "read_size"]

LARGEST = 4096
"""Pixels along one side."""


class Settings:
    """The settings of one thing; faults are collected and raised together by `done`.

    Args:
        kind: What they are settings of, for messages.
        given: As the file has them.
        folder: Where relative paths begin.

    Example:
        >>> told = Settings("the evaluator 'segmentation'", {"metrik": "iou"}, Path("/runs"))
        >>> told.choice("metric", ("dice", "iou"), "dice")
        'dice'
        >>> told.done()
        Traceback (most recent call last):
        minerua.errors.ConfigError: the settings of the evaluator 'segmentation' cannot be taken
          - no setting is named 'metrik'; did you mean 'metric'? Known: metric
    """

    def __init__(self, kind: str, given: Mapping[str, Any], folder: Path) -> None:
        self.kind, self.given, self.folder = kind, dict(given), folder
        self.asked: list[str] = []
        self.faults: list[str] = []

    def value(self, name: str, default: Any = None) -> Any:
        """Returns a setting as it stands there."""
        self.asked.append(name)
        found = self.given.get(name)
        return default if found is None else found

    def choice(self, name: str, known: Sequence[str], default: str) -> str:
        """Returns one of several words."""
        found = self.value(name, default)
        if found in known:
            return str(found)
        self.faults.append(f"{name}: {unknown('choice', str(found)[:60], known)}")
        return default

    def flag(self, name: str, default: bool) -> bool:
        """Returns yes or no."""
        found = self.value(name, default)
        if isinstance(found, bool):
            return found
        self.faults.append(f"{name} is {found!r:.60}; true or false is needed")
        return default

    def whole(self, name: str, default: int | None, *, least: int = 1) -> int | None:
        """Returns a whole number."""
        found = self.value(name, default)
        if found is default or (isinstance(found, int) and not isinstance(found, bool) and found >= least):
            return None if found is None else int(found)
        self.faults.append(f"{name} is {found!r:.60}; a whole number from {least} is needed")
        return default

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        """Returns a number within bounds, both of them allowed."""
        found = self.value(name, default)
        if isinstance(found, int | float) and not isinstance(found, bool) and least <= found <= most:
            return float(found)
        self.faults.append(f"{name} is {found!r:.60}; a number from {least:g} to {most:g} is needed")
        return default

    def path(self, name: str) -> Path | None:
        """Returns a path, made absolute; `None` where there is none."""
        found = self.value(name)
        if found is None or (isinstance(found, str) and found):
            return None if found is None else self.folder / Path(found).expanduser()
        self.faults.append(f"{name} is {found!r:.60}; a path is needed, relative to the file that it stands in")
        return None

    def paths(self, name: str) -> tuple[Path, ...]:
        """Returns one path or several; a fault where there is none."""
        found = self.value(name)
        listed = [found] if isinstance(found, str) else found
        if isinstance(listed, list) and listed and all(isinstance(path, str) and path for path in listed):
            return tuple(self.folder / Path(path).expanduser() for path in listed)
        told = "is missing" if found is None else f"is {found!r:.60}"
        self.faults.append(f"{name} {told}; it names a folder, or a list of folders, relative to the file")
        return ()

    def size(self, name: str, default: int) -> tuple[int, int]:
        """Returns height and width."""
        found = read_size(self.value(name, default))
        if found is None:
            told = f"{self.given[name]!r:.60}"
            self.faults.append(
                f"{name} is {told}; one side or [height, width] is needed, each from 8 to {LARGEST} pixels"
            )
        return found or (default, default)

    def done(self) -> None:
        """Ends the reading.

        Raises:
            ConfigError: Something was wrong, or a setting is there that nobody asked for; all faults.
        """
        strange = [str(name) for name in self.given if name not in self.asked]
        faults = [*self.faults, *(unknown("setting", name, self.asked) for name in strange)]
        if faults:
            raise ConfigError(f"the settings of {self.kind} cannot be taken", faults)


def read_size(found: Any) -> tuple[int, int] | None:
    """Returns height and width that a value stands for: one side of a square, or both; `None` if it is neither.

    Example:
        >>> read_size(48), read_size([48, 64]), read_size("48")
        ((48, 48), (48, 64), None)
    """
    sides = found if isinstance(found, list | tuple) else [found, found]
    whole = [side for side in sides if isinstance(side, int) and not isinstance(side, bool) and 8 <= side <= LARGEST]
    return (whole[0], whole[1]) if len(whole) == len(sides) == 2 else None
