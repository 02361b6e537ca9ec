"""A loaded model, a load under way, a request for a model's bytes, and how a model leaves."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from minerua.errors import PoolClosed
from minerua.values import Skill


@final
@dataclass(frozen=True)
class ResidencyStatistics:
    """What models did so far.

    Args:
        hits: Uses that found the model loaded.
        loads: How often a model was loaded, prefetched ones included.
        prefetches: How many of the loads were ahead of the first use.
        evictions: How many models left to make room.
        failures: How many loads raised.
        models: How many are loaded.
        pinned: How many of them are in use.
        bytes: What they take, counted or estimated.
        peak_bytes: The most they took.
        wait_seconds: How long uses waited for loads and for room, all together.
    """

    hits: int = 0
    loads: int = 0
    prefetches: int = 0
    evictions: int = 0
    failures: int = 0
    models: int = 0
    pinned: int = 0
    bytes: int = 0
    peak_bytes: int = 0
    wait_seconds: float = 0.0


class Load:
    """A load under way, and the error that it ended with, if whoever waits for it shall raise that."""

    __slots__ = ("error", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        self.error: BaseException | None = None


class Model:
    """A loaded model.

    Attributes:
        pins: How many uses hold it.
        plan: Number of the plan that it was prefetched for and that has not used it yet; 0 for none.
    """

    __slots__ = ("call", "leases", "nbytes", "pins", "plan", "skill")

    def __init__(self, skill: Skill, call: Callable[..., Any], nbytes: int, leases: list[Any]) -> None:
        self.skill, self.call, self.nbytes, self.leases = skill, call, nbytes, leases
        self.pins = 0
        self.plan = 0


class PoolRequest:
    """A request for the bytes of a model that stands in a pool's queue. All is done under the condition's lock.

    Args:
        pool: A `ResourcePool`.
        requirements: Resource → bytes.
        changed: Is notified when there is an answer.
    """

    def __init__(self, pool: Any, requirements: dict[str, int], changed: threading.Condition) -> None:
        self._changed = changed
        self._lease: Any = None
        self._error: Exception | None = None
        self._is_withdrawn = False
        self._pending = pool.request(requirements, self._grant, name="models", on_refuse=self._refuse)

    def _grant(self, lease: Any) -> None:
        with self._changed:
            self._lease = None if self._is_withdrawn else lease
            self._changed.notify_all()
        if self._is_withdrawn:  # it was granted at the moment in which it was given up
            lease.release()

    def _refuse(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def answer(self) -> bool:
        """Returns whether it was granted; raises what it was refused with."""
        if self._error is not None:
            raise self._error
        return self._lease is not None

    def taken(self) -> list[Any]:
        """Returns the lease that was granted, which is the caller's from now on."""
        lease, self._lease = self._lease, None
        return [lease]

    def withdraw(self) -> None:
        """Gives back what was granted and not taken, or leaves the queue."""
        self._pending.cancel()
        with self._changed:
            self._is_withdrawn = True
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()


class Direct:
    """A skill that needs no loading, in the place of a use of a model."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __enter__(self) -> Callable[..., Any]:
        return self._call

    def __exit__(self, *_: object) -> None:
        pass


def evicted(**_: Any) -> Any:
    """Stands where an evicted model was.

    Raises:
        PoolClosed: Always.
    """
    raise PoolClosed("this model was evicted: call a model only inside the `with` that yielded it")


def close_model(skill: Skill, call: Any) -> None:
    """Calls a model's own `close()`, if it has one; what that raises is a warning: the model leaves all the same.

    Args:
        skill: Whose model it is.
        call: What its `load` returned.
    """
    close = getattr(call, "close", None)
    if not callable(close):
        return
    try:
        close()
    except Exception as error:  # noqa: BLE001 - whoever needs the room is not to blame
        warnings.warn(
            f"the model of the skill {skill.name!r} could not be closed: {type(error).__name__}: {error}; "
            "its memory may stay taken",
            RuntimeWarning,
            stacklevel=2,
        )
