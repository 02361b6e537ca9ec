"""Writing weights: checkpoints and adapters in the layouts that others read; each appears complete or not at all."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from minerua.errors import CheckpointError
from minerua.values import TensorSpec
from minerua.weights.adapter import Factors, module_of
from minerua.weights.atomic import Partial, partial_folder, write_bytes
from minerua.weights.header import CODES, DTYPES, MAX_HEADER_BYTES, capped, encode_header, nbytes, shown

Source = tuple[TensorSpec, Callable[[], np.ndarray]]
"""A tensor to write: what it is, and a function that makes it when its turn comes."""

_MAX_FAULTS = 100


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
    with Partial(path, needed_bytes=len(header) + sum(nbytes(spec) for spec, _ in sources)) as partial:
        partial.write(header)
        for spec, make in sources:
            partial.write(_content(path, spec, make()))


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
