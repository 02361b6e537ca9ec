"""Arrays as rows: mapped files (.npy, .npz, safetensors), and arrays or tensors in memory; the first axis counts."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np

from minerua.errors import CheckpointError, ConfigError, UnknownName, unknown
from minerua.learning.data_config import LabelsConfig
from minerua.learning.rows import BadRows, RowError, seen
from minerua.learning.sources.labels import Kind, Labels
from minerua.learning.sources.source import Hashes, Scanned, check_inputs
from minerua.learning.splitting import content_hash

MOST_INFLATED_BYTES = 1 << 32
"""The largest compressed array that is taken: it has to be in memory whole, and a small file can claim any size."""

_BLOCK_BYTES = 1 << 24
_LOCAL_HEADER_BYTES = 30


# ── where an array is ────────────────────────────────────────────────────────────────────────────────────────────────


@final
class ArrayFile:
    """An array on disk or in memory; what is on disk is mapped where it is used, also after a pickle.

    Args:
        name: What it is called in messages.
        array: In memory, or `None`.
        path: The file, or `None`.
        member: The array's name in the file; `None` for a `.npy` file.
    """

    def __init__(
        self, name: str, *, array: np.ndarray | None = None, path: Path | None = None, member: str | None = None
    ) -> None:
        self.name, self._path, self._member = name, path, member
        self._array = array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": self._array if self._path is None else None}

    @property
    def array(self) -> np.ndarray:
        """The array, read-only."""
        if self._array is None:
            self._array = _opened(Path(self._path or ""), self._member)
        return self._array


def array_file(path: Path, member: str | None) -> ArrayFile:
    """Opens an array on disk.

    Args:
        path: A `.npy`, `.npz` or `.safetensors` file.
        member: The array's name in it; `None` for `.npy`.

    Raises:
        ConfigError: If it cannot be read, or has no such array.
    """
    name = path.name if member is None else f"{path.name}:{member}"
    found = ArrayFile(name, path=path, member=member)
    _ = found.array  # what cannot be opened is said now
    return found


def in_memory(value: Any, name: str) -> ArrayFile:
    """Takes an array, a tensor, or nested lists of numbers.

    Raises:
        ConfigError: If it has no first axis, or holds no numbers.
    """
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a torch tensor; torch itself is not needed to ask
        tensor = value.detach().cpu()
        value = (tensor.float() if str(tensor.dtype) in ("torch.bfloat16", "torch.float16") else tensor).numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ConfigError(f"{name} is no array: {error}") from error
    if array.ndim == 0 or array.dtype.hasobject:
        raise ConfigError(f"{name} is no array of rows: found {type(value).__name__} of dtype {array.dtype}")
    return ArrayFile(name, array=array)


def _opened(path: Path, member: str | None) -> np.ndarray:
    try:
        if path.suffix == ".npz":
            return _in_archive(path, member or "")
        if path.suffix == ".safetensors":
            return _in_checkpoint(path, member or "")
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped.view(np.ndarray)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    # zipfile raises NotImplementedError for a compression that it does not know, numpy SyntaxError for a broken header
    except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, SyntaxError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} holds no array that can be read: {seen(str(error))}") from error


def _in_checkpoint(path: Path, member: str) -> np.ndarray:
    from minerua.weights import open_checkpoint

    try:
        return open_checkpoint(path).tensor(member)
    except (CheckpointError, UnknownName) as error:
        raise ConfigError(f"{path}: {error.message}", error.faults) from error


def _in_archive(path: Path, member: str) -> np.ndarray:
    """Maps an array of a `.npz` file where it is stored as it is, and reads it where it is compressed."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if member not in names:
            raise ConfigError(f"{path}: {unknown('array', member, names)}")
        entry = archive.infolist()[names.index(member)]
        with archive.open(entry) as stream:
            shape, fortran, dtype = _npy_header(stream, member)
            header_bytes = stream.tell()
        needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if needed != entry.file_size - header_bytes:
            raise ConfigError(
                f"{path}: array {seen(member)} claims {needed} bytes and has {entry.file_size - header_bytes}"
            )
        if entry.compress_type == zipfile.ZIP_STORED and needed and not entry.flag_bits & 1:
            offset = _data_offset(path, entry.header_offset) + header_bytes
            order: Any = "F" if fortran else "C"
            return np.memmap(path, dtype, "r", offset, shape, order).view(np.ndarray)
        return _inflated(archive, entry, path)


