"""An index of a file's rows: arrays in a folder, made once, mapped by every process, and tied to the file's time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np

from minerua.errors import ConfigError, StorageError
from minerua.learning.rows import BadRow, BadRows
from minerua.learning.sources.source import Scanned
from minerua.weights import partial_folder

FORMAT = 1
COLUMNS: Mapping[str, np.dtype] = {
    "offsets": np.dtype("<i8"),
    "lengths": np.dtype("<i4"),
    "hashes": np.dtype("<u8"),
    "codes": np.dtype("<i4"),
}
"""What is known of each usable row: first byte, bytes, key and label; 24 bytes in all."""

_SUMMARY = "summary.json"
_PENDING = 1 << 16
_BYTES_PER_ROW = 24


@final
class Stamp:
    """A file as it was: its size and when it was last written.

    Args:
        path: The file.
        name: What it is called in messages.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path.resolve(), name
        self._found = self._now()

    def __str__(self) -> str:
        return f"{self.path} {self._found}"

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._found[0]

    def check(self) -> None:
        """Refuses to go on with another file than the one that was looked through.

        Raises:
            ConfigError: If its size or its time of writing has changed, or it is gone.
        """
        if self._now() != self._found:
            raise ConfigError(f"{self.name} was changed while it was in use; start again to look through it anew")

    def _now(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise ConfigError(f"cannot read {self.name}: {error.strerror or error}") from error
        if not stat.S_ISREG(status.st_mode):  # a pipe can be read once, and in one order
            raise ConfigError(f"cannot read {self.name}: it is a folder, a pipe or a device, not a file")
        return status.st_size, status.st_mtime_ns


@final
class IndexFolder:
    """Where indexes are kept: a folder of the user's, or a temporary one that goes with this object.

    Args:
        folder: The user's folder, made if it is missing; `None` for a temporary one.
    """

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:
            self.path = folder
            return
        self.path = Path(tempfile.mkdtemp(prefix="minerua-index-"))
        weakref.finalize(self, _remove, self.path, os.getpid())

    def __getstate__(self) -> Path:
        return self.path  # a copy in another process must not remove the folder

    def __setstate__(self, path: Path) -> None:
        self.path = path

    def index(self, stamp: Stamp, settings: Mapping[str, Any], scan: Callable[[IndexWriter], None]) -> Index:
        """Returns the index of a file, made by `scan` unless the folder has it.

        Args:
            stamp: The file.
            settings: Everything that the index depends on beside the file's content, as JSON.
            scan: `scan(writer)` looks through the file.

        Raises:
            StorageError: If the folder cannot be written.
        """
        asked = json.dumps([FORMAT, str(stamp), settings], sort_keys=True, default=str)
        folder = self.path / f"index-{hashlib.blake2b(asked.encode(), digest_size=12).hexdigest()}"
        if not (folder / _SUMMARY).is_file():
            self._make(folder, scan)
            stamp.check()  # what was indexed is what is read later
        return Index(folder, self)

    def _make(self, folder: Path, scan: Callable[[IndexWriter], None]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with partial_folder(folder, needed_bytes=0, sync=False) as partial, IndexWriter(partial) as writer:
                scan(writer)
        except OSError as error:
            if (folder / _SUMMARY).is_file():  # another process was quicker
                return
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"the index of rows cannot be written to {self.path}: {error.strerror}") from error


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


@final
class IndexWriter:
    """Takes rows as they are found, in memory that does not grow with the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bad = BadRows()
        self.blank_lines = 0
        self.names: tuple[str, ...] = ()
        self._pending: list[tuple[int, int, int, int]] = []
        self._files = [open(folder / name, "wb") for name in COLUMNS]  # noqa: SIM115 - closed in __exit__

    def add(self, offset: int, length: int, hash: int, code: int | None) -> None:
        """Adds a usable row."""
        self._pending.append((offset, length, hash, -1 if code is None else code))
        if len(self._pending) >= _PENDING:
            self._flush()

    def add_several(
        self, offsets: np.ndarray, lengths: np.ndarray, hashes: np.ndarray, codes: np.ndarray | None
    ) -> None:
        """Adds usable rows: arrays of shape (n,), what `add` takes of each."""
        self._flush()
        none = np.full(len(offsets), -1)
        for file, column, dtype in zip(
            self._files, (offsets, lengths, hashes, none if codes is None else codes), COLUMNS.values(), strict=True
        ):
            file.write(column.astype(dtype).data)

    def _flush(self) -> None:
        columns = list(zip(*self._pending, strict=True)) or [()] * len(COLUMNS)
        for file, column, dtype in zip(self._files, columns, COLUMNS.values(), strict=True):
            file.write(np.array(column, dtype).data)
        self._pending.clear()

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            for file in self._files:
                file.close()
        if kind is None:
            bad = {"reasons": self.bad.reasons, "listed": [[r.place, r.reason, r.detail] for r in self.bad.listed]}
            summary = {"names": self.names, "blank_lines": self.blank_lines, **bad}
            (self.folder / _SUMMARY).write_text(json.dumps(summary), encoding="utf-8")


@final
class Index:
    """What is known of a file's usable rows; opened where it is used, also after a fork or a pickle.

    Args:
        folder: Where it lies.
        keeper: What keeps the folder alive.
    """

    def __init__(self, folder: Path, keeper: IndexFolder) -> None:
        self.folder, self._keeper = folder, keeper
        self._columns: dict[str, np.ndarray] = {}

    def __getstate__(self) -> tuple[Path, IndexFolder]:
        return self.folder, self._keeper

    def __setstate__(self, state: tuple[Path, IndexFolder]) -> None:
        self.folder, self._keeper = state
        self._columns = {}

    def column(self, name: str) -> np.ndarray:
        """Returns one of `COLUMNS`, mapped, read-only."""
        if name not in self._columns:
            path, dtype = self.folder / name, COLUMNS[name]
            empty = path.stat().st_size == 0  # which cannot be mapped
            mapped = np.empty(0, dtype) if empty else np.memmap(path, dtype, "r")
            self._columns[name] = mapped.view(np.ndarray)  # scalars of a memmap are five times slower
        return self._columns[name]

    def place(self, i: int) -> tuple[int, int]:
        """Returns the first byte of usable row i, and how many it has."""
        return int(self.column("offsets")[i]), int(self.column("lengths")[i])

    def scanned(self, bad: BadRows) -> Scanned:
        """Returns what was found, and tells `bad` of the bad rows."""
        summary = json.loads((self.folder / _SUMMARY).read_text(encoding="utf-8"))
        bad.merge(summary["reasons"], [BadRow(*row) for row in summary["listed"]])
        codes = self.column("codes")
        is_class = len(codes) > 0 and codes[0] >= 0
        names, blank_lines = tuple(summary["names"]), int(summary["blank_lines"])
        return Scanned(self.column("hashes"), codes if is_class else codes[:0], names, blank_lines)
