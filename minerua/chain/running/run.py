"""One run under way: whoever ends a step sees what became ready, takes the most urgent, and calls others for the rest.

There is no thread that only schedules. A line of steps stays in one thread, a branch calls another one, and
coroutines follow each other inside their loop.
"""

from __future__ import annotations

import contextvars
import heapq
import threading
import time
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, final

import numpy as np

from minerua.chain.running.activity import OVER, RUNNING, Activity
from minerua.chain.running.channel import Channel
from minerua.chain.running.compiling import Program, StepCode, UnitCode
from minerua.chain.running.crew import LoopDoor
from minerua.chain.running.gathering import ABSENT, beginning, outputs_of
from minerua.chain.running.partials import partial_of
from minerua.chain.running.plain import do_plain
from minerua.chain.running.stopping import GRACE_SECONDS, StopFlag, current_flag
from minerua.chain.running.trace import Trace
from minerua.errors import MineruaError

if TYPE_CHECKING:
    from minerua.chain.running.means import Means

_Entry = tuple[float, int, "UnitCode | Activity", int]
_ndarray = np.ndarray


@final
class Run:
    """The state of one run. All counts and heaps change under `lock` only.

    Args:
        means: What all runs of an executor share.
        program: What to run.
        number: The run's number.
        inputs: The chain's inputs, checked.
        door: The event loop for coroutines; `None` for the executor's own, once one is needed.
        channel: Where partial results go.
        when_over: Called once when the run is over, in whatever thread.
    """

    def __init__(
        self,
        means: Means,
        program: Program,
        number: int,
        inputs: Mapping[str, Any],
        *,
        door: LoopDoor | None = None,
        channel: Channel | None = None,
        when_over: Callable[[], object] | None = None,
    ) -> None:
        self.means, self.program, self.number, self.channel = means, program, number, channel
        self.lock = threading.Lock()
        self.flag = StopFlag()
        self.values = beginning(program, inputs)
        self.records: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None
        self.is_over = False
        self._others: list[BaseException] = []
        self._readers = program.readers.copy()
        self._counts = [unit.needs for unit in program.units]
        self._left = len(program.units)
        self._running = 0  # units that began and did not end
        self._activities: set[Activity] = set()
        self._own: list[_Entry] = []
        self._shared: list[_Entry] = []
        self._loop: list[_Entry] = []
        self._is_own_taken = self._is_loop_called = self._is_caller_idle = self._hurry = False
        self._works_in_caller = False
        self._called = 0  # threads that were called and did not come yet
        self._lent = 0
        self._wake = threading.Lock()
        self._wake.acquire()
        self._door, self._when_over = door, when_over
        self._context = contextvars.copy_context()
        self.epoch_ns, self.start_ns = time.time_ns(), perf_counter_ns()
        self.end_ns = self.start_ns

    # ── beginning, waiting ───────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Makes the units ready that need nothing; calls nobody."""
        with self.lock:
            for unit in self.program.units:
                if not unit.needs:
                    self._push(unit, self.start_ns)

    def carry_out(self, *, by_caller: bool) -> None:
        """Waits until the run is over; works meanwhile, if the calling thread may.

        Raises:
            BaseException: An interrupt of this thread, after the run was stopped.
        """
        self._works_in_caller = by_caller
        try:
            while True:
                if by_caller:
                    self.work()
                else:
                    self.call_takers()
                with self.lock:
                    if self.is_over:
                        return
                    self._is_caller_idle = True
                self._wake.acquire()
        except BaseException as error:  # an interrupt stops the run; raised again
            self.stop(error, hurry=True)
            self.wait(GRACE_SECONDS)
            raise

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until the run is over, without working; returns whether it is."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            with self.lock:
                if self.is_over:
                    return True
                self._is_caller_idle = True
            left = -1.0 if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not self._wake.acquire(timeout=left):
                with self.lock:
                    self._is_caller_idle = False
                    return self.is_over

    # ── ready units ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _push(self, unit: UnitCode, now: int) -> None:
        where = unit.where[0]
        heap = self._shared if where == "shared" else self._own if where == "own" else self._loop
        heapq.heappush(heap, (unit.rank, unit.index, unit, now))

    def push(self, activity: Activity, unit: UnitCode, position: int) -> None:
        """Makes a unit ready that waited; the lock is held, and `call_takers` comes next."""
        where = unit.where[position]
        heap = self._shared if where == "shared" else self._own if where == "own" else self._loop
        heapq.heappush(heap, (unit.rank, unit.index, activity, perf_counter_ns()))

    def call_takers(self) -> None:
        """Calls as many threads as ready units need that nobody comes for, and the loop for its own."""
        with self.lock:
            count, wakes, calls_loop = self._wanted()
        self._call(count, wakes, calls_loop)

    def _wanted(self) -> tuple[int, bool, bool]:
        """Returns how many threads to call, whether the caller is one more, and whether the loop has to come."""
        calls_loop = bool(self._loop) and not self._is_loop_called
        if calls_loop:
            self._is_loop_called = True
        ready = len(self._shared) + (1 if self._own and not self._is_own_taken else 0)
        if not ready or self._called:  # one at a time: whoever comes calls the next one, if there is still work then
            return 0, False, calls_loop
        count = 1
        wakes = self._is_caller_idle and self._works_in_caller
        self._is_caller_idle = self._is_caller_idle and not wakes
        count -= wakes
        self._called += count
        return count, wakes, calls_loop

    def _call(self, count: int, wakes: bool, calls_loop: bool) -> None:
        if wakes:
            self._wake.release()
        for _ in range(count):
            self.means.crew.submit(self._help, self.number)
        if calls_loop:
            self.in_loop(self._work_in_loop)

    def _help(self) -> None:
        self._context.copy().run(self.work, is_called=True)

    # ── working in a thread ──────────────────────────────────────────────────────────────────────────────────────────

    def work(self, *, is_called: bool = False) -> None:
        """Takes up ready units until none is left for this thread."""
        token = current_flag.set(self.flag)
        try:
            self._work(threading.current_thread().name, int(is_called))
        except BaseException as error:
            self.stop(error, hurry=True)  # an interrupt between two steps, or a fault of minerua: told, never lost
            if not is_called:
                raise
        finally:
            current_flag.reset(token)

    def _work(self, place: str, came: int) -> None:
        ended: UnitCode | None = None
        has_own = False
        while True:
            with self.lock:
                self._called -= came
                came = 0
                if has_own:
                    self._is_own_taken = has_own = False
                if ended is not None:
                    self._finish(ended)
                if self._own and not self._is_own_taken:
                    self._is_own_taken = has_own = True
                    _, _, item, since = heapq.heappop(self._own)
                elif self._shared:
                    _, _, item, since = heapq.heappop(self._shared)
                else:
                    item, since = None, 0
                if item is not None and type(item) is UnitCode:
                    self._running += 1
                others = self._wanted() if self._own or self._shared or self._loop else None
            if others is not None:
                self._call(*others)
            if item is None:
                if not self._left or self.error is not None:
                    self.check_over()
                return
            ended = self._take_up(item, since, place)
            item = None

    def _take_up(self, item: UnitCode | Activity, since: int, place: str) -> UnitCode | None:
        """Does a unit, or a part of one; returns it if it ended well."""
        wait_ns = perf_counter_ns() - since
        if type(item) is UnitCode:
            if item.is_simple:
                return item if do_plain(self, item, place, wait_ns) else None
            self._advance(self._enter(item, wait_ns), place)
        else:
            self._continue(item, wait_ns, place)
        return None

    def _enter(self, unit: UnitCode, wait_ns: int) -> Activity:
        activity = Activity(self, unit, wait_ns)
        with self.lock:
            self._activities.add(activity)
        return activity

    def _continue(self, activity: Activity, wait_ns: int, place: str) -> None:
        with self.lock:
            if activity.phase is OVER:
                return
            activity.phase = RUNNING
        activity.wait_ns += wait_ns
        self._advance(activity, place)

    def _advance(self, activity: Activity, place: str) -> None:
        try:
            activity.advance(place)
        except BaseException as error:  # an interrupt between two stages, or a fault of minerua: raised again
            if activity.phase is not OVER:
                activity.let_go(None)
                self.stop(error, hurry=True, leaving=activity)
            raise

    def drop(self, error: BaseException | None = None, *, hurry: bool = False) -> None:
        """Ends a unit of plain calls that did not end well; arguments as for `stop`."""
        if error is not None:
            self.stop(error, hurry=hurry)
        with self.lock:
            self._running -= 1
            self._return_lent()
        self.check_over()

    # ── working in the loop ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def door(self) -> LoopDoor:
        """The way into the loop in which this run's coroutines are."""
        if self._door is None:
            self._door = LoopDoor(self.means.own_loop(), self._context)
        return self._door

    def in_loop(self, task: Callable[[], object]) -> None:
        """Does something in the loop: at once if this is the loop."""
        if self.door.is_here():
            task()
            return
        try:
            self.door.do(task)
        except RuntimeError as error:
            self.stop(error, hurry=True)

    def _work_in_loop(self) -> None:
        try:
            self._work_until_empty()
        except BaseException as error:  # noqa: BLE001 - as in `work`
            self.stop(error, hurry=True)

    def _work_until_empty(self) -> None:
        while True:
            with self.lock:
                if not self._loop:
                    self._is_loop_called = False
                    others = self._wanted()  # what became ready may be for threads
                    break
                _, _, item, since = heapq.heappop(self._loop)
                if type(item) is UnitCode:
                    self._running += 1
            self._take_up(item, since, "loop")
        self._call(*others)

    # ── ending units ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, unit: UnitCode) -> None:
        """Counts a unit that ended well; the lock is held."""
        self._running -= 1
        if self.error is not None:
            self._return_lent()
            return
        self._left -= 1
        counts, now = self._counts, 0
        for other in unit.after:
            counts[other.index] -= 1
            if not counts[other.index]:
                now = now or perf_counter_ns()
                self._push(other, now)

    def finish(self, activity: Activity) -> None:
        """Ends a unit that ended well."""
        with self.lock:
            self._activities.discard(activity)
            activity.forget()
            self._finish(activity.unit)
            others = self._wanted() if activity.place == "loop" else None
        if others is not None:  # any other thread will itself look for more
            self._call(*others)
        if not self._left or self.error is not None:
            self.check_over()

    def leave(self, activity: Activity) -> None:
        """Counts a unit that did not end well; the lock is held, and `check_over` comes next."""
        self._activities.discard(activity)
        activity.forget()
        self._running -= 1
        self._return_lent()

    def _return_lent(self) -> None:
        if self._lent:
            self._lent -= 1
            self.means.crew.lend(-1)

    def unread(self, code: StepCode) -> None:
        """Frees what nobody will read any more."""
        for slot in code.frees:
            self.values[slot] = ABSENT
        if code.reads:
            with self.lock:
                for slot in code.reads:
                    self._readers[slot] -= 1
                    if not self._readers[slot]:
                        self.values[slot] = ABSENT

    def record(self, fields: tuple[Any, ...]) -> None:
        """Takes down what became of a step: the fields of a `Span`."""
        self.records.append(fields)
        self.means.tell_finished(self.number, fields)

    # ── partial results ──────────────────────────────────────────────────────────────────────────────────────────────

    def emit(self, code: StepCode, outputs: Mapping[str, Any], *, last: bool) -> None:
        """Hands on what a step gave; waits while the reader is slow, in a thread of the crew."""
        if self.channel is not None:
            with self.means.crew.outside():
                self.channel.put(partial_of(code, outputs, last=last))

    async def emit_async(self, code: StepCode, outputs: Mapping[str, Any], *, last: bool) -> None:
        """The same inside a loop."""
        if self.channel is not None:
            await self.channel.put_async(partial_of(code, outputs, last=last))

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, error: BaseException, *, hurry: bool = False, leaving: Activity | None = None) -> None:
        """Ends the run early; the first error counts, later ones are told beside it.

        Args:
            error: Why.
            hurry: Whether steps in threads, which can only be asked to stop, are not waited for.
            leaving: The unit that failed.
        """
        with self.lock:
            if leaving is not None:
                self.leave(leaving)
            is_first = self.error is None and not self.is_over
            if is_first:
                self.error, self._hurry = error, hurry
                for heap in (self._own, self._shared, self._loop):
                    heap.clear()
            elif not self.is_over and error is not self.error:
                self._others.append(error)
            stopped = list(self._activities) if is_first else []
        if is_first:
            self._stop_all(stopped)
        self.check_over()

    def _stop_all(self, activities: list[Activity]) -> None:
        self.flag.cancelled = True
        if self.channel is not None:
            self.channel.end()
        for activity in activities:
            activity.stop()
        with self.lock:
            is_open = self._running > 0 and not self.is_over
        if is_open:
            self.means.clock.after(GRACE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """Leaves behind what did not stop in time."""
        self.check_over(gives_up=True)

    def check_over(self, *, gives_up: bool = False) -> None:
        """Ends the run if nothing is left that it waits for."""
        with self.lock:
            if self.is_over:
                is_last = not self._running
                is_now = False
                if is_last and self.error is not None:
                    self.values = []
            else:
                is_now = gives_up or self._is_done()
                self.is_over = is_now
                is_last = False
            if is_now:
                self._lent = self._running
                if self._running:
                    self.means.crew.lend(self._running)
                    self.means.keep_stray(self)
        if is_now:
            self._end()
        elif is_last:
            self.means.forget_stray(self)

    def _is_done(self) -> bool:
        if self.error is None:
            return not self._left and not self._running
        soft = sum(activity.is_soft and activity.phase is RUNNING for activity in self._activities)
        return not self._running or (self._hurry and not soft)

    def _end(self) -> None:
        self.end_ns = perf_counter_ns()
        if self._others and isinstance(self.error, MineruaError):
            self.error.faults += tuple(str(other) for other in self._others)
        observers = self.means.observers
        if observers.ended:
            observers.run_finished(self.number, self.trace(), self.error)
        if self.channel is not None:
            self.channel.end()
        if self._when_over is not None:
            self._when_over()
        with self.lock:
            wakes, self._is_caller_idle = self._is_caller_idle, False
        if wakes:
            self._wake.release()

    def trace(self) -> Trace:
        """Returns what happened."""
        times = (self.start_ns, self.end_ns, self.epoch_ns)
        return Trace(self.program.name, self.number, self.records, *times)

    def outputs(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Returns the outputs that are there, and the names of those that are not; forgets them.

        Raises:
            BaseException: What ended the run.
        """
        with self.lock:
            values = self.values
            if not self._running:  # else `check_over` forgets them: a step that was left behind has its place in them
                self.values = []
        if self.error is not None:
            raise self.error
        return outputs_of(self.program, values)
