"""Merges that decide element by element: by what a tile shows alone, or by statistics of the whole tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from minerua.merge.methods import pieces
from minerua.merge.methods.sparse import base_alone
from minerua.values import MergeTensors, MergeTile

if TYPE_CHECKING:
    import numpy as np

    from minerua.kernels.sources import Target

# ── by what a tile shows ─────────────────────────────────────────────────────────────────────────────────────────────


def nearswap(tile: MergeTile) -> np.ndarray:
    """Returns (1 − g) b + g x with g = t ÷ |b − x|, at most 1: the expert where it is near the base.

    Args:
        tile: One expert and a base; a parameter `t`, the distance up to which the expert is taken as it is.

    Returns:
        Shape (n,), float32.

    Source: alchemonaut 2024, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001

    Example:
        >>> import numpy as np
        >>> tile = MergeTile("w", (np.float32([0.1, 0.4, 2.0]),), np.zeros(3, np.float32), {"t": 0.2})
        >>> nearswap(tile).round(2).tolist()  # doctest: +ELLIPSIS
        [0.10..., 0.20..., 0.20...]
    """
    import numpy as np

    (expert,), base = tile.experts, _base(tile)
    distance = np.maximum(np.abs(base - expert), np.float32(1e-6))
    share = np.clip(np.float32(tile.parameters["t"]) / distance, 0, 1)
    return share * expert + (1 - share) * base


def ram(tile: MergeTile) -> np.ndarray:
    """Returns b plus, element by element, the mean of the task vectors that are active there: |δ_k| > epsilon.

    So what one expert alone has changed is kept in full, and what several have changed is averaged.

    Args:
        tile: K experts and a base; a parameter `epsilon`.

    Returns:
        Shape (n,), float32.

    Source: Yuan 2026, Behavior knowledge merge in reinforced agentic models, arXiv 2601.13572.

    Example:
        >>> import numpy as np
        >>> tile = MergeTile("w", (np.float32([1, 4]), np.float32([0, 2])), np.zeros(2, np.float32), {"epsilon": 1e-5})
        >>> ram(tile).tolist()
        [1.0, 3.0]
    """
    import numpy as np

    base = _base(tile)
    if not tile.experts:
        return base
    deltas = np.stack(tile.experts) - base
    active = np.abs(deltas) > tile.parameters["epsilon"]
    return base + np.where(active, deltas, 0).sum(axis=0) / np.maximum(active.sum(axis=0), 1).astype(np.float32)


def _base(tile: MergeTile) -> np.ndarray:
    import numpy as np

    return np.zeros_like(tile.experts[0]) if tile.base is None else tile.base


# ── RAM+: by how much of a task vector is its own ────────────────────────────────────────────────────────────────────


def ramplus_tl(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes what `ram` does, with the elements that expert k alone has changed times 1 + r · min(ρ_k, alpha).

    ρ_k is how many elements expert k has changed together with others, over how many it has changed alone, in this
    tensor.

    Args:
        tensors: K experts and a base; parameters `epsilon`, `r` and `alpha`.
        target: Where it goes.

    Returns:
        Shape (K + 2,), int64: how many numbers of each expert, of the base, and of the result are not finite.

    Source: Yuan 2026, arXiv 2601.13572; tensor by tensor as mergekit has it.
    """
    import numpy as np

    if not tensors.experts:
        return base_alone(tensors, target)
    epsilon, models = tensors.parameters["epsilon"], len(tensors.experts)
    alone, shared = np.zeros(models, np.int64), np.zeros(models, np.int64)
    for own_alone, own_shared in pieces.each(tensors, partial(_overlap, epsilon)):
        alone += own_alone
        shared += own_shared
    ratio = shared / np.maximum(alone, 1)  # an expert that has changed nothing alone has nothing to be raised
    factors = 1 + tensors.parameters["r"] * np.clip(ratio, 0, tensors.parameters["alpha"])
    return pieces.write(tensors, target, partial(_ramplus_piece, factors.astype(np.float32)[:, None], epsilon))


