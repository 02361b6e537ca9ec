"""How the learning rate changes: small functions of the step, so that a resumed run has nothing to restore.

Each returns a factor that multiplies the rate of every parameter group. Only the plateau looks at metrics; what it
remembers is three numbers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from minerua.learning.sections import Real, Section, Whole, at_least, between

Name = Literal["constant", "linear", "cosine", "one-cycle", "plateau"]

DEPENDS_ON_LENGTH = ("linear", "cosine", "one-cycle")
"""Schedules whose every step depends on how many steps there are in all."""


class ScheduleConfig(Section):
    """How the learning rate changes.

    Args:
        name: The shape after the warm-up.
        warmup_steps: Steps in which the rate rises linearly to its full height; one-cycle has a rise of its own.
        warmup_fraction: The same as a share of all steps; in place of `warmup_steps`.
        floor: What remains of the rate at the end, as a fraction: of linear, cosine and plateau.
        rise: The share of all steps in which a cycle rises.
        start_divisor: The rate's full height by that at the begin of a cycle.
        end_divisor: The rate at the begin of a cycle by that at its end.
        factor: What a plateau multiplies the rate by.
        patience: How many evaluations without improvement a plateau waits.
        min_change: What a plateau takes for an improvement, at least.
    """

    name: Name = "constant"
    warmup_steps: Whole = at_least(0, default=0)
    warmup_fraction: Real = between(0, 1, default=0.0)
    floor: Real = between(0, 1, default=0.0)
    rise: Real = between(0, 1, default=0.3)
    start_divisor: Real = at_least(1, default=25.0)
    end_divisor: Real = at_least(1, default=1e4)
    factor: Real = between(0, 1, default=0.1)
    patience: Whole = at_least(0, default=10)
    min_change: Real = at_least(0, default=0.0)

    def warmup(self, steps: int) -> int:
        """How many of all steps belong to the warm-up."""
        return self.warmup_steps or round(self.warmup_fraction * steps)


def rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Returns what the rates are multiplied by in one step, the plateau's own factor left out.

    Args:
        config: The schedule.
        step: How many steps were taken before, from 0.
        steps: How many there are in all; at least 1.

    Example:
        >>> [rate_factor(ScheduleConfig(name="linear"), step, 4) for step in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if config.name == "one-cycle":
        return _one_cycle(config, step, steps)
    warmup = config.warmup(steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name not in DEPENDS_ON_LENGTH:
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if config.name == "linear":
        return 1.0 + done * (config.floor - 1.0)
    return config.floor + (1.0 - config.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


def _one_cycle(config: ScheduleConfig, step: int, steps: int) -> float:
    """Rises and falls along half cosines; Smith and Topin 2017, arXiv 1708.07120, as `torch.optim` has it."""
    start, end = 1.0 / config.start_divisor, 1.0 / config.start_divisor / config.end_divisor
    top, last = config.rise * steps - 1.0, steps - 1.0
    if step <= top:
        return _between(start, 1.0, step / top if top else 1.0)
    return _between(1.0, end, min(1.0, (step - max(top, 0.0)) / max(last - max(top, 0.0), 1.0)))


def _between(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * done))


@dataclass
class Plateau:
    """Lowers the rate when a metric no longer improves.

    Args:
        config: The schedule; does nothing unless its name is `plateau`.
        mode: Whether the metric is better when it is smaller, `"min"`, or larger, `"max"`.
        scale: What it has come down to.
        best: The best value so far.
        waited: How many evaluations in a row were no improvement.
    """

    config: ScheduleConfig
    mode: Literal["min", "max"]
    scale: float = 1.0
    best: float | None = None
    waited: int = 0

    def see(self, value: float) -> None:
        """Takes the metric of an evaluation."""
        if self.config.name != "plateau":
            return
        if improves(value, self.best, mode=self.mode, min_change=self.config.min_change):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited > self.config.patience:
            self.scale, self.waited = max(self.scale * self.config.factor, self.config.floor), 0

    def state(self) -> dict[str, Any]:
        """Returns what it remembers, as JSON holds it."""
        return {key: value for key, value in asdict(self).items() if key in ("scale", "best", "waited")}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` returned."""
        self.scale, self.best, self.waited = state["scale"], state["best"], state["waited"]


def improves(value: float, best: float | None, *, mode: Literal["min", "max"], min_change: float) -> bool:
    """Whether a metric is better than the best before by more than `min_change`; NaN never is.

    Example:
        >>> improves(0.5, 0.6, mode="min", min_change=0.2), improves(0.5, None, mode="min", min_change=0.2)
        (False, True)
    """
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value < best - min_change if mode == "min" else value > best + min_change
