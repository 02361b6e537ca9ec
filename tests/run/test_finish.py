"""The end of a run: which candidates stand, who wins on the select split, what is tested and what is left behind."""

import itertools
import json

import numpy as np
import pytest

from minerua import EvaluatorSpec
from minerua.config import SplitsConfig
from minerua.evaluation import split_of
from minerua.evolution import decode_outcome, read_journal
from minerua.run import execute
from minerua.values import SPLITS, Scores
from minerua.weights import open_checkpoint, read_genome

from ..worlds import Toys, evaluator, make_world


@pytest.fixture(scope="module", params=["minerua", "paper"])
def run(request, tmp_path_factory):
    """A finished run's variant, folder and events."""
    world = make_world(
        tmp_path_factory.mktemp("finish"), evolution={"variant": request.param, "evaluations": 30, "bins": 6}
    )
    execute(world.run, registry=world.registry)
    return request.param, world.folder, read_journal(world.folder / "journal.jsonl")


def named(events, kind):
    return [event for event in events if event["event"] == kind]


def test_candidates_are_soups_largest_first_or_elites_and_their_aggregate(run):
    variant, folder, events = run
    candidates = named(events, "candidate")
    names = [event["name"] for event in candidates]
    assert {event["split"] for event in candidates} == {"select"}
    if variant == "minerua":
        sizes = [len(event["parents"]) for event in candidates]
        assert names == [f"mean of {size} elites" for size in sizes]
        assert all(large > small for large, small in itertools.pairwise(sizes))
    else:
        assert names[-1] == "aggregate"
        assert set(names[:-1]) == {"elite"}
        assert all(event["parents"] == [] for event in candidates[:-1])
    archives = json.loads((folder / "archives.json").read_text())
    elites = {elite["digest"] for archive in archives for elite in archive["elites"]}
    assert elites >= {digest for event in candidates for digest in event["parents"]}


def test_the_first_candidate_with_the_highest_select_mean_wins(run):
    _, _, events = run
    candidates = named(events, "candidate")
    means = [decode_outcome(event).mean for event in candidates]
    assert named(events, "end")[0]["best"] == candidates[int(np.argmax(means))]["digest"]


def test_every_row_is_scored_on_every_split(run):
    variant, _, events = run
    merges = ["mean", "regmean", "layer-match"] if variant == "minerua" else []
    rows = [(event["row"], event["split"]) for event in named(events, "final")]
    assert rows == list(itertools.product(dict.fromkeys(row for row, _ in rows), SPLITS))
    experts = [f"expert-{k}" for k in range(3)]
    assert {"base", *experts, *merges, "mean", "aggregate", "best"} <= {row for row, _ in rows}
    assert all(isinstance(decode_outcome(event), Scores) for event in named(events, "final"))


def test_the_chosen_model_lies_in_the_folder_with_its_genome(run):
    _, folder, events = run
    assert read_genome(open_checkpoint(folder / "best.safetensors")).digest == named(events, "end")[0]["best"]


def test_a_candidate_that_cannot_be_scored_stands_below_every_other(tmp_path):
    sound, asked = evaluator(0), []
    select = {id for id in sound.items() if split_of(id, SplitsConfig().fractions, seed=3) == "select"}

    def evaluate(model, ids, seed):
        if set(ids) == select:
            asked.append(ids)
            if len(asked) == 1:
                raise RuntimeError("the first candidate is not well")
        return sound.evaluate(model, ids, seed)

    picky = EvaluatorSpec("toy-0", sound.items, evaluate, sound.inputs)
    world = make_world(tmp_path, toys=Toys(3, evaluators=[picky]), evolution={"variant": "paper", "evaluations": 6})
    execute(world.run, registry=world.registry)
    events = read_journal(tmp_path / "journal.jsonl")
    first, *others = named(events, "candidate")
    assert first["failed"] == "toy-0: RuntimeError: the first candidate is not well"
    assert all(isinstance(decode_outcome(other), Scores) for other in others)
    assert named(events, "end")[0]["best"] in {other["digest"] for other in others}
