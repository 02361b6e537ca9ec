"""Says in one line why something went wrong, and where, whatever a stranger's error does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import TracebackType

from minerua.errors import BrokenPlugin

MACHINERY = ("importlib", "_frozen_importlib", "_frozen_importlib_external", "pluggy", "minerua.registry")
"""Modules whose frames say nothing about where a plugin failed."""


def reason(error: BaseException, origin: str | None) -> str:
    """Returns type, message and place of an error in one line; never raises, whatever the error does.

    Args:
        error: What was raised.
        origin: What is told where the error has no place of its own.
    """
    if isinstance(error, BrokenPlugin):
        return " ".join(f"{error.message}: {'; '.join(error.faults)}".rstrip(": ").split())
    try:
        message = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - a text that raises must not leave the quarantine
        message = "(its text cannot be read)"
    places = [place for place in (_place(error), origin) if place]
    return f"{type(error).__name__}: {message}".rstrip(": ") + (f" ({places[0]})" if places else "")


def definition(function: Callable[..., object]) -> str:
    """Returns file and line of a function, or how it prints where it has none."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _place(error: BaseException) -> str | None:
    """Returns file and line where the error arose, and where the plugin's own file led there if that is another one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = list(_telling_frames(error.__traceback__))
    if not frames:
        return None
    file, line = frames[-1]
    own_file, own_line = [frame for frame in frames if frame[0] == frames[0][0]][-1]
    return f"{file}:{line}" if file == own_file else f"{file}:{line}, reached from {own_file}:{own_line}"


def _telling_frames(step: TracebackType | None) -> Iterator[tuple[str, int]]:
    while step is not None:
        module = str(step.tb_frame.f_globals.get("__name__", ""))
        if not any(module == name or module.startswith(f"{name}.") for name in MACHINERY):
            yield step.tb_frame.f_code.co_filename, step.tb_lineno
        step = step.tb_next
