"""After the last child: the final model is chosen on the select split, every row is tested, the files are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minerua.evolution import aggregation_weights
from minerua.evolution.journal import Event
from minerua.report import Summary, render, summarise, table_json
from minerua.run.evolve import Population
from minerua.run.record import Record
from minerua.values import SPLITS, Failure, Genome
from minerua.weights import save_child, write_bytes

CANDIDATES = 20
"""How many children, the best by mean search score, stand for choice on the select split beside seeds and aggregate."""


@dataclass(frozen=True, eq=False)
class Final:
    """What a run ends with.

    Args:
        best: The chosen genome.
        rows: Name → genome of everything that is tested; `best` is among them.
    """

    best: Genome
    rows: Mapping[str, Genome]


def finish(record: Record, population: Population) -> Final:
    """Chooses the final model and journals the scores of every row on every split.

    Candidates are the seeds, the aggregate and the best children by mean search score. The one with the highest mean
    over search and select items together wins, of equals the first: what it scored on search says something too, and
    the items that it was not bred on keep the luckiest from winning.

    Args:
        record: The journal.
        population: The population after its last child.

    Raises:
        JournalError: If the record belongs to another run.
        StorageError: If the journal cannot be written.
    """
    rows = {founder.name: founder.genome for founder in population.founders}
    rows |= {"mean": _mean(population), "aggregate": _aggregate(population)}
    candidates = {genome.digest: genome for genome in [*rows.values(), *_leaders(population)]}
    standing = {digest: _standing(record, population, genome) for digest, genome in candidates.items()}
    best = candidates[max(standing, key=lambda digest: standing[digest])]
    rows = {"base": population.subspace.zero(), **rows, "best": best}
    for name, genome in rows.items():
        for split in SPLITS:
            _score(record, population, genome, {"event": "final", "row": name, "digest": genome.digest, "split": split})
    record.confirm({"event": "end", "best": best.digest, "evaluations": population.cycle.evaluations})
    return Final(best, rows)


def _mean(population: Population) -> Genome:
    """The mean of the experts' task vectors: the merge that learns nothing."""
    experts = [founder.genome for founder in population.founders if founder.expert]
    return population.subspace.combine(experts, np.full((1, len(experts)), 1 / len(experts)))


def _aggregate(population: Population) -> Genome:
    """The paper's final model: the archives' best elites, weighted by the softmax of their scores (section 3.4)."""
    best = [archive.best() for archive in population.cycle.archives]
    weights = aggregation_weights([elite.means[k] for k, elite in enumerate(best)])
    return population.subspace.combine([population.cycle.genome(elite.digest) for elite in best], weights[None])


def _leaders(population: Population) -> list[Genome]:
    elites = {elite.digest: elite for archive in population.cycle.archives for elite in archive.elites}
    ranked = sorted(elites.values(), key=lambda elite: (-sum(elite.means), elite.id))
    return [population.cycle.genome(elite.digest) for elite in ranked[:CANDIDATES]]


def _standing(record: Record, population: Population, genome: Genome) -> float:
    """Returns a candidate's mean over search and select items, each task counting the same; failures stand last."""
    outcomes = []
    for split in ("search", "select"):
        event = {"event": "candidate", "digest": genome.digest, "split": split}
        outcomes.append(_score(record, population, genome, event))
    if any(isinstance(outcome, Failure) for outcome in outcomes):
        return -1.0
    tasks = [task.name for task in population.evaluation.tasks]
    pooled = [[x for o in outcomes if not isinstance(o, Failure) for x in o.tasks[task].outcomes] for task in tasks]
    return sum(sum(items) / len(items) for items in pooled) / len(pooled)


def _score(record: Record, population: Population, genome: Genome, event: Event) -> Any:
    outcome = record.outcome(event, lambda: population.score(genome, split=event["split"]))
    if not isinstance(outcome, Failure):
        population.evaluation.remember(genome.digest, outcome, split=event["split"])
    return outcome


def write_results(folder: Path, population: Population, final: Final, events: list[Event]) -> Summary:
    """Writes what a run leaves behind, each file whole or not at all; the same run writes the same bytes.

    `best.safetensors`: the chosen model, its genome in the metadata. `archives.json`: every cell of every archive.
    `table.json` and `report.html`: from the journal alone.

    Args:
        folder: Where the journal lies.
        population: The population after its last child.
        final: What was chosen.
        events: The journal's events.

    Raises:
        StorageError: If a file cannot be written.
    """
    summary = summarise(events)
    save_child(folder / "best.safetensors", population.subspace, final.best, history={"lineage": "journal.jsonl"})
    archives = [
        {
            "task": population.evaluation.tasks[archive.quality].name,
            "bins": archive.bins,
            "elites": [
                {"id": e.id, "digest": e.digest, "cell": e.cell, "means": e.means}
                for e in sorted(archive.elites, key=lambda elite: elite.cell)
            ],
        }
        for archive in population.cycle.archives
    ]
    _write_json(folder / "archives.json", archives)
    _write_json(folder / "table.json", table_json(summary))
    write_bytes(folder / "report.html", render(events).encode())
    return summary


def _write_json(path: Path, value: object) -> None:
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
