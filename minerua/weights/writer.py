"""Writing weights: checkpoints and adapters in the layouts that others read; each appears complete or not at all."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np

from minerua.errors import CheckpointError, StorageError
from minerua.values import TensorSpec
from minerua.weights.adapter import Factors, module_of
from minerua.weights.atomic import Partial, partial_folder, write_bytes
from minerua.weights.header import CODES, DTYPES, MAX_HEADER_BYTES, capped, encode_header, nbytes, shown

Source = tuple[TensorSpec, Callable[[], np.ndarray]]
"""A tensor to write: what it is, and a function that makes it when its turn comes."""

_MAX_FAULTS = 100
_ALIGNMENT_BYTES = 64  # of the first tensor in a file that grows


class Product(NamedTuple):
    """Factors of one tensor that are made when they are written.

    Args:
        shape: (m, r, n): `left @ right` is m × n, of rank r.
        left: Makes the left factor, shape (m, r), float32.
        right: Makes the right factor, shape (r, n), float32.
    """

    shape: tuple[int, int, int]
    left: Callable[[], np.ndarray]
    right: Callable[[], np.ndarray]


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
    sources = list(_sources(tensors))
    makers = {spec.name: make for spec, make in sources}
    write_checkpoints([path], [spec for spec, _ in sources], lambda spec: [[makers[spec.name]()]], metadata=[metadata])


def write_checkpoints(
    paths: Sequence[str | Path],
    specs: Iterable[TensorSpec],
    blocks: Callable[[TensorSpec], Iterable[Iterable[np.ndarray]]],
    *,
    metadata: Iterable[Mapping[str, str] | None] | None = None,
) -> None:
    """Writes several safetensors files of one layout side by side, block by block; each appears complete or not at all.

    The order of the tensors is that of `write_checkpoint`. After an exception none of the files has appeared, unless it
    was the last step of one that failed, its renaming: then those after it in `paths` have.

    Args:
        paths: P files to write, all different; their folders exist.
        specs: What every file holds; integer extents.
        blocks: Called once per tensor, in the order of the files: returns the tensor in parts that follow each other
            along its first axis, each as P arrays of the spec's dtype, one per file; each is taken when its turn comes.
        metadata: P times free texts for the header, as in `write_checkpoint`; taken one by one.

    Raises:
        CheckpointError: as `write_checkpoint`, or a path is given twice.
        StorageError: the system refused to write; the message names the bytes needed and the remedy.

    Example:
        >>> import tempfile
        >>> spec, ones = TensorSpec("w", (4,), "float32"), np.ones(2, np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = [f"{folder}/{name}.safetensors" for name in "ab"]
        ...     write_checkpoints(paths, [spec], lambda spec: [(ones, 2 * ones), (3 * ones, 4 * ones)])
    """
    files = [Path(path) for path in paths]
    ordered = sorted(specs, key=lambda spec: spec.name)
    faults = [*_source_faults(ordered), *_path_faults(files)]
    if not faults:
        ordered.sort(key=lambda spec: -DTYPES[CODES[spec.dtype]].itemsize)  # stable: by name within a width
    with contextlib.ExitStack() as stack:
        partials = []
        for file, given in zip(files, [None] * len(files) if metadata is None else metadata, strict=True):
            header = _header(file, ordered, {"format": "pt", **(given or {})}, faults)
            needed_bytes = len(header) + len(files) * sum(map(nbytes, ordered))  # headers are small beside the tensors
            partials.append(stack.enter_context(Partial(file, needed_bytes=needed_bytes)))
            partials[-1].write(header)
        for spec in ordered:
            _write_blocks(files, partials, spec, blocks(spec))


@final
class GrowingCheckpoint:
    """A safetensors file whose tensors are written before it is known how many and how large they will be.

    Room for the header is left at the beginning, and filled at the end, the rest with spaces: until then the file is no
    checkpoint. It belongs into a folder that appears whole or not at all (`partial_folder`).

    Args:
        path: The file to make.
        header_bytes: Room for the header.

    Raises:
        StorageError: the system refused to write.
    """

    def __init__(self, path: Path, *, header_bytes: int) -> None:
        self._path = path
        self._begin = 8 + header_bytes + -(8 + header_bytes) % _ALIGNMENT_BYTES
        self._written_bytes = 0
        with self._translated():
            self._file = path.open("wb")
            self._file.seek(self._begin)

    def __enter__(self) -> GrowingCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, array: np.ndarray) -> None:
        """Appends an array's bytes; one tensor may be written in several arrays."""
        content = _bytes_of(array)
        with self._translated():
            self._file.write(content)
        self._written_bytes += len(content)

    def finish(self, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> None:
        """Writes the header for what has been written, in its order, and brings all of it to the disk.

        Raises:
            CheckpointError: The header is longer than its room, or the specs take other bytes than were written.
            StorageError: the system refused to write.
        """
        room, header = self._begin - 8, encode_header(specs, metadata)[8:]
        needed_bytes = sum(map(nbytes, specs))
        if len(header) > room or needed_bytes != self._written_bytes:
            faults = [f"the header takes {len(header)} bytes, its room is {room}"] if len(header) > room else []
            if needed_bytes != self._written_bytes:
                faults.append(f"the tensors take {needed_bytes} bytes, {self._written_bytes} were written")
            raise CheckpointError(f"{self._path} cannot be finished", faults)
        with self._translated():
            self._file.seek(0)
            self._file.write(room.to_bytes(8, "little") + header.ljust(room))
            self._file.flush()
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            so_far = f"after {self._written_bytes} bytes: {error.strerror or error}"
            raise StorageError(f"{self._path}: {so_far}; free some space, or write to another disk") from error


def write_adapter(
    folder: str | Path,
    factors: Mapping[str, Factors] | Mapping[str, Product],
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
            tensor. Or products, which are made one factor at a time, so that no more than one is in memory.
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
    products = {name: _product(pair) for name, pair in factors.items()}
    ranks = {name: product.shape[1] for name, product in products.items()}
    config = _adapter_config(ranks, rank, alpha, targets, base_name=base_name, fan_in_fan_out=fan_in_fan_out)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    tensors = list(_adapter_tensors(products, alpha / rank, fan_in_fan_out=fan_in_fan_out))
    with partial_folder(folder, needed_bytes=len(text) + sum(nbytes(spec) for spec, _ in tensors)) as partial:
        write_bytes(partial / "adapter_config.json", text)
        write_checkpoint(partial / "adapter_model.safetensors", tensors, metadata=metadata)


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


def _path_faults(paths: Sequence[Path]) -> list[str]:
    ordered = sorted(paths)
    return [f"{one} is given twice; name another file" for one, two in itertools.pairwise(ordered) if one == two]


def _header(path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str], faults: Sequence[str]) -> bytes:
    """Returns a file's header; refuses what is wrong with it, and what is already known to be wrong."""
    faults = [*faults, *_metadata_faults(metadata)]
    header = b"" if faults else encode_header(specs, metadata)
    if len(header) - 8 > MAX_HEADER_BYTES:
        faults = [f"names and metadata take {len(header) - 8} bytes, a header's limit is {MAX_HEADER_BYTES}"]
    if faults:
        raise CheckpointError(f"{path} cannot be written", capped(faults, limit=_MAX_FAULTS))
    return header


def _write_blocks(
    paths: Sequence[Path], partials: Sequence[Partial], spec: TensorSpec, blocks: Iterable[Iterable[np.ndarray]]
) -> None:
    """Writes one tensor to all files, and checks that what came is what was announced."""
    written, asked = [0] * len(paths), f"{spec.dtype} {list(spec.shape)}"
    for block in blocks:
        for file, array in zip(range(len(paths)), block, strict=True):
            if array.dtype.name != spec.dtype or array.shape[1:] != spec.shape[1:] or array.ndim != len(spec.shape):
                raise _announced(paths[file], spec, asked, f"{array.dtype.name} {list(array.shape)}")
            partials[file].write(_bytes_of(array))
            written[file] += len(array) if spec.shape else 1
    for path, rows in zip(paths, written, strict=True):
        if rows != (spec.shape[0] if spec.shape else 1):
            raise _announced(path, spec, asked, f"{spec.dtype} {[rows, *spec.shape[1:]]}")


def _announced(path: Path, spec: TensorSpec, asked: str, found: str) -> CheckpointError:
    fault = f"tensor {shown(spec.name)} was announced as {asked}, its function returned {found}"
    return CheckpointError(f"{path} cannot be written", [fault])


def _bytes_of(array: np.ndarray) -> memoryview:
    """Returns a tensor's bytes as the file holds them: row by row, little-endian."""
    flat = np.ascontiguousarray(array, dtype=DTYPES[CODES[array.dtype.name]]).reshape(-1)
    return flat.view(np.uint8).data


def _scaling_faults(rank: int, alpha: float) -> list[str]:
    faults = [] if rank >= 1 else [f"rank {rank} is not at least 1"]
    return faults if np.isfinite(alpha) and alpha > 0 else [*faults, f"alpha {alpha} is not a positive number"]


def _factor_faults(factors: Mapping[str, Factors] | Mapping[str, Product], targets: Sequence[str]) -> list[str]:
    faults = [] if factors else ["there are no factors"]
    for name, pair in factors.items():
        module = module_of(name)
        if not name.endswith(".weight"):
            faults.append(f"{shown(name)} does not end in .weight; an adapter changes weight matrices only")
        elif not any(module == target or module.endswith(f".{target}") for target in targets):
            faults.append(
                f"{shown(name)}: no entry of target_modules {list(targets)} names it; PEFT would leave it out"
            )
        if isinstance(pair, Factors):
            faults.extend(f"{shown(name)}: {fault}" for fault in _pair_faults(pair))
    return faults


def _pair_faults(pair: Factors) -> Iterator[str]:
    left, right = pair
    if left.ndim != 2 or right.ndim != 2 or left.shape[-1] != right.shape[0] or left.shape[-1] == 0:
        yield f"left {list(left.shape)} and right {list(right.shape)} are not an (m, r) and an (r, n) matrix"
    if left.dtype != np.float32 or right.dtype != np.float32:
        yield f"left is {left.dtype}, right is {right.dtype}; both must be float32"


def _product(pair: Factors | Product) -> Product:
    if isinstance(pair, Product):
        return pair
    left, right = pair
    return Product((*left.shape, right.shape[1]), lambda: left, lambda: right)


def _adapter_config(
    ranks: Mapping[str, int],
    rank: int,
    alpha: float,
    targets: Sequence[str],
    *,
    base_name: str | None,
    fan_in_fan_out: bool,
) -> dict[str, object]:
    # "^" and the escaped full path: PEFT would otherwise match another module that ends in the same path
    modules = {"^" + re.escape(module_of(name)): other for name, other in sorted(ranks.items())}
    others = {module: other for module, other in modules.items() if other != rank}
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


def _adapter_tensors(factors: Mapping[str, Product], scaling: float, *, fan_in_fan_out: bool) -> Iterator[Source]:
    """Yields PEFT's tensors; the scaling is taken out of `left`, where `open_adapter` puts it back."""
    for name, (shape, left, right) in factors.items():
        unscaled = functools.partial(_unscaled, left, scaling)
        first, second = (unscaled, right) if fan_in_fan_out else (right, unscaled)
        yield _side(name, "A", first, (shape[1], shape[0] if fan_in_fan_out else shape[2]), fan_in_fan_out)
        yield _side(name, "B", second, (shape[2] if fan_in_fan_out else shape[0], shape[1]), fan_in_fan_out)


def _unscaled(left: Callable[[], np.ndarray], scaling: float) -> np.ndarray:
    return left() if scaling == 1 else left() / np.float32(scaling)


def _side(name: str, side: str, make: Callable[[], np.ndarray], shape: tuple[int, int], transposed: bool) -> Source:
    """Returns lora_A, (r, n), or lora_B, (m, r), of one module."""
    spec = TensorSpec(f"base_model.model.{module_of(name)}.lora_{side}.weight", shape, "float32")
    return spec, (lambda: make().T) if transposed else make
