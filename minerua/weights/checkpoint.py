"""Checkpoints: named tensors in safetensors files, opened by their headers and read only where they are looked at.

Why not the safetensors library: its numpy door cannot read bfloat16, and it stops at the first fault, without numbers.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, final

import numpy as np

from minerua.errors import CheckpointError, UnknownName, unknown
from minerua.values import TensorSpec
from minerua.weights.header import (
    CODES,
    DTYPES,
    MAX_HEADER_BYTES,
    Header,
    capped,
    nbytes,
    parse_header,
    parse_object,
    shown,
)

_BLOCK_BYTES = 1 << 24  # read at a time when a whole tensor is scanned
_MAX_FAULTS = 100  # listed in one error; a hostile header can have millions
_INDEX_SUFFIX = ".safetensors.index.json"


class _Extent(NamedTuple):
    """Where a tensor's bytes lie: a map of the whole file, the first byte in it, and the file's number."""

    content: mmap.mmap
    begin: int
    file: int


class _Shard(NamedTuple):
    """One file of a checkpoint: its map (None if it cannot be read), where its tensors begin, and its header."""

    path: Path
    content: mmap.mmap | None
    begin: int
    header: Header


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Named tensors on disk, immutable and known by their digest; made by `open_checkpoint`.

    A checkpoint keeps its files open. Files that minerua writes are replaced as a whole, so a checkpoint goes on seeing
    what it opened; another program that shortens a file in place makes the system end the process (SIGBUS) at the next
    look. May be read from any number of threads. A pickled checkpoint is its path: the receiver opens it again.

    Args:
        path: What was opened.
        specs: Tensor name → its spec, sorted by name; read-only.
        metadata: The texts in the headers; where two shards disagree, the one whose file name sorts first counts.
            Read-only.
    """

    path: Path
    specs: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    _extents: Mapping[str, _Extent] = field(repr=False)

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return open_checkpoint, (self.path,)

    @cached_property
    def nbytes(self) -> int:
        """How many bytes all tensors take together, headers not counted."""
        return sum(nbytes(spec) for spec in self.specs.values())

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that name the weights.

        BLAKE2b over names, dtypes, shapes and bytes, sorted by name: the same weights have the same digest however they
        are cut into files and whatever their metadata says. Reads every byte once, in blocks, at the first use.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, spec in self.specs.items():
            digest.update(json.dumps([name, spec.dtype, list(spec.shape)]).encode() + b"\n")
            for block in self._blocks(name):
                digest.update(block)
        return digest.hexdigest()

    def tensor(self, name: str) -> np.ndarray:
        """Returns one tensor.

        Args:
            name: One of `specs`.

        Returns:
            The spec's shape and dtype (bfloat16 and the float8 types from `ml_dtypes`), read-only: a view of the mapped
            file, valid as long as the array lives. Where a file puts a tensor at an address that its dtype cannot use,
            a copy.

        Raises:
            UnknownName: the checkpoint has no tensor of this name.

        Example:
            >>> import tempfile
            >>> from minerua.weights.writer import write_checkpoint
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     write_checkpoint(f"{folder}/model.safetensors", {"head.weight": np.eye(2, dtype=np.float32)})
            ...     open_checkpoint(folder).tensor("head.weight").shape
            (2, 2)
        """
        spec = self._spec(name)
        content, begin, _ = self._extents[name]
        dtype = DTYPES[CODES[spec.dtype]]
        array: np.ndarray = np.ndarray(tuple(map(int, spec.shape)), dtype, buffer=content, offset=begin)
        if not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        return array

    def place(self, name: str) -> tuple[int, int]:
        """Returns where a tensor lies: the number of its file, by name, and its first byte in it.

        Args:
            name: One of `specs`.

        Raises:
            UnknownName: the checkpoint has no tensor of this name.
        """
        self._spec(name)
        return self._extents[name].file, self._extents[name].begin

    def read_ahead(self, name: str) -> None:
        """Asks the system to fetch a tensor's bytes from the disk before they are looked at; returns at once.

        Args:
            name: One of `specs`.

        Raises:
            UnknownName: the checkpoint has no tensor of this name.
        """
        spec = self._spec(name)
        content, begin, _ = self._extents[name]
        start, size = begin - begin % mmap.PAGESIZE, nbytes(spec)
        if size and hasattr(content, "madvise"):
            content.madvise(mmap.MADV_WILLNEED, start, begin + size - start)

    def release_pages(self) -> None:
        """Lets the system take back the memory of what was read; whoever looks again reads it from the disk again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for content in {extent.content for extent in self._extents.values()}:
                content.madvise(mmap.MADV_DONTNEED)

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.specs:
            raise UnknownName(f"{self.path}: {unknown('tensor', name, list(self.specs))}")
        return self.specs[name]

    def _blocks(self, name: str) -> Iterator[memoryview]:
        """Yields a tensor's bytes in order, a block at a time."""
        content, begin, _ = self._extents[name]
        end = begin + nbytes(self.specs[name])
        with memoryview(content) as view:
            for start in range(begin, end, _BLOCK_BYTES):
                with view[start : min(end, start + _BLOCK_BYTES)] as block:
                    yield block


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens weights on disk by reading their headers, and checks that the files can hold what the headers claim.

    Args:
        path: A `*.safetensors` file, a `*.safetensors.index.json` file that names shards beside it, or a folder with
            `model.safetensors`, else `model.safetensors.index.json`, else one file of either kind.

    Returns:
        The checkpoint; no tensor has been read.

    Raises:
        CheckpointError: the files are missing, malformed, truncated, or contradict each other; lists all faults
            of all shards (the first 100).

    Example:
        >>> open_checkpoint("nowhere")
        Traceback (most recent call last):
        minerua.errors.CheckpointError: nowhere cannot be opened as a checkpoint
          - nowhere: No such file or directory
    """
    path = Path(path)
    entry, faults = _find_entry(path)
    weight_map: dict[str, str] | None = None
    shards: list[_Shard] = []
    if not faults and entry.name.endswith(_INDEX_SUFFIX):
        weight_map, faults = _read_index(entry)
        shards = [_read_shard(entry.parent / shard) for shard in sorted(set(weight_map.values()))]
    elif not faults:
        shards = [_read_shard(entry)]
    faults += [f"{shard.path.name}: {fault}" for shard in shards for fault in shard.header.faults]
    faults += _duplicate_faults(shards)
    if weight_map is not None:
        faults += _index_faults(weight_map, shards)
    if faults:
        raise CheckpointError(f"{path} cannot be opened as a checkpoint", capped(faults, limit=_MAX_FAULTS))
    return _joined(path, shards)


def find_non_finite(checkpoint: Checkpoint) -> list[str]:
    """Looks at every number of the floating and complex tensors for NaN and infinity.

    Args:
        checkpoint: Its tensors are read once, in blocks of 16 MiB.

    Returns:
        One fault per tensor with such numbers, sorted by name: how many, and where the first one is; empty if all is
            well.

    Example:
        >>> import tempfile
        >>> from minerua.weights.writer import write_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(f"{folder}/model.safetensors", {"w": np.array([0, np.nan])})
        ...     find_non_finite(open_checkpoint(folder))
        ["tensor 'w': 1 of 2 numbers are NaN or infinite, first at [1]"]
    """
    faults = []
    for name, spec in checkpoint.specs.items():
        if not _is_floating(spec.dtype):
            continue
        tensor = checkpoint.tensor(name)
        count, first = _count_non_finite(tensor.reshape(-1))
        if count:
            index = [int(position) for position in np.unravel_index(first, tensor.shape)]
            faults.append(
                f"tensor {shown(name)}: {count} of {tensor.size} numbers are NaN or infinite, first at {index}"
            )
    return faults


def compare(base: Checkpoint, other: Checkpoint, *, name: str) -> list[str]:
    """Says what keeps two checkpoints from being merged tensor by tensor; dtypes may differ.

    Args:
        base: The checkpoint that sets the names and shapes.
        other: The checkpoint that must have the same.
        name: What to call the other one in the faults, for example `"expert 'coder'"`.

    Returns:
        One fault per tensor that is missing, additional or of another shape; of each kind the first 8 by name and a
        count.

    Example:
        >>> import tempfile
        >>> from minerua.weights.writer import write_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(f"{folder}/a.safetensors", {"w": np.zeros(2)})
        ...     write_checkpoint(f"{folder}/b.safetensors", {"w": np.zeros(3)})
        ...     compare(*(open_checkpoint(f"{folder}/{file}.safetensors") for file in "ab"), name="expert 'b'")
        ["expert 'b' has tensor 'w' with shape [3], the base [2]"]
    """
    missing = [
        f"{name} lacks tensor {shown(tensor)}, which the base holds with shape {list(spec.shape)}"
        for tensor, spec in base.specs.items()
        if tensor not in other.specs
    ]
    additional = [
        f"{name} has tensor {shown(tensor)} of shape {list(spec.shape)}, which the base lacks"
        for tensor, spec in other.specs.items()
        if tensor not in base.specs
    ]
    different = [
        f"{name} has tensor {shown(tensor)} with shape {list(other.specs[tensor].shape)}, the base {list(spec.shape)}"
        for tensor, spec in base.specs.items()
        if tensor in other.specs and other.specs[tensor].shape != spec.shape
    ]
    return [fault for kind in (missing, additional, different) for fault in capped(kind, limit=8)]


# ── which file ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _find_entry(path: Path) -> tuple[Path, list[str]]:
    """Returns the file that stands for the path: a safetensors file or an index."""
    fault = _stat_fault(path)
    if fault:
        return path, [f"{path}: {fault}"]
    if not path.is_dir():
        return path, _suffix_faults(path)
    for name in ("model.safetensors", "model" + _INDEX_SUFFIX):
        if (path / name).is_file():
            return path / name, []
    try:
        names = sorted(child.name for child in path.iterdir())
    except OSError as error:
        return path, [f"{path}: {error.strerror or error}"]
    found = [name for name in names if name.endswith((".safetensors", _INDEX_SUFFIX))]
    if len(found) == 1 and "adapter_config.json" not in names:
        return path / found[0], []
    return path, [_folder_fault(path, names)]


def _suffix_faults(path: Path) -> list[str]:
    if path.name.endswith((".safetensors", _INDEX_SUFFIX)):
        return []
    hint = "; torch's own files can be converted with safetensors.torch.save_file" if _is_pickle(path.name) else ""
    return [f"{path.name} ends neither in .safetensors nor in {_INDEX_SUFFIX}{hint}"]


def _is_pickle(name: str) -> bool:
    return name.endswith((".bin", ".pt", ".pth", ".ckpt"))


def _folder_fault(path: Path, names: list[str]) -> str:
    """Says why a folder does not stand for one checkpoint, and what it holds."""
    if "adapter_config.json" in names:
        return f"{path} holds a LoRA adapter, not a whole model: open it with open_adapter and its base"
    holds = f"the folder holds {', '.join(capped([shown(name) for name in names], limit=8)) or 'nothing'}"
    hint = "; convert torch's files with safetensors.torch.save_file" if any(map(_is_pickle, names)) else ""
    wanted = f"neither model.safetensors nor model{_INDEX_SUFFIX} nor a single file of either kind"
    return f"{path} has {wanted}; {holds}{hint}"


def _stat_fault(path: Path, *, regular: bool = False) -> str | None:
    """Returns why a path cannot be used, or None; a pipe is never opened, because that could wait forever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # a null byte, or a text that has no bytes
        return f"not a possible path: {error}"
    if stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and not regular):
        return None
    return "not a regular file"


