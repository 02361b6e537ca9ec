"""What plugins are asked and how long each answer took: for `MINERUA_TRACE_HOOKS`, and for whoever listens."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO

from minerua.errors import StorageError
from minerua.registry.catalog import Plugin

TRACE_VARIABLE = "MINERUA_TRACE_HOOKS"
"""Environment variable: `1` writes every call to stderr, a path appends it to that file; empty or `0`: nothing."""

IMPORT = "import"


class Call(NamedTuple):
    """One thing that was asked of a plugin.

    Args:
        plugin: Of whom.
        what: The hook's name, or `"import"`.
        seconds: Wall time until it was done; `None` for the notice that it begins.
        returned: How many specs it returned; 0 for an import.
        error: Type, message and place of what it raised, in one line; `None` where all went well.
    """

    plugin: Plugin
    what: str
    seconds: float | None = None
    returned: int = 0
    error: str | None = None

    def __str__(self) -> str:
        if self.seconds is None:
            outcome = "begins"
        elif self.error is not None:
            outcome = self.error
        else:
            outcome = "done" if self.what == IMPORT else f"{self.returned} {'spec' if self.returned == 1 else 'specs'}"
        took = "" if self.seconds is None else f"{self.seconds * 1000:.3f} ms"
        return f"minerua: {took:>12}  {self.plugin}  {self.what}  {outcome}"


Observer = Callable[[Call], None]
"""Told of every call when it begins and when it is done; what it raises is not caught."""


@contextlib.contextmanager
def tracing(observe: Observer | None) -> Iterator[Observer | None]:
    """Gives whoever is to be told of calls: the given observer, the trace that the environment asks for, or both.

    Raises:
        StorageError: The trace's file cannot be opened.
    """
    asked = os.environ.get(TRACE_VARIABLE, "")
    if asked in ("", "0"):
        yield observe
    elif asked == "1":
        yield _both(_writer(sys.stderr), observe)
    else:
        with _opened(asked) as file:
            yield _both(_writer(file), observe)


def _opened(path: str) -> TextIO:
    try:
        return open(path, "a", encoding="utf-8", buffering=1)  # a line at a time: the last one tells where it ended
    except OSError as error:
        raise StorageError(
            f"the environment variable {TRACE_VARIABLE} names {path!r}, which cannot be written: {error.strerror}; "
            "name another file, or 1 for stderr"
        ) from error


def _writer(file: TextIO) -> Observer:
    def write(call: Call) -> None:
        file.write(f"{call}\n")
        file.flush()

    return write


def _both(first: Observer, second: Observer | None) -> Observer:
    if second is None:
        return first

    def tell(call: Call) -> None:
        first(call)
        second(call)

    return tell
