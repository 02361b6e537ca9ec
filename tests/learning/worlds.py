"""A small world for training: a model with dropout, data with random augmentation, torch's optimizers by name.

Also a program, which trains in processes that can be killed (`run_jobs`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from minerua.learning.config import TrainingConfig
from minerua.learning.pipeline import LearningPipeline
from minerua.learning.reports import EvaluationReport, Observer, StepReport
from minerua.values import LossSpec, ModelSpec, OptimizerSpec

INPUTS, CLASSES = 12, 4


class Points:
    """Noisy points around class centres; with augmentation from the given generator."""

    def __init__(self, count: int, *, seed: int = 0, augmented: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(CLASSES, INPUTS, generator=torch.Generator().manual_seed(99))
        self.targets = torch.randint(CLASSES, (count,), generator=generator)
        self.inputs = centres[self.targets] + 0.7 * torch.randn(count, INPUTS, generator=generator)
        self.pure = True
        if augmented:
            self.example = self._example

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index], self.targets[index]

    def _example(self, index: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index] + 0.3 * torch.randn(INPUTS, generator=generator), self.targets[index]


class Careless(Points):
    """Draws its augmentation from every global generator there is."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        super().__init__(count, seed=seed)
        self.pure = False

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(INPUTS) + random.random() + float(np.random.rand())
        return self.inputs[index] + 0.1 * noise, self.targets[index]


def mlp(width: int = 16, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(INPUTS, width)]
    layers += [nn.BatchNorm1d(width)] if norm else []
    layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, CLASSES)]
    return nn.Sequential(*layers)


def drawing(width: int = 16, dropout: float = 0.0) -> nn.Module:
    """A model that draws from Python's, numpy's and torch's generators in its forward pass."""

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(INPUTS, width), nn.Linear(width, CLASSES)
            self.drop = nn.Dropout(dropout)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = 1.0
            if self.training:
                scale = 0.5 + random.random() + float(np.random.rand()) + float(torch.rand(()))
            return self.last(self.drop(torch.relu(self.first(x))) * scale)

    return Drawing()


MODELS = {
    "mlp": ModelSpec("mlp", build=dict, module=mlp),
    "drawing": ModelSpec("drawing", build=dict, module=drawing),
    "frozen": ModelSpec("frozen", build=dict),
}
OPTIMIZERS = {
    name: OptimizerSpec(name, build)
    for name, build in {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adafactor": torch.optim.Adafactor,
    }.items()
}


def _ignoring(predictions: torch.Tensor, targets: torch.Tensor, *, nothing: int = -100) -> torch.Tensor:
    return nn.functional.cross_entropy(predictions, targets, ignore_index=nothing)


LOSSES = {
    "cross-entropy": LossSpec("cross-entropy", nn.functional.cross_entropy),
    "ignoring": LossSpec("ignoring", _ignoring, lambda targets, nothing=-100: int((targets != nothing).sum())),
    "mse": LossSpec("mse", nn.functional.mse_loss),
}

PLAIN: dict[str, Any] = {
    "seed": 5,
    "model": {"name": "mlp", "settings": {"dropout": 0.2}},
    "loss": "cross-entropy",
    "optimizer": {"name": "adamw", "rate": 0.01},
    "epochs": 3,
    "batch_size": 8,
    "metrics": ["accuracy"],
    "device": {"name": "cpu", "threads": 1},
}


def splits(
    train: int = 60, validation: int = 24, test: int = 16, *, augmented: bool = False, careless: bool = False
) -> SimpleNamespace:
    kind = Careless(train) if careless else Points(train, augmented=augmented)
    return SimpleNamespace(
        train=kind,
        validation=Points(validation, seed=1) if validation else None,
        test=Points(test, seed=2) if test else None,
    )


class Diary(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.starts: list[Any] = []
        self.steps: list[StepReport] = []
        self.evaluations: list[EvaluationReport] = []
        self.paths: list[Path] = []
        self.ends: list[Any] = []

    def started(self, report: Any) -> None:
        self.starts.append(report)

    def step_finished(self, report: StepReport) -> None:
        self.steps.append(report)

    def evaluated(self, report: EvaluationReport) -> None:
        self.evaluations.append(report)

    def saved(self, path: Path) -> None:
        self.paths.append(path)

    def finished(self, learned: Any) -> None:
        self.ends.append(learned)

    def stopped(self, error: BaseException) -> None:
        self.ends.append(error)


def pipeline(changes: dict[str, Any] | None = None, *, data: Any = None, observers: Any = (), **more: Any) -> Any:
    config = TrainingConfig.read(PLAIN).changed(**(changes or {}))
    catalogs = {"models": MODELS, "optimizers": OPTIMIZERS, "losses": LOSSES, **more}
    return LearningPipeline(config, data=data or splits(), observers=observers, **catalogs)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


class Killer(Observer):
    """Ends the process without any warning in the middle of what follows a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_finished(self, report: StepReport) -> None:
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


# ── the program ──────────────────────────────────────────────────────────────────────────────────────────────────────


def run_jobs(folder: Path, jobs: list[dict[str, Any]]) -> list[int]:
    """Carries out jobs one after the other, each in processes of its own, which share only that torch is imported.

    A job has `out`, and may have `changes`, `splits`, `processes`, `kill` (the step after which it is killed) and
    `after` (the share of the first job's time after which it is). Returns each job's exit code, its first process's.
    """
    (folder / "jobs.json").write_text(json.dumps(jobs))
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    sys.stderr.write(done.stderr)
    return list(json.loads(done.stdout))


def _carry_out(folder: Path, job: dict[str, Any], whole_seconds: float) -> int:
    processes = job.get("processes", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_start(folder, job, rank, processes, port) for rank in range(processes)]
    if "after" in job:
        time.sleep(job["after"] * whole_seconds)
        os.kill(children[0], signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
    for child in children[1:]:
        if code:  # as torchrun does when one process dies
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return code


def _start(folder: Path, job: dict[str, Any], rank: int, processes: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if processes > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        kill = [Killer(job["kill"])] if job.get("kill") else []
        run = pipeline(job.get("changes"), data=splits(**job.get("splits", {})), observers=kill)
        run.run(folder / job["out"], resume=True)
        code = 0
    except BaseException:  # printed, for nobody else will see it; raised again
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)
    return 0


def main(folder: Path) -> None:
    """Carries out the jobs of a folder, and prints their exit codes."""
    import torch._dynamo  # what the first optimizer would import in every process  # noqa: F401

    jobs = json.loads((folder / "jobs.json").read_text())
    begin = time.monotonic()
    codes = [_carry_out(folder, jobs[0], 0.0)]
    whole_seconds = time.monotonic() - begin  # kills come as soon as this machine is fast
    codes += [_carry_out(folder, job, whole_seconds) for job in jobs[1:]]
    print(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
