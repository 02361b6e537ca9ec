"""Micro-batching: what waits is joined, each gets its own rows, and a bad call spoils only itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.running import batching
from minerua.chain.running.batching import Batcher
from minerua.errors import PoolTimeout, RunCancelled, StepFailed


class Gate:
    """A skill that notes what it is given, and waits at its door while it is closed."""

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.is_open, self.is_inside = threading.Event(), threading.Event()
        self.function = function or (lambda x, **_: {"y": 2 * x})

    def __call__(self, **inputs: Any) -> Any:
        self.calls.append(inputs)
        self.is_inside.set()
        assert self.is_open.wait(10)
        return self.function(**inputs)

    @property
    def rows(self) -> list[int]:
        return [len(inputs["x"]) for inputs in self.calls]


class Answers:
    """What came of calls, by a name of the caller's choice."""

    def __init__(self) -> None:
        self.outputs: dict[Any, Any] = {}
        self.order: list[Any] = []
        self._changed = threading.Condition()

    def done(self, name: Any) -> Callable[[Any, Any], None]:
        def tell(outputs: Any, error: Any) -> None:
            with self._changed:
                assert name not in self.outputs
                self.outputs[name] = error if outputs is None else outputs
                self.order.append(name)
                self._changed.notify_all()

        return tell

    def wait(self, count: int) -> dict[Any, Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.outputs) >= count, 10)
        return self.outputs


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Gate, Batcher, Answers]]]:
    """Makes a batcher whose first call, of one row, is inside and waits; closes it after the test."""
    made: list[tuple[Gate, Batcher]] = []

    def begin(
        function: Callable[..., Any] | None = None, most_rows: int = 8, **settings: Any
    ) -> tuple[Gate, Batcher, Answers]:
        gate, answers = Gate(function), Answers()
        batcher = Batcher(gate, skill="double", most_rows=most_rows, **settings)
        made.append((gate, batcher))
        batcher.submit({"x": rows(1, -1)}, answers.done("first"))
        assert gate.is_inside.wait(10)
        return gate, batcher, answers

    yield begin
    for gate, batcher in made:
        gate.is_open.set()
        batcher.close()


def rows(count: int, value: float = 1.0) -> np.ndarray:
    return np.full((count, 3), value, np.float32)


def test_what_waits_becomes_one_call_and_each_gets_its_own_rows(start: Any) -> None:
    gate, batcher, answers = start()
    for count in (1, 2, 3):
        batcher.submit({"x": rows(count, count)}, answers.done(count))
    gate.is_open.set()
    found = answers.wait(4)
    assert gate.rows == [1, 6]
    for count in (1, 2, 3):
        np.testing.assert_array_equal(found[count]["y"], 2 * rows(count, count))
    assert not gate.calls[1]["x"].flags.writeable
    now = batcher.statistics()
    assert (now.requests, now.batches, now.joined, now.rows, now.largest_rows, now.waiting) == (4, 2, 3, 6, 6, 0)


def test_a_call_alone_gets_its_own_arrays_and_its_own_result(start: Any) -> None:
    result = {"y": "anything"}
    gate, batcher, answers = start(lambda x: result)
    gate.is_open.set()
    answers.wait(1)
    inputs = {"x": rows(2)}
    assert batcher.run(inputs) is result
    assert gate.calls[1]["x"] is inputs["x"]


def test_only_whole_calls_are_joined_and_large_ones_run_alone(start: Any) -> None:
    gate, batcher, answers = start(most_rows=8)
    for n, count in enumerate([5, 2, 3, 9, 1, 8, 1]):
        batcher.submit({"x": rows(count, n)}, answers.done(n))
    gate.is_open.set()
    answers.wait(8)
    assert gate.rows == [1, 7, 3, 9, 1, 8, 1]


