"""A pool of named resources: who may run what, and in whose memory, is decided in one place.

A request names amounts of several resources and is granted whole or not at all, the most urgent first and, among
equals, first come first served. What is granted is a lease; a lease of bytes can be cut into blocks of real memory.
The compiled core does the work (`csrc/core/ledger.hpp`, `allocator.hpp`, `arena.hpp`); this file checks and explains.
All functions may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import operator
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from minerua.errors import (
    AllocationError,
    CoreUnavailable,
    KernelError,
    LeaseCancelled,
    NestedAcquire,
    PoolClosed,
    PoolError,
    PoolTimeout,
    RequirementTooLarge,
    unknown,
)
from minerua.kernels import cuda
from minerua.kernels.pool_types import Block, CancelToken, Lease, Pending, Pool, Requirements

__all__ = [
    "WAIT_BOUNDS_SECONDS",
    "Block",
    "CancelToken",
    "Lease",
    "Pending",
    "PoolStatistics",
    "Requirements",
    "ResourcePool",
    "ResourceStatistics",
]

WAIT_BOUNDS_SECONDS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Upper ends of all but the last class of `PoolStatistics.wait_histogram`."""

_MOST = 2**63 - 1
"""The largest amount that the core counts."""

_MEMORY = re.compile(r"(host)_bytes|(pinned)_bytes|(device:\d+)_bytes")
_KIND = re.compile(r"host|pinned|device:\d+")
_CUDA_FUNCTIONS = ("pinned_allocate", "pinned_free", "pool_create", "pool_destroy", "allocate", "free", "last_error")

_TASK_LEASES: contextvars.ContextVar[tuple[weakref.ref[Lease], ...]] = contextvars.ContextVar("leases", default=())
"""The leases that this asyncio task took, or one that it was started from."""


class ResourceStatistics(NamedTuple):
    """One resource at one moment.

    Args:
        capacity: How much there is.
        in_use: How much is leased; more than the capacity after it was made smaller.
        peak: The most that ever was in use.
    """

    capacity: int
    in_use: int
    peak: int


@dataclass(frozen=True)
class PoolStatistics:
    """Everything at one moment, and what was counted until then.

    Args:
        resources: Resource → its numbers.
        granted: Leases granted.
        waiting: Requests that wait now.
        waits: Leases that were granted after waiting.
        wait_seconds: How long those waited, together.
        longest_wait_seconds: How long one of them waited at most.
        wait_histogram: How many of them waited less than each of `WAIT_BOUNDS_SECONDS`, and how many longer.
        bypasses: Leases granted past earlier requests (`backfill`).
        timeouts: Requests that ended because their time was over.
        cancellations: Requests that were withdrawn.
        failures: Requests refused as impossible or nested, or because the pool was closed.
        live: Name → leases that are held now.
        leaks: Name → leases that were dropped without being released.
        closed: Whether `close` was called.
    """

    resources: Mapping[str, ResourceStatistics]
    granted: int
    waiting: int
    waits: int
    wait_seconds: float
    longest_wait_seconds: float
    wait_histogram: tuple[int, ...]
    bypasses: int
    timeouts: int
    cancellations: int
    failures: int
    live: Mapping[str, int]
    leaks: Mapping[str, int]
    closed: bool


