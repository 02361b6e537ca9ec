"""`python -m minerua_segmentation.overlays RUN`: what a run's models find, drawn over images: PNGs and one page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua import MineruaError, ModelSpec
from minerua.errors import ConfigError, StorageError, unknown
from minerua.values import RunContext

from .collection import Collection, open_collection
from .drawing import page, panel, strip
from .evaluator import Task, read_task
from .sam import configure_sam
from .unet import configure_unet

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BEST", "KINDS", "Model", "main", "write_overlays"]

BEST = "best.safetensors"
"""The file in a run's folder that holds its chosen model."""

KINDS: Mapping[str, Callable[[Mapping[str, Any], RunContext], ModelSpec]] = {
    "unet": configure_unet,
    "sam": configure_sam,
}

Model = Callable[["np.ndarray"], "np.ndarray"]


def write_overlays(run: str | Path, out: str | Path | None = None, *, count: int = 6) -> Path:
    """Draws what base, experts and the chosen model of a run find in some images of each task.

    The images are the first of each task by name, whatever split they are in: this is to look at, not to measure.

    Args:
        run: A run file with a model kind and tasks of this package, or the folder that has it as `run.yaml`. The run's
            results lie in the file's folder.
        out: Where; by default the folder `overlays` there. Files of the same names are written anew.
        count: How many images of each task.

    Returns:
        The page `overlays.html`: self-contained, it asks the network for nothing. Beside it lies `TASK.png` per task.

    Raises:
        ConfigError: The run is not there, not finished, or not about segmentation; lists all faults.
        StorageError: Something cannot be written.
    """
    if count < 1:
        raise ConfigError(f"count is {count}; at least one image of each task is drawn")
    path = Path(run) / "run.yaml" if Path(run).is_dir() else Path(run)
    opened = _open(path)
    target = path.parent / "overlays" if out is None else Path(out)
    pictures = {name: strip(_rows(opened.models, where, count)) for name, (where, _) in opened.tasks.items()}
    scores = {name: _scores(opened.models, *task) for name, task in opened.tasks.items()}
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            (target / f"{name}.png").write_bytes(picture)
        shown = page(pictures, ["image", "its mask", *opened.models], scores)
        (target / "overlays.html").write_text(shown, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"overlays cannot be written to {target}: {error.strerror or error}") from error
    return target / "overlays.html"


def main(arguments: list[str] | None = None) -> int:
    """Draws overlays as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m minerua_segmentation.overlays", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run file, or its folder")
    parser.add_argument("--out", help="the folder; default: overlays, beside the run file")
    parser.add_argument("--count", type=int, default=6, help="images of each task; default: 6")
    given = parser.parse_args(arguments)
    try:
        sys.stdout.write(f"{write_overlays(given.run, given.out, count=given.count)}\n")
    except MineruaError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    return 0


# ── what is drawn ────────────────────────────────────────────────────────────────────────────────────────────────────


def _rows(models: Mapping[str, Model], collection: Collection, count: int) -> list[list[np.ndarray]]:
    """Returns one row of pictures per image: as it is, its mask, and what each model finds in it."""
    images, masks = collection.chosen(collection.ids[:count])
    found = [masks, *(model(images) > 0.5 for model in models.values())]
    return [
        [image, *(panel(image, mask, one[k]) for one in found)]
        for k, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]


def _scores(models: Mapping[str, Model], collection: Collection, task: Task) -> dict[str, float]:
    """Returns each model's mean outcome over all items of a task."""
    return {
        name: float(task.score(model(collection.images), collection.masks).mean()) for name, model in models.items()
    }


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Run:
    """What is needed of a run: models and tasks, by their names in it."""

    models: Mapping[str, Model]
    tasks: Mapping[str, tuple[Collection, Task]]


def _open(path: Path) -> _Run:
    said = _read(path)
    model = said.get("model")
    kind, settings = (model.get("name"), model.get("settings", {})) if isinstance(model, dict) else (model, {})
    tasks = said.get("tasks") or []
    strange = [f"task {task!r:.60} is none of the evaluator 'segmentation'" for task in tasks if not _is_ours(task)]
    faults = strange + ([] if kind in KINDS else [f"model: {unknown('model kind', str(kind), tuple(KINDS))}"])
    files = {"base": said.get("base"), **(said.get("experts") or {}), "best": BEST}
    found = {name: path.parent / str(file) for name, file in files.items()}
    faults += [f"{name}: {file} is not there" for name, file in found.items() if not file.exists()]
    faults += [] if tasks else ["it has no tasks"]
    if faults:
        raise ConfigError(f"{path} is no finished run whose masks can be drawn", faults)
    spec = KINDS[str(kind)](settings, RunContext(path.parent, found["base"]))
    models = {name: spec.build(_weights(file)) for name, file in found.items()}
    return _Run(models, {task.get("name", "segmentation"): _task(task, path.parent) for task in tasks})


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        said = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a run file: {error}") from error
    return said if isinstance(said, dict) else {}


def _is_ours(task: Any) -> bool:
    return isinstance(task, dict) and task.get("evaluator", task.get("name")) == "segmentation"


def _task(task: Mapping[str, Any], folder: Path) -> tuple[Collection, Task]:
    source, scored = read_task(task.get("settings", {}), folder)
    return open_collection(source), scored


def _weights(path: Path) -> Mapping[str, np.ndarray]:
    """Returns the tensors of a file, or of the files in a folder."""
    from safetensors.numpy import load_file

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    try:
        return {name: array for file in files for name, array in load_file(file).items()}
    except Exception as error:  # safetensors' own errors are children of nothing more
        raise ConfigError(f"{path} cannot be read as safetensors: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
