"""From a configuration to a model on disk: prepare, train, evaluate, keep the best, save the final model."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minerua.errors import CheckpointError, LearningError, StorageError
from minerua.learning.checkpoints import CheckpointManager, compare_runs
from minerua.learning.config import TrainingConfig
from minerua.learning.devices import DeviceManager
from minerua.learning.order import mixed
from minerua.learning.preparing import Catalogs, Prepared, name_faults, prepare
from minerua.learning.reports import EvaluationReport, Learned, Observer, StartReport
from minerua.learning.state import to_array
from minerua.learning.trainer import ALL_DONE, ModelTrainer
from minerua.values import LossSpec, ModelSpec, OptimizerSpec, Skill
from minerua.weights import write_bytes, write_checkpoint

LEARNED = "learned.json"
LOCK = ".lock"
MODEL = "model.safetensors"
ADAPTER = "adapter"
EXPERTS = "experts"
_RANDOM = 4  # what a seed is for


class LearningPipeline:
    """Learns one model.

    Args:
        config: What and how.
        models: Model name → spec.
        optimizers: Optimizer name → spec.
        losses: Loss name → spec.
        skills: Skill name → spec; for data that a skill provides.
        data: An object with `train`, `validation` and `test`, each a dataset or `None`, in place of the section `data`.
        folder: Where relative paths of the configuration start.
        observers: Are told what happens.
        name: The expert's name, for reports.

    Example:
        >>> config = TrainingConfig(model="mlp", loss="cross-entropy")
        >>> LearningPipeline(config, models={}, optimizers={}, losses={}).config.epochs
        10
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        models: Mapping[str, ModelSpec],
        optimizers: Mapping[str, OptimizerSpec],
        losses: Mapping[str, LossSpec],
        skills: Mapping[str, Skill] | None = None,
        data: Any = None,
        folder: str | Path = ".",
        observers: Sequence[Observer] = (),
        name: str = "",
    ) -> None:
        self.config = config
        self.name = name
        self._catalogs = Catalogs(models, optimizers, losses, skills or {})
        self._data, self._folder, self._observers = data, Path(folder), tuple(observers)

    def run(self, out: str | Path, *, resume: bool = False) -> Learned:
        """Learns the model, or goes on where a run was killed; writes the bytes that an uninterrupted run writes.

        The global generators of Python, numpy and torch are as they were when this returns.

        Args:
            out: The run's folder; made if need be.
            resume: Whether a run that is there is continued; one that is finished is left as it is, unless there are
                more epochs now. Without one, a run begins.

        Returns:
            What was learned.

        Raises:
            ConfigError: If the data section cannot be carried out.
            LearningError: If something does not fit, with all faults, before anything is written; if a loss is NaN; if
                memory runs out.
            CheckpointError: If what is there belongs to another run.
            LearningStopped: After a signal.
            StorageError: If something cannot be written.
        """
        out = Path(out)
        devices = DeviceManager(self.config.device)
        with devices.at_work(), _own_generators(self.config.seed, devices):
            done = self._done(out, resume=resume)
            if done is not None:
                return done
            prepared = prepare(self.config, self._catalogs, devices=devices, data=self._data, folder=self._folder)
            with _locked(out) if devices.is_first else contextlib.nullcontext():
                devices.barrier()
                return self._learn(prepared, out, devices)

    def faults(self) -> list[str]:
        """Returns what is seen to be wrong before anything is made: names that stand for nothing."""
        return name_faults(self.config, self._catalogs)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _learn(self, prepared: Prepared, out: Path, devices: DeviceManager) -> Learned:
        checkpoints = CheckpointManager(out, keep=self.config.keep, metadata=prepared.metadata)
        if devices.is_first:
            checkpoints.clean()
        trainer = ModelTrainer(self.config, prepared.parts(checkpoints), self._observers)
        # once more: of several runs in one process only the first imports all of torch, which draws a number or two
        _seed(mixed(self.config.seed, devices.rank, _RANDOM), devices)
        opened, notes = devices.in_turn(checkpoints.newest)
        if opened is not None:
            notes = notes + trainer.restore(opened)
        try:
            self._tell_start(trainer, prepared, out, notes)
            reason = trainer.fit()
            learned = self._finish(trainer, prepared, out, reason)
        except BaseException as error:  # observers are told of a signal too; raised again
            for observer in trainer.observers:
                observer.stopped(error)
            raise
        for observer in trainer.observers:
            observer.finished(learned)
        return learned

    def _tell_start(self, trainer: ModelTrainer, prepared: Prepared, out: Path, notes: Sequence[str]) -> None:
        report = StartReport(
            name=self.name,
            out=out,
            step=trainer.progress.step,
            steps=trainer.steps,
            epoch=trainer.progress.epoch,
            epochs=self.config.epochs,
            steps_per_epoch=trainer.steps_per_epoch,
            examples=prepared.training.order.count,
            parameters=prepared.parameter_count,
            device=str(prepared.devices.device),
            processes=prepared.devices.processes,
            notes=(*prepared.notes, *notes),
            history=tuple(trainer.history),
        )
        for observer in trainer.observers:
            observer.started(report)

    def _finish(self, trainer: ModelTrainer, prepared: Prepared, out: Path, reason: str) -> Learned:
        """Chooses the final weights, tests them, writes them."""
        stopping = trainer.stopping
        if self.config.stopping.restore_best and stopping.best is not None:
            best = trainer.parts.checkpoints.open_best()
            trainer.parts.load_weights(best, where=str(out / "best.safetensors"))
        tested = prepared.evaluator.evaluate(prepared.module, prepared.test) if prepared.test is not None else {}
        model = self._write_model(trainer, prepared, out)
        learned = Learned(
            name=self.name,
            out=out,
            model=model,
            step=trainer.progress.step,
            epoch=trainer.progress.epoch,
            best_step=stopping.best_step,
            best_metrics=stopping.best_metrics or {},
            test_metrics=tested,
            history=tuple(trainer.history),
            stopped=reason,
            skipped_steps=trainer.progress.skipped,
        )
        if prepared.devices.is_first:
            write_bytes(out / LEARNED, _learned_json(learned, trainer, prepared))
        prepared.devices.barrier()
        return learned

    def _write_model(self, trainer: ModelTrainer, prepared: Prepared, out: Path) -> Path:
        weights = trainer.parts.weights()
        if not prepared.devices.is_first:
            return out / MODEL
        if prepared.attached is not None:
            prepared.attached.save(out / ADAPTER, prepared.base_digest)
            return out / ADAPTER
        arrays = {name: to_array(tensor) for name, tensor in weights.items()}
        write_checkpoint(out / MODEL, arrays, metadata=prepared.metadata)
        return out / MODEL

    def _done(self, out: Path, *, resume: bool) -> Learned | None:
        """Returns what a finished run has left; refuses a folder in which another run has begun."""
        taken = [name for name in (LEARNED, "checkpoints", "best.safetensors", MODEL) if (out / name).exists()]
        if taken and not resume:
            raise LearningError(
                f"{out} holds a training run already (there is {taken[0]}); --resume goes on with it, "
                "another folder begins anew"
            )
        if LEARNED not in taken:
            return None
        done = _read_learned(out, self.name, self.config)
        has_more = done.stopped == ALL_DONE and done.epoch < self.config.epochs  # than the start before asked for
        return None if has_more else done


