"""What the chosen model makes of some test items: asked of the tasks once, kept in a file for the report."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minerua.errors import BrokenPlugin, JournalError
from minerua.evaluation import Task
from minerua.registry import Registry
from minerua.registry.specs import exhibit_faults
from minerua.report import Exhibits, TaskExhibits, exhibits_json, png_size, read_exhibits
from minerua.run.evolve import Population
from minerua.run.prepare import Prepared
from minerua.values import Exhibit, Failure, Genome
from minerua.weights import write_bytes

EXHIBITS = "exhibits.json"
"""The file in a run's folder; only runs have it whose tasks show something."""

ITEMS = 6
"""How many items of each task are shown: the first of its test split."""

MOST_PNG_BYTES, MOST_PIXELS = 512 << 10, 1 << 22
"""Of one picture. A small file may hold a picture that fills the memory of whoever looks at it."""

MOST_LETTERS, MOST_TITLE_LETTERS = 32 << 10, 200
"""Of one text, and of its title; what is longer is cut."""

MOST_BYTES = 8 << 20
"""Of a report, texts and pictures of all tasks together."""


def exhibit(
    folder: Path, registry: Registry, prepared: Prepared, population: Population, best: Genome
) -> Exhibits | None:
    """Asks every task that can show something for the first items of its test split, and writes down what it shows.

    Nothing that a plugin does here loses the run: it becomes a sentence in the report, and a warning. What an earlier
    process has written of the same model, with the same plugins and without a failure, stands.

    Args:
        folder: Of the run.
        registry: Says which plugin, of which version, provides what.
        prepared: The checked parts.
        population: The population after its last child.
        best: The final model's genome.

    Returns:
        What is shown; `None` where no task shows anything.

    Raises:
        StorageError: The file cannot be written.
    """
    names = {task.name: str(registry.evaluators.provider(task.evaluator)) for task in prepared.config.tasks}
    tasks = [task for task in prepared.tasks if task.evaluator.exhibit is not None]
    if not tasks:
        return None
    earlier = _earlier(folder, best.digest, {task.name: names[task.name] for task in tasks})
    if earlier is not None:
        return earlier
    model = population.evaluation.attempt(lambda: population.models.build(best))
    if isinstance(model, Failure):
        kind = registry.models.provider(prepared.config.model.name)
        why = f"{kind} could not make a callable of the chosen model: {model.reason}"
        shown = [_failed(task, names[task.name], why) for task in tasks]
    else:
        shown = [_asked(population, task, names[task.name], model) for task in tasks]
    exhibits = _bounded(Exhibits(best.digest, tuple(shown)))
    write_bytes(folder / EXHIBITS, json.dumps(exhibits_json(exhibits), indent=1).encode() + b"\n")
    return exhibits


def kept_exhibits(folder: Path) -> Exhibits | None:
    """Returns what a run's folder has to show; `None` if it has nothing.

    Raises:
        JournalError: The file is there and cannot be read.
    """
    path = folder / EXHIBITS
    try:
        return read_exhibits(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:  # a JournalError is a ValueError
        raise JournalError(
            f"{path} cannot be read: {error}; delete it and resume the run, which then writes it anew"
        ) from error


def _earlier(folder: Path, best: str, plugins: dict[str, str]) -> Exhibits | None:
    """Returns what the file has, if that is what would be asked for now, and nothing in it failed."""
    try:
        kept = kept_exhibits(folder)
    except JournalError:
        return None  # it is written anew
    if kept is None or any(task.failed for task in kept.tasks):
        return None
    return kept if (kept.best, {task.task: task.plugin for task in kept.tasks}) == (best, plugins) else None


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _asked(population: Population, task: Task, plugin: str, model: Any) -> TaskExhibits:
    """Returns what a task shows, or why it shows nothing."""
    ids = task.ids["test"][:ITEMS]
    found = population.evaluation.attempt(lambda: _shown(task, model, ids))
    if isinstance(found, Failure):
        return _failed(task, plugin, f"{plugin} could not show what the chosen model does: {found.reason}")
    return TaskExhibits(task.name, plugin, tuple(sorted(found, key=lambda one: ids.index(one.item))))


def _shown(task: Task, model: Any, ids: Sequence[str]) -> list[Exhibit]:
    """Returns what a task shows, as it can be written down.

    Raises:
        BrokenPlugin: It is not what an evaluator shows.
    """
    if task.evaluator.exhibit is None:
        return []
    shown = task.evaluator.exhibit(model, list(ids))
    faults = exhibit_faults(shown, ids)
    if faults:
        raise BrokenPlugin("what it returned cannot be shown", faults)
    return [_written(one) for one in shown]


def _written(shown: Exhibit) -> Exhibit:
    """Returns an exhibit with texts of a bounded length and without half letters, as a model may write them."""
    text = None if shown.text is None else _cut(shown.text, MOST_LETTERS)
    return dataclasses.replace(shown, item=str(shown.item), title=_cut(shown.title, MOST_TITLE_LETTERS), text=text)


def _cut(text: str, most: int) -> str:
    whole = text if len(text) <= most else f"{text[:most]} … {len(text) - most:,} more letters"
    return _encodable(whole)


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _failed(task: Task, plugin: str, why: str) -> TaskExhibits:
    warnings.warn(f"task {task.name!r}: {why}; the report shows nothing there", RuntimeWarning, stacklevel=2)
    return TaskExhibits(task.name, plugin, notes=(_encodable(f"{why.rstrip('.')}."),), failed=True)


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Room:
    """What is left of a report's bytes.

    Args:
        bytes: How many.
        notes: What did not fit, of the task at hand.
    """

    bytes: int
    notes: list[str] = field(default_factory=list)

    def fitting(self, shown: Exhibit) -> Exhibit | None:
        """Returns what there is room for of an exhibit; `None` if that is nothing."""
        png = shown.png
        if png is not None and (fault := _too_large(png)):
            self.notes.append(f"The picture of item {shown.item} is left out: {fault}.")
            png = None
        needed = len(png or b"") + len((shown.text or "").encode())
        if png is None and shown.text is None:
            return None
        if needed > self.bytes:
            self.notes.append(f"Item {shown.item} is left out: a report shows {_size(MOST_BYTES)} at most.")
            return None
        self.bytes -= needed
        return dataclasses.replace(shown, png=png)


def _too_large(png: bytes) -> str:
    """Says what is too large about a picture; empty if nothing is."""
    width, height = png_size(png)
    if len(png) > MOST_PNG_BYTES:
        return f"it has {_size(len(png))}, and {_size(MOST_PNG_BYTES)} are the most"
    if not 0 < width * height <= MOST_PIXELS:
        return f"it is {width} × {height} pixels large, and {MOST_PIXELS:,} pixels are the most"
    return ""


def _size(count: int) -> str:
    return f"{count / (1 << 20):.3g} MiB" if count >= 1 << 20 else f"{count / (1 << 10):.4g} KiB"


def _bounded(exhibits: Exhibits) -> Exhibits:
    """Returns exhibits without what is too large; what is left out is told."""
    room, tasks = _Room(MOST_BYTES), []
    for task in exhibits.tasks:
        kept = [one for one in map(room.fitting, task.exhibits) if one is not None]
        tasks.append(dataclasses.replace(task, exhibits=tuple(kept), notes=(*task.notes, *room.notes)))
        room.notes.clear()
    return dataclasses.replace(exhibits, tasks=tuple(tasks))
