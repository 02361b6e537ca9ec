"""A run in numbers: what the journal says about archives, models, failures and the best model's ancestors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from minerua.evolution import Archive, ArchiveStats, Bounds
from minerua.report.intervals import Interval, mean_interval, paired_difference, task_interval
from minerua.report.lineage import Lineage, lineage_of
from minerua.report.preflight import Preflight
from minerua.report.replay import Child, Event, Point, Replay
from minerua.values import SPLITS, Elite, Failure, Scores

BEST_ROW: Final = "best"
"""The final row that a run names as its result."""


@dataclass(frozen=True)
class ArchiveSummary:
    """One archive at the end of the journal.

    Args:
        task: Index of the task that serves as quality.
        others: Indices of the other tasks: the behaviour characteristics, in the order of a cell's bins.
        bins: Bins per behaviour characteristic.
        bounds: The score ranges of all tasks.
        stats: The archive in numbers; offset 0, coverage a fraction.
        elites: Its occupants.
        curve: The archive after each evaluation that changed it, from the seeds alone (evaluation 0) on.
        marks: Name of an expert, or `best` → the cell into which its scores fall, whoever occupies that cell now.
    """

    task: int
    others: tuple[int, ...]
    bins: int
    bounds: Bounds
    stats: ArchiveStats
    elites: tuple[Elite, ...]
    curve: tuple[Point, ...]
    marks: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FailureGroup:
    """Models that failed for the same reason.

    Args:
        reason: The reason, in the words of the run.
        who: The models: seeds' names, children's numbers, final rows with their split.
    """

    reason: str
    who: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One model of the final table.

    Args:
        name: Its name.
        digest: The name of its genome or checkpoint.
        expert: Whether it is one of the experts.
        tasks: Shape (K,); test score and 95 % interval per task (Wilson), or `None` without a test score.
        mean: Mean of the tasks' test scores with its 95 % interval (see `mean_interval`), or `None`.
        search: Mean score on the items that evolution saw, or `None`.
        select: Mean score on the items that chose the final model, or `None`.
        lead: Test score of the chosen row minus this row's, on the same items, with its 95 % interval (see
            `paired_difference`); `None` for the chosen row itself and where one of the two has no test score.
    """

    name: str
    digest: str
    expert: bool
    tasks: tuple[Interval, ...] | None
    mean: Interval | None
    search: float | None
    select: float | None
    lead: Interval | None


@dataclass(frozen=True)
class Summary:
    """Everything that a report shows, derived from a journal alone.

    Args:
        version: The version of minerua that wrote the journal.
        config: The run's settings.
        tasks: Names of the tasks, in order.
        items: Task → split → how many items.
        experts: Names of the experts.
        preflight: How alike they are, as the journal has it from before the run, or `None`.
        seeds: Every seed, failed ones included.
        children: Every child that was told, failed ones included.
        evaluations: How many children were told.
        pending: How many children were asked for and not told.
        unfinished: What an unfinished run lacks, in words; empty for a finished one.
        archives: One per task; empty if the run ended before its bounds were known.
        failures: Failures by reason, the most frequent first.
        rows: The final table, the highest mean test score first.
        chosen: Name of the row that the others are compared with: `best`, or without it the row with the highest mean
            on the select split; `None` without rows. Test scores take no part in the choice.
        best: The best model: the one that the journal names, which may be a seed, a child or a merge of the archives'
            best; in an unfinished run the highest mean on the search split.
        lineage: The best model's ancestors.
    """

    version: str
    config: Mapping[str, Any]
    tasks: tuple[str, ...]
    items: Mapping[str, Mapping[str, int]]
    experts: tuple[str, ...]
    preflight: Preflight | None
    seeds: tuple[Child, ...]
    children: tuple[Child, ...]
    evaluations: int
    pending: int
    unfinished: tuple[str, ...]
    archives: tuple[ArchiveSummary, ...]
    failures: tuple[FailureGroup, ...]
    rows: tuple[Row, ...]
    chosen: str | None
    best: Child | None
    lineage: Lineage | None

    def row(self, name: str | None) -> Row | None:
        """Returns the row with this name, or `None`."""
        return next((row for row in self.rows if row.name == name), None)


