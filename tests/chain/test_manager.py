from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from minerua.chain.graph import Graph
from minerua.chain.keeping.cache import ContentCache
from minerua.chain.keeping.residency import ModelResidency
from minerua.chain.manager import SkillChainManager
from minerua.chain.plan import ExecutionPlan
from minerua.chain.planning.optimizer import ChainOptimizer, open_executor
from minerua.chain.planning.profile import Profile
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.writing.chain import SkillChain
from minerua.errors import ChainError, KernelError, StepFailed
from minerua.kernels.pool import ResourcePool
from minerua.values import Setup, Skill

from .naive import graph_of, wired
from .planning.test_optimizer import modalities
from .planning.test_passes import all_inputs, graphs
from .planning.test_tuning import sleeping

TWICE = Skill("twice", lambda x: {"y": 2 * x}, {"x": int}, {"y": int}, pure=True)


def four_times(name: str = "four-times") -> SkillChain:
    chain = SkillChain(name, inputs={"x": int})
    chain.add_stage("twice", name="first")
    chain.add_stage("twice", name="then", inputs={"x": "first.y"})
    return chain


def manager(**more: Any) -> SkillChainManager:
    return SkillChainManager({"twice": TWICE}, **more)


def test_a_chain_is_loaded_checked_planned_run_and_explained_by_name() -> None:
    with manager() as chains:
        name = chains.load(four_times())
        assert chains.chains == ("four-times",)
        assert chains.check(name) == ()
        assert len(chains.plan(name).units) == 1
        assert dict(chains.run(name, {"x": 3})) == {"y": 12}
        assert "steps 'first', 'then' are scheduled as one" in chains.explain(name)
        assert chains.explain(name, as_mermaid=True).startswith("flowchart LR")
        assert chains.notes(name) == ()


def test_a_chain_runs_in_an_event_loop_and_as_a_stream() -> None:
    async def both(chains: SkillChainManager, name: str) -> Any:
        partials = [one async for one in chains.astream(name, {"x": 3})]
        return dict(await chains.arun(name, {"x": 3})), partials

    with manager() as chains:
        name = chains.load(four_times())
        result, partials = asyncio.run(both(chains, name))
        assert result == {"y": 12}
        assert len(list(chains.stream(name, {"x": 3}))) == len(partials) > 0


def test_a_chain_of_a_file_has_its_profile_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(four_times().dump())
    with manager() as chains:
        name = chains.load(path)
        plan = chains.tune(name, [{"x": 1}], seconds=0.2)
        assert plan.expected_seconds is not None
        assert (tmp_path / "small.profile.json").is_file()
        assert dict(chains.run(name, {"x": 1})) == {"y": 4}
    with manager() as chains:
        assert chains.plan(chains.load(path)).expected_seconds == plan.expected_seconds


def test_profiles_can_have_a_folder_of_their_own_and_what_is_wrong_with_them_is_told(tmp_path: Path) -> None:
    (tmp_path / "four-times.profile.json").write_text("{")
    with manager(profile_folder=tmp_path) as chains:
        name = chains.load(four_times())
        assert "cannot be read and is not used" in chains.notes(name)[0]
        chains.tune(name, [{"x": 1}], seconds=0.1)
    with manager(profile_folder=tmp_path) as chains:
        assert chains.notes(chains.load(four_times())) == ()


def test_a_chain_whose_name_looks_like_a_path_keeps_its_profile_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    with manager(profile_folder=tmp_path / "profiles") as chains:
        chains.tune(chains.load(four_times("../x")), [{"x": 1}], seconds=0.1)
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == ["..%2Fx.profile.json"]


def test_faults_of_a_chain_are_told_where_it_is_used() -> None:
    with SkillChainManager({}) as chains:
        name = chains.load(four_times())
        assert len(chains.check(name)) == 2
        with pytest.raises(ChainError, match="no skill is named 'twice'"):
            chains.run(name, {"x": 3})
        with pytest.raises(
            ChainError, match=r"no chain is named 'four_times'; did you mean 'four-times'.*; load it first"
        ):
            chains.run("four_times", {"x": 3})


def test_loading_a_chain_again_replaces_it() -> None:
    with manager() as chains:
        name = chains.load(four_times())
        assert dict(chains.run(name, {"x": 3})) == {"y": 12}
        other = SkillChain("four-times", inputs={"x": int})
        other.add_stage("twice")
        assert chains.load(other) == name
        assert dict(chains.run(name, {"x": 3})) == {"y": 6}


def test_results_are_kept_where_a_cache_is_given() -> None:
    calls: list[int] = []

    def load(_: Setup) -> Any:
        return lambda x: calls.append(x) or {"y": 2 * x}

    skill = Skill("model", load=load, inputs={"x": int}, outputs={"y": int}, pure=True)
    with SkillChainManager({"model": skill}, cache=ContentCache(1 << 20)) as chains:
        chain = SkillChain("c", inputs={"x": int})
        chain.add_stage("model")
        name = chains.load(chain)
        assert [dict(chains.run(name, {"x": 3}))["y"] for _ in range(3)] == [6, 6, 6]
    assert calls == [3]


def test_observers_are_told_of_every_run() -> None:
    class Observer:
        def __init__(self) -> None:
            self.runs = 0

        def run_finished(self, run_id: int, trace: Any, error: Any) -> None:
            self.runs += 1

    observer = Observer()
    with manager(observers=[observer]) as chains:
        name = chains.load(four_times())
        chains.run(name, {"x": 1})
        chains.run(name, {"x": 2})
    assert observer.runs == 2


