"""Means over a split, without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minerua.errors import UnknownName
from minerua.learning.config import DeviceConfig
from minerua.learning.devices import DeviceManager
from minerua.learning.evaluator import METRICS, ModelEvaluator, metric_faults
from minerua.learning.loading import Loader
from minerua.learning.order import Order
from minerua.learning.stepping import Loss

from .worlds import LOSSES, Points, mlp

DEVICES = DeviceManager(DeviceConfig(name="cpu"))


def loader(points: Points, batch_size: int) -> Loader:
    return Loader(points, Order(len(points), batch_size, shuffle=False))


@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_a_mean_does_not_depend_on_batches(batch_size: int) -> None:
    points, module = Points(30), mlp(dropout=0.5)
    evaluator = ModelEvaluator(Loss(LOSSES["cross-entropy"], {}), ["accuracy"], devices=DEVICES)
    before = torch.get_rng_state()
    found = evaluator.evaluate(module, loader(points, batch_size))
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training
    module.eval()
    with torch.no_grad():
        out = module(points.inputs)
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(out, points.targets)), rel=1e-6)
    assert found["accuracy"] == pytest.approx(float((out.argmax(1) == points.targets).float().mean()))


def test_a_loss_that_leaves_out_targets_is_weighed_by_what_counts() -> None:
    points, module = Points(20), mlp()
    points.targets[:9] = -100
    evaluator = ModelEvaluator(Loss(LOSSES["ignoring"], {}), ["accuracy"], devices=DEVICES)
    by_four, at_once = (evaluator.evaluate(module, loader(points, size)) for size in (4, 20))
    assert by_four == pytest.approx(at_once, rel=1e-6)


def test_metrics_are_what_their_names_say() -> None:
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0])
    assert float(METRICS["absolute-error"](a, b)[0]) == 3.0
    assert float(METRICS["squared-error"](a, b)[0]) == 5.0
    assert float(METRICS["accuracy"](a, torch.tensor([1.0, 1.0]))[0]) == 1.0
    classes = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert METRICS["accuracy"](classes, torch.tensor([1, 1, -100])) == (torch.tensor(1), 2)


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    assert "no metric is named 'acuracy'; did you mean 'accuracy'?" in metric_faults(["acuracy"])[0]
    with pytest.raises(UnknownName, match=r"some metrics do not exist"):
        ModelEvaluator(Loss(LOSSES["mse"], {}), ["acuracy"], devices=DEVICES)


def test_metrics_of_ones_own_are_taken() -> None:
    own = {"spread": lambda predictions, targets: (predictions.std() * len(targets), len(targets))}
    evaluator = ModelEvaluator(Loss(LOSSES["cross-entropy"], {}), own, devices=DEVICES)
    assert evaluator.names == ["loss", "spread"]
    assert evaluator.evaluate(mlp(), loader(Points(8), 8))["spread"] > 0
