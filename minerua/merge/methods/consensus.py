"""Consensus task arithmetic: only what at least some of the experts need of the sum of their task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minerua.values import MergeMethodSpec, MergeParameter, MergeTile

if TYPE_CHECKING:
    import numpy as np


def merge_consensus(tile: MergeTile) -> np.ndarray:
    """Returns the base plus the sum of the task vectors where enough experts have a say in it.

    With τ = Σ w_k τ_k, expert k has a say in an element where |w_k τ_k| > `selfishness` · |τ − w_k τ_k|; elements in
    which fewer than `agreement` experts have one stay the base's. The result is scaled by `lambda`.

    Args:
        tile: A piece of one tensor of all models, with its base.

    Returns:
        Shape (n,), float32.

    Source: Wang 2024, Localizing task information for improved model merging and compression, arXiv 2405.07813,
    equations 3 and 5; `selfishness` is its λ, which is searched from 0.2 to 0.6 there.

    Example:
        >>> import numpy as np
        >>> experts = np.float32([5, 1, 0]), np.float32([4, 0, 0])
        >>> settings = {"weight": (1.0, 1.0), "lambda": 1.0, "selfishness": 0.4, "agreement": 2.0}
        >>> merge_consensus(MergeTile("w", experts, np.zeros(3, np.float32), settings)).tolist()
        [9.0, 0.0, 0.0]
    """
    import numpy as np

    base = np.float32(0) if tile.base is None else tile.base
    weights, selfishness = tile.parameters["weight"], np.float32(tile.parameters["selfishness"])
    vectors = [np.float32(w) * (expert - base) for w, expert in zip(weights, tile.experts, strict=True)]
    total = np.sum(vectors, axis=0)
    says = sum((np.abs(v) > selfishness * np.abs(total - v)).astype(np.int32) for v in vectors)
    return base + np.float32(tile.parameters["lambda"]) * np.where(says >= tile.parameters["agreement"], total, 0)


METHODS = (
    MergeMethodSpec(
        "consensus",
        merge_consensus,
        uses="tiles",
        parameters=(
            MergeParameter("weight", per_model=True, default=1.0),
            MergeParameter("lambda", default=1.0),
            MergeParameter("selfishness", default=0.4, fewest=0.0),
            MergeParameter("agreement", default=2.0, fewest=0.0),
        ),
        fewest=2,
    ),
)
"""The methods of this module, for the hook that provides them."""
