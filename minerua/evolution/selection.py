"""Who becomes a parent: probabilities over the elites of an archive."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from minerua.errors import EvolutionError
from minerua.evolution.archive import Archive

Sampler = Callable[[Archive], np.ndarray]
"""Maps an archive with N ≥ 1 elites to N positive probabilities in the order of its elites, as an array of its own."""


def _normalised(columns: np.ndarray, flat: float) -> np.ndarray:
    """Scales every column to [0, 1]; a column of equal values, which favours nobody, becomes `flat`."""
    low, high = columns.min(axis=0), columns.max(axis=0)
    span = high - low
    equal = span == 0
    return np.where(equal, flat, (columns - low) / np.where(equal, 1.0, span))


def elite_probabilities(means: np.ndarray, *, alpha_low: float = 0.5, alpha_high: float = 0.8) -> np.ndarray:
    """Returns the paper's elite sampling: a product over all tasks of factors between `alpha_low` and `alpha_high`.

    γ_j = ∏_k [α_low + (f_jk − min_n f_nk) ÷ (max_n f_nk − min_n f_nk) · (α_high − α_low)], P_j = γ_j ÷ Σ_n γ_n. A task
    on which all elites score the same favours nobody: its factor is α_high for each.

    Args:
        means: Shape (N, K), N ≥ 1; the elites' scores.
        alpha_low: Factor of the weakest elite; the paper's 0.5.
        alpha_high: Factor of the strongest; the paper's 0.8.

    Returns:
        Shape (N,), float64, summing to one.

    Source: CycleQD, arXiv 2410.14735, section 3.1.

    Example:
        >>> elite_probabilities(np.array([[0.2, 0.5], [0.6, 0.5]])).round(4).tolist()
        [0.3846, 0.6154]
    """
    share = _normalised(means, flat=1.0)
    factors = alpha_low + share * (alpha_high - alpha_low)  # (N, K)
    product = factors.prod(axis=1)
    return product / product.sum()


def elite_probabilities_of_repository(quality: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Returns elite sampling as the public code computes it, which differs from the paper in two ways.

    The factor is 0.5 + 0.8 · share and so lies in [0.5, 1.3], and the behaviour characteristics enter as bin indices. A
    column of equal values gives the factor 1.

    Args:
        quality: Shape (N,); the elites' scores on the archive's own task.
        bins: Shape (N, K − 1); their cells.

    Returns:
        Shape (N,), float64, summing to one.

    Source: SakanaAI/CycleQD at 3d14971, sampler/elite_sampler.py.
    """
    share = _normalised(np.column_stack([quality, bins]).astype(np.float64), flat=0.625)  # 0.5 + 0.8 · 0.625 = 1
    factors = 0.5 + 0.8 * share
    product = factors.prod(axis=1)
    return product / product.sum()


def _elite(archive: Archive) -> np.ndarray:
    return elite_probabilities(archive.means)


def _elite_of_repository(archive: Archive) -> np.ndarray:
    cells = np.array([elite.cell for elite in archive.elites])
    return elite_probabilities_of_repository(archive.means[:, archive.quality], cells)


def _uniform(archive: Archive) -> np.ndarray:
    return np.full(len(archive), 1 / len(archive))


SAMPLERS: Mapping[str, Sampler] = {"elite": _elite, "elite-repository": _elite_of_repository, "uniform": _uniform}
"""Sampling by name, as a run file spells it."""


def sample_parents(archive: Archive, sampler: Sampler, generator: np.random.Generator) -> tuple[str, str]:
    """Draws two distinct elites without replacement and puts the one with the higher mean score first.

    The order matters to a directed crossover alone. An archive with one elite gives it twice.

    The public code fails on a single elite and the paper is silent; the child is then a mutant of its only parent.

    Args:
        archive: The active archive.
        sampler: Gives each elite's probability.
        generator: Source of randomness; advanced.

    Returns:
        The digests of the two parents; of equals the first drawn comes first.

    Raises:
        EvolutionError: If the archive is empty.
    """
    elites = archive.elites
    if not elites:
        raise EvolutionError(f"the archive of task {archive.quality} is empty: nobody in it can be a parent")
    if len(elites) == 1:
        return elites[0].digest, elites[0].digest
    probabilities = sampler(archive)
    draws = generator.random(2)
    first = _drawn(probabilities, draws[0])
    probabilities[first] = 0.0
    parents = [elites[first], elites[_drawn(probabilities, draws[1])]]
    better, worse = sorted(parents, key=lambda elite: -sum(elite.means))
    return better.digest, worse.digest


def _drawn(weights: np.ndarray, draw: float) -> int:
    """Returns the index that a number in [0, 1) falls on when the weights are laid end to end."""
    bounds = weights.cumsum()
    index = np.searchsorted(bounds, draw * bounds[-1], side="right")
    return int(min(index, np.flatnonzero(weights)[-1]))  # the product may round up to the whole
