"""What a step gives before the chain is done: its result, and what its generator yields on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, final

from minerua.chain.running.compiling import StepCode, shared
from minerua.chain.running.gathering import ABSENT
from minerua.errors import StepFailed

if TYPE_CHECKING:
    from minerua.chain.running.run import Run


@final
class Partial(NamedTuple):
    """What a step gave so far.

    Args:
        step: The step's name.
        outputs: Output name → value; arrays are read-only.
        last: Whether this is the step's result.
    """

    step: str
    outputs: Mapping[str, Any]
    last: bool


def partial_of(code: StepCode, outputs: Any, *, last: bool) -> Partial:
    """Returns what goes to the reader of a stream.

    Args:
        code: The step.
        outputs: What it gave; a result was checked before.
        last: Whether this is its result.

    Raises:
        StepFailed: If a generator yielded what does not fit the outputs of its skill.
    """
    faults = () if last else code.check_outputs(outputs)
    if faults:
        raise StepFailed(f"it yielded what it may not: {'; '.join(faults)}")
    return Partial(code.name, {name: shared(value) for name, value in outputs.items()}, last)


def last_of(run: Run, code: StepCode, partials: Generator[Any, None, None]) -> Any:
    """Hands on what a generator yields; returns the last of it.

    Raises:
        StepFailed: If it yields nothing.
    """
    outputs: Any = ABSENT
    try:
        for later in partials:
            if outputs is not ABSENT:
                run.emit(code, outputs, last=False)
            if run.error is not None:
                break
            outputs = later
    finally:
        partials.close()
    return _some(run, outputs)


async def last_of_async(run: Run, code: StepCode, partials: AsyncGenerator[Any, None]) -> Any:
    """The same for an asynchronous generator.

    Raises:
        StepFailed: If it yields nothing.
    """
    outputs: Any = ABSENT
    try:
        async for later in partials:
            if outputs is not ABSENT:
                await run.emit_async(code, outputs, last=False)
            if run.error is not None:
                break
            outputs = later
    finally:
        await partials.aclose()
    return _some(run, outputs)


def _some(run: Run, outputs: Any) -> Any:
    if outputs is ABSENT and run.error is None:
        raise StepFailed("its generator yielded nothing; the last that it yields is the result")
    return outputs
