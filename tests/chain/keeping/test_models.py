"""Models beside a pool, models that do not want to leave, and how large they are."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from minerua.chain.keeping import footprint
from minerua.chain.keeping.models import PoolRequest
from minerua.chain.keeping.residency import ModelResidency
from minerua.errors import PoolClosed, RequirementTooLarge
from minerua.kernels.pool import ResourcePool
from minerua.values import Skill

from .model_world import SETUP, World, in_threads, until, use

# ── beside a pool ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_and_steps_share_the_bytes_of_a_pool(make: Any, world: World) -> None:
    pool = ResourcePool({"host_bytes": 30, "cpu": 1})
    residency = make(pool=pool)
    a, b = world.skill("a", 10), world.skill("b", 15, declared=False)
    with residency.use(a, SETUP):
        assert pool.in_use["host_bytes"] == 10
        with pool.acquire({"cpu": 1, "host_bytes": 5}):  # the model's lease is not this thread's
            pass
    use(residency, b)
    assert pool.in_use["host_bytes"] == residency.statistics().bytes == 25
    assert pool.statistics().live == {"models": 2}
    use(residency, world.skill("c", 10))
    assert world.closed[-1] == "a"
    residency.close()
    assert pool.in_use["host_bytes"] == 0


def test_a_model_waits_in_the_pools_queue_for_what_steps_hold(make: Any, world: World) -> None:
    pool = ResourcePool({"host_bytes": 30})
    residency, entered = make(pool=pool), threading.Event()

    def hold() -> None:
        with pool.acquire({"host_bytes": 25}):
            entered.set()
            until(lambda: pool.statistics().waiting == 1)
            time.sleep(0.05)
            assert not world.loads

    def wait() -> Any:
        entered.wait(10)
        return use(residency, world.skill("a", 10))

    assert in_threads(hold, wait) == [None, "a"]
    assert pool.in_use["host_bytes"] == 10


def test_a_prefetch_stands_in_nobodys_way_in_the_pools_queue(make: Any, world: World) -> None:
    pool = ResourcePool({"host_bytes": 30})
    residency, a = make(pool=pool), world.skill("a", 10)
    with pool.acquire({"host_bytes": 25}):
        residency.prefetch([(a, SETUP)])
        time.sleep(0.05)
        assert pool.statistics().waiting == 0
        assert not residency.is_loaded(a, SETUP)
    until(lambda: residency.is_loaded(a, SETUP))


def test_a_model_that_the_pool_cannot_hold_leaves_nothing_behind(make: Any, world: World) -> None:
    pool = ResourcePool({"host_bytes": 30})
    residency = make(pool=pool)
    for declared in (True, False):
        with pytest.raises(RequirementTooLarge, match="this can never be granted"):
            use(residency, world.skill("big", 31, declared=declared))
    assert residency.statistics().bytes == pool.in_use["host_bytes"] == world.loaded_bytes == 0


def test_closing_withdraws_a_model_from_the_pools_queue(world: World) -> None:
    pool = ResourcePool({"host_bytes": 30})
    residency = ModelResidency(pool=pool)

    def wait() -> None:
        with pytest.raises(PoolClosed):
            use(residency, world.skill("a", 10))

    with pool.acquire({"host_bytes": 25}):
        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: pool.statistics().waiting == 1)
        residency.close()
        thread.join(10)
        assert pool.statistics().waiting == 0
    assert pool.in_use["host_bytes"] == residency.statistics().bytes == 0


def test_a_grant_that_comes_too_late_is_given_back() -> None:
    pool = ResourcePool({"host_bytes": 30})
    request = PoolRequest(pool, {"host_bytes": 10}, threading.Condition(threading.RLock()))
    assert request.answer()
    request.withdraw()
    assert pool.in_use["host_bytes"] == 0
    request._grant(pool.try_acquire({"host_bytes": 10}))
    assert pool.in_use["host_bytes"] == 0
    with pool.acquire({"host_bytes": 30}):
        refused = PoolRequest(pool, {"host_bytes": 10}, threading.Condition(threading.RLock()))
        assert not refused.answer()
        pool.close()
        with pytest.raises(PoolClosed):
            refused.answer()
        refused.withdraw()


# ── sizes and leaving ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_that_cannot_be_closed_is_a_warning(make: Any) -> None:
    class Stubborn:
        def __call__(self) -> None: ...

        def close(self) -> None:
            raise OSError("busy")

    residency = make(10)
    use(residency, Skill("a", load=lambda setup: Stubborn(), loaded_bytes=10))
    with pytest.warns(RuntimeWarning, match="the skill 'a' could not be closed: OSError: busy; its memory may stay"):
        use(residency, Skill("b", load=lambda setup: dict, loaded_bytes=10))


def test_what_a_model_says_of_itself_is_believed() -> None:
    class Both:
        nbytes = 3
        loaded_bytes = 7

    class Wrong:
        nbytes = "many"

    assert (footprint.declared_bytes(Both()), footprint.declared_bytes(Wrong())) == (7, None)


def test_where_the_system_says_nothing_the_peak_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = footprint.resident_bytes(), footprint.data_bytes()

    def refuse(*_: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    peaks = footprint.resident_bytes(), footprint.data_bytes()
    assert peaks[0] == peaks[1] >= 0.9 * now[0] > 0
