"""Settings of a file, read by name and type: all that is wrong with them is told at once.

For whoever makes a thing of settings: `configure` of skills, models and evaluators. Imports neither torch nor numpy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

from minerua.errors import ConfigError, MineruaError, unknown

__all__ = ["EXPONENT", "Settings"]

EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
"""Numbers such as `1e-8` that YAML 1.1, which PyYAML reads, takes for texts: it wants a point and a sign in them."""

_SHOWN_CHARACTERS = 60
"""How many characters of a wrong value a message shows."""

_REQUIRED: Any = object()
"""The default of what has none."""

_Default = TypeVar("_Default")
_Made = TypeVar("_Made")


@final
class Settings:
    """The settings of one thing; faults are collected, and raised together by `done`.

    Each setting is asked for by its name, with the method of its type. What is asked for is known; any other name is
    a fault. Without a default a setting is required, as an argument is. `null` counts as not given. Where a value is
    wrong, its default is returned, or, where it is required, a stand-in of its type (the empty text or list, `least`,
    `False`, the first choice, the folder), so that reading goes on; `done` raises then.

    Args:
        owner: Whose settings they are, for messages, as in `"the evaluator 'coding'"`.
        given: As the file has them; not changed.
        folder: Where relative paths begin.
        error: What `done` raises.

    Example:
        >>> told = Settings("the evaluator 'coding'", {"path": "a.jsonl", "turns": 0, "scorign": "all"}, Path("/runs"))
        >>> told.path("path").as_posix(), told.whole("turns", 1, most=9)
        ('/runs/a.jsonl', 1)
        >>> told.choice("scoring", ("all", "share"), "all")
        'all'
        >>> told.done()
        Traceback (most recent call last):
        minerua.errors.ConfigError: the settings of the evaluator 'coding' cannot be used
          - turns is 0; expected a whole number from 1 to 9
          - no setting is named 'scorign'; did you mean 'scoring'? Known: path, scoring, turns
    """

    def __init__(
        self, owner: str, given: Mapping[str, Any], folder: Path, *, error: type[MineruaError] = ConfigError
    ) -> None:
        self.owner = owner
        self._given, self._folder, self._error = dict(given), folder, error
        self._asked: list[str] = []
        self._wrong: set[str] = set()
        self._faults: list[str] = []
        self._sections: list[Settings] = []
        self._before = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What is given, known or not, in the file's order."""
        return tuple(map(str, self._given))

    @property
    def faults(self) -> tuple[str, ...]:
        """What was found so far; names that nobody asked for are found by `done`."""
        return tuple(self._faults)

    def has(self, name: str) -> bool:
        """Whether a setting is given, and nothing was found wrong with it."""
        return self._given.get(name) is not None and name not in self._wrong

    # ── texts, numbers, yes and no ───────────────────────────────────────────────────────────────────────────────────

    def value(self, name: str, default: Any = _REQUIRED) -> Any:
        """Returns a setting as it stands there."""
        return self._read(name, default, None, "a value", lambda found: found)

    def text(self, name: str, default: _Default = _REQUIRED, *, what: str = "a text") -> str | _Default:
        """Returns a text that is not empty; `what` is expected, in a message's words."""
        return self._read(name, default, "", what, partial(_text, what=what))

    def choice(self, name: str, among: Sequence[str], default: _Default = _REQUIRED) -> str | _Default:
        """Returns one of several texts."""
        return self._read(name, default, among[0], _one_of(among), partial(_choice, among=among))

    def whole(
        self, name: str, default: _Default = _REQUIRED, *, least: int = 1, most: int | None = None
    ) -> int | _Default:
        """Returns a whole number within bounds that are allowed themselves. `true` is none, and neither is `2.0`."""
        what = f"a whole number from {least} {'on' if most is None else f'to {most}'}"
        return self._read(name, default, least, what, partial(_whole, least=least, most=most, what=what))

    def number(
        self,
        name: str,
        default: _Default = _REQUIRED,
        *,
        least: float = -math.inf,
        most: float = math.inf,
        above: float = -math.inf,
    ) -> float | _Default:
        """Returns a finite number.

        Args:
            name: The setting. `1e-8`, which YAML takes for a text, is a number too.
            default: What is returned where it is not given.
            least: The lowest that is allowed.
            most: The highest that is allowed.
            above: The highest that is not.
        """
        what = f"a number{_bounds(least, most, above)}"
        take = partial(_number, least=least, most=most, above=above, what=what)
        return self._read(name, default, max(least, 0.0), what, take)

    def flag(self, name: str, default: _Default = _REQUIRED) -> bool | _Default:
        """Returns true or false."""
        return self._read(name, default, False, "true or false", _flag)

    def texts(
        self, name: str, default: _Default = _REQUIRED, *, what: str = "a list of texts"
    ) -> tuple[str, ...] | _Default:
        """Returns the texts of a list, none of them empty; a required list has at least one."""
        take = partial(_texts, fewest=int(default is _REQUIRED), what=what)
        return self._read(name, default, tuple[str, ...](), what, take)

    # ── paths ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def path(self, name: str, default: _Default = _REQUIRED, *, what: str = "a path") -> Path | _Default:
        """Returns a path, absolute, `~` replaced, whether there is something or not."""
        return self._path(name, default, what, lambda path: True)

    def existing(self, name: str, default: _Default = _REQUIRED, *, what: str = "a path") -> Path | _Default:
        """Returns the path of a file or a folder that there is."""
        return self._path(name, default, what, Path.exists)

    def file(self, name: str, default: _Default = _REQUIRED, *, what: str = "a file") -> Path | _Default:
        """Returns the path of a file that there is."""
        return self._path(name, default, what, Path.is_file)

    def folder(self, name: str, default: _Default = _REQUIRED, *, what: str = "a folder") -> Path | _Default:
        """Returns the path of a folder that there is."""
        return self._path(name, default, what, Path.is_dir)

    def paths(
        self, name: str, default: _Default = _REQUIRED, *, what: str = "a list of paths"
    ) -> tuple[Path, ...] | _Default:
        """Returns the paths of a list, as `path` does; a required list has at least one."""
        what = self._located(what)

        def take(found: Any) -> tuple[Path, ...]:
            texts = _texts(found, fewest=int(default is _REQUIRED), what=what)
            return tuple(map(self._absolute, texts))

        return self._read(name, default, tuple[Path, ...](), what, take)

    def _path(self, name: str, default: _Default, what: str, is_there: Callable[[Path], bool]) -> Path | _Default:
        what = self._located(what)

        def take(found: Any) -> Path:
            path = self._absolute(_text(found, what=what))
            try:
                if not is_there(path):
                    raise _Wrong(_found_at(path))
            except OSError as error:  # a name too long, or a folder that may not be looked into
                raise _Wrong(f"nothing can be there: {error}") from error
            return path

        return self._read(name, default, self._folder, what, take)

    def _located(self, what: str) -> str:
        return f"{what}, absolute or relative to {self._folder}"

    def _absolute(self, text: str) -> Path:
        try:
            if "\0" in text:
                raise _Wrong("no path has a zero byte in it")
            return (self._folder / Path(text).expanduser()).absolute()
        except (OSError, RuntimeError) as error:  # nobody has this home, or the working folder is gone
            raise _Wrong(f"that is no possible path: {error}") from error

    # ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def section(self, name: str) -> Settings:
        """Returns the settings of a setting that is a mapping; empty ones where it is not given.

        Its faults are told by the outer `done`, with names as in `limits.seconds`; so are names in it that nobody asked
        it for. Where a mapping's names are free, ask for all of its `names`.

        Example:
            >>> told = Settings("the skill 'sum'", {"weights": {"a": 2, "b": "x"}}, Path("/runs"))
            >>> weights = told.section("weights")
            >>> {name: weights.number(name) for name in weights.names}
            {'a': 2.0, 'b': 0.0}
            >>> told.faults
            ("weights.b is 'x'; expected a number",)
        """
        none: Mapping[str, Any] = {}
        given = self._read(name, none, none, "a mapping", _mapping)
        inner = Settings(self.owner, given, self._folder, error=self._error)
        inner._faults, inner._before = self._faults, f"{self._before}{name}."
        self._sections.append(inner)
        return inner

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def fault(self, *texts: str) -> None:
        """Adds what else is wrong, one sentence each."""
        self._faults += texts

    def made(self, make: Callable[[], _Made], default: _Default) -> _Made | _Default:
        """Returns what `make` returns; where it raises minerua's own error, keeps that as faults.

        Args:
            make: Makes something of settings. What is not a `MineruaError` is nobody's wrong setting, and passes.
            default: What is returned after such an error.

        Example:
            >>> def read() -> str:
            ...     raise ConfigError("a.jsonl holds no items", ["line 1: expected an object"])
            >>> told = Settings("the evaluator 'coding'", {}, Path("/runs"))
            >>> told.made(read, None), told.faults
            (None, ('a.jsonl holds no items', 'line 1: expected an object'))
        """
        try:
            return make()
        except MineruaError as error:
            self.fault(error.message, *error.faults)
            return default

    def done(self) -> None:
        """Ends the reading. May be called again after more was asked.

        Raises:
            MineruaError: As `error` says, `ConfigError` by default: something was wrong, or a name is there that nobody
                asked for; all faults.
        """
        faults = [*self._faults, *self._strange()]
        if faults:
            raise self._error(f"the settings of {self.owner} cannot be used", faults)

    def _strange(self) -> Iterator[str]:
        kind, known = f"setting of {self._before[:-1]}" if self._before else "setting", list(dict.fromkeys(self._asked))
        for name in self.names:
            if name not in known:
                yield unknown(kind, name[:_SHOWN_CHARACTERS], known)
        for section in self._sections:
            yield from section._strange()

    def _read(
        self, name: str, default: _Default, stand_in: _Made, what: str, take: Callable[[Any], _Made]
    ) -> _Made | _Default:
        """Returns what `take` makes of a setting; keeps a fault where it raises `_Wrong`."""
        self._asked.append(name)
        found = self._given.get(name)
        try:
            if found is not None:
                return take(found)
            if default is _REQUIRED:
                self._refuse(name, f"is missing; expected {what}")
        except _Wrong as wrong:
            self._refuse(name, f"is {_shown(found)}; {wrong}")
        return stand_in if default is _REQUIRED else default

    def _refuse(self, name: str, told: str) -> None:
        if name not in self._wrong:  # what is asked twice is told once
            self.fault(f"{self._before}{name} {told}")
        self._wrong.add(name)


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Wrong(Exception):
    """A value is refused; the text says what was expected, or found in its place."""


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits; YAML reads one that is hexadecimal
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _text(value: Any, *, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise _Wrong(f"expected {what}")
    return value


def _texts(value: Any, *, fewest: int, what: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) < fewest:
        raise _Wrong(f"expected {what}")
    return tuple(_text(one, what=what) for one in value)


def _one_of(among: Sequence[str]) -> str:
    return f"one of {', '.join(among)}"


def _choice(value: Any, *, among: Sequence[str]) -> str:
    import difflib  # few files name what there is not

    if isinstance(value, str) and value in among:
        return value
    nearest = difflib.get_close_matches(value[:_SHOWN_CHARACTERS], among, n=1) if isinstance(value, str) else []
    raise _Wrong(f"expected {_one_of(among)}" + "".join(f"; did you mean {name!r}?" for name in nearest))


def _whole(value: Any, *, least: int, most: int | None, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise _Wrong(f"expected {what}")
    return value


def _number(value: Any, *, least: float, most: float, above: float, what: str) -> float:
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:  # a whole number beyond the largest float
            found = math.inf
        if math.isfinite(found) and least <= found <= most and found > above:
            return found
    raise _Wrong(f"expected {what}")


def _bounds(least: float, most: float, above: float) -> str:
    if math.isfinite(above):
        return f" above {above:.15g}" + (f", up to {most:.15g}" if math.isfinite(most) else "")
    if math.isfinite(least):
        return f" from {least:.15g} " + (f"to {most:.15g}" if math.isfinite(most) else "on")
    return f" up to {most:.15g}" if math.isfinite(most) else ""


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("expected true or false")
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _Wrong("expected a mapping whose names are texts")
    return value


def _found_at(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder; expected a file"
    return f"{path} is a file; expected a folder" if path.is_file() else f"{path} does not exist"
