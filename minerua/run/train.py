"""A training file carried out: YAML in, models on disk out, and a page of how it went."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from minerua.config import read_yaml
from minerua.errors import ConfigError, StorageError
from minerua.learning.config import TrainingConfig
from minerua.learning.reports import Learned, Observer
from minerua.learning.sections import overlaid
from minerua.registry import Registry
from minerua.weights import write_bytes

REPORT = "report.html"
"""What the page is called in a run's folder."""


def read_training(path: str | Path, settings: Sequence[str] = ()) -> TrainingConfig:
    """Reads a training file.

    Args:
        path: The file.
        settings: Other values for it: `"optimizer.rate=0.01"`, the value as YAML.

    Raises:
        ConfigError: With every fault.
    """
    content: Mapping[str, Any] = read_yaml(path)
    for setting in settings:
        content = overlaid(content, _setting(setting))
    return TrainingConfig.read(content, where=str(path))


def _setting(text: str) -> dict[str, Any]:
    """Returns `{"optimizer": {"rate": 0.01}}` for `"optimizer.rate=0.01"`."""
    place, equals, value = text.partition("=")
    if not equals or not all(place.split(".")):
        raise ConfigError(f"--set {text}: write KEY=VALUE, such as optimizer.rate=0.01")
    try:
        content: Any = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # ValueError: dates, huge numbers
        raise ConfigError(f"--set {text}: the value is no valid YAML: {' '.join(str(error).split())}") from error
    for key in reversed(place.split(".")):
        content = {key: content}
    return dict(content)


def execute_training(
    path: str | Path,
    *,
    registry: Registry,
    out: str | Path | None = None,
    resume: bool = False,
    settings: Sequence[str] = (),
) -> tuple[Learned, ...]:
    """Learns what a training file describes, or goes on where it stopped.

    Args:
        path: The file; its relative paths start at it.
        registry: Where models, optimizers, losses and skills are found.
        out: The folder; default: the file's name without its end, beside it.
        resume: Whether a run that is there is continued.
        settings: Other values for the file, as `read_training` takes them.

    Returns:
        What was learned: one model, or one per expert. Beside each lies `report.html` if there are tables to make it
        of; a run that was done already is given one only if it has none.

    Raises:
        MineruaError: As `LearningPipeline.run`, or a file that cannot be used; nothing was written then.
    """
    from minerua.learning.pipeline import learn  # with it comes torch

    path = Path(path)
    config = read_training(path, settings)
    folder = path.with_suffix("") if out is None else Path(out)
    if out is None and folder == path:
        raise ConfigError(f"{path} has no end such as .yaml, so its results need a folder of another name: give --out")
    learned = learn(
        config,
        folder,
        resume=resume,
        observers=lambda name: _observers(config.of_expert(name) if name else config),
        models=registry.models,
        optimizers=registry.optimizers,
        losses=registry.losses,
        skills=registry.skills,
        folder=path.parent,
    )
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process writes for all
        for one in learned:
            _write_report(one, one.name or config.model.name)
    return learned


def _write_report(learned: Learned, name: str) -> None:
    """Writes the page of a finished run, unless it has one, or wrote no tables."""
    from minerua.learning.logs import EVALUATIONS, STEPS
    from minerua.learning.pipeline import LEARNED
    from minerua.report import read_training_log, render_training

    page = learned.out / REPORT
    if (learned.already_done and page.exists()) or not (learned.out / STEPS).exists():
        return
    steps, evaluations, result = (_text(learned.out / name) for name in (STEPS, EVALUATIONS, LEARNED))
    log = read_training_log(steps, evaluations)
    write_bytes(page, render_training(name, log, json.loads(result)).encode())


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} cannot be read for {REPORT}: {error}; the model is whole") from error


def _observers(config: TrainingConfig) -> list[Observer]:
    """Returns who watches a run: a bar where somebody looks, and logs in its folder."""
    from minerua.learning.logs import CsvLog, TensorBoardLog
    from minerua.learning.watching import Notes, ProgressBar

    logs: dict[str, type[Observer]] = {"csv": CsvLog, "tensorboard": TensorBoardLog}
    return [Notes(), ProgressBar(), *(logs[name]() for name in config.logs)]
