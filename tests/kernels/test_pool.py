"""The resource pool from Python: what it grants, refuses, counts, and gives back whatever happens."""

import asyncio
import contextvars
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minerua.errors import (
    KernelError,
    LeaseCancelled,
    NestedAcquire,
    PoolClosed,
    PoolError,
    PoolTimeout,
    RequirementTooLarge,
)
from minerua.kernels.pool import WAIT_BOUNDS_SECONDS, CancelToken, ResourcePool

MEBI = 1 << 20


def in_thread(function, *arguments, **named):
    """Starts a function in a thread; returns its future."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(function, *arguments, **named)
    executor.shutdown(wait=False)
    return future


def until(condition):
    """Waits until a condition holds, ten seconds at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# ── granting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lease_holds_what_was_asked_for_until_it_is_released_and_is_released_once(pool):
    lease = pool.acquire({"cpu": 2, "tokens": 0}, name="work")
    assert (lease.requirements, lease.name, lease.pool, lease.released) == ({"cpu": 2}, "work", pool, False)
    assert pool.in_use == {"cpu": 2, "host_bytes": 0, "tokens": 0}
    assert repr(lease) == "<Lease 'work' of {'cpu': 2}>"
    for _ in range(2):
        lease.release()
        assert lease.released
        assert pool.in_use["cpu"] == 0
    assert repr(lease) == "<Lease 'work', released>"
    with pytest.raises(PoolError, match="the lease 'work' was released; acquire another"), lease:
        pass


def test_an_exception_in_the_body_gives_the_lease_back(pool):
    with pytest.raises(ZeroDivisionError), pool.acquire({"cpu": 1}):
        raise ZeroDivisionError
    assert pool.in_use["cpu"] == 0


def test_prepared_requirements_are_taken_by_every_way_to_ask(pool):
    wanted = pool.prepare({"cpu": np.int64(1), "tokens": 2})
    assert wanted.amounts == {"cpu": 1, "tokens": 2}
    with pool.acquire(wanted) as lease:
        assert lease.requirements == wanted.amounts
    with pool.try_acquire(wanted):
        pass
    pool.request(wanted, lambda lease: lease.release())
    asyncio.run(pool.acquire_async(wanted)).release()
    assert pool.statistics().granted == 4
    with pytest.raises(KernelError, match=r"were prepared by another pool"):
        ResourcePool({"cpu": 1}).acquire(wanted)


def test_who_waits_is_granted_by_the_release(pool):
    lease = pool.acquire({"cpu": 2})
    assert pool.try_acquire({"cpu": 1}) is None
    waiting = in_thread(lambda: pool.acquire({"cpu": 1}, name="patient").release())
    until(lambda: pool.statistics().waiting == 1)
    lease.release()
    waiting.result(10)
    found = pool.statistics()
    assert (found.granted, found.waits, sum(found.wait_histogram)) == (2, 1, 1)
    assert len(found.wait_histogram) == len(WAIT_BOUNDS_SECONDS) + 1
    assert found.wait_seconds == found.longest_wait_seconds > 0


def test_the_urgent_are_served_first_and_equals_in_the_order_of_asking(pool):
    lease, order = pool.acquire({"cpu": 2}), []
    for number, priority in enumerate((0, 0, 7, -1)):
        pool.request({"cpu": 2}, lambda got, n=number: (order.append(n), got.release()), priority=priority)
    lease.release()
    assert order == [2, 0, 1, 3]


def test_backfill_lets_those_pass_that_delay_nobody():
    pool = ResourcePool({"cpu": 4, "tokens": 9}, backfill=1)
    lease, order = pool.acquire({"cpu": 1}), []
    for number, wanted in enumerate(({"cpu": 4}, {"cpu": 1}, {"tokens": 1}, {"tokens": 1})):
        pool.request(wanted, lambda got, n=number: (order.append(n), got.release()))
    assert order == [2]
    assert pool.statistics().bypasses == 1
    lease.release()
    assert order == [2, 0, 1, 3]


def test_a_lease_that_is_dropped_is_released_and_counted_as_a_leak(pool):
    pool.acquire({"cpu": 1}, name="careless")
    pool.acquire({"cpu": 1})
    assert pool.statistics().leaks == {"careless": 1, "": 1}
    assert pool.in_use["cpu"] == 0


def test_statistics_name_who_holds_what(pool):
    with pool.acquire({"cpu": 1}, name="a"), pool.acquire({"tokens": 3}, name="b", nested=True):
        found = pool.statistics()
        assert found.live == {"a": 1, "b": 1}
        assert found.resources["tokens"] == (5, 3, 3)
    assert pool.statistics().resources["tokens"] == (5, 0, 3)