def test_models_are_unloaded_at_the_end_and_those_of_the_caller_stay() -> None:
    skill = Skill("model", load=lambda _: lambda x: {"y": x}, inputs={"x": int}, outputs={"y": int}, loaded_bytes=8)
    chain = SkillChain("c", inputs={"x": int})
    chain.add_stage(skill)
    residency = ModelResidency()
    with SkillChainManager({}, residency=residency) as chains:
        chains.run(chains.load(chain), {"x": 1})
    assert residency.statistics().models == 1
    residency.close()


def test_a_failing_step_is_the_executors_error() -> None:
    def fail(x: int) -> dict[str, int]:
        raise ValueError("no good")

    chain = SkillChain("c", inputs={"x": int})
    chain.add_stage(Skill("fail", fail, {"x": int}, {"y": int}))
    with SkillChainManager({}) as chains:
        name = chains.load(chain)
        with pytest.raises(StepFailed, match="no good"):
            chains.run(name, {"x": 1})


# ── plans carried out by the executor ────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(graph=graphs(policies=("skip", "skip", "default")))
def test_optimised_plans_give_what_plain_ones_give(graph: Graph) -> None:
    plan = ChainOptimizer(cache=True).optimize(graph)
    with (
        ChainExecutor(ExecutionPlan.plain(graph)) as plain,
        ChainExecutor(plan, cache=ContentCache(1 << 20)) as optimised,
    ):
        for inputs in all_inputs(graph):
            first, second = plain.run(inputs), optimised.run(inputs)
            assert dict(first) == dict(second)
            assert set(first.absent) == set(second.absent)


def test_tuning_with_the_executor_ends_near_the_best_plan_made_by_hand() -> None:
    def seconds(setup: Setup) -> float:
        return 2e-3 if setup.threads == 1 else 5e-3

    skill = sleeping("model", seconds, setups=(Setup(), Setup(threads=1)))
    graph = graph_of(
        wired("see", skill, {"a": "image"}),
        wired("read", skill, {"a": "text"}),
        wired("fuse", skill, {"a": "see.y", "b": "read.y"}),
        outputs={"label": "fuse.y"},
    )
    plan = ChainOptimizer(Profile()).tune(graph, [{"image": 1, "text": 2}], seconds=2.0)
    assert {planned.setup for unit in plan.units for planned in unit.steps} == {Setup(threads=1)}
    assert {planned.step.name for unit in plan.units for planned in unit.steps if unit.place == "thread"} == {
        "see",
        "read",
    }
    with open_executor(plan) as runner:
        assert dict(runner.run({"image": 1, "text": 2})) == {"label": 3}


def test_models_of_a_timed_plan_are_unloaded_again() -> None:
    closed: list[int] = []

    class Model:
        def __call__(self, a: int, b: int = 0) -> dict[str, int]:
            return {"y": a + b}

        def close(self) -> None:
            closed.append(1)

    graph = modalities(setups=(Setup(),))
    steps = [
        wired(
            s.name,
            Skill(s.name, load=lambda _: Model(), inputs=s.skill.inputs, outputs=s.skill.outputs, optional=("b",)),
            {port: tuple(map(str, sources)) for port, sources in s.inputs.items()},
        )
        for s in graph.steps
    ]
    with open_executor(ExecutionPlan.plain(graph_of(*steps, outputs={"label": "fuse.y"}))) as runner:
        assert dict(runner.run({"image": 1, "text": 2})) == {"label": 3}
    assert len(closed) == 3


def greedy(ran: list[str]) -> dict[str, Skill]:
    """A small step, then one that needs four processors and ten bytes."""

    def small(x: int) -> dict[str, int]:
        ran.append("small")
        return {"y": x}

    needs = {"cpu": 4, "host_bytes": 10}
    large = Skill("large", lambda y: {"z": y}, {"y": int}, {"z": int}, resources=needs)
    return {"small": Skill("small", small, {"x": int}, {"y": int}, resources={"cpu": 1}), "large": large}


def small_and_large() -> SkillChain:
    chain = SkillChain("greedy", inputs={"x": int})
    chain.add_stage("small")
    chain.add_stage("large")
    return chain


def test_a_step_that_needs_more_than_the_pool_has_fails_at_its_turn_and_names_both_numbers() -> None:
    ran: list[str] = []
    pool = ResourcePool({"cpu": 2, "host_bytes": 100})
    with SkillChainManager(greedy(ran), pool=pool) as chains, pool.acquire({"cpu": 1}):
        name = chains.load(small_and_large())
        with pytest.raises(StepFailed, match=r"step 'large'(?s:.*)cpu: 4 asked for, the pool has 2"):
            chains.run(name, {"x": 1})
        assert (ran, pool.in_use["cpu"], pool.statistics().waiting) == (["small"], 1, 0)


def test_a_resource_that_the_pool_does_not_know_is_refused_before_any_step() -> None:
    ran: list[str] = []
    with SkillChainManager(greedy(ran), pool=ResourcePool({"cpu": 8})) as chains:
        name = chains.load(small_and_large())
        with pytest.raises(KernelError, match=r"no resource is named 'host_bytes'\. Known: cpu"):
            chains.run(name, {"x": 1})
    assert ran == []
