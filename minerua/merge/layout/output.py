"""The merged model's folder, in the Hugging Face layout: which tensor lies where in which file, and the files beside.

Nothing here writes: the engine owns the temporary folder, and the rename that makes it the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minerua.errors import CheckpointError, ConfigError
from minerua.merge.layout.configuration import translate_ids
from minerua.merge.tokenizers.vocabulary import read_bytes
from minerua.values import TensorSpec
from minerua.weights.header import CODES, DTYPES, MAX_HEADER_BYTES, capped, encode_header, nbytes, parse_object, shown

RECIPE_FILE = "minerua_recipe.yml"
"""The recipe, in the merged model's folder, as it was written."""

INDEX_FILE = "model.safetensors.index.json"
"""Which tensor is in which file, where there is more than one."""

TRAVELLING = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Files beside the tokenizer's that a model needs to be used and that merging does not change."""

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "B": 10**9,
    "G": 10**9,
    "T": 10**12,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
_MAX_FAULTS = 20
_MAX_SHARDS = 99_999  # five digits in a file's name


class Shard(NamedTuple):
    """One file of a checkpoint, before it is written.

    Args:
        file_name: Such as `model-00001-of-00004.safetensors`.
        header: The file's first bytes.
        tensors: Each tensor with the offset of its first byte in the file, in the order in which they lie there; they
            follow the header without holes, each aligned to its element size.
    """

    file_name: str
    header: bytes
    tensors: tuple[tuple[TensorSpec, int], ...]

    @property
    def nbytes(self) -> int:
        """The file's size."""
        return len(self.header) + sum(nbytes(spec) for spec, _ in self.tensors)


class Travelling(NamedTuple):
    """Files that are copied from the donor.

    Args:
        files: Name → content.
        notes: What was left behind, and why, in sentences.
    """

    files: Mapping[str, bytes]
    notes: tuple[str, ...]


def lay_out(specs: Sequence[TensorSpec], shard_bytes: int) -> tuple[Shard, ...]:
    """Decides where every tensor lies.

    The order is kept, so that a checkpoint which is read in the order in which its first model lies on the disk is
    written in that order, too. Inside a file tensors with wider elements come first: sizes are multiples of their
    elements' width, so every tensor is then aligned. Where all have one dtype, the usual case, this changes nothing.

    Args:
        specs: The tensors, in the order in which they will be merged; names differ, extents are integers, dtypes are
            known to the format.
        shard_bytes: The tensors of one file take at most this much; one that is larger has a file of its own.

    Returns:
        The files; a single one is named `model.safetensors`.

    Raises:
        ConfigError: `shard_bytes` is not positive, or needs more files than their names can number.
        CheckpointError: The tensors cannot be written, or the names in one file take more than a header may hold.

    Example:
        >>> specs = [TensorSpec("a", (4,), "float32"), TensorSpec("b", (2,), "float32")]
        >>> [shard.file_name for shard in lay_out(specs, 16)]
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    if shard_bytes < 1:
        raise ConfigError(f"files of {shard_bytes} bytes are asked for; a file holds one byte of tensors at least")
    _refuse_faults(specs)
    groups = _grouped(specs, shard_bytes)
    if len(groups) > _MAX_SHARDS:
        how_many = f"{len(groups)} files of {shard_bytes} bytes"
        raise ConfigError(f"{how_many} are more than the {_MAX_SHARDS} that can be numbered: ask for larger ones")
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    names = ["model.safetensors"] if len(groups) == 1 else names
    return tuple(_shard(name, group) for name, group in zip(names, groups, strict=True))


def index_file(shards: Sequence[Shard]) -> bytes | None:
    """Returns the content of `INDEX_FILE`; `None` for a single file, which needs none."""
    if len(shards) == 1:
        return None
    weight_map = {spec.name: shard.file_name for shard in shards for spec, _ in shard.tensors}
    total_size = sum(nbytes(spec) for shard in shards for spec, _ in shard.tensors)
    content = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    return _json(content)


def parse_size(size: int | str) -> int:
    """Reads a size in bytes.

    Args:
        size: A number of bytes, or a text: `K`, `M` and `B` for thousands, millions and billions of bytes, as in
            mergekit's `--out-shard-size`, where `5B` is 5 GB; `G`, `T`, `KB`, `MB`, `GB`, `TB`, powers of 1000;
            `KiB`, `MiB`, `GiB`, `TiB`, powers of 1024. Case does not matter, fractions such as `2.5GB` are taken.

    Raises:
        ConfigError: It is none of these, or less than one byte.

    Example:
        >>> parse_size("5B"), parse_size("4GiB"), parse_size("2.5 MB")
        (5000000000, 4294967296, 2500000)
    """
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Z]*)", str(size).strip().upper())
    unit = None if match is None else _UNITS.get(match[2])
    if match is None or unit is None:
        raise ConfigError(f"{shown(size)} is not a size in bytes; write for example 5GB, 500MB, 4GiB, or mergekit's 5B")
    whole, _, fraction = match[1].partition(".")
    parsed: int = int(whole) * unit + int(fraction or 0) * unit // 10 ** len(fraction)
    if parsed < 1:
        raise ConfigError(f"the size {shown(size)} is less than one byte")
    return parsed


def travelling_files(folder: Path, *, new_ids: Mapping[int, int] | None = None) -> Travelling:
    """Reads the files that are copied from the donor.

    Code is never copied, because whoever loads the merged model would run what nobody looked at; a note names it.

    Args:
        folder: The base's folder, or else the first model's.
        new_ids: Its token ids → the merged tokenizer's (`TokenizerPlan.new_ids`), where the tokenizer is made anew.

    Returns:
        Those of `TRAVELLING` that exist, ids of tokens in `generation_config.json` brought up to date.

    Raises:
        CheckpointError: A file cannot be read; lists all of them.
    """
    files: dict[str, bytes] = {}
    faults: list[str] = []
    notes: list[str] = []
    for name in TRAVELLING:
        if (folder / name).is_file():
            files[name], wrong = read_bytes(folder / name)
            faults += wrong
    if new_ids is not None and TRAVELLING[0] in files and not faults:
        content, wrong = parse_object(files[TRAVELLING[0]], what=TRAVELLING[0])
        faults += [f"{folder}: {fault}" for fault in wrong]
        translated, lost = translate_ids(content, new_ids)
        notes += [f"{TRAVELLING[0]}: {note}" for note in lost]
        files[TRAVELLING[0]] = files[TRAVELLING[0]] if translated == content else _json(translated)
    if faults:
        raise CheckpointError(f"the files beside the weights in {folder} cannot be copied", faults)
    code = sorted(path.name for path in folder.glob("*.py"))
    if code:
        names = ", ".join(capped(code, limit=8))
        notes.append(f"{folder} holds code, which is not copied: {names}; copy it yourself if you trust it")
    return Travelling(files, tuple(notes))


def model_card(
    name: str,
    *,
    method: str,
    models: Sequence[str],
    recipe: str,
    base: str | None = None,
    hub_names: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Writes the README.md of a merged model, with the front matter that the Hugging Face Hub reads.

    Args:
        name: The title: the folder's name.
        method: The merge method.
        models: What was merged, as the recipe calls it; the base need not be among them.
        recipe: The recipe as it was written.
        base: The base, as the recipe calls it; or `None`.
        hub_names: Those among them that are repositories on the Hub, for `base_model`; local paths mean nothing there.
        notes: What a user should know.

    Returns:
        Markdown; the same arguments give the same text.
    """
    lines = ["---"]
    if hub_names:
        lines += ["base_model:", *(f"- {_quoted(hub_name)}" for hub_name in hub_names), "base_model_relation: merge"]
    lines += ["library_name: transformers", "tags:", "- minerua", "- merge", "---", "", f"# {_prose(name)}", ""]
    lines += [f"A model merged by minerua with the method {_code(method)}. No training was done.", ""]
    lines += ["## What it is made of", ""]
    lines += [f"- {_code(model)}" for model in models if model != base]
    lines += [f"- {_code(base)}, the base"] if base is not None else []
    lines += ["", "## How to make it again", "", f"Put this into `{RECIPE_FILE}`, then", ""]
    lines += [f"    minerua merge {RECIPE_FILE} OUT_DIR", ""]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0))
    lines += [f"{fence}yaml", recipe.rstrip("\n"), fence, ""]
    if notes:
        lines += ["## Notes", "", *(f"- {_prose(note)}" for note in notes), ""]
    return "\n".join(lines)


