"""Losses: finite, right by finite differences, the same in parts as whole, and torch's own where it has a number."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from minerua.conformance import losses as conformance
from minerua.learning.losses import losses
from minerua.learning.settings import with_numbers

SPECS = {spec.name: spec for spec in losses()}
WEIGHTS = [0.3, 1.7, 0.0, 2.2]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape, seed=1):
    return torch.randint(4, shape, generator=torch.Generator().manual_seed(seed))


def holes(*shape):
    targets = classes(*shape)
    targets.view(-1)[::3] = -100
    targets[:2] = -100  # the first part has nothing that counts
    return targets


def yes_or_no(*shape):
    return (drawn(*shape, seed=2) > 0).long()


CASES = [
    ("cross-entropy", drawn(21, 4), classes(21), {}),
    ("cross-entropy", drawn(21, 4), holes(21), {"label_smoothing": 0.1}),
    ("cross-entropy", drawn(21, 4), holes(21), {"class_weights": WEIGHTS}),
    (
        "cross-entropy",
        drawn(21, 4),
        classes(21),
        {"class_weights": [0.3, 1.7, 0.5, 2.2], "label_smoothing": 0.2, "ignore_index": 1},
    ),
    ("cross-entropy", drawn(21, 4, 5), holes(21, 5), {"class_weights": WEIGHTS}),
    ("cross-entropy", drawn(21, 5, 4), holes(21, 5), {"class_axis": -1}),
    ("cross-entropy", drawn(21, 5, 3, 4), holes(21, 5, 3), {"class_axis": 3, "class_weights": WEIGHTS}),
    ("cross-entropy", drawn(21, 4), drawn(21, 4, seed=3).softmax(1), {"class_weights": WEIGHTS}),
    ("cross-entropy", drawn(21, 5, 4), drawn(21, 5, 4, seed=3).softmax(-1), {"class_axis": -1}),
    ("nll", drawn(21, 4).log_softmax(1), holes(21), {"class_weights": WEIGHTS}),
    ("nll", drawn(21, 4).log_softmax(1), classes(21), {}),
    ("kl-divergence", drawn(21, 4), drawn(21, 4, seed=3).softmax(1), {}),
    (
        "kl-divergence",
        drawn(21, 3, 4),
        drawn(21, 3, 4, seed=3).log_softmax(-1),
        {"log_targets": True, "class_axis": -1},
    ),
    ("binary-cross-entropy", drawn(21, 3), yes_or_no(21, 3), {"positive_weight": 3.0}),
    ("binary-cross-entropy", drawn(21, 1), yes_or_no(21), {}),
    ("mse", drawn(21, 3), drawn(21, 3, seed=3), {}),
    ("mse", drawn(21, 1), classes(21), {}),
    ("l1", drawn(21, 3), drawn(21, 3, seed=3), {}),
    ("huber", drawn(21, 3), drawn(21, 3, seed=3), {"delta": 0.5}),
    ("smooth-l1", drawn(21, 3), drawn(21, 3, seed=3), {"beta": 0.5}),
    ("cosine", drawn(21, 3), drawn(21, 3, seed=3), {}),
    ("cosine", drawn(21, 2, 3), drawn(21, 2, 3, seed=3), {}),
    ("hinge", drawn(21), yes_or_no(21), {}),
    ("hinge", drawn(21, 2), yes_or_no(21, 2).mul(2).sub(1), {"squared": True, "margin": 2.0}),
    ("multi-margin", drawn(21, 4), classes(21), {"class_weights": WEIGHTS}),
    ("multi-margin", drawn(21, 4), classes(21), {"p": 2, "margin": 0.5}),
]
EVERY = pytest.mark.parametrize(
    ("name", "predictions", "targets", "settings"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)


def test_every_loss_is_among_the_cases():
    assert {case[0] for case in CASES} == set(SPECS)


@EVERY
def test_it_is_a_finite_number_that_can_be_differentiated(name, predictions, targets, settings):
    assert conformance.is_a_loss(SPECS[name], predictions, targets, settings) == []


@EVERY
def test_its_gradient_is_that_of_finite_differences(name, predictions, targets, settings):
    assert conformance.has_the_right_gradient(SPECS[name], predictions, targets, settings) == []


@EVERY
@pytest.mark.parametrize("parts", [8, 21])
def test_a_batch_in_parts_is_the_whole_batch(name, predictions, targets, settings, parts):
    assert conformance.adds_up(SPECS[name], predictions, targets, settings, parts=parts) == []


@EVERY
def test_predictions_of_sixteen_bits_are_widened(name, predictions, targets, settings):
    narrow = predictions.bfloat16()
    loss = SPECS[name].call(narrow, targets, **settings)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, SPECS[name].call(narrow.float(), targets, **settings))


@EVERY
def test_an_unknown_setting_is_named_with_the_nearest_one(name, predictions, targets, settings):
    with pytest.raises(TypeError) as error:
        SPECS[name].call(predictions, targets, **settings, klass_weights=[1.0])
    assert f"loss {name!r} cannot be called with these settings" in str(error.value)
    assert "no setting is named 'klass_weights'" in str(error.value)
    with pytest.raises(TypeError, match="no setting is named 'klass_weights'"):
        SPECS[name].count(targets, **settings, klass_weights=[1.0])


# ── against torch ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(
    "targets", [classes(21), holes(21), drawn(21, 4, seed=3).softmax(1)], ids=["all", "holes", "p"]
)
def test_cross_entropy_is_torchs_mean(targets, weights, smoothing):
    ours = SPECS["cross-entropy"].call(drawn(21, 4), targets, class_weights=weights, label_smoothing=smoothing)
    there = None if weights is None else torch.tensor(weights)
    theirs = functional.cross_entropy(drawn(21, 4), targets, there, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_denominator_is_what_counts():
    targets = torch.tensor([0, 1, -100, 3])
    count = SPECS["cross-entropy"].count
    assert count(targets) == 3
    assert count(targets, ignore_index=3) == 3
    assert count(targets, class_weights=WEIGHTS) == pytest.approx(0.3 + 1.7 + 2.2, abs=1e-12)
    assert count(targets, class_weights=torch.tensor(WEIGHTS)) == pytest.approx(4.2, abs=1e-6)
    assert count(torch.full((2, 3, 4), 0.25), class_axis=-1, class_weights=WEIGHTS) == 6
    assert SPECS["cosine"].count(torch.zeros(5, 2, 3)) == 10
    assert SPECS["mse"].count(torch.zeros(5, 2)) == 10


@pytest.mark.parametrize("name", ["cross-entropy", "nll"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_batch_in_which_nothing_counts_has_the_loss_zero_and_no_gradient(name, weights):
    predictions = drawn(3, 4).requires_grad_()
    targets = torch.full((3,), -100)
    loss = SPECS[name].call(predictions, targets, class_weights=weights)
    loss.backward()
    assert loss.item() == 0.0
    assert not predictions.grad.any()
    assert SPECS[name].count(targets, class_weights=weights) == 0


def test_a_class_that_weighs_nothing_gives_zero_and_not_nan():
    predictions, targets = drawn(3, 4), torch.tensor([2, 2, 2])
    assert float(SPECS["cross-entropy"].call(predictions, targets, class_weights=WEIGHTS)) == 0.0
    smoothed = SPECS["cross-entropy"].call(predictions, targets, class_weights=WEIGHTS, label_smoothing=0.1)
    assert math.isfinite(float(smoothed))


@pytest.mark.parametrize(
    ("name", "theirs", "settings", "ours"),
    [
        ("mse", functional.mse_loss, {}, {}),
        ("l1", functional.l1_loss, {}, {}),
        ("huber", functional.huber_loss, {"delta": 0.3}, {"delta": 0.3}),
        ("smooth-l1", functional.smooth_l1_loss, {"beta": 0.3}, {"beta": 0.3}),
    ],
)
def test_a_loss_of_numbers_is_torchs_own(name, theirs, settings, ours):
    a, b = drawn(6, 3), drawn(6, 3, seed=3)
    assert torch.equal(SPECS[name].call(a, b, **ours), theirs(a, b, **settings))


def test_the_divergence_of_a_distribution_from_itself_is_zero_for_logits_and_log_probabilities():
    logits = drawn(6, 4)
    for predictions in (logits, logits.log_softmax(1)):
        assert float(SPECS["kl-divergence"].call(predictions, logits.softmax(1))) == pytest.approx(0, abs=1e-6)


def test_hinge_takes_zero_false_and_minus_one_for_no():
    scores, wanted = drawn(6), yes_or_no(6)
    values = {float(SPECS["hinge"].call(scores, kind)) for kind in (wanted, wanted.bool(), wanted * 2 - 1)}
    assert len(values) == 1
    expected = sum(max(0.0, 1 - float(s) * (1 if w else -1)) for s, w in zip(scores, wanted, strict=True)) / 6
    assert values.pop() == pytest.approx(expected, rel=1e-6)


def test_opposite_vectors_are_two_apart_and_parallel_ones_nothing():
    a = drawn(5, 3)
    assert float(SPECS["cosine"].call(a, 3 * a)) == pytest.approx(0, abs=1e-6)
    assert float(SPECS["cosine"].call(a, -a)) == pytest.approx(2, abs=1e-6)


# ── shapes, types, settings ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["mse", "l1", "huber", "smooth-l1", "cosine", "hinge", "binary-cross-entropy"])
def test_shapes_that_torch_would_stretch_are_refused(name):
    with pytest.raises(
        ValueError, match=r"predictions have the shape \[4, 3\], targets \[3\]; this loss compares them"
    ):
        SPECS[name].call(drawn(4, 3), torch.zeros(3))


def test_language_models_are_told_where_their_classes_lie():
    with pytest.raises(ValueError, match="the classes seem to lie last: set class_axis to -1"):
        SPECS["cross-entropy"].call(drawn(2, 5, 4), classes(2, 5))


def test_targets_of_another_shape_are_refused_with_the_shape_that_is_needed():
    with pytest.raises(
        ValueError, match=r"with the classes along axis 1, so that targets need the shape \[4\]; they have"
    ):
        SPECS["cross-entropy"].call(drawn(4, 3), classes(5))
    with pytest.raises(ValueError, match=r"class_axis is 2, but predictions have the shape \[4, 3\]"):
        SPECS["cross-entropy"].call(drawn(4, 3), classes(4), class_axis=2)


def test_targets_may_have_other_types_and_a_last_axis_of_one():
    predictions = drawn(5, 4)
    plain = SPECS["cross-entropy"].call(predictions, classes(5))
    assert torch.equal(SPECS["cross-entropy"].call(predictions, classes(5).int()), plain)
    assert torch.equal(SPECS["cross-entropy"].call(predictions, classes(5).unsqueeze(1)), plain)
    assert SPECS["mse"].call(drawn(5), drawn(5, seed=3).double()).dtype == torch.float32


def test_a_label_outside_the_range_is_refused():
    with pytest.raises(IndexError, match="out of bounds"):
        SPECS["cross-entropy"].call(drawn(2, 3), torch.tensor([0, 3]))


def test_numbers_that_yaml_takes_for_texts_are_read():
    a, b = drawn(6, 3), drawn(6, 3, seed=3)
    assert torch.equal(SPECS["huber"].call(a, b, delta="5e-1"), SPECS["huber"].call(a, b, delta=0.5))
    assert with_numbers(["1e-8", "one", {"a": 1}]) == (1e-8, "one", {"a": 1})
    assert math.isclose(with_numbers("-2.5E+3"), -2500.0)


def test_class_weights_that_an_evaluation_made_first_can_be_learned_with():
    weights = [0.25, 0.5, 0.125]
    with torch.inference_mode():
        SPECS["cross-entropy"].call(drawn(2, 3), torch.tensor([0, 1]), class_weights=weights)
    predictions = drawn(2, 3).requires_grad_()
    SPECS["cross-entropy"].call(predictions, torch.tensor([0, 1]), class_weights=weights).backward()
    assert predictions.grad is not None
