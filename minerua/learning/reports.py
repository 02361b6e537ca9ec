"""What a training run tells those who watch it: frozen values, and the functions that a watcher may have.

No torch here: whatever prints, draws or logs a run can be imported without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat


@dataclass(frozen=True, slots=True)
class StartReport:
    """A run that is about to take its first step, or to go on.

    Args:
        name: The expert's name; empty where a run has only one result.
        out: The folder of the run.
        step: How many steps are done: 0, or where a resumed run goes on. What a log holds beyond it will come again.
        steps: How many steps there are in all, if nothing stops the run before.
        epoch: The epoch that the next step belongs to, from 0.
        epochs: How many epochs there are.
        steps_per_epoch: Steps of one epoch.
        examples: Examples in the training split.
        parameters: How many numbers are learned.
        device: Where: `"cpu"`, `"cuda:0"` and so on.
        processes: How many processes work on it.
        notes: What there is to say: a damaged checkpoint that was passed over, another version of torch.
        history: All evaluations of the steps that are done.
    """

    name: str
    out: Path
    step: int
    steps: int
    epoch: int
    epochs: int
    steps_per_epoch: int
    examples: int
    parameters: int
    device: str
    processes: int
    notes: tuple[str, ...] = ()
    history: tuple[EvaluationReport, ...] = ()


class StepReport(NamedTuple):
    """One optimizer step.

    Reading `loss` or `gradient_norm` with `float` may wait for the device: read them when they are shown, not at every
    step.

    Args:
        step: Its number, from 1.
        epoch: Its epoch, from 0.
        examples: How many examples it was over, all processes together.
        loss: The mean over the whole batch: a number, or a tensor of no dimensions.
        rate: The learning rate of the first parameter group.
        gradient_norm: Before clipping; `None` where nobody asked for it.
        skipped: Whether the weights were left as they were; `why` says more.
        why: Why it was skipped or undone; empty otherwise.
    """

    step: int
    epoch: int
    examples: int
    loss: SupportsFloat
    rate: float
    gradient_norm: SupportsFloat | None = None
    skipped: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The model scored on one split.

    Args:
        step: After how many steps.
        epoch: After how many whole epochs.
        split: `"validation"` or `"test"`.
        loss: Mean over the split.
        metrics: Metric name → its mean over the split; always with `loss`.
        training_loss: Mean of the steps' losses since the evaluation before; NaN without any.
        rate: The learning rate that the step before was taken with.
        examples: Examples in the split.
        is_best: Whether nothing before was better.
    """

    step: int
    epoch: int
    split: str
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    training_loss: float = float("nan")
    rate: float = 0.0
    examples: int = 0
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Learned:
    """A finished run.

    Args:
        name: The expert's name; empty where a run has only one result.
        out: The folder of the run.
        model: The final weights: a safetensors file, or the folder of an adapter.
        step: How many steps were taken.
        epoch: How many whole epochs.
        best_step: The step of the best evaluation.
        best_metrics: What was measured then.
        test_metrics: The final model on the test split; empty without one.
        history: All evaluations on the validation split, in order.
        stopped: Why it ended: `"all epochs are done"`, or what early stopping saw.
        skipped_steps: Steps that the guard did not let through.
        already_done: Whether a finished run was found and nothing was done.
    """

    name: str
    out: Path
    model: Path
    step: int
    epoch: int
    best_step: int
    best_metrics: Mapping[str, float]
    test_metrics: Mapping[str, float]
    history: tuple[EvaluationReport, ...]
    stopped: str
    skipped_steps: int = 0
    already_done: bool = False


class Observer:
    """Watches a run; every function does nothing unless a child has its own.

    Observers are told in the order in which they were given, by the first process only. What one raises ends the run.
    """

    def started(self, report: StartReport) -> None:
        """Called once before the first step."""

    def step_finished(self, report: StepReport) -> None:
        """Called after every step."""

    def evaluated(self, report: EvaluationReport) -> None:
        """Called after every evaluation."""

    def saved(self, path: Path) -> None:
        """Called when a checkpoint is on the disk."""

    def finished(self, learned: Learned) -> None:
        """Called once when the final model is on the disk."""

    def stopped(self, error: BaseException) -> None:
        """Called in place of `finished` where an exception or a signal ends the run."""


def metric_text(metrics: Mapping[str, Any]) -> str:
    """Returns metrics in one line.

    Example:
        >>> metric_text({"loss": 0.25, "accuracy": 0.5})
        'loss 0.25, accuracy 0.5'
    """
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
