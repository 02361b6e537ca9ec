"""The models that a recipe names: opened by their headers, read a tensor at a time.

A model is a folder in the Hugging Face layout or a single file: safetensors, or torch's own `.bin` through torch's
weights-only loader; with `+`, a LoRA adapter is applied to it wherever its tensors are read, and nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import numpy as np

from minerua.errors import CheckpointError
from minerua.kernels.passes import Source
from minerua.values import TensorSpec
from minerua.weights import Checkpoint, Factors, open_adapter, open_checkpoint
from minerua.weights.header import CODES, parse_object

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of torch's own files."""

_MAX_CONFIG_BYTES = 10_000_000


@final
@dataclass(frozen=True, eq=False)
class Model:
    """A model that can be merged; made by `open_model` and `in_memory`.

    Args:
        text: What the recipe calls it.
        path: Where its weights are.
        specs: Tensor name → its spec, as the model has it with its adapter applied.
        config: What its `config.json` says; empty without one.
        factors: Tensor name → the adapter's factors, which are added to that tensor.
    """

    text: str
    path: Path
    specs: Mapping[str, TensorSpec]
    config: Mapping[str, Any]
    factors: Mapping[str, Factors]
    _tensor: Callable[[str], np.ndarray] = field(repr=False)
    _checkpoint: Checkpoint | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """The folder with its configuration and tokenizer; one that does not exist, of a model in memory."""
        return self.path.parent if os.path.isfile(self.path) else self.path

    def tensor(self, name: str) -> np.ndarray:
        """Returns a tensor as it is stored, without the adapter; read-only."""
        return self._tensor(name)

    def source(self, name: str) -> Source:
        """Returns a tensor as the passes read it, with the adapter; float64 is rounded to float32 first."""
        array = self._tensor(name)
        if array.dtype == np.float64:
            with np.errstate(over="ignore"):  # what becomes infinite is counted, and reported by name
                array = array.astype(np.float32)
        pair = self.factors.get(name)
        return Source(array) if pair is None else Source(array, left=pair.left, right=pair.right)

    def with_adapter(self, text: str, adapter: tuple[str, str | None] | None) -> Model:
        """Returns the model with an adapter applied to it.

        Args:
            text: What messages call the result.
            adapter: Where the adapter is, and its revision; `None` for none.

        Raises:
            CheckpointError: The adapter cannot be used; lists all faults.
        """
        if adapter is None:
            return replace(self, text=text)
        where = locate(text, *adapter)
        try:
            return replace(self, text=text, factors=open_adapter(where, self).factors)
        except CheckpointError as error:
            raise CheckpointError(f"{text} cannot be opened", error.faults or [error.message]) from error

    def place(self, name: str) -> tuple[int, int]:
        """Returns what orders tensors as they lie on the disk; the same for all where that is not known."""
        return (0, 0) if self._checkpoint is None else self._checkpoint.place(name)

    def read_ahead(self, name: str) -> None:
        """Asks the system to fetch a tensor from the disk before it is looked at."""
        if self._checkpoint is not None:
            self._checkpoint.read_ahead(name)


def open_model(
    text: str, path: str, *, revision: str | None = None, adapter: tuple[str, str | None] | None = None
) -> Model:
    """Opens a model by its headers.

    Args:
        text: What messages call it.
        path: A folder, a file, or the name of a repository in the local Hugging Face cache.
        revision: Of the repository; default `main`.
        adapter: Where a LoRA adapter in PEFT's layout is, a folder or a repository, and its revision; or `None`.

    Raises:
        CheckpointError: The weights, the adapter or the configuration cannot be used; lists all faults.

    Example:
        >>> open_model("coder", "nowhere")
        Traceback (most recent call last):
        minerua.errors.CheckpointError: coder cannot be opened
          - nowhere is neither a file nor a folder, nor in the local cache; if it is a repository: hf download nowhere
    """
    place = locate(text, path, revision)
    try:
        model = _from_pickles(text, place) if _is_pickled(place) else _from_safetensors(text, place)
    except CheckpointError as error:
        raise CheckpointError(f"{text} cannot be opened", error.faults or [error.message]) from error
    return model.with_adapter(text, adapter)


