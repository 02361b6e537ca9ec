"""What does the engine cost per child, beside evaluation, merging and mutation? Expected: under 1 ms.

Counted: asking, sampling parents, random numbers, the genome's digest, filing in K archives, encoding 1,200 item
    outcomes and
writing two lines to the journal. Not counted: crossover and mutation (here a copy), evaluation (here prepared scores).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minerua.evolution import Bounds, Cycle, Journal, Result, read_journal
from minerua.run.record import Record
from minerua.values import Genome, Scores, TaskScore

VALUES = 26_122  # the demo's network
ITEMS = 400  # per task
LIMIT_SECONDS = 1e-3


def _scores(generator: np.random.Generator, tasks: int) -> Scores:
    draws = (generator.random((tasks, ITEMS)) < generator.uniform(0.3, 0.9, (tasks, 1))).astype(float)
    return Scores({f"task-{k}": TaskScore(tuple(row)) for k, row in enumerate(draws.tolist())})


def _genome(generator: np.random.Generator) -> Genome:
    values = generator.standard_normal(VALUES, np.float32)
    values.flags.writeable = False
    return Genome("bench", values)


def _run(path: Path, tasks: int, children: int, scores: list[Scores], genomes: list[Genome]) -> Cycle:
    seeds = list(zip(genomes[:tasks], scores[:tasks], strict=True))
    copies = iter(range(10**9))

    def crossover(parents: object, generator: np.random.Generator) -> Genome:
        generator.normal(1.0, 0.5, (6, 2))
        return Genome("bench", genomes[next(copies) % len(genomes)].values)

    cycle = Cycle(
        seeds,
        Bounds((0.2,) * tasks, (0.95,) * tasks),
        crossover=crossover,
        mutate=lambda genome, generator, task: genome,
    )
    with Journal(path, fresh=True) as journal:
        record = Record(journal)
        record.confirm({"event": "run", "format": 1})
        for _ in range(children):
            (proposal,) = cycle.ask()
            record.confirm(
                {"event": "ask", "children": [{"id": proposal.id, "task": "t", "parents": list(proposal.parents)}]}
            )
            digest = cycle.breed(proposal).digest
            outcome = scores[proposal.id % len(scores)]
            record.outcome(
                {"event": "tell", "id": proposal.id, "digest": digest},
                lambda outcome=outcome: outcome,
                lambda o, p=proposal, d=digest: {"added": [int(s) for s in cycle.tell(Result(p.id, d, o))]},
            )
    return cycle


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_engine_costs_less_than_a_millisecond_per_child(benchmark, tmp_path, smoke, tasks):
    children = 100 if smoke else 1200
    generator = np.random.default_rng(0)
    scores = [_scores(generator, tasks) for _ in range(200)]
    genomes = [_genome(generator) for _ in range(50)]
    paths = (tmp_path / f"{i}.jsonl" for i in range(100))
    first = _run(next(paths), tasks, children, scores, genomes)
    assert first.evaluations == children
    assert len(read_journal(tmp_path / "0.jsonl")) == 1 + 2 * children
    benchmark.pedantic(lambda: _run(next(paths), tasks, children, scores, genomes), rounds=30 if smoke else 7)
    seconds = benchmark.stats.stats.min / children
    benchmark.extra_info["milliseconds per child"] = seconds * 1e3
    assert seconds < LIMIT_SECONDS
