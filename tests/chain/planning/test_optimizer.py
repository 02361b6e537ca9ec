from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from minerua.chain.graph import Graph
from minerua.chain.plan import ExecutionPlan, PassReport
from minerua.chain.planning.optimizer import ChainOptimizer
from minerua.chain.planning.profile import MachineCosts, Profile, StepCost, graph_key
from minerua.chain.planning.scheduling import Choices, Estimates, arrange, beside, loading_order, makespan, told
from minerua.chain.planning.variants import described, families
from minerua.values import Setup, Skill

from ..naive import THREADS, add, carry_out, graph_of, is_sound, join, simulate, unit_order, wired
from .test_passes import all_inputs, graphs

MEASURED = MachineCosts(measured=True)


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans depend on how many processors there are."""
    monkeypatch.setattr("minerua.chain.planning.optimizer.processors", lambda: 2)


def model(name: str, **more: Any) -> Skill:
    """A skill that loads; it adds its inputs."""

    def load(_: Setup) -> Callable[..., dict[str, int]]:
        return lambda a, b=0: {"y": a + b}

    more = {"pure": True, "setups": THREADS, **more}
    return Skill(name, inputs={"a": int, "b": int}, outputs={"y": int}, load=load, optional=("b",), **more)


def modalities(**more: Any) -> Graph:
    return graph_of(
        wired("see", model("vision", **more), {"a": "image"}),
        wired("read", model("language", **more), {"a": "text"}),
        wired("fuse", model("fusion", **more), {"a": "see.y", "b": "read.y"}),
        outputs={"label": "fuse.y"},
    )


def known(graph: Graph, seconds: Mapping[str, float], *, overlap: float | None = 1.0) -> Profile:
    """A profile in which every step takes so long under each of its setups."""
    profile = Profile()
    profile.costs = MEASURED
    for step in graph.steps:
        for setup in step.skill.setups:
            profile.record(step.skill, setup, "", StepCost(seconds[step.name], 100, 100, overlap))
    return profile


def estimates(seconds: Mapping[str, float], processors: int = 2, overlap: float | None = 1.0) -> Estimates:
    return Estimates(
        lambda s, _: StepCost(seconds[s.name], 0, 0, overlap) if s.name in seconds else None, MEASURED, processors
    )


def report(plan: ExecutionPlan, name: str) -> PassReport:
    return next(one for one in plan.passes if one.name == name)


def places(plan: ExecutionPlan) -> dict[str, str]:
    return {planned.step.name: unit.place for unit in plan.units for planned in unit.steps}


# ── without measurements ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_not_measured_is_planned_as_written_and_the_reasons_say_so() -> None:
    plan = ChainOptimizer().optimize(modalities())
    assert places(plan) == {"see": "thread", "read": "thread", "fuse": "caller"}
    assert plan.expected_seconds is None
    assert plan.reasons == {
        "see": "in a thread, because the chain branches; not measured; default: not timed in a whole plan",
        "read": "in a thread, because the chain branches; not measured; default: not timed in a whole plan",
        "fuse": "where the caller is: nothing could run beside it; default: not timed in a whole plan",
    }
    assert all(one.predicted_seconds is None and one.measured_seconds is None for one in plan.passes)
    assert plan.origin is not None
    assert plan.graph.outputs == plan.origin.outputs


def test_neighbours_that_can_be_joined_are_joined_without_measurements() -> None:
    plan = ChainOptimizer().optimize(modalities(join=join))
    (unit,) = plan.units
    assert unit.steps[0].parts == ("see", "read", "fuse")
    assert simulate(plan, {"image": 3, "text": 4}) == {"label": 7}


def test_a_step_says_that_its_only_setup_was_not_measured() -> None:
    plan = ChainOptimizer().optimize(graph_of(wired("a", add(), {"a": "x"}), outputs={"y": "a.y"}))
    assert plan.reasons == {"a": "where the caller is: nothing could run beside it; not measured"}


def test_a_step_that_is_kept_for_its_effects_says_so() -> None:
    graph = graph_of(wired("a", add(), {"a": "x"}), wired("log", add(pure=False), {"a": "x"}), outputs={"y": "a.y"})
    assert ChainOptimizer().optimize(graph).reasons["log"].endswith("; not measured; kept for its effects")


def test_only_requested_outputs_are_planned_for() -> None:
    graph = graph_of(wired("a", add(), {"a": "x"}), wired("b", add("b"), {"a": "x"}), outputs={"y": "a.y", "z": "b.y"})
    plan = ChainOptimizer().optimize(graph, ["z"])
    assert list(plan.graph.outputs) == ["z"]
    assert report(plan, "dead steps").changes == ("step 'a' is left out: no requested output needs it",)
    assert plan.origin is graph


@settings(max_examples=100, deadline=None)
@given(graph=graphs())
def test_plans_give_what_the_chain_as_written_gives(graph: Graph) -> None:
    plan = ChainOptimizer(cache=True, concurrency=4).optimize(graph)
    assert is_sound(plan)
    for inputs in all_inputs(graph):
        assert simulate(plan, inputs) == carry_out(graph, inputs)


# ── places and order ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_short_steps_stay_with_the_caller_and_long_ones_get_threads() -> None:
    graph = modalities()
    plan = ChainOptimizer(known(graph, {"see": 1e-6, "read": 1e-6, "fuse": 1e-6})).optimize(graph)
    assert set(places(plan).values()) == {"caller"}
    assert len(plan.units) == 1
    plan = ChainOptimizer(known(graph, {"see": 1e-2, "read": 2e-2, "fuse": 1e-3}), most_threads=2).optimize(graph)
    assert places(plan) == {"see": "thread", "read": "thread", "fuse": "caller"}
    assert max(plan.units, key=lambda unit: unit.priority).steps[0].step.name == "read"
    assert "what lies on the critical path starts first: read → fuse" in report(plan, "places").changes
    assert plan.expected_seconds == pytest.approx(0.021, rel=0.02)


def test_a_short_step_beside_a_long_one_is_not_handed_over() -> None:
    graph = modalities()
    plan = arrange(graph, Choices(), estimates({"see": 1e-5, "read": 2e-2, "fuse": 1e-3}))
    assert places(plan) == {"see": "caller", "read": "thread", "fuse": "caller"}
    assert plan.reasons["see"] == "where the caller is: 10 µs are less than a hand-over of 60 µs"
    assert plan.reasons["read"] == "in a thread, beside the other branches"


def test_steps_that_hold_the_interpreter_run_one_after_the_other() -> None:
    graph = modalities()
    plan = ChainOptimizer(known(graph, {"see": 1e-2, "read": 1e-2, "fuse": 1e-3}, overlap=0.0)).optimize(graph)
    assert set(places(plan).values()) == {"caller"}
    assert plan.reasons["see"].startswith("where the caller is: one after the other is faster here")


def test_coroutines_time_limits_and_isolation_have_places_of_their_own() -> None:
    async def wait(a: int) -> dict[str, int]:
        return {"y": a}

    graph = graph_of(
        wired("a", Skill("wait", wait, {"a": int}, {"y": int}, pure=True), {"a": "x"}),
        wired("b", add(), {"a": "a.y"}, timeout_seconds=1.0),
        wired("c", add(), {"a": "b.y"}, isolated=True),
        outputs={"y": "c.y"},
    )
    plan = ChainOptimizer().optimize(graph)
    assert places(plan) == {"a": "loop", "b": "thread", "c": "process"}
    assert [reason.split("; ")[0] for reason in plan.reasons.values()] == [
        "a coroutine",
        "in a thread, so that its time limit can be kept",
        "isolated: a process of its own can be stopped at any time",
    ]
    assert "step 'a' runs in a loop instead of where the caller is" in report(plan, "places").changes


def test_linear_runs_are_scheduled_as_one() -> None:
    steps = [
        wired("a", model("a"), {"a": "x"}),
        wired("b", model("b"), {"a": "a.y"}),
        wired("c", model("c"), {"a": "z"}),
    ]
    graph = graph_of(*steps, wired("d", model("d"), {"a": "b.y", "b": "c.y"}), outputs={"y": "d.y"})
    plan = arrange(graph, Choices(), estimates({}))
    assert [tuple(p.step.name for p in unit.steps) for unit in plan.units] == [("a", "b"), ("c",), ("d",)]
    assert is_sound(plan)
    assert is_sound(arrange(graph, Choices(fused=False), estimates({})))
    assert report(ChainOptimizer().optimize(graph), "fusion").changes == ("steps 'a', 'b' are scheduled as one",)


def test_the_time_of_a_plan_is_that_of_its_schedule() -> None:
    graph = modalities()
    seconds = {"see": 1e-2, "read": 2e-2, "fuse": 1e-3}
    beside_each_other = arrange(graph, Choices(), estimates(seconds))
    one_by_one = arrange(graph, Choices(parallel=False), estimates(seconds))
    assert makespan(beside_each_other, estimates(seconds)) == pytest.approx(0.021, rel=0.02)
    assert makespan(one_by_one, estimates(seconds)) == pytest.approx(0.031, rel=0.02)
    assert makespan(beside_each_other, estimates(seconds, processors=1)) == pytest.approx(0.031, rel=0.02)
    assert makespan(beside_each_other, estimates(seconds, overlap=0.0)) == pytest.approx(0.031, rel=0.02)
    assert makespan(arrange(graph, Choices(), estimates({"see": 1.0})), estimates({"see": 1.0})) is None


def test_what_runs_beside_a_step_is_what_neither_needs_it_nor_is_needed() -> None:
    graph = modalities()
    assert [beside(graph, name) for name in ("see", "read", "fuse")] == [True, True, False]


def test_models_are_loaded_in_the_order_in_which_they_are_needed() -> None:
    graph = modalities()
    plan = arrange(graph, Choices(), estimates({"see": 1e-3, "read": 2e-2, "fuse": 1e-3}))
    assert [skill.name for skill, _ in loading_order(plan)] == ["language", "vision", "fusion"]
    changes = report(ChainOptimizer().optimize(graph), "loading order").changes
    assert changes == ("models are loaded in the order in which they are needed: vision, language, fusion",)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (1.234e-3, "1.23 ms"), (45.6e-6, "45.6 µs"), (3e-7, "0.3 µs"), (-2e-3, "-2 ms")],
)
def test_durations_are_told_with_three_digits(seconds: float, text: str) -> None:
    assert told(seconds) == text


# ── setups, cache, batching ──────────────────────────────────────────────────────────────────────────────────────────


def test_each_way_to_load_the_skills_is_considered_once() -> None:
    graph = modalities()
    found = families(graph, estimates({}))
    assert list(found) == ["default", "1 thread", "shared threads", "1 thread in branches"]
    assert found["1 thread in branches"] == {"see": Setup(threads=1), "read": Setup(threads=1)}
    assert list(families(modalities(setups=(Setup(),)), estimates({}))) == ["default"]
    two = modalities(setups=(Setup(), Setup(threads=2)))
    assert list(families(two, estimates({}, processors=1))) == ["default"]
    busy = replace(estimates({}, processors=1), most_threads=2)  # a batch of many runs' calls may use them all
    assert list(families(two, busy)) == ["default", "2 threads"]
    assert list(families(modalities(setups=(Setup(), Setup(threads=64))), estimates({}))) == ["default"]


def test_setups_are_told_in_a_few_words() -> None:
    setups = [Setup(), Setup(threads=1), Setup(2, shared_threads=True), Setup(shared_threads=True, device="cuda:0")]
    assert [described(s) for s in setups] == [
        "default",
        "1 thread",
        "2 threads of a shared pool",
        "shared threads on cuda:0",
    ]


def test_the_fastest_setup_of_each_step_is_taken_where_nothing_else_is_known() -> None:
    graph = modalities()
    profile = known(graph, {"see": 1e-3, "read": 1e-3, "fuse": 1e-3}, overlap=0.0)
    profile.record(graph.by_name["read"].skill, Setup(threads=1), "", StepCost(1e-4, overlap=0.0))
    plan = ChainOptimizer(profile).optimize(graph)
    assert {p.step.name: p.setup for unit in plan.units for p in unit.steps}["read"] == Setup(threads=1)
    assert "step 'read' is loaded with 1 thread" in report(plan, "setups").changes


def test_what_was_timed_in_whole_plans_decides() -> None:
    graph = modalities()
    optimizer = ChainOptimizer(known(graph, {"see": 1e-2, "read": 1e-2, "fuse": 1e-3}), most_threads=2)
    key = optimizer._plan_key(optimizer._lean(graph, None, None))
    optimizer.profile.record_plan(key, "image:int text:int", "apart, shared threads, serial", 0.5)
    optimizer.profile.record_plan(key, "image:int text:int", "apart, default, parallel", 0.9)
    plan = optimizer.optimize(graph, example={"image": 1, "text": 2})
    assert {p.setup for unit in plan.units for p in unit.steps} == {Setup(shared_threads=True)}
    assert plan.expected_seconds == 0.5
    assert plan.reasons["see"].endswith("; shared threads: fastest of the plans that were timed")


def test_pure_steps_that_cost_more_than_a_look_up_are_kept() -> None:
    graph = modalities()
    profile = known(graph, {"see": 1e-2, "read": 1e-6, "fuse": 1e-3})
    plan = ChainOptimizer(profile, cache=True).optimize(graph)
    assert {p.step.name for unit in plan.units for p in unit.steps if p.cached} == {"see", "fuse"}
    assert report(plan, "cache").changes == (
        "results of step 'fuse' are kept by their inputs: it costs more than a look-up",
        "results of step 'see' are kept by their inputs: it costs more than a look-up",
    )
    assert not any(p.cached for unit in ChainOptimizer(profile).optimize(graph).units for p in unit.steps)
    impure = graph_of(wired("a", model("a", pure=False), {"a": "x"}), outputs={"y": "a.y"})
    assert report(ChainOptimizer(cache=True).optimize(impure), "cache").changes == ()


def test_calls_of_concurrent_runs_are_made_one_where_the_skill_allows_it() -> None:
    graph = modalities(batchable=True)
    plan = ChainOptimizer(concurrency=8).optimize(graph)
    assert {p.batch_rows for unit in plan.units for p in unit.steps} == {32}
    assert "calls of step 'see' from concurrent runs become one, up to 32 rows" in report(plan, "batching").changes
    assert {p.batch_rows for unit in ChainOptimizer().optimize(graph).units for p in unit.steps} == {0}


# ── predicted gains ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_pass_says_what_it_should_save() -> None:
    graph = graph_of(
        wired("a", model("a"), {"a": "x"}),
        wired("twin", model("a"), {"a": "x"}),
        wired("dead", model("d"), {"a": "x"}),
        wired("b", model("b"), {"a": "a.y", "b": "twin.y"}),
        outputs={"y": "b.y"},
    )
    profile = known(graph, {"a": 1e-2, "twin": 1e-2, "dead": 3e-2, "b": 1e-3}, overlap=0.0)
    plan = ChainOptimizer(profile).optimize(graph)
    assert report(plan, "dead steps").predicted_seconds == pytest.approx(3e-2, rel=0.02)
    assert report(plan, "equal steps").predicted_seconds == pytest.approx(1e-2, rel=0.02)
    assert report(plan, "joined neighbours").predicted_seconds is None
    assert report(plan, "dead steps").measured_seconds is None


def test_a_joined_step_is_taken_for_as_long_as_its_parts() -> None:
    graph = modalities(join=join)
    plan = ChainOptimizer(known(graph, {"see": 1e-2, "read": 1e-2, "fuse": 1e-3}, overlap=0.0)).optimize(graph)
    assert len(plan.graph.steps) == 1
    assert plan.units[0].steps[0].seconds == pytest.approx(21e-3)


# ── what decides ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_key_of_a_chain_changes_with_its_skills_and_wires() -> None:
    graph = modalities()
    assert graph_key(graph) == graph_key(modalities())
    other = graph_of(
        *graph.steps[:2], wired("fuse", model("fusion"), {"a": "read.y", "b": "see.y"}), outputs={"label": "fuse.y"}
    )
    assert graph_key(other) != graph_key(graph)
    assert graph_key(modalities(version="2")) != graph_key(graph)


def test_arrays_in_examples_decide_which_measurements_count() -> None:
    skill = Skill("half", lambda a: {"y": a / 2}, {"a": object}, {"y": object}, pure=True)
    graph = graph_of(wired("h", skill, {"a": "x"}), outputs={"y": "h.y"})
    profile = Profile()
    profile.record(skill, Setup(), "a:float32[8]", StepCost(1.0))
    profile.record(skill, Setup(), "a:float32[32]", StepCost(4.0))
    profile.record_inputs(graph_key(graph), "x:float32[8]", {"h": "a:float32[8]"})
    profile.record_inputs(graph_key(graph), "x:float32[32]", {"h": "a:float32[32]"})
    small, large = ({"x": np.zeros(n, np.float32)} for n in (7, 32))
    assert ChainOptimizer(profile).optimize(graph, example=small).units[0].steps[0].seconds == 1.0
    assert ChainOptimizer(profile).optimize(graph, example=large).units[0].steps[0].seconds == 4.0
    assert unit_order(ChainOptimizer(profile).optimize(graph)) == ["h"]
