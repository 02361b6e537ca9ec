"""Writing weights so that a file is either absent or complete, whatever happens on the way.

Everything is written under a temporary name in the same folder, flushed to the disk, and renamed. The temporary's name
is `.` + the final name + `.` + 16 hexadecimal digits + `.partial`, so that what a killed process leaves is recognised
(`remove_partials`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import final

import numpy as np

from minerua.errors import CheckpointError, StorageError
from minerua.values import TensorSpec
from minerua.weights.adapter import Factors, module_of
from minerua.weights.header import CODES, DTYPES, MAX_HEADER_BYTES, capped, encode_header, nbytes, shown

Source = tuple[TensorSpec, Callable[[], np.ndarray]]
"""A tensor to write: what it is, and a function that makes it when its turn comes."""

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial", re.DOTALL)
_MAX_FAULTS = 100

_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or write to another file system",
    errno.EACCES: "ask for the right to write there, or choose another folder",
    errno.EPERM: "ask for the right to write there, or choose another folder",
    errno.EROFS: "mount the file system writable, or choose another folder",
    errno.ENOENT: "create the folder first, or correct its name",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EISDIR: "a folder has this name: choose another one",
    errno.ENOTEMPTY: "the folder exists and is not empty: remove it, or choose another name",
    errno.EEXIST: "the folder exists and is not empty: remove it, or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_checkpoint(
    path: str | Path,
    tensors: Mapping[str, np.ndarray] | Iterable[Source],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors to one safetensors file, one at a time; the file appears complete or not at all.

    The bytes depend on nothing but the arguments: the tensors with the widest elements come first, those of one width
        by name, so
    that each is aligned to its own element size. An existing file of this name is replaced in one step.

    Args:
        path: The file to write; its folder exists.
        tensors: Tensor name → array, any layout and byte order; or pairs of a spec (integer extents) and a function
            that returns that array. A function is called once, when its tensor is written, so that one tensor is in
            memory at a time.
        metadata: Free texts for the header; `format` is `"pt"` unless it is given here, because transformers refuses
            files without one.

    Raises:
        CheckpointError: two tensors share a name, a name or dtype cannot be written, or a function returned another
            shape or dtype than its spec says.
        StorageError: the system refused to write; the message names the bytes needed and the remedy.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(f"{folder}/child.safetensors", {"w": np.eye(2, dtype=np.float32)})
    """
    path = Path(path)
    sources = sorted(_sources(tensors), key=lambda source: source[0].name)
    metadata = {"format": "pt", **(metadata or {})}
    faults = [*_source_faults([spec for spec, _ in sources]), *_metadata_faults(metadata)]
    if faults:
        raise CheckpointError(f"{path} cannot be written", capped(faults, limit=_MAX_FAULTS))
    sources.sort(key=lambda source: -DTYPES[CODES[source[0].dtype]].itemsize)  # stable: by name within a width
    header = encode_header([spec for spec, _ in sources], metadata)
    if len(header) - 8 > MAX_HEADER_BYTES:
        fault = f"names and metadata take {len(header) - 8} bytes, a header's limit is {MAX_HEADER_BYTES}"
        raise CheckpointError(f"{path} cannot be written", [fault])
    with _Partial(path, needed_bytes=len(header) + sum(nbytes(spec) for spec, _ in sources)) as partial:
        partial.write(header)
        for spec, make in sources:
            partial.write(_content(path, spec, make()))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a small file that appears complete or not at all, and replaces an existing one in one step.

    Args:
        path: The file to write; its folder exists.
        content: All of its bytes.

    Raises:
        StorageError: the system refused to write; the message names the bytes needed and the remedy.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bytes(f"{folder}/settings.json", b"{}")
    """
    with _Partial(Path(path), needed_bytes=len(content)) as partial:
        partial.write(content)


def write_adapter(
    folder: str | Path,
    factors: Mapping[str, Factors],
    *,
    rank: int,
    alpha: float | None = None,
    target_modules: Sequence[str] | None = None,
    base_name: str | None = None,
    fan_in_fan_out: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a LoRA adapter in PEFT's layout; the folder appears complete or not at all.

    Factors of another rank than `rank` are named in `rank_pattern`, with a proportional alpha in `alpha_pattern`, so
    that one scaling, alpha / rank, holds for all: a reader that knows no patterns computes the same.

    Args:
        folder: The folder to make; its parent exists, and it does not, or is empty.
        factors: Base tensor name (`<module path>.weight`) → its factors, float32; `left @ right` is added to that
            tensor.
        rank: The adapter's r; for an engine that reserves memory by it, the largest rank.
        alpha: lora_alpha; the factors are divided by alpha / rank on the way. Default: `rank`, which leaves their bits
            alone.
        target_modules: Last parts of module paths, as PEFT matches them. Default: every module path in full.
        base_name: The base model's name, for the reader's information.
        fan_in_fan_out: Whether the base stores these weights transposed (GPT-2's Conv1D); the factors are for the
            tensors as stored.
        metadata: Free texts for the header of the factors' file.

    Raises:
        CheckpointError: the names, shapes, ranks or target modules do not fit together; lists all faults.
        StorageError: the system refused to write, or the folder exists and is not empty.

    Example:
        >>> import tempfile
        >>> pair = Factors(np.ones((4, 1), np.float32), np.ones((1, 3), np.float32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_adapter(f"{folder}/child", {"layer.weight": pair}, rank=1)
    """
    folder = Path(folder)
    alpha = float(rank if alpha is None else alpha)
    targets = sorted(map(module_of, factors)) if target_modules is None else list(target_modules)
    faults = [*_scaling_faults(rank, alpha), *_factor_faults(factors, targets)]
    if faults:
        raise CheckpointError(f"{folder} cannot be written as an adapter", capped(faults, limit=_MAX_FAULTS))
    config = _adapter_config(factors, rank, alpha, targets, base_name=base_name, fan_in_fan_out=fan_in_fan_out)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    tensors = _adapter_tensors(factors, alpha / rank, fan_in_fan_out=fan_in_fan_out)
    with partial_folder(folder, needed_bytes=len(text) + sum(array.nbytes for array in tensors.values())) as partial:
        write_bytes(partial / "adapter_config.json", text)
        write_checkpoint(partial / "adapter_model.safetensors", tensors, metadata=metadata)


