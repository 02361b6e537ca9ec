"""The promise: a run that is killed anywhere and goes on leaves the bytes of one that was never killed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minerua.weights import open_checkpoint

from .worlds import contents, run_jobs

MANY = {
    "model": {"settings": {"dropout": 0.3, "norm": True}},
    "accumulate": 2,
    "clip_norm": 1.0,
    "schedule": {"name": "cosine", "warmup_steps": 3},
    "evaluate_every_steps": 5,
    "save_every_steps": 3,
    "stopping": {"patience": 20},
}
SLOW = {"optimizer": {"rate": 1e-4}}  # so that losses stay what they are, and some lie above the median
CASES: dict[str, dict[str, Any]] = {
    "many parts": {"changes": MANY, "splits": {"augmented": True}},
    "two workers": {"changes": {**MANY, "device": {"workers": 2}}, "splits": {"augmented": True}},
    "early stopping, plateau": {
        "changes": {
            "epochs": 6,
            "optimizer": {"name": "sgd", "rate": 1e-5, "settings": {"momentum": 0.9}},
            "schedule": {"name": "plateau", "patience": 0, "factor": 0.5},
            "stopping": {"patience": 3, "min_change": 0.05},
        }
    },
    "global generators": {
        "changes": {"model": {"name": "drawing", "settings": {"width": 9}}, "save_every_steps": 4},
        "splits": {"careless": True},
    },
    "skipped steps": {
        "changes": {**SLOW, "guard": {"policy": "skip", "spike": 0.5, "limit": 100}, "save_every_steps": 2},
    },
    "rolled back": {
        "changes": {**SLOW, "guard": {"policy": "rollback", "spike": 0.5, "limit": 100}, "save_every_steps": 4},
    },
}
# 60 examples in batches of 8: 8 steps an epoch, the last one short; 3 epochs
KILLS = {"many parts": (1, 13), "two workers": (10,), "early stopping, plateau": (19,), "rolled back": (14,)}


def jobs_of(name: str) -> list[dict[str, Any]]:
    """The uninterrupted run, and for each kill the killed one and the one that goes on."""
    case = CASES[name]
    jobs = [{**case, "out": f"{name}/whole"}]
    for step in KILLS.get(name, (11,)):
        jobs += [{**case, "out": f"{name}/{step}", "kill": step}, {**case, "out": f"{name}/{step}"}]
    return jobs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, carried out."""
    folder = tmp_path_factory.mktemp("resume")
    for name in CASES:
        (folder / name).mkdir()
    codes = run_jobs(folder, [job for name in CASES for job in jobs_of(name)])
    expected = [-9 if "kill" in job else 0 for name in CASES for job in jobs_of(name)]
    assert codes == expected
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_that_goes_on_leaves_the_bytes_of_an_uninterrupted_one(runs: Path, name: str) -> None:
    whole = contents(runs / name / "whole")
    assert {"learned.json", "model.safetensors", "best.safetensors"} < set(whole)
    for step in KILLS.get(name, (11,)):
        assert contents(runs / name / str(step)) == whole


@pytest.mark.slow
def test_workers_change_no_bit(runs: Path) -> None:
    assert contents(runs / "two workers" / "whole") == contents(runs / "many parts" / "whole")


@pytest.mark.slow
def test_the_cases_are_what_they_say(runs: Path) -> None:
    def learned(name: str) -> str:
        return (runs / name / "whole" / "learned.json").read_text()

    assert "has not improved" in learned("early stopping, plateau")
    for name in ("skipped steps", "rolled back"):
        assert '"skipped_steps": 0' not in learned(name)


@pytest.mark.slow
def test_twenty_runs_that_are_killed_at_random_moments_end_alike(tmp_path: Path) -> None:
    generator = random.Random(7)
    case = CASES["many parts"]
    jobs = [{**case, "out": "whole"}]
    jobs += [{**case, "out": f"run-{number % 4}", "after": generator.uniform(0.05, 0.6)} for number in range(20)]
    jobs += [{**case, "out": f"run-{number}"} for number in range(4)]
    codes = run_jobs(tmp_path, jobs)
    assert codes.count(-9) >= 5  # the others were done before they were killed
    assert codes[-4:] == [0] * 4
    whole = contents(tmp_path / "whole")
    for number in range(4):
        found = contents(tmp_path / f"run-{number}")
        assert {name: found[name] for name in whole} == whole


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_go_on_exactly(tmp_path: Path) -> None:
    changes = {**MANY, "model": {"settings": {"dropout": 0.0}}}
    sharded = {**changes, "device": {"strategy": "fsdp"}}
    jobs: list[dict[str, Any]] = [{"changes": changes, "out": "one"}]
    for name, one in (("ddp", changes), ("fsdp", sharded)):
        jobs += [
            {"changes": one, "out": f"{name}-whole", "processes": 2},
            {"changes": one, "out": f"{name}-killed", "processes": 2, "kill": 10},
            {"changes": one, "out": f"{name}-killed", "processes": 2},
        ]
    assert run_jobs(tmp_path, jobs) == [0, 0, -9, 0, 0, -9, 0]
    one = open_checkpoint(tmp_path / "one" / "model.safetensors")
    for name in ("ddp", "fsdp"):
        assert contents(tmp_path / f"{name}-killed") == contents(tmp_path / f"{name}-whole")
        two = open_checkpoint(tmp_path / f"{name}-whole" / "model.safetensors")
        for tensor in one.specs:
            np.testing.assert_allclose(two.tensor(tensor), one.tensor(tensor), rtol=0, atol=2e-6)
