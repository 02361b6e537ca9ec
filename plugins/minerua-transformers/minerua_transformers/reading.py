"""Settings read with their types; all that is wrong with them is told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from minerua.errors import ConfigError, unknown


@final
class Reader:
    """Reads settings one by one and collects what is wrong with them.

    Args:
        owner: Whose settings, for messages.
        settings: As a file has them.
        known: The settings that there are.
        folder: Where relative paths begin.
    """

    def __init__(self, owner: str, settings: Mapping[str, Any], known: Sequence[str], folder: Path) -> None:
        self._owner, self._settings, self._folder = owner, settings, folder
        self.faults = [unknown("setting", str(name), known) for name in settings if name not in known]

    def text(self, name: str) -> str | None:
        """Returns a setting that is a text; `None` where it is not given."""
        value = self._settings.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            self._refuse(name, "a text")
            return None
        return value

    def choice(self, name: str, among: Sequence[str]) -> str:
        """Returns a setting that is one of several texts; the first where it is not given."""
        value = self._settings.get(name, among[0])
        if value not in among:
            self._refuse(name, f"one of {', '.join(among)}")
            return among[0]
        return str(value)

    def count(self, name: str, default: int | None, *, least: int = 1) -> int | None:
        """Returns a setting that is a whole number; the default where it is not given."""
        value = self._settings.get(name, default)
        if value is not None and (type(value) is not int or value < least):
            self._refuse(name, f"a whole number from {least} on")
            return default
        return value

    def number(self, name: str, default: float, *, least: float, most: float = float("inf")) -> float:
        """Returns a setting that is a number; the default where it is not given."""
        value = self._settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            bound = f"from {least:g} on" if most == float("inf") else f"from {least:g} to {most:g}"
            self._refuse(name, f"a number {bound}")
            return default
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """Returns a setting that is true or false."""
        value = self._settings.get(name, default)
        if not isinstance(value, bool):
            self._refuse(name, "true or false")
            return default
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Returns a setting that is a list of texts, none of them empty."""
        value = self._settings.get(name, ())
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text for text in value):
            self._refuse(name, "a list of texts")
            return ()
        return tuple(value)

    def path(self, name: str) -> Path | None:
        """Returns a setting that is the path of something that exists; `None` where it is not given, or is wrong."""
        text = self.text(name)
        if text is None:
            return None
        try:
            path = self._folder / text
            if path.exists():
                return path
            self.faults.append(f"{name}: {path} does not exist")
        except (OSError, ValueError) as error:  # a name too long, or with a zero byte
            self.faults.append(f"{name}: {text[:80]!r} is no possible path: {error}")
        return None

    def check(self) -> None:
        """Raises all faults that were found so far.

        Raises:
            ConfigError: If there are any.
        """
        if self.faults:
            raise ConfigError(f"the settings of {self._owner!r} cannot be used", self.faults)

    def _refuse(self, name: str, expected: str) -> None:
        self.faults.append(f"{name} is {self._settings[name]!r:.80}; expected {expected}")
