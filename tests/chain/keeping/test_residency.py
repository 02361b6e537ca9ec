"""Which models are in memory: each once, within a budget, whoever uses them, whatever fails."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.keeping.residency import ModelResidency
from minerua.errors import PoolClosed, RequirementTooLarge
from minerua.values import Setup, Skill

from .model_world import SETUP, World, in_threads, until, use

# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_skill_with_call_is_that_itself(make: Any) -> None:
    residency, skill = make(0), Skill("double", call=lambda: 2)
    with residency.use(skill, SETUP) as call:
        assert call is skill.call
    assert residency.is_loaded(skill, SETUP)
    assert residency.statistics().loads == 0


def test_a_model_is_loaded_once_per_setup(make: Any, world: World) -> None:
    residency, skill = make(), world.skill("a", 10)
    assert not residency.is_loaded(skill, SETUP)
    assert [use(residency, skill) for _ in range(3)] == ["a"] * 3
    use(residency, skill, Setup(threads=2))
    now = residency.statistics()
    assert (world.loads, now.loads, now.hits, now.models, now.bytes) == (["a", "a"], 2, 2, 2, 20)
    assert residency.is_loaded(skill, SETUP)


def test_skills_that_share_their_load_share_the_model(make: Any, world: World) -> None:
    residency, skill = make(), world.skill("a", 10)
    use(residency, skill)
    use(residency, Skill("other", load=skill.load, loaded_bytes=10))
    assert world.loads == ["a"]


def test_threads_that_want_the_same_model_load_it_once(make: Any, world: World) -> None:
    residency, skill = make(), world.skill("a", 10, seconds=0.1)
    assert in_threads(*[lambda: use(residency, skill)] * 6) == ["a"] * 6
    assert world.loads == ["a"]


def test_a_load_that_fails_is_told_to_all_who_wait_and_tried_again_at_the_next_use(make: Any, world: World) -> None:
    residency, skill = make(100), world.skill("a", 10, seconds=0.1, faults=1)
    assert [str(error) for error in in_threads(*[lambda: use(residency, skill)] * 4)] == ["a is broken"] * 4
    assert world.loads == ["a"]
    assert residency.statistics().bytes == 0
    assert use(residency, skill) == "a"
    assert residency.statistics().failures == 1


def test_an_interrupted_load_is_tried_by_whoever_waits(make: Any) -> None:
    entered, leave, residency = threading.Event(), threading.Event(), make(100)
    first: list[bool] = []

    def load(setup: Setup) -> Callable[[], int]:
        if not first:
            first.append(True)
            entered.set()
            leave.wait(10)
            raise KeyboardInterrupt
        return lambda: 5

    skill = Skill("a", load=load, loaded_bytes=1)

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            use(residency, skill)

    def second() -> Any:
        entered.wait(10)
        timer = threading.Timer(0.05, leave.set)
        timer.start()
        return use(residency, skill)

    assert in_threads(interrupted, second) == [None, 5]


def test_a_skill_without_either_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match="'x' has neither call nor load: configure it"):
        use(make(), Skill("x", configure=lambda settings, context: Skill("y")))


# ── the budget ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_least_recently_used_model_leaves_and_is_closed(make: Any, world: World) -> None:
    residency = make(30)
    a, b, c, d = (world.skill(name, 10) for name in "abcd")
    for skill in (a, b, c, a, d):
        use(residency, skill)
    assert (world.closed, world.peak_bytes) == (["b"], 30)
    assert residency.statistics().evictions == 1
    use(residency, b)
    assert world.closed == ["b", "c"]


def test_an_evicted_model_is_freed(make: Any) -> None:
    residency, references = make(10), []

    def load(setup: Setup) -> Callable[[], None]:
        class Weights:
            pass

        weights = Weights()
        references.append(weakref.ref(weights))
        return lambda: print(weights)

    one, other = Skill("a", load=load, loaded_bytes=10), Skill("b", load=lambda setup: dict, loaded_bytes=10)
    with residency.use(one, SETUP):
        pass
    use(residency, other)
    gc.collect()
    assert references[0]() is None


def test_a_call_kept_beyond_its_use_keeps_working_but_the_place_of_an_evicted_model_says_so(make: Any) -> None:
    residency = make(10)
    context = residency.use(Skill("a", load=lambda setup: dict, loaded_bytes=10), SETUP)
    with context:
        model = context._model
    use(residency, Skill("b", load=lambda setup: dict, loaded_bytes=10))
    with pytest.raises(PoolClosed, match="call a model only inside the `with` that yielded it"):
        model.call()


def test_a_model_larger_than_the_budget_is_refused_at_once(make: Any, world: World) -> None:
    residency = make(30)
    use(residency, world.skill("a", 10))
    for declared in (True, False):
        with pytest.raises(RequirementTooLarge, match="all models together may take 30: raise the budget, or choose"):
            use(residency, world.skill("big", 31, declared=declared))
    assert residency.statistics().bytes in (0, 10)
    assert world.loaded_bytes == residency.statistics().bytes


def test_a_use_waits_until_what_is_pinned_comes_free(make: Any, world: World) -> None:
    residency = make(15)
    a, b = world.skill("a", 10), world.skill("b", 10)
    order: list[str] = []

    def hold() -> None:
        with residency.use(a, SETUP):
            entered.set()
            time.sleep(0.1)
            order.append("a ends")

    def wait() -> None:
        entered.wait(10)
        use(residency, b)
        order.append("b ran")

    entered = threading.Event()
    in_threads(hold, wait)
    assert order == ["a ends", "b ran"]
    assert (world.peak_bytes, world.closed) == (10, ["a"])
    assert residency.statistics().wait_seconds > 0.05


def test_a_model_of_unknown_size_is_measured_and_the_budget_holds_afterwards(make: Any, world: World) -> None:
    residency = make(15)
    a, b = world.skill("a", 10, declared=False), world.skill("b", 10, declared=False)
    entered = threading.Event()

    def hold() -> None:
        with residency.use(a, SETUP):
            entered.set()
            time.sleep(0.1)
            assert residency.statistics().bytes <= 15

    def wait() -> Any:
        entered.wait(10)
        return use(residency, b)

    assert in_threads(hold, wait) == [None, "b"]
    assert world.loads == ["a", "b", "b"]  # the first time told its size, the second time there was room
    assert residency.statistics().peak_bytes <= 15


def test_the_growth_of_the_process_is_the_last_resort(make: Any) -> None:
    residency, block = make(), 32 << 20

    def load(setup: Setup) -> Callable[[], int]:
        weights = bytearray(b"x") * block
        return lambda: len(weights)

    use(residency, Skill("a", load=load))
    assert 0.8 * block < residency.statistics().bytes < 1.5 * block


def test_a_large_model_gets_its_turn_though_small_ones_are_always_in_use(make: Any, world: World) -> None:
    residency, small, large = make(10), world.skill("small", 1), world.skill("large", 10)
    is_over = threading.Event()

    def busy() -> None:
        while not is_over.is_set():
            with residency.use(small, SETUP):
                time.sleep(0.02)

    def wait() -> Any:
        try:
            return use(residency, large)
        finally:
            is_over.set()

    assert in_threads(busy, busy, busy, wait) == [None, None, None, "large"]


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_threads_that_use_one_model_at_a_time_never_block_each_other(seed: int) -> None:
    world = World()
    numbers = random.Random(seed)
    skills = [world.skill(str(n), numbers.randint(1, 10), declared=n % 3 > 0) for n in range(6)]
    residency = ModelResidency(12)

    def work(seed: int) -> Callable[[], None]:
        def uses() -> None:
            choice = random.Random(seed)
            for _ in range(25):
                if choice.random() < 0.2:
                    residency.prefetch((skill, SETUP) for skill in choice.sample(skills, 3))
                skill = choice.choice(skills)
                assert use(residency, skill) == skill.name

        return uses

    assert in_threads(*[work(seed + n) for n in range(4)]) == [None] * 4
    assert residency.statistics().peak_bytes <= 12
    residency.close()
    assert world.loaded_bytes == residency.statistics().bytes == 0


# ── prefetch ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("declared", [True, False])
def test_prefetch_loads_in_order_and_waits_where_the_plan_still_needs_what_is_there(
    declared: bool, make: Any, world: World
) -> None:
    residency = make(20)
    a, b, c = (world.skill(name, 10, declared=declared) for name in "abc")
    residency.prefetch([(skill, SETUP) for skill in (a, b, c)])
    until(lambda: world.loads[:2] == ["a", "b"] and (declared or world.loads[2:] == ["c"]))
    time.sleep(0.05)
    assert residency.is_loaded(a, SETUP)
    assert residency.is_loaded(b, SETUP)
    assert not residency.is_loaded(c, SETUP)
    use(residency, a)
    until(lambda: residency.is_loaded(c, SETUP))
    assert world.closed[-1] == "a"
    use(residency, b)
    use(residency, c)
    now = residency.statistics()
    assert (now.prefetches, now.hits, now.peak_bytes) == (3, 3, 20)


def test_prefetch_evicts_what_no_plan_wants_but_nothing_in_use(make: Any, world: World) -> None:
    residency = make(20)
    a, b, c = (world.skill(name, 10) for name in "abc")
    use(residency, a)
    with residency.use(b, SETUP):
        residency.prefetch([(c, SETUP)])
        until(lambda: residency.is_loaded(c, SETUP))
        assert world.closed == ["a"]


def test_a_use_does_not_wait_for_a_prefetch_that_has_no_room(make: Any, world: World) -> None:
    residency, a, b = make(10), world.skill("a", 10), world.skill("b", 10)
    residency.prefetch([(a, SETUP), (b, SETUP)])
    until(lambda: residency.is_loaded(a, SETUP))
    assert use(residency, b) == "b"  # the step of `a` was skipped


def test_a_newer_plan_takes_the_place_of_an_older_one(make: Any, world: World) -> None:
    residency = make(10)
    a, b, c = (world.skill(name, 10) for name in "abc")
    residency.prefetch([(a, SETUP), (b, SETUP)])
    until(lambda: residency.is_loaded(a, SETUP))
    residency.prefetch([(c, SETUP)])
    until(lambda: residency.is_loaded(c, SETUP))
    assert world.loads == ["a", "c"]


def test_a_prefetch_that_fails_is_skipped_and_the_use_tells(make: Any, world: World) -> None:
    residency, bad, good = make(20), world.skill("bad", 10, faults=2), world.skill("good", 10)
    residency.prefetch([(bad, SETUP), (world.skill("big", 21), SETUP), (good, SETUP), (Skill("c", call=dict), SETUP)])
    until(lambda: residency.is_loaded(good, SETUP))
    with pytest.raises(OSError, match="bad is broken"):
        use(residency, bad)
    assert use(residency, bad) == "bad"


def test_prefetch_of_what_is_there_starts_nothing(make: Any, world: World) -> None:
    residency, a = make(20), world.skill("a", 10)
    use(residency, a)
    residency.prefetch([(a, SETUP)])
    assert residency._prefetcher is None


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_close_closes_all_waits_for_what_is_in_use_and_refuses_the_rest(world: World) -> None:
    with ModelResidency(20) as residency:
        a, b, c = (world.skill(name, 10) for name in "abc")
        use(residency, a)
        entered = threading.Event()

        def hold() -> None:
            with residency.use(b, SETUP):
                entered.set()
                time.sleep(0.1)
                assert not world.closed or world.closed == ["a"]

        def close() -> None:
            entered.wait(10)
            residency.close()

        in_threads(hold, close)
        assert sorted(world.closed) == ["a", "b"]
        residency.prefetch([(c, SETUP)])
        with pytest.raises(PoolClosed, match="the models were closed; make a new ModelResidency"):
            use(residency, c)
    assert residency.statistics().evictions == 0
    assert world.loads == ["a", "b"]


def test_close_ends_a_prefetch_that_waits(world: World) -> None:
    residency = ModelResidency(10)
    residency.prefetch([(world.skill(name, 10), SETUP) for name in "ab"])
    until(lambda: residency.statistics().models == 1)
    residency.close()
    assert residency.statistics().bytes == world.loaded_bytes == 0
