"""Merges of thinned task vectors: TIES, DARE, Model Breadcrumbs, DELLA, and task arithmetic, which thins nothing.

Each says which elements of a task vector it keeps (a `Mask` per expert); adding them up is the same for all:

    y = b + λ · Σ w_k r_k d_k ÷ divisor

with d_k the kept part of δ_k = x_k − b, and r_k = Σ|δ_k| ÷ Σ|d_k| where `rescale` is set, else 1. With `normalize` the
divisor is Σ w_k (1 where that is zero). Methods with an election keep, element by element, only the experts whose
w_k r_k d_k has the sign of their sum (+ for zero), and with `normalize` divide by the sum of their weights.

With `semantics: paper` the experts elect without weights and are divided by how many agree, random methods divide by
the probability of keeping instead of by the ratio of L1 norms, and TIES keeps the largest of the whole model, not of a
tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minerua.errors import ConfigError
from minerua.merge.methods import pieces
from minerua.values import MergeTensors

if TYPE_CHECKING:
    import numpy as np

    from minerua.kernels.sources import Mask, Target, Threshold

NO_DIVISOR = 1e-8
"""Sums of weights below this are not divided by."""

NO_NORM = 1e-7
"""L1 norms below this are not rescaled."""

LARGEST_DRAWN = 1 << 28
"""Elements of a tensor up to which a random mask is drawn once and kept, a bit each, and not drawn in both passes."""

# ── the methods ──────────────────────────────────────────────────────────────────────────────────────────────────────


def task_arithmetic(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes b + λ · Σ w_k δ_k, with `normalize` divided by Σ w_k.

    Args:
        tensors: K experts and a base; parameters `weight` (per model), `normalize` and `lambda`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.combine` returns them.

    Source: Ilharco 2023, Editing models with task arithmetic, arXiv 2212.04089.
    """
    from minerua.kernels.sources import Mask

    return _add_up(tensors, target, [Mask()] * len(tensors.experts))


