"""How many runs there may be at a time: the others wait, in the order in which they came."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, final

from minerua.chain.running.crew import tell_loop
from minerua.errors import RunCancelled

Wake = Callable[[], object]
"""Tells whoever waits that it is their turn; `False` if they are gone."""

LOOK_SECONDS: Final = 0.005
"""How often a run that waits looks at the token that may cancel it."""


@final
class Admission:
    """A fair count of runs, for threads and coroutines alike.

    Args:
        most: How many runs there may be at a time.
        chain: The chain's name, for messages.
    """

    def __init__(self, most: int, chain: str) -> None:
        self._most, self._chain = most, chain
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[Wake] = deque()
        self._admitted: set[Wake] = set()
        self._inside = 0
        self._is_closed = False

    @property
    def inside(self) -> int:
        """How many runs there are now."""
        return self._inside

    def _enter(self, wake: Wake) -> bool:
        """Enters if there is room and nobody waits; if not, `wake` is called once when it is the caller's turn."""
        with self._lock:
            self._refuse_if_closed()
            if self._inside < self._most and not self._waiting:
                self._inside += 1
                return True
            self._waiting.append(wake)
            return False

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise RunCancelled(f"chain {self._chain!r} is not run any more: its executor was closed; make a new one")

    def try_enter(self) -> bool:
        """Enters if there is room and nobody waits; by far the most frequent case."""
        with self._lock:
            is_free = self._inside < self._most and not self._waiting and not self._is_closed
            self._inside += is_free
            return is_free

    def enter(self, timeout_seconds: float | None = None, cancelled: Callable[[], bool] | None = None) -> bool:
        """Waits for room; returns whether there was some in time.

        Args:
            timeout_seconds: How long to wait; `None` for ever.
            cancelled: Asked now and then whether to give up.

        Raises:
            RunCancelled: If the executor was closed, or `cancelled` said so.
        """
        if self.try_enter():
            return True
        gate = threading.Event()
        wake = gate.set
        if self._enter(wake):
            return True
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        try:
            while not gate.is_set():
                if cancelled is not None and cancelled():
                    raise self._cancelled()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    self._withdraw(wake)
                    return False
                glance = LOOK_SECONDS if cancelled is not None else left
                gate.wait(glance if left is None else min(left, glance or left))
        except BaseException:  # an interrupt or a cancelled task must leave the queue; raised again
            self._withdraw(wake)
            raise
        return self._confirm(wake)

    def _cancelled(self) -> RunCancelled:
        return RunCancelled(f"a run of chain {self._chain!r} was cancelled while it waited for its turn")

    async def enter_async(
        self, timeout_seconds: float | None = None, cancelled: Callable[[], bool] | None = None
    ) -> bool:
        """Lets the loop go on until there is room; arguments, result and errors are those of `enter`."""
        loop = asyncio.get_running_loop()
        gate = asyncio.Event()

        def wake() -> bool:
            return tell_loop(loop, gate.set)

        if self._enter(wake):
            return True
        deadline = None if timeout_seconds is None else loop.time() + timeout_seconds
        try:
            while not gate.is_set():
                if cancelled is not None and cancelled():
                    raise self._cancelled()
                left = None if deadline is None else deadline - loop.time()
                if left is not None and left <= 0:
                    self._withdraw(wake)
                    return False
                glance = LOOK_SECONDS if cancelled is not None else left
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(gate.wait(), glance if left is None else min(left, glance or left))
        except BaseException:  # an interrupt or a cancelled task must leave the queue; raised again
            self._withdraw(wake)
            raise
        return self._confirm(wake)

    def _confirm(self, wake: Wake) -> bool:
        with self._lock:
            if wake not in self._admitted:
                self._refuse_if_closed()
            self._admitted.discard(wake)
        return True

    def _withdraw(self, wake: Wake) -> None:
        """Waits no longer; gives the room back if it came meanwhile."""
        with self._lock:
            if wake in self._waiting:
                self._waiting.remove(wake)
                return
            was_admitted = wake in self._admitted
            self._admitted.discard(wake)
        if was_admitted:
            self.leave()

    def leave(self) -> None:
        """Makes room for the next run."""
        with self._lock:
            self._inside -= 1
            heir = None
            if self._waiting and self._inside < self._most:
                heir = self._waiting.popleft()
                self._admitted.add(heir)
                self._inside += 1
            if self._is_closed and not self._inside:
                self._changed.notify_all()
        if heir is not None and heir() is False:
            self._withdraw(heir)

    def close(self) -> None:
        """Admits nobody any more; those that wait are told."""
        with self._lock:
            self._is_closed = True
            waiting, self._waiting = self._waiting, deque()
        for wake in waiting:
            wake()

    def wait_until_empty(self, seconds: float | None) -> bool:
        """Waits until no run is inside; returns whether that came about in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._inside, seconds)
