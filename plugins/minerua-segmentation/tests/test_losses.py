"""Losses for masks: the formulas, their gradients, batches in parts, and what is refused."""

from __future__ import annotations

import math

import minerua_segmentation as plugin
import pytest
import torch
from minerua_segmentation.losses import _signed_distance

SPECS = {spec.name: spec for spec in plugin.minerua_losses()}
CASES = [
    ("dice", {}),
    ("dice", {"smooth": 0.25}),
    ("dice-cross-entropy", {}),
    ("dice-cross-entropy", {"share": 0.9}),
    ("boundary", {}),
    ("boundary", {"share": 1.0}),
]
EVERY = pytest.mark.parametrize(("name", "settings"), CASES)


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def masks(*shape, seed=1):
    return (logits(*shape, seed=seed) > 0).double()


def test_dice_is_its_formula():
    x, y = logits(2, 3, 4), masks(2, 3, 4)
    total = 0.0
    for one, mask in zip(x.sigmoid().flatten(1).tolist(), y.flatten(1).tolist(), strict=True):
        both = sum(p * t for p, t in zip(one, mask, strict=True))
        total += 1 - (2 * both + 0.5) / (sum(one) + sum(mask) + 0.5)
    assert float(SPECS["dice"].call(x, y, smooth=0.5)) == pytest.approx(total / 2, rel=1e-12)


def test_dice_with_cross_entropy_is_between_both():
    x, y = logits(2, 3, 4), masks(2, 3, 4)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, y)
    call = SPECS["dice-cross-entropy"].call
    torch.testing.assert_close(call(x, y, share=0), entropy)
    torch.testing.assert_close(call(x, y, share=1), SPECS["dice"].call(x, y))
    torch.testing.assert_close(call(x, y), (entropy + SPECS["dice"].call(x, y)) / 2)


def test_the_signed_distance_is_that_to_the_nearest_pixel_of_the_other_kind():
    inside = masks(3, 7, 5).bool()
    inside[0], inside[1] = False, True
    found = _signed_distance(inside)
    assert not found[:2].any()
    pixels = [(i, j) for i in range(7) for j in range(5)]
    for p in pixels:
        others = [q for q in pixels if inside[2][q] != inside[2][p]]
        far = min(math.dist(p, q) for q in others) / 7
        assert float(found[2][p]) == pytest.approx(-far if inside[2][p] else far, rel=1e-6)


def test_the_boundary_loss_is_the_mean_of_probability_times_distance():
    x, y = logits(2, 6, 6), masks(2, 6, 6)
    wanted = (x.sigmoid() * _signed_distance(y > 0.5)).mean()
    torch.testing.assert_close(SPECS["boundary"].call(x, y, share=1.0), wanted)
    torch.testing.assert_close(SPECS["boundary"].call(x, y, share=0.0), SPECS["dice"].call(x, y))


@EVERY
def test_its_gradient_is_that_of_finite_differences(name, settings):
    y = masks(2, 4, 3)
    assert torch.autograd.gradcheck(lambda x: SPECS[name].call(x, y, **settings), (logits(2, 4, 3).requires_grad_(),))


@EVERY
def test_a_batch_in_parts_is_the_whole_batch(name, settings):
    x, y, spec = logits(5, 4, 4), masks(5, 4, 4), SPECS[name]
    whole, parts = x.clone().requires_grad_(), x.clone().requires_grad_()
    spec.call(whole, y, **settings).backward()
    for a, b in zip(parts.split(2), y.split(2), strict=True):
        (spec.call(a, b, **settings) * spec.count(b, **settings) / spec.count(y, **settings)).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


@EVERY
def test_it_is_least_for_the_mask_itself(name, settings):
    y = masks(3, 5, 5)
    right, wrong = (SPECS[name].call(sign * 30 * (2 * y - 1), y, **settings) for sign in (1, -1))
    assert right < SPECS[name].call(logits(3, 5, 5), y, **settings) < wrong


@EVERY
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_empty_and_full_masks_and_certain_answers_stay_finite(name, settings, fill):
    x = (logits(2, 4, 4).float() * 1e4).requires_grad_()
    loss = SPECS[name].call(x, torch.full((2, 4, 4), fill), **settings)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_logits_of_sixteen_bits_are_widened():
    assert SPECS["dice"].call(logits(1, 4, 4).bfloat16(), masks(1, 4, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "x", "y", "settings", "text"),
    [
        ("dice", logits(2, 3, 1), masks(2, 3), {}, r"\[2, 3, 1\], targets \[2, 3\]; a loss for masks takes one logit"),
        ("boundary", logits(1, 2, 2), 2 * torch.ones(1, 2, 2), {}, "targets lie from 2 to 2; masks have values from 0"),
        ("dice", logits(1, 2, 2), masks(1, 2, 2), {"smooth": -1}, "smooth is -1; the Dice loss adds pixels, from 0"),
        ("boundary", logits(1, 2, 2), masks(1, 2, 2), {"share": 2}, "share is 2; a share lies from 0 to 1"),
    ],
)
def test_shapes_targets_and_settings_that_do_not_fit_are_refused(name, x, y, settings, text):
    with pytest.raises(ValueError, match=text):
        SPECS[name].call(x, y, **settings)