# ── one file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_shard(path: Path) -> _Shard:
    """Maps a file and reads its header; whatever is wrong becomes a fault."""
    fault = _stat_fault(path, regular=True)
    if fault:
        return _Shard(path, None, 0, Header((), {}, (fault,)))
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size < 8:
                return _Shard(path, None, 0, Header((), {}, (f"too short: {size} bytes, a header's length takes 8",)))
            content = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        return _Shard(path, None, 0, Header((), {}, (error.strerror or str(error),)))
    begin, header = _read_header(content, size)
    return _Shard(path, content, begin, header)


def _read_header(content: mmap.mmap, size: int) -> tuple[int, Header]:
    """Returns where the tensors begin, and the header, with its length checked before anything is copied."""
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER_BYTES:
        return 0, Header((), {}, (f"the header claims {length} bytes, the limit is {MAX_HEADER_BYTES}",))
    if length > size - 8:
        fault = f"the header claims {length} bytes, but only {size - 8} follow its length"
        return 0, Header((), {}, (fault,))
    return 8 + length, parse_header(content[8 : 8 + length], data_bytes=size - 8 - length)


# ── several files ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_index(path: Path) -> tuple[dict[str, str], list[str]]:
    """Returns an index's tensor name → shard, without entries that cannot be one, and the faults."""
    try:
        size = path.stat().st_size
        if size > MAX_HEADER_BYTES:
            return {}, [f"{path.name}: the index has {size} bytes, the limit is {MAX_HEADER_BYTES}"]
        content, faults = parse_object(path.read_bytes(), what="the index")
    except OSError as error:
        return {}, [f"{path.name}: {error.strerror or error}"]
    named = content.get("weight_map")
    if not isinstance(named, dict):
        return {}, [*(f"{path.name}: {fault}" for fault in faults), f"{path.name}: the index has no object weight_map"]
    weight_map = {name: shard for name, shard in named.items() if _is_shard_name(shard)}
    faults += [
        f"tensor {shown(name)}: {shown(shard)} is not the name of a .safetensors file in the index's folder"
        for name, shard in named.items()
        if not _is_shard_name(shard)
    ]
    return weight_map, [f"{path.name}: {fault}" for fault in faults]


