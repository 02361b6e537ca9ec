"""Settings of a run file: read by name and type, all faults at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from minerua.errors import ConfigError, unknown
from minerua.values import RunContext

from .sandbox import MODES, Limits, Sandbox, SandboxError
from .verdict import Verdict, reporter

__all__ = ["Settings"]

_Made = TypeVar("_Made")
_NAMES = {str: "text", int: "whole number", float: "number", list: "list", dict: "mapping"}


class Settings:
    """The settings of one task; faults are collected and raised together by `done`.

    Args:
        kind: The evaluator's name, for messages.
        settings: As the run file has them.
        context: Where relative paths begin, and how many items may be worked on at once.

    Example:
        >>> told = Settings("coding", {"path": "a.jsonl", "scorign": "all"}, RunContext(Path("/runs")))
        >>> told.path("path").as_posix()
        '/runs/a.jsonl'
        >>> told.done()
        Traceback (most recent call last):
        minerua.errors.ConfigError: the settings of the evaluator 'coding' cannot be taken
          - no setting of 'coding' is named 'scorign'. Known: path
    """

    def __init__(self, kind: str, settings: Mapping[str, Any], context: RunContext) -> None:
        self.kind, self.given, self.context = kind, dict(settings), context
        self.asked: list[str] = []
        self.faults: list[str] = []

    def get(self, name: str, kind: type[_Made], default: _Made) -> _Made:
        """Returns a setting of a type, or the default."""
        self.asked.append(name)
        if name not in self.given:
            return default
        value: Any = self.given[name]
        accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            self.faults.append(f"{name} is {value!r:.60}; a {_NAMES[kind]} is needed")
            return default
        return cast(_Made, value)

    def optional(self, name: str, kind: type[_Made]) -> _Made | None:
        """Returns a setting of a type, or `None` where there is none."""
        if self.given.get(name) is None:
            self.asked.append(name)
            return None
        return self.get(name, kind, kind())

    def choice(self, name: str, known: Sequence[str], default: str) -> str:
        """Returns one of several words."""
        value = self.get(name, str, default)
        if value not in known:
            self.faults.append(unknown(f"value of {name}", value, known))
        return value

    def path(self, name: str, *, required: bool = True) -> Path:
        """Returns a path, made absolute; a fault where a required one is missing."""
        value = self.get(name, str, "")
        if not value and required and name not in {fault.partition(" ")[0] for fault in self.faults}:
            self.faults.append(f"{name} is missing; it names a file, relative to the run file")
        return self.context.folder / Path(value).expanduser()

    def limits(self, default: Limits) -> Limits:
        """Returns the limits: a mapping of the fields of `Limits`, over defaults."""
        given = self.get("limits", dict, {})
        known = [field.name for field in fields(Limits)]
        strange = [name for name in given if name not in known]
        self.faults += [unknown("limit", str(name), known) for name in strange]
        wanted = {name: value for name, value in given.items() if name in known}
        return self.made(lambda: Limits(**{**vars(default), **wanted}), default)

    def sandbox(self, *, readable: Sequence[str | Path] = ()) -> Sandbox | None:
        """Returns the sandbox in the mode that is named, by default the strongest; `None` after a fault."""
        mode = self.optional("sandbox", str)
        if mode is not None and mode not in MODES:
            self.faults.append(unknown("mode of a sandbox", mode, MODES))
            return None
        return self.made(lambda: Sandbox(mode, readable=readable), None)

    def report(self) -> Callable[[str, Verdict], None] | None:
        """Returns what writes verdicts down, if a file for them is named."""
        path = self.path("report", required=False)
        return self.made(lambda: reporter(path), None) if self.given.get("report") else None

    def made(self, make: Callable[[], _Made], default: Any) -> Any:
        """Returns what `make` returns; an error that says that settings are wrong is kept as a fault."""
        try:
            return make()
        except (ConfigError, SandboxError) as error:
            self.faults += [error.message, *error.faults]
            return default

    def done(self) -> None:
        """Ends the reading.

        Raises:
            ConfigError: Something was wrong, or a setting is there that nobody asked for; all faults.
        """
        strange = [str(name) for name in self.given if name not in self.asked]
        faults = [*self.faults, *(unknown(f"setting of {self.kind!r}", name, self.asked) for name in strange)]
        if faults:
            raise ConfigError(f"the settings of the evaluator {self.kind!r} cannot be taken", faults)
