"""So many runs at a time, in order; a closed executor runs nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from minerua.chain.graph import Retry
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.admission import Admission
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.running.stopping import cancelled
from minerua.errors import ChainError, RunCancelled, StepTimeout
from minerua.kernels.pool import CancelToken

from ..naive import graph_of, wired
from ..steps import INCREMENT, function, line, placed, pool

__all__ = ["pool"]


# ── many runs, and the end ───────────────────────────────────────────────────────────────────────────────────────────


def test_no_more_runs_at_a_time_than_are_allowed() -> None:
    inside, most, lock = [0], [0], threading.Lock()

    def busy(x: int) -> dict[str, int]:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.003)
        with lock:
            inside[0] -= 1
        return {"y": x}

    async def several(executor: ChainExecutor) -> list[Any]:
        return [r["y"] for r in await asyncio.gather(*(executor.arun({"n": n}) for n in range(10)))]

    graph = line(1, function("busy", busy))
    with ChainExecutor(ExecutionPlan.plain(graph), most_runs=2) as executor, ThreadPoolExecutor(6) as threads:
        assert [r["y"] for r in threads.map(executor.run, [{"n": n} for n in range(10)])] == list(range(10))
        assert asyncio.run(several(executor)) == list(range(10))
    assert most == [2]


def test_whoever_waits_in_a_loop_that_was_closed_keeps_nobody_else_out() -> None:
    admission = Admission(1, "small")
    admission.enter()
    loop = asyncio.new_event_loop()
    gone = loop.create_task(admission.enter_async())
    loop.run_until_complete(asyncio.sleep(0))
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(admission.enter, 5.0)
        while len(admission._waiting) < 2:
            time.sleep(0.001)
        loop.close()
        admission.leave()
        assert second.result(5) is True
    admission.leave()
    assert admission.inside == 0
    gone._log_destroy_pending = False  # it never ends, which is the point
    gone.get_coro().close()


def test_a_closed_executor_runs_nothing() -> None:
    executor = ChainExecutor(ExecutionPlan.plain(line(1)))
    executor.close()
    executor.close()
    with pytest.raises(RunCancelled, match="its executor was closed; make a new one"):
        executor.run({"n": 1})
    with pytest.raises(RunCancelled, match="its executor was closed"):
        asyncio.run(executor.arun({"n": 1}))


def test_close_stops_runs_and_those_that_wait_for_their_turn() -> None:
    started = threading.Event()

    def wait(x: int) -> dict[str, int]:
        started.set()
        while not cancelled():
            time.sleep(0.001)
        return {"y": x}

    executor = ChainExecutor(placed(line(1, function("wait", wait)), "thread"), most_runs=1)
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(executor.run, {"n": 1}, timeout_seconds=60) for _ in range(2)]
        started.wait(5)
        executor.close()
        errors = [one.exception(timeout=5) for one in runs]
    assert all(isinstance(error, RunCancelled) for error in errors)
    assert sum("the executor was closed" in str(error) for error in errors) >= 1
    assert nothing_is_left(executor)


def nothing_is_left(executor: ChainExecutor) -> bool:
    """Tells whether no step is thought to be running, and no thread to be taken by one."""
    return executor._means.wait_for_strays(5) and executor._means.crew._lent == 0


@pytest.mark.parametrize("retry", [Retry(1), Retry(2)], ids=["plain call", "activity"])
def test_a_step_that_ends_after_its_run_gives_its_thread_back(retry: Retry) -> None:
    started, go = threading.Event(), threading.Event()
    late = function("late", lambda x: started.set() or (go.wait(5) and {"y": x}))
    graph = graph_of(wired("a", late, {"x": "n"}, retry=retry), outputs={"y": "a.y"})
    token = CancelToken()
    with ChainExecutor(placed(graph, "thread")) as executor, ThreadPoolExecutor(1) as threads:
        run = threads.submit(executor.run, {"n": 1}, cancel=token)
        assert started.wait(5)
        token.cancel()
        assert isinstance(run.exception(5), RunCancelled)  # it was told: what it computed is forgotten
        assert not executor._means.wait_for_strays(0.01)
        go.set()
        assert nothing_is_left(executor)


@pytest.mark.parametrize("place", ["caller", "thread"])
@pytest.mark.parametrize(
    ("retry", "broken"),
    [
        (Retry(1), "minerua.chain.running.plain.keep"),
        (Retry(2), "minerua.chain.running.activity.Activity._end_step"),
    ],
    ids=["plain call", "activity"],
)
def test_an_interrupt_between_two_steps_is_raised_and_leaves_nothing_behind(
    place: Any, retry: Retry, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    graph = graph_of(wired("a", INCREMENT, {"x": "n"}, retry=retry), outputs={"y": "a.y"})
    with ChainExecutor(placed(graph, place)) as executor:
        with monkeypatch.context() as patched:
            patched.setattr(broken, interrupt)
            with pytest.raises(KeyboardInterrupt):
                executor.run({"n": 1})
        assert nothing_is_left(executor)
        assert executor.run({"n": 1})["y"] == 2


def test_a_run_whose_turn_does_not_come_in_time_says_so() -> None:
    go = threading.Event()
    graph = line(1, function("wait", lambda x: go.wait(5) and {"y": x}))
    with ChainExecutor(ExecutionPlan.plain(graph), most_runs=1) as executor, ThreadPoolExecutor(1) as threads:
        first = threads.submit(executor.run, {"n": 1})
        while not executor._admission.inside:
            time.sleep(0.001)
        with pytest.raises(StepTimeout, match=r"was to take 0\.02 s, and waited longer for its turn"):
            executor.run({"n": 1}, timeout_seconds=0.02)
        with pytest.raises(StepTimeout, match="waited longer for its turn"):
            asyncio.run(executor.arun({"n": 1}, timeout_seconds=0.02))
        go.set()
        assert first.result(5)["y"] == 1


def test_context_variables_of_the_caller_are_seen_by_all_steps() -> None:
    from contextvars import ContextVar

    user: ContextVar[int] = ContextVar("user", default=0)

    async def look_async(x: int) -> dict[str, int]:
        return {"y": user.get()}

    skills = [function("look", lambda x: {"y": user.get()}), function("look-async", look_async)]
    steps = [wired(f"s{k}", skills[k % 2], {"x": "n"}) for k in range(4)]
    graph = graph_of(*steps, outputs={f"o{k}": f"s{k}.y" for k in range(4)})
    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        user.set(7)
        assert set(executor.run({"n": 1}).values()) == {7}
        user.set(8)
        assert set(asyncio.run(executor.arun({"n": 1})).values()) == {8}


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1, 1e300])
def test_a_time_that_cannot_pass_is_refused_before_anything_runs(seconds: float) -> None:
    with ChainExecutor(ExecutionPlan.plain(line(1))) as executor:
        for run in (executor.run, executor.stream, lambda *a, **k: asyncio.run(executor.arun(*a, **k))):
            with pytest.raises(
                ChainError, match=r"timeout_seconds is .*; expected a number from 0 to 1e\+09, or None to wait for ever"
            ):
                list(run({"n": 1}, timeout_seconds=seconds))
        assert executor.run({"n": 1}, timeout_seconds=1e9)["y"] == 2