def promised_model(text: str, specs: Mapping[str, TensorSpec], config: Mapping[str, Any], folder: Path) -> Model:
    """Returns a model that does not exist yet, for plans.

    Args:
        text: What messages call it.
        specs: Tensor name → spec.
        config: What its `config.json` will say.
        folder: Where its tokenizer is to be found.
    """
    return Model(text, folder, specs, config, MappingProxyType({}), _absent)


def _absent(name: str) -> np.ndarray:
    raise RuntimeError(f"tensor {name!r} was looked at before it was merged")


def in_memory(text: str, tensors: Mapping[str, Any]) -> Model:
    """Returns a model whose tensors are arrays.

    Args:
        text: What messages call it.
        tensors: Tensor name → numpy array or torch tensor on the CPU; borrowed.

    Raises:
        CheckpointError: A value is neither.

    Example:
        >>> in_memory("coder", {"w": np.zeros(2, np.float32)}).specs["w"].shape
        (2,)
    """
    from minerua.kernels.arrays import described, on_host

    kinds = {name: described(tensor) for name, tensor in tensors.items()}
    faults = [f"tensor {name!r} is a {kind.kind}" for name, kind in kinds.items() if not kind.is_array]
    if faults:
        raise CheckpointError(f"{text} holds what is neither a numpy array nor a torch tensor", faults)
    arrays = {name: on_host(tensor) for name, tensor in tensors.items()}
    return Model(text, Path(text), _specs(arrays), {}, MappingProxyType({}), arrays.__getitem__)


# ── where it is ──────────────────────────────────────────────────────────────────────────────────────────────────────


def locate(text: str, path: str, revision: str | None = None) -> Path:
    """Returns the folder or file that a recipe means: a local path, or a snapshot in the local cache.

    Args:
        text: What messages call it.
        path: As the recipe says.
        revision: Of the repository; a local path has none.

    Raises:
        CheckpointError: It is nowhere.
    """
    if _is_local(path, revision):
        return Path(os.path.expanduser(path))
    snapshot = _snapshot(path, revision or "main")
    if snapshot is None:
        wanted = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"{text} cannot be opened",
            [
                f"{path} is neither a file nor a folder, nor in the local cache; if it is a repository: "
                f"hf download {path}{wanted}"
            ],
        )
    return snapshot


def is_cached(path: str, revision: str | None = None) -> bool:
    """Whether a recipe means a repository that is in the local cache, not a local path.

    Args:
        path: As the recipe says.
        revision: Of the repository.
    """
    return not _is_local(path, revision) and _snapshot(path, revision or "main") is not None


def _is_local(path: str, revision: str | None) -> bool:
    return revision is None and os.path.exists(os.path.expanduser(path))  # unlike pathlib's, these take any text


def _snapshot(repository: str, revision: str) -> Path | None:
    """Returns where the Hugging Face cache holds a repository; its layout is fixed, so no library is needed.

    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
    """
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    folder = cache / f"models--{repository.replace('/', '--')}"
    try:
        named = folder / "refs" / revision
        commit = named.read_text("utf-8").strip() if named.is_file() else revision
        snapshot = folder / "snapshots" / commit
        return snapshot if snapshot.is_dir() else None
    except (OSError, ValueError):  # a name that no file system takes is simply not there
        return None


def _is_pickled(path: Path) -> bool:
    if not path.is_dir():
        return path.name.endswith(PICKLES) or path.name.endswith(".bin.index.json")
    names = sorted(child.name for child in path.iterdir())
    return not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names) and any(
        name.endswith(PICKLES) for name in names
    )


# ── what it holds ────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_safetensors(text: str, path: Path) -> Model:
    checkpoint = open_checkpoint(path)
    config = _read_config(path if path.is_dir() else path.parent)
    return Model(text, path, checkpoint.specs, config, MappingProxyType({}), checkpoint.tensor, checkpoint)


def _from_pickles(text: str, path: Path) -> Model:
    """Loads torch's own files: their pickles may only build tensors, and the tensors are mapped, not read."""
    arrays: dict[str, np.ndarray] = {}
    faults: list[str] = []
    for file, promised in _pickle_files(path, faults).items():
        held, more = _load_pickle(file)
        faults += more or [
            f"{file.name} lacks {name!r}, which the index puts there" for name in promised if name not in held
        ]
        faults += [f"{file.name}: tensor {name!r} is in two files" for name in held if name in arrays]
        arrays |= held
    if faults:
        raise CheckpointError(f"{path} cannot be opened as a checkpoint", faults)
    config = _read_config(path if path.is_dir() else path.parent)
    return Model(text, path, _specs(arrays), config, MappingProxyType({}), arrays.__getitem__)


