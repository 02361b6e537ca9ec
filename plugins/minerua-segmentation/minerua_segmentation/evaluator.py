"""The family of evaluators `segmentation`: folders of images and masks, and a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua import EvaluatorSpec, MineruaError
from minerua.settings import Settings
from minerua.values import Exhibit

from .collection import Collection, Source, open_collection, read_source
from .drawing import OUTLINES, outlined
from .metrics import METRICS

if TYPE_CHECKING:
    import numpy as np

    from minerua.values import RunContext

__all__ = ["NAMES", "Task", "configure_segmentation", "read_task", "segmentation_evaluator"]

NAMES = {"dice": "Dice", "iou": "IoU", "s-measure": "S-measure", "mae": "1 − MAE"}
"""What people call the metrics."""


@dataclass(frozen=True)
class Task:
    """How answers are scored.

    Args:
        metric: Name of one of `METRICS`.
        cut: Probabilities above it count as found, for `dice` and `iou`.
    """

    metric: str = "dice"
    cut: float = 0.5

    def score(self, found: Any, masks: np.ndarray) -> np.ndarray:
        """Returns one outcome in [0, 1] per image.

        Args:
            found: What a model answered: probabilities, shape (n, h, w).
            masks: Shape (n, h, w), bool.

        Raises:
            MineruaError: The answer has another shape, or is no probabilities.
        """
        return METRICS[self.metric](_checked(found, masks), masks, cut=self.cut)

    def drawn(self, ids: Sequence[str], images: np.ndarray, masks: np.ndarray, found: Any) -> list[Exhibit]:
        """Returns a picture per image, with what is there and what was found outlined, under its Dice and its outcome.

        Args:
            ids: n names.
            images: Shape (n, h, w, 3), uint8.
            masks: Shape (n, h, w), bool.
            found: What a model answered: probabilities, shape (n, h, w).

        Raises:
            MineruaError: As `score`.
        """
        answer = _checked(found, masks)
        scores = {name: METRICS[name](answer, masks, cut=self.cut) for name in dict.fromkeys(("dice", self.metric))}
        shown = []
        for k, id in enumerate(ids):
            worth = ", ".join(f"{NAMES[name]} {score[k]:.2f}" for name, score in scores.items())
            title = f"{worth}; {OUTLINES}"
            shown.append(Exhibit(id, title, png=outlined(images[k], masks[k], answer[k] > self.cut)))
        return shown


def read_task(settings: Mapping[str, Any], folder: Path) -> tuple[Source, Task]:
    """Returns which pictures a task is over, and how it is scored.

    Args:
        settings: `path`, `layout`, `size`, `threshold`, `classes`, `most`, `most_bad`, `cache`, `metric`, `cut`; see
            the README.
        folder: Where relative paths begin.

    Raises:
        ConfigError: A setting is wrong; all faults.
    """
    told = Settings("the evaluator 'segmentation'", settings, folder)
    source = read_source(told)
    task = Task(told.choice("metric", tuple(METRICS), "dice"), told.number("cut", 0.5, least=0, most=1))
    told.done()
    return source, task


def configure_segmentation(settings: Mapping[str, Any], context: RunContext) -> EvaluatorSpec:
    """Returns the evaluator that a task's settings describe.

    Args:
        settings: As `read_task`.
        context: Where relative paths begin.

    Raises:
        ConfigError: A setting is wrong, or pictures cannot be used; all faults.
    """
    source, task = read_task(settings, context.folder)
    return segmentation_evaluator(open_collection(source), task)


def segmentation_evaluator(collection: Collection, task: Task, *, name: str = "segmentation") -> EvaluatorSpec:
    """Returns a task over pictures: one item per image.

    Args:
        collection: The pictures.
        task: How answers are scored.
        name: The evaluator's name.

    Returns:
        An evaluator of callables that take images (n, h, w, 3), uint8, and return probabilities (n, h, w). Its version
        names the pixels, so that no outcome outlives a changed picture.
    """

    def evaluate(model: Any, ids: Sequence[str], seed: int) -> np.ndarray:
        images, masks = collection.chosen(ids)
        return task.score(model(images), masks)

    def exhibit(model: Any, ids: Sequence[str]) -> list[Exhibit]:
        images, masks = collection.chosen(ids)
        return task.drawn(ids, images, masks, model(images))

    return EvaluatorSpec(
        name=name,
        items=lambda: collection.ids,
        evaluate=evaluate,
        inputs=lambda ids: collection.chosen(ids)[0],
        version=f"1 {task.metric} {task.cut:g} {collection.content}",
        exhibit=exhibit,
    )


def _checked(found: Any, masks: np.ndarray) -> np.ndarray:
    """Returns what a model answered, if it is what it should be."""
    import numpy as np

    answer = np.asarray(found)
    if answer.shape != masks.shape or answer.dtype.kind != "f":
        raise MineruaError(
            f"the model answered {answer.dtype.name} {list(answer.shape)} to {len(masks)} images; one probability per "
            f"pixel is needed, {list(masks.shape)}"
        )
    wrong = ~((answer >= 0) & (answer <= 1)).all((1, 2))
    if wrong.any():
        raise MineruaError(
            f"of {len(masks)} images {int(wrong.sum())} have answers that are no probabilities in [0, 1]"
        )
    return answer
