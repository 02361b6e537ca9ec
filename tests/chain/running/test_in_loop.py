"""Runs in an event loop: lines in one thread, joined calls handed in by the loop itself."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

from minerua.chain.graph import Graph
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.batching import Batcher
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.running.stopping import cancelled
from minerua.errors import RunCancelled, StepFailed
from minerua.values import Skill

from ..naive import graph_of, wired
from ..steps import ROWS, Errors, function, line, placed, pool

__all__ = ["pool"]


class Gate:
    """A joined skill that doubles its rows, and stands still while the gate is closed."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.rows: list[int] = []

    def call(self, x: np.ndarray) -> dict[str, np.ndarray]:
        self.rows.append(len(x))
        self.entered.set()
        assert self.open.wait(30)
        if (x < 0).any():
            raise ValueError("a negative row")
        return {"y": x * 2}

    def skill(self, name: str = "double") -> Skill:
        return Skill(name, call=self.call, inputs={"x": ROWS}, outputs={"y": ROWS}, batchable=True)

    def graph(self) -> Graph:
        return graph_of_rows(self.skill())


def graph_of_rows(*skills: Skill) -> Graph:
    """A line of skills that take rows and give rows."""
    steps = [wired(s.name, s, {"x": "x" if k == 0 else f"{skills[k - 1].name}.y"}) for k, s in enumerate(skills)]
    return Graph("rows", {"x": ROWS}, (), tuple(steps), graph_of(*steps, outputs={"y": f"{skills[-1].name}.y"}).outputs)


def rows(value: float, count: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((count, 4), value, np.float32)}


def joined(graph: Graph, batch_rows: int = 8, **options: Any) -> ChainExecutor:
    return ChainExecutor(placed(graph, "caller", batch_rows=batch_rows), **options)


def batcher_of(executor: ChainExecutor, step: str = "double") -> Batcher:
    return executor._means._batchers[step]


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(1e-3)


async def lined_up(executor: ChainExecutor, gate: Gate, *values: float, counts: tuple[int, ...] = ()) -> list[Any]:
    """Runs as tasks: the call of the first stands in the gate, those of the others wait behind it."""
    several = [rows(value, count) for value, count in zip(values, counts or (1,) * len(values), strict=True)]
    tasks = [asyncio.create_task(executor.arun(several[0]))]
    await until(gate.entered.is_set)
    tasks += [asyncio.create_task(executor.arun(one)) for one in several[1:]]
    await until(lambda: batcher_of(executor).statistics().waiting == len(several) - 1)
    return tasks


# ── lines in one thread ──────────────────────────────────────────────────────────────────────────────────────────────

USER: ContextVar[str] = ContextVar("user", default="nobody")


def test_a_line_goes_through_one_thread_and_sees_its_tasks_context() -> None:
    seen: list[tuple[str, str]] = []

    def note(x: int) -> dict[str, int]:
        seen.append((threading.current_thread().name, USER.get()))
        return {"y": x + 1}

    async def one(executor: ChainExecutor) -> Any:
        USER.set("ann")
        return await executor.arun({"n": 1})

    with ChainExecutor(ExecutionPlan.plain(line(3, function("note", note)))) as executor:
        result = asyncio.run(one(executor))
    assert result["y"] == 4
    assert len(set(seen)) == 1
    assert seen[0][1] == "ann"
    assert {span.where for span in result.trace.spans} == {seen[0][0]} != {threading.current_thread().name}


def test_the_loop_goes_on_while_a_line_computes() -> None:
    ticks: list[int] = []

    async def tick() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(1e-3)

    async def both(executor: ChainExecutor) -> None:
        ticking = asyncio.create_task(tick())
        await executor.arun({"n": 1})
        ticking.cancel()

    with ChainExecutor(
        ExecutionPlan.plain(line(1, function("sleep", lambda x: time.sleep(0.1) or {"y": x})))
    ) as executor:
        asyncio.run(both(executor))
    assert len(ticks) > 5


