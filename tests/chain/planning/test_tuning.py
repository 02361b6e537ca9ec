"""Plans timed against one another: the fastest is found, and kept for later processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minerua.chain.graph import Graph, Step
from minerua.chain.plan import ExecutionPlan
from minerua.chain.planning.measuring import Runner
from minerua.chain.planning.optimizer import ChainOptimizer, open_executor
from minerua.chain.planning.profile import Profile
from minerua.chain.planning.servant import Servant, can_fork
from minerua.chain.planning.tuning import Candidate, contest, time_plan, winner
from minerua.errors import ChainError, StepFailed
from minerua.values import Setup, Skill

from ..naive import THREADS, Naive, add, carry_out, graph_of, open_naively, wired
from .test_optimizer import modalities, report

# ── tuning ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def sleeping(name: str, seconds: Callable[[Setup], float], **more: Any) -> Skill:
    """A model whose calls sleep, how long depends on its setup."""

    def load(setup: Setup) -> Callable[..., dict[str, int]]:
        def call(a: int, b: int = 0) -> dict[str, int]:
            time.sleep(seconds(setup))
            return {"y": a + b}

        return call

    more = {"pure": True, "setups": THREADS, **more}
    return Skill(name, inputs={"a": int, "b": int}, outputs={"y": int}, load=load, optional=("b",), **more)


@contextmanager
def open_with_setups(plan: ExecutionPlan) -> Iterator[Runner]:
    """Runs a plan step after step, with the setups that it asks for."""
    order = [planned for unit in plan.units for planned in unit.steps]
    calls = {p.step.name: p.step.skill.call or p.step.skill.load(p.setup) for p in order}  # type: ignore[misc]
    skills = {p.step.name: Skill(p.step.skill.name, calls[p.step.name], optional=p.step.skill.optional) for p in order}
    steps = tuple(Step(p.step.name, skills[p.step.name], p.step.inputs, when=p.step.when) for p in order)
    graph = Graph("timed", plan.graph.inputs, plan.graph.optional, steps, plan.graph.outputs)
    yield Naive(lambda inputs: carry_out(graph, inputs))


def shared_is_best(setup: Setup) -> float:
    return 1e-3 if setup.shared_threads else 4e-3


def test_tuning_finds_the_fastest_plan_and_a_later_process_takes_it_from_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "chain.profile.json"
    skill = sleeping("sleep", shared_is_best)
    graph = graph_of(wired("a", skill, {"a": "x"}), wired("b", skill, {"a": "a.y"}), outputs={"y": "b.y"})
    tuned = ChainOptimizer(Profile(path), open_plan=open_with_setups).tune(graph, [{"x": 1}], seconds=1.0)
    assert {p.setup for unit in tuned.units for p in unit.steps} == {Setup(shared_threads=True)}
    gains = report(tuned, "setups").measured_seconds, report(tuned, "setups").predicted_seconds
    assert all(gain is not None and gain > 0 for gain in gains)
    later = ChainOptimizer(Profile(path)).optimize(graph, example={"x": 5})
    assert {p.setup for unit in later.units for p in unit.steps} == {Setup(shared_threads=True)}
    assert later.expected_seconds == tuned.expected_seconds
    assert report(later, "setups").measured_seconds == report(tuned, "setups").measured_seconds


def test_a_chain_with_effects_runs_once_per_example_and_whole_plans_are_not_timed() -> None:
    ran: list[int] = []

    def log(a: int) -> dict[str, int]:
        ran.append(a)
        return {"y": a}

    graph = graph_of(wired("log", Skill("log", log, {"a": int}, {"y": int}), {"a": "x"}), outputs={"y": "log.y"})
    optimizer = ChainOptimizer(open_plan=open_naively)
    plan = optimizer.tune(graph, [{"x": 1}, {"x": 2}], seconds=0.1)
    assert ran == [1, 2]
    assert plan.expected_seconds is not None
    optimizer.tune(graph, [{"x": 1}], seconds=0.1, repeat_effects=True)
    assert len(ran) > 5


def test_a_chain_is_not_tuned_without_an_example() -> None:
    with pytest.raises(
        ChainError, match="chain 'made' cannot be measured without an example; give the inputs of a run"
    ):
        ChainOptimizer().tune(modalities(), [])


def test_concurrent_clients_are_timed_by_runs_per_second() -> None:
    skill = sleeping("sleep", lambda _: 2e-3, setups=(Setup(),))
    plan = ExecutionPlan.plain(graph_of(wired("a", skill, {"a": "x"}), outputs={"y": "a.y"}))
    alone = time_plan(plan, [{"x": 1}], open_executor)
    assert time_plan(plan, [{"x": 1}], open_executor, clients=8) < 0.7 * alone


def test_concurrent_clients_are_timed_from_inside_an_event_loop_too() -> None:
    plan = ExecutionPlan.plain(graph_of(wired("a", add(), {"a": "x"}), outputs={"y": "a.y"}))

    async def timed() -> float:
        return time_plan(plan, [{"x": 1}], open_executor, clients=4)

    assert asyncio.run(timed()) > 0


def test_a_fault_of_a_concurrent_client_is_raised() -> None:
    plan = ExecutionPlan.plain(graph_of(wired("a", add(), {"a": "x"}), outputs={"y": "a.y"}))

    def broken(inputs: Mapping[str, Any]) -> Any:
        raise LookupError("it went wrong")

    @contextmanager
    def opened_broken(plan: ExecutionPlan) -> Iterator[Runner]:
        calls = iter([True])
        yield Naive(lambda inputs: None if next(calls, False) else broken(inputs))

    with pytest.raises(LookupError, match="it went wrong"):
        time_plan(plan, [{"x": 1}], opened_broken, clients=2)


def test_a_plan_must_be_clearly_faster_than_an_ordinary_one() -> None:
    ordinary, odd = Candidate("ordinary", blocks=[1.0, 1.2]), Candidate("odd", blocks=[0.99])
    assert winner([ordinary, odd]) is ordinary
    assert winner([ordinary, Candidate("fast", blocks=[0.9])]).key == "fast"


def test_plans_whose_steps_alone_take_too_long_are_not_timed() -> None:
    hopeless, good = Candidate("slow", least_seconds=10.0), Candidate("good")
    assert contest([hopeless, good], lambda _: 1.0, seconds=0.1) is good
    assert hopeless.blocks == []


def test_the_fastest_plan_wins_and_slow_ones_have_few_turns() -> None:
    seconds = {"a": 3.0, "b": 1.0, "c": 1.1, "d": 9.0}
    candidates = [Candidate(key) for key in seconds]
    assert contest(candidates, seconds.__getitem__, seconds=1.0).key == "b"
    assert [len(one.blocks) for one in candidates] == [1, 16, 16, 1]


def test_a_plan_whose_first_turns_fell_into_slow_moments_stays_in_the_contest() -> None:
    slow_at_first = iter([3.2, 1.5, 3.2, 3.0, *[1.5] * 20])
    candidates = [Candidate("steady"), Candidate("unlucky")]
    won = contest(candidates, lambda key: 1.8 if key == "steady" else next(slow_at_first), seconds=0.5)
    assert won.key == "unlucky"


def test_a_plan_that_cannot_run_is_out_of_the_contest_and_if_none_can_the_first_fault_is_raised() -> None:
    def time_one(key: str) -> float:
        if key.startswith("broken"):
            raise ValueError(f"{key} has no threads to share")
        return 1.0

    broken, good = Candidate("broken"), Candidate("good")
    assert contest([broken, good], time_one, seconds=0.1) is good
    assert str(broken.fault) == "broken has no threads to share"
    with pytest.raises(ValueError, match="broken1 has no threads to share"):
        contest([Candidate("broken1"), Candidate("broken2")], time_one, seconds=0.1)


# ── processes of their own ───────────────────────────────────────────────────────────────────────────────────────────

CHOSEN: list[bool] = []
"""What this process chose, once and for all, as some libraries have it."""


def once_only(setup: Setup) -> Callable[..., dict[str, int]]:
    if CHOSEN and CHOSEN[0] is not setup.shared_threads:
        raise RuntimeError("this process has chosen already")
    CHOSEN[:] = [setup.shared_threads]
    time.sleep(1e-3)
    return lambda a: time.sleep(1e-3 if setup.shared_threads else 3e-3) or {"y": a}


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy processes")
def test_kinds_of_threads_that_exclude_each_other_are_measured_in_processes_of_their_own() -> None:
    CHOSEN.clear()
    skill = Skill("net", load=once_only, inputs={"a": int}, outputs={"y": int}, pure=True, setups=THREADS)
    graph = graph_of(wired("a", skill, {"a": "x"}), outputs={"y": "a.y"})
    optimizer = ChainOptimizer(open_plan=open_with_setups)
    plan = optimizer.tune(graph, [{"x": 1}], seconds=1.0)
    assert CHOSEN == []
    assert plan.units[0].steps[0].setup == Setup(shared_threads=True)
    assert all(optimizer.profile.find(skill, setup) is not None for setup in THREADS)
    gain = report(plan, "setups").measured_seconds
    assert gain is not None
    assert gain > 0


def answer(question: str) -> str:
    if question == "die":
        os._exit(7)
    if question == "odd":
        raise OddError(1, 2)
    if question == "fail":
        raise StepFailed("it failed", ["one fault"], step="see")
    return question.upper()


class OddError(Exception):
    """One that cannot be copied from process to process."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy processes")
def test_a_servant_answers_and_its_errors_travel() -> None:
    with Servant(answer) as servant:
        assert servant.ask("yes") == "YES"
        with pytest.raises(StepFailed, match="it failed") as caught:
            servant.ask("fail")
        assert (caught.value.faults, caught.value.step) == (("one fault",), "see")
        with pytest.raises(ChainError, match="OddError: 3"):
            servant.ask("odd")
        with pytest.raises(ChainError, match="ended with code 7 and without an answer; run the chain"):
            servant.ask("die")


@pytest.mark.skipif(not can_fork(), reason="this system cannot copy processes")
def test_a_servant_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minerua.chain.planning.servant.END_SECONDS", 0.1)
    servant = Servant(lambda seconds: time.sleep(seconds))
    servant._ours.send(60.0)
    servant.close()
    assert not servant._process.is_alive()
