"""When there is no hope."""

from __future__ import annotations

from minerua.learning.config import StoppingConfig
from minerua.learning.stopping import Stopping


def seen(values: list[float], *, mode: str = "min", **settings: object) -> Stopping:
    stopping = Stopping(StoppingConfig.model_validate(settings), mode)  # type: ignore[arg-type]
    for step, value in enumerate(values, 1):
        stopping.see(step, {"loss": value})
    return stopping


def test_patience_is_counted_in_evaluations_without_improvement() -> None:
    assert seen([1.0, 0.9, 0.95], patience=2).reason() == ""
    reason = seen([1.0, 0.9, 0.95, 0.95], patience=2).reason()
    assert reason == "loss has not improved by more than 0 in 2 evaluations; the best is 0.9 at step 2"


def test_small_improvements_make_the_best_but_do_not_prolong() -> None:
    stopping = seen([1.0, 0.99, 0.98, 0.97], patience=3, min_change=0.1)
    assert stopping.reason()
    assert (stopping.best, stopping.best_step) == (0.97, 4)


def test_without_patience_a_run_goes_on() -> None:
    assert seen([1.0] * 50).reason() == ""


def test_larger_can_be_better_and_of_equal_ones_the_first_is_best() -> None:
    stopping = seen([0.5, 0.7, 0.7], mode="max", patience=1)
    assert stopping.best_step == 2
    assert stopping.reason()


def test_nan_is_never_the_best() -> None:
    stopping = seen([float("nan"), float("nan")], patience=2)
    assert "the best is no number" in stopping.reason()


def test_it_goes_on_from_its_state() -> None:
    one = seen([1.0, 0.9, 0.95], patience=2)
    other = Stopping(one.config, "min")
    other.restore(one.state())
    assert other == one
