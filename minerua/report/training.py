"""A training run as a page: learning curves, the best, the last and the final model; from the run's own logs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minerua.errors import LearningError
from minerua.report.learning_curves import Curve, curve_figure
from minerua.report.markup import Markup, element
from minerua.report.page import whole_page
from minerua.report.words import counted

RATE, LOSS = "rate", "loss"
_PLACE = ("step", "epoch", "split", "examples", "rate", "best", "training_loss")


@dataclass(frozen=True)
class TrainingLog:
    """What the logs of a run hold.

    Args:
        steps: The rows of `steps.csv`: step, loss, rate and why the weights were left as they were (mostly empty).
        evaluations: The rows of `evaluations.csv`, their numbers by column.
        splits: What each evaluation was on; as many as `evaluations`.
    """

    steps: tuple[tuple[int, float, float, str], ...]
    evaluations: tuple[Mapping[str, float], ...]
    splits: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what evaluations measure, the loss first."""
        names = dict.fromkeys(name for row in self.evaluations for name in row if name not in _PLACE)
        return tuple(sorted(names, key=lambda name: name != LOSS))

    @property
    def best(self) -> Mapping[str, float] | None:
        """The best evaluation; `None` before the first."""
        return next((row for row in reversed(self.evaluations) if row["best"]), None)

    @property
    def skipped(self) -> tuple[tuple[int, str], ...]:
        """Steps that the guard did not let through, and why."""
        return tuple((step, why) for step, _, _, why in self.steps if why)


def read_training_log(steps: str, evaluations: str = "") -> TrainingLog:
    r"""Reads the logs of a run, finished or not.

    A torn last line, as a run that is at work or was killed may have it, is left out.

    Args:
        steps: What `steps.csv` holds.
        evaluations: What `evaluations.csv` holds; empty before the first evaluation.

    Raises:
        LearningError: If a row cannot be read; the message names table and line.

    Example:
        >>> read_training_log("step,loss,rate,skipped\n1,0.5,0.1,\n2,0.4").steps
        ((1, 0.5, 0.1, ''),)
    """
    rows = _rows(steps, "steps.csv", ("step", "loss", "rate", "skipped"))
    taken = tuple(
        (int(_number(row, "step", line)), _number(row, "loss", line), _number(row, "rate", line), row["skipped"])
        for line, row in rows
    )
    measured = _rows(evaluations, "evaluations.csv", _PLACE)
    numbers = tuple(
        {name: _number(row, name, line) for name in row if name != "split" and row[name] != ""}
        for line, row in measured
    )
    return TrainingLog(taken, numbers, tuple(row["split"] for _, row in measured))


