"""One training, written as each framework wants it: a small model, batches made before, AdamW, one torch thread.

Also a program: `python training_loops.py NAME FOLDER` takes a single step, for the time until there is one.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

RATE, BATCH, INPUTS, WIDTH, CLASSES = 1e-3, 32, 32, 64, 10


class Batches(Dataset[Any]):
    """Batches that were made before; each look at one notes the time."""

    pure = True

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(count, BATCH, INPUTS, generator=generator)
        targets = torch.randint(CLASSES, (count, BATCH), generator=generator)
        self.made = list(zip(inputs.unbind(), targets.unbind(), strict=True))
        self.looks: list[float] = []

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> Any:
        self.looks.append(time.perf_counter())
        return self.made[index]

    @staticmethod
    def collate(one: list[Any]) -> Any:
        """Hands on a batch that is one already."""
        return one[0]

    def loader(self) -> Any:
        """As one writes it in plain torch."""
        return DataLoader(self, batch_size=None, shuffle=False)


def network() -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def _optimizer(parameters: Any, lr: float = RATE) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)


def _loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(predictions, targets)


# ── plain torch ──────────────────────────────────────────────────────────────────────────────────────────────────────


def plain(batches: Batches, folder: Path) -> nn.Module:
    """The floor."""
    module = network()
    optimizer = _optimizer(module.parameters())
    for inputs, targets in batches.loader():
        optimizer.zero_grad()
        _loss(module(inputs), targets).backward()
        optimizer.step()
    return module


def usual(batches: Batches, folder: Path) -> nn.Module:
    """With a schedule, clipping that never clips, and every loss read: what people add by hand."""
    module = network()
    optimizer = _optimizer(module.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    total = 0.0
    for inputs, targets in batches.loader():
        optimizer.zero_grad()
        loss = _loss(module(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1e9)
        optimizer.step()
        schedule.step()
        total += loss.item()
    return module


# ── minerua ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def minerua(batches: Batches, folder: Path, *, observers: Callable[[], list[Any]] = list) -> nn.Module:
    """The whole pipeline: everything checked and tried, a checkpoint and the final model on the disk at the end."""
    from minerua.learning import LearningPipeline, TrainingConfig
    from minerua.values import LossSpec, ModelSpec, OptimizerSpec

    made: list[nn.Module] = []

    def module() -> nn.Module:
        made.append(network())
        return made[-1]

    config = {"model": "mlp", "loss": "ce", "optimizer": {"name": "adamw", "rate": RATE}}
    config |= {"epochs": 1, "batch_size": 1, "shuffle": False, "device": {"name": "cpu"}}
    pipeline = LearningPipeline(
        TrainingConfig.read(config),
        models={"mlp": ModelSpec("mlp", build=dict, module=module)},
        optimizers={"adamw": OptimizerSpec("adamw", _optimizer)},
        losses={"ce": LossSpec("ce", _loss)},
        data=SimpleNamespace(train=batches, validation=None, test=None),
        observers=observers(),
    )
    pipeline.run(folder / "run")
    return made[-1]


def minerua_watched(batches: Batches, folder: Path) -> nn.Module:
    """The same with a bar on a terminal and both tables."""
    from rich.console import Console

    from minerua.learning.logs import CsvLog
    from minerua.learning.watching import ProgressBar

    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(file=nowhere, force_terminal=True, width=120)
        return minerua(batches, folder, observers=lambda: [ProgressBar(console), CsvLog()])


# ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fabric(batches: Batches, folder: Path) -> nn.Module:
    """Lightning Fabric: a loop of one's own."""
    from lightning.fabric import Fabric

    lightning = Fabric(accelerator="cpu", devices=1)
    module = network()
    wrapped, optimizer = lightning.setup(module, _optimizer(module.parameters()))
    for inputs, targets in lightning.setup_dataloaders(batches.loader()):
        optimizer.zero_grad()
        lightning.backward(_loss(wrapped(inputs), targets))
        optimizer.step()
    return module


def accelerate(batches: Batches, folder: Path) -> nn.Module:
    """Hugging Face Accelerate: a loop of one's own, with its accumulation."""
    from accelerate import Accelerator

    helper = Accelerator(cpu=True)
    module = network()
    wrapped, optimizer, loader = helper.prepare(module, _optimizer(module.parameters()), batches.loader())
    for inputs, targets in loader:
        with helper.accumulate(wrapped):
            optimizer.zero_grad()
            helper.backward(_loss(wrapped(inputs), targets))
            optimizer.step()
    return module


def ignite(batches: Batches, folder: Path, *, is_watched: bool = False) -> nn.Module:
    """PyTorch Ignite's engine around a step of one's own."""
    from ignite.engine import Engine

    module = network()
    optimizer = _optimizer(module.parameters())

    def update(engine: Any, batch: Any) -> float | None:
        optimizer.zero_grad()
        loss = _loss(module(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item() if is_watched else None

    engine = Engine(update)
    if is_watched:
        from ignite.handlers import ProgressBar

        ProgressBar(disable=False, file=sys.stderr).attach(engine, output_transform=lambda loss: {"loss": loss})
    engine.run(batches.loader(), max_epochs=1)
    return module


def ignite_watched(batches: Batches, folder: Path) -> nn.Module:
    """With its bar."""
    return ignite(batches, folder, is_watched=True)


def lightning(batches: Batches, folder: Path, *, is_watched: bool = False, **settings: Any) -> nn.Module:
    """Lightning's trainer."""
    import lightning as pl
    from lightning.pytorch.loggers import CSVLogger

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = _loss(self.network(batch[0]), batch[1])
            if is_watched:
                self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(self.network.parameters())

    if is_watched:
        settings |= {"logger": CSVLogger(folder), "log_every_n_steps": 10, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, default_root_dir=folder, **settings)
    module = Module()
    trainer.fit(module, batches.loader())
    return module.network


def lightning_bare(batches: Batches, folder: Path) -> nn.Module:
    """With everything off that can be off."""
    return lightning(batches, folder, barebones=True)


def lightning_watched(batches: Batches, folder: Path) -> nn.Module:
    """With its bar, its table and its checkpoint at the end."""
    return lightning(batches, folder, is_watched=True)


@dataclass(frozen=True)
class Loop:
    """A way to train.

    Args:
        train: Trains on the batches, may write into the folder; returns the module.
        needs: The package that it is made with.
    """

    train: Callable[[Batches, Path], nn.Module]
    needs: str = "torch"

    @property
    def is_installed(self) -> bool:
        """Whether it can run here."""
        return importlib.util.find_spec(self.needs) is not None


LOOPS: Mapping[str, Loop] = {
    "plain torch": Loop(plain),
    "plain, clipped, scheduled, read": Loop(usual),
    "minerua": Loop(minerua, "minerua"),
    "minerua, bar and tables": Loop(minerua_watched, "minerua"),
    "Ignite": Loop(ignite, "ignite"),
    "Ignite, bar": Loop(ignite_watched, "ignite"),
    "Fabric": Loop(fabric, "lightning"),
    "Accelerate": Loop(accelerate, "accelerate"),
    "Lightning, barebones": Loop(lightning_bare, "lightning"),
    "Lightning, bar and table": Loop(lightning_watched, "lightning"),
}


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One torch thread, no warnings, and stderr into the void: what a bar costs is drawn, not shown."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            warnings.catch_warnings(),
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            contextlib.redirect_stderr(nowhere),
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what was learned."""
    return copy.deepcopy(module.state_dict())


if __name__ == "__main__":
    with alone():
        LOOPS[sys.argv[1]].train(Batches(1), Path(sys.argv[2]))
