"""Results of pure steps, kept by the content of what went into them: in memory, and on disk for the next process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from minerua.chain.keeping.content import Frozen, Opaque, digest
from minerua.chain.keeping.shelf import Shelf, ShelfStatistics
from minerua.values import Skill

Tell = Callable[[Mapping[str, Any] | None, BaseException | None], Any]
"""Is called once with the outputs, or with the error of the computation, or with neither: then begin again."""


@final
@dataclass(frozen=True)
class MemoryStatistics:
    """What happened in memory.

    Args:
        hits: Look-ups that were answered from memory.
        misses: Those that were not; some of them are hits on disk.
        entries: How many results are kept.
        bytes: What they take.
        evictions: How many left to make room.
        refused: How many were larger than all the room there is, or of a kind that cannot be kept.
    """

    hits: int = 0
    misses: int = 0
    entries: int = 0
    bytes: int = 0
    evictions: int = 0
    refused: int = 0


@final
@dataclass(frozen=True)
class CacheStatistics:
    """What a cache did so far, all of one moment.

    Args:
        memory: What happened in memory.
        disk: What happened on disk; `None` without a folder.
        joined: Computations that were spared because the same one was under way.
    """

    memory: MemoryStatistics
    disk: ShelfStatistics | None
    joined: int

    @property
    def hits(self) -> int:
        """Look-ups that were answered, from wherever."""
        return self.memory.hits + (self.disk.hits if self.disk else 0)

    @property
    def misses(self) -> int:
        """Look-ups that were answered from nowhere."""
        return self.disk.misses if self.disk else self.memory.misses


@final
class Flight:
    """A computation that is under way, and who waits for it; made by `ContentCache.begin`.

    Exactly one of `land` and `fail` must be called, from any thread; as a context manager it fails by itself if
    neither was. Calls after the first do nothing.
    """

    __slots__ = ("_cache", "_is_over", "_key", "_waiting")

    def __init__(self, cache: ContentCache, key: bytes) -> None:
        self._cache, self._key = cache, key
        self._waiting: list[Tell] = []
        self._is_over = False

    def land(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keeps the outputs and hands them to all who wait.

        Args:
            outputs: What was computed. Arrays that own their memory become read-only where they are.

        Returns:
            What to go on with: equal to the outputs. Where they cannot be kept, all get the very same objects.
        """
        kept = self._cache.put(self._key, outputs)
        for tell in self._leave():
            tell(kept, None)
        return kept

    def fail(self, error: BaseException | None = None) -> None:
        """Tells all who wait that nothing came of it.

        Args:
            error: What the computation raised: it is theirs too. `None` if it was withdrawn: they begin again, and one
                of them computes.
        """
        for tell in self._leave():
            tell(None, error)

    def _leave(self) -> list[Tell]:
        with self._cache._lock:
            if self._is_over:
                return []
            self._is_over = True
            del self._cache._flights[self._key]
            return self._waiting

    def __enter__(self) -> Flight:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.fail(error if isinstance(error, Exception) else None)