def _rows(text: str, name: str, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Each whole row with the words for its place."""
    whole = text[: text.rfind("\n") + 1]
    table = list(csv.reader(io.StringIO(whole)))
    head = table[0] if table else []
    missing = [column for column in columns if column not in head]
    if table and missing:
        raise LearningError(f"{name} cannot be read: its first line lacks the columns {', '.join(missing)}")
    for number, row in enumerate(table[1:], 2):
        if len(row) != len(head):
            raise LearningError(f"{name}, line {number}, has {len(row)} values for {len(head)} columns")
    return [(f"{name}, line {k}", dict(zip(head, row, strict=True))) for k, row in enumerate(table[1:], 2)]


def _number(row: Mapping[str, str], column: str, place: str) -> float:
    try:
        return float(row[column])
    except ValueError as error:
        raise LearningError(f"{place}: {column} is {row[column]!r}, which is no number") from error


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def render_training(name: str, log: TrainingLog, learned: Mapping[str, Any] | None = None) -> str:
    """Returns a training run as one HTML page that works offline; the same logs give the same bytes.

    Args:
        name: What the run is called.
        log: What `read_training_log` returned.
        learned: What `learned.json` holds; `None` for a run that is not finished.
    """
    header = element(
        "header",
        element("p", "minerua training", class_="brand"),
        element("h1", name),
        None if learned else element("p", "The run is not finished.", class_="notice", role="note"),
        element("p", _lead(log, learned or {}), class_="lead"),
        element("dl", *_figures(log, learned or {}), class_="figures"),
    )
    footer = element("footer", element("p", "Written from the run's own logs."))
    return whole_page(name, header, element("main", *_sections(log, learned or {})), footer)


def training_figures(log: TrainingLog) -> tuple[Markup, ...]:
    """Returns the pictures: the loss, each other metric, and the learning rate; fewer of a run that has just begun."""
    losses = [Curve("training", tuple((step, loss) for step, loss, _, why in log.steps if not why), spread=True)]
    losses += [Curve(split, _measured(log, LOSS, split)) for split in _held_out(log)]
    pictures = [curve_figure("Loss", losses, best=_best_step(log))]
    for metric in log.metrics:
        if metric != LOSS:
            curves = [Curve(split, _measured(log, metric, split)) for split in dict.fromkeys(log.splits)]
            pictures.append(curve_figure(_title(metric), curves, best=_best_step(log)))
    rates = Curve("rate", tuple((step, rate) for step, _, rate, _ in log.steps))
    return tuple(one for one in (*pictures, curve_figure("Learning rate", [rates], is_linear=True)) if one is not None)


def _held_out(log: TrainingLog) -> list[str]:
    """Without a validation split, evaluations repeat the training loss, which has its curve already."""
    return [split for split in dict.fromkeys(log.splits) if split != "train"]


def _measured(log: TrainingLog, metric: str, split: str) -> tuple[tuple[int, float], ...]:
    pairs = zip(log.evaluations, log.splits, strict=True)
    return tuple((int(row["step"]), row[metric]) for row, where in pairs if where == split and metric in row)


def _best_step(log: TrainingLog) -> int | None:
    return None if log.best is None else int(log.best["step"])


def _title(metric: str) -> str:
    return metric[:1].upper() + metric[1:].replace("-", " ").replace("_", " ")


def _sections(log: TrainingLog, learned: Mapping[str, Any]) -> list[Markup]:
    sections = []
    if pictures := training_figures(log):
        note = (
            "Each point of the training curve is the mean of the logged steps around it, the band their least and "
            "greatest. The ring marks the best evaluation."
        )
        parts = element("h2", "Learning curves"), element("p", note, class_="note")
        sections.append(element("section", *parts, element("div", *pictures, class_="pair")))
    if log.evaluations:
        sections.append(element("section", element("h2", "Scores"), _table(log, learned)))
    if log.skipped:
        shown = [element("li", element("b", f"{step:,}"), why) for step, why in log.skipped[:50]]
        title = element("h2", "Steps that were left out")
        sections.append(element("section", title, element("ul", *shown, class_="failures")))
    return sections


def _lead(log: TrainingLog, learned: Mapping[str, Any]) -> str:
    last = max([step for step, *_ in log.steps] + [int(row["step"]) for row in log.evaluations], default=0)
    words = f"{counted(int(learned.get('step', last)), 'step')}, {counted(len(log.evaluations), 'evaluation')}"
    words += f"; it ended because {_reason(str(learned['stopped']))}." if learned.get("stopped") else "."
    if log.best is not None:
        words += f" The best evaluation was after {counted(int(log.best['step']), 'step')}."
    if log.skipped:
        words += f" The guard left out {counted(len(log.skipped), 'step')}."
    return words


def _reason(text: str) -> str:
    return text.strip().rstrip(".")


def _figures(log: TrainingLog, learned: Mapping[str, Any]) -> list[Markup]:
    shown = [(f"test {name}", value) for name, value in (learned.get("test_metrics") or {}).items()]
    if log.best is not None:
        split = dict(zip((row["step"] for row in log.evaluations), log.splits, strict=True))[log.best["step"]]
        shown += [(f"best {split} {name}", log.best[name]) for name in log.metrics if name in log.best]
    return [element("div", element("dt", label), element("dd", _text(value))) for label, value in shown[:6]]


def _table(log: TrainingLog, learned: Mapping[str, Any]) -> Markup:
    """Best, last and final model, one column each; one row per metric of each split."""
    best, last = log.best or log.evaluations[-1], log.evaluations[-1]
    tested = learned.get("test_metrics") or {}
    heads = ["", f"Best, step {int(best['step']):,}", f"Last, step {int(last['step']):,}"] + ["Final model"] * bool(
        tested
    )
    rows = [("training loss", best.get("training_loss"), last.get("training_loss"))]
    rows += [(f"{log.splits[-1]} {name}", best.get(name), last.get(name)) for name in log.metrics]
    cells = [[name, _text(first), _text(second), *[""] * bool(tested)] for name, first, second in rows]
    cells += [[f"test {name}", "", "", _text(value)] for name, value in tested.items()]
    head = [element("th", text, scope="col", class_="num" if k else None) for k, text in enumerate(heads)]
    body = [
        element("tr", element("th", name, scope="row"), *(element("td", text, class_="num") for text in texts))
        for name, *texts in cells
    ]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body), class_="pairs")
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Scores")


def _text(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"
