"""Real journals of a toy landscape: small numpy genomes, run through the cycle, written and read as a run would."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from minerua.evolution import Bounds, Cycle, Journal, Proposal, Result, encode_outcome, read_journal
from minerua.values import SPLITS, Failure, Genome, Scores, TaskScore

SIZE = 12
ITEMS = {"search": 40, "select": 30, "test": 50}


@dataclass(frozen=True)
class ToyRun:
    """A finished toy run: the path of its journal, its events, its cycle."""

    path: Path
    events: list
    cycle: Cycle


class Landscape:
    """K hills in twelve dimensions; the nearer a genome to a hill, the more items of that task it solves."""

    def __init__(self, tasks: Sequence[str], *, seed: int, fractional: bool, failing: int) -> None:
        generator = np.random.default_rng(seed)
        self.tasks, self.fractional, self.failing = tuple(tasks), fractional, failing
        self.hills = generator.normal(size=(len(tasks), SIZE)).astype(np.float32)
        self.difficulty = {s: generator.uniform(0.05, 0.95, (len(tasks), n)) for s, n in ITEMS.items()}

    def score(self, genome: Genome, split: str) -> Scores | Failure:
        if self.failing and int(genome.digest[:8], 16) % self.failing == 0:
            return Failure(f"evaluator {self.tasks[int(genome.digest[8], 16) % 2]!r} took longer than 60 seconds")
        ability = np.exp(-0.06 * ((self.hills - genome.values) ** 2).sum(axis=1))
        outcomes = {}
        for k, task in enumerate(self.tasks):
            margin = ability[k] - self.difficulty[split][k]
            values = np.clip(0.5 + 2 * margin, 0, 1) if self.fractional else (margin > 0).astype(float)
            outcomes[task] = TaskScore(tuple(values.tolist()))
        return Scores(outcomes)


def crossover(parents: Sequence[Genome], generator: np.random.Generator) -> Genome:
    weights = generator.normal(1.0, 0.3, size=len(parents))
    values = sum(w * p.values for w, p in zip(weights / weights.sum(), parents, strict=True))
    return Genome("toy", np.asarray(values, dtype=np.float32))


def mutate(genome: Genome, generator: np.random.Generator, task: int) -> Genome:
    return Genome("toy", (genome.values + generator.normal(0, 0.12, SIZE)).astype(np.float32))


def write_run(
    path: Path,
    *,
    tasks: Sequence[str] = ("add", "copy", "max"),
    children: int = 60,
    bins: int = 15,
    batch: int = 4,
    seed: int = 0,
    fractional: bool = False,
    failing: int = 0,
    failed_seed: bool = False,
    config: dict | None = None,
) -> ToyRun:
    land = Landscape(tasks, seed=seed, fractional=fractional, failing=failing)
    with Journal(path, fresh=True) as journal:
        cycle = _start(journal, land, bins=bins, seed=seed, failed_seed=failed_seed, config=config)
        best = _evolve(journal, cycle, land, children=children, batch=batch)
        _finish(journal, cycle, land, best)
    return ToyRun(path, read_journal(path), cycle)


def _start(journal, land, *, bins, seed, failed_seed, config):
    experts = {f"{task}-expert": Genome("toy", 0.8 * hill) for task, hill in zip(land.tasks, land.hills, strict=True)}
    mean = Genome("toy", np.mean([g.values for g in experts.values()], axis=0, dtype=np.float32))
    seeds = [*experts.items(), ("mean", mean)]
    outcomes = [land.score(genome, "search") for _, genome in seeds]
    if failed_seed:
        seeds.append(("ties", Genome("toy", np.zeros(SIZE, np.float32))))
        outcomes.append(Failure("the model 'toy' could not be built: <tensor> missing"))
    bounds = Bounds.of_experts([o.means for o in outcomes[: len(experts)] if isinstance(o, Scores)])
    journal.write(
        {
            "event": "run",
            "format": 1,
            "minerua": "0.1.0",
            "config": config or {"name": "toy", "seed": seed, "evolution": {"bins": bins, "variant": "minerua"}},
            "tasks": list(land.tasks),
            "base": {"base": "0" * 32},
            "experts": {name: genome.digest for name, genome in experts.items()},
            "subspace": "toy",
        }
    )
    ids = {split: [f"{split}-{i}" for i in range(n)] for split, n in ITEMS.items()}
    journal.write({"event": "items", "items": dict.fromkeys(land.tasks, ids)})
    for id, ((name, genome), outcome) in enumerate(zip(seeds, outcomes, strict=True)):
        head = {"event": "seed", "id": id, "name": name, "digest": genome.digest, "expert": name in experts}
        journal.write(head | encode_outcome(outcome))
    journal.write({"event": "bounds", "lower": list(bounds.lower), "upper": list(bounds.upper)})
    cycle = Cycle(
        [(g, o) for (_, g), o in zip(seeds, outcomes, strict=True)],
        bounds,
        crossover=crossover,
        mutate=mutate,
        bins=bins,
        seed=seed,
    )
    cycle.toy_seeds = dict(seeds)
    return cycle


def _evolve(journal, cycle, land, *, children, batch):
    best, score = None, -1.0
    while cycle.evaluations < children:
        proposals = cycle.ask(min(batch, children - cycle.evaluations))
        asked = [{"id": p.id, "task": land.tasks[p.task], "parents": list(p.parents)} for p in proposals]
        journal.write({"event": "ask", "children": asked})
        for proposal in reversed(proposals):  # out of order, as workers would answer
            genome, outcome = _tell(journal, cycle, land, proposal)
            if isinstance(outcome, Scores) and outcome.mean > score:
                best, score = genome, outcome.mean
    return best


def _tell(journal, cycle, land, proposal: Proposal):
    genome = cycle.breed(proposal)
    outcome = land.score(genome, "search")
    added = cycle.tell(Result(proposal.id, genome.digest, outcome))
    head = {"event": "tell", "id": proposal.id, "digest": genome.digest, "added": [int(status) for status in added]}
    journal.write(head | encode_outcome(outcome))
    return genome, outcome


def _finish(journal, cycle, land, best):
    parents = [archive.best().digest for archive in cycle.archives]
    values = np.mean([cycle.genome(digest).values for digest in parents], axis=0, dtype=np.float32)
    aggregate = Genome("toy", values)
    head = {
        "event": "candidate",
        "name": "aggregate",
        "digest": aggregate.digest,
        "parents": parents,
        "split": "select",
    }
    journal.write(head | encode_outcome(land.score(aggregate, "select")))
    rows = {"base": Genome("toy", np.zeros(SIZE, np.float32)), **cycle.toy_seeds}
    rows |= {"aggregate": aggregate, "best": best}
    for row, genome in rows.items():
        for split in SPLITS:
            head = {"event": "final", "row": row, "digest": genome.digest, "split": split}
            journal.write(head | encode_outcome(land.score(genome, split)))
    journal.write({"event": "end", "best": best.digest, "evaluations": cycle.evaluations})


@pytest.fixture(scope="session")
def finished_runs():
    """Runs that were carried out already, by their settings."""
    return {}


@pytest.fixture
def toy_run(finished_runs, tmp_path_factory):
    """Returns `toy_run(**settings)`, which runs a toy evolution and returns its `ToyRun`; equal settings run once."""

    def run(**settings) -> ToyRun:
        key = repr(sorted(settings.items()))
        if key not in finished_runs:
            finished_runs[key] = write_run(tmp_path_factory.mktemp("run") / "journal.jsonl", **settings)
        done = finished_runs[key]
        return replace(done, events=copy.deepcopy(done.events))  # a test may change its copy

    return run


TASK_NAMES = ("add", "copy", "max", "sort", "reverse")
