"""Carries out a plan: run, arun and stream."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, final

from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.admission import LOOK_SECONDS, Admission
from minerua.chain.running.branches import Branches
from minerua.chain.running.channel import END, Channel
from minerua.chain.running.compiling import Program
from minerua.chain.running.crew import LoopDoor, tell_loop
from minerua.chain.running.failing import run_cancelled
from minerua.chain.running.forked import carry_out_forked
from minerua.chain.running.in_loop import carry_out_in_thread, carry_out_joined
from minerua.chain.running.line import Line
from minerua.chain.running.means import Means
from minerua.chain.running.partials import Partial
from minerua.chain.running.run import Run
from minerua.chain.running.trace import Trace
from minerua.chain.writing.checking import MOST_SECONDS
from minerua.chain.writing.ports import value_faults
from minerua.errors import ChainError, RunCancelled, StepTimeout

if TYPE_CHECKING:
    from minerua.chain.keeping.cache import ContentCache
    from minerua.chain.keeping.residency import ModelResidency
    from minerua.chain.running.workers import WorkerProcesses
    from minerua.kernels.pool import CancelToken, ResourcePool

PARTIALS_WAITING: Final = 16
"""How many partial results may wait for the reader of a stream before steps wait for it too."""


@final
class Result(Mapping[str, Any]):
    """The outputs of one run: a read-only mapping. Arrays are read-only too, for others may look at the same memory.

    Args:
        outputs: Output name → value, of those that are there.
        absent: The outputs that are not, because their steps were skipped.
        trace: What happened.
    """

    __slots__ = ("_outputs", "absent", "trace")

    def __init__(self, outputs: dict[str, Any], absent: tuple[str, ...], trace: Trace) -> None:
        self._outputs, self.absent, self.trace = outputs, absent, trace

    def __getitem__(self, name: str) -> Any:
        try:
            return self._outputs[name]
        except KeyError:
            if name in self.absent:
                raise KeyError(f"{name!r} is absent: every step that could have given it was skipped") from None
            raise

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        absent = f", absent: {', '.join(self.absent)}" if self.absent else ""
        return f"<Result of {self.trace.chain}: {', '.join(self) or 'nothing'}{absent}>"


@final
class ChainExecutor:
    """Carries out a plan, as often and from as many threads as one likes.

    A step starts when its own inputs are there. It holds what it needs of the pool just while it runs. Arrays are
    passed as read-only views and freed after their last use. If a step fails, what needs it does not run, what runs
    is told to stop, and the error says which step it was and what it was given. Results do not depend on the number
    of threads.

    What can be stopped is stopped: coroutines are cancelled, worker processes killed, waiting requests withdrawn. A
    function in a thread cannot be: it is told (`minerua.chain.cancelled`), a timeout or a cancellation does not wait
    for it, and its lease is released when it really ends. For that reason it is not tried again after a timeout.

    Args:
        plan: What to carry out.
        pool: Where steps hold their `resources`; `None`: nothing is counted. Borrowed.
        cache: Where the results of steps that are planned as cached are kept; `None`: nowhere. Borrowed.
        residency: Where models are loaded; default: one of its own, without a bound. Borrowed.
        workers: Processes for isolated steps; default: its own, started by the first. Borrowed.
        observers: Objects with any of `step_started(run_id, step_name)`, `step_finished(run_id, span)` and
            `run_finished(run_id, trace, error)`; one that raises is dropped with a warning.
        threads: How many worker threads there may be beside the caller; default: processors + 4, at most 32.
        most_runs: How many runs there may be at a time; more wait for their turn.

    Raises:
        ChainError: If the plan is not sound, or an isolated skill cannot be found by another process.

    Example:
        >>> from minerua.chain.graph import Graph, Source, Step
        >>> from minerua.values import Skill
        >>> double = Skill("double", call=lambda x: {"y": 2 * x}, inputs={"x": int}, outputs={"y": int})
        >>> step = Step("twice", double, {"x": (Source(None, "n"),)})
        >>> graph = Graph("small", {"n": int}, (), (step,), {"y": (Source("twice", "y"),)})
        >>> with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        ...     dict(executor.run({"n": 4}))
        {'y': 8}
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        *,
        pool: ResourcePool | None = None,
        cache: ContentCache | None = None,
        residency: ModelResidency | None = None,
        workers: WorkerProcesses | None = None,
        observers: Iterable[object] = (),
        threads: int | None = None,
        most_runs: int = 64,
    ) -> None:
        self.plan: Final = plan
        self._prepare: Callable[[Mapping[str, int]], Any] | None = None if pool is None else pool.prepare
        self._programs: dict[tuple[frozenset[str] | None, bool], Program] = {}
        self._whole = self._program(None)
        threads = min((os.cpu_count() or 1) + 4, 32) if threads is None else threads
        self._means = Means(plan.graph.name, pool, cache, residency, workers, observers, max(threads, 1))
        self._admission = Admission(max(most_runs, 1), plan.graph.name)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._runs: set[Run | Line] = set()
        self._is_closed = False

    # ── run ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        inputs: Mapping[str, Any],
        /,
        *,
        outputs: Collection[str] | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Result:
        """Runs the chain once; works in the calling thread as far as possible.

        Args:
            inputs: Input name → value; optional ones may be left out.
            outputs: Which outputs are wanted: only what they need runs. Default: all, and every step runs.
            timeout_seconds: How long the run may take, its waiting for other runs included; at most 1e9.
            cancel: Stops the run when it is cancelled.

        Raises:
            ChainError: If the inputs do not fit (lists all faults), or the time is none that can pass.
            StepFailed: If a step raised, or returned what it may not; later failures are among its `faults`.
            StepTimeout: If a step, or the run, took too long.
            RunCancelled: If it was cancelled, or the executor closed.
            BaseException: An interrupt, wherever it happened, after everything is released.
        """
        program, given = self._whole if outputs is None else self._program(outputs), self._checked(inputs)
        deadline = _deadline(timeout_seconds)
        if not self._admission.try_enter():
            self._enter(timeout_seconds, cancel)
        try:
            if deadline is None and cancel is None:
                if program.is_plain_line:
                    return self._run_line(Line(self._means, program, next(self._numbers), given))
                if (branches := program.branches) is not None:
                    return self._run_line(Line(self._means, program, next(self._numbers), given), branches)
            run = Run(self._means, program, next(self._numbers), given)
            with self._watched(run, timeout_seconds, deadline, cancel):
                run.begin()
                run.carry_out(by_caller=deadline is None and cancel is None and not program.has_timeouts)
            return self._result(run)
        finally:
            self._admission.leave()

    def _run_line(self, line: Line, branches: Branches | None = None) -> Result:
        self._note(line)
        try:
            if branches is None:
                line.carry_out()
            else:
                carry_out_forked(line, branches)
        finally:
            self._runs.discard(line)
        return self._result(line)

    def _note(self, run: Run | Line) -> None:
        """Lets `close` find a run while it is under way."""
        self._runs.add(run)
        if self._is_closed:
            run.stop(self._cancelled("the executor was closed"), hurry=True)

    async def arun(
        self,
        inputs: Mapping[str, Any],
        /,
        *,
        outputs: Collection[str] | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Result:
        """Runs the chain once, coroutines in this event loop, everything else in worker threads.

        Cancelling the task that awaits this stops the run. Arguments, result and errors are those of `run`.
        """
        program, given = self._program(outputs, in_loop=True), self._checked(inputs)
        deadline = _deadline(timeout_seconds)
        if not self._admission.try_enter():
            await self._enter_async(timeout_seconds, cancel)
        try:
            if deadline is None and cancel is None and (program.is_joined_line or program.is_plain_line):
                return await self._run_line_in_loop(Line(self._means, program, next(self._numbers), given))
            run, over = self._run_in_loop(program, given)
            with self._watched(run, timeout_seconds, deadline, cancel):
                await self._await_over(run, over)
            return self._result(run)
        finally:
            self._admission.leave()

    async def _run_line_in_loop(self, line: Line) -> Result:
        self._note(line)
        try:
            await (carry_out_joined(line) if line.program.is_joined_line else carry_out_in_thread(line))
        finally:
            self._runs.discard(line)
        return self._result(line)

    def _run_in_loop(
        self, program: Program, given: Mapping[str, Any], channel: Channel | None = None
    ) -> tuple[Run, asyncio.Event]:
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def when_over() -> None:
            if door.is_here():
                over.set()
            else:
                tell_loop(loop, over.set)

        door = LoopDoor(loop, copy_context())
        number = next(self._numbers)
        return Run(self._means, program, number, given, door=door, channel=channel, when_over=when_over), over

    async def _await_over(self, run: Run, over: asyncio.Event) -> None:
        run.begin()
        run.call_takers()
        try:
            await over.wait()
        except BaseException:  # a cancelled task must stop its run; raised again
            run.stop(self._cancelled("the task that awaited it was cancelled"), hurry=True)
            await over.wait()
            raise

    # ── stream ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def stream(
        self,
        inputs: Mapping[str, Any],
        /,
        *,
        outputs: Collection[str] | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Iterator[Partial]:
        """Runs the chain and yields what steps give: what generators yield, and the result of every step that ends.

        A slow reader slows the steps down. Closing the iterator stops the run. Arguments and errors are those of `run`;
        errors of steps come after all that was given before.
        """
        program, given = self._program(outputs), self._checked(inputs)
        return self._stream(program, given, timeout_seconds, cancel)

    def _stream(
        self, program: Program, given: Mapping[str, Any], timeout_seconds: float | None, cancel: CancelToken | None
    ) -> Iterator[Partial]:
        deadline = _deadline(timeout_seconds)
        self._enter(timeout_seconds, cancel)
        channel = Channel(PARTIALS_WAITING)
        run = Run(self._means, program, next(self._numbers), given, channel=channel)
        try:
            with self._watched(run, timeout_seconds, deadline, cancel):
                try:
                    run.begin()
                    run.call_takers()
                    while (partial := channel.get()) is not END:
                        yield partial
                finally:
                    self._stop_if_open(run)
                    channel.end(drop=True)  # after it, so that no step that waited for room goes on
                    run.wait()
            self._result(run)
        finally:
            self._admission.leave()

    async def astream(
        self,
        inputs: Mapping[str, Any],
        /,
        *,
        outputs: Collection[str] | None = None,
        timeout_seconds: float | None = None,
        cancel: CancelToken | None = None,
    ) -> AsyncIterator[Partial]:
        """Is `stream` for an event loop: `async for partial in executor.astream(inputs)`.

        An iterator that is left early should be closed with `aclose()`; the loop does it when it ends.
        """
        program, given = self._program(outputs, in_loop=True), self._checked(inputs)
        deadline = _deadline(timeout_seconds)
        if not self._admission.try_enter():
            await self._enter_async(timeout_seconds, cancel)
        channel = Channel(PARTIALS_WAITING)
        run, over = self._run_in_loop(program, given, channel)
        try:
            with self._watched(run, timeout_seconds, deadline, cancel):
                try:
                    run.begin()
                    run.call_takers()
                    while (partial := await channel.get_async()) is not END:
                        yield partial
                finally:
                    self._stop_if_open(run)
                    channel.end(drop=True)  # after it, so that no step that waited for room goes on
                    await over.wait()
            self._result(run)
        finally:
            self._admission.leave()

    def _stop_if_open(self, run: Run) -> None:
        """Stops a run whose reader left; one whose channel ended by itself is over, or about to be."""
        if not run.is_over and run.error is None:
            run.stop(self._cancelled("its stream was closed"), hurry=True)

    # ── around a run ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _enter(self, timeout_seconds: float | None, cancel: CancelToken | None) -> None:
        if not self._admission.enter(timeout_seconds, None if cancel is None else lambda: cancel.cancelled):
            raise self._too_late(timeout_seconds)

    async def _enter_async(self, timeout_seconds: float | None, cancel: CancelToken | None) -> None:
        cancelled = None if cancel is None else lambda: cancel.cancelled
        if not await self._admission.enter_async(timeout_seconds, cancelled):
            raise self._too_late(timeout_seconds)

    def _program(self, outputs: Collection[str] | None, *, in_loop: bool = False) -> Program:
        key = (None if outputs is None else frozenset(outputs), in_loop)
        program = self._programs.get(key)
        if program is None:
            program = Program(self.plan, outputs, self._prepare, in_loop=in_loop)
            if len(self._programs) < 64:  # strangers who ask for every subset do not fill the memory
                self._programs[key] = program
        return program

    def _checked(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the inputs if they fit the chain."""
        graph = self.plan.graph
        if type(inputs) is not dict and isinstance(inputs, Mapping):
            inputs = dict(inputs)
        if self._whole.door.inputs(inputs):
            where = f"an input of the chain {graph.name!r}"
            faults = value_faults(graph.inputs, inputs, where=where, optional=graph.optional)
            raise ChainError(f"chain {graph.name!r} was not given what it takes", faults)
        return inputs

    def _result(self, run: Run | Line) -> Result:
        there, absent = run.outputs()
        return Result(there, absent, run.trace())

    def _watched(
        self, run: Run, timeout_seconds: float | None, deadline: float | None, cancel: CancelToken | None
    ) -> _Watch:
        return _Watch(self, run, timeout_seconds, deadline, cancel)

    def _too_late(self, seconds: float | None) -> StepTimeout:
        name = self.plan.graph.name
        return StepTimeout(
            f"a run of chain {name!r} was to take {seconds} s, and waited longer for its turn", chain=name
        )

    def _cancelled(self, why: str) -> RunCancelled:
        return run_cancelled(self.plan.graph.name, why)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def close(self, *, cancel: bool = True, timeout_seconds: float | None = 10.0) -> None:
        """Admits no more runs, stops those there are or waits for them, and ends the threads.

        Args:
            cancel: Whether to stop the runs; else they are waited for.
            timeout_seconds: How long to wait for steps in threads that do not stop; after that their threads are left
                to themselves. `None` for ever.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            runs = list(self._runs)
        self._admission.close()
        for run in runs if cancel else ():
            run.stop(self._cancelled("the executor was closed"), hurry=True)
        self._admission.wait_until_empty(timeout_seconds if cancel else None)
        self._means.close(waits=self._means.wait_for_strays(timeout_seconds))

    def __enter__(self) -> ChainExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _deadline(seconds: float | None) -> float | None:
    """Returns when a run that begins now is to be over, on the clock of `time.monotonic`."""
    if seconds is None:
        return None
    if not 0 <= seconds <= MOST_SECONDS:
        raise ChainError(
            f"timeout_seconds is {seconds!r}; expected a number from 0 to {MOST_SECONDS:g}, or None to wait for ever"
        )
    return time.monotonic() + seconds


class _Watch:
    """Sees to it that a run is stopped when its time is over, when its token says so, or the executor is closed."""

    __slots__ = ("_alarm", "_cancel", "_deadline", "_executor", "_run", "_seconds")

    def __init__(
        self,
        executor: ChainExecutor,
        run: Run,
        seconds: float | None,
        deadline: float | None,
        cancel: CancelToken | None,
    ) -> None:
        self._executor, self._run, self._seconds = executor, run, seconds
        self._deadline, self._cancel = deadline, cancel
        self._alarm: Any = None

    def __enter__(self) -> None:
        self._executor._note(self._run)
        if self._deadline is not None:
            left = max(self._deadline - time.monotonic(), 0.0)
            self._alarm = self._executor._means.clock.after(left, self._on_late)
        if self._cancel is not None:
            self._look()

    def __exit__(self, *_: object) -> None:
        self._executor._runs.discard(self._run)
        if self._alarm is not None:
            self._alarm.cancel()

    def _look(self) -> None:
        """Looks at the token, now and then: it cannot call anybody."""
        if self._cancel is not None and self._cancel.cancelled:
            self._run.stop(self._executor._cancelled("its token was cancelled"), hurry=True)
        elif not self._run.is_over:
            self._executor._means.clock.after(LOOK_SECONDS, self._look)

    def _on_late(self) -> None:
        name = self._run.program.name
        error = StepTimeout(f"a run of chain {name!r} took longer than its {self._seconds} s", chain=name)
        self._run.stop(error, hurry=True)
