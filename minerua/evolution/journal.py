"""The journal: one line of JSON per event, on disk before its effect, read again to resume and to report.

A line is complete or it does not count: `kill -9` can tear only the last one, and a torn line is cut off when the run
    goes
on. No line holds a clock time, so two runs with the same seed write the same bytes. `README.md` beside this file lists
the events and their fields.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from minerua.errors import JournalError, StorageError
from minerua.values import Failure, Scores, TaskScore

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: no advisory locks there; two runs in one folder are then the user's care
    fcntl = None

FORMAT = 1
"""The journal's format, written into its first line."""

SYNC_SECONDS = 1.0
"""How long a line may wait for the disk. The system has it at once, so that a killed process loses nothing; a power cut
may cost the last second, which the run then repeats."""

Event = dict[str, Any]


class Journal:
    """An open journal that appends events.

    A file is opened by one process at a time: a lock keeps a second run out of the folder. Use as a context manager.

    Args:
        path: The file; created if `fresh`, else continued.
        fresh: Whether the run must be new; an existing file is then an error. Otherwise a missing file is begun, so
            that a run killed before its first line resumes like any other.

    Attributes:
        events: The complete events that the file held when it was opened.

    Raises:
        JournalError: If the file exists and `fresh`, is in use, or is damaged before its last line.
        StorageError: If it cannot be opened for writing.
    """

    def __init__(self, path: str | Path, *, fresh: bool) -> None:
        self.path: Final = Path(path)
        if fresh and self.path.exists():
            raise JournalError(f"{self.path} exists already: continue that run with --resume, or choose another folder")
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise _storage_error(self.path, error) from error
        try:
            self._lock()
            self.events, self._size = _scan(self.path)
            os.ftruncate(self._file, self._size)  # cuts off a torn last line
        except BaseException:  # whatever stops it, Ctrl-C included, the file is not left open and locked
            os.close(self._file)
            raise
        self._synced = time.monotonic()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(
                f"{self.path} is in use by another process: wait for that run to end, or end it"
            ) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, event: Mapping[str, Any]) -> None:
        """Appends one event; when this returns, the operating system has the whole line.

        Args:
            event: A mapping with the key `"event"`; everything in it must be JSON.

        Raises:
            StorageError: If the line cannot be written. What was written of it is cut off, so that the run can be
                resumed.
        """
        line = json.dumps(event, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):  # a torn line is cut off by the next resume in any case
                os.ftruncate(self._file, self._size)
            raise _storage_error(self.path, error) from error
        self._size += len(line)

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Brings every line to the disk and releases the file; harmless when repeated.

        Raises:
            StorageError: If the disk refuses.
        """
        if self._file < 0:
            return
        file, self._file = self._file, -1
        try:
            os.fsync(file)
        except OSError as error:
            raise _storage_error(self.path, error) from error
        finally:
            os.close(file)


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}: {error.strerror or error}; "
        "free some space or mend the folder's rights, then go on with --resume"
    )


def read_journal(path: str | Path) -> list[Event]:
    """Returns the complete events of a journal, oldest first; a torn last line is left out.

    Raises:
        JournalError: If the file cannot be read, is damaged before its last line, or has a format that this version
            does not know.
    """
    return _scan(Path(path))[0]


def _scan(path: Path) -> tuple[list[Event], int]:
    """Returns the complete events and the length in bytes up to which the file holds them."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror or error}") from error
    size = content.rfind(b"\n") + 1
    events = [_parse(path, number, line) for number, line in enumerate(content[:size].splitlines(), 1)]
    if events and (events[0].get("event") != "run" or events[0].get("format") != FORMAT):
        found = f"event {events[0].get('event')!r}, format {events[0].get('format')!r}"
        raise JournalError(
            f"{path} is not a journal of format {FORMAT}: its first line holds {found}; "
            "read it with the version of minerua that wrote it"
        )
    return events, size


def _parse(path: Path, number: int, line: bytes) -> Event:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise JournalError(f"{path}, line {number} is damaged: {error}; restore the file from a copy") from error
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise JournalError(
            f"{path}, line {number} is damaged: an event with a name was expected; restore the file from a copy"
        )
    return event


# ── outcomes as JSON ─────────────────────────────────────────────────────────────────────────────────────────────────


def encode_outcome(outcome: Scores | Failure) -> Event:
    """Returns an outcome as a part of an event: `{"scores": …}` or `{"failed": reason}`.

    Outcomes that are all 0 or 1 are stored as bits, eight items per byte, so that a child of a thousand items costs 170
    characters; others as numbers.

    Example:
        >>> encode_outcome(Scores({"a": TaskScore((1.0, 0.0, 1.0))}))
        {'scores': {'a': {'n': 3, 'mean': 0.6666666666666666, 'bits': 'oA=='}}}
    """
    if isinstance(outcome, Failure):
        return {"failed": outcome.reason}
    return {"scores": {task: _encode_task(score) for task, score in outcome.tasks.items()}}


def _encode_task(score: TaskScore) -> Event:
    head: Event = {"n": score.count, "mean": score.mean}
    outcomes = np.asarray(score.outcomes)
    solved = outcomes == 1.0
    if (solved | (outcomes == 0.0)).all():
        return head | {"bits": base64.b64encode(np.packbits(solved).tobytes()).decode()}
    return head | {"values": list(score.outcomes)}


def decode_outcome(event: Mapping[str, Any]) -> Scores | Failure:
    """Returns the outcome that `encode_outcome` put into an event."""
    if "failed" in event:
        return Failure(event["failed"])
    return Scores({task: TaskScore(_decode_task(score)) for task, score in event["scores"].items()})


def _decode_task(score: Mapping[str, Any]) -> tuple[float, ...]:
    if "values" in score:
        return tuple(score["values"])
    packed = np.frombuffer(base64.b64decode(score["bits"]), dtype=np.uint8)
    return tuple(np.unpackbits(packed, count=score["n"]).astype(float).tolist())


def select_events(events: Sequence[Event], name: str) -> Iterator[Event]:
    """Yields the events with this name, in order."""
    return (event for event in events if event["event"] == name)
