"""What runs share: cached results, models, batches, worker processes."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from minerua.chain.graph import Graph, Source, Step
from minerua.chain.keeping.cache import ContentCache
from minerua.chain.keeping.residency import ModelResidency
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.executor import ChainExecutor
from minerua.errors import StepFailed
from minerua.values import Setup, Skill

from ..naive import graph_of, wired
from ..steps import ROWS, function, line, placed, pool, run

__all__ = ["pool"]


# ── cache, models, batches, processes ────────────────────────────────────────────────────────────────────────────────


def test_a_cached_step_is_computed_once_for_all_runs_at_a_time() -> None:
    calls = []

    def call(x: int) -> dict[str, int]:
        calls.append(x)
        time.sleep(0.02)
        return {"y": 2 * x}

    graph = line(1, function("double", call, pure=True))
    with (
        ChainExecutor(placed(graph, "thread", cached=True), cache=ContentCache(1 << 20)) as executor,
        ThreadPoolExecutor(4) as threads,
    ):
        assert [r["y"] for r in threads.map(executor.run, [{"n": 3}] * 4)] == [6] * 4
        span = executor.run({"n": 3}).trace.spans[0]
    assert calls == [3]
    assert (span.is_cache_hit, span.where, span.attempts) == (True, "cache", 0)


def test_a_failure_is_not_kept_in_the_cache() -> None:
    answers = iter([ValueError("once")])

    def call(x: int) -> dict[str, int]:
        for error in answers:
            raise error
        return {"y": x}

    graph = line(1, function("late", call, pure=True))
    with ChainExecutor(placed(graph, "thread", cached=True), cache=ContentCache(1 << 20)) as executor:
        with pytest.raises(StepFailed, match="raised ValueError: once"):
            executor.run({"n": 3})
        assert executor.run({"n": 3})["y"] == 3


def test_models_are_loaded_once_and_what_load_raises_names_the_step() -> None:
    loads: list[Setup] = []

    def load(setup: Setup) -> Any:
        loads.append(setup)
        return lambda x: {"y": x + 1}

    model = Skill("model", load=load, inputs={"x": int}, outputs={"y": int}, loaded_bytes=10)
    assert run(line(3, model), {"n": 0}) == {"y": 3}
    assert loads == [Setup()]
    broken = Skill("model", load=raising_load, inputs={"x": int}, outputs={"y": int})
    with pytest.raises(StepFailed, match=r"step 's0'.*could not be loaded: it raised OSError: no such file"):
        run(line(1, broken), {"n": 0})


def raising_load(setup: Setup) -> Any:
    raise OSError("no such file")


def test_a_loaded_coroutine_is_awaited() -> None:
    def load(setup: Setup) -> Any:
        async def call(x: int) -> dict[str, int]:
            await asyncio.sleep(0)
            return {"y": x + 1}

        return call

    model = Skill("model", load=load, inputs={"x": int}, outputs={"y": int}, loaded_bytes=10)
    with ModelResidency(100) as residency:
        assert run(line(2, model), {"n": 0}, residency=residency) == {"y": 2}
        assert residency.statistics().pinned == 0


def test_calls_of_runs_at_a_time_are_made_one() -> None:
    sizes: list[int] = []

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(x))
        time.sleep(0.01)
        return {"y": x + 1}

    skill = Skill("rows", call=call, inputs={"x": ROWS}, outputs={"y": ROWS}, pure=True, batchable=True)
    graph = Graph("g", {"n": ROWS}, (), (Step("s", skill, {"x": (Source(None, "n"),)}),), {"y": (Source("s", "y"),)})

    async def several(executor: ChainExecutor) -> list[Any]:
        rows = [np.full((1, 4), k, np.float32) for k in range(12)]
        return await asyncio.gather(*(executor.arun({"n": one}) for one in rows))

    with ChainExecutor(placed(graph, "thread", batch_rows=8)) as executor:
        results = asyncio.run(several(executor))
    for k, result in enumerate(results):
        np.testing.assert_array_equal(result["y"], np.full((1, 4), k + 1, np.float32))
    assert max(sizes) <= 8
    assert len(sizes) < 12
    assert results[0].trace.spans[0].batch_rows == 1
    assert results[0].trace.spans[0].where == "batch"


def in_process(x: int) -> dict[str, int]:
    import os

    return {"y": os.getpid() if x < 0 else x + 1}


IN_PROCESS = function("in-process", in_process)


@pytest.mark.slow
def test_an_isolated_step_runs_in_a_process_of_its_own() -> None:
    import os

    graph = graph_of(wired("a", IN_PROCESS, {"x": "n"}, isolated=True), outputs={"y": "a.y"})
    with ChainExecutor(ExecutionPlan.plain(graph), threads=1) as executor:
        assert executor.run({"n": 1})["y"] == 2
        result = executor.run({"n": -1})
    assert result["y"] != os.getpid()
    assert result.trace.spans[0].where == "process"