def summarise(events: Sequence[Event]) -> Summary:
    """Returns a run in numbers, from its journal alone.

    The archives are rebuilt by offering every child again, and must end up as the journal says. A journal that stops
    early gives a partial summary that says so.

    Args:
        events: A journal's events, oldest first, as `read_journal` returns them.

    Raises:
        JournalError: If an event lacks a field or contradicts the others.
    """
    replay = Replay(events)
    best = _best(replay)
    rows, chosen = _rows(replay)
    seeds = tuple(child for child in replay.children if child.origin == "seed")
    return Summary(
        version=str(replay.run.get("minerua", "unknown")),
        config=replay.run.get("config") or {},
        tasks=replay.tasks,
        items={t: {s: len(ids) for s, ids in splits.items()} for t, splits in replay.items.items()},
        experts=tuple(replay.run.get("experts") or {}) or tuple(seed.label for seed in seeds if seed.expert),
        preflight=replay.preflight,
        seeds=seeds,
        children=tuple(child for child in replay.children if child.origin == "child"),
        evaluations=replay.evaluations,
        pending=replay.pending,
        unfinished=_unfinished(replay),
        archives=_archives(replay, best),
        failures=_failures(replay),
        rows=rows,
        chosen=chosen,
        best=best,
        lineage=None if best is None else lineage_of(best.digest, {**replay.by_digest, best.digest: best}),
    )


def _best(replay: Replay) -> Child | None:
    named = None if replay.end is None else str(replay.end.get("best"))
    if named is not None and (known := replay.by_digest.get(named) or _merge(replay, named)) is not None:
        return known
    scored = [child for child in replay.by_digest.values() if child.means is not None]
    return max(scored, key=lambda child: (child.mean or 0.0, child.id), default=None)


def _merge(replay: Replay, digest: str) -> Child | None:
    """A final model that is neither seed nor child, as a child of what it was merged from."""
    rows = [row for row in replay.finals if _digest(replay, row) == digest]
    if not rows:
        return None
    name, parents = replay.merged.get(digest, (rows[0], ()))
    _, outcome = replay.finals[rows[0]].get("search", ("", None))
    return Child(
        id=1 + max((child.id for child in replay.children), default=-1),
        digest=digest,
        origin="merge",
        name=name,
        expert=False,
        task=None,
        parents=parents,
        means=outcome.means if isinstance(outcome, Scores) else None,
        failure=None,
        shares=replay.shares(parents),
    )


def _unfinished(replay: Replay) -> tuple[str, ...]:
    lacks = []
    if replay.bounds is None:
        lacks.append("the bounds of the archives")
    if replay.pending:
        lacks.append("one child that was asked for" if replay.pending == 1 else f"{replay.pending} children asked for")
    if not replay.finals:
        lacks.append("the final scores")
    if replay.end is None:
        lacks.append("the end of the run")
    return tuple(lacks)


def _archives(replay: Replay, best: Child | None) -> tuple[ArchiveSummary, ...]:
    bounds = replay.bounds
    if bounds is None:
        return ()
    return tuple(_archive(replay, bounds, task, best) for task in range(len(replay.archives)))


def _archive(replay: Replay, bounds: Bounds, task: int, best: Child | None) -> ArchiveSummary:
    archive = replay.archives[task]
    return ArchiveSummary(
        task=task,
        others=archive.others,
        bins=archive.bins,
        bounds=bounds,
        stats=archive.stats(),
        elites=archive.elites,
        curve=tuple(replay.curves[task]),
        marks=_marks(replay, archive, best),
    )


def _marks(replay: Replay, archive: Archive, best: Child | None) -> dict[str, tuple[int, ...]]:
    marks = {c.label: archive.cell_of(c.means) for c in replay.children if c.expert and c.means is not None}
    if best is not None and best.means is not None:
        marks[BEST_ROW] = archive.cell_of(best.means)
    return marks


def _failures(replay: Replay) -> tuple[FailureGroup, ...]:
    groups: dict[str, list[str]] = {}
    for child in replay.children:
        if child.failure is not None:
            groups.setdefault(child.failure, []).append(child.label)
    for row, splits in replay.finals.items():
        for split, (_, outcome) in splits.items():
            if isinstance(outcome, Failure):
                groups.setdefault(outcome.reason, []).append(f"{row} ({split})")
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return tuple(FailureGroup(reason, tuple(who)) for reason, who in ordered)


# ── the final table ──────────────────────────────────────────────────────────────────────────────────────────────────


