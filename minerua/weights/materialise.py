"""From a genome to weights: a child in memory, a checkpoint or a LoRA adapter on disk."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minerua.errors import CheckpointError
from minerua.values import Genome
from minerua.weights.adapter import Factors
from minerua.weights.checkpoint import Checkpoint
from minerua.weights.subspace import Core, Subspace
from minerua.weights.task_vector import Delta, dense
from minerua.weights.writer import write_adapter, write_checkpoint

GENOME_KEY = "minerua.genome"
"""Metadata key under which a written child carries its genome."""

LARGEST_EMBEDDED_BYTES = 1 << 24
"""Genomes up to this size are written into the metadata whole; of larger ones only the name, because readers must hold
a safetensors header in memory and refuse one above 100 MB."""


@dataclass(frozen=True, eq=False)
class Child:
    """A model in memory.

    Args:
        digest: The name of its genome.
        tensors: Tensor name → read-only array in the base's dtype; unchanged tensors are borrowed from the base.
    """

    digest: str
    tensors: Mapping[str, np.ndarray]


def materialise(subspace: Subspace, genome: Genome) -> Child:
    """Turns a genome into weights: base plus task vector in float32 (or float64, for such a base), rounded once.

    Args:
        subspace: The space that the genome lives in.
        genome: The genome.

    Raises:
        CheckpointError: If the genome belongs to another subspace.
    """
    return Child(genome.digest, apply(subspace.base, subspace.task_vector(genome)))


def apply(base: Checkpoint, changes: Mapping[str, Delta]) -> dict[str, np.ndarray]:
    """Returns the base's tensors with changes added in float32 and rounded once; unchanged tensors are borrowed.

    Args:
        base: The checkpoint.
        changes: Tensor name → change; a name that is missing stays as it is.
    """
    return {name: _changed(base, name, changes.get(name)) for name in base.specs}


def _changed(base: Checkpoint, name: str, change: Delta | None) -> np.ndarray:
    tensor = base.tensor(name)
    if change is None:
        return tensor
    with np.errstate(over="ignore", invalid="ignore"):  # whoever uses the child finds infinity there
        total = tensor.astype(np.result_type(tensor.dtype, np.float32)) + dense(change)
        child = np.asarray(total, tensor.dtype)  # asarray: numpy makes 0-d a number
    child.flags.writeable = False
    return child


def save_child(
    path: str | Path, subspace: Subspace, genome: Genome, *, history: Mapping[str, Any] | None = None
) -> None:
    """Writes a child as a safetensors checkpoint that appears whole or not at all, its genome in the metadata.

    Args:
        path: The file to write.
        subspace: The space that the genome lives in.
        genome: The genome.
        history: Where it came from (parents, scores, run); anything JSON can hold, kept beside the genome.

    Raises:
        CheckpointError: If the genome belongs to another subspace.
        StorageError: If the file cannot be written.
    """
    record: dict[str, Any] = {"digest": genome.digest, "subspace": genome.subspace, "base": subspace.base.digest}
    if genome.values.nbytes <= LARGEST_EMBEDDED_BYTES:
        record["values"] = base64.b64encode(genome.values.tobytes()).decode()
    metadata = {**subspace.base.metadata, GENOME_KEY: json.dumps(record | {"history": dict(history or {})})}
    write_checkpoint(path, materialise(subspace, genome).tensors, metadata=metadata)


def read_genome(checkpoint: Checkpoint) -> Genome:
    """Returns the genome that `save_child` wrote into a checkpoint.

    Raises:
        CheckpointError: If the checkpoint carries no genome, only its name, or one that does not match its name.
    """
    try:
        record = json.loads(checkpoint.metadata[GENOME_KEY])
        values = np.frombuffer(base64.b64decode(record["values"], validate=True), dtype=np.float32)
        genome = Genome(record["subspace"], values)
        named = record["digest"]
        found = genome.digest
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        hint = "; it was too large, so only its name was written" if error.args == ("values",) else ""
        raise CheckpointError(f"{checkpoint.path} carries no genome that can be read: {error!r}{hint}") from error
    if found != named:
        raise CheckpointError(f"the genome in {checkpoint.path} is {found} and is said to be {named}: it was altered")
    return genome


def save_adapter(folder: str | Path, subspace: Subspace, genome: Genome, *, rank: int | None = None) -> float:
    """Writes a child as a LoRA adapter in PEFT's layout.

    Args:
        folder: The folder to create.
        subspace: The space that the genome lives in.
        genome: The genome.
        rank: The adapter's rank; the default keeps every matrix exact. A smaller one keeps the largest singular values.

    Returns:
        The share of the task vector's squared norm that the rank leaves out: 0.0 when nothing is.

    Raises:
        CheckpointError: If the genome belongs to another subspace, changes a tensor that a LoRA adapter cannot (a bias,
            a norm, a tensor with more than two axes), holds NaN or infinity, or the rank is below one; all faults at
            once.
        StorageError: If the folder cannot be written.
    """
    changes = subspace.task_vector(genome)
    cores = [s for s in subspace.segments if isinstance(s, Core) and _is_linear(subspace.base, s.name)]
    held = {core.name for core in cores}
    faults = [
        f"{name}: LoRA adapters hold changes of weight matrices only"
        for name, change in changes.items()
        if name not in held and change.any()
    ]
    faults += [f"{name}: holds NaN or infinity" for name, change in changes.items() if not np.isfinite(change).all()]
    if not held:
        faults.append("the subspace has no weight matrix that an adapter could hold")
    if rank is not None and rank < 1:
        faults.append(f"rank {rank}: at least 1 is needed")
    if faults:
        raise CheckpointError(
            f"genome {genome.digest} cannot be written as an adapter; write a checkpoint instead", faults
        )
    factors, lost, total = {}, 0.0, 0.0
    for core in cores:
        factors[core.name], dropped, norm = _factors(core, genome.values[core.part].reshape(core.shape), rank)
        lost, total = lost + dropped, total + norm
    write_adapter(folder, factors, rank=max(f.left.shape[1] for f in factors.values()))
    return lost / total if total else 0.0


def _is_linear(base: Checkpoint, name: str) -> bool:
    """Tells whether PEFT would take a tensor for the weight of a linear layer."""
    return name.endswith(".weight") and base.tensor(name).ndim == 2


def _factors(core: Core, values: np.ndarray, rank: int | None) -> tuple[Factors, float, float]:
    """Splits a core into factors of at most this rank, with the squared norms left out and in all."""
    U, sigma, V = np.linalg.svd(values.astype(np.float64), full_matrices=False)
    kept = slice(0, rank)
    left = (U[:, kept] * np.sqrt(sigma[kept])).astype(np.float32)
    right = (np.sqrt(sigma[kept])[:, None] * V[kept]).astype(np.float32)
    factors = Factors(
        left if core.left is None else core.left @ left,
        right if core.right is None else right @ core.right.T,
    )
    return factors, float((sigma[sigma[kept].size :] ** 2).sum()), float((sigma**2).sum())
