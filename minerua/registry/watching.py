"""What a plugin does to the whole process while it is loaded: told, and put back where that is safe."""

from __future__ import annotations

import builtins
import contextlib
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

SLOW_SECONDS = 1.0
"""From when on the loading of a plugin is told: every command that needs plugins waits for it."""

_SIGNALS = [
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGCHLD", "SIGALRM", "SIGPIPE", "SIGUSR1", "SIGUSR2")
    if name in signal.Signals.__members__  # Windows has three of them
]
"""Signals that users and schedulers send; looking at all of them would take longer than many an import."""

_HEARD = 60
"""How many letters of what a plugin prints are repeated."""


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Watches the process while something of a stranger's runs; yields the notices, which are there when it is over.

    What it changed is put back, except new environment variables, new threads and what it printed: a library that was
    imported meanwhile may have set the variables for itself.
    """
    notices, output = list[str](), sys.stdout
    ear = _Ear(output)
    sys.stdout = ear
    before = [(aspect, aspect.read()) for aspect in _ASPECTS]
    try:
        yield notices
    finally:
        for aspect, was in before:
            notices += _put_back(aspect, was)
        sys.stdout = output
        notices += ear.notices()


class _Ear:
    """A stdout that passes everything on and remembers how it began; whoever keeps it has a stdout that works."""

    def __init__(self, output: Any) -> None:
        self._output = output
        self._heard = ""
        self._was_closed = False

    def write(self, text: str) -> int:
        if len(self._heard) < _HEARD:
            self._heard += text[:_HEARD]
        return len(text) if self._output is None else self._output.write(text)

    def close(self) -> None:
        """Leaves the output open: others have something to say too."""
        self._was_closed = True

    def notices(self) -> list[str]:
        printed = [f"prints while it is loaded: {self._heard.strip()[:_HEARD]!r}"] if self._heard else []
        return printed + (["closes stdout while it is loaded; it was kept open"] if self._was_closed else [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)


# ── what is looked at ────────────────────────────────────────────────────────────────────────────────────────────────


class _Aspect(NamedTuple):
    """Something that belongs to the whole process.

    Args:
        what: Its name in a sentence.
        read: Returns a copy of it.
        put_back: Makes it what it was; `None` if that cannot be done.
        tell: Says what is different, from what it was and what it is; empty where nothing is.
        after: What is said of how it is now.
    """

    what: str
    read: Callable[[], Any]
    put_back: Callable[[Any], None] | None
    tell: Callable[[Any, Any], str] = lambda was, now: "" if was == now else f"from {was!r} to {now!r}"
    after: str = "; it was put back"


def _put_back(aspect: _Aspect, was: Any) -> list[str]:
    try:
        told = aspect.tell(was, aspect.read())
        if not told:
            return []
        if aspect.put_back is not None:
            aspect.put_back(was)
    except (OSError, ValueError) as error:  # a folder that is gone; signals outside the main thread
        return [f"changes {aspect.what} while it is loaded, which cannot be put back: {error}"]
    return [f"changes {aspect.what} while it is loaded: {told}{aspect.after}"]


def _tell_keys(was: dict[Any, Any], now: dict[Any, Any]) -> str:
    """Names keys and no values, which may be secret or long."""
    different = [name for name in was if name in now and now[name] is not was[name] and now[name] != was[name]]
    removed = [name for name in was if name not in now]
    return _joined({"sets": different, "removes": removed})


def _tell_all_keys(was: dict[Any, Any], now: dict[Any, Any]) -> str:
    added = _joined({"adds": [name for name in now if name not in was]})
    return "; ".join(part for part in (added, _tell_keys(was, now)) if part)


def _tell_items(was: list[Any], now: list[Any]) -> str:
    added = [repr(item) for item in now if item not in was]
    removed = [repr(item) for item in was if item not in now]
    return _joined({"adds": added, "removes": removed}) or ("" if was == now else "another order")


def _joined(parts: dict[str, list[Any]]) -> str:
    return "; ".join(f"{verb} {', '.join(sorted(map(str, names)))}" for verb, names in parts.items() if names)


def _put_back_keys(target: Any) -> Callable[[dict[Any, Any]], None]:
    """Restores values that were changed or removed; leaves what is new."""

    def put_back(was: dict[Any, Any]) -> None:
        for name, value in was.items():
            if target.get(name) is not value:
                target[name] = value

    return put_back


def _signals() -> dict[str, Any]:
    return {number.name: signal.getsignal(number) for number in _SIGNALS}


def _put_signals_back(was: dict[str, Any]) -> None:
    for name, handler in was.items():
        if handler is not None and signal.getsignal(signal.Signals[name]) is not handler:
            signal.signal(signal.Signals[name], handler)


def _blanket_filters() -> list[Any]:
    """Filters for every warning: those that hide or raise what other plugins say. Narrow ones are a library's own."""
    return [f for f in warnings.filters if f[1] is None and f[2] is Warning and f[3] is None and f[4] == 0]


def _put_filters_back(was: list[Any]) -> None:
    new = [f for f in _blanket_filters() if f not in was]
    warnings.filters[:] = [f for f in warnings.filters if f not in new]  # type: ignore[index]
    warnings._filters_mutated() if hasattr(warnings, "_filters_mutated") else None


def _logging() -> tuple[list[Any], int]:
    """Handlers and level of the root logger; a `logging` that is not yet imported has none, and 30."""
    module = sys.modules.get("logging")
    return (list(module.root.handlers), module.root.level) if module else ([], 30)


def _put_logging_back(was: tuple[list[Any], int]) -> None:
    root = sys.modules["logging"].root
    root.handlers[:], level = was
    root.setLevel(level)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # the folder was removed before any plugin was loaded
        return None


def _streams() -> dict[str, Any]:
    return {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr", "excepthook", "displayhook")}


def _set_path(was: list[str]) -> None:
    sys.path[:] = was


def _set_gc(was: bool) -> None:
    (gc.enable if was else gc.disable)()


_ASPECTS = (
    _Aspect("the working directory", _folder, os.chdir),
    _Aspect(
        "the environment",
        lambda: dict(os.environ),
        _put_back_keys(os.environ),
        _tell_all_keys,
        "; what was there is back, what is new was left",
    ),
    _Aspect("sys.path", lambda: list(sys.path), _set_path, _tell_items),
    _Aspect("handlers of signals", _signals, _put_signals_back, _tell_keys),
    _Aspect("the filters of all warnings", _blanket_filters, _put_filters_back, _tell_items),
    _Aspect("the root logger", _logging, _put_logging_back),
    _Aspect("sys", _streams, lambda was: vars(sys).update(was), _tell_keys),
    _Aspect("the limit of recursion", sys.getrecursionlimit, sys.setrecursionlimit),
    _Aspect("the garbage collector", gc.isenabled, _set_gc),
    _Aspect("builtins", lambda: dict(vars(builtins)), _put_back_keys(vars(builtins)), _tell_all_keys),
    _Aspect("modules of others", lambda: dict(sys.modules), _put_back_keys(sys.modules), _tell_keys),
    _Aspect("the threads", threading.enumerate, None, _tell_items, ""),
)
