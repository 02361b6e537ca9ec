"""Evaluators over a child: item outcomes, a time limit, a cache, failures as values."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeVar

import numpy as np

from minerua.errors import EvolutionError, MineruaError
from minerua.evaluation.splits import Task
from minerua.values import Failure, Scores, TaskScore

T = TypeVar("T")

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
        model: Any = None
        for k, task in enumerate(self.tasks):
            missing = self._missing(k, digest, split)
            if not missing:
                continue
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
            self._keep(k, digest, missing, found)
        known = self._remembered(digest)
        return Scores(
            {
                task.name: TaskScore(tuple(outcomes[[positions[id] for id in task.ids[split]]].tolist()))
                for task, positions, outcomes in zip(self.tasks, self._positions, known, strict=True)
            }
        )

    def attempt(self, act: Callable[[], T]) -> T | Failure:
        """Does what is no scoring under the same limits: returns what `act` returns, or what became of it.

        Returns:
            A failure where it raised anything, or passed the time limit, which holds for it as for one task.
        """
        try:
            with _time_limit(self._limit):
                return act()
        except _TimeLimitReached:
            return Failure(f"no end within time_limit_seconds, {self._limit:g} s")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the run goes on
            faults = "; ".join(error.faults) if isinstance(error, MineruaError) else ""
            return Failure(f"{type(error).__name__}: {_first_line(error)}{faults and f': {faults}'}")

    def prefetch(
        self, digests: Sequence[str], build: Callable[[Sequence[int]], Sequence[Any]], *, split: str = "search"
    ) -> None:
        """Scores several models at once where a task's evaluator can, so that `score` finds their outcomes remembered.

        A model whose joint outcomes cannot be used is left to `score`, which tries it by itself and says what is wrong
        with it; that it came to that is a warning.

        Args:
            digests: The names of the models' weights.
            build: Takes positions in `digests` and makes the callables of these models, all valid at the same time.
            split: `search`, `select` or `test`.
        """
        once = list(dict.fromkeys(digests))
        wanted = [
            {digest: missing for digest in once if (missing := self._missing(k, digest, split))}
            if task.evaluator.evaluate_many
            else {}
            for k, task in enumerate(self.tasks)
        ]
        fresh = [digest for digest in once if any(digest in ids for ids in wanted)]
        if len(fresh) < 2:
            return
        try:
            with _time_limit(self._limit * len(fresh)):
                models = dict(zip(fresh, build([digests.index(digest) for digest in fresh]), strict=True))
            for k, ids in enumerate(wanted):
                self._score_together(k, ids, models)
        except _TimeLimitReached:
            _warn(f"{len(fresh)} models gave no answer within {len(fresh)} times time_limit_seconds")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - which model it was, `score` finds out
            _warn(f"{len(fresh)} models could not be scored together: {type(error).__name__}: {_first_line(error)}")

    def _score_together(self, k: int, wanted: Mapping[str, list[str]], models: Mapping[str, Any]) -> None:
        evaluate = self.tasks[k].evaluator.evaluate_many
        if not wanted or evaluate is None:
            return
        with _time_limit(self._limit * len(wanted)):
            found = list(evaluate([models[digest] for digest in wanted], list(wanted.values()), self._seed))
        for (digest, ids), outcomes in zip(wanted.items(), found, strict=True):
            fault = _fault(outcomes, ids)
            if fault:
                _warn(f"{self.tasks[k].name}: {fault}")
            else:
                self._keep(k, digest, ids, outcomes)

    def _missing(self, k: int, digest: str, split: str) -> list[str]:
        """Returns the items of a split whose outcomes are not known of a model."""
        positions, ids = self._positions[k], self.tasks[k].ids[split]
        unknown = np.isnan(self._remembered(digest)[k][[positions[id] for id in ids]])
        return [id for id, is_unknown in zip(ids, unknown, strict=True) if is_unknown]

    def _keep(self, k: int, digest: str, ids: Sequence[str], outcomes: Any) -> None:
        positions = self._positions[k]
        self._remembered(digest)[k][[positions[id] for id in ids]] = outcomes

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


def _warn(what: str) -> None:
    warnings.warn(f"{what}; each is scored by itself", RuntimeWarning, stacklevel=3)


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