def _pickle_files(path: Path, faults: list[str]) -> dict[Path, list[str]]:
    """Returns the files that a model is made of, and the tensors that its index, if there is one, says are in each."""
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir())
        index = [name for name in names if name.endswith(".bin.index.json")]
        whole = [name for name in names if name.endswith(PICKLES) and name != "training_args.bin"]
        path = path / (index or [name for name in whole if name.startswith("pytorch_model")] or whole)[0]
    if not path.name.endswith(".index.json"):
        return {path: []}
    weight_map = _read_object(path, faults).get("weight_map")
    if faults or not isinstance(weight_map, dict):
        faults += [] if faults else [f"{path.name} has no weight_map, which says where tensors are"]
        return {}
    files: dict[Path, list[str]] = {}
    for tensor, name in sorted(weight_map.items()):
        if not isinstance(name, str) or Path(name).name != name:
            faults.append(f"{path.name} puts {tensor!r} into {name!r}, which is not a file beside it")
        else:
            files.setdefault(path.parent / name, []).append(tensor)
    return files


def _read_object(path: Path, faults: list[str]) -> dict[str, Any]:
    """Returns what a JSON file holds; empty, with a fault, if it holds no object or cannot be read."""
    try:
        content, found = parse_object(path.read_bytes(), what=path.name)
    except OSError as error:
        content, found = {}, [f"{path.name}: {error.strerror or error}"]
    faults += found
    return content


def _load_pickle(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    import torch

    from minerua.kernels.arrays import on_host

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # noqa: BLE001 - torch raises whatever its unpickler meets in a stranger's file
        first = str(error).strip().splitlines() or [""]
        return {}, [f"{path.name} cannot be loaded by torch's weights-only loader: {type(error).__name__}: {first[0]}"]
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        return {}, [f"{path.name} holds a {type(loaded).__name__}, not named tensors"]
    others = [name for name, tensor in loaded.items() if not isinstance(tensor, torch.Tensor)]
    faults = [f"{path.name}: {name!r} is a {type(loaded[name]).__name__}, not a tensor" for name in others]
    faults += [f"{path.name}: {name!r} is no text that could name a tensor" for name in loaded if type(name) is not str]
    strange = [n for n, t in loaded.items() if isinstance(t, torch.Tensor) and not _is_plain(t)]
    faults += [f"{path.name}: tensor {name!r} is {loaded[name].dtype}, {loaded[name].layout}" for name in strange]
    return ({} if faults else {name: on_host(tensor) for name, tensor in loaded.items()}), faults


def _is_plain(tensor: Any) -> bool:
    """Whether numpy can look at a tensor: its numbers are there, one after another, and of a kind that it knows."""
    is_here = str(tensor.layout) == "torch.strided" and tensor.device.type == "cpu" and not tensor.is_quantized
    dtype = str(tensor.dtype).removeprefix("torch.")
    return is_here and dtype in CODES and not dtype.startswith("float8")


def _is_zip(path: Path) -> bool:
    """Whether torch can map the file: what it wrote before 1.6 is not a zip archive, and is read as a whole."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _specs(arrays: Mapping[str, np.ndarray]) -> Mapping[str, TensorSpec]:
    names = sorted(arrays)
    return MappingProxyType({name: TensorSpec(name, arrays[name].shape, arrays[name].dtype.name) for name in names})


def _read_config(folder: Path) -> Mapping[str, Any]:
    """Returns what a model says of itself; weights without a `config.json` are as good."""
    path = folder / "config.json"
    if not path.is_file():
        return MappingProxyType({})
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        fault = f"{path} has more than {_MAX_CONFIG_BYTES} bytes: no configuration is that large"
        raise CheckpointError(f"{folder} cannot be opened", [fault])
    faults: list[str] = []
    content = _read_object(path, faults)
    if faults:
        raise CheckpointError(f"{path} cannot be read", faults)
    return MappingProxyType(content)