# ── refusing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_impossible_request_is_refused_at_once_with_all_numbers(pool):
    for ask in (pool.acquire, pool.try_acquire, lambda wanted: pool.request(wanted, print)):
        with pytest.raises(RequirementTooLarge, match=r"this can never be granted; ask for less") as caught:
            ask({"cpu": 3, "tokens": 6, "host_bytes": 1})
        assert caught.value.faults == ("cpu: 3 asked for, the pool has 2", "tokens: 6 asked for, the pool has 5")
    with pytest.raises(ValueError, match=r"cpu: 1\d+ asked for, the pool has 2"):
        pool.acquire({"cpu": 10**30})
    assert pool.statistics().failures == 3


def test_all_faults_of_requirements_are_said_at_once(pool):
    with pytest.raises(KernelError, match="these requirements cannot be taken") as caught:
        pool.acquire({"cpi": 1, "cpu": -1, "tokens": 1.5, "host_bytes": float("nan"), 3: 1, "x": True})
    assert caught.value.faults == (
        "the requirement of 'cpu' is -1; it must be a whole number, 0 or more",
        "the requirement of 'tokens' is 1.5; it must be a whole number, 0 or more",
        "the requirement of 'host_bytes' is nan; it must be a whole number, 0 or more",
        "a resource is called 3; it must be a text, and not empty",
        "the requirement of 'x' is True; it must be a whole number, 0 or more",
        "no resource is named 'cpi'; did you mean 'cpu'? Known: cpu, host_bytes, tokens",
    )
    with pytest.raises(KernelError, match=r"a mapping of resource to requirement was expected, not 3"):
        pool.acquire(3)


def test_all_faults_of_a_pool_are_said_at_once():
    with pytest.raises(KernelError, match="ResourcePool cannot be made of these") as caught:
        ResourcePool({"cpu": -1, "big": 2**63, "m": 1}, backfill=-1, memory={"m": "disk", "n": "host"})
    assert caught.value.faults == (
        "the capacity of 'cpu' is -1; it must be a whole number, 0 or more",
        f"the capacity of 'big' is {2**63}; the most is {2**63 - 1}",
        "backfill is -1; it must be a whole number, 0 or more",
        "memory: no resource is named 'n'. Known: big, m",
        "memory of 'm' is 'disk'; it must be 'host', 'pinned' or 'device:N'",
    )


def test_a_second_acquire_of_one_thread_is_refused_until_the_lease_is_another_s(pool):
    with pool.acquire({"cpu": 1}) as lease:
        with pytest.raises(NestedAcquire, match=r"two such could wait for each other for ever"):
            pool.acquire({"tokens": 1})
        assert lease.try_extend({"tokens": 5}) is True
        assert lease.try_extend(pool.prepare({"tokens": 0})) is True
        assert lease.requirements == {"cpu": 1, "tokens": 5}
        pool.try_acquire({"cpu": 1}).release()
        lease.hand_over()
        pool.acquire({"cpu": 1}).release()
    pool.acquire({"cpu": 1}).release()


def test_an_extension_never_waits_and_an_impossible_one_is_refused(pool):
    with pool.acquire({"cpu": 1}) as lease:
        in_thread(lambda: None).result()
        other = in_thread(pool.acquire, {"cpu": 1}).result()
        assert lease.try_extend({"cpu": 1}) is False
        with pytest.raises(RequirementTooLarge) as caught:
            lease.try_extend({"cpu": 2})
        assert caught.value.faults == ("cpu: 3 asked for, the pool has 2",)
        other.release()
    with pytest.raises(PoolError, match="was released; acquire another one"):
        lease.try_extend({"cpu": 1})


def test_a_timeout_says_who_holds_what(pool):
    with pool.acquire({"cpu": 2}, name="long job"):
        start = time.monotonic()
        error = in_thread(pool.acquire, {"cpu": 1}, timeout_seconds=0.08).exception(10)
        assert 0.08 <= time.monotonic() - start < 5
    assert isinstance(error, PoolTimeout)
    assert isinstance(error, TimeoutError)
    assert "not granted within 0.08 s; 0 others wait, leases are held by 1 × long job" in str(error)
    assert error.faults == ("cpu: 1 asked for, 2 of 2 in use",)
    assert pool.statistics().timeouts == 1
    pool.acquire({"cpu": 1}, timeout_seconds=float("inf")).release()
    for wrong in (-1, float("nan")):
        with pytest.raises(KernelError, match=r"timeout_seconds is .*; it must be 0 or more"):
            pool.acquire({"cpu": 1}, timeout_seconds=wrong)


