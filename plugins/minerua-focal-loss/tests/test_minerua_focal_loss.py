"""The focal loss through its hook: cross-entropy at gamma 0, the paper's formula otherwise, right in parts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import minerua_focal_loss as plugin
import pytest
import torch
from torch.nn import functional

from minerua.registry.specs import KINDS, spec_faults

SPECS = {spec.name: spec for spec in plugin.minerua_losses()}
FOCAL, BINARY = SPECS["focal"], SPECS["binary-focal"]
ALPHA = [0.2, 1.0, 0.7]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def classes(*shape, holes=False):
    targets = torch.randint(3, shape, generator=torch.Generator().manual_seed(1))
    if holes:
        targets.view(-1)[::4] = -100
        targets[:2] = -100
    return targets


def yes_or_no(*shape):
    return (drawn(*shape, seed=2) > 0).long()


CASES = [
    ("focal", drawn(17, 3), classes(17), {}),
    ("focal", drawn(17, 3), classes(17, holes=True), {"gamma": 0.5, "alpha": ALPHA}),
    ("focal", drawn(17, 3, 4), classes(17, 4, holes=True), {"gamma": 3.0}),
    ("binary-focal", drawn(17, 2), yes_or_no(17, 2), {}),
    ("binary-focal", drawn(17), yes_or_no(17).bool(), {"gamma": 0.5, "alpha": None}),
]
EVERY = pytest.mark.parametrize(("name", "predictions", "targets", "settings"), CASES)


def test_without_gamma_it_is_cross_entropy():
    predictions, targets = drawn(17, 3), classes(17, holes=True)
    torch.testing.assert_close(
        FOCAL.call(predictions, targets, gamma=0), functional.cross_entropy(predictions, targets)
    )
    logits, wanted = drawn(17), yes_or_no(17)
    theirs = functional.binary_cross_entropy_with_logits(logits, wanted.double())
    torch.testing.assert_close(BINARY.call(logits, wanted, gamma=0, alpha=None), theirs)


def test_it_is_the_formula_of_the_paper():
    predictions, targets = drawn(17, 3), classes(17)
    total = 0.0
    for row, target in zip(predictions, targets, strict=True):
        p = float(row.softmax(0)[target])
        total -= ALPHA[target] * (1 - p) ** 1.5 * math.log(p)
    assert float(FOCAL.call(predictions, targets, gamma=1.5, alpha=ALPHA)) == pytest.approx(total / 17, rel=1e-12)


def test_the_binary_one_is_the_formula_of_the_paper():
    logits, wanted = drawn(17), yes_or_no(17)
    total = 0.0
    for logit, yes in zip(logits, wanted, strict=True):
        p = 1 / (1 + math.exp(-float(logit)))
        p, alpha = (p, 0.25) if yes else (1 - p, 0.75)
        total -= alpha * (1 - p) ** 2 * math.log(p)
    assert float(BINARY.call(logits, wanted)) == pytest.approx(total / 17, rel=1e-12)


def test_two_classes_are_yes_or_no():
    logits, wanted = drawn(17), yes_or_no(17)
    as_classes = torch.stack([torch.zeros_like(logits), logits], 1)
    ours = FOCAL.call(as_classes, wanted, alpha=[0.75, 0.25])
    torch.testing.assert_close(ours, BINARY.call(logits, wanted, alpha=0.25))


def test_what_is_right_counts_less():
    right, wrong = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    target = torch.tensor([0])
    shares = [float(FOCAL.call(x, target) / functional.cross_entropy(x, target)) for x in (right, wrong)]
    assert shares[0] < 0.001
    assert shares[1] > 0.9


@EVERY
def test_its_gradient_is_that_of_finite_differences(name, predictions, targets, settings):
    inputs = predictions.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: SPECS[name].call(x, targets, **settings), (inputs,))


@EVERY
def test_a_batch_in_eight_parts_is_the_whole_batch(name, predictions, targets, settings):
    spec = SPECS[name]
    whole, parts = (predictions.float().requires_grad_() for _ in range(2))
    spec.call(whole, targets, **settings).backward()
    total = spec.count(targets, **settings)
    for x, y in zip(parts.tensor_split(8), targets.tensor_split(8), strict=True):
        (spec.call(x, y, **settings) * spec.count(y, **settings) / total).backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-6, atol=1e-6)


@EVERY
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_certain_predictions_stay_finite_right_or_wrong(name, predictions, targets, settings, scale):
    inputs = (predictions.float() * scale).requires_grad_()
    loss = SPECS[name].call(inputs, targets, **settings)
    loss.backward()
    assert loss.isfinite()
    assert inputs.grad.isfinite().all()


def test_predictions_of_sixteen_bits_are_widened():
    narrow = drawn(5, 3).bfloat16()
    assert torch.equal(FOCAL.call(narrow, classes(5)), FOCAL.call(narrow.float(), classes(5)))
    assert BINARY.call(narrow, yes_or_no(5, 3)).dtype == torch.float32


def test_a_batch_in_which_nothing_counts_is_zero():
    predictions = drawn(3, 3).requires_grad_()
    FOCAL.call(predictions, torch.full((3,), -100)).backward()
    assert not predictions.grad.any()
    assert FOCAL.count(torch.full((3,), -100)) == 0


@pytest.mark.parametrize(
    ("name", "predictions", "targets", "settings", "text"),
    [
        ("focal", drawn(2, 3), classes(2), {"gamma": -1}, "gamma is -1; the focal loss needs at least 0"),
        ("focal", drawn(2, 3), classes(2), {"alpha": [1.0]}, "alpha has 1 factors for 3 classes; give one per class"),
        ("binary-focal", drawn(2), yes_or_no(2), {"alpha": 1.5}, r"alpha is 1.5; the factor of yes is in \[0, 1\]"),
        (
            "binary-focal",
            drawn(2, 1),
            yes_or_no(2),
            {},
            r"\[2, 1\], targets \[2\]; give the focal loss one logit per targ",
        ),
    ],
)
def test_settings_and_shapes_that_do_not_fit_are_refused(name, predictions, targets, settings, text):
    with pytest.raises(ValueError, match=text):
        SPECS[name].call(predictions, targets, **settings)


def test_the_specs_are_valid_and_their_module_imports_no_torch():
    kind = next(kind for kind in KINDS if kind.hook == "minerua_losses")
    assert [fault for spec in SPECS.values() for fault in spec_faults(kind, spec)] == []
    script = "import json, sys, minerua_focal_loss as m; m.minerua_losses(); print(json.dumps('torch' in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) is False
