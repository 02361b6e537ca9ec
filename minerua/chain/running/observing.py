"""Observers: objects that are told what runs do, and cannot break them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, final

from minerua.chain.running.trace import Span, Trace

Tell = Callable[..., object]


@final
class Observers:
    """Tells objects with any of three methods what happens; one that raises is told nothing any more.

    | method | when |
    |---|---|
    | `step_started(run_id, step_name)` | a step is called; once per attempt |
    | `step_finished(run_id, span)` | it ended, was skipped, or its result was known |
    | `run_finished(run_id, trace, error)` | the run ended; `error` is `None` if all went well |

    They are called in the threads that run the steps, so they must be quick.

    Args:
        observers: The objects.
    """

    def __init__(self, observers: Iterable[object]) -> None:
        given = tuple(observers)
        self._lock = threading.Lock()
        self.started = _methods(given, "step_started")
        self.finished = _methods(given, "step_finished")
        self.ended = _methods(given, "run_finished")

    def step_started(self, run_id: int, step: str) -> None:
        """Tells that a step is called."""
        for tell in self.started:
            self._tell(tell, run_id, step)

    def step_finished(self, run_id: int, record: tuple[Any, ...]) -> None:
        """Tells that a step ended; takes the fields of its span."""
        span = Span._make(record)
        for tell in self.finished:
            self._tell(tell, run_id, span)

    def run_finished(self, run_id: int, trace: Trace, error: BaseException | None) -> None:
        """Tells that a run ended."""
        for tell in self.ended:
            self._tell(tell, run_id, trace, error)

    def _tell(self, tell: Tell, *facts: Any) -> None:
        try:
            tell(*facts)
        except Exception as error:  # noqa: BLE001 - whoever only watches must not break what it watches
            self._drop(tell, error)

    def _drop(self, tell: Tell, error: Exception) -> None:
        """Forgets an observer that raised, and says so once; lists are replaced, for others may read them."""
        observer = getattr(tell, "__self__", tell)
        with self._lock:
            several = (self.started, self.finished, self.ended)
            is_known = any(_is_of(observer, one) for methods in several for one in methods)
            self.started, self.finished, self.ended = (
                tuple(one for one in methods if not _is_of(observer, one)) for methods in several
            )
        if is_known:
            _warn(
                f"the observer {type(observer).__name__} raised {type(error).__name__}: {error}; "
                "it is told nothing any more"
            )


def _warn(message: str) -> None:
    """Warns; where warnings are errors, the run goes on all the same."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        import sys

        print(message, file=sys.stderr)


def _is_of(observer: object, method: Tell) -> bool:
    return getattr(method, "__self__", method) is observer


def _methods(observers: Iterable[object], name: str) -> tuple[Tell, ...]:
    found = (getattr(observer, name, None) for observer in observers)
    return tuple(method for method in found if callable(method))