def learn(
    config: TrainingConfig,
    out: str | Path,
    *,
    resume: bool = False,
    observers: Callable[[str], Sequence[Observer]] = lambda name: (),
    **given: Any,
) -> tuple[Learned, ...]:
    """Learns what a configuration describes: one model, or each of its experts in a folder of its own.

    Args:
        config: With `experts`, every one is learned with its changes, in this order, below `out/experts`.
        out: The folder; made if need be.
        resume: Whether what is there is continued; experts that are done are left as they are.
        observers: Expert name (empty without experts) → who is told what happens.
        given: What else `LearningPipeline` takes.

    Returns:
        What was learned, in order.

    Raises:
        MineruaError: As `LearningPipeline.run`.
    """
    if not config.experts:
        return (LearningPipeline(config, observers=observers(""), **given).run(out, resume=resume),)
    pipelines = {
        name: LearningPipeline(config.of_expert(name), observers=observers(name), name=name, **given)
        for name in config.experts
    }
    faults = [f"experts.{name}.{fault}" for name, one in pipelines.items() for fault in one.faults()]
    if faults:  # the last expert's too, before the first has learned for hours
        raise LearningError("the experts cannot be learned", faults)
    return tuple(one.run(Path(out) / EXPERTS / name, resume=resume) for name, one in pipelines.items())


@contextlib.contextmanager
def _own_generators(seed: int, devices: DeviceManager) -> Iterator[None]:
    """Seeds the global generators for a run, and gives them back as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed(mixed(seed, _RANDOM), devices)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed(word: int, devices: DeviceManager) -> None:
    random.seed(word)
    np.random.seed(word & 0xFFFFFFFF)
    torch.default_generator.manual_seed(word)
    if devices.device.type == "cuda":
        torch.cuda.manual_seed(word)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Makes a run's folder, and keeps other runs out of it for as long as this process lives.

    The lock is the process's alone: workers that outlive it for a moment, as after a `kill -9`, do not hold it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageError(
            f"{out} cannot be the folder of a run: {error.strerror or error}; choose another one"
        ) from error
    try:
        _lock(file, out)
        yield
    finally:
        os.close(file)


def _lock(file: int, out: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise LearningError(
                f"{out} belongs to a run that is at work; wait for it, or choose another folder"
            ) from error
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
            raise StorageError(f"{out / LOCK} cannot be locked: {error.strerror or error}") from error
        # a file system without locks: nothing keeps others out


# ── what a finished run leaves ───────────────────────────────────────────────────────────────────────────────────────


def _learned_json(learned: Learned, trainer: ModelTrainer, prepared: Prepared) -> bytes:
    content = {
        "model": learned.model.name,
        "step": learned.step,
        "epoch": learned.epoch,
        "best_step": learned.best_step,
        "best_metrics": dict(learned.best_metrics),
        "test_metrics": dict(learned.test_metrics),
        "stopped": learned.stopped,
        "skipped_steps": learned.skipped_steps,
        "history": [{**asdict(one), "metrics": dict(one.metrics)} for one in learned.history],
        "base": prepared.base_digest,
        "config": trainer.config.binding(),
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _read_learned(out: Path, name: str, config: TrainingConfig) -> Learned:
    try:
        content = json.loads((out / LEARNED).read_text("utf-8"))
        faults = compare_runs(content["config"], json.loads(json.dumps(config.binding())))
        if faults:
            raise CheckpointError(
                f"{out} holds the finished run of another configuration; undo what was changed, or begin anew in "
                "another folder",
                faults,
            )
        return Learned(
            name=name,
            out=out,
            model=out / content["model"],
            step=content["step"],
            epoch=content["epoch"],
            best_step=content["best_step"],
            best_metrics=content["best_metrics"],
            test_metrics=content["test_metrics"],
            history=tuple(EvaluationReport(**one) for one in content["history"]),
            stopped=content["stopped"],
            skipped_steps=content["skipped_steps"],
            already_done=True,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{out / LEARNED} cannot be read: {error}; remove it to finish the run anew") from error
