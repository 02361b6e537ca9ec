"""The laws of merge methods: each is broken once on purpose; all five ways of being called are gone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minerua import MergeMethodSpec, MergeParameter
from minerua.conformance import Sample, examine

from .asking import found

TICKS = itertools.count(1)
WEIGHT = MergeParameter("weight", per_model=True, default=1.0)


def mean(vectors, weights):
    return sum(
        (np.float32(w / sum(weights)) * v for w, v in zip(weights, vectors, strict=True)), np.zeros_like(vectors[0])
    )


def by_grams(vectors, weights, grams):
    assert grams is None or [gram.shape for gram in grams] == [(vectors[0].shape[1],) * 2] * len(vectors)
    return mean(vectors, weights)


def by_model(inputs, weights):
    names = list(inputs.activations(inputs.base, 0)) + [name for name, array in inputs.base.items() if array.ndim < 2]
    return {name: mean([expert[name] - inputs.base[name] for expert in inputs.experts], weights) for name in names}


def by_tile(tile):
    return tile.base + mean([expert - tile.base for expert in tile.experts], tile.parameters["weight"])


def by_tensors(tensors, target):
    arrays = [source.array - tensors.base.array for source in tensors.experts]
    target.write(0, tensors.base.array + mean(arrays, tensors.parameters["weight"]))


KEPT = [
    MergeMethodSpec("m", mean),
    MergeMethodSpec("m", by_grams, uses="grams"),
    MergeMethodSpec("m", by_model, uses="model"),
    MergeMethodSpec("m", by_tile, uses="tiles", parameters=(WEIGHT,)),
    MergeMethodSpec("m", by_tensors, uses="tensors", parameters=(WEIGHT,)),
]


@pytest.mark.parametrize("method", KEPT, ids=[method.uses for method in KEPT])
def test_a_method_that_keeps_the_laws_passes_whatever_it_uses(method):
    report = examine(method)
    assert not report.problems, str(report)
    assert len(report.of("passed")) == 10


def spec(merge, **fields):
    return MergeMethodSpec("m", merge, **fields)


def rewrites(tile):
    tile.experts[0][:] = 0
    return tile.base


BROKEN = [
    (
        spec(lambda vectors, weights: mean(vectors, weights).astype(np.float64)),
        "shape-and-dtype",
        "'layer.weight' came back as float64 of shape (6, 5); float32 of shape (6, 5) is wanted",
    ),
    (
        spec(lambda vectors, weights: [1.0]),
        "shape-and-dtype",
        "'layer.weight' came back as list of shape None; float32",
    ),
    (
        spec(lambda tensors, target: None, uses="tensors"),
        "shape-and-dtype",
        "'layer.weight' came back with NaN, infinity, or places that were not written",
    ),
    (
        spec(lambda v, w: mean(v, w) + 1),
        "zeros",
        "'layer.weight' of models that are all zero is not zero: off by up to 1",
    ),
    (spec(lambda v, w: mean(v, w) + 1), "agreement", "of models that are all the same is another one: off by up to 1"),
    (spec(lambda v, w: 2 * mean(v, w)), "one-expert", "of one expert of weight 1 is not the expert's: off by "),
    (spec(lambda v, w: sum(v)), "equal-experts", "of equal experts whose weights sum to 1 is not theirs: off by"),
    (spec(lambda v, w: sum(v) / len(v)), "zero-weight", "changes with an expert of weight 0: off by up to"),
    (spec(lambda v, w: v[0]), "permutation", "depends on the order of the experts: off by up to"),
    (spec(lambda v, w: v[0][:2]), "one-expert", "is not the expert's: off by its shape or type"),
    (
        spec(lambda v, w: mean(v, w) + np.float32(1e-3 * next(TICKS))),
        "repeatable",
        "'layer.weight', merged twice from the same models, has other bits",
    ),
    (spec(rewrites, uses="tiles"), "borrows", "the merge wrote into the weights that it was lent"),
    (spec(lambda v, w: v.nothing), "zeros", "it raised AttributeError: 'list' object has no attribute 'nothing'"),
]


@pytest.mark.parametrize(("method", "check", "text"), BROKEN, ids=[f"{i}-{case[1]}" for i, case in enumerate(BROKEN)])
def test_a_method_that_breaks_a_law_is_told(method, check, text):
    (one, *_) = found(method, check)
    assert text in one


def test_laws_of_weights_are_asked_of_what_has_weights_alone():
    def clip(tile):
        return tile.base + (tile.experts[0] - tile.base).clip(-tile.parameters["limit"], tile.parameters["limit"])

    limit = MergeParameter("limit", default=0.01)
    report = examine(spec(clip, uses="tiles", parameters=(limit,), most=1))
    assert not report.problems
    asked = {verdict.check for verdict in report.verdicts}
    assert not asked & {"one-expert", "equal-experts", "zero-weight", "permutation"}
    assert {"zeros", "agreement", "borrows"} <= asked


def test_parameters_without_a_default_get_a_value_and_the_author_s_come_first():
    values = []

    def merge(tile):
        values.append((tile.parameters["t"], tile.parameters["share"]))
        return tile.base

    parameters = (MergeParameter("t", most=0.25), MergeParameter("share", per_model=True, default=0.1))
    method = spec(merge, uses="tiles", parameters=parameters, most=1)
    examine(method, only="*/zeros")
    examine(method, only="*/zeros", samples={"m": Sample(settings={"t": 0.125, "share": 0.3})})
    assert values[0] == (0.25, (0.1,))
    assert values[-1] == (0.125, (0.3,))
