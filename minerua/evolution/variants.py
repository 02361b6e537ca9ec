"""The three variants of CycleQD by name: what the paper prints, what its public code computes, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Variant:
    """The settings in which the variants differ; everything else is common to all.

    Args:
        crossover: `gaussian` (the paper's normalised weights) or `directed` (along the line from the parent with the
            lower mean score to the one with the higher, and beyond).
        crossover_width: Standard deviation of the gaussian weights around 1; half the range of the directed ones.
        crossover_per_tensor: Whether every tensor draws weights of its own, or one pair serves the whole model.
        mutation: A name from `operators.READINGS`, or `gaussian` or `none`.
        mutation_strength: w_max of the multipliers; the standard deviation for `gaussian`.
        mutation_top: How many of the largest singular values have a multiplier of their own while the rest share one;
            `None` for all.
        mutation_probability: The share of children that are mutated.
        sampling: A name from `selection.SAMPLERS`.
        bounds: Where the bins lie: `experts` (85 % of the weakest expert's score to 115 % of the strongest's) or
            `best-seed` (0.06 to both sides of the scores of the seed with the highest mean).
        merges: Merges that join the experts as seeds, by the names of merge methods. Those that use inputs join K + 1
            times: with equal weights, and with each expert counted twice.
        soups: Whether the final model is chosen among means of many elites, or among single ones.
    """

    crossover: str
    crossover_width: float
    crossover_per_tensor: bool
    mutation: str
    mutation_strength: float
    mutation_top: int | None
    mutation_probability: float
    sampling: str
    bounds: str
    merges: tuple[str, ...]
    soups: bool


_PAPER = Variant(  # arXiv 2410.14735, sections 3.1 to 3.3 and appendix A.1.3
    crossover="gaussian",
    crossover_width=0.03,
    crossover_per_tensor=False,
    mutation="literal",
    mutation_strength=0.3,
    mutation_top=None,
    mutation_probability=1.0,
    sampling="elite",
    bounds="experts",
    merges=(),
    soups=False,
)

# SakanaAI/CycleQD at 3d14971 with the overrides that its README names for the paper's method: configs/qd/crossover,
# configs/qd/mutation/svd_uniform_noise.yaml, sampler/elite_sampler.py
_REPOSITORY = replace(
    _PAPER, crossover_width=0.01, mutation="expert", mutation_strength=0.1, sampling="elite-repository"
)

_OURS = Variant(  # README.md beside this file says what each setting has earned
    crossover="directed",
    crossover_width=0.5,
    crossover_per_tensor=True,
    mutation="two-sided",
    mutation_strength=0.1,
    mutation_top=None,
    mutation_probability=0.25,
    sampling="elite",
    bounds="best-seed",
    merges=("mean", "regmean", "layer-match"),
    soups=True,
)

VARIANTS: Mapping[str, Variant] = {"paper": _PAPER, "repo": _REPOSITORY, "minerua": _OURS}
"""Variant by the name a run file uses."""