def _rows(replay: Replay) -> tuple[tuple[Row, ...], str | None]:
    if not replay.finals:
        return (), None
    means = {name: {split: _mean(replay, name, split) for split in SPLITS} for name in replay.finals}
    chosen = BEST_ROW if BEST_ROW in means else max(means, key=lambda name: means[name]["select"] or -1.0)
    rows = [_row(replay, name, means[name], chosen) for name in means]
    return tuple(sorted(rows, key=lambda row: -(row.mean.mean if row.mean else -1.0))), chosen


def _row(replay: Replay, name: str, means: Mapping[str, float | None], chosen: str) -> Row:
    digest, test = replay.finals[name].get("test", (_digest(replay, name), None))
    ids = {task: splits["test"] for task, splits in replay.items.items() if "test" in splits}
    scores = test if isinstance(test, Scores) else None
    return Row(
        name=name,
        digest=digest,
        expert=name in (replay.run.get("experts") or {}),
        tasks=None if scores is None else tuple(task_interval(s.outcomes) for s in scores.tasks.values()),
        mean=None if scores is None else mean_interval(scores, ids),
        search=means["search"],
        select=means["select"],
        lead=None if name == chosen or scores is None else _lead(replay, chosen, digest, scores, ids),
    )


def _lead(
    replay: Replay, chosen: str, digest: str, scores: Scores, ids: Mapping[str, Sequence[str]]
) -> Interval | None:
    best_digest, best = replay.finals[chosen].get("test", ("", None))
    if not isinstance(best, Scores):
        return None
    if best_digest and best_digest == digest:
        return Interval(0.0, 0.0, 0.0)  # one model under two names
    return paired_difference(best, scores, ids)


def _digest(replay: Replay, row: str) -> str:
    return next((digest for digest, _ in replay.finals[row].values()), "")


def _mean(replay: Replay, row: str, split: str) -> float | None:
    """A row's mean on one split; search scores of seeds and children are known from evolution."""
    _, outcome = replay.finals[row].get(split, ("", None))
    if isinstance(outcome, Scores):
        return outcome.mean
    known = replay.by_digest.get(_digest(replay, row))
    return known.mean if split == "search" and known is not None else None


# ── for programs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def table_json(summary: Summary) -> dict[str, Any]:
    """Returns what `table.json` holds: the summary without its children, as plain JSON values.

    Scores are fractions; an interval is `{"mean": …, "lower": …, "upper": …}`; what is unknown is `null`.
    """
    return {
        "minerua": summary.version,
        "tasks": list(summary.tasks),
        "items": {task: dict(splits) for task, splits in summary.items.items()},
        "experts": list(summary.experts),
        "preflight": None if summary.preflight is None else summary.preflight.fields(),
        "evaluations": summary.evaluations,
        "finished": not summary.unfinished,
        "lacks": list(summary.unfinished),
        "chosen": summary.chosen,
        "rows": [_row_json(row, summary.tasks) for row in summary.rows],
        "archives": [_archive_json(archive, summary.tasks) for archive in summary.archives],
        "failures": [{"reason": group.reason, "who": list(group.who)} for group in summary.failures],
        "best": None if summary.best is None else _child_json(summary.best),
        "lineage": _lineage_json(summary.lineage),
    }


def _row_json(row: Row, tasks: Sequence[str]) -> dict[str, Any]:
    named = None if row.tasks is None else dict(zip(tasks, row.tasks, strict=True))
    scores = None if named is None else {task: asdict(interval) for task, interval in named.items()}
    return asdict(row) | {"tasks": scores}


def _archive_json(archive: ArchiveSummary, tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "task": tasks[archive.task],
        "bins": archive.bins,
        "cells": archive.bins ** len(archive.others),
        "lower": list(archive.bounds.lower),
        "upper": list(archive.bounds.upper),
        **asdict(archive.stats),
    }


def _child_json(child: Child) -> dict[str, Any]:
    return {
        "id": child.id,
        "digest": child.digest,
        "label": child.label,
        "origin": child.origin,
        "task": child.task,
        "parents": list(child.parents),
        "means": None if child.means is None else list(child.means),
        "shares": dict(child.shares),
    }


def _lineage_json(lineage: Lineage | None) -> dict[str, Any] | None:
    if lineage is None:
        return None
    return {
        "ancestors": lineage.total,
        "generations": lineage.generations,
        "nearest": [_child_json(child) for child in lineage.children],
    }