def remove_partials(folder: str | Path) -> list[Path]:
    """Removes what killed writers have left in a folder; for a moment when no writer is at work there.

    Args:
        folder: The folder to clean; its subfolders are left alone.

    Returns:
        The paths that were removed, sorted; other files, hidden ones included, are never touched.

    Raises:
        StorageError: the folder cannot be read, or a leftover cannot be removed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     remove_partials(folder)
        []
    """
    try:
        leftovers = sorted(path for path in Path(folder).iterdir() if _PARTIAL.fullmatch(path.name))
        for path in leftovers:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise _storage_error(Path(folder), "leftovers cannot be removed", error) from error
    return leftovers


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────────


def _sources(tensors: Mapping[str, np.ndarray] | Iterable[Source]) -> Iterator[Source]:
    if not isinstance(tensors, Mapping):
        yield from tensors
        return
    for name, array in tensors.items():
        yield TensorSpec(name, array.shape, array.dtype.name), functools.partial(np.asarray, array)


def _source_faults(specs: Sequence[TensorSpec]) -> list[str]:
    """Returns what cannot be written, given the specs sorted by name."""
    faults = [f"tensor {shown(a.name)} is given twice" for a, b in itertools.pairwise(specs) if a.name == b.name]
    for spec in specs:
        faults.extend(_text_faults("tensor name", spec.name))
        if spec.name == "__metadata__":
            faults.append("tensor '__metadata__': the format keeps this name for itself")
        if spec.dtype not in CODES:
            faults.append(
                f"tensor {shown(spec.name)}: dtype {spec.dtype} has no code in the format; it has {', '.join(CODES)}"
            )
        if not all(isinstance(extent, int) and extent >= 0 for extent in spec.shape):
            faults.append(f"tensor {shown(spec.name)}: shape {list(spec.shape)} is not made of non-negative integers")
    return faults


def _metadata_faults(metadata: Mapping[str, str]) -> list[str]:
    return [fault for pair in metadata.items() for text in pair for fault in _text_faults("metadata", text)]


