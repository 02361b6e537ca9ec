"""One optimizer step: parts of a batch, weighed; gradients, clipped; and a guard that looks before weights change."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsFloat

import torch

from minerua.learning.config import GuardConfig
from minerua.learning.devices import DeviceManager
from minerua.learning.loading import Batch, Step
from minerua.values import LossSpec

FEWEST_LOSSES = 8
"""How many losses the guard has to know before one can be called a leap."""

_ROBUST = 1.4826  # makes the median absolute deviation of normal numbers their standard deviation


class Loss:
    """A loss with its settings.

    Args:
        spec: As a plugin gives it.
        settings: What it is called with besides predictions and targets.
    """

    def __init__(self, spec: LossSpec, settings: Mapping[str, Any]) -> None:
        self.name = spec.name
        self._spec = spec
        self._settings = dict(settings)

    def mean(self, predictions: Any, targets: Any) -> torch.Tensor:
        """Returns the mean loss of a batch."""
        loss: torch.Tensor = self._spec.call(predictions, targets, **self._settings)
        return loss

    def count(self, targets: Any) -> float:
        """Returns how many terms that mean is over, or the sum of their weights."""
        if self._spec.count is not None:
            return float(self._spec.count(targets, **self._settings))
        return first_extent(targets)


def first_extent(value: Any) -> int:
    """Returns how many examples a batch of targets has.

    Example:
        >>> first_extent({"boxes": torch.zeros(3, 4)})
        3
    """
    return first_extent(next(iter(value.values()))) if isinstance(value, Mapping) else len(value)


class Taken(NamedTuple):
    """What came of a step.

    Args:
        loss: The mean over the whole batch, of this process or, where several work, of all.
        why: Why the weights were left as they are; empty if they changed.
        norm: Of the gradient before clipping; `None` where nobody needs it.
        stop: Whether some process was asked to stop.
    """

    loss: SupportsFloat
    why: str = ""
    norm: SupportsFloat | None = None
    stop: bool = False


class Stepper:
    """Takes optimizer steps.

    Args:
        forward: The model, or what wraps it for several processes.
        parameters: What is learned.
        optimizer: Changes them.
        loss: What is made small.
        devices: Where.
        clip_norm: The longest gradient; `None`: as they are.
        guard: Looks at every loss.
    """

    def __init__(
        self,
        *,
        forward: Callable[..., Any],
        parameters: Sequence[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        devices: DeviceManager,
        clip_norm: float | None,
        guard: Guard,
    ) -> None:
        self._forward, self._parameters, self._optimizer = forward, list(parameters), optimizer
        self._loss, self._devices, self._clip_norm, self._guard = loss, devices, clip_norm, guard
        self._is_single = devices.processes == 1
        self._measures = clip_norm is not None or (guard.acts and devices.scaler is None)
        self.changing_weights = False  # whether an exception now leaves them between two steps

    def take(self, step: Step, *, stop: bool = False) -> Taken:
        """Takes one step, or leaves the weights as they are where the guard says so.

        Args:
            step: Its batches.
            stop: Whether this process was asked to stop; all processes are told.
        """
        self._optimizer.zero_grad()
        loss: SupportsFloat = self._gradients(step.batches)
        if not self._is_single:
            total, stops = self._devices.totals([float(loss) / self._devices.processes, float(stop)])
            loss, stop = total, stops > 0
        norm = self._norm() if self._measures else None
        why = self._guard.verdict(loss, norm if self._devices.scaler is None else None)
        if not why:
            self._change()
        elif self._devices.scaler is not None and self._measures:
            self._devices.scaler.update()  # forgets that gradients were unscaled for their norm
        return Taken(loss, why, norm, stop)

    def _gradients(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Adds up the gradient of the mean over the whole batch; returns that mean."""
        if len(batches) == 1 and self._is_single:
            return self._backward(batches[0], 1.0)
        weights = self._weights(batches)
        losses = []
        for number, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            is_last = number == len(batches) - 1
            with contextlib.nullcontext() if is_last else self._devices.unsynchronised(self._forward):
                losses.append(self._backward(batch, weight))
        return sum(losses[1:], losses[0])

    def _weights(self, batches: Sequence[Batch]) -> list[float]:
        """Returns each part's share in the mean over the whole batch, times the processes, which torch divides by."""
        counts = [self._loss.count(batch.targets) if batch.counts else 0 for batch in batches]
        (total,) = self._devices.totals([float(sum(counts))])
        return [count * self._devices.processes / total if total else 0.0 for count in counts]

    def _backward(self, batch: Batch, weight: float) -> torch.Tensor:
        with self._devices.autocast():
            loss = self._loss.mean(self._forward(self._devices.moved(batch.inputs)), self._devices.moved(batch.targets))
        if weight == 0.0:
            loss = torch.nan_to_num(loss) * 0.0  # a mean over nothing is NaN, and NaN times 0 too
        elif weight != 1.0:
            loss = loss * weight
        scaler = self._devices.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _norm(self) -> torch.Tensor:
        """Measures the gradient, and shortens it where it is longer than it may be."""
        if self._devices.scaler is not None:
            self._devices.scaler.unscale_(self._optimizer)
        longest = math.inf if self._clip_norm is None else self._clip_norm
        return self._devices.whole(torch.nn.utils.clip_grad_norm_(self._parameters, longest))

    def _change(self) -> None:
        self.changing_weights = True
        if self._devices.scaler is None:
            self._optimizer.step()
        else:
            self._devices.scaler.step(self._optimizer)
            self._devices.scaler.update()
        self.changing_weights = False


