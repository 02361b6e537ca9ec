"""Evaluators over a child: item outcomes, a time limit, a cache, failures as values."""

from __future__ import annotations

import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import numpy as np

from minerua.errors import EvolutionError
from minerua.evaluation.splits import Task
from minerua.values import Failure, Scores, TaskScore

REMEMBERED_BYTES = 1 << 28
"""How much memory the outcomes in the cache may take; those of the longest unused models leave first."""

LONGEST_LIMIT_SECONDS = 1e8
"""Three years; the system's timer refuses numbers that are much larger."""


class _TimeLimitReached(BaseException):
    """Not an Exception, so that an evaluator's own `except Exception` cannot swallow it."""


class Evaluation:
    """Scores models on the tasks of a run and remembers every outcome by model and item.

    Args:
        tasks: The tasks, in the run's order.
        seed: Passed to every evaluator.
        time_limit_seconds: How long one model may take on one task; above it the model has failed. The limit interrupts
            Python code in the main thread at once; native code, and code in other threads, when it returns.
    """

    def __init__(self, tasks: Sequence[Task], *, seed: int = 0, time_limit_seconds: float = 600.0) -> None:
        self.tasks: Final = tuple(tasks)
        self._seed, self._limit = seed, time_limit_seconds
        self._positions = [
            {id: i for i, id in enumerate(id for ids in task.ids.values() for id in ids)} for task in self.tasks
        ]
        self._outcomes: OrderedDict[str, list[np.ndarray]] = OrderedDict()
        bytes_per_model = np.float64().nbytes * sum(len(positions) for positions in self._positions)
        self._capacity = max(1, REMEMBERED_BYTES // max(1, bytes_per_model))

    def score(self, digest: str, build: Callable[[], Any], *, split: str = "search") -> Scores | Failure:
        """Scores a model on one split of every task.

        Only items without a remembered outcome are evaluated; if there are none, the model is not even built.

        Args:
            digest: The name of the model's weights; equal names must mean equal weights.
            build: Makes the callable that evaluators take; whatever it raises is a failure of the model.
            split: `search`, `select` or `test`.

        Returns:
            The scores, or the first failure: an exception, an outcome that is no number in [0, 1], a wrong number of
            outcomes, or the time limit. Failures are not remembered.
        """
        known = self._remembered(digest)
        model: Any = None
        scores: dict[str, TaskScore] = {}
        for task, positions, outcomes in zip(self.tasks, self._positions, known, strict=True):
            indices = np.array([positions[id] for id in task.ids[split]])
            missing = [id for id, unknown in zip(task.ids[split], np.isnan(outcomes[indices]), strict=True) if unknown]
            if missing:
                try:
                    with _time_limit(self._limit):
                        model = build() if model is None else model
                        found = task.evaluator.evaluate(model, missing, self._seed)
                except _TimeLimitReached:
                    return Failure(f"{task.name}: no answer within time_limit_seconds, {self._limit:g} s")
                except (Exception, SystemExit) as error:  # noqa: BLE001 - a model may fail in any way; the run goes on
                    return Failure(f"{task.name}: {type(error).__name__}: {_first_line(error)}")
                fault = _fault(found, missing)
                if fault:
                    return Failure(f"{task.name}: {fault}")
                outcomes[[positions[id] for id in missing]] = found
            scores[task.name] = TaskScore(tuple(outcomes[indices].tolist()))
        return Scores(scores)

    def remember(self, digest: str, scores: Scores, *, split: str = "search") -> None:
        """Puts known outcomes into the cache, as a resumed run does with those in its journal.

        Raises:
            EvolutionError: If there is not one outcome per item of the split.
        """
        wrong = [
            f"{task.name}: {scores.tasks[task.name].count} outcomes for {len(task.ids[split])} items"
            for task in self.tasks
            if scores.tasks[task.name].count != len(task.ids[split])
        ]
        if wrong:
            raise EvolutionError(f"the known outcomes of {digest} do not fit the items of the {split} split", wrong)
        known = self._remembered(digest)
        for task, positions, outcomes in zip(self.tasks, self._positions, known, strict=True):
            outcomes[[positions[id] for id in task.ids[split]]] = scores.tasks[task.name].outcomes

    def _remembered(self, digest: str) -> list[np.ndarray]:
        if digest not in self._outcomes:
            self._outcomes[digest] = [np.full(len(positions), np.nan) for positions in self._positions]
            if len(self._outcomes) > self._capacity:
                self._outcomes.popitem(last=False)
        self._outcomes.move_to_end(digest)
        return self._outcomes[digest]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def _fault(found: Any, ids: Sequence[str]) -> str | None:
    """Says what is wrong with an evaluator's answer, if anything."""
    try:
        outcomes = np.asarray(found, dtype=np.float64)
    except Exception as error:  # noqa: BLE001 - a stranger's array may refuse the conversion in any way
        return f"outcomes must be numbers: {_first_line(error)}"
    if outcomes.shape != (len(ids),):
        return f"{len(ids)} outcomes were expected, one per item, found shape {outcomes.shape}"
    wrong = np.flatnonzero(~((outcomes >= 0) & (outcomes <= 1)))
    if len(wrong):
        return f"{len(wrong)} outcomes lie outside [0, 1], the first {outcomes[wrong[0]]} for item {ids[wrong[0]]!r}"
    return None


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `_TimeLimitReached` in the block when its time is over, or after it where it was not interrupted."""
    begin = time.monotonic()
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        with _alarm(min(seconds, LONGEST_LIMIT_SECONDS)):
            yield
    else:
        yield
    if time.monotonic() - begin > seconds:  # another thread, or a bare `except` that swallowed the alarm
        raise _TimeLimitReached


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupts the block once; the signal's handler is the previous one again at the end, whatever happens."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TimeLimitReached

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # of its own: the alarm may ring in the line above
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)
