"""One unit under way, where there is more to a step than a call: it may wait, and goes on in another thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, final

import numpy as np

from minerua.chain.keeping.cache import Flight
from minerua.chain.running.compiling import NOWHERE, StepCode, UnitCode, kind_of, shared
from minerua.chain.running.failing import raised, step_failed
from minerua.chain.running.gathering import Unfit, conditions_hold, gathered
from minerua.chain.running.holding import Holding
from minerua.chain.running.partials import last_of, last_of_async
from minerua.chain.running.stopping import current_flag
from minerua.errors import RunCancelled, StepFailed, StepTimeout

if TYPE_CHECKING:
    from minerua.chain.running.run import Run

Stage = Callable[[], Any]
"""Does a part of a step; returns the next part, or `None` if the unit waits, goes on elsewhere, or is over."""

RUNNING, WAITING, READY, OVER = "running", "waiting", "ready", "over"


@final
class Activity:
    """A unit of a run under way.

    One thread at a time moves it on. It waits by leaving a way to resume it, so that no thread waits with it. What
    phase it is in changes only under the run's lock, which is how a stop and a resumption agree on who comes first.

    Args:
        run: The run.
        unit: The unit.
    """

    __slots__ = (
        "__weakref__", "asked_ns", "attempts", "batch_rows", "called", "code", "extents", "flight", "holding", "inputs",
        "is_driving", "is_hit", "is_late", "is_soft", "outputs", "phase", "place", "pool_ns", "position", "run",
        "stage", "start_ns", "task", "unit", "wait_ns",
    )  # fmt: skip

    def __init__(self, run: Run, unit: UnitCode, wait_ns: int) -> None:
        self.run, self.unit, self.position = run, unit, 0
        self.phase, self.place = RUNNING, ""
        self.stage: Stage | None = self._begin
        self.wait_ns = wait_ns
        self.flight: Flight | None = None
        self.task: asyncio.Task[None] | None = None
        self.called: Any = None
        self.is_soft = self.is_driving = False
        self._reset()

    def _reset(self) -> None:
        self.code: StepCode = self.unit.steps[self.position]
        self.holding = Holding(self.code.turn, None if self.code.turn is None else self._on_turn)
        self.inputs: dict[str, Any] = {}
        self.outputs: Any = None
        self.extents: dict[str, int] = {}
        self.attempts = self.pool_ns = self.batch_rows = self.asked_ns = 0
        self.is_hit = self.is_late = False
        self.start_ns = perf_counter_ns()

    def forget(self) -> None:
        """Is over: nothing that it knew outlives it, whoever else still looks at it."""
        self.phase, self.stage = OVER, None
        self.inputs, self.outputs = {}, None

    def advance(self, place: str) -> None:
        """Goes on until the unit waits, goes on elsewhere, or is over.

        Args:
            place: Name of this thread, or `"loop"`.
        """
        self.place = place
        stage: Stage | None = self.stage
        while stage is not None:
            stage = stage()

    # ── waiting and going on ─────────────────────────────────────────────────────────────────────────────────────────

    def _wait(self, then: Stage) -> bool:
        """Says that the unit waits, before anybody could resume it; `False` if the run was stopped."""
        with self.run.lock:
            if self.run.error is None:
                self.phase, self.stage = WAITING, then
                return True
        self._abandon()
        return False

    def _go_on(self) -> bool:
        """Takes the unit back from waiting, in the thread that let it wait; `False` if it was stopped meanwhile."""
        with self.run.lock:
            if self.phase is not WAITING:
                return False
            self.phase = RUNNING
        return True

    def resume(self, **gained: Any) -> bool:
        """Lets the unit go on, in whatever thread takes it up; `False` if it was stopped meanwhile.

        Args:
            gained: What it waited for; becomes part of what it holds.
        """
        with self.run.lock:
            if self.phase is not WAITING:
                return False
            self.phase = READY
            for name, value in gained.items():
                setattr(self.holding, name, value)
            self.run.push(self, self.unit, self.position)
        self.run.call_takers()
        return True

    def stop(self) -> None:
        """Stops the unit as far as that is possible from outside; called once, when the run is stopped."""
        with self.run.lock:
            is_idle = self.phase in (WAITING, READY)
            if is_idle:
                self.run.leave(self)
        if is_idle:
            self.let_go(None)
            self._record("cancelled")
            self.run.check_over()
        elif self.task is not None:
            self.run.in_loop(self._cancel_task)

    def _abandon(self) -> Stage | None:
        """Ends the unit of a run that was stopped."""
        self.let_go(None)
        self._record("timeout" if self.is_late else "cancelled")
        with self.run.lock:
            self.run.leave(self)
        self.run.check_over()
        return None

    def let_go(self, error: BaseException | None) -> None:
        """Gives back everything that the step holds or waits for; others who wait for its result hear the error."""
        self.holding.release()
        if self.flight is not None:
            flight, self.flight = self.flight, None
            flight.fail(error)

    # ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> Stage | None:
        """Finds out whether the step runs, and what it gets."""
        values = self.run.values
        try:
            inputs = gathered(self.code, values) if conditions_hold(self.code, values) else None
        except Unfit as error:
            return self._fail(self._error(str(error)), error.__cause__)
        if inputs is None:
            return self._skip()
        self.inputs = inputs
        faults = self.code.check_inputs(self.inputs, self.extents)
        if faults:
            return self._fail(self._error("was given what it does not take", faults))
        return self._look_up if self.code.planned.cached else self._try

    def _skip(self) -> Stage | None:
        self._record("skipped")
        return self._next_step()

    # ── cache and batch ──────────────────────────────────────────────────────────────────────────────────────────────

    def _look_up(self) -> Stage | None:
        cache = self.run.means.cache
        key = cache.key(self.code.skill, self.inputs) if cache is not None else None
        if cache is None or key is None:
            return self._try
        if not self._wait(self._told):
            return None
        begun = cache.begin(key, self._on_told)
        if begun is None:
            return None
        goes_on = self._go_on()
        if isinstance(begun, Flight):
            if not goes_on:
                begun.fail(None)
                return None
            self.flight = begun
            return self._try
        return partial(self._hit, begun) if goes_on else None

    def _on_told(self, outputs: Any, error: BaseException | None) -> None:
        self.resume(told=(outputs, error))

    def _told(self) -> Stage | None:
        """Goes on after another run computed the same."""
        outputs, error = self.holding.told
        if error is not None:
            return partial(self._raised, error)
        return self._look_up if outputs is None else partial(self._hit, outputs)

    def _hit(self, outputs: Any) -> Stage | None:
        self.is_hit, self.place = True, "cache"
        return self._settle(outputs)

    def _join(self) -> Stage | None:
        """Hands the call to those of other runs."""
        batcher = self.run.means.batcher(self.code)
        self.batch_rows = next((len(v) for v in self.inputs.values() if isinstance(v, np.ndarray) and v.ndim), 0)
        self.run.means.tell_started(self.run.number, self.code.name)
        self.start_ns = perf_counter_ns()
        if not self._wait(self._joined):
            return None
        self._set_alarm()
        door = self.run.door if self.place == "loop" else None
        try:
            if door is None:
                request = batcher.submit(self.inputs, self._on_told)
            else:
                request = batcher.submit(self.inputs, partial(door.run, self._on_told), loop=door.loop)
        except Exception as error:  # noqa: BLE001 - closed or full: told as an error of the step
            return partial(self._raised, error) if self._go_on() else None
        self.holding.request = request
        if self.phase is OVER:  # stopped before the request was known
            request.cancel()
        return None

    def _joined(self) -> Stage | None:
        self.holding.request, self.place = None, "batch"
        outputs, error = self.holding.told
        return partial(self._raised, error) if error is not None else partial(self._settle, outputs)

    # ── what a call needs ────────────────────────────────────────────────────────────────────────────────────────────

    def _try(self) -> Stage | None:
        """Begins an attempt."""
        self.attempts += 1
        self.is_late = False
        if self.code.is_joined:
            return self._join
        self.start_ns = perf_counter_ns()
        if self.code.turn is None or self.code.uses_process:
            return self._load
        if not self._wait(self._load):
            return None
        if not self.code.turn.take(self._on_turn):
            return None
        self.holding.has_turn = True
        if self._go_on():
            return self._load
        self.holding.release()
        return None

    def _on_turn(self) -> None:
        if not self.resume(has_turn=True) and self.code.turn is not None:
            self.code.turn.give()

    def _load(self) -> Stage | None:
        """Takes the model; it comes before the lease, for nobody may wait for a model who holds what others need."""
        self.called = self.code.call
        if self.called is None and not self.code.uses_process:
            use = (residency := self.run.means.residency).use(self.code.skill, self.code.planned.setup)
            try:
                with self.run.means.crew.outside():
                    self.called = use.__enter__()
            except Exception as error:  # noqa: BLE001 - loading belongs to the step
                return partial(self._raised, error, "could not be loaded: it ")
            self.holding.use = use
            if residency.keeps_all:
                self.unit.settle(self.code, self.called)
        return self._lease if self.code.requirements is not None else self._call

    def _lease(self) -> Stage | None:
        code = self.code
        pool: Any = self.run.means.pool  # there is one where requirements were prepared
        name = f"{self.run.program.name}.{code.name}"
        try:
            self.holding.lease = pool.try_acquire(code.requirements, name=name)
        except Exception as error:  # noqa: BLE001 - too large, or the pool was closed: told as an error of the step
            return partial(self._raised, error)
        if self.holding.lease is not None:
            return self._call
        self.asked_ns = perf_counter_ns()
        if not self._wait(self._leased):
            return None
        try:
            pending = pool.request(code.requirements, self._on_lease, name=name, on_refuse=self._on_refuse)
        except Exception as error:  # noqa: BLE001 - closed meanwhile
            return partial(self._raised, error) if self._go_on() else None
        self._keep_pending(pending)
        return None

    def _keep_pending(self, pending: Any) -> None:
        with self.run.lock:
            if self.phase is WAITING:
                self.holding.pending = pending
                return
            is_stopped = self.phase is OVER
        if is_stopped:
            pending.cancel()

    def _on_lease(self, lease: Any) -> None:
        if not self.resume(lease=lease):
            lease.release()

    def _on_refuse(self, error: Exception) -> None:
        self.resume(told=(None, error))

    def _leased(self) -> Stage | None:
        self.holding.pending = None
        if self.holding.told[1] is not None:
            return partial(self._raised, self.holding.told[1])
        self.start_ns = perf_counter_ns()
        self.pool_ns += self.start_ns - self.asked_ns
        return self._call

    # ── the call ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _call(self) -> Stage | None:
        kind = self.code.kind if self.code.call is not None else kind_of(self.called)
        with self.run.lock:
            is_stopped = self.run.error is not None
            self.phase = RUNNING
            self.is_soft = self.code.uses_process or kind in ("coroutine", "async generator")
        if is_stopped:
            return self._abandon()
        self.run.means.tell_started(self.run.number, self.code.name)
        self.start_ns = perf_counter_ns()
        try:
            if self.code.uses_process:
                return partial(self._settle, self.run.means.call_process(self.run, self.code, self.inputs))
            self._set_alarm()
            if self.is_soft:
                if self.holding.lease is not None:
                    self.holding.lease.hand_over()  # this thread goes on with other steps
                self.run.in_loop(self._start_task)
                return None
            outputs = self.called(**self.inputs)
            if isinstance(outputs, Generator):
                outputs = last_of(self.run, self.code, outputs)
        except BaseException as error:  # noqa: BLE001 - it is the step's, and ends the run; an interrupt passes through
            return partial(self._raised, error)
        return partial(self._settle, outputs)

    def _set_alarm(self) -> None:
        seconds = self.code.step.timeout_seconds
        if seconds is not None:
            self.holding.alarm = self.run.means.clock.after(seconds, partial(self._on_late, self.attempts))

    def _on_late(self, attempt: int) -> None:
        """Stops an attempt that takes too long: a coroutine is cancelled, a thread can only be told."""
        with self.run.lock:
            if self.phase in (OVER, READY) or attempt != self.attempts or self.is_late:
                return
            self.is_late = True
        if self.task is not None:
            self.run.in_loop(self._cancel_task)
        elif not self.is_soft:
            self.run.stop(self._error(self._too_long(), timeout=True), hurry=True)

    def _too_long(self) -> str:
        return f"took longer than its {self.code.step.timeout_seconds} s"

    # ── coroutines ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_task(self) -> None:
        self.task = self.run.door.start(self._drive())

    def _cancel_task(self) -> None:
        """Cancels the coroutine, inside the loop; one that did not begin looks by itself whether it should."""
        if self.task is not None and self.is_driving:
            self.task.cancel()

    async def _drive(self) -> None:
        """Awaits the skill, inside the loop."""
        current_flag.set(self.run.flag)
        self.is_driving = True
        stage: Stage | None
        try:
            if self.run.error is not None or self.is_late:
                raise asyncio.CancelledError
            result = self.called(**self.inputs)
            is_generator = isinstance(result, AsyncGenerator)
            outputs = await (last_of_async(self.run, self.code, result) if is_generator else result)
            stage = partial(self._settle, outputs)
            del result, outputs
        except BaseException as error:  # noqa: BLE001 - as in `_call`; a loop must not see an interrupt
            stage = partial(self._raised, error)
        self.task, self.is_driving, self.place = None, False, "loop"
        if self.unit.where[self.position] != "loop":  # what comes now may look at files: not in a loop
            self._hand_over(stage)
            return
        try:
            while stage is not None:
                if stage == self._deliver:
                    await self.run.emit_async(self.code, self.outputs, last=True)
                    stage = self._end_step
                else:
                    stage = stage()
        except BaseException as error:  # noqa: BLE001 - cancelled while a reader is slow, or an interrupt: told, never lost
            self._abandon() if self.run.error is not None else self._fail(error)

    def _hand_over(self, stage: Stage) -> None:
        with self.run.lock:
            self.phase, self.stage = WAITING, stage
        self.stop() if self.run.error is not None else self.resume()

    # ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self, outputs: Any) -> Stage | None:
        """Looks at what the skill returned, and lets go of what the call needed."""
        with self.run.lock:
            is_stopped = self.run.error is not None
        if is_stopped:
            return self._abandon()
        self.holding.release()
        faults = self.code.check_outputs(outputs, self.extents)
        if faults:
            return self._fail(self._error("returned what it may not", faults))
        if self.flight is not None:
            flight, self.flight = self.flight, None
            outputs = flight.land(outputs)
        self.outputs = outputs
        return self._end_step if self.run.channel is None else self._deliver

    def _deliver(self) -> Stage | None:
        self.run.emit(self.code, self.outputs, last=True)
        return self._end_step

    def _end_step(self) -> Stage | None:
        values = self.run.values
        for port, slot in self.code.kept:
            if slot != NOWHERE:
                values[slot] = shared(self.outputs[port])
        self._record("ok")
        return self._next_step()

    def _next_step(self) -> Stage | None:
        self.run.unread(self.code)
        self.position += 1
        where = self.unit.where
        if self.position == len(where):
            self.run.finish(self)
            return None
        self._reset()
        self.wait_ns = 0
        self.is_soft = False
        if where[self.position] == where[self.position - 1]:
            return self._begin if self.run.error is None else self._abandon
        self._hand_over(self._begin)
        return None

    def _raised(self, error: BaseException, how: str = "") -> Stage | None:
        """Tries again, or ends the run."""
        self.is_late = is_late = self.is_late or isinstance(error, StepTimeout)
        if not isinstance(error, Exception | asyncio.CancelledError):
            return self._fail(error)
        if self.run.error is not None and isinstance(error, asyncio.CancelledError | RunCancelled):
            return self._abandon()
        retry, is_known = self.code.step.retry, isinstance(error, StepTimeout)
        if self.attempts < retry.attempts and self.run.error is None:
            return self._try_later(min(retry.delay_seconds * retry.factor ** (self.attempts - 1), retry.most_seconds))
        reason = self._too_long() if is_late and not is_known else f"{how}{raised(error)}"
        faults = error.faults if isinstance(error, StepFailed) else ()
        return self._fail(self._error(reason, faults, timeout=is_late), error)

    def _try_later(self, seconds: float) -> Stage | None:
        self.holding.release()
        if self._wait(self._try):
            self.holding.alarm = self.run.means.clock.after(seconds, self.resume)
        return None

    def _fail(self, error: BaseException, cause: BaseException | None = None) -> Stage | None:
        """Ends the run with an error."""
        if cause is not None:
            error.__cause__ = cause
        self.let_go(cause if isinstance(cause, Exception) and not self.is_late else None)
        self._record("timeout" if self.is_late else "failed")
        self.run.stop(error, leaving=self)
        return None

    def _error(self, reason: str, faults: tuple[str, ...] = (), *, timeout: bool = False) -> StepFailed:
        return step_failed(
            self.run.program.name,
            self.code,
            reason,
            faults,
            attempts=max(self.attempts, 1),
            inputs=self.inputs,
            timeout=timeout,
        )

    def _record(self, outcome: str) -> None:
        code, end_ns = self.code, perf_counter_ns()
        where = "process" if code.uses_process and self.place != "cache" else self.place
        waits = (self.pool_ns, self.wait_ns)
        more = (self.attempts, self.is_hit, self.batch_rows, outcome)
        times = (min(self.start_ns, end_ns), end_ns)
        self.run.record((code.unit, code.name, code.skill_name, where or "nowhere", *times, *waits, *more))