class ResourcePool(Pool):
    """Leases amounts of named resources: all of a request or nothing, first come first served.

    A request that can never be granted is refused at once. Who holds a lease and would wait for another one is refused
    too, since two such could wait for each other: `Lease.try_extend` takes more without waiting, `Lease.hand_over` says
    that a lease is another thread's or task's from now on. Leases outlive `close`, and keep the pool alive. After a
    fork the child's copy refuses everything.

    Args:
        capacity: Resource → units, 0 to 2^63 − 1: slots, bytes, anything that can be counted.
        backfill: How many later requests may pass each one that waits, provided that they would fit even if all that
            wait before them had what they ask for, so that nobody is delayed; 0 is strictly first come first served.
        memory: Resource → `"host"`, `"pinned"` or `"device:N"`, where its blocks come from; `None` takes those of
            `host_bytes`, `pinned_bytes` and `device:N_bytes` that the capacity has. Nothing is opened or reserved
            before the first block.

    Raises:
        KernelError: A capacity, `backfill` or `memory` that cannot be; lists all faults.
        CoreUnavailable: The compiled core is missing.

    Example:
        >>> pool = ResourcePool({"cpu": 2, "host_bytes": 1 << 20})
        >>> with pool.acquire({"cpu": 1, "host_bytes": 4096}, name="resize") as lease:
        ...     block = lease.allocate(1024)
        ...     pool.in_use, block.nbytes
        ({'cpu': 1, 'host_bytes': 4096}, 1024)
        >>> pool.in_use
        {'cpu': 0, 'host_bytes': 0}
    """

    def __init__(
        self, capacity: Mapping[str, int], *, backfill: int = 0, memory: Mapping[str, str] | None = None
    ) -> None:
        amounts, faults = _amounts(capacity, "capacity")
        faults += [f"the capacity of {name!r} is {n}; the most is {_MOST}" for name, n in amounts.items() if n > _MOST]
        if not isinstance(backfill, int) or backfill < 0:
            faults.append(f"backfill is {backfill!r}; it must be a whole number, 0 or more")
        kinds = _memory_kinds(amounts) if memory is None else dict(memory)
        faults += [f"memory: {unknown('resource', name, list(amounts))}" for name in kinds if name not in amounts]
        faults += [
            f"memory of {name!r} is {kind!r}; it must be 'host', 'pinned' or 'device:N'"
            for name, kind in kinds.items()
            if not _KIND.fullmatch(str(kind))
        ]
        if faults:
            raise KernelError("ResourcePool cannot be made of these:", faults)
        self._places = {name: place for place, name in enumerate(amounts)}
        self._kinds = kinds
        super().__init__(tuple(amounts), list(amounts.values()), backfill)

    def prepare(self, requirements: Mapping[str, int]) -> Requirements:
        """Looks the names of requirements up once, so that acquiring them again and again costs no more of that.

        Args:
            requirements: Resource → amount, a whole number, 0 or more. All of them may be left out.

        Raises:
            KernelError: Unknown resources (named with the nearest known ones), or amounts that cannot be; lists all.
            RequirementTooLarge: An amount that no pool can count.

        Example:
            >>> ResourcePool({"cpu": 2}).prepare({"cpu": 1})
            Requirements({'cpu': 1})
        """
        amounts, faults = _amounts(requirements, "requirement")
        faults += [unknown("resource", name, list(self._places)) for name in amounts if name not in self._places]
        if faults:
            raise KernelError("these requirements cannot be taken:", faults)
        if any(amount > _MOST for amount in amounts.values()):
            raise self._too_large(amounts)
        pairs = [(self._places[name], amount) for name, amount in amounts.items() if amount > 0]
        return self._requirements(pairs, amounts)

    async def acquire_async(
        self,
        requirements: Mapping[str, int] | Requirements,
        *,
        timeout_seconds: float | None = None,
        priority: int = 0,
        name: str = "",
    ) -> Lease:
        """Waits, without blocking the event loop, until everything is granted.

        Cancelling the task withdraws the request; a grant that comes at the same moment is given back.

        Args:
            requirements: As for `acquire`, as are the others.
            timeout_seconds: How long to wait at most; `None` waits for ever.
            priority: Higher ones are served first.
            name: What statistics call the lease.

        Raises:
            RequirementTooLarge: It could never be granted.
            PoolTimeout: It was not granted in time.
            PoolClosed: The pool is closed, or was while this waited.
            NestedAcquire: This task, or this thread, holds a lease already.

        Example:
            >>> async def in_use() -> int:
            ...     pool = ResourcePool({"cpu": 2})
            ...     with await pool.acquire_async({"cpu": 1}):
            ...         return pool.in_use["cpu"]
            >>> asyncio.run(in_use())
            1
        """
        if timeout_seconds is not None and not timeout_seconds >= 0:
            raise self._refusal("bad_timeout", self, timeout_seconds)
        wanted = requirements if isinstance(requirements, Requirements) else self.prepare(requirements)
        self._refuse_nested_task()
        if self._thread_holds():
            raise self._refusal("nested", wanted, None)
        # What is free is taken without a round through the loop; not by who is to stand behind those of priority 0.
        if priority >= 0 and (at_once := self.try_acquire(wanted, name=name)) is not None:
            at_once.hand_over()
            return _taken_by_task(at_once)
        answer: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        pending = self.request(wanted, *_settlers(answer), priority=priority, name=name)
        try:
            await asyncio.wait({answer}, timeout=timeout_seconds)
            if not answer.done() and pending._time_out():
                raise self._refusal("timed_out", wanted, timeout_seconds)
            lease = await answer
        except asyncio.CancelledError:
            if not pending.cancel() and answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().release()
            answer.cancel()
            raise
        return _taken_by_task(lease)

    def resize(self, capacity: Mapping[str, int]) -> None:
        """Changes capacities; those that are not named stay.

        What is leased stays leased, also beyond the new capacity: then nothing more of it is granted for now. Requests
        that wait and became impossible fail with `RequirementTooLarge`.

        Raises:
            KernelError: Unknown resources, or amounts that cannot be; lists all.

        Example:
            >>> pool = ResourcePool({"cpu": 2})
            >>> pool.resize({"cpu": 3})
            >>> pool.capacity
            {'cpu': 3}
        """
        amounts, faults = _amounts(capacity, "capacity")
        faults += [unknown("resource", name, list(self._places)) for name in amounts if name not in self._places]
        faults += [f"the capacity of {name!r} is {n}; the most is {_MOST}" for name, n in amounts.items() if n > _MOST]
        if faults:
            raise KernelError("the pool cannot be resized to these:", faults)
        self._resize([(self._places[name], amount) for name, amount in amounts.items()])

    @property
    def capacity(self) -> dict[str, int]:
        """Resource → how much there is."""
        return {name: one.capacity for name, one in self.statistics().resources.items()}

    @property
    def in_use(self) -> dict[str, int]:
        """Resource → how much is leased."""
        return {name: one.in_use for name, one in self.statistics().resources.items()}

    def statistics(self) -> PoolStatistics:
        """Returns all numbers, of one and the same moment.

        Example:
            >>> ResourcePool({"cpu": 2}).statistics().resources
            {'cpu': ResourceStatistics(capacity=2, in_use=0, peak=0)}
        """
        found = self._snapshot()
        rows = [ResourceStatistics(*row) for row in found.pop("resources")]
        return PoolStatistics(resources=dict(zip(self._places, rows, strict=True)), **found)

    # ── asked by the compiled half ───────────────────────────────────────────────────────────────────────────────────

    def _refuse_nested_task(self) -> None:
        for reference in _TASK_LEASES.get():
            lease = reference()
            if lease is not None and lease.pool is self and lease._is_task_s():
                raise self._refusal("nested", None, None)

    def _open_memory(self, resource: str) -> None:
        """Opens what the blocks of a resource come from, when the first one is asked for."""
        kind = self._kinds.get(resource)
        if kind is None:
            raise AllocationError(
                f"{resource!r} is counted, but it is no memory: nothing can be allocated of it; "
                f"memory of this pool: {', '.join(sorted(self._kinds)) or 'none'}"
            )
        functions = [] if kind == "host" else _cuda_functions(resource)
        device = int(kind.partition(":")[2] or 0)
        self._use_memory((self._places[resource], kind.partition(":")[0], self.capacity[resource], device, functions))

    def _refusal(self, what: str, subject: Any, detail: Any) -> Exception:
        """Returns the error for what the compiled half found."""
        return _REFUSALS[what](self, subject, detail)

    def _too_large(self, amounts: Mapping[str, int]) -> RequirementTooLarge:
        capacity = self.capacity
        faults = [
            f"{name}: {amount} asked for, the pool has {capacity[name]}"
            for name, amount in amounts.items()
            if amount > capacity[name]
        ]
        return RequirementTooLarge("this can never be granted; ask for less, or resize the pool:", faults)


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _amounts(given: object, what: str) -> tuple[dict[str, int], list[str]]:
    """Returns the amounts that are ones, and a fault for each that is not."""
    amounts: dict[str, int] = {}
    faults: list[str] = []
    if not isinstance(given, Mapping):
        return amounts, [f"a mapping of resource to {what} was expected, not {given!r}"]
    for name, amount in given.items():
        try:
            number = operator.index(amount)
        except TypeError:
            number = -1
        if not isinstance(name, str) or not name:
            faults.append(f"a resource is called {name!r}; it must be a text, and not empty")
        elif number < 0 or isinstance(amount, bool):
            faults.append(f"the {what} of {name!r} is {amount!r}; it must be a whole number, 0 or more")
        else:
            amounts[name] = number
    return amounts, faults