# ── shards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_faults(specs: Sequence[TensorSpec]) -> None:
    seen: set[str] = set()
    faults = []
    for spec in specs:
        if spec.name in seen:
            faults.append(f"two merged tensors have the name {shown(spec.name)}")
        if spec.dtype not in CODES:
            faults.append(f"{shown(spec.name)} has the dtype {spec.dtype}, which safetensors cannot store")
        seen.add(spec.name)
    if faults:
        raise CheckpointError("the merged model cannot be laid out", capped(faults, limit=_MAX_FAULTS))


def _grouped(specs: Iterable[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        size = nbytes(spec)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += size
    return groups


def _shard(name: str, specs: Sequence[TensorSpec]) -> Shard:
    ordered = sorted(specs, key=lambda spec: -DTYPES[CODES[spec.dtype]].itemsize)  # stable: otherwise as they came
    header = encode_header(ordered, {"format": "pt"})  # transformers refuses files without this word
    if len(header) - 8 > MAX_HEADER_BYTES:
        fault = f"names take {len(header) - 8} bytes, a header's limit is {MAX_HEADER_BYTES}: ask for smaller files"
        raise CheckpointError(f"{name} would name more tensors than it can", [fault])
    tensors = []
    end = len(header)
    for spec in ordered:
        begin, end = end, end + nbytes(spec)
        tensors.append((spec, begin))
    return Shard(name, header, tuple(tensors))


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


def _quoted(text: str) -> str:
    """Returns a YAML scalar: a JSON string is one, whatever it holds."""
    return json.dumps(text)


def _line(text: str) -> str:
    """Returns a text that cannot break out of its line."""
    return " ".join(text.split())


def _prose(text: str) -> str:
    """Returns a text as a line of Markdown without HTML: tokens look like it."""
    return _line(text).replace("<", "\\<")


def _code(text: str) -> str:
    """Returns a text as Markdown shows it, letter by letter."""
    line = _line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
