"""Settings of a step, as a chain's file has them: read with their types, with all that is wrong told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from minerua.errors import ChainError, unknown


@final
class Reader:
    """Reads settings one by one and collects what is wrong with them.

    Args:
        skill: Whose settings, for messages.
        settings: As the chain has them.
        known: The settings that there are.
        folder: Where relative paths begin.
    """

    def __init__(self, skill: str, settings: Mapping[str, Any], known: Sequence[str], folder: Path) -> None:
        self.skill, self._settings, self._folder = skill, settings, folder
        self.faults = [unknown("setting", str(name), known) for name in settings if name not in known]

    def text(self, name: str, default: str | None = None, *, among: Sequence[str] = ()) -> str:
        """Returns a setting that is a text, one of several where they are given."""
        value = self._settings.get(name, default)
        if value is None and name not in self._settings:
            self.faults.append(f"{name} is missing")
            return ""
        if not isinstance(value, str) or not value:
            self.faults.append(f"{name} is {value!r:.80}; expected a text")
            return ""
        if among and value not in among:
            self.faults.append(f"{name} is {value!r:.80}; expected one of {', '.join(among)}")
        return value

    def count(self, name: str, default: int | None = None, *, most: int) -> int | None:
        """Returns a setting that is a count from 1 on; the default where it is not given."""
        value = self._settings.get(name, default)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            self.faults.append(f"{name} is {value!r:.80}; expected a count from 1 to {most}")
            return default
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Returns a setting that is true or false."""
        value = self._settings.get(name, default)
        if not isinstance(value, bool):
            self.faults.append(f"{name} is {value!r:.80}; expected true or false")
            return default
        return value

    def names(self, name: str) -> dict[str, str]:
        """Returns a setting that is a mapping from texts to texts."""
        value = self._settings.get(name, {})
        if not isinstance(value, Mapping) or not all(isinstance(t, str) for pair in value.items() for t in pair):
            self.faults.append(f"{name} is {value!r:.80}; expected a mapping from names to names")
            return {}
        return dict(value)

    def counts(self, name: str, *, most: int) -> dict[str, int]:
        """Returns a setting that is a mapping from texts to counts from 1 on."""
        value = self._settings.get(name, {})
        pairs = list(value.items()) if isinstance(value, Mapping) else [(0, 0)]
        if not all(isinstance(key, str) and type(count) is int and 1 <= count <= most for key, count in pairs):
            self.faults.append(f"{name} is {value!r:.80}; expected a mapping from names to counts from 1 to {most}")
            return {}
        return dict(pairs)

    def texts(self, name: str) -> tuple[str, ...]:
        """Returns a setting that is a list of texts."""
        value = self._settings.get(name, ())
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            self.faults.append(f"{name} is {value!r:.80}; expected a list of texts")
            return ()
        return tuple(value)

    def file(self, name: str) -> Path | None:
        """Returns the path of a file that exists; relative ones begin at the chain's folder."""
        text = self.text(name)
        if not text:
            return None
        try:
            path = self._folder / text
            if path.is_file():
                return path
            what = "is a folder" if path.is_dir() else "does not exist"
        except (OSError, ValueError) as error:  # a name too long, or with a zero byte
            path, what = Path(text[:80]), f"cannot be a file: {error}"
        self.faults.append(f"{name}: {path} {what}")
        return None

    def check(self) -> None:
        """Raises all faults that were found so far.

        Raises:
            ChainError: If there are any.
        """
        if self.faults:
            raise ChainError(f"the settings of {self.skill!r} cannot be used", self.faults)
