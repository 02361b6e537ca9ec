"""Steps that are a plain call whose inputs are always there: the innermost loop, which costs a few microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from minerua.chain.running.compiling import StepCode, UnitCode, shared
from minerua.chain.running.failing import call_failed, step_failed
from minerua.chain.running.gathering import ABSENT

if TYPE_CHECKING:
    from minerua.chain.running.line import Line
    from minerua.chain.running.run import Run

_ndarray = np.ndarray


def do_plain(run: Run | Line, unit: UnitCode, place: str, wait_ns: int) -> bool:
    """Does a unit of plain calls; returns whether it ended well.

    Args:
        run: The run.
        unit: The unit.
        place: Name of this thread.
        wait_ns: How long the unit was ready before it was taken up.
    """
    for code in unit.steps:
        if run.error is not None:
            run.drop()
            return False
        try:
            error = _call(run, code, place, wait_ns)
            if code.reads and error is None:
                run.unread(code)
        except BaseException as fault:  # an interrupt between two steps, or a fault of minerua: raised again
            run.drop(fault, hurry=True)
            raise
        if error is not None:
            run.drop(error)
            return False
        wait_ns = 0
    return True


def _call(run: Run | Line, code: StepCode, place: str, wait_ns: int) -> BaseException | None:
    """Calls a skill and keeps what it returns; returns what went wrong."""
    observers = run.means.observers
    inputs = inputs_of(run, code)
    extents: dict[str, int] | None = {} if code.has_arrays else None
    faults = code.check_inputs(inputs, extents)
    if faults:
        return step_failed(run.program.name, code, "was given what it does not take", faults, inputs=inputs)
    if observers.started:
        observers.step_started(run.number, code.name)
    start = perf_counter_ns()
    try:
        outputs = code.call(**inputs)  # type: ignore[misc]  # a plain call has one
    except BaseException as error:  # noqa: BLE001 - it is the step's, and ends the run; an interrupt passes through
        _record_failure(run, code, place, start, wait_ns)
        return call_failed(run.program.name, code, inputs, error)
    end = perf_counter_ns()
    faults = code.check_outputs(outputs, extents)
    if faults:
        _record_failure(run, code, place, start, wait_ns)
        return step_failed(run.program.name, code, "returned what it may not", faults, inputs=inputs)
    if run.channel is not None:
        run.emit(code, outputs, last=True)
    keep(run, code, outputs)
    record = (code.unit, code.name, code.skill_name, place, start, end, 0, wait_ns, 1, False, 0, "ok")
    run.records.append(record)
    if observers.finished:
        observers.step_finished(run.number, record)
    return None


def inputs_of(run: Run | Line, code: StepCode) -> dict[str, Any]:
    """Returns what the skill of a step is called with; all of it is there."""
    inputs, values = code.constants.copy(), run.values
    for port, slot in code.inputs:
        inputs[port] = values[slot]
    return inputs


def keep(run: Run | Line, code: StepCode, outputs: Mapping[str, Any]) -> None:
    """Keeps what somebody will read of the outputs, and forgets what only this step read."""
    values = run.values
    for port, slot in code.kept:
        if slot >= 0:
            value = outputs[port]
            values[slot] = shared(value) if isinstance(value, _ndarray) else value
    for slot in code.frees:
        values[slot] = ABSENT


def _record_failure(run: Run | Line, code: StepCode, place: str, start: int, wait_ns: int) -> None:
    more = (0, wait_ns, 1, False, 0, "failed")
    run.record((code.unit, code.name, code.skill_name, place, start, perf_counter_ns(), *more))
