"""Tiny worlds on disk: a base, experts of every kind, and a toy plugin whose model and tasks need only numpy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml

from minerua import EvaluatorSpec, ModelSpec, hookimpl
from minerua.registry import Registry
from minerua.values import MergeMethodSpec
from minerua.weights import Checkpoint, Factors, dense, open_checkpoint, write_adapter, write_checkpoint

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

SHAPES: Mapping[str, tuple[int, ...]] = {
    "body.weight": (8, 6),
    "body.bias": (8,),
    "conv.weight": (4, 3, 2, 2),
    "head.weight": (5, 8),
    "norm.weight": (6,),
    "temperature": (),
    "untouched.weight": (3, 3),
}
"""The floating tensors of a base: matrices, a convolution kernel, vectors, a scalar, and one that nobody changes."""

MATRICES = ("body.weight", "conv.weight", "head.weight")
LINEAR = ("body.weight", "head.weight")
SMALL = ("body.bias", "norm.weight", "temperature")
COUNTER = "steps"

Tensors = dict[str, np.ndarray]


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def base_tensors(*, seed: int = 0, dtype: str = "float32") -> Tensors:
    """Returns the tensors of a base, an integer counter included."""
    generator = np.random.default_rng(seed)
    tensors = {name: np.asarray(generator.normal(0, 0.5, shape), DTYPES[dtype]) for name, shape in SHAPES.items()}
    return tensors | {COUNTER: np.arange(3, dtype=np.int64)}


def tuned_tensors(base: Mapping[str, np.ndarray], *, seed: int, names: Sequence[str] | None = None) -> Tensors:
    """Returns a full fine-tune: the named tensors (all but the untouched one and the counter) changed by a fifth."""
    generator = np.random.default_rng(1000 + seed)
    names = [name for name in SHAPES if name != "untouched.weight"] if names is None else names
    changed = {name: base[name].astype(np.float32) + generator.normal(0, 0.1, SHAPES[name]) for name in names}
    return {name: np.asarray(changed.get(name, array), array.dtype) for name, array in base.items()}


def low_rank(shape: tuple[int, int], rank: int, *, seed: int) -> Factors:
    """Returns random factors of a matrix of this shape and rank."""
    generator = np.random.default_rng(2000 + seed)
    left, right = generator.normal(0, 0.3, (shape[0], rank)), generator.normal(0, 0.3, (rank, shape[1]))
    return Factors(left.astype(np.float32), right.astype(np.float32))


def write_model(folder: Path, tensors: Mapping[str, np.ndarray], *, shards: int = 1) -> Path:
    """Writes a checkpoint as one file or as shards with an index; returns what to open."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        write_checkpoint(folder / "model.safetensors", tensors)
        return folder
    names, where = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        write_checkpoint(folder / file, {name: tensors[name] for name in names[shard::shards]})
        where |= dict.fromkeys(names[shard::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def write_lora(folder: Path, ranks: Mapping[str, int], *, seed: int) -> Path:
    """Writes a LoRA adapter in PEFT's layout; `ranks` maps a base tensor to its rank."""
    shapes = {name: (SHAPES[name][0], SHAPES[name][1]) for name in ranks}
    factors = {name: low_rank(shapes[name], rank, seed=seed + i) for i, (name, rank) in enumerate(ranks.items())}
    write_adapter(folder, factors, rank=max(ranks.values()))
    return folder


def dense_of(vector: Mapping[str, Any]) -> Tensors:
    """Returns a task vector, dense, in float64."""
    return {name: dense(change).astype(np.float64) for name, change in vector.items()}


def assert_close(found: Mapping[str, Any], expected: Mapping[str, Any], *, tolerance: float = 2e-6) -> None:
    """Compares two task vectors; a tensor that one of them lacks is unchanged there."""
    for name in {*found, *expected}:
        zero = np.zeros(SHAPES[name])
        np.testing.assert_allclose(found.get(name, zero), expected.get(name, zero), rtol=0, atol=tolerance)


# ── a model and its tasks ────────────────────────────────────────────────────────────────────────────────────────────


def build(tensors: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a network of two layers from a base's tensors: (rows, 6) → (rows, 5)."""
    values = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}

    def network(x: np.ndarray) -> np.ndarray:
        hidden = np.tanh(x @ values["body.weight"].T + values["body.bias"])
        return np.asarray(hidden @ values["head.weight"].T)

    network.values = values  # type: ignore[attr-defined]
    return network


def activations(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    hidden = np.tanh(x @ model.values["body.weight"].T + model.values["body.bias"])
    return {"body.weight": x, "head.weight": np.asarray(hidden, np.float32)}


def inputs(ids: Sequence[str]) -> np.ndarray:
    """Returns the input of each item, drawn from its id: (rows, 6), float32."""
    seeds = [int.from_bytes(hashlib.blake2b(id.encode(), digest_size=4).digest(), "big") for id in ids]
    return np.stack([np.random.default_rng(seed).normal(size=6) for seed in seeds]).astype(np.float32)


def evaluator(task: int, *, items: int = 40) -> EvaluatorSpec:
    """Makes task number `task`: outcomes rise with output `task` of the network."""

    def evaluate(model: Any, ids: Sequence[str], seed: int) -> np.ndarray:
        return 1 / (1 + np.exp(-model(inputs(ids))[:, task].astype(np.float64)))

    return EvaluatorSpec(f"toy-{task}", lambda: [f"item-{i}" for i in range(items)], evaluate, inputs)


class Toys:
    """A plugin with the network and up to five tasks; anything can be put in its place or beside it."""

    def __init__(
        self,
        tasks: int = 3,
        *,
        evaluators: Sequence[EvaluatorSpec] = (),
        models: Sequence[ModelSpec] = (),
        merges: Sequence[MergeMethodSpec] = (),
    ) -> None:
        own = {spec.name: spec for spec in (*map(evaluator, range(tasks)), *evaluators)}
        self._evaluators, self._merges = list(own.values()), list(merges)
        self._models = [ModelSpec("toy-network", build, activations), *models]

    @hookimpl
    def minerua_evaluators(self) -> list[EvaluatorSpec]:
        return self._evaluators

    @hookimpl
    def minerua_models(self) -> list[ModelSpec]:
        return self._models

    @hookimpl
    def minerua_merge_methods(self) -> list[MergeMethodSpec]:
        return self._merges


@dataclass(frozen=True)
class World:
    """A folder with a base, experts and a run file.

    Args:
        folder: Where everything lies.
        run: The run file.
        content: What the run file says.
        registry: minerua's own merge methods and the toy plugin.
    """

    folder: Path
    run: Path
    content: Mapping[str, Any]
    registry: Registry

    @property
    def base(self) -> Checkpoint:
        return open_checkpoint(self.folder / "base")

    def rewrite(self, **changes: Any) -> Path:
        """Writes the run file anew with some top-level keys changed; `None` removes one."""
        content = {key: value for key, value in {**self.content, **changes}.items() if value is not None}
        self.run.write_text(yaml.safe_dump(content, sort_keys=False))
        return self.run


def registry_of(toys: Toys) -> Registry:
    from minerua.merge import methods

    return Registry.of(methods, toys)


def make_world(
    folder: Path,
    *,
    tasks: int = 3,
    kind: str = "full",
    dtype: str = "float32",
    toys: Toys | None = None,
    **changes: Any,
) -> World:
    """Makes a world with one expert per task.

    Args:
        folder: An existing folder.
        tasks: How many tasks and experts: 2 to 5.
        kind: `full`, `sharded`, `lora` (ranks 1, 2, 1, …), or `mixed` (full and lora by turns).
        dtype: Of the base and of full experts.
        toys: The plugin; default: the toy network and its tasks.
        **changes: Top-level keys of the run file.
    """
    base = base_tensors(dtype=dtype)
    write_model(folder / "base", base)
    names = [f"expert-{k}" for k in range(tasks)]
    for k, name in enumerate(names):
        if kind == "lora" or (kind == "mixed" and k % 2):
            write_lora(folder / name, {"body.weight": 1 + k % 2, "head.weight": 1}, seed=10 * k)
        else:
            write_model(folder / name, tuned_tensors(base, seed=k), shards=2 if kind == "sharded" else 1)
    content = {
        "minerua": 1,
        "seed": 3,
        "base": "base",
        "experts": {name: name for name in names},
        "model": "toy-network",
        "tasks": [f"toy-{k}" for k in range(tasks)],
        "evolution": {"evaluations": 12, "bins": 4},
        **changes,
    }
    world = World(folder, folder / "run.yml", content, registry_of(toys or Toys(tasks)))
    world.rewrite()
    return world
