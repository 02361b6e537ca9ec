"""Task vectors: what fine-tuning added to the base, from a full checkpoint or from a LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from minerua.errors import CheckpointError
from minerua.weights.adapter import BASE_KEY, FACTORS_NAME, Adapter, Factors, is_adapter, open_adapter
from minerua.weights.checkpoint import Checkpoint, compare, find_non_finite, open_checkpoint
from minerua.weights.header import shown

Delta = np.ndarray | Factors
"""One tensor's change: dense float32 of the tensor's shape, or low-rank factors whose product it is."""

_BLOCK_VALUES = 1 << 21
"""Values of a tensor that are subtracted at a time."""


class TaskVector(Mapping[str, Delta]):
    """Tensor name → change against the base; a tensor that is not named is unchanged.

    Args:
        digest: The name of the weights behind it.
        deltas: The changes; those of a full fine-tune are computed when they are asked for, in float32, so that an
            opened expert costs no memory.
        base: The checkpoint against which the changes are, where that is known: no space over another one takes them.
    """

    def __init__(self, digest: str, deltas: Mapping[str, Delta], *, base: Checkpoint | None = None) -> None:
        self.digest: Final = digest
        self.base: Final = base
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
        change = np.empty(base.shape, np.float32)
        for rows in _blocks(base):  # so that the wide copies of both stay small
            with np.errstate(over="ignore"):  # whoever takes the change refuses infinity, by its name
                change[rows] = expert[rows].astype(wide) - base[rows].astype(wide)
        return change

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
        faults = [*_base_faults(open_checkpoint(path / FACTORS_NAME), base), *_rank_faults(adapter)]
        if faults:
            raise CheckpointError(f"the expert {name!r} at {path} does not fit the base at {base.path}", faults)
        return Expert(name, path, TaskVector(adapter.digest, adapter.factors, base=base))
    return Expert(name, path, difference(open_checkpoint(path), base, name=name))


def difference(expert: Checkpoint, base: Checkpoint, *, name: str = "the expert") -> TaskVector:
    """Returns the task vector of a full fine-tune, whose changes are computed when they are asked for.

    Args:
        expert: The fine-tune.
        base: The checkpoint that it was fine-tuned from.
        name: What messages call it.

    Raises:
        CheckpointError: If it does not fit the base, was learned from another one, holds NaN or infinity, or changes a
            tensor of whole numbers; all faults at once.
    """
    faults = compare(base, expert, name=name) + find_non_finite(expert) + _changed_counters(expert, base)
    faults += _base_faults(expert, base)
    if faults:
        raise CheckpointError(f"the expert {name!r} at {expert.path} does not fit the base at {base.path}", faults)
    return TaskVector(expert.digest, _Difference(expert, base), base=base)


def _blocks(tensor: np.ndarray) -> Iterator[Any]:
    """Yields the rows of a tensor that are looked at together; all of a scalar."""
    if not tensor.ndim:
        yield ...
        return
    step = max(1, _BLOCK_VALUES // max(1, tensor.size // max(1, len(tensor))))
    for start in range(0, len(tensor), step):
        yield slice(start, start + step)


def _base_faults(weights: Checkpoint, base: Checkpoint) -> Iterator[str]:
    """Yields that an expert says of itself that it was made for another base; those of other programs say nothing."""
    named = weights.metadata.get(BASE_KEY)
    if named is not None and named != base.digest:
        yield f"it was made for the base {named}, and {base.path} is {base.digest}; name its own base"


def _rank_faults(adapter: Adapter) -> Iterator[str]:
    for name, (left, right) in adapter.factors.items():
        rows, columns = len(left), right.shape[1]
        if len(right) > min(rows, columns):
            yield (
                f"tensor {shown(name)}: the adapter's rank is {len(right)}, the base's matrix {[rows, columns]} has "
                f"rank {min(rows, columns)} at most; extract an adapter of a smaller rank, or name the whole model"
            )


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