def _text_faults(what: str, text: object) -> list[str]:
    if not isinstance(text, str):
        return [f"{what} {shown(text)} is not a text but {type(text).__name__}"]
    try:
        text.encode()
    except UnicodeEncodeError:
        return [f"{what} {shown(text)} holds half of a surrogate pair, which is not a Unicode text"]
    return []


def _content(path: Path, spec: TensorSpec, array: np.ndarray) -> memoryview:
    """Returns a tensor's bytes as the file holds them: row by row, little-endian."""
    if array.shape != spec.shape or array.dtype.name != spec.dtype:
        asked, found = f"{spec.dtype} {list(spec.shape)}", f"{array.dtype.name} {list(array.shape)}"
        fault = f"tensor {shown(spec.name)} was announced as {asked}, its function returned {found}"
        raise CheckpointError(f"{path} cannot be written", [fault])
    flat = np.ascontiguousarray(array, dtype=DTYPES[CODES[spec.dtype]]).reshape(-1)
    return flat.view(np.uint8).data


def _scaling_faults(rank: int, alpha: float) -> list[str]:
    faults = [] if rank >= 1 else [f"rank {rank} is not at least 1"]
    return faults if np.isfinite(alpha) and alpha > 0 else [*faults, f"alpha {alpha} is not a positive number"]


def _factor_faults(factors: Mapping[str, Factors], targets: Sequence[str]) -> list[str]:
    faults = [] if factors else ["there are no factors"]
    for name, (left, right) in factors.items():
        module = module_of(name)
        if not name.endswith(".weight"):
            faults.append(f"{shown(name)} does not end in .weight; an adapter changes weight matrices only")
        elif not any(module == target or module.endswith(f".{target}") for target in targets):
            faults.append(
                f"{shown(name)}: no entry of target_modules {list(targets)} names it; PEFT would leave it out"
            )
        if left.ndim != 2 or right.ndim != 2 or left.shape[-1] != right.shape[0] or left.shape[-1] == 0:
            shapes = f"left {list(left.shape)} and right {list(right.shape)}"
            faults.append(f"{shown(name)}: {shapes} are not an (m, r) and an (r, n) matrix")
        if left.dtype != np.float32 or right.dtype != np.float32:
            faults.append(f"{shown(name)}: left is {left.dtype}, right is {right.dtype}; both must be float32")
    return faults


def _adapter_config(
    factors: Mapping[str, Factors],
    rank: int,
    alpha: float,
    targets: Sequence[str],
    *,
    base_name: str | None,
    fan_in_fan_out: bool,
) -> dict[str, object]:
    # "^" and the escaped full path: PEFT would otherwise match another module that ends in the same path
    ranks = {"^" + re.escape(module_of(name)): pair.right.shape[0] for name, pair in sorted(factors.items())}
    others = {module: other for module, other in ranks.items() if other != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,  # as PEFT writes it; some engines expect an integer
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "fan_in_fan_out": fan_in_fan_out,
        "modules_to_save": None,
        "target_modules": list(targets),
        "rank_pattern": others,
        "alpha_pattern": {module: alpha * other / rank for module, other in others.items()},
    }


def _adapter_tensors(factors: Mapping[str, Factors], scaling: float, *, fan_in_fan_out: bool) -> dict[str, np.ndarray]:
    """Returns PEFT's tensors; the scaling is taken out of `left`, where `open_adapter` puts it back."""
    tensors = {}
    for name, (left, right) in factors.items():
        unscaled = left if scaling == 1 else left / np.float32(scaling)
        first, second = (unscaled.T, right.T) if fan_in_fan_out else (right, unscaled)  # (r, n), (m, r)
        tensors[f"base_model.model.{module_of(name)}.lora_A.weight"] = first
        tensors[f"base_model.model.{module_of(name)}.lora_B.weight"] = second
    return tensors


# ── how it is written ────────────────────────────────────────────────────────────────────────────────────────────────