def _is_shard_name(shard: object) -> bool:
    """Whether an index may name this file: an index from a stranger must not reach outside its folder."""
    if not isinstance(shard, str) or not shard.endswith(".safetensors"):
        return False
    return shard.isprintable() and "/" not in shard and "\\" not in shard


def _duplicate_faults(shards: Iterable[_Shard]) -> list[str]:
    faults = []
    holder: dict[str, str] = {}
    for shard in shards:
        for place in shard.header.places:
            first = holder.setdefault(place.spec.name, shard.path.name)
            if first != shard.path.name:
                faults.append(f"tensor {shown(place.spec.name)} is in two shards: {first} and {shard.path.name}")
    return faults


def _index_faults(weight_map: Mapping[str, str], shards: Iterable[_Shard]) -> list[str]:
    """Returns where an index and the shards that could be read contradict each other."""
    held = {s.path.name: {place.spec.name for place in s.header.places} for s in shards if not s.header.faults}
    absent = [
        f"{shard}: lacks tensor {shown(name)}, which the index places there"
        for name, shard in weight_map.items()
        if shard in held and name not in held[shard]
    ]
    unlisted = [
        f"{shard}: holds tensor {shown(name)}, which the index does not name"
        for shard, names in held.items()
        for name in sorted(names - weight_map.keys())
    ]
    return absent + unlisted


def _joined(path: Path, shards: Iterable[_Shard]) -> Checkpoint:
    specs: dict[str, TensorSpec] = {}
    extents: dict[str, _Extent] = {}
    metadata: dict[str, str] = {}
    for number, shard in enumerate(shards):
        metadata = {**shard.header.metadata, **metadata}
        for place in shard.header.places:
            specs[place.spec.name] = place.spec
            if shard.content is not None:  # always so here: a shard without content has faults
                extents[place.spec.name] = _Extent(shard.content, shard.begin + place.begin, number)
    ordered = {name: specs[name] for name in sorted(specs)}
    return Checkpoint(path, MappingProxyType(ordered), MappingProxyType(metadata), MappingProxyType(extents))


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_floating(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "complex"))


def _count_non_finite(flat: np.ndarray) -> tuple[int, int]:
    """Returns how many numbers of a flat array are NaN or infinite, and the index of the first (or -1)."""
    count, first = 0, -1
    step = max(1, _BLOCK_BYTES // flat.itemsize)
    for start in range(0, flat.size, step):
        wrong = ~np.isfinite(flat[start : start + step])
        found = int(np.count_nonzero(wrong))
        if found and not count:
            first = start + int(np.argmax(wrong))
        count += found
    return count, first
