"""How much faster are language models scored together than one at a time? Expected: three times and more at 8.

A token of one small model costs the walk through its layers, and hardly more for eight models over one base: each row
of a batch adds its own child's part. Children of the world of `minerua evolve agent-skills` answer all search items of
its three tasks, and four of each, which fill no batch; what they answer is executed: once built anew for every child,
once one at a time over a base that stays, then 8 and 32 at once. Outcomes are compared item by item before anything is
timed.

Beside it: how much of a whole run is spent outside evaluation, on selection, crossover, mutation and the journal.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from minerua.evaluation import Evaluation, Task
from minerua.evolution import Journal
from minerua.registry import Registry
from minerua.run import Prepared, prepare
from minerua.run.evolve import evolve
from minerua.run.models import Models
from minerua.run.record import Record
from minerua.run.seeds import found
from minerua.values import Genome, Scores
from minerua.weights import Subspace

from .bench_agent_skills import make_world

CHILDREN = 32
SHARE_OUTSIDE = 0.05
LEAST_GAIN_AT_8 = 3.0


@pytest.fixture(scope="module")
def run_file(smoke: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, its experts learned."""
    return make_world(tmp_path_factory.mktemp("world") / "run", Registry.load(), seed=0, smoke=smoke)


@pytest.fixture(scope="module")
def prepared(run_file: Path) -> Iterator[Prepared]:
    """The run, with the experts alone as founders, on one thread: a process per core is what users would start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = prepare(run_file, Registry.load())
    yield dataclasses.replace(found, merges=())
    torch.set_num_threads(threads)


def children_of(subspace: Subspace, founders: Sequence[Genome], count: int) -> list[Genome]:
    generator = np.random.default_rng(0)
    return [subspace.combine(founders, generator.uniform(0, 0.8, (1, len(founders)))) for _ in range(count)]


def first_items(task: Task, count: int | None) -> Task:
    """Returns a task with its first search items alone; with all of them where no count is given."""
    return dataclasses.replace(task, ids={**task.ids, "search": task.ids["search"][:count]})


@pytest.mark.parametrize("items", [None, 4], ids=["all items", "4 items a task"])
def test_children_together(benchmark, smoke, prepared, items):
    subspace, founders = found(prepared)
    tasks = [first_items(task, items) for task in prepared.tasks]
    children = children_of(subspace, [founder.genome for founder in founders], 8 if smoke else CHILDREN)
    resident = Models(prepared.model, subspace)
    ways: dict[str, tuple[Models, int]] = {
        "built anew": (Models(dataclasses.replace(prepared.model, open=None), subspace), 1),
        "one at a time": (resident, 1),
        **{f"{count} together": (resident, count) for count in (8, 32) if count <= len(children)},
    }
    outcomes: dict[str, list[Scores]] = {}
    seconds: dict[str, float] = dict.fromkeys(ways, float("inf"))

    def score(models: Models, count: int) -> list[Scores]:
        evaluation = Evaluation(tasks)
        scores = []
        for start in range(0, len(children), count):
            group = children[start : start + count]
            if count > 1:
                models.prefetch(evaluation, group)
            scores += [models.score(evaluation, child) for child in group]
        return scores

    def turn() -> None:
        for name, (models, count) in ways.items():
            start = time.perf_counter()
            outcomes[name] = score(models, count)
            seconds[name] = min(seconds[name], (time.perf_counter() - start) / len(children))

    turn()  # the first warms up, and is compared
    for name, found_scores in outcomes.items():
        assert found_scores == outcomes["built anew"], f"{name}: other outcomes than of children that are built anew"
    seconds.update(dict.fromkeys(ways, float("inf")))
    benchmark.pedantic(turn, rounds=1 if smoke else 3 if items is None else 7)
    for name, least in seconds.items():
        benchmark.extra_info[f"{name}: children per second"] = 1 / least
        benchmark.extra_info[f"{name}: times one at a time"] = seconds["one at a time"] / least
    benchmark.extra_info["items per child"] = sum(len(task.ids["search"]) for task in tasks)
    if not smoke:
        assert seconds["one at a time"] >= LEAST_GAIN_AT_8 * seconds["8 together"]


def test_share_outside_evaluation(benchmark, smoke, prepared, tmp_path, monkeypatch):
    inside = [0.0]

    def timed(method: Callable) -> Callable:
        def call(*arguments: object, **settings: object) -> object:
            start = time.perf_counter()
            try:
                return method(*arguments, **settings)
            finally:
                inside[0] += time.perf_counter() - start

        return call

    for name in ("score", "prefetch"):
        monkeypatch.setattr(Models, name, timed(getattr(Models, name)))

    def run() -> float:
        inside[0] = 0.0
        path = tmp_path / "journal.jsonl"
        path.unlink(missing_ok=True)
        start = time.perf_counter()
        with Journal(path, fresh=True) as journal:
            evolve(prepared, Record(journal))
        return 1 - inside[0] / (time.perf_counter() - start)

    share = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["share outside evaluation"] = share
    if not smoke:
        assert share <= SHARE_OUTSIDE
