"""Where a subspace keeps its arrays while it is built, and afterwards: in memory, or in a folder.

A folder holds `bases.safetensors` (for a tensor `w` its `w.left` and `w.right`, none for the identity, or its
`w.directions`) and one `founder-<k>.safetensors` with a genome each. It appears whole or not at all; its arrays are
read through maps, so that the system may drop them from memory at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from minerua.errors import CheckpointError
from minerua.values import TensorSpec
from minerua.weights.checkpoint import Checkpoint, open_checkpoint
from minerua.weights.writer import GrowingCheckpoint

BASES_NAME = "bases.safetensors"
RECORD_KEY = "minerua.subspace"
"""Metadata key under which `bases.safetensors` says what space it holds."""

_FORMAT = 1
_GENOME = "genome"
_BLOCK_BYTES = 1 << 24


class Layout(NamedTuple):
    """One part of a genome.

    Args:
        name: The tensor's name in the base.
        core: (R, R') of its core; `None` for coefficients, one per founder.
    """

    name: str
    core: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Kept:
    """The arrays of a subspace.

    Args:
        layouts: The parts of a genome in order.
        arrays: Key (see `key`) → array, read-only.
        genomes: Per founder, shape (size,), read-only.
    """

    layouts: tuple[Layout, ...]
    arrays: Mapping[str, np.ndarray]
    genomes: tuple[np.ndarray, ...]


def key(name: str, part: str) -> str:
    """Returns the key of a tensor's `left`, `right` or `directions`; different for all tensors and parts."""
    return f"{name}.{part}"


class Shelf(Protocol):
    """What takes a subspace's arrays as they are made."""

    def put(self, key: str, array: np.ndarray) -> None:
        """Takes a basis, or directions."""

    def extend(self, founder: int, values: np.ndarray) -> None:
        """Takes the next values of a founder's genome."""


class InMemory:
    """A shelf in memory."""

    def __init__(self, founders: int) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._parts: list[list[np.ndarray]] = [[] for _ in range(founders)]

    def put(self, key: str, array: np.ndarray) -> None:
        """Takes a basis, or directions."""
        self._arrays[key] = array

    def extend(self, founder: int, values: np.ndarray) -> None:
        """Takes the next values of a founder's genome."""
        self._parts[founder].append(values)

    def kept(self, layouts: Sequence[Layout]) -> Kept:
        """Returns all arrays; the shelf is empty then."""
        genomes = []
        for parts in self._parts:
            genomes.append(np.concatenate(parts) if len(parts) > 1 else parts[0].copy())
            parts.clear()  # one founder at a time is in memory twice
        for array in (*genomes, *self._arrays.values()):
            array.flags.writeable = False
        return Kept(tuple(layouts), self._arrays, tuple(genomes))


class InFolder:
    """A shelf in a folder that is being made.

    Args:
        folder: The partial folder.
        base: Sets how many tensors there can be, and so the room for the header.
        founders: Name → digest of its weights.
        dtype: Of all arrays.
    """

    def __init__(self, folder: Path, base: Checkpoint, founders: Mapping[str, str], dtype: np.dtype[Any]) -> None:
        self._founders, self._dtype = founders, dtype
        self._specs: list[TensorSpec] = []
        # a name occurs in two keys and, quoted twice, in the record; a character is six bytes long at most
        room = 4096 + sum(4 * len(json.dumps(json.dumps(name))) + 512 for name in (*base.specs, *founders))
        self._files = contextlib.ExitStack()
        self._bases = self._files.enter_context(GrowingCheckpoint(folder / BASES_NAME, header_bytes=room))
        self._genomes = [
            self._files.enter_context(GrowingCheckpoint(folder / _founder_name(k), header_bytes=1024))
            for k in range(len(founders))
        ]
        self._digests = [hashlib.blake2b(digest_size=16) for _ in founders]

    def __enter__(self) -> InFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def put(self, key: str, array: np.ndarray) -> None:
        """Takes a basis, or directions."""
        self._specs.append(TensorSpec(key, array.shape, array.dtype.name))
        self._bases.write(array)

    def extend(self, founder: int, values: np.ndarray) -> None:
        """Takes the next values of a founder's genome."""
        self._genomes[founder].write(values)
        self._digests[founder].update(values.data)

    def finish(self, layouts: Sequence[Layout], *, base: str, digest: str) -> None:
        """Completes all files, with a record of the space in the metadata of the bases."""
        size = sum(_size(layout, len(self._founders)) for layout in layouts)
        for file in self._genomes:
            file.finish([TensorSpec(_GENOME, (size,), self._dtype.name)], {})
        record = {
            "format": _FORMAT,
            "dtype": self._dtype.name,
            "base": base,
            "digest": digest,
            "founders": list(self._founders.items()),
            "genomes": [digest.hexdigest() for digest in self._digests],
            "segments": layouts,
        }
        self._bases.finish(self._specs, {RECORD_KEY: json.dumps(record, ensure_ascii=False)})


@dataclass(frozen=True, eq=False)
class Record:
    """What a folder says of its space.

    Args:
        bases: The file of the bases.
        kept: Its arrays, mapped.
        dtype: Of all arrays.
        base: Digest of the base.
        digest: Digest of the space.
        founders: Name → digest of its weights.
    """

    bases: Checkpoint
    kept: Kept
    dtype: np.dtype[Any]
    base: str
    digest: str
    founders: Mapping[str, str]


def read_folder(folder: Path) -> Record:
    """Opens a folder; the founders' genomes are read and compared with their digests.

    Raises:
        CheckpointError: It holds no subspace, or its content was altered.
    """
    bases = open_checkpoint(folder / BASES_NAME)
    try:
        record = json.loads(bases.metadata[RECORD_KEY])
        if record["format"] != _FORMAT:
            raise ValueError(f"its format is {record['format']}, the one that is known {_FORMAT}")
        layouts = tuple(Layout(name, core if core is None else (core[0], core[1])) for name, core in record["segments"])
        found = Record(
            bases,
            Kept(layouts, {name: bases.tensor(name) for name in bases.specs}, _genomes(folder, record["genomes"])),
            np.dtype(record["dtype"]),
            record["base"],
            record["digest"],
            dict(record["founders"]),
        )
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{folder} holds no subspace that can be read: {error!r}; build it again") from error
    _check(folder, found)
    return found


def _genomes(folder: Path, digests: Sequence[str]) -> tuple[np.ndarray, ...]:
    genomes = []
    for k, named in enumerate(digests):
        values = open_checkpoint(folder / _founder_name(k)).tensor(_GENOME)
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, values.size, _BLOCK_BYTES // values.itemsize):
            digest.update(values[start : start + _BLOCK_BYTES // values.itemsize].data)
        if digest.hexdigest() != named:
            path, found = folder / _founder_name(k), digest.hexdigest()
            raise CheckpointError(f"the genome in {path} is {found} and is said to be {named}: it was altered")
        genomes.append(values)
    return tuple(genomes)


def _check(folder: Path, record: Record) -> None:
    size = sum(_size(layout, len(record.founders)) for layout in record.kept.layouts)
    faults = [
        f"{_founder_name(k)} holds {values.dtype} {list(values.shape)}, the record says {record.dtype} {[size]}"
        for k, values in enumerate(record.kept.genomes)
        if values.shape != (size,) or values.dtype != record.dtype
    ]
    if len(record.kept.genomes) != len(record.founders):
        faults.append(f"{len(record.kept.genomes)} genomes, {len(record.founders)} founders")
    if faults:
        raise CheckpointError(f"{folder} holds no subspace that can be read; build it again", faults)


def _size(layout: Layout, founders: int) -> int:
    return founders if layout.core is None else layout.core[0] * layout.core[1]


def _founder_name(k: int) -> str:
    return f"founder-{k}.safetensors"


class Naming:
    """Computes a subspace's digest while its parts are made, or read: its base, its layout and its bases."""

    def __init__(self, base: str, dtype: np.dtype[Any]) -> None:
        self.dtype: Final = dtype
        self._digest: Final = hashlib.blake2b(base.encode(), digest_size=16)
        if dtype != np.float32:
            self._digest.update(dtype.name.encode())

    def add(self, name: str, part: slice, arrays: Sequence[np.ndarray | None]) -> None:
        """Adds a segment, with its bases (`None` for the identity), or its directions."""
        self._digest.update(f"{name} {part}".encode())
        for array in arrays:
            self._digest.update(b"identity" if array is None else np.ascontiguousarray(array).reshape(-1).data)

    def hexdigest(self) -> str:
        """Returns the 32 hexadecimal digits."""
        return self._digest.hexdigest()
