"""Task vectors: what fine-tuning added to the base, from a full checkpoint or from a LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from minerua.errors import CheckpointError
from minerua.weights.adapter import Factors, is_adapter, open_adapter
from minerua.weights.checkpoint import Checkpoint, compare, find_non_finite, open_checkpoint

Delta = np.ndarray | Factors
"""One tensor's change: dense float32 of the tensor's shape, or low-rank factors whose product it is."""


class TaskVector(Mapping[str, Delta]):
    """Tensor name → change against the base; a tensor that is not named is unchanged.

    Args:
        digest: The name of the weights behind it.
        deltas: The changes; those of a full fine-tune are computed when they are asked for, in float32, so that an
            opened expert costs no memory.
    """

    def __init__(self, digest: str, deltas: Mapping[str, Delta]) -> None:
        self.digest: Final = digest
        self._deltas = deltas

    def __getitem__(self, name: str) -> Delta:
        return self._deltas[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._deltas)

    def __len__(self) -> int:
        return len(self._deltas)


class _Difference(Mapping[str, Delta]):
    """The dense task vector of a full fine-tune, one tensor at a time."""

    def __init__(self, expert: Checkpoint, base: Checkpoint) -> None:
        self._expert, self._base = expert, base
        self._names = tuple(name for name in base.specs if is_floating(base, name))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        expert, base = self._expert.tensor(name), self._base.tensor(name)
        wide = np.result_type(expert.dtype, base.dtype, np.float32)
        return np.asarray(expert.astype(wide) - base.astype(wide), np.float32)  # asarray: numpy makes 0-d a number

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, eq=False)
class Expert:
    """A trained model that shares the base.

    Args:
        name: What the run file calls it.
        path: Where its weights are.
        task_vector: What it adds to the base.
    """

    name: str
    path: Path
    task_vector: TaskVector

    @property
    def digest(self) -> str:
        """The name of its weights."""
        return self.task_vector.digest


def is_floating(checkpoint: Checkpoint, name: str) -> bool:
    """Tells whether a tensor holds real numbers that can be merged; counters and masks cannot."""
    return checkpoint.specs[name].dtype in ("float64", "float32", "float16", "bfloat16")


def open_expert(name: str, path: str | Path, base: Checkpoint) -> Expert:
    """Opens an expert: a full fine-tune of the base, or a LoRA adapter for it.

    Args:
        name: What messages call it.
        path: A safetensors checkpoint (file, index or folder), or a folder in PEFT's LoRA layout.
        base: The checkpoint that it was fine-tuned from.

    Raises:
        CheckpointError: If it cannot be read, does not fit the base, holds NaN or infinity, or changes a tensor of
            whole numbers; all faults at once.
    """
    path = Path(path)
    if is_adapter(path):
        adapter = open_adapter(path, base)
        return Expert(name, path, TaskVector(adapter.digest, adapter.factors))
    expert = open_checkpoint(path)
    faults = compare(base, expert, name=name) + find_non_finite(expert) + _changed_counters(expert, base)
    if faults:
        raise CheckpointError(f"the expert {name!r} at {path} does not fit the base at {base.path}", faults)
    return Expert(name, path, TaskVector(expert.digest, _Difference(expert, base)))


def _changed_counters(expert: Checkpoint, base: Checkpoint) -> list[str]:
    return [
        f"{name}: {base.specs[name].dtype} values differ from the base, and only floating-point tensors can be merged"
        for name, spec in base.specs.items()
        if not is_floating(base, name)
        and name in expert.specs
        and expert.specs[name].shape == spec.shape
        and not np.array_equal(expert.tensor(name), base.tensor(name))
    ]


def dense(delta: Delta) -> np.ndarray:
    """Returns a change as a dense float32 array."""
    return delta.left @ delta.right if isinstance(delta, Factors) else delta
