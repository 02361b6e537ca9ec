"""Which evaluation was the best, and whether there is hope of a better one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from minerua.learning.config import StoppingConfig
from minerua.learning.schedules import improves


@dataclass
class Stopping:
    """Keeps the best evaluation, and says when patience is at its end.

    Args:
        config: Metric, patience, minimum change.
        mode: Whether smaller or larger is better.
        best: The best value so far; of equal ones the first.
        best_step: When.
        best_metrics: All that was measured then.
        anchor: The value that the next improvement is measured against; within `min_change` of `best`.
        waited: How many evaluations in a row were no improvement.
    """

    config: StoppingConfig
    mode: Literal["min", "max"]
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] | None = None
    anchor: float | None = None
    waited: int = 0

    def see(self, step: int, metrics: dict[str, float]) -> bool:
        """Takes an evaluation; returns whether it is the best so far, by however little."""
        value = metrics[self.config.metric]
        enough = improves(value, self.anchor, mode=self.mode, min_change=self.config.min_change)
        self.anchor = value if enough else self.anchor
        self.waited = 0 if enough else self.waited + 1
        if not improves(value, self.best, mode=self.mode, min_change=0.0):
            return False
        self.best, self.best_step, self.best_metrics = value, step, dict(metrics)
        return True

    def reason(self) -> str:
        """Returns why to stop; empty while there is hope."""
        if self.config.patience is None or self.waited < self.config.patience:
            return ""
        best = "no number" if self.best is None else f"{self.best:.6g} at step {self.best_step}"
        return (
            f"{self.config.metric} has not improved by more than {self.config.min_change:g} "
            f"in {self.waited} evaluations; the best is {best}"
        )

    def state(self) -> dict[str, Any]:
        """Returns what it remembers, as JSON holds it."""
        return {name: getattr(self, name) for name in _REMEMBERED}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` returned."""
        for name in _REMEMBERED:
            setattr(self, name, state[name])


_REMEMBERED = ("best", "best_step", "best_metrics", "anchor", "waited")