def ties(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Keeps the largest `density` of each task vector, and then the experts that agree with the elected sign.

    That many, at least one, of each tensor's elements are kept; with `semantics: paper` of the whole model's, by the
    thresholds that `prepare_ties` found. Of equal magnitudes the first are kept.

    Args:
        tensors: K experts and a base; parameters `weight`, `density` (per model), `normalize`, `rescale`, `lambda`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.merge_masked` returns them.

    Source: Yadav 2023, TIES-merging, arXiv 2306.01708, section 4.
    """
    return _add_up(tensors, target, _largest_masks(tensors), elect=True)


def dare_linear(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Keeps each element of a task vector with probability `density`.

    The random numbers depend on the seed, the expert's place, the tensor's number and the element, and on nothing else.

    Args:
        tensors: K experts and a base; parameters `weight`, `density` (per model), `normalize`, `rescale`, `lambda`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.merge_masked` returns them.

    Source: Yu 2024, Language models are super Mario, arXiv 2311.03099, equation 1.
    """
    return _add_up(tensors, target, _random_masks(tensors))


def dare_ties(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Keeps elements as `dare_linear` does, and then the experts that agree with the elected sign.

    Args:
        tensors: As `dare_linear` takes them.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.merge_masked` returns them.
    """
    return _add_up(tensors, target, _random_masks(tensors), elect=True)


def breadcrumbs(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Keeps `density` of each task vector, without its largest `gamma`.

    Where the two leave too few elements, fewer of the largest are dropped. A density of 1 keeps all.

    Args:
        tensors: K experts and a base; parameters `weight`, `density`, `gamma` (per model), `normalize`, `rescale`,
            `lambda`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.merge_masked` returns them.

    Source: Davari 2023, Model breadcrumbs, arXiv 2312.06795.
    """
    return _add_up(tensors, target, _middle_masks(tensors))


def breadcrumbs_ties(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Keeps elements as `breadcrumbs` does, and then the experts that agree with the elected sign.

    Args:
        tensors: As `breadcrumbs` takes them.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.merge_masked` returns them.
    """
    return _add_up(tensors, target, _middle_masks(tensors), elect=True)


def della_linear(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Keeps elements at random, the larger of a row with a greater probability.

    It runs with the rank in the row (the last axis; a vector is one row) from `density` − `epsilon` for the smallest to
    `density` + `epsilon` for the largest. A density of 1 keeps all, one of 0 nothing.

    Args:
        tensors: K experts and a base; parameters `weight`, `density`, `epsilon` (per model), `normalize`, `rescale`,
            `lambda`.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.merge_masked` returns them.

    Raises:
        ConfigError: `density` ± `epsilon` leaves (0, 1).

    Source: Deep 2024, DELLA-merging, arXiv 2406.11617, section 3.1.
    """
    return _add_up(tensors, target, _ranked_masks(tensors))


def della(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Keeps elements as `della_linear` does, and then the experts that agree with the elected sign.

    Args:
        tensors: As `della_linear` takes them.
        target: Where it goes.

    Returns:
        Counts of numbers that are not finite, as `kernels.merge_masked` returns them.

    Raises:
        ConfigError: `density` ± `epsilon` leaves (0, 1).
    """
    return _add_up(tensors, target, _ranked_masks(tensors), elect=True)


# ── which elements are kept ──────────────────────────────────────────────────────────────────────────────────────────


def _kept(density: float, size: int) -> int:
    """Returns how many elements TIES keeps: none for a density of 0, otherwise at least one."""
    return min(max(int(density * size), 1), size) if density > 0 else 0


def _largest_masks(tensors: MergeTensors) -> list[Mask]:
    from minerua.kernels import passes
    from minerua.kernels.sources import Mask

    if tensors.semantics == "paper" and tensors.experts:
        return [Mask(top=top) for top in tensors.prepared[tensors.name]]
    size = pieces.size_of(tensors.shape)
    counts = [_kept(density, size) for density in tensors.parameters["density"]]
    if all(count == size for count in counts):
        return [Mask()] * len(counts)
    return [Mask(top=top) for top in passes.select_largest(tensors.experts, counts, base=tensors.base)]


def _random_masks(tensors: MergeTensors) -> list[Mask]:
    from minerua.kernels.sources import Mask

    return [
        _seeded(Mask(keep=density), tensors, k) if density < 1 else Mask()
        for k, density in enumerate(tensors.parameters["density"])
    ]


def _ranked_masks(tensors: MergeTensors) -> list[Mask]:
    from minerua.kernels.sources import NONE_KEPT, Mask

    fault = ranks_fault(tensors.parameters)
    if fault:
        raise ConfigError(f"tensor {tensors.name!r} cannot be thinned", [fault])
    masks, columns = [], pieces.row_of(tensors.shape)
    for k, (density, epsilon) in enumerate(_per_model(tensors, "density", "epsilon")):
        mask = _seeded(Mask(keep=density, spread=epsilon, columns=columns), tensors, k)
        masks.append(Mask() if density >= 1 else Mask(top=NONE_KEPT) if density <= 0 else mask)
    return masks


def _seeded(mask: Mask, tensors: MergeTensors, model: int) -> Mask:
    inverse = tensors.semantics == "paper" and bool(tensors.parameters["rescale"])
    return mask._replace(seed=tensors.seed, tensor=tensors.number, model=model, inverse=inverse)


def _middle_masks(tensors: MergeTensors) -> list[Mask]:
    """Finds both ends of what is kept in one go: every expert stands in the list twice."""
    from minerua.kernels import passes
    from minerua.kernels.sources import Mask

    size = pieces.size_of(tensors.shape)
    dropped = [_outliers(density, gamma, size) for density, gamma in _per_model(tensors, "density", "gamma")]
    kept = [int(min(density, 1) * size) for density in tensors.parameters["density"]]
    if all(count == size for count in kept):
        return [Mask()] * len(kept)
    both = [*tensors.experts, *tensors.experts]
    ends = [drop + keep for drop, keep in zip(dropped, kept, strict=True)]
    found = passes.select_largest(both, [*ends, *dropped], base=tensors.base)
    return [Mask(top=top, but=but) for top, but in zip(found[: len(kept)], found[len(kept) :], strict=True)]


def _outliers(density: float, gamma: float, size: int) -> int:
    """Returns how many of the largest elements are dropped."""
    if density >= 1:
        return 0
    return min(int(gamma * size), size - int(density * size))


def _per_model(tensors: MergeTensors, one: str, other: str) -> Iterable[tuple[float, float]]:
    return zip(tensors.parameters[one], tensors.parameters[other], strict=True)


def ranks_fault(parameters: Mapping[str, Any]) -> str | None:
    """Says which densities and epsilons of DELLA give no probabilities; `None` if all do."""
    wrong = [
        f"density {density} ± epsilon {epsilon}"
        for density, epsilon in zip(parameters["density"], parameters["epsilon"], strict=True)
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1)
    ]
    return f"{' and '.join(wrong)} is not between 0 and 1; choose a smaller epsilon" if wrong else None


# ── adding up what is kept ───────────────────────────────────────────────────────────────────────────────────────────


def _add_up(tensors: MergeTensors, target: Target, masks: Sequence[Mask], *, elect: bool = False) -> np.ndarray:
    from minerua.kernels import passes

    if not masks:
        return base_alone(tensors, target)
    parameters, weights = tensors.parameters, tensors.parameters["weight"]
    if parameters["rescale"]:
        masks = [_drawn_once(mask, tensors) for mask in masks]
    ratios = _ratios(tensors, masks) if parameters["rescale"] else [1.0] * len(masks)
    factors = [weight * ratio for weight, ratio in zip(weights, ratios, strict=True)]
    scale = parameters["lambda"]
    votes: Sequence[float] | None = None
    shares: Sequence[float] | None = None
    if elect:
        paper = tensors.semantics == "paper"
        votes = ratios if paper else factors
        shares = ([1.0] * len(masks) if paper else weights) if parameters["normalize"] else None
    elif parameters["normalize"] and abs(sum(weights)) >= NO_DIVISOR:
        scale /= sum(weights)
    if not elect and not any(_thins(mask) for mask in masks):
        return _combine(tensors, [scale * factor for factor in factors], target)
    return passes.merge_masked(
        tensors.experts,
        masks,
        base=tensors.base,
        factors=factors,
        votes=votes,
        shares=shares,
        scale=scale,
        target=target,
    )


def _combine(tensors: MergeTensors, coefficients: Sequence[float], target: Target) -> np.ndarray:
    import numpy as np

    from minerua.kernels import passes

    return passes.combine(tensors.experts, np.asarray(coefficients, np.float32), base=tensors.base, target=target)


def base_alone(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Writes the base, for recipes that name no expert.

    Args:
        tensors: No expert, and a base.
        target: Where it goes.

    Returns:
        Shape (2,), int64: how many numbers of the base and of the result are not finite.
    """
    import numpy as np

    from minerua.kernels import passes

    alone: Any = tensors.base
    return passes.combine([alone], np.ones(1, np.float32), base=None, target=target)[[0, 2]]


def _ratios(tensors: MergeTensors, masks: Sequence[Mask]) -> list[float]:
    """Returns Σ|δ_k| ÷ Σ|d_k| for every expert; 1 where nothing is dropped, or the mask divides by itself."""
    from minerua.kernels import passes

    thinned = [k for k, mask in enumerate(masks) if _thins(mask) and not mask.inverse]
    if not thinned:
        return [1.0] * len(masks)
    found = passes.masked_sums(
        [tensors.experts[k] for k in thinned], [masks[k] for k in thinned], base=tensors.base
    )  # (len(thinned), 2)
    ratios = [1.0] * len(masks)
    for k, (whole, kept) in zip(thinned, found.tolist(), strict=True):
        ratios[k] = 1.0 if whole < NO_NORM or kept < NO_NORM else whole / kept
    return ratios


def _drawn_once(mask: Mask, tensors: MergeTensors) -> Mask:
    """Draws a mask that two passes will look at, where its bits take little memory."""
    from minerua.kernels import passes

    size = pieces.size_of(tensors.shape)
    if mask.keep is None or mask.spread != 0 or mask.inverse or size > LARGEST_DRAWN:
        return mask
    return mask._replace(drawn=passes.draw(mask, size))


def _thins(mask: Mask) -> bool:
    return mask.top is not None or mask.but is not None or mask.keep is not None


# ── thresholds over the whole model ──────────────────────────────────────────────────────────────────────────────────


def prepare_ties(all_tensors: Sequence[MergeTensors]) -> dict[str, list[Threshold]] | None:
    """Finds, for `semantics: paper`, the thresholds that keep the largest `density` of each expert's whole task vector.

    All tensors are gone over twice, and once more where equal magnitudes at a threshold have to be shared out: to the
    first tensors first.

    Args:
        all_tensors: Every tensor that is merged.

    Returns:
        Tensor name → one threshold per expert; `None` for other semantics.

    Raises:
        ConfigError: A density is not the same for all tensors.
    """
    if not all_tensors or all_tensors[0].semantics != "paper":
        return None
    densities = _densities(all_tensors)
    size = sum(pieces.size_of(tensors.shape) for tensors in all_tensors)
    counts = [_kept(density, size) for density in densities]
    prefixes, left = _find(_histogram(all_tensors, None), counts)
    lower, equal = _find(_histogram(all_tensors, prefixes), left)
    keys = [prefix << 16 | low for prefix, low in zip(prefixes, lower, strict=True)]
    return _share_out(all_tensors, keys, [own if count else 0 for own, count in zip(equal, counts, strict=True)])


def _densities(all_tensors: Sequence[MergeTensors]) -> Sequence[float]:
    found = list(dict.fromkeys(tuple(tensors.parameters["density"]) for tensors in all_tensors))
    if len(found) > 1:
        raise ConfigError(
            "with `semantics: paper` TIES keeps a part of the whole model, but the densities differ between tensors: "
            f"{list(found[0])} and {list(found[1])}; give each model one density, or use `semantics: mergekit`"
        )
    return found[0]


def _histogram(all_tensors: Sequence[MergeTensors], prefixes: Sequence[int] | None) -> np.ndarray:
    from minerua.kernels import passes

    first, *others = (passes.histogram(t.experts, base=t.base, prefixes=prefixes) for t in all_tensors)
    return sum(others, start=first)


def _find(histograms: np.ndarray, counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Returns per expert the bin in which its threshold lies, and how many of the numbers there are kept."""
    found = [pieces.find_bin(row, max(count, 1)) for row, count in zip(histograms, counts, strict=True)]
    return [place for place, _ in found], [needed for _, needed in found]


def _share_out(
    all_tensors: Sequence[MergeTensors], keys: Sequence[int], equal: Sequence[int]
) -> dict[str, list[Threshold]]:
    from minerua.kernels import passes
    from minerua.kernels.sources import Threshold

    left, thresholds = list(equal), {}
    for tensors in all_tensors:
        present = passes.count_equal(tensors.experts, base=tensors.base, keys=keys).tolist()
        taken = [min(count, rest) for count, rest in zip(present, left, strict=True)]
        left = [rest - own for rest, own in zip(left, taken, strict=True)]
        thresholds[tensors.name] = [Threshold(key, own) for key, own in zip(keys, taken, strict=True)]
    return thresholds
