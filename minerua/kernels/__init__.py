"""The only door to the compiled core: checks what comes, chooses CUDA, compiled or reference, says which and why.

`reference` defines what is correct; `diagnosis` tells what is installed. Everything is deterministic: the same input
gives the same bits, whatever the number of threads and the instruction set. Inputs are borrowed and never written to;
results are fresh and belong to the caller. All functions may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minerua.errors import KernelError
from minerua.kernels import compiled, cuda, reference, spectra
from minerua.kernels.arrays import DTYPES, described, dtype_name, host_view, is_tensor, on_host, restored
from minerua.kernels.checks import check_merge, check_svd_mutation
from minerua.kernels.uniforms import uniform

__all__ = ["Choice", "explain", "merge", "num_threads", "set_num_threads", "svd_mutation", "uniform"]

_OPERATIONS = ("merge", "svd_mutation")


class Choice(NamedTuple):
    """Which backend carries out an operation, and why.

    Args:
        operation: `"merge"` or `"svd_mutation"`.
        backend: `"compiled"`, `"reference"`, `"cuda"`, or `"torch"`: torch.linalg, where the kernel cannot take CUDA
            tensors.
        reason: One clause.
    """

    operation: str
    backend: str
    reason: str


_latest: dict[str, Choice] = {}


def merge(
    experts: Sequence[Any],
    coefficients: Any,
    *,
    base: Any = None,
    out_dtype: Any = None,
    backend: str = "auto",
) -> Any:
    """Merges experts into children, all children in one pass: base + Σ_k c[p, k] (x_k − base), or Σ_k c[p, k] x_k.

    Computed in float32 in the order of k, rounded once at the end (to nearest, ties to even). The bits are the same on
    every backend, but for the payload of a NaN. Values that are not finite travel on as IEEE 754 says. Tensors are
    detached.

    Args:
        experts: K >= 1 numpy arrays or torch tensors of one shape and dtype (bfloat16, float16, float32), on one
            device. bfloat16 in numpy is `ml_dtypes.bfloat16`.
        coefficients: Shape (P, K), P >= 1, any numbers, rounded to float32; finite.
        base: Like one expert, its dtype may differ; `None` sums the experts themselves.
        out_dtype: A name, numpy dtype or torch dtype of the three; `None` takes the experts'.
        backend: `"auto"`, `"compiled"`, `"reference"` or `"cuda"`. Automatic: CUDA for CUDA tensors, compiled for the
            rest.

    Returns:
        Shape (P, *shape), same kind and device as the experts.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.
        CoreUnavailable: A backend was named that is not installed.

    Example:
        >>> import numpy as np
        >>> base, expert = np.zeros(3, np.float32), np.ones(3, np.float32)
        >>> merge([expert], [[0.5], [2.0]], base=base)
        array([[0.5, 0.5, 0.5],
               [2. , 2. , 2. ]], dtype=float32)
    """
    experts = list(experts)
    numbers = check_merge(experts, coefficients, base, out_dtype, backend)
    first = described(experts[0])
    dtype = DTYPES[first.dtype if out_dtype is None else dtype_name(out_dtype)]
    limit = cuda.merge_limit(first.device, len(experts)) if first.is_cuda else ""
    choice = _choose("merge", backend, first.is_cuda, limit)
    if choice.backend == "cuda":
        return cuda.merge(experts, numbers, base=base, out_dtype=dtype)
    twin = compiled.merge if choice.backend == "compiled" else reference.merge
    start = None if base is None else on_host(base)
    return restored(twin([on_host(x) for x in experts], numbers, base=start, out_dtype=dtype), experts[0])


def svd_mutation(
    matrices: Any, multipliers: Any, *, precision: str = "float32", out: Any = None, backend: str = "auto"
) -> Any:
    """Multiplies the singular values of many matrices: U diag(σ) Vᵀ becomes U diag(w · σ) Vᵀ, σ in descending order.

    Nothing is divided by a singular value: zero and rank-deficient matrices are harmless. V comes from the Gram matrix
    of the smaller side, so the error is about (max w − min w) · √ε · σ₁, with √ε = 3e-4 in float32 and 1.5e-8, the
    error of a direct float32 SVD, in float64; V is orthonormal to some ten roundings of the precision in both. Where
    singular values are equal the operation is not unique; each backend is then deterministic in itself, but two
    backends may differ by (max w − min w) · σ. On the CPU every matrix is computed by one thread, the large ones
    (smaller side above 256) by torch.linalg, whose error in float32 can be fifteen times as large. Tensors are
    detached.

    Args:
        matrices: A stack of shape (B, m, n), or a sequence of matrices of any shapes; float32, finite; numpy arrays or
            torch tensors, all on one device. float64 is taken on the CPU, and decomposed by LAPACK's SVD: accurate, and
            slow.
        multipliers: Shape (B, min(m, n)), or a sequence of B vectors of that length; any numbers, rounded to float32
            (float64 for float64 matrices); finite; any sign.
        precision: `"float32"` or `"float64"`: in which the Gram matrix is formed and decomposed. The CUDA kernel's and
            the reference's are always float64.
        out: Where the results go: like `matrices`, contiguous, writable; may be the matrices themselves. `None` makes
            fresh ones.
        backend: `"auto"`, `"compiled"`, `"reference"` or `"cuda"`. Automatic: CUDA for CUDA tensors (torch.linalg where
            min(m, n) is above 128, or above what the device's shared memory holds), compiled for the rest.

    Returns:
        `out`, or a stack or a list like the matrices. Overflow gives infinity.

    Raises:
        KernelError: Arguments that cannot be taken (lists all faults), or no convergence (names the matrices).
        CoreUnavailable: A backend was named that is not installed.

    Warns:
        RuntimeWarning: The compiled core did not converge for a matrix (named), and the reference computed it.

    Example:
        >>> import numpy as np
        >>> svd_mutation(np.array([[[4.0, 0.0], [0.0, 1.0]]], np.float32), [[1.5, 1.0]], backend="reference")
        array([[[6., 0.],
                [0., 1.]]], dtype=float32)
        >>> wide, small = np.ones((1, 2), np.float32), np.ones((1, 1), np.float32)
        >>> svd_mutation([wide, small], [[0.5], [2.0]])
        [array([[0.5, 0.5]], dtype=float32), array([[2.]], dtype=float32)]
    """
    numbers = check_svd_mutation(matrices, multipliers, precision, out, backend)
    given, results = list(matrices), _fresh_like(matrices) if out is None else out
    if not given:
        return results
    first = described(given[0])
    side = max(min(described(matrix).shape) for matrix in given)
    limit = cuda.svd_mutation_limit(first.device, side) if first.is_cuda else ""
    choice = _choose("svd_mutation", backend, first.is_cuda, limit)
    if choice.backend in ("cuda", "torch"):
        spectra.on_device(given, numbers, list(results), precision=precision)
        return results
    twin = spectra.by_core if choice.backend == "compiled" and first.dtype == "float32" else spectra.by_reference
    places = [host_view(result) for result in results]
    twin([on_host(matrix) for matrix in given], numbers, places, precision=precision)
    if first.is_cuda:
        for result, place in zip(results, places, strict=True):
            result.copy_(restored(place, result))
    return results


def _fresh_like(matrices: Any) -> Any:
    """Returns new arrays like a stack, or like each of a sequence of matrices."""
    if isinstance(matrices, np.ndarray):
        return np.empty(matrices.shape, matrices.dtype)
    if is_tensor(matrices):
        return matrices.new_empty(matrices.shape)
    return [_fresh_like(matrix) for matrix in matrices]


def explain() -> list[Choice]:
    """Returns, for every operation, the backend last used and why; if never used, what it would be for CPU arrays.

    Raises:
        KernelError: The environment variable MINERUA_BACKEND has an unknown value.

    Example:
        >>> [choice.operation for choice in explain()]
        ['merge', 'svd_mutation']
    """
    return [_latest.get(operation) or _choice(operation, "auto", False, "") for operation in _OPERATIONS]


def set_num_threads(count: int) -> None:
    """Sets how many threads one operation of the compiled core may use, the calling one included.

    Args:
        count: 1 to 1024; the default is the size of the process's affinity mask.

    Raises:
        KernelError: Not a number in that range.
        CoreUnavailable: The compiled core is missing: the reference has no threads to set.

    Example:
        >>> set_num_threads(2)
    """
    if not isinstance(count, int) or not 1 <= count <= 1024:
        raise KernelError(f"set_num_threads takes 1 to 1024 threads, not {count!r}")
    compiled.require_core().set_num_threads(count)


def num_threads() -> int:
    """Returns how many threads one operation of the compiled core may use; 1 where only the reference is there.

    Example:
        >>> num_threads() >= 1
        True
    """
    return 1 if compiled.core is None else int(compiled.core.num_threads())


def _choose(operation: str, backend: str, is_cuda: bool, limit: str) -> Choice:
    choice = _choice(operation, backend, is_cuda, limit)
    _latest[operation] = choice
    return choice


def _choice(operation: str, backend: str, is_cuda: bool, limit: str) -> Choice:
    """Chooses; `limit` says why the CUDA kernel cannot take a CUDA tensor, empty if it can."""
    if backend == "auto" and compiled.forced_reference():
        return Choice(operation, "reference", "the environment variable MINERUA_BACKEND forces it")
    if backend in ("compiled", "reference"):
        return Choice(operation, backend, f"backend={backend!r} was asked for")
    if is_cuda:
        return _cuda_choice(operation, backend, limit)
    if compiled.core is None:
        return Choice(operation, "reference", compiled.absence_reason)
    return Choice(operation, "compiled", f"CPU arrays, {compiled.core.instruction_set()} loops")


def _cuda_choice(operation: str, backend: str, limit: str) -> Choice:
    if limit and operation == "svd_mutation":
        return Choice(operation, "torch", f"torch.linalg on the device: {limit}")
    if backend == "cuda" and limit:
        raise KernelError(f"{operation} with backend='cuda': {limit}; use backend='auto'")
    obstacle = limit or (cuda.absence_reason() if backend == "auto" else "")
    if not obstacle:
        return Choice(operation, "cuda", "CUDA tensors")
    twin = "reference" if compiled.core is None else "compiled"
    return Choice(operation, twin, f"CUDA tensors are copied to the CPU and back: {obstacle}")