class Guard:
    """Looks at losses and gradients before weights change.

    Reading a number off a GPU makes the processor wait for it. So where the run would only be stopped, losses of a GPU
    are kept and read together (`read`), every few steps and before every checkpoint.

    Args:
        config: Policy, limits.
        waits: Whether reading a number makes this process wait.
    """

    READ_EVERY = 16

    def __init__(self, config: GuardConfig, *, waits: bool) -> None:
        self.config = config
        self.acts = config.policy in ("skip", "rollback")
        self._at_once = not waits or self.acts
        self._recent: deque[float] = deque(maxlen=config.window)
        self._unread: list[torch.Tensor] = []
        self._sum, self._count = 0.0, 0

    def verdict(self, loss: SupportsFloat, norm: SupportsFloat | None) -> str:
        """Returns why weights should stay as they are; empty if all is well, or not known yet."""
        if not self._at_once and isinstance(loss, torch.Tensor):
            self._unread.append(loss)
            return self.read() if len(self._unread) >= self.READ_EVERY else ""
        return self._judge(float(loss), None if norm is None or not self.acts else float(norm))

    def read(self) -> str:
        """Looks at what was kept; returns what is wrong with it."""
        if not self._unread:
            return ""
        losses = torch.stack(self._unread).tolist()
        self._unread.clear()
        return next((why for why in map(self._judge, losses) if why), "")

    def take_losses(self) -> tuple[float, int]:
        """Returns the sum of all finite losses since the last call, and how many they are."""
        taken = self._sum, self._count
        self._sum, self._count = 0.0, 0
        return taken

    def _judge(self, loss: float, norm: float | None = None) -> str:
        if self.config.policy != "off":
            if not math.isfinite(loss):
                return f"the loss is {loss}"
            if norm is not None and not math.isfinite(norm):
                return f"the gradient's norm is {norm}"
            leap = self._leap(loss) if self.config.spike is not None else ""
            if leap:
                return leap
        self._sum += loss
        self._count += 1
        return ""

    def _leap(self, loss: float) -> str:
        spike = self.config.spike or math.inf
        if len(self._recent) >= FEWEST_LOSSES:
            middle = statistics.median(self._recent)
            spread = _ROBUST * statistics.median([abs(one - middle) for one in self._recent])
            if loss > middle + spike * max(spread, 1e-8 * abs(middle)):
                return f"the loss leapt to {loss:.6g}, the median of the last {len(self._recent)} is {middle:.6g}"
        self._recent.append(loss)
        return ""

    def state(self) -> dict[str, Any]:
        """Returns what it remembers, as JSON holds it."""
        return {"recent": list(self._recent), "sum": self._sum, "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` returned."""
        self._recent = deque(state["recent"], maxlen=self.config.window)
        self._sum, self._count = state["sum"], state["count"]
