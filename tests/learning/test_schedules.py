"""Rates: torch's own schedulers are the oracle where there is one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from minerua.learning.schedules import Plateau, ScheduleConfig, improves, rate_factor

STEPS = 40


def torchs(make: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no step is taken
        scheduler, rates = make(optimizer), []
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return rates


def ours(**settings: Any) -> list[float]:
    return [rate_factor(ScheduleConfig(**settings), step, STEPS) for step in range(STEPS)]


def warmed(optimizer: torch.optim.Optimizer) -> Any:
    first = lr_scheduler.LinearLR(optimizer, start_factor=1 / 9, total_iters=8)
    then = lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 8, eta_min=0.1)
    return lr_scheduler.SequentialLR(optimizer, [first, then], [8])


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"name": "constant"}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        ({"name": "cosine", "floor": 0.2}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.2)),
        ({"name": "linear", "floor": 0.1}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=STEPS)),
        ({"name": "one-cycle"}, lambda o: lr_scheduler.OneCycleLR(o, 1.0, STEPS, cycle_momentum=False)),
        (
            {"name": "one-cycle", "rise": 0.5, "start_divisor": 10, "end_divisor": 100},
            lambda o: lr_scheduler.OneCycleLR(
                o, 1.0, STEPS, pct_start=0.5, div_factor=10, final_div_factor=100, cycle_momentum=False
            ),
        ),
        ({"name": "cosine", "floor": 0.1, "warmup_steps": 8}, warmed),
        ({"name": "cosine", "floor": 0.1, "warmup_fraction": 0.2}, warmed),
    ],
)
def test_a_schedule_is_torchs_of_that_name(settings: dict[str, Any], make: Callable[..., Any]) -> None:
    assert ours(**settings) == pytest.approx(torchs(make), rel=1e-9, abs=1e-12)


def test_a_plateau_is_torchs() -> None:
    metrics = [1.0, 0.9, 0.91, 0.92, 0.89, 0.88, 0.88, 0.88, 0.88, 0.5, 0.6, 0.6, 0.6, 0.6, float("nan"), 0.6]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=0.05, threshold_mode="abs")
    plateau = Plateau(ScheduleConfig(name="plateau", factor=0.5, patience=1, min_change=0.05), "min")
    for metric in metrics:
        theirs.step(metric)
        plateau.see(metric)
        assert plateau.scale == pytest.approx(optimizer.param_groups[0]["lr"])
    assert plateau.scale < 0.3


def test_a_plateau_goes_no_lower_than_its_floor_and_remembers_three_numbers() -> None:
    plateau = Plateau(ScheduleConfig(name="plateau", factor=0.1, patience=0, floor=0.05), "max")
    for _ in range(5):
        plateau.see(0.5)
    assert plateau.scale == 0.05
    other = Plateau(plateau.config, "max")
    other.restore(plateau.state())
    assert other == plateau


def test_other_schedules_have_no_plateau() -> None:
    plateau = Plateau(ScheduleConfig(name="cosine", patience=0), "min")
    for _ in range(5):
        plateau.see(1.0)
    assert plateau.scale == 1.0


def test_what_improves() -> None:
    assert improves(0.5, None, mode="min", min_change=1.0)
    assert improves(0.4, 0.5, mode="min", min_change=0.05)
    assert not improves(0.46, 0.5, mode="min", min_change=0.05)
    assert improves(0.6, 0.5, mode="max", min_change=0.05)
    assert not improves(float("nan"), 0.5, mode="max", min_change=0.0)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "one-cycle", "plateau"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_have_rates_too(name: Any, steps: int) -> None:
    config = ScheduleConfig(name=name, warmup_fraction=0.5)
    assert all(0 <= rate_factor(config, step, steps) <= 1 for step in range(steps + 1))