def _overlap(epsilon: float, piece: pieces.Piece) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many elements each expert has changed alone, and how many with others: (K,), int64, each."""
    import numpy as np

    active = np.abs(piece.deltas) > epsilon  # (K, n)
    several = active.sum(axis=0) > 1
    return (active & ~several).sum(axis=1), (active & several).sum(axis=1)


def _ramplus_piece(factors: np.ndarray, epsilon: float, piece: pieces.Piece) -> np.ndarray:
    import numpy as np

    active = np.abs(piece.deltas) > epsilon
    kept = np.where(active, piece.deltas, np.float32(0))
    count = active.sum(axis=0)
    moved = np.where(count == 1, (kept * factors).sum(axis=0), kept.sum(axis=0) / np.maximum(count, 1))
    return piece.base + moved.astype(np.float32)


# ── SCE: by variance ─────────────────────────────────────────────────────────────────────────────────────────────────


def sce(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Selects the elements in which the experts vary most, calculates a weight for each expert, erases the minority.

    Of the elements whose variance over the experts is not zero the part `select_topk` with the greatest is selected, of
    equal ones the first. An expert's weight is its share of the mean squares of the selected task vectors. Element by
    element, those whose sign is that of the sum (+ for zero) are averaged with these weights.

    Args:
        tensors: K experts and a base; a parameter `select_topk`.
        target: Where it goes.

    Returns:
        Shape (K + 2,), int64: how many numbers of each expert, of the base, and of the result are not finite.

    Source: Wan 2024, FuseChat: knowledge fusion of chat models, arXiv 2408.07990, section 3.3.
    """
    import numpy as np

    from minerua.kernels import passes

    part, models = tensors.parameters["select_topk"], len(tensors.experts)
    if not models:
        return base_alone(tensors, target)
    if part >= 1:
        with np.errstate(all="ignore"):
            weights = _sce_weights(tensors, np.diag(passes.gram(tensors.experts, base=tensors.base)[0])).tolist()
        masks, votes = [passes.Mask()] * models, [1.0] * models
        return passes.merge_masked(
            tensors.experts,
            masks,
            base=tensors.base,
            factors=weights,
            votes=votes,
            shares=weights,
            scale=1.0,
            target=target,
        )
    (selected,) = pieces.select_largest(
        lambda use: pieces.each(tensors, lambda piece: use(_variance(piece))),
        lambda size, nonzero: [int(nonzero * max(part, 0))],
    )
    squares, left, equals = np.zeros(models), selected.equal, {}
    for begin, above, at in pieces.each(tensors, partial(_squares, selected.key)):
        squares += above + at[:, :left].sum(axis=1)
        equals[begin] = left  # how many equal ones this piece and those after it may keep
        left -= min(left, at.shape[1])
    weights = _sce_weights(tensors, squares).astype(np.float32)[:, None]
    return pieces.write(tensors, target, partial(_sce_piece, selected.key, equals, weights))


def _variance(piece: pieces.Piece) -> np.ndarray:
    """Returns the variance of each element over the experts: (n,), float32."""
    import numpy as np

    deltas = piece.deltas
    deltas -= deltas.mean(axis=0)
    return np.einsum("kn,kn->n", deltas, deltas) / np.float32(len(deltas))


