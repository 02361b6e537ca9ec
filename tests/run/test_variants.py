"""Whole runs in every variant, with every reading, for every K, with full fine-tunes and with LoRA adapters."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from minerua.evolution import read_journal
from minerua.run import execute
from minerua.weights import Factors, open_checkpoint, read_genome, write_adapter

from .conftest import World, make_world, truth


def run(world: World, **evolution: object) -> list[dict]:
    world.configure(evolution={"evaluations": 25, **evolution})
    execute(world.run_file, registry=world.registry())
    return read_journal(world.folder / "journal.jsonl")


def finals(events: list[dict], split: str) -> dict[str, float]:
    return {
        e["row"]: float(np.mean([score["mean"] for score in e["scores"].values()]))
        for e in events
        if e["event"] == "final" and e["split"] == split
    }


@pytest.mark.parametrize("variant", ["minerua", "paper", "repo"])
@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
def test_every_variant_runs_with_every_number_of_tasks(tmp_path, tasks, variant):
    world = make_world(tmp_path, tasks=tasks)
    events = run(world, variant=variant)
    archives = json.loads((world.folder / "archives.json").read_text())
    assert len(archives) == tasks
    assert all(len(elite["cell"]) == tasks - 1 for archive in archives for elite in archive["elites"])
    asked = [child["task"] for event in events if event["event"] == "ask" for child in event["children"]]
    assert asked == [f"toy-{t % tasks}" for t in range(1, 26)]
    assert {"base", "e0", "mean", "aggregate", "best"} <= set(finals(events, "test"))
    best = open_checkpoint(world.folder / "best.safetensors")
    assert read_genome(best).digest == events[-1]["best"]


@pytest.mark.parametrize("mutation", ["literal", "additive", "two-sided", "expert", "gaussian", "none"])
@pytest.mark.parametrize("crossover", ["gaussian", "directed"])
def test_every_reading_of_the_mutation_runs_by_name(tmp_path, mutation, crossover):
    settings = {"mutation": mutation, "mutation_strength": 0.05, "crossover": crossover, "crossover_per_tensor": True}
    events = run(make_world(tmp_path), variant="paper", **settings)
    digests = {event["digest"] for event in events if event["event"] == "tell"}
    assert len(digests) > 20
    assert not any("failed" in event for event in events)


@pytest.mark.parametrize("changes", [{"mutation_top": 0}, {"mutation_top": 2}, {"precision": "float64"}])
def test_the_top_and_the_precision_of_the_mutation_reach_the_children_and_the_journal(tmp_path, changes):
    settings = {"variant": "paper", "mutation": "two-sided"}
    plain = run(make_world(tmp_path / "plain"), **settings)
    changed = run(make_world(tmp_path / "changed"), **settings | changes)
    assert changed[0]["config"]["evolution"] == plain[0]["config"]["evolution"] | changes
    digests = [[event["digest"] for event in events if event["event"] == "tell"] for events in (plain, changed)]
    assert digests[0] != digests[1]
    assert not any("failed" in event for event in changed)


@pytest.mark.parametrize("sampling", ["elite", "elite-repository", "uniform"])
def test_every_sampling_runs_by_name(tmp_path, sampling):
    assert run(make_world(tmp_path), variant="paper", sampling=sampling)[-1]["evaluations"] == 25


def test_the_final_model_is_chosen_on_select_and_never_below_the_other_candidates_there(tmp_path):
    events = run(make_world(tmp_path), variant="paper")
    select = [
        (float(np.mean([s["mean"] for s in e["scores"].values()])), e["digest"])
        for e in events
        if e["event"] == "candidate"
    ]
    assert events[-1]["best"] == next(digest for mean, digest in select if mean == max(select)[0])


def test_no_test_item_is_evaluated_before_the_final_rows(tmp_path):
    events = run(make_world(tmp_path))
    names = [event["event"] for event in events]
    first_final = names.index("final")
    assert "tell" not in names[first_final:]
    items = next(event for event in events if event["event"] == "items")["items"]
    for splits in items.values():
        everything = [id for ids in splits.values() for id in ids]
        assert len(set(everything)) == len(everything) == 60
    told = [event for event in events if event["event"] in ("seed", "tell")]
    assert all(e["scores"][task]["n"] == len(items[task]["search"]) for e in told for task in items)


def test_given_bounds_are_used_and_the_experts_bounds_otherwise(tmp_path):
    given = run(make_world(tmp_path / "given"), variant="paper", lower_bounds=[0.1] * 3, upper_bounds=[0.9] * 3)
    assert next(e for e in given if e["event"] == "bounds")["lower"] == [0.1] * 3
    implied = run(make_world(tmp_path / "implied"), variant="paper")
    experts = [[s["mean"] for s in e["scores"].values()] for e in implied if e["event"] == "seed" and e["expert"]]
    bounds = next(e for e in implied if e["event"] == "bounds")
    assert bounds["lower"] == pytest.approx([0.85 * min(column) for column in zip(*experts, strict=True)])
    assert bounds["upper"] == pytest.approx([1.15 * max(column) for column in zip(*experts, strict=True)])


def lora_world(folder) -> World:
    """The same world with LoRA experts of mixed ranks on its only matrix."""
    world = make_world(folder)
    base = open_checkpoint(world.folder / "base.safetensors")
    for task, rank in enumerate((1, 2, 1)):
        U, s, V = np.linalg.svd(truth(task) - base.tensor("layer.weight"), full_matrices=False)
        factors = Factors((U[:, :rank] * s[:rank]).astype(np.float32), V[:rank].astype(np.float32))
        write_adapter(world.folder / f"experts/lora{task}", {"layer.weight": factors}, rank=rank)
    content = yaml.safe_load(world.run_file.read_text())
    content["experts"] = {f"e{task}": f"experts/lora{task}" for task in range(3)}
    world.run_file.write_text(yaml.safe_dump(content))
    return world


@pytest.mark.parametrize("variant", ["minerua", "paper", "repo"])
def test_lora_experts_evolve_as_full_fine_tunes_do(tmp_path, variant):
    events = run(lora_world(tmp_path), variant=variant, batch=3)
    assert events[-1]["event"] == "end"
    assert not any("failed" in event for event in events)


def test_a_batch_larger_than_what_is_left_is_cut(tmp_path):
    events = run(make_world(tmp_path), batch=10)
    assert [len(event["children"]) for event in events if event["event"] == "ask"] == [10, 10, 5]
    assert events[-1]["evaluations"] == 25
