"""minerua's own merge methods, which the registry finds through minerua's own entry point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from minerua.hookspecs import hookimpl
from minerua.merge.methods import averages, consensus, elementwise, sparse, spectral
from minerua.merge.methods.layer_match import match_layers
from minerua.merge.methods.means import mean, regmean
from minerua.values import MergeMethodSpec, MergeParameter, MergeTensors


@hookimpl
def minerua_merge_methods() -> list[MergeMethodSpec]:
    """Provides minerua's own merge methods: those of mergekit 0.1.5 by their names there, and more."""
    return [
        MergeMethodSpec("mean", mean),
        MergeMethodSpec("regmean", regmean, uses="grams"),
        MergeMethodSpec("layer-match", match_layers, uses="model"),
        *_averages(),
        *_sparse(),
        *_elementwise(),
        *consensus.METHODS,
        *spectral.METHODS,
    ]


# ── the parameters, as recipes write them ────────────────────────────────────────────────────────────────────────────

WEIGHT = MergeParameter("weight", per_model=True)
DENSITY = MergeParameter("density", per_model=True, default=1.0, fewest=0.0, most=1.0)
GAMMA = MergeParameter("gamma", per_model=True, default=0.01, fewest=0.0, most=1.0)
RANK_EPSILON = MergeParameter("epsilon", per_model=True, default=0.15, fewest=0.0, most=0.5)
CHANGE_EPSILON = MergeParameter("epsilon", default=1e-5, fewest=0.0)
LAMBDA = MergeParameter("lambda", default=1.0)
INT8_MASK = MergeParameter("int8_mask", kind="flag", default=False)
"""Taken because recipes have it; it never changed a result, and here there is no mask to store."""


def _flag(name: str, default: bool) -> MergeParameter:
    return MergeParameter(name, kind="flag", default=default)


def _averages() -> list[MergeMethodSpec]:
    place = MergeParameter("t")
    linear = (WEIGHT, _flag("normalize", True))
    nuslerp = (WEIGHT, _flag("nuslerp_row_wise", False), _flag("nuslerp_flatten", True))
    multislerp = (WEIGHT, _flag("normalize_weights", True), MergeParameter("eps", default=1e-8, fewest=0.0))
    karcher = (MergeParameter("max_iter", default=10, fewest=0), MergeParameter("tol", default=1e-5, fewest=0.0))
    scale = MergeParameter("scale", per_model=True, default=1.0)
    return [
        _tensors("passthrough", averages.passthrough, (scale,), base="ignored", most=1),
        _tensors("linear", averages.linear, linear, base="ignored", check=averages.weights_fault),
        _tensors("slerp", averages.slerp, (place,), most=1),
        _tensors("nuslerp", averages.nuslerp, nuslerp, base="optional", fewest=2, most=2),
        _tensors("multislerp", averages.multislerp, multislerp, base="optional", check=averages.weights_fault),
        _tensors("karcher", averages.karcher, karcher, base="ignored", check=averages.steps_fault),
        _tensors("model-stock", averages.model_stock, (_flag("filter_wise", False),), fewest=2),
    ]


def _sparse() -> list[MergeMethodSpec]:
    return [
        _thinned("task-arithmetic", sparse.task_arithmetic),
        _thinned("ties", sparse.ties, normalize=True, prepare=sparse.prepare_ties),
        _thinned("dare-linear", sparse.dare_linear, rescale=True),
        _thinned("dare-ties", sparse.dare_ties, rescale=True),
        _thinned("breadcrumbs", sparse.breadcrumbs, GAMMA),
        _thinned("breadcrumbs-ties", sparse.breadcrumbs_ties, GAMMA),
        _thinned("della-linear", sparse.della_linear, RANK_EPSILON, rescale=True, check=sparse.ranks_fault),
        _thinned("della", sparse.della, RANK_EPSILON, normalize=True, rescale=True, check=sparse.ranks_fault),
    ]


def _elementwise() -> list[MergeMethodSpec]:
    distance = MergeParameter("t", fewest=0.0)
    extra = (MergeParameter("r", default=0.1), MergeParameter("alpha", default=0.2, fewest=0.0))
    part = MergeParameter("select_topk", default=1.0, fewest=0.0, most=1.0)
    return [
        MergeMethodSpec("nearswap", elementwise.nearswap, uses="tiles", parameters=(distance,), most=1),
        MergeMethodSpec("ram", elementwise.ram, uses="tiles", parameters=(CHANGE_EPSILON,), fewest=0),
        _tensors("ramplus-tl", elementwise.ramplus_tl, (CHANGE_EPSILON, *extra), fewest=0),
        _tensors("sce", elementwise.sce, (part, INT8_MASK), fewest=0),
        _tensors("arcee-fusion", elementwise.arcee_fusion, (), most=1),
    ]


# ── how a spec is put together ───────────────────────────────────────────────────────────────────────────────────────


def _tensors(
    name: str,
    merge: Callable[..., object],
    parameters: tuple[MergeParameter, ...],
    *,
    base: Literal["required", "optional", "ignored"] = "required",
    fewest: int = 1,
    most: int | None = None,
    prepare: Callable[[Sequence[MergeTensors]], object] | None = None,
    check: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> MergeMethodSpec:
    return MergeMethodSpec(
        name,
        merge,
        uses="tensors",
        parameters=parameters,
        base=base,
        fewest=fewest,
        most=most,
        prepare=prepare,
        check=check,
    )


def _thinned(
    name: str,
    merge: Callable[..., object],
    *own: MergeParameter,
    normalize: bool = False,
    rescale: bool = False,
    prepare: Callable[[Sequence[MergeTensors]], object] | None = None,
    check: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> MergeMethodSpec:
    """Returns the spec of a method that thins task vectors; all take the same parameters, and some of their own."""
    flags = (_flag("normalize", normalize), _flag("rescale", rescale), INT8_MASK)
    parameters = (WEIGHT, DENSITY, *own, LAMBDA, *flags)
    return _tensors(name, merge, parameters, fewest=0, prepare=prepare, check=check)
