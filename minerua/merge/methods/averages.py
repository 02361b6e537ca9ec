"""Merges that are one weighted sum of the models: means, and means on a sphere.

Every method here finds K coefficients, and all that the spherical ones have to know of a tensor is the K × K matrix of
inner products: one pass reads it, `sphere.py` turns it into coefficients, one more pass writes the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from minerua.errors import ConfigError
from minerua.merge.methods import pieces, sphere
from minerua.values import MergeTensors

if TYPE_CHECKING:
    import numpy as np

    from minerua.kernels.sources import Source, Target


def _quiet(method: Callable[[MergeTensors, Target], np.ndarray]) -> Callable[[MergeTensors, Target], np.ndarray]:
    """Switches numpy's warnings off: where a model is not finite neither is the merge, and the caller reports it."""

    @wraps(method)
    def merge(tensors: MergeTensors, target: Target) -> np.ndarray:
        import numpy as np

        with np.errstate(all="ignore"):
            return method(tensors, target)

    return merge


# ── the methods ──────────────────────────────────────────────────────────────────────────────────────────────────────


def passthrough(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes the only expert times `scale`.

    Args:
        tensors: One expert; a parameter `scale`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.combine` returns them.
    """
    return _sum(tensors, tensors.parameters["scale"], None, target)


def linear(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes the weighted mean Σ w_k x_k ÷ Σ w_k, or without `normalize` the weighted sum.

    Args:
        tensors: K experts; parameters `weight` (per model) and `normalize`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.combine` returns them.

    Raises:
        ConfigError: The weights are to be normalised and their sum is zero.

    Source: Wortsman 2022, Model soups, arXiv 2203.05482.
    """
    return _sum(tensors, _weights(tensors, "normalize"), None, target)


@_quiet
def slerp(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes the point at `t` of the arc from the base (0) to the expert (1); see `sphere.slerp`.

    Args:
        tensors: One expert and a base (without one: zeros); a parameter `t`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.combine` returns them.

    Source: Shoemake 1985, Animating rotation with quaternion curves.
    """
    import numpy as np

    from minerua.kernels import passes

    ends = [*tensors.experts, *([] if tensors.base is None else [tensors.base])]
    gram = np.zeros((2, 2))
    gram[: len(ends), : len(ends)] = passes.gram(ends, base=None)[0]
    coefficients = sphere.slerp(gram[::-1, ::-1], tensors.parameters["t"])[::-1]  # (2,): of expert and base
    counts = passes.combine(ends, coefficients[: len(ends)].astype(np.float32), base=None, target=target)
    return np.array([counts[0], counts[1] if len(ends) == 2 else 0, counts[-1]])


@_quiet
def nuslerp(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes the point of the arc between two experts, or between their task vectors where there is a base.

    The point lies at t = w_2 ÷ (w_1 + w_2), in the middle where the weights' sum is below 1e-6; see `sphere.nuslerp`.
    The arc is one for the whole tensor, or without `nuslerp_flatten` one for every row (the last axis), or with
    `nuslerp_row_wise` as well one for every column (the first axis): the name is mergekit's.

    Args:
        tensors: Two experts; parameters `weight` (per model), `nuslerp_flatten` and `nuslerp_row_wise`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.combine` returns them.
    """
    from minerua.kernels import passes

    first, second = tensors.parameters["weight"]
    t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    flatten, columns = tensors.parameters["nuslerp_flatten"], tensors.parameters["nuslerp_row_wise"]
    if not flatten and columns and len(tensors.shape) > 1:
        return _nuslerp_columns(tensors, t, target)
    gram = passes.gram(tensors.experts, base=tensors.base, rows=1 if flatten else _rows(tensors))
    return _sum(tensors, sphere.nuslerp(gram, t), tensors.base, target)


@_quiet
def multislerp(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes the experts' weighted mean direction at their weighted mean length; see `sphere.multislerp`.

    Where there is a base, directions and lengths are those of the task vectors. One expert is written as it is; two
    that point in opposite directions, so that there is no mean direction, take their weighted sum, as do experts none
    of which differs from the base.

    Args:
        tensors: K experts; parameters `weight` (per model), `normalize_weights` and `eps`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.combine` returns them.

    Raises:
        ConfigError: The weights are to be normalised and their sum is zero; or three experts or more cancel out.
    """
    from minerua.kernels import passes

    if len(tensors.experts) == 1:
        return _sum(tensors, [1.0], None, target)
    weights = _weights(tensors, "normalize_weights")
    gram = passes.gram(tensors.experts, base=tensors.base)[0]
    coefficients = sphere.multislerp(gram, weights, eps=tensors.parameters["eps"])
    if coefficients is None and len(weights) > 2 and gram.any():
        raise ConfigError(
            f"multislerp: in tensor {tensors.name!r} the {len(weights)} experts with weights {weights} cancel out, "
            "so they have no mean direction; set other weights"
        )
    return _sum(tensors, weights if coefficients is None else coefficients, tensors.base, target)


@_quiet
def karcher(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes the experts' Karcher mean direction at their mean length; see `sphere.karcher`.

    Args:
        tensors: K experts; parameters `max_iter` and `tol`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.combine` returns them.

    Source: Wang 2026, Functionality-oriented LLM merging on the Fisher–Rao manifold, arXiv 2603.04972.
    """
    from minerua.kernels import passes

    if len(tensors.experts) == 1:
        return _sum(tensors, [1.0], None, target)
    gram = passes.gram(tensors.experts, base=None)[0]
    steps, tol = tensors.parameters["max_iter"], tensors.parameters["tol"]
    return _sum(tensors, sphere.karcher(gram, max_iter=int(steps), tol=tol), None, target)


@_quiet
def model_stock(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes a point between the base and the experts' mean; see `sphere.model_stock`.

    The point is one for the whole tensor, or with `filter_wise` one for every row (the last axis; a vector is one row).

    Args:
        tensors: Two experts or more and a base; a parameter `filter_wise`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.combine` returns them.

    Source: Jang 2024, Model stock: all we need is just a few fine-tuned models, arXiv 2403.19522, equation 7.
    """
    from minerua.kernels import passes

    rows = _rows(tensors) if tensors.parameters["filter_wise"] else 1
    gram = passes.gram(tensors.experts, base=tensors.base, rows=rows)
    least = 1e-6 if tensors.semantics == "mergekit" else 0.0
    return _sum(tensors, sphere.model_stock(gram, least_product=least), tensors.base, target)


# ── what the methods share ───────────────────────────────────────────────────────────────────────────────────────────


def weights_fault(parameters: Mapping[str, Any]) -> str | None:
    """Says what is wrong with weights that are to be normalised; `None` if nothing is."""
    asked = any(parameters.get(name) for name in ("normalize", "normalize_weights"))
    weights = parameters["weight"]
    if not asked or 1e-8 <= abs(sum(weights)) < math.inf:
        return None
    if math.isinf(sum(weights)):
        return f"weights {list(weights)} sum to infinity and cannot be normalised; set smaller ones"
    return f"weights {list(weights)} sum to zero and cannot be normalised; set other weights, or switch that off"


def steps_fault(parameters: Mapping[str, Any]) -> str | None:
    """Says what is wrong with the number of steps of the Karcher mean; `None` if nothing is."""
    steps = parameters["max_iter"]
    return None if steps == int(steps) else f"max_iter is {steps}; expected a whole number"


def _weights(tensors: MergeTensors, normalize: str) -> list[float]:
    weights = tensors.parameters["weight"]
    fault = weights_fault(tensors.parameters)
    if fault:
        raise ConfigError(f"tensor {tensors.name!r} cannot be averaged", [fault])
    total = sum(weights) if tensors.parameters[normalize] else 1.0
    return [weight / total for weight in weights]


def _rows(tensors: MergeTensors) -> int:
    return max(pieces.size_of(tensors.shape) // pieces.row_of(tensors.shape), 1)


def _sum(tensors: MergeTensors, coefficients: Any, base: Source | None, target: Target) -> np.ndarray:
    import numpy as np

    from minerua.kernels import passes

    rounded = np.asarray(coefficients, np.float32)  # (K,) or (R, K)
    return passes.combine(
        tensors.experts, rounded[0] if rounded.ndim == 2 and len(rounded) == 1 else rounded, base=base, target=target
    )


# ── column by column ─────────────────────────────────────────────────────────────────────────────────────────────────


def _nuslerp_columns(tensors: MergeTensors, t: float, target: Target) -> np.ndarray:
    """Merges every column, a vector along the first axis, by itself, as many columns at a time as fit in a piece."""
    import numpy as np

    inner = pieces.size_of(tensors.shape[1:])
    counts = np.zeros(4, np.int64)
    for columns in pieces.spans(inner):
        width = columns[1] - columns[0]
        gram = np.zeros((width, 2, 2))
        for found in _each_rows(tensors, inner, columns, partial(_column_gram, width)):
            gram += found
        merge = partial(_column_sum, sphere.nuslerp(gram, t).T.astype(np.float32), target)
        for found in _each_rows(tensors, inner, columns, merge):
            counts += found
    return counts


def _column_gram(width: int, piece: pieces.Piece) -> np.ndarray:
    import numpy as np

    deltas = piece.deltas.astype(np.float64).reshape(2, -1, width)  # (2, rows, width)
    return np.einsum("krc,lrc->ckl", deltas, deltas)


def _column_sum(coefficients: np.ndarray, target: Target, piece: pieces.Piece) -> np.ndarray:
    """Writes the base plus the task vectors, each column with its own coefficients, shape (2, width); counts."""
    width = coefficients.shape[1]
    moved = coefficients[:, None, :] * piece.deltas.reshape(2, -1, width)  # (2, rows, width)
    return pieces.write_piece(piece, target, piece.base + moved.sum(axis=0).reshape(-1))


def _each_rows(
    tensors: MergeTensors, inner: int, columns: tuple[int, int], make: Callable[[pieces.Piece], np.ndarray]
) -> Iterator[np.ndarray]:
    """Yields what is made of these columns of a few rows, or of one row where not all columns fit in a piece."""
    begin, end = columns
    step = max(pieces.PIECE_ELEMENTS // inner, 1) if end - begin == inner else 1
    ends = ((row, min(row + step, tensors.shape[0]) - 1) for row in range(0, tensors.shape[0], step))
    ranges = ((first * inner + begin, last * inner + end) for first, last in ends)
    return pieces.each_of(ranges, lambda first, last: make(pieces.read(tensors, first, last)))