@final
class ContentCache:
    """Outputs by a digest of skill, version and inputs; least recently used ones leave first. Safe for threads.

    In memory, arrays are shared and read-only; a hit costs the digest, some 30 µs for 600 kB. With a folder every
    result is also written to a file, and found again by other processes and later runs. What is wrong with the disk
    is a warning, once: nothing is written from then on, and no run fails.

    Args:
        memory_bytes: How much is kept in memory; 0 for nothing.
        folder: Where the files lie; made when needed. Several processes may share one.
        disk_bytes: How much is kept there; 0 for nothing.

    Example:
        >>> cache = ContentCache(1 << 20)
        >>> key = cache.key(Skill("double", pure=True), {"x": 2})
        >>> cache.compute(key, lambda: {"y": 4})
        {'y': 4}
        >>> cache.compute(key, lambda: {"y": 5})
        {'y': 4}
    """

    def __init__(self, memory_bytes: int, *, folder: str | Path | None = None, disk_bytes: int = 0) -> None:
        self.memory_bytes: Final = memory_bytes
        self._shelf = Shelf(Path(folder), disk_bytes) if folder is not None and disk_bytes > 0 else None
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, Frozen] = OrderedDict()
        self._flights: dict[bytes, Flight] = {}
        self._bytes = self._hits = self._misses = self._evictions = self._refused = self._joined = 0

    @staticmethod
    def key(skill: Skill, inputs: Mapping[str, Any]) -> bytes | None:
        """Returns what names this call: 16 bytes made of the skill's name and version and the inputs' content.

        The skill's settings and weights are not looked at: whoever makes a skill from settings puts a digest of them
        into its version.

        Args:
            skill: Whose call it is.
            inputs: Input name → value.

        Returns:
            `None` if an input has no content that could be compared: such a call is not cached.
        """
        return digest(skill.name, skill.version, inputs)

    # ── look up, keep ────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, key: bytes) -> dict[str, Any] | None:
        """Returns the outputs that are kept under a key, or `None`; looks into memory first, then on disk.

        The mapping, lists and dicts are the caller's own; arrays are shared and read-only.
        """
        found = self._remembered(key)
        if found is None and self._shelf is not None:
            found = self._read(key)
        return None if found is None else found.outputs()

    def _remembered(self, key: bytes) -> Frozen | None:
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self._misses += 1
            else:
                self._hits += 1
                self._entries.move_to_end(key)
        return found

    def _read(self, key: bytes) -> Frozen | None:
        outputs = self._shelf.read(key) if self._shelf is not None else None
        if outputs is None:
            return None
        found = Frozen(outputs)
        self._remember(key, found)
        return found

    def put(self, key: bytes, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keeps outputs under a key, in memory and on disk; outputs with an opaque value, or too large, are not kept.

        Args:
            key: From `key`.
            outputs: Output name → value. Arrays that own their memory become read-only where they are; views of memory
                that somebody may still write to are copied.

        Returns:
            What to go on with, as `get` would return it; the outputs themselves if they cannot be kept.
        """
        try:
            frozen = Frozen(outputs)
        except Opaque:
            with self._lock:
                self._refused += 1
            return outputs
        self._remember(key, frozen)
        kept = frozen.outputs()
        if self._shelf is not None:
            self._shelf.write(key, kept)
        return kept

    def _remember(self, key: bytes, frozen: Frozen) -> None:
        left = []  # freed after the lock is
        with self._lock:
            if frozen.nbytes > self.memory_bytes:
                self._refused += 1
                return
            before = self._entries.pop(key, None)
            self._entries[key] = frozen
            self._bytes += frozen.nbytes - (before.nbytes if before else 0)
            while self._bytes > self.memory_bytes:
                left.append(self._entries.popitem(last=False)[1])
                self._bytes -= left[-1].nbytes
                self._evictions += 1

    def clear(self) -> None:
        """Forgets what is in memory; files stay."""
        with self._lock:
            left, self._entries, self._bytes = self._entries, OrderedDict(), 0
        left.clear()

    # ── one computation for all who want the same ────────────────────────────────────────────────────────────────────

    def begin(self, key: bytes, tell: Tell) -> Mapping[str, Any] | Flight | None:
        """Looks up a key, or finds out who computes it. Never waits, except for the disk.

        Args:
            key: From `key`.
            tell: Called once, from another thread perhaps, if this returns `None`: `tell(outputs, None)`, or
                `tell(None, error)` if the computation raised, or `tell(None, None)` if it was withdrawn: begin again.
                It must not raise.

        Returns:
            The outputs, if they are kept; a `Flight`, if the caller is to compute; `None`, if somebody else does.

        Example:
            >>> cache = ContentCache(1 << 20)
            >>> flight = cache.begin(b"k", print)
            >>> cache.begin(b"k", lambda outputs, error: print("told:", outputs))
            >>> flight.land({"y": 4})
            told: {'y': 4}
            {'y': 4}
        """
        with self._lock:
            if (flight := self._flights.get(key)) is not None:
                flight._waiting.append(tell)
                self._joined += 1
                return None
        found = self.get(key)
        if found is not None:
            return found
        return self._take_off(key, tell)

    def _take_off(self, key: bytes, tell: Tell) -> Mapping[str, Any] | Flight | None:
        with self._lock:
            if (flight := self._flights.get(key)) is not None:
                flight._waiting.append(tell)
                self._joined += 1
                return None
            found = self._entries.get(key)  # landed since it was looked for
            if found is None:
                flight = self._flights[key] = Flight(self, key)
                return flight
        return found.outputs()

    def compute(self, key: bytes | None, function: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Returns what is kept under a key, or calls the function and keeps what it returns.

        Of several threads with the same key one calls, the others wait for it. If it raises an `Exception`, all of
        them raise it; if it is interrupted, one of the others calls.

        Args:
            key: From `key`; `None` for a call that is not cached.
            function: Takes nothing, returns the outputs.
        """
        if key is None:
            return function()
        while True:
            answer = _Answer()
            begun = self.begin(key, answer.tell)
            if isinstance(begun, Flight):
                with begun:
                    return begun.land(function())
            outputs = answer.wait() if begun is None else begun
            if outputs is not None:
                return outputs

    def statistics(self) -> CacheStatistics:
        """Returns counts of one moment, memory and disk each."""
        disk = self._shelf.statistics() if self._shelf is not None else None
        with self._lock:
            memory = MemoryStatistics(
                self._hits, self._misses, len(self._entries), self._bytes, self._evictions, self._refused
            )
            return CacheStatistics(memory, disk, self._joined)


class _Answer:
    """Where a thread waits for what another one computes."""

    def __init__(self) -> None:
        self._is_there = threading.Event()
        self._outputs: Mapping[str, Any] | None = None
        self._error: BaseException | None = None

    def tell(self, outputs: Mapping[str, Any] | None, error: BaseException | None) -> None:
        self._outputs, self._error = outputs, error
        self._is_there.set()

    def wait(self) -> Mapping[str, Any] | None:
        self._is_there.wait()
        if self._error is not None:
            raise self._error
        return self._outputs
