"""The random numbers of variation: crossover coefficients, mutation multipliers, aggregation weights.

What they are multiplied with is not known here: the weights room applies them to cores. Readings of the mutation map
uniform numbers to multipliers, wherever those were drawn: on a CPU and on a GPU they are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

SMALLEST_SUM = 0.1
"""Crossover draws whose sum is closer to zero than this are drawn again: normalising by it would blow the child up.
With the paper's deviation of 0.03 this never happens; with 0.5 it does for about one pair in 270."""


def crossover_coefficients(
    generator: np.random.Generator, *, parents: int = 2, rows: int = 1, mean: float = 1.0, deviation: float = 0.03
) -> np.ndarray:
    """Draws normalised weights ω_p ÷ Σ ω with ω ~ N(mean, deviation²).

    Because each row sums to one, the base cancels: a child is an affine mix of its parents.

    Args:
        generator: Source of randomness; advanced.
        parents: How many parents share a row.
        rows: How many independent rows to draw: 1 for one mix of whole models (the paper), or one per tensor.
        mean: Mean of ω; the paper's 1.0.
        deviation: Standard deviation of ω; the paper's 0.03 (the public code's 0.01).

    Returns:
        Shape (rows, parents), float64; each row sums to one.

    Source: CycleQD, arXiv 2410.14735, section 3.2 and appendix A.1.3.

    Example:
        >>> rows = crossover_coefficients(np.random.default_rng(0), rows=3, deviation=0.5)
        >>> rows.shape, rows.sum(axis=1).round(12).tolist()
        ((3, 2), [1.0, 1.0, 1.0])
    """
    draws = generator.normal(mean, deviation, size=(rows, parents))
    while (small := np.abs(draws.sum(axis=1)) < SMALLEST_SUM).any():
        draws[small] = generator.normal(mean, deviation, size=(int(small.sum()), parents))
    return draws / draws.sum(axis=1, keepdims=True)


def directed_coefficients(generator: np.random.Generator, *, rows: int = 1, width: float = 0.5) -> np.ndarray:
    """Draws (t, 1 − t) with t ~ U[1 − width, 1 + width): around the first, better parent, on the line through both.

    t above 1 goes on beyond the better parent, away from the worse: a step along a difference that selection has found
    to help.

    Args:
        generator: Source of randomness; advanced.
        rows: How many independent rows to draw: 1 for whole models, or one per tensor.
        width: How far t may lie from 1.

    Returns:
        Shape (rows, 2), float64; each row sums to one.

    Example:
        >>> rows = directed_coefficients(np.random.default_rng(0), rows=100)
        >>> bool((rows[:, 0] >= 0.5).all() and (rows[:, 0] < 1.5).all())
        True
    """
    first = generator.uniform(1.0 - width, 1.0 + width, rows)
    return np.column_stack([first, 1.0 - first])


Reading = Callable[[np.ndarray, float], np.ndarray]
"""Maps uniform numbers u in [0, 1) and a strength to multipliers of singular values, one for each u."""


def literal(u: np.ndarray, strength: float) -> np.ndarray:
    """Returns w ~ U[0, strength): the paper's printed formula, which replaces σ by w·σ and so shrinks the task vector.

    Source: CycleQD, arXiv 2410.14735, section 3.3; with its strength of 0.3, to 15 % on average.
    """
    return strength * u


def additive(u: np.ndarray, strength: float) -> np.ndarray:
    """Returns 1 + w, w ~ U[0, strength): the reading that the paper's text and its figure 3 suggest."""
    return 1.0 + strength * u


def two_sided(u: np.ndarray, strength: float) -> np.ndarray:
    """Returns 1 + w, w ~ U[−strength, strength): leaves the expected task vector unchanged."""
    return 1.0 + strength * (2.0 * u - 1.0)


READINGS: Mapping[str, Reading] = {
    "literal": literal,
    "additive": additive,
    "two-sided": two_sided,
    "expert": literal,
}
"""Readings of the SVD mutation by the name a run file uses. All but one act on the child's own spectrum; `expert`, the
public code's (SakanaAI/CycleQD, mutation/svd_uniform_mutator.py), multiplies the spectrum of the active task's expert
and adds the result to the child."""


def multipliers(
    uniforms: Callable[[int], np.ndarray], count: int, *, reading: Reading, strength: float, top: int | None = None
) -> np.ndarray:
    """Draws the multipliers of one matrix's singular values, for singular values in descending order.

    With `top`, only the l largest have a multiplier of their own and all others share one w̄: the result is
    w̄ τ + U_l diag((w_l − w̄) σ_l) V_lᵀ, a random change of the l leading directions beside one of scale.

    Args:
        uniforms: Maps a number to that many draws from [0, 1); called once.
        count: How many singular values the matrix has.
        reading: What a draw becomes.
        strength: How much, in the reading's sense.
        top: l, at least 0; `None`, and any l from `count` on, gives every singular value its own.

    Returns:
        Shape (count,), float64.

    Source: AC/DC keeps the noise to the largest singular values of a weight, svd_model_weights_gaussian_mutator.py;
        here it is those of the task vector, and the rest is scaled with them instead of being left behind.

    Example:
        >>> multipliers(lambda n: np.linspace(0, 1, n), 5, reading=additive, strength=0.5, top=2)
        array([1.  , 1.25, 1.5 , 1.5 , 1.5 ])
    """
    own = count if top is None else min(top, count)
    shared = own < count
    drawn = reading(np.asarray(uniforms(own + shared), np.float64), strength)
    return np.append(drawn, np.repeat(drawn[-1:], count - own - 1)) if shared else drawn


def aggregation_weights(scores: Sequence[float]) -> np.ndarray:
    """Returns β = softmax(scores), the share of each archive's best elite in the aggregated model.

    The shares sum to one, so the base cancels; with scores in [0, 1] they are nearly equal.

    Args:
        scores: Shape (K,); each elite's score on its archive's own task, in [0, 1].

    Returns:
        Shape (K,), float64, summing to one.

    Source: CycleQD, arXiv 2410.14735, section 3.4.

    Example:
        >>> aggregation_weights([0.73, 0.51, 0.46]).round(2).tolist()
        [0.39, 0.31, 0.3]
    """
    powers = np.exp(np.asarray(scores, dtype=np.float64) - max(scores))
    return np.asarray(powers / powers.sum())
