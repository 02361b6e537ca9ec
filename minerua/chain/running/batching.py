"""Micro-batching: calls that arrive while one runs become the next one, joined along the first axis.

Nobody waits for company: what finds the skill idle runs at once.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

import numpy as np

from minerua.chain.keeping.content import value_digest
from minerua.chain.running.crew import tell_loop
from minerua.errors import PoolTimeout, RunCancelled, StepFailed

Done = Callable[[Mapping[str, Any] | None, BaseException | None], Any]
"""Is called once, with the outputs or with what was raised."""

_Loop = asyncio.AbstractEventLoop
_Told = tuple["Request", Mapping[str, Any] | None, BaseException | None]

_IDLE_SECONDS = 10.0
"""How long a thread without work stays."""


@final
@dataclass(frozen=True)
class BatchStatistics:
    """What a batcher did so far.

    Args:
        requests: How many came in.
        batches: How many calls were made of them.
        joined: How many requests shared their call with others.
        rows: How many rows the joined calls had, all together.
        largest_rows: The most rows that one joined call had.
        alone_again: How many requests were run again by themselves because their batch raised.
        cancelled: How many were withdrawn while they waited.
        waiting: How many wait now.
    """

    requests: int = 0
    batches: int = 0
    joined: int = 0
    rows: int = 0
    largest_rows: int = 0
    alone_again: int = 0
    cancelled: int = 0
    waiting: int = 0


@final
class Request:
    """A call that waits for its turn, runs or is done; made by `Batcher.submit`."""

    __slots__ = ("_batcher", "done", "inputs", "kind", "loop", "rows")

    def __init__(self, batcher: Batcher, inputs: Mapping[str, Any], done: Done, loop: _Loop | None) -> None:
        self._batcher, self.inputs, self.done, self.loop = batcher, inputs, done, loop
        self.kind, self.rows = _kind_and_rows(inputs)

    def cancel(self) -> bool:
        """Withdraws the call if it still waits; returns whether it did. `done` is not called then."""
        return self._batcher._withdraw(self)


@final
class Batcher:
    """Makes one call of those that wait while another runs.

    Calls are joined if their inputs have the same names, the arrays the same dtypes and the same extents after the
    first, and everything else is equal; in order of arrival, whole calls only, up to `most_rows` rows. The oldest one
    always goes first. A call that no other can join (without arrays, with arrays of different lengths, with more rows
    than `most_rows`) runs by itself. Results are parted by rows: each caller gets views of its own.

    If a joined call raises, each of its calls is made again by itself, so that a bad one spoils only its own.

    Args:
        call: Takes the inputs by keyword, returns a mapping with the outputs; no coroutine function.
        skill: The skill's name, for messages.
        most_rows: How many rows a joined call may have.
        workers: How many calls may run at a time.
        most_waiting: How many calls may wait; whoever submits more waits or is refused.

    Example:
        >>> import numpy as np
        >>> with Batcher(lambda x: {"y": 2 * x}, skill="double", most_rows=32) as batcher:
        ...     batcher.run({"x": np.ones((1, 2))})
        {'y': array([[2., 2.]])}
    """

    def __init__(
        self,
        call: Callable[..., Mapping[str, Any]],
        *,
        skill: str,
        most_rows: int,
        workers: int = 1,
        most_waiting: int = 4096,
    ) -> None:
        self.skill: Final = skill
        self.most_rows: Final = most_rows
        self._call, self._workers, self._most_waiting = call, workers, most_waiting
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._waiting: deque[Request] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0  # threads that wait for work
        self._running = 0  # calls that are being made, by threads of this batcher or by callers of `run`
        self._is_closed = False
        self._requests = self._batches = self._joined = self._rows = self._largest = self._again = self._cancelled = 0

    # ── coming in ────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        inputs: Mapping[str, Any],
        done: Done,
        *,
        timeout_seconds: float | None = None,
        loop: _Loop | None = None,
    ) -> Request:
        """Hands in a call; it is made in a thread of the batcher.

        Args:
            inputs: Input name → value. Arrays must not change until `done`.
            done: Called once from that thread: `done(outputs, None)` or `done(None, error)`. It must be quick, and must
                not raise.
            timeout_seconds: How long to wait while `most_waiting` calls wait; `None` waits for ever.
            loop: The event loop that hands it in: nothing is waited for then, and `done` is called in the loop, for all
                its calls of a batch together.

        Returns:
            The call, which can be withdrawn while it waits.

        Raises:
            PoolTimeout: If too many calls wait.
            RunCancelled: If the batcher is closed.
        """
        request = Request(self, inputs, done, loop)
        with self._lock:
            self._admit(timeout_seconds if loop is None else 0.0)
            self._requests += 1
            self._waiting.append(request)
            self._call_worker()
        return request

    def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Makes a call and returns its outputs; in this thread if nothing runs and nobody waits.

        Args:
            inputs: Input name → value.

        Raises:
            RunCancelled: If the batcher is closed.
            Exception: Whatever the call raises.
        """
        with self._lock:
            self._refuse_if_closed()
            is_free = self._running < self._workers and not self._waiting
            if is_free:
                self._running += 1
                self._requests += 1
                self._batches += 1
        if is_free:
            try:
                return self._call(**inputs)
            finally:
                self._leave()
        answer = _Answer()
        self.submit(inputs, answer.done)
        return answer.wait()

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
            self._call_worker()

    def _admit(self, timeout_seconds: float | None) -> None:
        self._refuse_if_closed()
        if len(self._waiting) < self._most_waiting:
            return
        self._room.wait_for(lambda: self._is_closed or len(self._waiting) < self._most_waiting, timeout_seconds)
        self._refuse_if_closed()
        if len(self._waiting) >= self._most_waiting:
            raise PoolTimeout(
                f"{len(self._waiting)} calls of the skill {self.skill!r} wait already, {self._most_waiting} may: "
                "come back later, or raise most_waiting"
            )

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise self._closed()

    def _closed(self) -> RunCancelled:
        return RunCancelled(f"the calls of the skill {self.skill!r} were stopped: its batcher was closed")

    def _withdraw(self, request: Request) -> bool:
        with self._lock:
            try:
                self._waiting.remove(request)
            except ValueError:
                return False
            self._cancelled += 1
            self._room.notify()
            return True

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _call_worker(self) -> None:
        """Sees to it that somebody takes what waits, if one more call may run."""
        if not self._waiting or self._running >= self._workers:
            return
        if self._idle:
            self._work.notify()
        elif len(self._threads) < self._workers:
            thread = threading.Thread(target=self._serve, name=f"minerua-batch-{self.skill}", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            self._run(batch)
            batch.clear()  # a thread that waits keeps no arrays alive
            with self._lock:
                self._running -= 1

    def _next(self) -> list[Request] | None:
        """Waits for work; returns the next batch, or `None` if the thread is to end."""
        with self._lock:
            deadline = time.monotonic() + _IDLE_SECONDS
            while not self._waiting or self._running >= self._workers:
                left = deadline - time.monotonic()
                if self._is_closed or left <= 0:
                    self._threads.discard(threading.current_thread())
                    return None
                self._idle += 1
                self._work.wait(left)
                self._idle -= 1
            batch = self._taken()
            self._running += 1
            self._call_worker()
            self._room.notify(len(batch))
            return batch

    def _taken(self) -> list[Request]:
        """Takes the oldest call, and in order those that can join it until the next one would be too many."""
        first = self._waiting.popleft()
        batch, rows = [first], first.rows
        if first.kind is not None and self._waiting and rows < self.most_rows:
            left: deque[Request] = deque()
            for request in self._waiting:
                if request.kind == first.kind and rows <= self.most_rows:
                    rows += request.rows  # beyond the bound nothing is taken any more, to keep the order
                    if rows <= self.most_rows:
                        batch.append(request)
                        continue
                left.append(request)
            self._waiting = left
        self._batches += 1
        return batch

    def _run(self, batch: list[Request]) -> None:
        if len(batch) == 1:
            self._run_alone(batch[0])
            return
        try:
            results = self._run_joined(batch)
        except StepFailed as error:  # the skill breaks its promise; by itself each call would hide that
            _tell_all([(request, None, error) for request in batch])
        except BaseException:  # noqa: BLE001 - each gets its own error, in its own call
            with self._lock:
                self._again += len(batch)
                self._batches += len(batch)
            for request in batch:
                self._run_alone(request)
        else:
            _tell_all([(request, outputs, None) for request, outputs in zip(batch, results, strict=True)])

    def _run_alone(self, request: Request) -> None:
        try:
            outputs = self._call(**request.inputs)
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked for the call
            _tell_all([(request, None, error)])
        else:
            _tell_all([(request, outputs, None)])

    def _run_joined(self, batch: list[Request]) -> list[dict[str, Any]]:
        ends = list(itertools.accumulate(request.rows for request in batch))
        outputs = self._call(**_joined([request.inputs for request in batch]))
        self._refuse_unparted(outputs, ends[-1], len(batch))
        with self._lock:
            self._joined += len(batch)
            self._rows += ends[-1]
            self._largest = max(self._largest, ends[-1])
        starts = [0, *ends]
        return [
            {name: value[start:end] for name, value in outputs.items()}
            for start, end in zip(starts, ends, strict=False)
        ]

    def _refuse_unparted(self, outputs: Any, rows: int, count: int) -> None:
        """Raises an error if outputs cannot be parted by rows."""
        if not isinstance(outputs, Mapping):
            raise StepFailed(
                f"the skill {self.skill!r} returned {type(outputs).__name__} instead of a mapping with its outputs",
                skill=self.skill,
            )
        faults = [
            f"output {name!r} is {_shape_text(value)}"
            for name, value in outputs.items()
            if tuple(getattr(value, "shape", ()))[:1] != (rows,)
        ]
        if faults:
            raise StepFailed(
                f"the skill {self.skill!r} took {rows} rows of {count} joined calls and returned outputs that cannot "
                f"be parted again: the first extent of each must be {rows}; declare it as not batchable",
                faults,
                skill=self.skill,
            )

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def statistics(self) -> BatchStatistics:
        """Returns counts of one moment."""
        with self._lock:
            return BatchStatistics(
                self._requests,
                self._batches,
                self._joined,
                self._rows,
                self._largest,
                self._again,
                self._cancelled,
                len(self._waiting),
            )

    def close(self) -> None:
        """Refuses what waits with a `RunCancelled`, and waits for the calls that run in threads of the batcher."""
        with self._lock:
            self._is_closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            threads = list(self._threads)
            self._work.notify_all()
            self._room.notify_all()
        _tell_all([(request, None, self._closed()) for request in waiting])
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Answer:
    """Where a thread waits for its call."""

    def __init__(self) -> None:
        self._is_there = threading.Lock()
        self._is_there.acquire()
        self._outputs: Any = None
        self._error: BaseException | None = None

    def done(self, outputs: Mapping[str, Any] | None, error: BaseException | None) -> None:
        self._outputs, self._error = outputs, error
        self._is_there.release()

    def wait(self) -> Mapping[str, Any]:
        self._is_there.acquire()
        if self._error is not None:
            raise self._error
        outputs: Mapping[str, Any] = self._outputs
        return outputs


def _tell_all(answers: list[_Told]) -> None:
    """Tells what became of calls; those of one event loop together, for a loop that is called once wakes once."""
    inside: dict[_Loop, list[_Told]] = {}
    for answer in answers:
        request, outputs, error = answer
        if request.loop is None:
            _tell(request.done, outputs, error)
        else:
            inside.setdefault(request.loop, []).append(answer)
    for loop, several in inside.items():
        if not tell_loop(loop, partial(_tell_each, several)):
            _tell_each(several)  # the loop was closed, and what they hold is not given back yet


def _tell_each(answers: list[_Told]) -> None:
    for request, outputs, error in answers:
        _tell(request.done, outputs, error)


def _tell(done: Done, outputs: Mapping[str, Any] | None, error: BaseException | None) -> None:
    try:
        done(outputs, error)
    except Exception:  # noqa: BLE001 - the other calls of the batch are not to blame; Python prints it as of any thread
        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


def _kind_and_rows(inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...] | None, int]:
    """Returns what calls must share to be joined, and how many rows this one has; `None` if no other can join it."""
    kind: list[Any] = []
    rows = -1
    for name, value in inputs.items():
        if type(value) is np.ndarray and value.ndim:
            if rows not in (-1, value.shape[0]):
                return None, 0
            rows = value.shape[0]
            kind.append((name, value.dtype, value.shape[1:]))
        elif hasattr(value, "shape") and value.shape:
            return None, 0  # arrays of other libraries are not joined
        else:
            content = value_digest(value)
            kind.append((name, id(value) if content is None else content))
    kind.sort(key=lambda one: one[0])
    return (None, 0) if rows < 0 else (tuple(kind), rows)


def _joined(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the inputs of a call that stands for several; arrays are read-only, as the callers' own would be."""
    joined = {}
    for name, value in several[0].items():
        if type(value) is np.ndarray and value.ndim:
            value = np.concatenate([inputs[name] for inputs in several])
            value.flags.writeable = False
        joined[name] = value
    return joined


def _shape_text(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"of type {type(value).__name__}" if shape is None else f"an array of shape {tuple(shape)}"
