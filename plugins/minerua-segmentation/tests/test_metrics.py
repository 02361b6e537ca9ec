"""Metrics: held against slow definitions, and against what everybody expects of empty and perfect masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from minerua_segmentation.metrics import METRICS, absolute, dice, iou, s_measure

EVERY = pytest.mark.parametrize("metric", METRICS)


def drawn(seed, shape=(3, 9, 11)):
    generator = np.random.default_rng(seed)
    masks = generator.random(shape) > 0.6
    return (0.6 * masks + 0.4 * generator.random(shape)).astype(np.float32), masks


def slow_structure(x, y):
    """Fan 2017, one loop per sum."""
    height, width = y.shape
    pixels = [(i, j) for i in range(height) for j in range(width)]

    def mean(values):
        return sum(values) / len(values)

    def variance(values, others=None):
        others = values if others is None else others
        a, b = mean(values), mean(others)
        return sum((u - a) * (v - b) for u, v in zip(values, others, strict=True)) / max(len(values) - 1, 1)

    def of_object(values):
        return 2 * mean(values) / (mean(values) ** 2 + 1 + 2 * 0.5 * math.sqrt(variance(values)))

    on, off = [p for p in pixels if y[p]], [p for p in pixels if not y[p]]
    share = len(on) / len(pixels)
    of_objects = share * of_object([x[p] for p in on]) + (1 - share) * of_object([1 - x[p] for p in off])
    row, column = round(mean([i for i, _ in on])) + 1, round(mean([j for _, j in on])) + 1
    of_regions = 0.0
    for upper in (True, False):
        for left in (True, False):
            part = [(i, j) for i, j in pixels if (i < row) == upper and (j < column) == left]
            if part:
                a, b = [x[p] for p in part], [float(y[p]) for p in part]
                above = 4 * mean(a) * mean(b) * variance(a, b)
                below = (mean(a) ** 2 + mean(b) ** 2) * (variance(a) + variance(b))
                of_regions += len(part) / len(pixels) * (above / below if above else float(below == 0))
    return max(0.0, 0.5 * of_objects + 0.5 * of_regions)


@pytest.mark.parametrize("seed", range(5))
def test_the_structure_measure_is_that_of_the_paper(seed):
    found, masks = drawn(seed)
    slow = [slow_structure(x.astype(float), y) for x, y in zip(found, masks, strict=True)]
    np.testing.assert_allclose(s_measure(found, masks), slow, rtol=1e-9)


def test_overlap_and_error_are_what_they_are_by_hand():
    found = np.array([[[0.9, 0.8, 0.2, 0.4]]])
    masks = np.array([[[True, False, True, True]]])
    assert iou(found, masks).tolist() == [0.25]
    assert dice(found, masks).tolist() == [0.4]
    assert absolute(found, masks).tolist() == pytest.approx([1 - (0.1 + 0.8 + 0.8 + 0.6) / 4])
    assert iou(found, masks, cut=0.1).tolist() == [0.75]


@EVERY
def test_outcomes_lie_between_zero_and_one_whatever_is_answered(metric):
    for seed in range(20):
        generator = np.random.default_rng(seed)
        masks = generator.random((4, 8, 8)) > generator.random((4, 1, 1))
        found = generator.random((4, 8, 8)) * generator.choice([0, 1e-9, 1], (4, 1, 1))
        outcomes = METRICS[metric](found, masks)
        assert outcomes.shape == (4,)
        assert ((outcomes >= 0) & (outcomes <= 1)).all()


@EVERY
def test_a_perfect_answer_is_worth_one(metric):
    _, masks = drawn(1)
    np.testing.assert_allclose(METRICS[metric](masks.astype(float), masks), 1, atol=1e-9)


@EVERY
def test_an_empty_mask_is_worth_one_to_who_finds_nothing_and_little_to_who_finds_something(metric):
    empty = np.zeros((1, 6, 6), bool)
    assert METRICS[metric](np.zeros((1, 6, 6)), empty).tolist() == [1.0]
    assert METRICS[metric](np.ones((1, 6, 6)), empty).tolist() == [0.0]


@EVERY
def test_a_full_mask_is_worth_one_to_who_finds_all_of_it(metric):
    assert METRICS[metric](np.ones((1, 6, 6)), np.ones((1, 6, 6), bool)).tolist() == [1.0]


@EVERY
def test_each_image_is_judged_by_itself(metric):
    found, masks = drawn(2)
    alone = [METRICS[metric](found[k : k + 1], masks[k : k + 1])[0] for k in range(len(masks))]
    assert METRICS[metric](found, masks).tolist() == alone
