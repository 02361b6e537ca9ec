"""From the first seed to the last child: what cannot be scored, and what a run does then."""

import numpy as np
import pytest

from minerua import EvaluatorSpec
from minerua.errors import EvolutionError
from minerua.evolution import Journal, read_journal
from minerua.run import execute, prepare
from minerua.run.evolve import evolve
from minerua.run.record import Record
from minerua.values import Failure, Genome, Scores

from ..worlds import Toys, make_world


@pytest.fixture
def population(tmp_path):
    world = make_world(tmp_path, evolution={"evaluations": 3, "bins": 4})
    with Journal(tmp_path / "journal.jsonl", fresh=True) as journal:
        yield evolve(prepare(world.run, world.registry), Record(journal))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_child_that_is_not_finite_fails_before_its_model_is_built(population, number):
    values = population.founders[0].genome.values.copy()
    core = next(segment for segment in population.subspace.segments if segment.name == "head.weight")
    values[core.start] = number
    outcome = population.score(Genome(population.subspace.digest, values))
    assert isinstance(outcome, Failure)
    assert outcome.reason == "toy-0: CheckpointError: NaN or infinity in 1 tensors of the child, the first head.weight"
    assert isinstance(population.score(population.founders[0].genome), Scores)


def test_progress_counts_every_child_and_never_loses_the_best(tmp_path):
    world = make_world(tmp_path, evolution={"evaluations": 7, "batch": 3, "bins": 4})
    seen = []
    execute(world.run, registry=world.registry, progress=lambda done, total, best: seen.append((done, total, best)))
    assert [(done, total) for done, total, _ in seen] == [(done, 7) for done in range(1, 8)]
    bests = [best for *_, best in seen]
    assert bests == sorted(bests)
    assert 0 < bests[0] <= bests[-1] <= 1


def test_a_run_none_of_whose_experts_can_be_scored_says_why_for_each(tmp_path):
    def evaluate(model, ids, seed):
        raise RuntimeError("the data is gone")

    broken = EvaluatorSpec("toy-1", lambda: [f"item-{i}" for i in range(40)], evaluate, lambda ids: np.ones((1, 6)))
    world = make_world(tmp_path, toys=Toys(3, evaluators=[broken]), evolution={"variant": "paper", "evaluations": 3})
    with pytest.raises(EvolutionError, match="no expert could be scored, so there is nothing to evolve") as caught:
        execute(world.run, registry=world.registry)
    assert caught.value.faults == tuple(f"expert-{k}: toy-1: RuntimeError: the data is gone" for k in range(3))
    failed = [event["failed"] for event in read_journal(tmp_path / "journal.jsonl") if event["event"] == "seed"]
    assert failed == ["toy-1: RuntimeError: the data is gone"] * 3
