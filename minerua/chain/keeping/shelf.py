"""Results in a folder: one file each, shared by processes, bounded in bytes."""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from minerua.chain.keeping.content import Opaque, pack, unpack

try:
    import fcntl
except ImportError:  # Windows: the folder is then for one process at a time
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".result"
_PARTIAL = ".partial"
_ABANDONED_SECONDS = 600.0
"""A partial file this old belongs to nobody: a result is written in one go."""

_ROOM = 0.9
"""How full the folder is left once it was too full, so that not every write has to look through it."""

_COUNT = struct.Struct("<Q")


@final
@dataclass(frozen=True)
class ShelfStatistics:
    """What happened on disk, seen from this process.

    Args:
        hits: Look-ups that were answered from a file.
        misses: Those that were not.
        damaged: Files that were not what they should be, and were removed; they are misses.
        bytes: What all files took when this process last wrote one; other processes' are included.
        evictions: How many files this process removed to make room.
        refused: How many results were not written: too large, or of a kind that has no form in a file.
        fault: Why nothing is written any more; empty while all is well.
    """

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    bytes: int = 0
    evictions: int = 0
    refused: int = 0
    fault: str = ""


@final
class Shelf:
    """A folder with results, least recently used ones leave first. Safe for threads and processes.

    A file is `<32 hexadecimal digits>.result` (`content.pack` says what is in it). It is written under another name and
    renamed, and it carries a digest of its content: a file that was cut short or altered is a miss, and is removed.
    Nothing is forced onto the disk: after a power cut a lost file is a miss too. Its time of change says when it
    was last used. The file `.bytes` holds how much all of them take; whoever locks it may change that.

    Args:
        folder: Made when needed.
        most_bytes: How much all files may take together.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._lock = threading.Lock()  # of the counts
        self._writing = threading.Lock()  # locks of files do not tell threads apart
        self._is_counted = False
        self._bytes = self._hits = self._misses = self._damaged = self._evictions = self._refused = 0
        self._fault = ""

    def statistics(self) -> ShelfStatistics:
        """Returns counts of one moment."""
        with self._lock:
            return ShelfStatistics(
                self._hits, self._misses, self._damaged, self._bytes, self._evictions, self._refused, self._fault
            )

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, key: bytes) -> dict[str, Any] | None:
        """Returns the outputs that are stored under a key, arrays read-only; `None` if there are none."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:  # not there, or not readable: computed again, either way
            content = None
        outputs = None if content is None else unpack(key, content)
        is_damaged = content is not None and outputs is None
        if is_damaged:
            self._remove_damaged(path)
        elif outputs is not None:
            with contextlib.suppress(OSError):  # of a folder that is read-only the order is not kept
                os.utime(path)
        with self._lock:
            self._hits += outputs is not None
            self._misses += outputs is None
            self._damaged += is_damaged
        return outputs

    def _remove_damaged(self, path: Path) -> None:
        self._is_counted = False
        with contextlib.suppress(OSError):  # somebody else was faster, or the folder is read-only
            path.unlink()

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}{_SUFFIX}"

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, key: bytes, outputs: Mapping[str, Any]) -> None:
        """Stores outputs under a key; what is wrong with the disk is a warning, once, and nothing is written from then.

        Args:
            key: 16 bytes.
            outputs: Output name → value; with a value that has no form in a file, nothing is written.
        """
        if self._fault:
            return
        try:
            parts = pack(key, outputs)
            size = sum(map(len, parts))
        except Opaque:
            size = -1
        if not 0 <= size <= self._most_bytes:
            with self._lock:
                self._refused += 1
            return
        try:
            self._store(self._path(key), parts, size)
        except OSError as error:
            self._give_up(error)

    def _store(self, path: Path, parts: list[bytes | memoryview], size: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}"
        try:
            with partial.open("xb", buffering=0) as file:
                for part in parts:
                    _write_all(file.fileno(), part)
            self._place(partial, path, size)
        except BaseException:  # an interrupt too must leave no partial file; raised again
            with contextlib.suppress(OSError):  # what went wrong first is what counts
                partial.unlink()
            raise

    def _place(self, partial: Path, path: Path, size: int) -> None:
        """Makes room for a finished file and gives it its name."""
        with self._writing, self._counted() as count:
            before = _size(path)
            if count.value + size - before > self._most_bytes:
                count.value = self._make_room(size, path)
                before = _size(path)
            os.replace(partial, path)
            count.value += size - before
            with self._lock:
                self._bytes = count.value

    @contextlib.contextmanager
    def _counted(self) -> Iterator[_Count]:
        """Locks the folder; yields how much its files take, to be changed."""
        file = os.open(self._folder / ".bytes", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # goes with the file
            content = os.read(file, _COUNT.size)
            known = self._is_counted and len(content) == _COUNT.size
            count = _Count(_COUNT.unpack(content)[0] if known else sum(size for _, size, _ in self._files()))
            self._is_counted = True
            yield count
            os.pwrite(file, _COUNT.pack(max(0, count.value)), 0)
        finally:
            os.close(file)

    def _make_room(self, size: int, keep: Path) -> int:
        """Removes the files that were not used for longest until one of this size fits; returns what the rest take."""
        files = sorted(self._files())
        left = sum(size for _, size, _ in files)
        goal = max(0, min(int(self._most_bytes * _ROOM), self._most_bytes - size))
        for _, taken, name in files:
            if left <= goal:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._folder / name)
            left -= taken
            with self._lock:
                self._evictions += 1
        return left

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """Yields of each result when it was last used, its size and its name; removes what killed writers left."""
        now = time.time()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(_SUFFIX):
                        yield status.st_mtime_ns, status.st_size, entry.name
                    elif entry.name.endswith(_PARTIAL) and now - status.st_mtime > _ABANDONED_SECONDS:
                        os.unlink(entry.path)

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            if self._fault:
                return
            self._fault = f"{self._folder}: results cannot be written: {error.strerror or error}"
        warnings.warn(
            f"{self._fault}; from now on they are kept in memory only. Free some space, mend the rights or choose "
            "another folder",
            RuntimeWarning,
            stacklevel=5,
        )


class _Count:
    """How many bytes the files take; changed while the folder is locked."""

    def __init__(self, value: int) -> None:
        self.value = value


def _write_all(file: int, content: bytes | memoryview) -> None:
    with memoryview(content) as rest:
        written = 0
        while written < len(rest):
            written += os.write(file, rest[written:])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