def test_a_token_wakes_whoever_waits(pool):
    token = CancelToken()
    with pool.acquire({"cpu": 2}):
        waiting = [in_thread(pool.acquire, {"cpu": 1}, cancel=token) for _ in range(3)]
        until(lambda: pool.statistics().waiting == 3)
        token.cancel()
        for future in waiting:
            assert isinstance(future.exception(10), LeaseCancelled)
    assert token.cancelled
    with pytest.raises(LeaseCancelled, match="was withdrawn by its token"):
        pool.acquire({"cpu": 1}, cancel=token)
    with pytest.raises(TypeError, match="takes a CancelToken as cancel"):
        pool.acquire({"cpu": 1}, cancel=3)


def test_closing_wakes_and_refuses_everybody_and_leaves_leases_as_they_are(pool):
    told = []
    with pool.acquire({"cpu": 2}) as lease:
        waiting = in_thread(pool.acquire, {"cpu": 1})
        pool.request({"cpu": 1}, lambda lease: told.append("granted"), lambda error: told.append(type(error)))
        until(lambda: pool.statistics().waiting == 2)
        pool.close()
        assert isinstance(waiting.exception(10), PoolClosed)
        assert told == [PoolClosed]
        with pytest.raises(PoolClosed, match="the pool was closed and grants nothing any more"):
            lease.try_extend({"tokens": 1})
    assert pool.closed
    with pytest.raises(PoolClosed):
        pool.try_acquire({"cpu": 1})


def test_a_smaller_pool_grants_nothing_until_enough_came_back(pool):
    lease = pool.acquire({"cpu": 2})
    waiting = in_thread(pool.acquire, {"cpu": 2}, timeout_seconds=10)
    until(lambda: pool.statistics().waiting == 1)
    pool.resize({"cpu": 1})
    assert isinstance(waiting.exception(10), RequirementTooLarge)
    assert pool.statistics().resources["cpu"] == (1, 2, 2)
    assert pool.try_acquire({"cpu": 1}) is None
    pool.resize({"cpu": 3})
    pool.try_acquire({"cpu": 1}).release()
    lease.release()
    with pytest.raises(KernelError, match="the pool cannot be resized to these") as caught:
        pool.resize({"cpus": 1, "tokens": -1, "cpu": 2**63})
    assert len(caught.value.faults) == 3


# ── requests with a callback ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_answered_once_by_whoever_releases(pool):
    answers = []
    lease = pool.acquire({"cpu": 2})
    pending = pool.request({"cpu": 1}, lambda got: answers.append((threading.get_ident(), got)))
    assert answers == []
    releaser = in_thread(lambda: (lease.release(), threading.get_ident())[1]).result(10)
    ((thread, got),) = answers
    assert thread == releaser
    assert pending.cancel() is False
    got.release()
    with pytest.raises(TypeError, match="cannot be called"):
        pool.request({"cpu": 1}, 3)


def test_a_request_that_is_withdrawn_lets_those_behind_it_move_up(pool):
    answers = []
    with pool.acquire({"cpu": 1}):
        head = pool.request({"cpu": 2}, answers.append)
        pool.request({"cpu": 1}, lambda got: (answers.append("second"), got.release()))
        assert (head.cancel(), head.cancel()) == (True, False)
    assert answers == ["second"]
    assert pool.statistics().cancellations == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_callback_that_raises_gives_its_lease_back(pool):
    def fail(lease):
        raise RuntimeError("this callback fails")

    pool.request({"cpu": 2}, fail)
    assert pool.in_use["cpu"] == 0
    assert pool.statistics().leaks == {}


# ── asyncio ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tasks_wait_without_blocking_the_loop(pool):
    async def task(number):
        with await pool.acquire_async({"cpu": 1}, name=f"task {number}"):
            await asyncio.sleep(0.001)

    async def main():
        await asyncio.gather(*map(task, range(20)))

    asyncio.run(main())
    assert pool.statistics().granted == 20
    assert pool.statistics().resources["cpu"].peak == 2


def test_a_task_is_granted_by_a_release_of_another_thread(pool):
    async def main():
        lease = pool.try_acquire({"cpu": 2})
        lease.hand_over()
        release = in_thread(lambda: (until(lambda: pool.statistics().waiting == 1), lease.release()))
        (await pool.acquire_async({"cpu": 1}, timeout_seconds=10)).release()
        release.result()

    asyncio.run(main())
    assert pool.statistics().waits == 1


def test_a_grant_to_a_loop_that_is_closed_is_given_back(pool):
    lease = pool.acquire({"cpu": 2})
    lease.hand_over()
    loop = asyncio.new_event_loop()
    coroutine = pool.acquire_async({"cpu": 1})
    task = loop.create_task(coroutine)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    loop.close()
    in_thread(lease.release).result()
    assert pool.in_use["cpu"] == 0
    task._log_destroy_pending = False
    with pytest.raises(asyncio.CancelledError):
        coroutine.throw(asyncio.CancelledError)


