"""What the operations refuse, and the sentences for it: all faults at once, each with its numbers and its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minerua.errors import KernelError
from minerua.kernels.arrays import DTYPES, Described, as_float32, described, dtype_name, on_host

BACKENDS = ("auto", "compiled", "reference", "cuda")
LISTED = 8  # indices that a message lists before it counts the rest


def check_merge(experts: Sequence[Any], coefficients: Any, base: Any, out_dtype: Any, backend: str) -> np.ndarray:
    """Returns the coefficients as float32 if `merge` can take all arguments.

    Raises:
        KernelError: It cannot; lists all faults.
    """
    faults = [*_backend_faults(backend), *_expert_faults(experts)]
    first = described(experts[0]) if len(experts) else None
    if first and base is not None:
        faults += _base_faults(described(base), first)
    if out_dtype is not None and dtype_name(out_dtype) not in DTYPES:
        faults.append(f"out_dtype is {out_dtype!r}; use one of {', '.join(DTYPES)}")
    if first and backend == "cuda" and not first.is_cuda:
        faults.append(f"backend='cuda' needs CUDA tensors, the experts are {first.kind} on {first.device}; move them")
    numbers = as_float32(coefficients)
    faults += _coefficient_faults(numbers, len(experts))
    if faults or numbers is None:
        raise KernelError(f"merge cannot take these arguments ({len(faults)} faults):", faults)
    return numbers


def check_svd_mutation(matrices: Any, multipliers: Any, backend: str) -> np.ndarray:
    """Returns the multipliers as float32 if `svd_mutation` can take all arguments.

    Raises:
        KernelError: It cannot; lists all faults.
    """
    given = described(matrices)
    faults = [*_backend_faults(backend), *_matrix_faults(matrices, given)]
    if backend == "cuda" and given.is_array and not given.is_cuda:
        faults.append(f"backend='cuda' needs a CUDA tensor, the matrices are {given.kind} on {given.device}; move them")
    numbers = as_float32(multipliers)
    faults += _multiplier_faults(numbers, given.shape)
    if faults or numbers is None:
        raise KernelError(f"svd_mutation cannot take these arguments ({len(faults)} faults):", faults)
    return numbers


def _backend_faults(backend: str) -> list[str]:
    return [] if backend in BACKENDS else [f"backend is {backend!r}; use one of {', '.join(BACKENDS)}"]


def _expert_faults(experts: Sequence[Any]) -> list[str]:
    if not len(experts):
        return ["there are 0 experts; pass at least one"]
    first, faults = described(experts[0]), []
    for k, expert in enumerate(experts):
        given = described(expert)
        if not given.is_array:
            faults.append(f"expert {k} is a {given.kind}; pass numpy arrays or torch tensors")
        elif given.dtype not in DTYPES:
            faults.append(f"expert {k} has dtype {given.dtype}; convert it to one of {', '.join(DTYPES)}")
        elif given != first:
            faults.append(f"expert {k} is {_text(given)}, expert 0 is {_text(first)}; all experts must be alike")
    return faults


def _base_faults(base: Described, first: Described) -> list[str]:
    if not base.is_array:
        return [f"base is a {base.kind}; pass a numpy array or a torch tensor, or None"]
    faults = []
    if base.dtype not in DTYPES:
        faults.append(f"base has dtype {base.dtype}; convert it to one of {', '.join(DTYPES)}")
    if (base.kind, base.shape, base.device) != (first.kind, first.shape, first.device):
        faults.append(f"base is {_text(base)}, expert 0 is {_text(first)}; only their dtypes may differ")
    return faults


def _coefficient_faults(numbers: np.ndarray | None, experts: int) -> list[str]:
    if numbers is None:
        return ["coefficients are not numbers; pass an array of shape (children, experts)"]
    if numbers.ndim != 2 or numbers.shape[1] != experts or numbers.shape[0] == 0:
        wanted = f"(P, {experts}): P >= 1 children, one coefficient for each of the {experts} experts"
        return [f"coefficients have shape {numbers.shape}, must have {wanted}"]
    bad = [f"({p}, {k})" for p, k in np.argwhere(~np.isfinite(numbers))]
    return [f"coefficients at {_listing(bad)} are not finite float32 numbers"] if bad else []


def _matrix_faults(matrices: Any, given: Described) -> list[str]:
    if not given.is_array:
        return [f"matrices are a {given.kind}; pass a numpy array or a torch tensor of shape (B, m, n)"]
    faults = []
    if given.dtype != "float32":
        faults.append(f"matrices have dtype {given.dtype}; convert them to float32")
    if len(given.shape) != 3 or 0 in given.shape:
        faults.append(f"matrices have shape {given.shape}, must have (B, m, n) with no extent 0")
    if not faults and not given.is_cuda:  # on a device the kernel itself looks, and says so by its outcomes
        bad = np.flatnonzero(~np.isfinite(on_host(matrices)).all(axis=(1, 2)))
        faults += [f"NaN or infinity in matrix {_listing(list(map(str, bad)))}; mend or drop them"] if len(bad) else []
    return faults


def _multiplier_faults(numbers: np.ndarray | None, shape: tuple[int, ...]) -> list[str]:
    if numbers is None:
        return ["multipliers are not numbers; pass an array of shape (B, min(m, n))"]
    if len(shape) != 3:
        return []  # the fault of the matrices says enough
    wanted = (shape[0], min(shape[1:]))
    if numbers.shape != wanted:
        return [f"multipliers have shape {numbers.shape}, must have {wanted}: one per singular value of each matrix"]
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    rows = _listing(list(map(str, bad)))
    return [f"NaN or infinity in the multipliers of matrix {rows}; they must be finite in float32"] if len(bad) else []


def _text(given: Described) -> str:
    return f"{given.kind} {given.dtype} {given.shape} on {given.device}"


def _listing(items: list[str]) -> str:
    rest = len(items) - LISTED
    return ", ".join(items[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
