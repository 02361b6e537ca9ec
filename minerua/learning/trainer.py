"""The loop. Everything that it needs comes from elsewhere, so that it can be read from top to bottom.

    for each epoch:
        for each step (a batch, in parts):
            gradients of the mean loss, a guard, clipping, the optimizer
            tell those who watch
            evaluate, where it is time; stop, where there is no hope
            save, where it is time or where a signal asks for it

A run that goes on begins after the last step that a checkpoint knows: a step is taken whole or not at all, so there are
no half gradients to keep.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence

import torch

from minerua.errors import CheckpointError, LearningError, LearningStopped, MineruaError
from minerua.learning.boundary import Boundary
from minerua.learning.checkpoints import Opened, compare_runs
from minerua.learning.config import TrainingConfig
from minerua.learning.failures import explained
from minerua.learning.loading import Step
from minerua.learning.parts import Parts
from minerua.learning.reports import EvaluationReport, Observer, StepReport
from minerua.learning.schedules import Plateau, rate_factor
from minerua.learning.signals import Signals
from minerua.learning.state import Progress, TrainingState, optimizer_tree, random_state, restore_random
from minerua.learning.stepping import Guard, Stepper, Taken
from minerua.learning.stopping import Stopping

ALL_DONE = "all epochs are done"
"""Why a run ended that nothing ended early."""


class ModelTrainer:
    """Trains a model, and can go on where another process was killed, bit for bit.

    Args:
        config: How.
        parts: With what.
        observers: Are told what happens, in this order; by the first process only.
    """

    def __init__(self, config: TrainingConfig, parts: Parts, observers: Sequence[Observer] = ()) -> None:
        self.config, self.parts = config, parts
        self.progress = Progress()
        self.plateau = Plateau(config.schedule, config.mode)
        self.stopping = Stopping(config.stopping, config.mode)
        self.guard = Guard(config.guard, waits=parts.devices.waits)
        self.history: list[EvaluationReport] = []
        self.steps_per_epoch = parts.training.order.steps
        self.steps = self.steps_per_epoch * config.epochs
        self.observers = tuple(observers) if parts.devices.is_first else ()
        self._rates = [float(group["lr"]) for group in parts.optimizer.param_groups]
        self._random: torch.Tensor | None = None
        self._stepper = Stepper(
            forward=parts.devices.parallel(parts.module),
            parameters=[p for group in parts.optimizer.param_groups for p in group["params"]],
            optimizer=parts.optimizer,
            loss=parts.loss,
            devices=parts.devices,
            clip_norm=config.clip_norm,
            guard=self.guard,
        )
        self._boundary = Boundary(parts.module, parts.devices.device, keeps_buffers=self.guard.acts)

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def fit(self) -> str:
        """Trains to the end; returns why it ended.

        Raises:
            LearningError: A loss that is NaN, a batch that does not fit; the last checkpoint is untouched.
            LearningStopped: After a signal; the run is saved.
            StorageError: If a checkpoint cannot be written.
        """
        self.parts.module.train()
        if self.config.guard.policy == "rollback" and not self.progress.step:
            self._save("regular")  # something to roll back to
        with Signals() as signals:
            while self.progress.epoch < self.config.epochs and not self.stopping.reason():
                for step in self._rest_of_epoch():
                    taken = self._take(step, stop=bool(signals.caught))
                    if self._is_due(self.config.evaluate_every_steps):
                        self._evaluate()
                        if self.stopping.reason():
                            break
                    self._save_if_due()
                    if taken.stop or (signals.caught and self.parts.devices.processes == 1):
                        self._stop(signals.caught)
        self._save("regular")
        return self.stopping.reason() or ALL_DONE

    def _rest_of_epoch(self) -> Iterator[Step]:
        progress = self.progress
        steps = self.parts.training.steps(progress.epoch, progress.window, ready=self._restore_random)
        while True:
            try:
                step = next(steps, None)
            except Exception:  # between two steps, so everything is as the last one left it
                self._save_on_exception()
                raise
            if step is None:
                return
            yield step

    def _take(self, step: Step, *, stop: bool) -> Taken:
        """Takes one step, counts it, tells it."""
        rate = self._set_rates()
        epoch = self.progress.epoch
        self._boundary.remember()
        try:
            taken = self._stepper.take(step, stop=stop)
        except Exception as error:
            if not self._stepper.changing_weights and self._boundary.go_back():
                self._save_on_exception()
            raise explained(error, step, self.config, self.parts.devices, number=self.progress.step + 1) from error
        if taken.why:
            self._intervene(taken.why)
        self.progress.next_step(self.steps_per_epoch)
        if self.observers:
            report = StepReport(
                self.progress.step, epoch, step.size, taken.loss, rate, taken.norm, bool(taken.why), taken.why
            )
            for observer in self.observers:
                observer.step_finished(report)
        return taken

    def _set_rates(self) -> float:
        factor = rate_factor(self.config.schedule, self.progress.step, self.steps) * self.plateau.scale
        for group, rate in zip(self.parts.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return self._rates[0] * factor

    def _is_due(self, every: int | None) -> bool:
        if self.progress.step == self.steps:
            return True
        return self.progress.window == 0 if every is None else self.progress.step % every == 0

    # ── evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _evaluate(self) -> None:
        self._refuse_late_faults()
        total, count = self.guard.take_losses()
        training_loss = total / count if count else float("nan")
        metrics = {"loss": training_loss}
        if self.parts.validation is not None:
            try:
                metrics = self.parts.evaluator.evaluate(self.parts.module, self.parts.validation)
            except Exception as error:
                raise explained(error, None, self.config, self.parts.devices, number=self.progress.step) from error
        is_best = self.stopping.see(self.progress.step, metrics)
        self.plateau.see(metrics[self.config.stopping.metric])
        report = EvaluationReport(
            step=self.progress.step,
            epoch=self.progress.epoch,
            split="validation" if self.parts.validation is not None else "train",
            loss=metrics["loss"],
            metrics=metrics,
            training_loss=training_loss,
            rate=float(self.parts.optimizer.param_groups[0]["lr"]),
            examples=self.parts.validation.order.count if self.parts.validation is not None else 0,
            is_best=is_best,
        )
        self.history.append(report)
        if is_best:
            self._save_best(metrics)
        for observer in self.observers:
            observer.evaluated(report)

    def _save_best(self, metrics: Mapping[str, float]) -> None:
        weights = self.parts.weights()
        if self.parts.devices.is_first:
            texts = {f"minerua.{name}": repr(value) for name, value in metrics.items()}
            self.parts.checkpoints.save_best(weights, {"minerua.step": str(self.progress.step), **texts})

    # ── the guard ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _intervene(self, why: str) -> None:
        """Does what the policy says about a step that the guard did not let through."""
        policy, number, last = self.config.guard.policy, self.progress.step + 1, self.parts.checkpoints.last_good()
        self.progress.skipped += 1
        if policy == "stop":
            raise LearningError(
                f"step {number}: {why}; {last}. A smaller optimizer.rate, a clip_norm or a longer "
                "schedule.warmup_steps may help; guard.policy: skip or rollback goes on instead"
            )
        if self.progress.skipped > self.config.guard.limit:
            raise LearningError(
                f"step {number}: {why}; more than guard.limit = {self.config.guard.limit} steps were not let "
                f"through; {last}"
            )
        self._boundary.restore_buffers()
        if policy == "rollback":
            self._roll_back()

    def _roll_back(self) -> None:
        """Takes weights and optimizer from the last regular checkpoint; goes on with the batches that follow."""
        opened, _ = self.parts.devices.in_turn(lambda: self.parts.checkpoints.newest(regular=True))
        if opened is None:
            raise LearningError("there is no checkpoint to roll back to; all of this run were damaged or removed")
        self.parts.load(opened)

    def _refuse_late_faults(self) -> None:
        """Makes sure that what is evaluated or saved is sound: all losses, and every weight."""
        if self.config.guard.policy == "off":
            self.guard.read()
            return
        broken = self.parts.broken()
        why = self.guard.read() or (f"{broken} holds NaN or infinity" if broken else "")
        if why:
            last = self.parts.checkpoints.last_good()
            raise LearningError(
                f"step {self.progress.step} or one shortly before: {why}; {last}. "
                "A smaller optimizer.rate or a clip_norm may help"
            )

    # ── saving ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _save_if_due(self) -> None:
        if self._is_due(self.config.save_every_steps) and self.progress.step < self.steps:
            self._save("regular")

    def _save(self, kind: str) -> None:
        self._refuse_late_faults()
        state, weights = self.state(kind), self.parts.weights()
        if self.parts.devices.is_first:
            path = self.parts.checkpoints.save(state, weights)
            for observer in self.observers:
                observer.saved(path)
        self.parts.devices.barrier()

    def _stop(self, number: int) -> None:
        self._save("signal")
        number = number or signal.SIGTERM  # another process of the run has caught it
        raise LearningStopped(
            f"stopped by {signal.Signals(number).name} after step {self.progress.step}; everything is saved, "
            "--resume goes on from there",
            signal=number,
        )

    def _save_on_exception(self) -> None:
        """Saves the last whole step; several processes would wait for the one that failed."""
        if self.progress.step and self.parts.devices.processes == 1:
            with contextlib.suppress(MineruaError):  # the exception that is on its way says more
                self._save("exception")

    def state(self, kind: str) -> TrainingState:
        """Returns all that a checkpoint holds besides the weights; every process must ask."""
        devices = self.parts.devices
        return TrainingState(
            kind=kind,
            config={**self.config.binding(), **self.parts.identity},
            environment=dict(self.parts.environment),
            progress=self.progress,
            plateau=self.plateau.state(),
            stopping=self.stopping.state(),
            guard=self.guard.state(),
            scaler=devices.scaler.state_dict() if devices.scaler is not None else {},
            optimizer=optimizer_tree(self.parts.optimizer, self.parts.names, devices.whole),
            history=self.history,
            random=devices.gathered(random_state(devices.device)),
        )

    # ── going on ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def restore(self, opened: Opened) -> list[str]:
        """Takes over a checkpoint; returns what there is to say about it.

        Raises:
            CheckpointError: If it belongs to another run or model; names every difference with both sides.
        """
        faults = compare_runs(opened.state.config, {**self.config.binding(), **self.parts.identity})
        if faults:
            raise CheckpointError(
                f"{opened.path} belongs to another run; undo what was changed, or begin anew in another folder", faults
            )
        state = opened.state
        self.parts.load(opened)
        self.progress, self.history = state.progress, state.history
        self.plateau.restore(state.plateau)
        self.stopping.restore(state.stopping)
        self.guard.restore(state.guard)
        if self.parts.devices.scaler is not None:
            self.parts.devices.scaler.load_state_dict(state.scaler)
        self._random = state.random[self.parts.devices.rank]
        return [
            f"not as it was, so the bits may differ: {one}"
            for one in compare_runs(state.environment, self.parts.environment)
        ]

    def _restore_random(self) -> None:
        if self._random is not None:
            restore_random(self._random, self.parts.devices.device)
            self._random = None