def _memory_kinds(names: Mapping[str, int]) -> dict[str, str]:
    found = {name: _MEMORY.fullmatch(name) for name in names}
    return {name: str(next(filter(None, match.groups()))) for name, match in found.items() if match}


def _cuda_functions(resource: str) -> list[int]:
    """Returns the addresses of the functions that pinned and device memory come from.

    Raises:
        CoreUnavailable: There is no CUDA library, or it is too old.
    """
    try:
        library = cuda.library()
        functions = [getattr(library, f"minerua_cuda_{name}") for name in _CUDA_FUNCTIONS]
    except (CoreUnavailable, AttributeError) as error:
        raise CoreUnavailable(f"blocks of {resource!r} need the CUDA half of the core: {error}") from error
    return [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]


def _taken_by_task(lease: Lease) -> Lease:
    """Notes that the task that runs here holds a lease."""
    lease._mark_task()
    mine = (held for held in _TASK_LEASES.get() if (other := held()) is not None and not other.released)
    _TASK_LEASES.set((*mine, weakref.ref(lease)))
    return lease


def _settlers(answer: asyncio.Future[Lease]) -> tuple[Callable[[Lease], None], Callable[[Exception], None]]:
    """Returns what brings a grant, or a refusal, from any thread to the loop of a future.

    A future that is done by then was cancelled: the lease goes back. So it does where the loop is closed.
    """
    loop, its_thread = answer.get_loop(), threading.get_ident()

    def settle(lease: Lease) -> None:
        if answer.done():
            lease.release()
        else:
            answer.set_result(lease)

    def on_grant(lease: Lease) -> None:
        if threading.get_ident() == its_thread:
            settle(lease)
            return
        try:
            loop.call_soon_threadsafe(settle, lease)
        except RuntimeError:  # the loop is closed
            lease.release()

    def on_refuse(error: Exception) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(lambda: None if answer.done() else answer.set_exception(error))

    return on_grant, on_refuse


