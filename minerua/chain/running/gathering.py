"""What a step gets: the inputs that are there, and what stands for those that are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from minerua.chain.graph import PortType
from minerua.chain.running.compiling import NOWHERE, Program, StepCode, shared
from minerua.chain.running.failing import raised
from minerua.chain.writing.ports import described, dtype_of
from minerua.values import Skill, TensorSpec

ABSENT: Final = object()
"""What stands in a slot where nothing is."""


class Unfit(Exception):
    """Why a step cannot get its inputs, as a clause; never leaves the room."""


def beginning(program: Program, inputs: Mapping[str, Any]) -> list[Any]:
    """Returns all values of a run, by slot, as they are when it begins: the chain's inputs."""
    values: list[Any] = [ABSENT] * len(program.readers)
    for name, slot in program.inputs:
        if slot != NOWHERE and name in inputs:
            value = inputs[name]
            values[slot] = shared(value) if isinstance(value, np.ndarray) else value
    return values


def outputs_of(program: Program, values: Sequence[Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the outputs that are there when a run is over, and the names of those that are not."""
    there: dict[str, Any] = {}
    absent: list[str] = []
    for name, slots in program.outputs:
        for slot in slots:
            if values[slot] is not ABSENT:
                there[name] = values[slot]
                break
        else:
            absent.append(name)
    return there, tuple(absent)


def conditions_hold(code: StepCode, values: Sequence[Any]) -> bool:
    """Tells whether a step runs.

    Args:
        code: The step.
        values: All values of the run, by slot.

    Raises:
        Unfit: If something that a condition looks at is neither true nor false.
    """
    for slot, wanted, source in code.conditions:
        value = values[slot]
        if value is ABSENT:
            return False
        try:
            holds = bool(value)
        except Exception as error:
            raise Unfit(f"depends on {source}, which is neither true nor false: it {raised(error)}") from error
        if holds is not wanted:
            return False
    return True


def gathered(code: StepCode, values: Sequence[Any]) -> dict[str, Any] | None:
    """Returns the inputs of a step; `None` if one is absent for which it is skipped.

    Args:
        code: The step.
        values: All values of the run, by slot.

    Raises:
        Unfit: If an input is absent that must not be, or nobody knows how large its zeros are.
    """
    inputs, zeros = dict(code.constants), []
    for port in code.ports:
        value = next((values[slot] for slot in port.slots if values[slot] is not ABSENT), ABSENT)
        if value is not ABSENT:
            inputs[port.port] = value
        elif port.policy == "default":
            inputs[port.port] = port.default
        elif port.policy == "skip":
            return None
        elif port.policy == "fail":
            raise Unfit(f"lacks its input {port.port!r}, and is to fail then")
        elif port.policy == "zeros":
            zeros.append(port)
    return inputs | {port.port: _zeros(code.skill, port.port, port.type, inputs) for port in zeros}


def _zeros(skill: Skill, name: str, port: PortType, inputs: Mapping[str, Any]) -> Any:
    """Returns zeros of a port's shape; the other inputs tell what its names count."""
    extents: dict[str, int] = {}
    for other, kind in skill.inputs.items():
        shape = getattr(inputs.get(other), "shape", ())
        if isinstance(kind, TensorSpec) and len(shape) == len(kind.shape):
            extents |= {e: n for e, n in zip(kind.shape, shape, strict=True) if isinstance(e, str)}
    if not isinstance(port, TensorSpec) or any(isinstance(e, str) and e not in extents for e in port.shape):
        raise Unfit(
            f"needs zeros for its input {name!r}, {described(port)}, and no other input tells how many; give a default"
        )
    return shared(np.zeros([e if isinstance(e, int) else extents[e] for e in port.shape], dtype_of(port.dtype)))
