"""The content cache: names of inputs, least recently used, one computation for all, files that may be damaged."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.keeping.cache import ContentCache, Flight
from minerua.chain.keeping.content import Frozen
from minerua.values import Skill

SKILL = Skill("see", pure=True)
KEYS = [bytes([n]) * 16 for n in range(256)]


def key_of(*values: Any) -> bytes | None:
    return ContentCache.key(SKILL, {f"x{n}": value for n, value in enumerate(values)})


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def outputs_of(size: int) -> dict[str, np.ndarray]:
    return {"y": np.full(size, size % 251, np.uint8)}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 600)), max_size=60))
@settings(max_examples=150, deadline=None)
def test_memory_behaves_like_a_plain_list_of_the_least_recently_used(steps: list[tuple[bool, int, int]]) -> None:
    cache, bound, plain = ContentCache(2000), 2000, OrderedDict[int, tuple[int, int]]()
    hits = evictions = 0
    for is_put, number, size in steps:
        if is_put:
            taken = Frozen(outputs_of(size)).nbytes
            cache.put(KEYS[number], outputs_of(size))
            plain.pop(number, None)
            plain[number] = (taken, size)
            while sum(taken for taken, _ in plain.values()) > bound:
                plain.popitem(last=False)
                evictions += 1
        else:
            found = cache.get(KEYS[number])
            assert (None if found is None else found["y"].size) == plain.get(number, (0, None))[1]
            hits += found is not None
            if number in plain:
                plain.move_to_end(number)
        now = cache.statistics()
        assert (now.memory.entries, now.memory.hits, now.memory.evictions) == (len(plain), hits, evictions)
        assert now.memory.bytes == sum(taken for taken, _ in plain.values()) <= bound
        assert (now.hits, now.misses) == (now.memory.hits, now.memory.misses)


def test_what_is_larger_than_all_the_room_is_not_kept_and_drives_nobody_out() -> None:
    cache = ContentCache(3000)
    cache.put(KEYS[0], outputs_of(100))
    cache.put(KEYS[1], outputs_of(5000))
    assert cache.get(KEYS[1]) is None
    assert cache.get(KEYS[0]) is not None
    assert cache.statistics().memory.refused == 1


def test_a_kept_array_that_owns_its_memory_is_not_copied_and_cannot_be_changed() -> None:
    cache, array = ContentCache(1000), np.ones(3)
    assert cache.put(KEYS[0], {"y": array})["y"] is array
    found = cache.get(KEYS[0])
    assert found is not None
    assert found["y"] is array
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
        found["y"][:2].flags.writeable = True


def test_a_view_of_memory_that_somebody_may_write_to_is_copied() -> None:
    cache, owner = ContentCache(10_000), np.ones(8)
    hidden = owner[:4]
    hidden.flags.writeable = False
    buffer = bytearray(8)
    cache.put(KEYS[0], {"a": owner[:4], "b": hidden, "c": np.frombuffer(buffer, np.uint8), "d": [owner[4:]]})
    owner[:] = 7
    buffer[:] = b"x" * 8
    found = cache.get(KEYS[0])
    assert found is not None
    assert (found["a"].sum(), found["b"].sum(), found["c"].sum(), found["d"][0].sum()) == (4, 4, 0, 4)
    assert not any(found[name].flags.writeable for name in "abc")


def test_lists_and_dicts_are_everybodys_own() -> None:
    cache = ContentCache(10_000)
    given_list = [1, {"a": [2]}]
    handed = cache.put(KEYS[0], {"y": given_list})
    given_list.append(3)
    handed["y"][1]["a"].append(4)
    for _ in range(2):
        found = cache.get(KEYS[0])
        assert found == {"y": [1, {"a": [2]}]}
        found["y"][1]["a"].append(5)
        found["z"] = 1


def test_clear_forgets_what_is_in_memory() -> None:
    cache = ContentCache(10_000)
    cache.put(KEYS[0], outputs_of(10))
    cache.clear()
    assert cache.get(KEYS[0]) is None
    assert cache.statistics().memory.bytes == 0


# ── one computation for all ──────────────────────────────────────────────────────────────────────────────────────────


def in_threads(count: int, function: Any) -> list[Any]:
    """Calls a function in threads; returns what it returned or raised."""
    results: list[Any] = []

    def call() -> None:
        try:
            results.append(function())
        except Exception as error:  # noqa: BLE001 - told to the test
            results.append(error)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def test_threads_that_want_the_same_compute_it_once() -> None:
    cache, calls = ContentCache(10_000), []

    def slow() -> Mapping[str, Any]:
        calls.append(1)
        time.sleep(0.1)
        return {"y": 1}

    assert in_threads(8, lambda: cache.compute(KEYS[0], slow)) == [{"y": 1}] * 8
    now = cache.statistics()
    assert (len(calls), now.joined + now.hits, now.misses) == (1, 7, 1)


def test_an_error_of_the_computation_is_everybodys_and_the_next_one_computes_again() -> None:
    cache, calls = ContentCache(10_000), []

    def bad() -> Mapping[str, Any]:
        calls.append(1)
        time.sleep(0.1)
        raise ArithmeticError("no such number")

    assert {str(error) for error in in_threads(4, lambda: cache.compute(KEYS[0], bad))} == {"no such number"}
    assert len(calls) == 1
    assert cache.compute(KEYS[0], lambda: {"y": 2}) == {"y": 2}


def test_an_interrupted_computation_is_taken_over_by_another_thread() -> None:
    cache, entered, leave = ContentCache(10_000), threading.Event(), threading.Event()

    def interrupted() -> Mapping[str, Any]:
        entered.set()
        leave.wait(10)
        raise KeyboardInterrupt

    def first() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            cache.compute(KEYS[0], interrupted)

    leader = threading.Thread(target=first)
    leader.start()
    entered.wait(10)
    results: list[Any] = []
    follower = threading.Thread(target=lambda: results.append(cache.compute(KEYS[0], lambda: {"y": 3})))
    follower.start()
    while not cache.statistics().joined:
        time.sleep(0.001)
    leave.set()
    leader.join(10)
    follower.join(10)
    assert results == [{"y": 3}]


def test_begin_gives_a_flight_to_the_first_and_tells_the_others() -> None:
    cache, told = ContentCache(10_000), []
    flight = cache.begin(KEYS[0], lambda *answer: told.append(("first", *answer)))
    assert isinstance(flight, Flight)
    assert cache.begin(KEYS[0], lambda *answer: told.append(("second", *answer))) is None
    assert flight.land({"y": 1}) == {"y": 1}
    flight.fail()
    flight.land({"y": 2})
    assert told == [("second", {"y": 1}, None)]
    assert cache.get(KEYS[0]) == {"y": 2}
    assert cache.begin(KEYS[0], print) == {"y": 2}


def test_a_flight_that_is_left_without_a_word_fails() -> None:
    cache, told = ContentCache(10_000), []
    with cache.begin(KEYS[0], print) as flight:  # type: ignore[union-attr]
        cache.begin(KEYS[0], lambda *answer: told.append(answer))
    assert isinstance(flight, Flight)
    assert told == [(None, None)]
    assert isinstance(cache.begin(KEYS[0], print), Flight)


def test_outputs_that_cannot_be_kept_reach_all_who_wait() -> None:
    cache, told, outputs = ContentCache(10_000), [], {"y": object()}
    flight = cache.begin(KEYS[0], print)
    cache.begin(KEYS[0], lambda *answer: told.append(answer))
    assert isinstance(flight, Flight)
    assert flight.land(outputs) is outputs
    assert told == [(outputs, None)]


def test_without_a_key_the_function_is_called() -> None:
    cache = ContentCache(10_000)
    assert [cache.compute(None, lambda: {"y": 1})["y"] for _ in range(2)] == [1, 1]
    assert cache.statistics().misses == 0


def test_many_threads_and_few_keys_agree_and_the_accounts_balance() -> None:
    cache = ContentCache(1500)

    def work() -> None:
        random = np.random.default_rng(threading.get_ident() % 1000)
        for number in random.integers(0, 12, 300):
            found = cache.compute(KEYS[number], lambda n=number: outputs_of(100 + int(n)))
            assert found["y"].size == 100 + number

    assert in_threads(4, work) == [None] * 4
    now = cache.statistics()
    assert now.memory.bytes <= 1500
    assert now.hits + now.misses + now.joined >= 1200
    cache.clear()
    assert cache.statistics().memory.bytes == 0


# ── speed ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hit_on_600_kilobytes_costs_tens_of_microseconds(hold_to_budget: Any) -> None:
    cache, image = ContentCache(1 << 20), np.random.default_rng(0).random(150_000, np.float32)
    key = cache.key(SKILL, {"image": image})
    assert key is not None
    cache.put(key, {"y": 1})

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(20):
            found = cache.get(cache.key(SKILL, {"image": image}))  # type: ignore[arg-type]
            assert found is not None
        return (time.perf_counter() - start) / 20

    hold_to_budget(measure, 100e-6)