def test_calls_are_answered_in_the_order_in_which_they_came(start: Any) -> None:
    gate, batcher, answers = start(most_rows=4)
    for n in range(20):
        batcher.submit({"x": rows(1 + n % 3), "k": 0}, answers.done(n))
    gate.is_open.set()
    answers.wait(21)
    assert answers.order == ["first", *range(20)]


@pytest.mark.parametrize(
    ("one", "other", "is_joined"),
    [
        ({"k": 1}, {"k": 1}, True),
        ({"k": 1}, {"k": 2}, False),
        ({"k": 1}, {"k": 1.0}, False),
        ({"k": [1, "a"]}, {"k": [1, "a"]}, True),
        ({"k": object}, {"k": object}, True),
        ({"k": object()}, {"k": object()}, False),
        ({}, {"k": 1}, False),
        ({"k": np.float32(1)}, {"k": np.float32(1)}, True),
        ({"k": np.array(1)}, {"k": np.array(2)}, False),
        ({"k": rows(2)}, {"k": rows(2, 5)}, True),
        ({"k": rows(2)}, {"k": np.ones((2, 4), np.float32)}, False),
        ({"k": rows(2)}, {"k": np.ones((2, 3))}, False),
        ({"k": rows(3)}, {"k": rows(3)}, False),
    ],
)
def test_calls_are_joined_only_if_all_but_the_rows_is_equal(
    one: dict[str, Any], other: dict[str, Any], is_joined: bool, start: Any
) -> None:
    gate, batcher, answers = start()
    batcher.submit({"x": rows(2), **one}, answers.done(1))
    batcher.submit({**dict(reversed(other.items())), "x": rows(2)}, answers.done(2))
    gate.is_open.set()
    answers.wait(3)
    assert gate.rows == ([1, 4] if is_joined else [1, 2, 2])


def test_arrays_of_other_libraries_are_not_joined(start: Any) -> None:
    import torch

    gate, batcher, answers = start()
    for n in range(2):
        batcher.submit({"x": torch.ones(2, 3)}, answers.done(n))
    gate.is_open.set()
    answers.wait(3)
    assert gate.rows == [1, 2, 2]


def test_a_bad_call_spoils_only_itself(start: Any) -> None:
    def function(x: np.ndarray) -> dict[str, np.ndarray]:
        if (x == 3).any():
            raise ArithmeticError("three is bad")
        return {"y": 2 * x}

    gate, batcher, answers = start(function)
    for n in (2, 3, 4):
        batcher.submit({"x": rows(1, n)}, answers.done(n))
    gate.is_open.set()
    found = answers.wait(4)
    assert str(found[3]) == "three is bad"
    assert [found[n]["y"][0, 0] for n in (2, 4)] == [4, 8]
    assert gate.rows == [1, 3, 1, 1, 1]
    assert batcher.statistics().alone_again == 3


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        ({"y": np.ones(4)}, "output 'y' is an array of shape (4,)"),
        ({"y": np.ones(5), "z": np.float32(1)}, "output 'z' is an array of shape ()"),
        ({"y": [1, 2, 3, 4, 5]}, "output 'y' is of type list"),
    ],
)
def test_outputs_that_cannot_be_parted_are_an_error_of_all(outputs: Any, fault: str, start: Any) -> None:
    gate, batcher, answers = start(lambda x: outputs)
    batcher.submit({"x": rows(2)}, answers.done(1))
    batcher.submit({"x": rows(3)}, answers.done(2))
    gate.is_open.set()
    found = answers.wait(3)
    assert isinstance(found[1], StepFailed)
    assert found[1] is found[2]
    assert "'double' took 5 rows of 2 joined calls and returned outputs that cannot be parted" in str(found[1])
    assert "the first extent of each must be 5; declare it as not batchable" in str(found[1])
    assert found[1].faults == (fault,)
    assert found[1].skill == "double"


