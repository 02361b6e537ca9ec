"""Scaling singular values: the ways that `kernels.svd_mutation` goes, for matrices of one shape or of many.

Every way takes equally long lists of matrices, of multipliers and of places for the results, which may be the matrices
themselves.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minerua.errors import KernelError
from minerua.kernels import compiled, cuda, reference

LARGE_SIDE = 256
"""Smaller sides above this are left to torch.linalg on the CPU too: LAPACK's blocked reduction is faster there."""


def by_reference(
    matrices: Sequence[np.ndarray], multipliers: Sequence[np.ndarray], outs: Sequence[np.ndarray], *, precision: str
) -> None:
    """Mutates by LAPACK's SVD in float64, whatever the precision, one matrix after the other.

    Raises:
        KernelError: LAPACK did not converge; names the matrix.
    """
    index = 0
    try:
        for index, matrix in enumerate(matrices):
            outs[index][...] = reference.svd_mutation(matrix[None], multipliers[index][None])[0]
    except np.linalg.LinAlgError as error:
        raise KernelError(f"svd_mutation: matrix {index}: {error}") from error


def by_core(
    matrices: Sequence[np.ndarray], multipliers: Sequence[np.ndarray], outs: Sequence[np.ndarray], *, precision: str
) -> None:
    """Mutates by the compiled core, the large ones by torch.linalg.

    A matrix that does not converge is computed again by the reference, with a warning that names it.

    Raises:
        KernelError: Nor did it there.
    """
    small = [i for i, matrix in enumerate(matrices) if min(matrix.shape) <= LARGE_SIDE]
    chosen = [[given[i] for i in small] for given in (matrices, multipliers, outs)]
    failed = [small[place] for place in compiled.svd_mutation(*chosen, precision=precision)]
    large = sorted({*range(len(matrices))} - {*small})
    if large:
        _mutate_large(*([given[i] for i in large] for given in (matrices, multipliers, outs)), precision=precision)
    if failed:
        named = ", ".join(map(str, failed))
        text = f"svd_mutation: no convergence for matrix {named}; computed again by LAPACK's SVD (the reference)"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
        by_reference(*([given[i] for i in failed] for given in (matrices, multipliers, outs)), precision=precision)


def _mutate_large(
    matrices: Sequence[np.ndarray], multipliers: Sequence[np.ndarray], outs: Sequence[np.ndarray], *, precision: str
) -> None:
    """Mutates by torch.linalg on the CPU, as `cuda.wide_svd_mutation` does.

    Several matrices go to one worker each, and torch has one thread meanwhile: its threads side by side on one matrix
    take half as long again (16 of 512 × 512).
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch  # costs a second, and only the largest matrices need it

    def mutate(i: int) -> None:
        stack = torch.from_numpy(matrices[i])[None]
        outs[i][...] = cuda.wide_svd_mutation(stack, multipliers[i][None], precision=precision)[0].numpy()

    workers = min(len(matrices), compiled.require_core().num_threads())
    if workers == 1:
        for i in range(len(matrices)):
            mutate(i)
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(mutate, range(len(matrices))))
    finally:
        torch.set_num_threads(before)  # a worker's number is everybody's in MKL


def on_device(
    matrices: Sequence[Any], multipliers: Sequence[np.ndarray], outs: Sequence[Any], *, precision: str
) -> None:
    """Mutates CUDA tensors by the kernel, those that it cannot take by torch.linalg on the device.

    Raises:
        KernelError: Values are not finite (names the matrices of the shape that was at work), or no convergence.
        CoreUnavailable: The launch failed.
    """
    torch: Any = sys.modules["torch"]
    for indices in _of_one_shape(matrices):
        stack = torch.stack([matrices[i].detach() for i in indices])
        numbers = np.stack([multipliers[i] for i in indices])
        if cuda.absence_reason() or cuda.svd_mutation_limit(str(stack.device), min(stack.shape[1:])):
            changed = cuda.wide_svd_mutation(stack, numbers, precision=precision)
        else:
            changed = cuda.svd_mutation(stack, numbers)
        for i, matrix in zip(indices, changed, strict=True):
            outs[i].copy_(matrix)


def _of_one_shape(matrices: Sequence[Any]) -> Iterator[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        groups.setdefault(tuple(matrix.shape), []).append(i)
    yield from groups.values()
