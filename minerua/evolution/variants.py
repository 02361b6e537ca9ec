"""The three variants of CycleQD by name: what the paper prints, what its public code computes, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """The settings in which the variants differ; everything else is common to all.

    Args:
        crossover_deviation: Standard deviation of the crossover weights around 1.
        crossover_per_tensor: Whether every tensor draws weights of its own, or one pair serves the whole model.
        mutation: A name from `operators.READINGS`, or `expert`, `gaussian` or `none`.
        mutation_strength: w_max of the multipliers; the standard deviation for `gaussian`.
        sampling: A name from `selection.SAMPLERS`.
        merges: Merges that join the experts as seeds; names of merge methods.
    """

    crossover_deviation: float
    crossover_per_tensor: bool
    mutation: str
    mutation_strength: float
    sampling: str
    merges: tuple[str, ...] = ()


VARIANTS: Mapping[str, Variant] = {
    # arXiv 2410.14735, sections 3.1 to 3.3 and appendix A.1.3
    "paper": Variant(0.03, False, "literal", 0.3, "elite"),
    # SakanaAI/CycleQD at 3d14971 with the overrides that its README names for the paper's method: configs/qd/crossover,
    # configs/qd/mutation/svd_uniform_noise.yaml, sampler/elite_sampler.py
    "repo": Variant(0.01, False, "expert", 0.1, "elite-repository"),
    # ours: README.md beside this file says what each setting earned
    "minerua": Variant(0.5, True, "two-sided", 0.3, "elite", ("regmean",)),
}
"""Variant by the name a run file uses."""