def test_what_is_no_mapping_is_an_error_that_says_so(start: Any) -> None:
    gate, batcher, answers = start(lambda x: x)
    for n in range(2):
        batcher.submit({"x": rows(2)}, answers.done(n))
    gate.is_open.set()
    assert "'double' returned ndarray instead of a mapping with its outputs" in str(answers.wait(3)[1])


def test_a_waiting_call_can_be_withdrawn_and_a_running_one_cannot(start: Any) -> None:
    gate, batcher, answers = start()
    kept = batcher.submit({"x": rows(1)}, answers.done("kept"))
    gone = batcher.submit({"x": rows(1)}, answers.done("gone"))
    assert (gone.cancel(), gone.cancel()) == (True, False)
    gate.is_open.set()
    assert set(answers.wait(2)) == {"first", "kept"}
    assert not kept.cancel()
    assert gate.rows == [1, 1]
    assert batcher.statistics().cancelled == 1


def test_more_calls_than_may_wait_are_refused_or_wait(start: Any) -> None:
    gate, batcher, answers = start(most_waiting=2)
    for n in range(2):
        batcher.submit({"x": rows(1)}, answers.done(n))
    for seconds in (0, 0.01):
        with pytest.raises(PoolTimeout, match="2 calls of the skill 'double' wait already, 2 may: come back later"):
            batcher.submit({"x": rows(1)}, answers.done("refused"), timeout_seconds=seconds)
    threading.Timer(0.05, gate.is_open.set).start()
    batcher.submit({"x": rows(1)}, answers.done("late"))
    assert "late" in answers.wait(4)
    assert "refused" not in answers.outputs


def test_a_caller_that_finds_nobody_runs_its_call_in_its_own_thread() -> None:
    where: list[str] = []

    def function(x: np.ndarray) -> dict[str, np.ndarray]:
        where.append(threading.current_thread().name)
        return {"y": x}

    with Batcher(function, skill="double", most_rows=4) as batcher:
        batcher.run({"x": rows(1)})
        assert where == [threading.current_thread().name]
        assert not batcher._threads


def test_callers_that_wait_are_joined_behind_one_that_runs_in_its_own_thread() -> None:
    gate, answers = Gate(), Answers()
    with Batcher(gate, skill="double", most_rows=8) as batcher:
        leader = threading.Thread(target=batcher.run, args=({"x": rows(1)},))
        leader.start()
        gate.is_inside.wait(10)
        followers = [
            threading.Thread(target=lambda n=n: answers.done(n)(batcher.run({"x": rows(2, n)}), None)) for n in range(3)
        ]
        for thread in followers:
            thread.start()
        while batcher.statistics().waiting < 3:
            time.sleep(0.001)
        gate.is_open.set()
        found = answers.wait(3)
        assert gate.rows == [1, 6]
        assert [found[n]["y"][0, 0] for n in range(3)] == [0, 2, 4]
        for thread in (leader, *followers):
            thread.join(10)


def test_a_caller_gets_the_error_of_its_call() -> None:
    def function(x: np.ndarray) -> Any:
        raise KeyError("x")

    with Batcher(function, skill="double", most_rows=4) as batcher:
        for _ in range(2):
            with pytest.raises(KeyError):
                batcher.run({"x": rows(1)})


def test_as_many_calls_run_at_a_time_as_there_are_workers() -> None:
    inside, most, lock = [0], [0], threading.Lock()

    def function(x: np.ndarray) -> dict[str, np.ndarray]:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= 1
        return {"y": x}

    answers = Answers()
    with Batcher(function, skill="double", most_rows=1, workers=3) as batcher:
        for n in range(9):
            batcher.submit({"x": rows(1)}, answers.done(n))
        answers.wait(9)
        assert len(batcher._threads) == 3
    assert most[0] == 3