def _squares(key: int, piece: pieces.Piece) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns where a piece begins, Σ δ² (K,) of what has a greater variance, and δ² (K, e) of what has the same."""
    import numpy as np

    keys, deltas = pieces.keys_of(_variance(piece)), piece.deltas
    greater, equal = deltas[:, keys > key].astype(np.float64), deltas[:, keys == key].astype(np.float64)
    return piece.begin, np.einsum("kn,kn->k", greater, greater), equal**2


def _sce_weights(tensors: MergeTensors, squares: np.ndarray) -> np.ndarray:
    """Returns each expert's share of the squares' sum; equal ones where that is zero.

    With `semantics: mergekit` shares are also equal where the sum of the mean squares is below 1e-6: mergekit's limit,
    which the task vectors of most fine-tuned language models do not reach.
    """
    import numpy as np

    least = 1e-6 if tensors.semantics == "mergekit" else 0.0
    total = float(squares.sum())
    if total / max(pieces.size_of(tensors.shape), 1) < least or total == 0:
        return np.full(len(squares), 1 / len(squares))
    return squares / total


def _sce_piece(key: int, equals: Mapping[int, int], weights: np.ndarray, piece: pieces.Piece) -> np.ndarray:
    import numpy as np

    deltas = piece.deltas * pieces.among_largest(_variance(piece), (key, equals[piece.begin]))
    agrees = np.where(deltas.sum(axis=0) >= 0, deltas > 0, deltas < 0)  # (K, n)
    shares = np.where(agrees, weights, np.float32(0))
    whole = shares.sum(axis=0)
    return piece.base + (deltas * shares).sum(axis=0) / np.where(whole == 0, np.float32(1), whole)


# ── Arcee fusion: by importance ──────────────────────────────────────────────────────────────────────────────────────


def arcee_fusion(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes the expert where it matters, the base elsewhere.

    An element's importance is |x − b| times its row's divergence KL(p ‖ q) of p = softmax(x) + 1e-8 and q = softmax(b)
    + 1e-8 over the row (the last axis; a vector is one row). It matters if that is not below the median plus 1.5 times
    the distance between the quartiles, all three exact over the whole tensor. Divergences are computed in float64.

    Args:
        tensors: One expert and a base.
        target: Where it goes.

    Returns:
        Shape (3,), int64: how many numbers of the expert, of the base, and of the result are not finite.

    Source: Arcee AI 2024, mergekit's documentation of `arcee_fusion`.
    """
    import numpy as np

    row = pieces.row_of(tensors.shape)
    found = pieces.each(tensors, partial(_divergences, row), unit=row)
    divergences = np.concatenate([np.zeros(0), *found])  # (rows,)
    threshold = _fence(tensors, row, divergences)
    return pieces.write(tensors, target, partial(_fused_piece, row, divergences, threshold), unit=row)


def _divergences(row: int, piece: pieces.Piece) -> np.ndarray:
    """Returns KL(p ‖ q) of every row: (rows,), float64, not negative."""
    import numpy as np

    p, q = _softmax(piece.experts[0].reshape(-1, row)) + 1e-8, _softmax(piece.base.reshape(-1, row)) + 1e-8
    return np.maximum((p * np.log(p / q)).sum(axis=1), 0.0)


def _softmax(rows: np.ndarray) -> np.ndarray:
    import numpy as np

    raised = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _importance(row: int, divergences: np.ndarray, piece: pieces.Piece) -> np.ndarray:
    import numpy as np

    first = piece.begin // row
    own = divergences[first : first + piece.size // row]
    return (np.abs(piece.deltas[0]) * np.repeat(own, row)).astype(np.float32)


def _fence(tensors: MergeTensors, row: int, divergences: np.ndarray) -> np.float32:
    """Returns the importance from which an element matters."""
    import numpy as np

    def importances(use: Callable[[np.ndarray], Any]) -> Iterator[Any]:
        return pieces.each(tensors, lambda piece: use(_importance(row, divergences, piece)), unit=row)

    def ranks(size: int, nonzero: int) -> list[int]:
        return [size - int(quarter * (size - 1) / 4) for quarter in (1, 2, 3)] if size else []

    found = pieces.select_largest(importances, ranks)
    if not found:
        return np.float32(0)
    low, median, high = np.array([threshold.key for threshold in found], np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        return np.float32(median + np.float32(1.5) * (high - low))


def _fused_piece(row: int, divergences: np.ndarray, threshold: np.float32, piece: pieces.Piece) -> np.ndarray:
    import numpy as np

    matters = _importance(row, divergences, piece) >= threshold
    return np.where(matters, piece.experts[0], piece.base)
