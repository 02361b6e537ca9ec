"""Where partial results wait for their reader: when it is full, whoever brings more has to wait."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, final

from minerua.chain.running.crew import tell_loop

EMPTY: Final = object()
"""Nothing is there yet."""

END: Final = object()
"""Nothing will come any more."""

Wake = Callable[[], object]


@final
class Channel:
    """A queue of bounded length between threads and event loops; one reader.

    Args:
        room: How many items may wait.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._items: deque[Any] = deque()
        self._writers: deque[Wake] = deque()
        self._reader: Wake | None = None
        self._is_ended = False

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def offer(self, item: Any, when_room: Wake) -> bool:
        """Puts an item in if there is room; if not, `when_room` is called once when it is worth another try.

        After the end, items are dropped.
        """
        with self._lock:
            if self._is_ended:
                return True
            if len(self._items) >= self._room:
                self._writers.append(when_room)
                return False
            self._items.append(item)
            reader, self._reader = self._reader, None
        if reader is not None:
            reader()
        return True

    def put(self, item: Any) -> None:
        """Puts an item in; waits for room."""
        gate = threading.Lock()
        gate.acquire()
        while not self.offer(item, gate.release):
            gate.acquire()

    async def put_async(self, item: Any) -> None:
        """Puts an item in; lets the loop go on while there is no room."""
        loop = asyncio.get_running_loop()
        while True:
            room = asyncio.Event()
            if self.offer(item, lambda room=room: tell_loop(loop, room.set)):  # type: ignore[misc]
                return
            await room.wait()

    def end(self, *, drop: bool = False) -> None:
        """Says that nothing comes any more; whoever waits for room goes on.

        Args:
            drop: Whether what still waits is for nobody.
        """
        with self._lock:
            self._is_ended = True
            if drop:
                self._items.clear()
            writers, self._writers = self._writers, deque()
            reader, self._reader = self._reader, None
        for wake in (*writers, *(() if reader is None else (reader,))):
            wake()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def poll(self, when_there: Wake) -> Any:
        """Returns an item or `END`; or `EMPTY`, and `when_there` is called once when it is worth another try."""
        with self._lock:
            if self._items:
                item = self._items.popleft()
                writer = self._writers.popleft() if self._writers else None
            elif self._is_ended:
                return END
            else:
                self._reader = when_there
                return EMPTY
        if writer is not None:
            writer()
        return item

    def get(self) -> Any:
        """Returns the next item, or `END`; waits for it."""
        gate = threading.Lock()
        gate.acquire()
        while (item := self.poll(gate.release)) is EMPTY:
            gate.acquire()
        return item

    async def get_async(self) -> Any:
        """Returns the next item, or `END`; lets the loop go on meanwhile."""
        loop = asyncio.get_running_loop()
        while True:
            there = asyncio.Event()
            item = self.poll(lambda there=there: tell_loop(loop, there.set))  # type: ignore[misc]
            if item is not EMPTY:
                return item
            await there.wait()