def test_it_works_from_a_loop_without_a_thread_per_call() -> None:
    async def client(batcher: Batcher, n: int) -> float:
        loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        batcher.submit(
            {"x": rows(1, n)},
            lambda outputs, error: loop.call_soon_threadsafe(answer.set_result, outputs["y"][0, 0]),
            timeout_seconds=0,
        )
        return float(await answer)

    async def all_clients(batcher: Batcher) -> list[float]:
        return await asyncio.gather(*(client(batcher, n) for n in range(100)))

    def slow(x: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(0.001)
        return {"y": 2 * x}

    before = threading.active_count()
    with Batcher(slow, skill="double", most_rows=32) as batcher:
        assert asyncio.run(all_clients(batcher)) == [2 * n for n in range(100)]
        assert threading.active_count() <= before + 1
        assert batcher.statistics().batches <= 20


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=30), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_joined_calls_give_what_single_ones_give(sizes: list[tuple[int, int]], most_rows: int) -> None:
    gate, answers = Gate(lambda x, k: {"y": 2 * x + k, "z": x[:, 0]}), Answers()
    with Batcher(gate, skill="double", most_rows=most_rows) as batcher:
        for n, (count, kind) in enumerate(sizes):
            batcher.submit({"x": rows(count, n), "k": kind}, answers.done(n))
        gate.is_open.set()
        found = answers.wait(len(sizes))
    for n, (count, kind) in enumerate(sizes):
        np.testing.assert_array_equal(found[n]["y"], 2 * rows(count, n) + kind)
        np.testing.assert_array_equal(found[n]["z"], np.full(count, n))
    assert all(
        count <= most_rows or (count, inputs["k"]) in sizes for count, inputs in zip(gate.rows, gate.calls, strict=True)
    )


def test_a_receiver_that_raises_is_printed_and_harms_nobody(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    gate, batcher, answers = start()

    def bad(outputs: Any, error: Any) -> None:
        raise ArithmeticError("the receiver is broken")

    batcher.submit({"x": rows(1)}, bad)
    batcher.submit({"x": rows(1)}, answers.done("good"))
    gate.is_open.set()
    assert "good" in answers.wait(2)
    assert [str(one.exc_value) for one in seen] == ["the receiver is broken"]


def test_close_refuses_what_waits_and_lets_what_runs_end(start: Any) -> None:
    gate, batcher, answers = start(most_waiting=1)
    batcher.submit({"x": rows(1)}, answers.done("waiting"))
    blocked: list[BaseException] = []

    def submit() -> None:
        try:
            batcher.submit({"x": rows(1)}, answers.done("never"))
        except RunCancelled as error:
            blocked.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    time.sleep(0.02)
    threading.Timer(0.05, gate.is_open.set).start()
    batcher.close()
    thread.join(10)
    message = "the calls of the skill 'double' were stopped: its batcher was closed"
    assert str(answers.outputs["waiting"]) == str(blocked[0]) == message
    np.testing.assert_array_equal(answers.outputs["first"]["y"], 2 * rows(1, -1))
    for call in (batcher.run, lambda inputs: batcher.submit(inputs, print)):
        with pytest.raises(RunCancelled):
            call({"x": rows(1)})


def test_a_thread_without_work_leaves_and_another_comes_when_needed(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_IDLE_SECONDS", 0.02)
    gate, batcher, answers = start()
    gate.is_open.set()
    answers.wait(1)
    end = time.monotonic() + 10
    while batcher._threads:
        assert time.monotonic() < end
        time.sleep(0.005)
    batcher.submit({"x": rows(1)}, answers.done("again"))
    assert "again" in answers.wait(2)


def test_a_single_call_loses_microseconds(hold_to_budget: Any) -> None:
    inputs = {"x": rows(1)}
    with Batcher(lambda x: {"y": x}, skill="double", most_rows=32) as batcher:

        def measure() -> float:
            start = time.perf_counter()
            for _ in range(200):
                batcher.run(inputs)
            return (time.perf_counter() - start) / 200

        hold_to_budget(measure, 5e-6)
