"""What the operations refuse, and the sentences for it: all faults at once, each with its numbers and its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minerua.errors import KernelError
from minerua.kernels.arrays import DTYPES, Described, as_float32, as_numbers, described, dtype_name, on_host

BACKENDS = ("auto", "compiled", "reference", "cuda")
PRECISIONS = ("float32", "float64")
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


def check_svd_mutation(matrices: Any, multipliers: Any, precision: str, out: Any, backend: str) -> list[np.ndarray]:
    """Returns the multipliers, one array for each matrix, if `svd_mutation` can take all arguments.

    Raises:
        KernelError: It cannot; lists all faults.
    """
    faults = [*_backend_faults(backend)]
    if precision not in PRECISIONS:
        faults.append(f"precision is {precision!r}; use one of {', '.join(PRECISIONS)}")
    listed = _listed("matrices", matrices, "(B, m, n)", faults)
    given = [described(matrix) for matrix in listed]
    faults += _matrix_faults(listed, given)
    if backend == "cuda" and given and given[0].is_array and not given[0].is_cuda:
        where = f"{given[0].kind} on {given[0].device}"
        faults.append(f"backend='cuda' needs CUDA tensors, the matrices are {where}; move them")
    numbers = _multiplier_rows(multipliers, given, faults)
    if out is not None:
        faults += _place_faults(_listed("out", out, "(B, m, n)", faults), given)
    if faults:
        raise KernelError(f"svd_mutation cannot take these arguments ({len(faults)} faults):", faults)
    return numbers


def _listed(name: str, given: Any, shape: str, faults: list[str]) -> list[Any]:
    """Returns the matrices of a stack or a sequence; of anything else none, and says so."""
    whole = described(given)
    if whole.is_array:
        if len(whole.shape) == 3 and 0 not in whole.shape:
            return list(given)
        faults.append(f"{name} have shape {whole.shape}, must have {shape} with no extent 0")
    elif isinstance(given, list | tuple):
        return list(given)
    else:
        faults.append(f"{name} are a {whole.kind}; pass an array of shape {shape}, or a list of matrices")
    return []


def _matrix_faults(matrices: Sequence[Any], given: Sequence[Described]) -> list[str]:
    faults = []
    for b, found in enumerate(given):
        if not found.is_array:
            faults.append(f"matrix {b} is a {found.kind}; pass a numpy array or a torch tensor of shape (m, n)")
        elif found.dtype not in PRECISIONS or (found.is_cuda and found.dtype == "float64"):
            faults.append(f"matrix {b} has dtype {found.dtype} on {found.device}; convert it to float32")
        elif len(found.shape) != 2 or 0 in found.shape:
            faults.append(f"matrix {b} has shape {found.shape}, must have (m, n) with no extent 0")
        elif (found.kind, found.dtype, found.device) != (given[0].kind, given[0].dtype, given[0].device):
            faults.append(f"matrix {b} is {_text(found)}, matrix 0 is {_text(given[0])}; only their shapes may differ")
    if faults or not given or given[0].is_cuda:  # on a device the kernel itself looks, and says so by its outcomes
        return faults[:LISTED]
    bad = [str(b) for b, matrix in enumerate(matrices) if not np.isfinite(on_host(matrix)).all()]
    return [f"NaN or infinity in matrix {_listing(bad)}; mend or drop them"] if bad else []


def _multiplier_rows(multipliers: Any, given: Sequence[Described], faults: list[str]) -> list[np.ndarray]:
    dtype = given[0].dtype if given and given[0].dtype in PRECISIONS else "float32"
    rows = (
        [as_numbers(row, dtype) for row in multipliers]
        if described(multipliers).is_array or isinstance(multipliers, list | tuple)
        else [None]
    )
    if any(row is None for row in rows):
        faults.append("multipliers are not numbers; pass an array of shape (B, min(m, n)), or a list of vectors")
        return []
    if len(rows) != len(given):
        faults.append(f"there are multipliers for {len(rows)} matrices, and {len(given)} matrices; one row for each")
    found, bad = [], []
    for b, (row, matrix) in enumerate(zip(rows, given, strict=False)):
        if row is None or len(matrix.shape) != 2:
            continue  # the fault of the matrix says enough
        if row.shape != (min(matrix.shape),):
            faults.append(f"multipliers of matrix {b} have shape {row.shape}, must have {(min(matrix.shape),)}")
        elif not np.isfinite(row).all():
            bad.append(str(b))
        found.append(row)
    if bad:
        faults.append(f"NaN or infinity in the multipliers of matrix {_listing(bad)}; they must be finite in {dtype}")
    return found


def _place_faults(places: Sequence[Any], given: Sequence[Described]) -> list[str]:
    if len(places) != len(given):
        return [f"out has {len(places)} places for {len(given)} matrices"]
    faults = []
    for b, (place, wanted) in enumerate(zip(places, given, strict=True)):
        found = described(place)
        if found != wanted:
            faults.append(f"out {b} is {_text(found)}, matrix {b} is {_text(wanted)}; they must be alike")
        elif not (_is_plain(place) if found.kind == "numpy" else place.is_contiguous()):
            faults.append(f"out {b} is not contiguous, writable memory; pass an array that is")
    return faults[:LISTED]


def _is_plain(place: np.ndarray) -> bool:
    return bool(place.flags.c_contiguous and place.flags.writeable)


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


def _text(given: Described) -> str:
    return f"{given.kind} {given.dtype} {given.shape} on {given.device}"


def _listing(items: list[str]) -> str:
    rest = len(items) - LISTED
    return ", ".join(items[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