# ── what is said when something is refused ───────────────────────────────────────────────────────────────────────────


def _timed_out(pool: ResourcePool, wanted: Requirements, seconds: float) -> PoolTimeout:
    rows = pool.statistics()
    faults = [
        f"{name}: {amount} asked for, {rows.resources[name].in_use} of {rows.resources[name].capacity} in use"
        for name, amount in wanted.amounts.items()
    ]
    holders = ", ".join(f"{count} × {name or 'unnamed'}" for name, count in sorted(rows.live.items())) or "nobody"
    return PoolTimeout(
        f"not granted within {seconds:g} s; {rows.waiting} others wait, leases are held by {holders}:", faults
    )


def _nested(pool: ResourcePool, subject: object, detail: object) -> NestedAcquire:
    return NestedAcquire(
        "this thread or task holds a lease of this pool already, and two such could wait for each other for ever; "
        "release it first, take everything at once, use lease.try_extend, or say lease.hand_over() if it is another's"
    )


def _allocation(pool: ResourcePool, lease: Lease, detail: tuple[str, int, int]) -> AllocationError:
    resource, wanted, left = detail
    return AllocationError(
        f"{wanted} bytes of {resource!r} were asked for, and the lease {lease.name!r} has {left} left of the "
        f"{lease.requirements.get(resource, 0)} that it declared; declare more, or free blocks"
    )


_REFUSALS: dict[str, Callable[[ResourcePool, Any, Any], Exception]] = {
    "too_large": lambda pool, wanted, _: pool._too_large(wanted.amounts),
    "extend_too_large": lambda pool, lease, more: pool._too_large(
        {name: n + lease.requirements.get(name, 0) for name, n in more.amounts.items()}
    ),
    "timed_out": _timed_out,
    "cancelled": lambda pool, wanted, _: LeaseCancelled(f"the request for {wanted.amounts} was withdrawn by its token"),
    "closed": lambda pool, *_: PoolClosed("the pool was closed and grants nothing any more; make a new one"),
    "nested": _nested,
    "released": lambda pool, lease, _: PoolError(f"the lease {lease.name!r} was released; acquire another one"),
    "freed": lambda pool, block, _: PoolError(
        "this block was freed, or its lease released: it has no address any more"
    ),
    "forked": lambda pool, *_: PoolError(
        "this pool was made before a fork, and this is the child: its leases are the parent's; make a pool of its own"
    ),
    "foreign": lambda pool, wanted, _: KernelError(f"{wanted} were prepared by another pool; prepare them by this one"),
    "bad_timeout": lambda pool, _, seconds: KernelError(
        f"timeout_seconds is {seconds!r}; it must be 0 or more, or None"
    ),
    "bad_size": lambda pool, lease, size: KernelError(f"{size!r} bytes cannot be allocated; a whole number is needed"),
    "bad_alignment": lambda pool, lease, both: KernelError(
        f"the alignment is {both[0]}; it must be a power of two, at most {both[1]}"
    ),
    "unknown": lambda pool, lease, name: KernelError(unknown("resource", str(name), list(pool._places))),
    "allocation": _allocation,
    "upstream": lambda pool, lease, text: AllocationError(
        f"the lease has the right to more, but the system says no: {text}"
    ),
}