def test_a_cancelled_task_withdraws_its_request_or_gives_a_grant_back(pool):
    async def main(granted):
        lease = await pool.acquire_async({"cpu": 2})
        waiting = contextvars.Context().run(asyncio.ensure_future, pool.acquire_async({"cpu": 1}))
        await asyncio.sleep(0.001)
        if granted:
            lease.release()  # the grant is on its way
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        lease.release()
        await asyncio.sleep(0)

    for granted in (False, True):
        asyncio.run(main(granted))
        assert pool.in_use["cpu"] == 0
    assert pool.statistics().leaks == {}


def test_a_task_is_told_of_timeouts_and_of_the_end(pool):
    async def main():
        held = pool.try_acquire({"cpu": 2})
        held.hand_over()
        with pytest.raises(PoolTimeout, match=r"not granted within 0.01 s"):
            await pool.acquire_async({"cpu": 1}, timeout_seconds=0.01)
        with pytest.raises(KernelError, match="it must be 0 or more, or None"):
            await pool.acquire_async({"cpu": 1}, timeout_seconds=-1)
        asyncio.get_running_loop().call_later(0.01, pool.close)
        with pytest.raises(PoolClosed):
            await pool.acquire_async({"cpu": 1})
        held.release()

    asyncio.run(main())


def test_a_task_that_holds_a_lease_may_not_wait_for_another(pool):
    async def other():
        (await pool.acquire_async({"cpu": 1})).release()

    async def main():
        with await pool.acquire_async({"cpu": 1}) as lease:
            with pytest.raises(NestedAcquire):
                await pool.acquire_async({"tokens": 1})
            with pytest.raises(NestedAcquire):
                pool.acquire({"tokens": 1})
            lease.hand_over()
            await other()
        await other()
        with pool.acquire({"cpu": 1}), pytest.raises(NestedAcquire):
            await other()

    asyncio.run(main())


# ── signals, forks, exits ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_interrupt_ends_the_waiting(pool):
    with pool.acquire({"cpu": 2}) as lease:
        lease.hand_over()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            pool.acquire({"cpu": 1}, timeout_seconds=10)
        assert pool.statistics().waiting == 0


CHILD = """
import os, threading
from minerua.errors import PoolError
from minerua.kernels.pool import ResourcePool
pool = ResourcePool({"cpu": 1})
lease = pool.acquire({"cpu": 1})
for _ in range(3):
    threading.Thread(target=lambda: pool.request({"cpu": 1}, lambda lease: lease.release())).start()
threading.Thread(target=lambda: pool.acquire({"cpu": 1}).release()).start()
while pool.statistics().waiting < 4: pass
if os.fork() == 0:
    for ask in (pool.acquire, pool.try_acquire, lambda _: pool.statistics(), lambda _: pool.close()):
        try:
            ask({"cpu": 1})
        except PoolError as error:
            print(error, flush=True)
    lease.release()
    print(lease.released, ResourcePool({"cpu": 1}).acquire({"cpu": 1}).requirements, flush=True)
    del lease, pool
    os._exit(0)
os.wait()
lease.release()
"""


def test_a_forked_child_is_told_and_does_not_hang():
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=30, check=True)
    *refusals, last = done.stdout.splitlines()
    assert len(refusals) == 4
    assert all("this pool was made before a fork, and this is the child" in line for line in refusals)
    assert last == "True {'cpu': 1}"


def test_a_pool_with_leases_and_requests_survives_the_end_of_python():
    code = (
        "from minerua.kernels.pool import ResourcePool\n"
        "pool = ResourcePool({'cpu': 1, 'host_bytes': 100})\n"
        "lease = pool.acquire({'cpu': 1, 'host_bytes': 100}); block = lease.allocate(100); view = memoryview(block)\n"
        "pool.request({'cpu': 1}, lambda lease: None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_many_threads_share_a_pool_without_losing_anything(pool):
    def work(seed):
        generator = np.random.default_rng(seed)
        for _ in range(150):
            wanted = {"cpu": int(generator.integers(1, 3)), "host_bytes": int(generator.integers(1, MEBI))}
            try:
                with pool.acquire(wanted, timeout_seconds=float(generator.choice([1e-4, 10.0]))) as lease:
                    view = np.frombuffer(lease.allocate(wanted["host_bytes"]), np.uint8)
                    view[:16] = seed
                    assert (view[:16] == seed).all()
                    del view
            except PoolTimeout:
                pass

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    found = pool.statistics()
    assert found.granted + found.timeouts == 8 * 150
    assert found.leaks == {}


def test_pools_cannot_be_sent_to_another_process(pool):
    with pytest.raises(TypeError, match="cannot pickle"):
        multiprocessing.get_context("spawn").reducer.ForkingPickler.dumps(pool)