@final
class _Partial:
    """A file that takes its final name when it is complete, and disappears on any exception."""

    def __init__(self, path: Path, *, needed_bytes: int) -> None:
        self._path = path
        self._needed_bytes = needed_bytes
        self._temporary = _temporary_name(path)
        self._file = -1

    def __enter__(self) -> _Partial:
        with self._translated():
            _check_space(self._path.parent, self._needed_bytes)
            # not tempfile: its files are closed to the group, whatever the umask says
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            self._file = os.open(self._temporary, flags, 0o666)
        return self

    def write(self, content: bytes | memoryview) -> None:
        """Appends all of the content; the system may take it in several parts."""
        with self._translated(), memoryview(content) as rest:
            written = 0
            while written < len(rest):
                written += os.write(self._file, rest[written:])

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with self._translated():
                os.fsync(self._file)
                self._close()  # before the rename: a network disk may refuse the bytes only now
                os.replace(self._temporary, self._path)
        except BaseException:  # whatever stops it, Ctrl-C included, nothing half-written stays behind
            self._discard()
            raise
        with self._translated():
            _sync_folder(self._path.parent)

    def _discard(self) -> None:
        # what went wrong first is what the user needs to read; a leftover has a recognisable name
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, -1  # never closed twice: the number may belong to another thread's file by then
        if file >= 0:
            os.close(file)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns the system's errors into ours; a tensor's own function runs outside, its errors are its own."""
        try:
            yield
        except OSError as error:
            raise _storage_error(self._path, f"{self._needed_bytes} bytes cannot be written", error) from error


@contextlib.contextmanager
def partial_folder(folder: str | Path, *, needed_bytes: int, sync: bool = True) -> Iterator[Path]:
    """Makes a folder that takes its final name when it is complete, and disappears on any exception.

    What a killed process has left for the same folder is removed first; what a living one is at work on is not touched.

    Args:
        folder: Does not exist, or is empty; its parent exists.
        needed_bytes: How much will be written into it; more than is free is refused at once.
        sync: Whether the rename is on the disk when this returns; without it a power cut may take it back.

    Yields:
        The folder to write into, beside the final one.

    Raises:
        StorageError: The system refused, or the folder exists and is not empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with partial_folder(f"{parent}/merged", needed_bytes=2) as folder:
        ...         write_bytes(folder / "config.json", b"{}")
        ...     os.listdir(f"{parent}/merged")
        ['config.json']
    """
    folder = Path(folder)
    temporary = _temporary_name(folder)
    owner = -1
    try:
        _refuse_taken(folder)
        _remove_abandoned(folder)
        _check_space(folder.parent, needed_bytes)
        temporary.mkdir()
        owner = _own(temporary)
        yield temporary
        if sync:
            _sync_folder(temporary)
        os.rename(temporary, folder)
        if sync:
            _sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise _storage_error(folder, f"{needed_bytes} bytes cannot be written", error) from error
        raise
    finally:
        if owner >= 0:
            os.close(owner)


def _own(folder: Path) -> int:
    """Locks a folder for as long as this process lives, so that others know that somebody is at work there."""
    file = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOLCK):  # a file system without locks
            os.close(file)
            raise
    return file


def _remove_abandoned(folder: Path) -> None:
    """Removes the partial folders of this name whose owner is gone."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        if not _PARTIAL.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        try:
            owner = _own(path)
        except OSError:  # somebody is at work on it, or it is not ours to look at
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(owner)


def _refuse_taken(folder: Path) -> None:
    """Refuses a name that is taken before anything is written; the rename itself would refuse it too."""
    if folder.is_dir() and any(folder.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def _check_space(folder: Path, needed_bytes: int) -> None:
    """Refuses at once what would fill the disk only after a long time of writing; quotas are met while writing."""
    status = os.statvfs(folder)
    free_bytes = status.f_bavail * status.f_frsize
    # a file system without a size of its own reports zero blocks
    if status.f_blocks and needed_bytes > free_bytes:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free_bytes} bytes are free")


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that order renames by themselves
            raise
    finally:
        os.close(file)


def _storage_error(path: Path, what: str, error: OSError) -> StorageError:
    remedy = _REMEDIES.get(error.errno or 0, "check the disk and the path")
    wrapped = StorageError(f"{path}: {what}: {error.strerror or error}; {remedy}")
    wrapped.errno = error.errno
    return wrapped
