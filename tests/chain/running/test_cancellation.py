"""Runs are stopped: by time, by tokens, by their callers; what can be stopped is, and nothing stays leased."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.graph import Graph, Retry
from minerua.chain.keeping.cache import ContentCache
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.running.run import GRACE_SECONDS
from minerua.chain.running.stopping import cancelled
from minerua.errors import MineruaError, RunCancelled, StepFailed, StepTimeout
from minerua.kernels.pool import CancelToken, ResourcePool
from minerua.values import Skill

from ..naive import graph_of, wired
from ..steps import CAPACITY, INCREMENT, Errors, function, placed, pool

__all__ = ["pool"]


def until_told(seconds: float = 10.0) -> tuple[Skill, list[str]]:
    """A skill that runs until it is told to stop, and what it says when it ends."""
    ends: list[str] = []

    def wait(x: int) -> dict[str, int]:
        deadline = time.monotonic() + seconds
        while not cancelled() and time.monotonic() < deadline:
            time.sleep(0.001)
        ends.append("told" if cancelled() else "late")
        return {"y": x}

    return function("wait", wait, resources={"cpu": 1}), ends


def for_ever() -> tuple[Skill, list[str]]:
    """A coroutine that never ends by itself."""
    ends: list[str] = []

    async def wait(x: int) -> dict[str, int]:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("told")
        return {"y": x}

    return function("wait", wait, resources={"cpu": 1}), ends


def single(skill: Skill, **more: Any) -> Graph:
    return graph_of(wired("a", skill, {"x": "n"}, **more), outputs={"y": "a.y"})


def run_one(executor: ChainExecutor, way: str, **options: Any) -> object:
    if way == "run":
        return executor.run({"n": 1}, **options)
    return asyncio.run(executor.arun({"n": 1}, **options))


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5.0
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.001)
    return holds()


def test_outside_a_chain_nothing_is_cancelled() -> None:
    assert not cancelled()


# ── timeouts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [until_told, for_ever])
@pytest.mark.parametrize("way", ["run", "arun"])
@pytest.mark.parametrize("place", ["caller", "thread"])
def test_a_step_that_takes_too_long_ends_the_run_at_once(pool: ResourcePool, make: Any, way: str, place: Any) -> None:
    skill, ends = make()
    graph = single(skill, timeout_seconds=0.03)
    with ChainExecutor(placed(graph, place), pool=pool) as executor:
        start = time.perf_counter()
        with pytest.raises(StepTimeout, match=r"step 'a' \(skill 'wait'\) took longer than its 0\.03 s"):
            run_one(executor, way)
        assert time.perf_counter() - start < 1.0
        assert eventually(lambda: ends == ["told"])


def test_a_thread_that_does_not_listen_is_left_behind_and_its_late_result_dropped(pool: ResourcePool) -> None:
    go = threading.Event()
    deaf = function("deaf", lambda x: go.wait(10) and {"y": x}, resources={"cpu": 1})
    with ChainExecutor(ExecutionPlan.plain(single(deaf, timeout_seconds=0.02)), pool=pool, threads=1) as executor:
        with pytest.raises(StepTimeout):
            executor.run({"n": 1})
        assert pool.in_use["cpu"] == 1, "what still runs still holds what it needs"
        with pytest.raises(StepTimeout):  # one thread is stuck; another one takes its place
            executor.run({"n": 1})
        go.set()
        assert eventually(lambda: pool.in_use["cpu"] == 0)


def test_a_coroutine_that_took_too_long_is_tried_again() -> None:
    tries: list[int] = []

    async def call(x: int) -> dict[str, int]:
        tries.append(x)
        await asyncio.sleep(60 if len(tries) == 1 else 0)
        return {"y": x}

    graph = single(function("slow", call), timeout_seconds=0.02, retry=Retry(2, delay_seconds=0.001))
    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        assert executor.run({"n": 5})["y"] == 5
    assert len(tries) == 2


@pytest.mark.parametrize("make", [until_told, for_ever])
@pytest.mark.parametrize("way", ["run", "arun", "stream"])
def test_a_run_that_takes_too_long_is_stopped(pool: ResourcePool, make: Any, way: str) -> None:
    skill, ends = make()
    with ChainExecutor(ExecutionPlan.plain(single(skill)), pool=pool) as executor:
        ways: dict[str, Callable[[], object]] = {
            "run": lambda: executor.run({"n": 1}, timeout_seconds=0.03),
            "arun": lambda: asyncio.run(executor.arun({"n": 1}, timeout_seconds=0.03)),
            "stream": lambda: list(executor.stream({"n": 1}, timeout_seconds=0.03)),
        }
        with pytest.raises(StepTimeout, match=r"a run of chain 'made' took longer than its 0\.03 s"):
            ways[way]()
        assert eventually(lambda: ends == ["told"])


# ── tokens, tasks ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [until_told, for_ever])
@pytest.mark.parametrize("way", ["run", "arun"])
def test_a_token_stops_a_run(pool: ResourcePool, make: Any, way: str) -> None:
    skill, ends = make()
    token = CancelToken()
    timer = threading.Timer(0.03, token.cancel)
    with ChainExecutor(ExecutionPlan.plain(single(skill)), pool=pool) as executor:
        timer.start()
        with pytest.raises(RunCancelled, match="a run of chain 'made' was cancelled: its token was cancelled"):
            run_one(executor, way, cancel=token)
        assert eventually(lambda: ends == ["told"])
        with pytest.raises(RunCancelled):
            executor.run({"n": 1}, cancel=token)
    timer.join()


@pytest.mark.parametrize("make", [until_told, for_ever])
def test_cancelling_the_task_stops_the_run(pool: ResourcePool, make: Any) -> None:
    skill, ends = make()
    heard = Errors()

    async def body(executor: ChainExecutor) -> None:
        task = asyncio.create_task(executor.arun({"n": 1}))
        while not pool.in_use["cpu"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with ChainExecutor(ExecutionPlan.plain(single(skill)), pool=pool, observers=[heard]) as executor:
        asyncio.run(body(executor))
        assert eventually(lambda: ends == ["told"])
    assert heard.texts == ["a run of chain 'made' was cancelled: the task that awaited it was cancelled"]


def test_a_request_that_waits_for_the_pool_is_withdrawn(pool: ResourcePool) -> None:
    with (
        pool.acquire({"cpu": 2}),
        ChainExecutor(ExecutionPlan.plain(single(function("a", lambda x: {"y": x}, resources={"cpu": 1}))), pool=pool)
        as executor,
        pytest.raises(StepTimeout, match="a run of chain 'made' took longer"),
    ):  # fmt: skip
        executor.run({"n": 1}, timeout_seconds=0.03)
    assert pool.statistics().waiting == 0


def test_runs_that_wait_for_their_turn_can_be_cancelled() -> None:
    skill, _ = until_told()
    token = CancelToken()

    async def body(executor: ChainExecutor) -> None:
        first = asyncio.create_task(executor.arun({"n": 1}))
        while not executor._admission.inside:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(executor.arun({"n": 1}))
        told = asyncio.create_task(executor.arun({"n": 1}, cancel=token))
        await asyncio.sleep(0.01)
        waiting.cancel()
        token.cancel()
        with pytest.raises(RunCancelled, match="was cancelled while it waited for its turn"):
            await told
        first.cancel()
        await asyncio.gather(first, waiting, return_exceptions=True)
        assert executor._admission.inside == 0

    with ChainExecutor(placed(single(skill), "thread"), most_runs=1) as executor:
        asyncio.run(body(executor))


def test_a_wait_before_another_attempt_ends_with_the_run() -> None:
    def fail(x: int) -> Any:
        raise OSError("gone")

    graph = single(function("bad", fail), retry=Retry(3, delay_seconds=30.0))
    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        start = time.perf_counter()
        with pytest.raises(StepTimeout):
            executor.run({"n": 1}, timeout_seconds=0.03)
        assert time.perf_counter() - start < 1.0


def test_a_computation_that_was_withdrawn_is_taken_up_by_another_run() -> None:
    calls: list[int] = []

    def call(x: int) -> dict[str, int]:
        calls.append(x)
        while len(calls) == 1 and not cancelled():
            time.sleep(0.001)
        return {"y": x}

    graph = single(function("slow", call, pure=True))
    plan = placed(graph, "thread", cached=True)
    with ChainExecutor(plan, cache=ContentCache(1 << 20)) as executor, ThreadPoolExecutor(2) as threads:
        first = threads.submit(executor.run, {"n": 1}, timeout_seconds=0.05)
        while not calls:
            time.sleep(0.001)
        second = threads.submit(executor.run, {"n": 1})
        assert isinstance(first.exception(5), StepTimeout)
        assert second.result(5)["y"] == 1


@pytest.mark.parametrize("make", [until_told, for_ever])
def test_a_failure_stops_the_steps_beside_it(pool: ResourcePool, make: Any) -> None:
    skill, ends = make()

    def fail(x: int) -> Any:
        while not pool.in_use["cpu"]:
            time.sleep(0.001)
        raise ValueError("broken")

    steps = (wired("a", skill, {"x": "n"}), wired("b", function("bad", fail), {"x": "n"}))
    with ChainExecutor(ExecutionPlan.plain(graph_of(*steps, outputs={"y": "a.y"})), pool=pool) as executor:
        with pytest.raises(StepFailed, match="raised ValueError: broken"):
            executor.run({"n": 1})
        assert ends == ["told"], "a failed run waits a moment for what it told to stop"
        assert pool.in_use["cpu"] == 0


def test_a_failed_run_does_not_wait_for_ever_for_a_step_that_does_not_listen(pool: ResourcePool) -> None:
    go, entered = threading.Event(), threading.Event()

    def fail(x: int) -> Any:
        entered.wait(5)
        raise ValueError("broken")

    deaf = function("deaf", lambda x: entered.set() or (go.wait(20) and {"y": x}), resources={"cpu": 1})
    steps = (wired("a", deaf, {"x": "n"}), wired("b", function("bad", fail), {"x": "n"}))
    graph = graph_of(*steps, outputs={"y": "a.y", "z": "b.y"})
    with ChainExecutor(ExecutionPlan.plain(graph), pool=pool, threads=2) as executor:
        start = time.perf_counter()
        with pytest.raises(StepFailed, match="raised ValueError: broken"):
            asyncio.run(executor.arun({"n": 1}))
        assert GRACE_SECONDS * 0.9 < time.perf_counter() - start < GRACE_SECONDS + 3
        assert pool.in_use["cpu"] == 1, "what still runs still holds what it needs"
        go.set()
        assert eventually(lambda: pool.in_use["cpu"] == 0)


def test_a_coroutine_that_cancels_itself_has_failed() -> None:
    async def give_up(x: int) -> Any:
        raise asyncio.CancelledError

    with (
        ChainExecutor(ExecutionPlan.plain(single(function("shy", give_up)))) as executor,
        pytest.raises(StepFailed, match="raised CancelledError"),
    ):
        executor.run({"n": 1})


def test_an_interrupt_of_the_caller_stops_the_run(pool: ResourcePool) -> None:
    skill, ends = until_told()
    graph = graph_of(wired("a", skill, {"x": "n"}), wired("b", INCREMENT, {"x": "a.y"}), outputs={"y": "b.y"})

    def interrupt() -> None:
        while not pool.in_use["cpu"]:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    with ChainExecutor(placed(graph, "thread"), pool=pool) as executor:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            executor.run({"n": 1}, timeout_seconds=30)
        thread.join()
        assert eventually(lambda: ends == ["told"])


def hang(x: int) -> dict[str, int]:
    time.sleep(60)
    return {"y": x}


HANG = function("hang", hang)


@pytest.mark.slow
def test_an_isolated_step_that_hangs_is_killed(pool: ResourcePool) -> None:
    graph = single(HANG, isolated=True, timeout_seconds=0.1)
    with ChainExecutor(ExecutionPlan.plain(graph), pool=pool, threads=1) as executor:
        with pytest.raises(StepTimeout, match="step 'a'"):
            executor.run({"n": 1})
        assert executor._means.workers.statistics().killed == 1


@pytest.mark.slow
def test_a_cancelled_run_kills_its_isolated_step() -> None:
    graph = single(HANG, isolated=True)
    with ChainExecutor(ExecutionPlan.plain(graph), threads=1) as executor:
        with pytest.raises(StepTimeout, match="a run of chain 'made' took longer"):
            executor.run({"n": 1}, timeout_seconds=1.0)
        assert eventually(lambda: executor._means.workers.statistics().killed == 1)


# ── everything at once ───────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_whatever_happens_nothing_is_held_and_no_run_hangs(seed: int) -> None:
    """Random graphs, random failures, timeouts and cancellations, in one pool."""
    numbers = random.Random(seed)
    pool = ResourcePool(CAPACITY)
    steps = []
    for k in range(numbers.randint(2, 9)):
        sources = [f"s{i}.y" for i in range(k)] + ["n"]
        needs = {"cpu": numbers.choice([1, 2])} if numbers.random() < 0.7 else {}
        skill = function(f"skill{k}", moody(numbers), resources=needs, thread_safe=numbers.random() < 0.8)
        more = {"timeout_seconds": 0.005} if numbers.random() < 0.2 else {}
        retry = Retry(2, delay_seconds=0.001) if numbers.random() < 0.3 else Retry()
        steps.append(wired(f"s{k}", skill, {"x": numbers.choice(sources)}, retry=retry, **more))
    graph = graph_of(*steps, outputs={f"o{k}": f"s{k}.y" for k in range(len(steps))})

    async def several(executor: ChainExecutor) -> list[Any]:
        tasks = [asyncio.create_task(executor.arun({"n": n} if "n" in graph.inputs else {})) for n in range(6)]
        await asyncio.sleep(numbers.random() * 0.01)
        numbers.choice(tasks).cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    with ChainExecutor(ExecutionPlan.plain(graph), pool=pool, threads=3, most_runs=4) as executor:
        for result in asyncio.run(several(executor)):
            if isinstance(result, BaseException):
                assert isinstance(result, MineruaError | asyncio.CancelledError)
    assert pool.in_use == dict.fromkeys(CAPACITY, 0)
    assert (pool.statistics().waiting, dict(pool.statistics().leaks)) == (0, {})


def moody(numbers: random.Random) -> Callable[..., Any]:
    mood, seconds, is_async = numbers.random(), numbers.random() * 0.01, numbers.random() < 0.5

    def call(x: int) -> dict[str, int]:
        time.sleep(seconds if mood < 0.5 else 0)
        if mood > 0.9:
            raise ValueError("moody")
        return {"y": x + 1}

    async def call_async(x: int) -> dict[str, int]:
        await asyncio.sleep(seconds if mood < 0.5 else 0)
        if mood > 0.9:
            raise ValueError("moody")
        return {"y": x + 1}

    return call_async if is_async else call