def test_a_cancelled_task_leaves_its_line_behind_and_close_waits_for_it() -> None:
    entered, heard = threading.Event(), Errors()
    told: list[bool] = []

    def stay(x: int) -> dict[str, int]:
        entered.set()
        while not cancelled():
            time.sleep(1e-3)
        time.sleep(0.05)
        told.append(True)
        return {"y": x}

    async def give_up(executor: ChainExecutor) -> None:
        task = asyncio.create_task(executor.arun({"n": 1}))
        await until(entered.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not told
        assert (await executor.arun({"n": -1}))["y"] == -1

    executor = ChainExecutor(
        ExecutionPlan.plain(line(1, function("stay", lambda x: stay(x) if x > 0 else {"y": x}))),
        observers=[heard],
        threads=1,
    )
    asyncio.run(give_up(executor))
    executor.close()
    assert told == [True]
    assert "a run of chain 'made' was cancelled: the task that awaited it was cancelled" in heard.texts


@pytest.mark.parametrize("is_joined", [False, True])
def test_an_interrupt_of_a_step_reaches_whoever_awaits_it(is_joined: bool) -> None:
    class Stop(BaseException):
        pass

    def stop(x: np.ndarray) -> dict[str, np.ndarray]:
        raise Stop

    async def one(executor: ChainExecutor) -> str:
        try:
            await executor.arun(rows(1))
        except Stop:
            return "stopped"
        return "went on"

    skill = Skill("stop", call=stop, inputs={"x": ROWS}, outputs={"y": ROWS}, batchable=True)
    with joined(graph_of_rows(skill), 8 if is_joined else 0) as executor:
        assert asyncio.run(one(executor)) == "stopped"


# ── joined calls ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_joined_calls_need_no_thread_of_the_crew_and_each_gets_its_own_rows() -> None:
    gate = Gate()

    async def several(executor: ChainExecutor) -> list[Any]:
        tasks = await lined_up(executor, gate, *range(6), counts=(1, 2) * 3)
        gate.open.set()
        return await asyncio.gather(*tasks)

    with joined(gate.graph(), 16) as executor:
        results = asyncio.run(several(executor))
        assert executor._means.crew._workers == []
    for k, result in enumerate(results):
        np.testing.assert_array_equal(result["y"], 2 * rows(k, 1 + k % 2)["x"])
        assert not result["y"].flags.writeable
        (span,) = result.trace.spans
        assert (span.where, span.batch_rows, span.outcome) == ("batch", 1 + k % 2, "ok")
    assert gate.rows == [1, 8]


def test_a_line_of_joined_calls_and_one_with_other_steps_between_give_what_the_plain_chain_gives() -> None:
    def doubled(name: str) -> Skill:
        return Skill(name, call=lambda x: {"y": x * 2}, inputs={"x": ROWS}, outputs={"y": ROWS}, batchable=True)

    def plain(name: str) -> Skill:
        return Skill(name, call=lambda x: {"y": x + 1}, inputs={"x": ROWS}, outputs={"y": ROWS})

    async def awaited(name: str) -> Skill:
        async def call(x: np.ndarray) -> dict[str, np.ndarray]:
            await asyncio.sleep(0)
            return {"y": x - USER_OFFSET[USER.get()]}

        return Skill(name, call=call, inputs={"x": ROWS}, outputs={"y": ROWS})

    async def several(graph: Graph) -> list[Any]:
        USER.set("bob")
        with joined(graph) as executor:
            return await asyncio.gather(*(executor.arun(rows(k)) for k in range(20)))

    later = asyncio.run(awaited("later"))
    for graph, expected in (
        (graph_of_rows(doubled("a"), doubled("b")), lambda k: 4 * k),
        (graph_of_rows(plain("first"), doubled("a"), later, doubled("b"), plain("last")), lambda k: 4 * k + 1),
    ):
        for k, result in enumerate(asyncio.run(several(graph))):
            np.testing.assert_array_equal(result["y"], rows(expected(k))["x"])
            assert [span.outcome for span in result.trace.spans] == ["ok"] * len(graph.steps)


USER_OFFSET = {"bob": 2, "nobody": 1000}
"""A coroutine that follows a joined call must still see the context of the task that asked for the run."""


def test_a_call_that_raises_spoils_only_its_own_run() -> None:
    gate = Gate()

    async def several(executor: ChainExecutor) -> list[Any]:
        tasks = await lined_up(executor, gate, 1, 2, -3, 4)
        gate.open.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with joined(gate.graph()) as executor:
        results = asyncio.run(several(executor))
    assert [float(results[k]["y"][0, 0]) for k in (0, 1, 3)] == [2, 4, 8]
    assert isinstance(results[2], StepFailed)
    assert "step 'double' (skill 'double') raised ValueError: a negative row; its inputs: x: float32[1, 4]" in str(
        results[2]
    )
    assert isinstance(results[2].__cause__, ValueError)


def test_what_a_joined_call_may_not_take_or_return_is_said() -> None:
    def wrong(x: np.ndarray) -> dict[str, np.ndarray]:
        return {"y": x.astype(np.float64)}

    async def one(executor: ChainExecutor) -> BaseException | None:
        (result,) = await asyncio.gather(executor.arun(rows(1)), return_exceptions=True)
        return result if isinstance(result, BaseException) else None

    narrow = Skill("wrong", call=wrong, inputs={"x": ROWS}, outputs={"y": ROWS}, batchable=True)
    with joined(graph_of_rows(narrow)) as executor:
        assert "returned what it may not" in str(asyncio.run(one(executor)))


def test_a_cancelled_task_withdraws_its_call_and_the_others_get_theirs() -> None:
    gate, heard = Gate(), Errors()

    async def several(executor: ChainExecutor) -> list[Any]:
        tasks = await lined_up(executor, gate, 0, 1, 2)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        assert batcher_of(executor).statistics().cancelled == 1
        tasks[0].cancel()  # its call is being made: nothing can be withdrawn, and nobody waits for it
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        gate.open.set()
        return list(await asyncio.gather(tasks[2]))

    with joined(gate.graph(), observers=[heard]) as executor:
        (result,) = asyncio.run(several(executor))
        assert result["y"][0, 0] == 4
    assert heard.texts == [*["a run of chain 'rows' was cancelled: the task that awaited it was cancelled"] * 2, "None"]


def test_closing_the_executor_stops_those_that_wait() -> None:
    gate = Gate()

    async def several(executor: ChainExecutor) -> list[Any]:
        tasks = await lined_up(executor, gate, 0, 1, 2)
        closing = threading.Thread(target=executor.close)
        closing.start()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        gate.open.set()
        await asyncio.to_thread(closing.join)
        return results

    results = asyncio.run(several(joined(gate.graph())))
    assert [type(result) for result in results] == [RunCancelled] * 3
    assert {str(result) for result in results} == {"a run of chain 'rows' was cancelled: the executor was closed"}


def test_loops_of_several_threads_share_a_batch_and_one_that_was_closed_takes_nobody_with_it() -> None:
    gate = Gate()
    answers: list[float] = []
    kept: list[asyncio.Task[Any]] = []

    async def one(value: float) -> None:
        answers.append(float((await executor.arun(rows(value)))["y"][0, 0]))

    def abandoned(value: float) -> None:
        loop = asyncio.new_event_loop()
        kept.append(loop.create_task(executor.arun(rows(value))))
        loop.run_until_complete(asyncio.sleep(0.01))
        kept[0]._log_destroy_pending = False  # type: ignore[attr-defined]  # that is what this test is about
        loop.close()

    with joined(gate.graph()) as executor:
        threads = [threading.Thread(target=asyncio.run, args=(one(k),)) for k in range(1, 4)]
        threads[0].start()
        assert gate.entered.wait(30)
        abandoned(9)
        for thread in threads[1:]:
            thread.start()
        asyncio.run(until(lambda: batcher_of(executor).statistics().waiting == 3))
        gate.open.set()
        for thread in threads:
            thread.join(30)
        assert sorted(answers) == [2, 4, 6]
        assert gate.rows == [1, 3]
        executor.close(timeout_seconds=0.1)  # the run of the closed loop can never leave by itself
    kept.clear()
    gc.collect()


def test_more_calls_than_may_wait_are_refused_in_a_loop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()

    async def several(executor: ChainExecutor) -> list[Any]:
        first = asyncio.create_task(executor.arun(rows(0)))
        await until(gate.entered.is_set)
        batcher_of(executor)._most_waiting = 2
        others = [asyncio.create_task(executor.arun(rows(k))) for k in (1, 2, 3)]
        await until(lambda: others[2].done())
        gate.open.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    with joined(gate.graph()) as executor:
        *good, refused = asyncio.run(several(executor))
    assert [float(result["y"][0, 0]) for result in good] == [0, 2, 4]
    assert "2 calls of the skill 'double' wait already, 2 may: come back later, or raise most_waiting" in str(refused)
