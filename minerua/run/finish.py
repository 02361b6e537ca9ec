"""After the last child: the final model is chosen on the select split, every row is tested, the files are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minerua.evolution import aggregation_weights
from minerua.evolution.journal import Event
from minerua.report import Exhibits, Summary, render, summarise, table_json
from minerua.run.evolve import Population
from minerua.run.prepare import Prepared
from minerua.run.record import Record
from minerua.values import SPLITS, Failure, Genome, Scores
from minerua.weights import save_child, write_bytes

CANDIDATES = 20
"""How many elites, the best by mean search score, may be chosen from on the select split."""

SOUPS = (100, 50, 20, 10)
"""How many elites, the best by mean search score, are averaged into one candidate each."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that may become the final one.

    Args:
        name: What it is.
        genome: Its genome.
        parents: Digests of the elites that it is a mean of; empty if it is an elite itself.
    """

    name: str
    genome: Genome
    parents: tuple[str, ...]


def finish(record: Record, prepared: Prepared, population: Population) -> Genome:
    """Chooses the final model on the select split and journals the scores of every row on every split.

    Candidates are the best elites by mean search score and the aggregate; or, for a variant with soups, means of the
    best elites: averaging them takes out most of what each owes to luck on the search items. The candidate with the
    highest mean on the select items wins; of equals the first, and the larger soup comes first.

    Args:
        record: The journal.
        prepared: The checked parts.
        population: The population after its last child.

    Returns:
        The final model's genome.

    Raises:
        JournalError: If the record belongs to another run.
        StorageError: If the journal cannot be written.
    """
    aggregate = _aggregate(population)
    rows = {"base": population.subspace.zero()} | {f.name: f.genome for f in population.founders}
    rows |= {"mean": _mean(population), "aggregate": aggregate.genome}
    leaders = _leaders(population)
    soups = prepared.variant.soups
    candidates = _soups(population, leaders) if soups else [*map(_single, leaders[:CANDIDATES]), aggregate]
    together = prepared.config.evolution.batch
    best = _choose(record, population, candidates, together=together)
    rows["best"] = best
    _test(record, population, rows, together=together)
    record.confirm({"event": "end", "best": best.digest, "evaluations": population.cycle.evaluations})
    return best


def _mean(population: Population) -> Genome:
    """The mean of the experts' task vectors: the merge that learns nothing."""
    experts = [founder.genome for founder in population.founders if founder.expert]
    return population.subspace.combine(experts, np.full((1, len(experts)), 1 / len(experts)))


def _aggregate(population: Population) -> Candidate:
    """The paper's final model: the archives' best elites, weighted by the softmax of their scores (section 3.4)."""
    best = [archive.best() for archive in population.cycle.archives]
    weights = aggregation_weights([elite.means[k] for k, elite in enumerate(best)])
    genome = population.subspace.combine([population.cycle.genome(elite.digest) for elite in best], weights[None])
    return Candidate("aggregate", genome, tuple(elite.digest for elite in best))


def _single(genome: Genome) -> Candidate:
    return Candidate("elite", genome, ())


def _leaders(population: Population) -> list[Genome]:
    """The elites of all archives, each once, the best by mean search score first, of equals the oldest."""
    elites = {elite.digest: elite for archive in population.cycle.archives for elite in archive.elites}
    ranked = sorted(elites.values(), key=lambda elite: (-sum(elite.means), elite.id))
    return [population.cycle.genome(elite.digest) for elite in ranked[: max(SOUPS)]]


def _soups(population: Population, leaders: Sequence[Genome]) -> list[Candidate]:
    """Means of the best elites, the largest first; a population smaller than a soup gives what it has, once."""
    candidates = []
    for size in dict.fromkeys(min(size, len(leaders)) for size in SOUPS):
        genome = population.subspace.combine(leaders[:size], np.full((1, size), 1 / size))
        candidates.append(Candidate(f"mean of {size} elites", genome, tuple(g.digest for g in leaders[:size])))
    return candidates


def _choose(record: Record, population: Population, candidates: Sequence[Candidate], *, together: int) -> Genome:
    """Returns the candidate with the best mean score on the select split, of equals the first."""
    standings: list[float] = []
    for start in range(0, len(candidates), together):
        group = candidates[start : start + together]
        if not record.holds(len(group)):
            population.prefetch([candidate.genome for candidate in group], split="select")
        standings += [_standing(record, population, candidate) for candidate in group]
    return candidates[standings.index(max(standings))].genome


def _test(record: Record, population: Population, rows: Mapping[str, Genome], *, together: int) -> None:
    """Journals every row's scores on every split."""
    names = list(rows)
    for start in range(0, len(names), together):
        group = names[start : start + together]
        if not record.holds(len(group) * len(SPLITS)):
            for split in SPLITS:
                population.prefetch([rows[name] for name in group], split=split)
        for name in group:
            for split in SPLITS:
                event = {"event": "final", "row": name, "digest": rows[name].digest, "split": split}
                _score(record, population, rows[name], event)


def _standing(record: Record, population: Population, candidate: Candidate) -> float:
    """Returns a candidate's mean score on the select split; a failure stands below every score."""
    event = {
        "event": "candidate",
        "name": candidate.name,
        "digest": candidate.genome.digest,
        "parents": list(candidate.parents),
        "split": "select",
    }
    outcome = _score(record, population, candidate.genome, event)
    return -1.0 if isinstance(outcome, Failure) else outcome.mean


def _score(record: Record, population: Population, genome: Genome, event: Event) -> Scores | Failure:
    outcome = record.outcome(event, lambda: population.score(genome, split=event["split"]))
    if not isinstance(outcome, Failure):
        population.evaluation.remember(genome.digest, outcome, split=event["split"])
    return outcome


def write_results(
    folder: Path, population: Population, best: Genome, events: list[Event], exhibits: Exhibits | None = None
) -> Summary:
    """Writes what a run leaves behind, each file whole or not at all; the same run writes the same bytes.

    `best.safetensors`: the chosen model, its genome in the metadata. `archives.json`: every cell of every archive.
    `table.json` and `report.html`: from the journal alone, the page with the exhibits.

    Args:
        folder: Where the journal lies.
        population: The population after its last child.
        best: The final model's genome.
        events: The journal's events.
        exhibits: What the chosen model makes of some items, for the page.

    Raises:
        StorageError: If a file cannot be written.
    """
    summary = summarise(events)
    save_child(folder / "best.safetensors", population.subspace, best, history={"lineage": "journal.jsonl"})
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
    write_bytes(folder / "report.html", render(events, exhibits).encode())
    return summary


def _write_json(path: Path, value: object) -> None:
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
