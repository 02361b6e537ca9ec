"""Runs in an event loop without scheduling: lines of joined calls, and lines that one worker thread goes through."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from time import perf_counter_ns
from typing import Any

from minerua.chain.running.compiling import StepCode
from minerua.chain.running.crew import tell_loop
from minerua.chain.running.failing import call_failed, run_cancelled, step_failed
from minerua.chain.running.line import Line
from minerua.chain.running.plain import inputs_of, keep

_LEFT = "the task that awaited it was cancelled"


async def carry_out_joined(line: Line) -> None:
    """Does all units of a line whose calls are joined with those of other runs; `is_joined_line`.

    The loop hands a call in and awaits its answer: no thread and no task is made for it.
    """
    try:
        for unit in line.program.units:
            for code in unit.steps:
                if line.error is not None:
                    return
                error = await _join(line, code)
                if error is not None:
                    line.stop(error)
    except BaseException:  # a cancelled task must stop its run; raised again
        line.stop(run_cancelled(line.program.name, _LEFT))
        raise
    finally:
        line.end()


async def _join(line: Line, code: StepCode) -> BaseException | None:
    """Hands in one call and keeps what comes of it; returns what went wrong."""
    chain, inputs, extents = line.program.name, inputs_of(line, code), dict[str, int]()
    faults = code.check_inputs(inputs, extents)
    if faults:
        return step_failed(chain, code, "was given what it does not take", faults, inputs=inputs)
    line.means.tell_started(line.number, code.name)
    start, outcome, rows = perf_counter_ns(), "cancelled", 0
    try:
        outputs, error, rows = await _answer(line, code, inputs)
        outcome = "failed"
        if error is not None:
            return call_failed(chain, code, inputs, error)
        if line.error is not None:
            outcome = "cancelled"
            return None
        faults = code.check_outputs(outputs, extents)
        if faults:
            return step_failed(chain, code, "returned what it may not", faults, inputs=inputs)
        outcome = "ok"
    finally:
        more = (0, 0, 1, False, rows, outcome)
        line.record((code.unit, code.name, code.skill_name, "batch", start, perf_counter_ns(), *more))
    keep(line, code, outputs)
    line.unread(code)
    return None


async def _answer(line: Line, code: StepCode, inputs: Mapping[str, Any]) -> tuple[Any, BaseException | None, int]:
    """Returns what became of a call: outputs, what was raised, how many rows it had; nothing if the run was stopped."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def tell(outputs: Any, error: BaseException | None) -> None:
        if not answer.done() and not loop.is_closed():  # nobody waits in a loop that was closed
            answer.set_result((outputs, error))

    try:
        request = line.means.batcher(code).submit(inputs, tell, loop=loop)
    except Exception as error:  # noqa: BLE001 - closed or full: told as an error of the step
        return None, error, 0
    line.when_stopped = partial(tell_loop, loop, partial(tell, None, None))
    try:
        if line.error is None:  # stopped before it could be told
            return *await answer, request.rows
        return None, None, 0
    finally:
        line.when_stopped = None
        if line.error is not None or not answer.done() or answer.cancelled():
            request.cancel()


async def carry_out_in_thread(line: Line) -> None:
    """Lets one worker thread do all units of a line; `is_plain_line`.

    If the task is cancelled the run is told to stop, and a call that does not is left behind in its thread.
    """
    loop, over, means = asyncio.get_running_loop(), asyncio.Event(), line.means
    context = copy_context()

    def work() -> None:
        with suppress(BaseException):  # it is the run's error by now, which whoever wants its outputs gets
            context.run(line.carry_out)
        if not means.take_back(line):
            tell_loop(loop, over.set)

    means.crew.submit(work, line.number)
    try:
        await over.wait()
    except BaseException:  # a cancelled task must stop its run; raised again
        line.stop(run_cancelled(line.program.name, _LEFT))
        means.leave_behind(line)
        raise
