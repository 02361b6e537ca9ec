"""What is said of a step that failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minerua.chain.running.compiling import StepCode
from minerua.chain.writing.ports import found
from minerua.errors import MineruaError, RunCancelled, StepFailed, StepTimeout


def step_failed(
    chain: str,
    code: StepCode,
    reason: str,
    faults: Iterable[str] = (),
    *,
    attempts: int = 1,
    inputs: Mapping[str, Any] | None = None,
    timeout: bool = False,
) -> StepFailed:
    """Returns the error for a step, with everything that helps to find out why.

    Args:
        chain: The chain's name.
        code: The step.
        reason: What happened, as a clause.
        faults: Single faults behind it.
        attempts: How often it was tried.
        inputs: What it was given.
        timeout: Whether it took too long.
    """
    plugin = f" of {code.step.provider}" if code.step.provider else ""
    tried = f" (attempt {attempts} of {code.step.retry.attempts})" if code.step.retry.attempts > 1 else ""
    given = ", ".join(f"{name}: {_shown(value)}" for name, value in (inputs or {}).items())
    message = (
        f"chain {chain!r}, {' → '.join(code.path)}: step {code.name!r} (skill {code.skill_name!r}{plugin}) "
        f"{reason}{tried}; its inputs: {given or 'none'}"
    )
    kind = StepTimeout if timeout else StepFailed
    return kind(message, faults, chain=chain, step=code.name, skill=code.skill_name)


def call_failed(chain: str, code: StepCode, inputs: Mapping[str, Any], error: BaseException) -> BaseException:
    """Returns what ends a run when the call of a step raised: an interrupt as it is."""
    if not isinstance(error, Exception):
        return error
    faults = error.faults if isinstance(error, MineruaError) else ()
    failed = step_failed(chain, code, raised(error), faults, inputs=inputs)
    failed.__cause__ = error
    return failed


def run_cancelled(chain: str, why: str) -> RunCancelled:
    """Returns what ends a run that somebody cancelled."""
    return RunCancelled(f"a run of chain {chain!r} was cancelled: {why}")


def raised(error: BaseException) -> str:
    """Returns the clause for an exception; never raises, whatever its text does."""
    try:
        text = str(error)
    except Exception as other:  # noqa: BLE001 - an error without a text must still be told
        text = f"(its text raises {type(other).__name__})"
    return f"raised {type(error).__name__}: {text[:500]}" if text else f"raised {type(error).__name__}"


def _shown(value: Any) -> str:
    """Returns what a value is, not what it says: inputs may be secret."""
    if type(value).__module__ == "torch" and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    return f"text of {len(value)}" if isinstance(value, str) else found(value)