def _inflated(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> np.ndarray:
    if entry.file_size > MOST_INFLATED_BYTES:
        raise ConfigError(
            f"{path}: the compressed array {entry.filename} takes {entry.file_size} bytes of memory, more than "
            f"{MOST_INFLATED_BYTES}; save it with numpy.savez, which can be mapped"
        )
    with archive.open(entry) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    array.setflags(write=False)
    return array


def _npy_header(stream: Any, member: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"array {member} holds Python objects, which only pickle can read")
    return shape, fortran, dtype


def _data_offset(path: Path, header_offset: int) -> int:
    """Returns where a member's bytes begin: behind its local header, whose two lengths stand at bytes 26 and 28."""
    with open(path, "rb") as file:
        return _behind_local_header(file, header_offset)


def _behind_local_header(file: BinaryIO, header_offset: int) -> int:
    file.seek(header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return header_offset + _LOCAL_HEADER_BYTES + lengths


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@final
class ArrayRows:
    """Rows of two arrays.

    Args:
        inputs: Shape (n, …), numbers.
        targets: Shape (n, …), numbers or texts; `None` with targets that are the inputs.
        labels: What targets are; by default classes for whole numbers and texts of one axis, else numbers.
        dtype: What inputs become.

    Raises:
        ConfigError: If the arrays have no rows in common, or hold no numbers; all faults at once.
    """

    def __init__(self, inputs: ArrayFile, targets: ArrayFile | None, labels: LabelsConfig, *, dtype: str) -> None:
        self._inputs, self._targets, self._dtype = inputs, targets, np.dtype(dtype)
        self._good: np.ndarray | None = None
        faults = _faults(inputs, targets, labels, self._dtype)
        if faults:
            raise ConfigError("the arrays cannot be used as rows", faults)
        self._labels = Labels(labels, "inputs" if targets is None else _kind(targets.array))
        self._config = labels

    def scan(self, bad: BadRows) -> Scanned:
        """Looks at every row."""
        labels, found = Labels(self._config, self._labels.kind), Hashes()
        good = [i for i, row in self._blocks() if self._is_usable(i, row, labels, found, bad)]
        self._good = np.array(good, np.int64) if len(good) < len(self._inputs.array) else None
        return found.scanned(labels.names)

    def _is_usable(self, i: int, row: np.ndarray, labels: Labels, found: Hashes, bad: BadRows) -> bool:
        try:
            check_inputs(row, None)
            code = labels.check(None if self._targets is None else self._targets.array[i])
            found.add(content_hash(row), code)
        except RowError as error:
            bad.add(self._place(i), error)
            return False
        return True

    def _blocks(self) -> Any:
        """Yields every row's number and inputs, read in blocks so that the whole never lies in memory."""
        array = self._inputs.array
        rows = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
        for begin in range(0, len(array), rows):
            with np.errstate(over="ignore"):
                block = np.ascontiguousarray(array[begin : begin + rows]).astype(self._dtype, copy=False)
            yield from enumerate(block, begin)

    def read(self, i: int) -> tuple[Any, Any]:
        """Returns inputs and target of usable row i."""
        i = i if self._good is None else int(self._good[i])
        target = None if self._targets is None else self._labels.target(self._targets.array[i])
        return self._inputs.array[i].astype(self._dtype), target

    def place(self, i: int) -> str:
        """Returns the array and the number of usable row i, counted from 0 as in Python."""
        return self._place(i if self._good is None else int(self._good[i]))

    def _place(self, i: int) -> str:
        return f"{self._inputs.name}[{i}]"


def _kind(targets: np.ndarray) -> Kind:
    return "class" if targets.ndim == 1 and targets.dtype.kind in "iubUS" else "number"


def _faults(inputs: ArrayFile, targets: ArrayFile | None, labels: LabelsConfig, dtype: np.dtype) -> list[str]:
    faults = []
    array = inputs.array
    if array.ndim == 0 or not (array.dtype.kind in "iufb" or array.dtype.name == "bfloat16"):
        faults.append(f"{inputs.name}: inputs are rows of numbers, found shape {list(array.shape)} of {array.dtype}")
    elif dtype.kind == "i" and array.dtype.kind not in "iub":
        faults.append(f"{inputs.name}: dtype int64 is for whole numbers, found {array.dtype}")
    if targets is None and labels.kind != "inputs":
        faults.append("targets: missing; name an array, or set labels.kind to inputs")
    if targets is not None:
        faults += _target_faults(inputs, targets)
    return faults


def _target_faults(inputs: ArrayFile, targets: ArrayFile) -> list[str]:
    x, y = inputs.array, targets.array
    if y.ndim == 0 or (y.dtype.kind not in "iufbU" and y.dtype.name != "bfloat16"):
        return [f"{targets.name}: targets are numbers or texts, found shape {list(y.shape)} of {y.dtype}"]
    if x.ndim and len(x) != len(y):
        return [f"{inputs.name} has {len(x)} rows, {targets.name} has {len(y)}"]
    return []
