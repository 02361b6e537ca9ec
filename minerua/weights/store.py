"""Genomes on disk by name: each once, at its true size, however many archives hold it.

A file is `<digest>.genome`: a header of 128 bytes and the values, in the machine's (little-endian) order.

| bytes | what |
|---|---|
| 0 to 7 | `mnrgnm1` and a zero byte |
| 8 to 15 | the dtype, `float32` or `float64`, filled up with zero bytes |
| 16 to 23 | how many values, an unsigned number |
| 24 to 127 | the subspace's digest, filled up with zero bytes |

The name says what the file must hold: a genome's digest is computed from the subspace's and the values.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from minerua.errors import CheckpointError, StorageError
from minerua.values import Genome
from minerua.weights.atomic import Partial, remove_partials

_HEADER = struct.Struct("<8s8sQ104s")
_MAGIC = b"mnrgnm1\0"
_DTYPES = {np.dtype(name): name.encode() for name in ("float32", "float64")}
_NAME = re.compile(r"([0-9a-f]{32})\.genome")


class GenomeStore:
    """Genomes in a folder, counted by reference: the last release of a genome deletes its file.

    Files outlive the process, counts do not: after a crash the owner says what is alive (`sweep`). One process writes
    to a folder at a time; a run's journal sees to that. Nothing here may be called from two threads at once.

    Args:
        folder: Where the files lie; made with the first genome.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = GenomeStore(folder)
        ...     store.add(Genome("space", np.ones(3, np.float32)))
        ...     (name,) = store
        ...     store.open(name).values.tolist()
        ...     store.release(name)
        ...     len(store)
        [1.0, 1.0, 1.0]
        0
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder: Final = Path(folder)
        self._references: Counter[str] = Counter()
        self._verified: dict[str, tuple[int, ...]] = {}

    def path(self, digest: str) -> Path:
        """Returns where the genome of this name lies, or would lie.

        Raises:
            CheckpointError: If the name is none: a path must not come out of it.
        """
        path = self.folder / f"{digest}.genome"
        if not _NAME.fullmatch(path.name):
            raise CheckpointError(f"{digest!r} names no genome; names have 32 hexadecimal digits")
        return path

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and (self.folder / f"{digest}.genome").is_file()

    def __iter__(self) -> Iterator[str]:
        """Yields the names of all genomes in the folder, sorted."""
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:  # nothing was stored yet
            return
        except OSError as error:
            raise StorageError(
                f"cannot read the folder {self.folder}: {error.strerror or error}; "
                "move what lies there away, or mend its rights"
            ) from error
        yield from (found[1] for name in names if (found := _NAME.fullmatch(name)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def references(self, digest: str) -> int:
        """Returns how often a genome is held."""
        return self._references[digest]

    def add(self, genome: Genome) -> None:
        """Writes a genome unless it is there, and holds it once more.

        Args:
            genome: float32 or float64. When this returns, the file is complete and on the disk.

        Raises:
            CheckpointError: If the values have another dtype, or the subspace's digest is too long for the header.
            StorageError: If it cannot be written; nothing is left behind then, and nothing is held.
        """
        path = self.path(genome.digest)
        # what lies there from another process is not trusted: it is written again
        if genome.digest not in self._verified or genome.digest not in self:
            self._write(path, genome)
            self._verified[genome.digest] = _signature(path.stat())
        self._references[genome.digest] += 1

    def _write(self, path: Path, genome: Genome) -> None:
        header = _header(genome)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot create the folder {self.folder}: {error.strerror}; choose another one"
            ) from error
        with Partial(path, needed_bytes=len(header) + genome.values.nbytes) as partial:
            partial.write(header)
            partial.write(genome.values.data.cast("B"))

    def retain(self, digest: str) -> None:
        """Holds a genome that is in the folder once more.

        Raises:
            CheckpointError: If it is not there.
        """
        if digest not in self:
            raise CheckpointError(f"{self.path(digest)} cannot be held: there is no such file")
        self._references[digest] += 1

    def release(self, digest: str) -> None:
        """Lets a genome go; the last one who does deletes the file. A genome that was opened stays readable.

        Raises:
            CheckpointError: If nobody holds it.
            StorageError: If the file cannot be deleted.
        """
        if not self._references[digest]:
            raise CheckpointError(f"{self.path(digest)} is held by nobody and cannot be released")
        self._references[digest] -= 1
        if not self._references[digest]:
            self._delete(digest)

    def sweep(self, live: Iterable[str] = ()) -> list[str]:
        """Deletes every genome that is not alive, and what killed writers left; for the start of a resumed run.

        Args:
            live: Names, each as often as it is held; those that are not in the folder are passed over. The counts
                so far are forgotten.

        Returns:
            The names of the deleted genomes, sorted.

        Raises:
            StorageError: If the folder cannot be read, or something in it cannot be deleted.
        """
        found = set(self)
        self._references = Counter(name for name in live if name in found)
        strays = sorted(found - self._references.keys())
        for name in strays:
            self._delete(name)
        if self.folder.is_dir():
            remove_partials(self.folder)
        return strays

    def _delete(self, digest: str) -> None:
        self._references.pop(digest, None)
        self._verified.pop(digest, None)
        path = self.path(digest)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot delete {path}: {error.strerror or error}; mend the folder's rights, then go on with --resume"
            ) from error

    def open(self, digest: str) -> Genome:
        """Returns a genome whose values are read from the disk when they are used, and can be dropped from memory.

        It is verified when this store opens it for the first time, and again whenever the file has changed since.
        A file that somebody cuts short while its values are in use ends the process: the system cannot read on.

        Raises:
            CheckpointError: If the file is missing, or is not what its name says.
        """
        path = self.path(digest)
        if not path.is_file():
            raise CheckpointError(f"{path} is not there, or is no file; a resumed run breeds the genome again")
        try:
            with path.open("rb") as file:
                signature = _signature(os.fstat(file.fileno()))
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if signature[0] else b""
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        genome = _parse(path, content)
        if self._verified.get(digest) != signature:
            if genome.digest != digest:
                raise _damage(path, f"its content has the name {genome.digest}")
            self._verified[digest] = signature
            if isinstance(content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                content.madvise(mmap.MADV_DONTNEED)  # all of it was read; whoever uses it reads what they need
        else:
            genome.__dict__["digest"] = digest  # as it was computed; a property that is computed once
        return genome


def _signature(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does: its size, when it was written, and which file it is."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def _header(genome: Genome) -> bytes:
    dtype, subspace = _DTYPES.get(genome.values.dtype), genome.subspace.encode()
    if dtype is None or sys.byteorder != "little":
        raise CheckpointError(
            f"a genome of {genome.values.dtype} on a {sys.byteorder}-endian machine cannot be stored; "
            "use float32 or float64 on a little-endian one"
        )
    if len(subspace) > 104 or b"\0" in subspace:
        raise CheckpointError(f"a subspace's name of {len(subspace)} bytes does not fit the header; 104 are the most")
    return _HEADER.pack(_MAGIC, dtype, genome.values.size, subspace)


def _parse(path: Path, content: mmap.mmap | bytes) -> Genome:
    """Returns the genome in a file, after every claim of its header was held against the file's size."""
    if len(content) < _HEADER.size:
        raise _damage(path, f"{len(content)} bytes are fewer than the header's {_HEADER.size}")
    magic, name, count, subspace = _HEADER.unpack_from(content)
    if magic != _MAGIC:
        raise _damage(path, f"it begins with {magic!r} and not with {_MAGIC!r}")
    dtype = next((dtype for dtype, word in _DTYPES.items() if word == name.rstrip(b"\0")), None)
    if dtype is None:
        raise _damage(path, f"its dtype is {name!r}; float32 and float64 are known")
    if _HEADER.size + count * dtype.itemsize != len(content):
        raise _damage(
            path, f"its header promises {count} values of {dtype}, it holds {len(content) - _HEADER.size} bytes"
        )
    try:
        text = subspace.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise _damage(path, "its subspace's name is no text") from error
    return Genome(text, np.frombuffer(content, dtype, offset=_HEADER.size))


def _damage(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {what}; delete it: a resumed run breeds the genome again")
