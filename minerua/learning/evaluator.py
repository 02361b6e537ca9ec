"""A model scored on a split: the loss and other means, without a trace in the model or in any generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from minerua.errors import UnknownName, unknown
from minerua.learning.devices import DeviceManager
from minerua.learning.loading import Batch, Loader
from minerua.learning.stepping import Loss

Metric = Callable[[Any, Any], tuple[torch.Tensor, float]]
"""Takes predictions and targets, returns a sum and how many terms it has."""


def _accuracy(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Classes along the second axis, or one number per target that is above zero for yes; negative targets are none."""
    if predictions.dim() == targets.dim():
        right = (predictions > 0) == (targets > 0.5)
        return right.sum(), right.numel()
    counted = targets >= 0
    return ((predictions.argmax(dim=1) == targets) & counted).sum(), int(counted.sum())


def _absolute_error(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float]:
    return (predictions - targets).abs().sum(), targets.numel()


def _squared_error(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float]:
    return (predictions - targets).square().sum(), targets.numel()


METRICS: Mapping[str, Metric] = {
    "accuracy": _accuracy,
    "absolute-error": _absolute_error,
    "squared-error": _squared_error,
}
"""What can be measured by name besides the loss."""


def metric_faults(names: Sequence[str]) -> list[str]:
    """Returns one fault per metric that does not exist.

    Example:
        >>> metric_faults(["accuracy"])
        []
    """
    return [f"metrics: {unknown('metric', name, list(METRICS))}" for name in names if name not in METRICS]


class ModelEvaluator:
    """Scores a model.

    Args:
        loss: Always measured.
        metrics: Names of `METRICS`, or functions of one's own by name.
        devices: Where.

    Raises:
        UnknownName: If a metric does not exist.
    """

    def __init__(self, loss: Loss, metrics: Sequence[str] | Mapping[str, Metric], *, devices: DeviceManager) -> None:
        if not isinstance(metrics, Mapping):
            if faults := metric_faults(metrics):
                raise UnknownName("some metrics do not exist", faults)
            metrics = {name: METRICS[name] for name in metrics}
        self._loss, self._metrics, self._devices = loss, dict(metrics), devices

    @property
    def names(self) -> list[str]:
        """What `evaluate` returns, in this order."""
        return ["loss", *self._metrics]

    def evaluate(self, module: nn.Module, loader: Loader) -> dict[str, float]:
        """Returns each metric's mean over all examples, those of other processes included.

        Args:
            module: Put into evaluation mode, and back.
            loader: The split.
        """
        was_training = module.training
        module.eval()
        sums = [torch.zeros((), dtype=torch.float64) for _ in self.names]
        counts = [0.0] * len(sums)
        try:
            with torch.no_grad():
                for step in loader.steps(0):
                    for batch in step.batches:
                        self._add(self._measured(module, batch), batch.counts, sums, counts)
        finally:
            module.train(was_training)
        totals = self._devices.totals([*(float(one) for one in sums), *counts])
        pairs = zip(totals[: len(sums)], totals[len(sums) :], strict=True)
        means = [total / count if count else float("nan") for total, count in pairs]
        return dict(zip(self.names, means, strict=True))

    def _measured(self, module: nn.Module, batch: Batch) -> list[tuple[torch.Tensor, float]]:
        targets = self._devices.moved(batch.targets)
        with self._devices.autocast():
            predictions = module(self._devices.moved(batch.inputs))
            loss = self._loss.mean(predictions, targets)
        count = self._loss.count(batch.targets)
        total = loss.double().cpu() * count if count else torch.zeros((), dtype=torch.float64)
        return [(total, count), *(metric(predictions, targets) for metric in self._metrics.values())]

    def _add(
        self,
        measured: list[tuple[torch.Tensor, float]],
        is_counted: bool,
        sums: list[torch.Tensor],
        counts: list[float],
    ) -> None:
        if not is_counted:
            return
        for number, (total, count) in enumerate(measured):
            sums[number] += total.double().cpu()
            counts[number] += count
