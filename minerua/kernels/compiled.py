"""The compiled core on CPU arrays. Twins of `reference`; what comes here was checked by the door."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from minerua.errors import CoreUnavailable, KernelError

core: ModuleType | None
"""`minerua._core`, or `None` where it cannot be imported."""

absence_reason: str
"""Why `core` is `None`; empty where it is not."""

try:
    from minerua import _core as core  # mypy sees the stub, which the tests hold against the module
except ImportError as error:
    core, absence_reason = None, f"minerua._core cannot be imported: {error}"
else:
    absence_reason = ""


def require_core() -> ModuleType:
    """Returns the compiled module.

    Raises:
        CoreUnavailable: It could not be imported.
    """
    if core is None:
        raise CoreUnavailable(f"{absence_reason}; reinstall minerua, or use backend='reference'")
    return core


def forced_reference() -> bool:
    """Whether the environment variable MINERUA_BACKEND forces the reference.

    Raises:
        KernelError: The variable has another value than `reference`.
    """
    value = os.environ.get("MINERUA_BACKEND", "")
    if value not in ("", "reference"):
        raise KernelError(f"the environment variable MINERUA_BACKEND is {value!r}; it may be 'reference', or unset")
    return value == "reference"


def merge(
    experts: Sequence[np.ndarray], coefficients: np.ndarray, *, base: np.ndarray | None, out_dtype: np.dtype
) -> np.ndarray:
    """Returns the children, as `reference.merge` does, bit for bit."""
    children = np.empty((len(coefficients), *experts[0].shape), out_dtype)
    base_dtype = out_dtype.name if base is None else base.dtype.name
    bits = [exported(expert) for expert in experts]
    start = None if base is None else exported(base)
    require_core().merge(
        bits, experts[0].dtype.name, start, base_dtype, coefficients, exported(children), out_dtype.name
    )
    return children


def svd_mutation(
    matrices: Sequence[np.ndarray], multipliers: Sequence[np.ndarray], outs: Sequence[np.ndarray], *, precision: str
) -> list[int]:
    """Fills `outs` with the mutated matrices, as `reference.svd_mutation` does, up to rounding.

    Returns:
        Which matrices did not converge; their places are as they were.
    """
    is_twofold = precision == "float64"
    failed: list[int] = require_core().svd_mutation(list(matrices), list(multipliers), list(outs), is_twofold)
    return failed


def exported(array: np.ndarray) -> np.ndarray:
    """Returns a view that the buffer protocol can carry: it knows no bfloat16."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array
