"""From a genome to weights: a child in memory, a checkpoint or a LoRA adapter on disk."""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minerua.errors import CheckpointError
from minerua.values import Change, Genome, TensorSpec
from minerua.weights.adapter import BASE_KEY
from minerua.weights.checkpoint import Checkpoint
from minerua.weights.layers import is_linear, transposed
from minerua.weights.segments import Core, Mix, Segment
from minerua.weights.subspace import Subspace
from minerua.weights.task_vector import Delta, dense
from minerua.weights.writer import Product, write_adapter, write_checkpoints

GENOME_KEY = "minerua.genome"
"""Metadata key under which a written child carries its genome."""

LARGEST_EMBEDDED_BYTES = 1 << 24
"""Genomes up to this size are written into the metadata whole; of larger ones only the name, because readers must hold
a safetensors header in memory and refuse one above 100 MB."""

_BLOCK_VALUES = 1 << 21
"""Values of a tensor that are computed at a time: 8 MiB in float32, of which a few are in memory."""


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
    segments = {segment.name: segment for segment in subspace.segments}
    subspace.check([genome])
    tensors = {}
    for name, spec in subspace.base.specs.items():
        tensor = subspace.base.tensor(name)
        if name in segments:
            child = np.empty_like(tensor)  # not a view of the map, which is read-only
            for rows in _blocks(spec):
                (child[rows],) = _children(tensor, segments[name], [genome], rows)
            tensor = child
            tensor.flags.writeable = False
        tensors[name] = tensor
    return Child(genome.digest, tensors)


def _blocks(spec: TensorSpec) -> Iterator[Any]:
    """Yields the parts of a tensor that are computed at a time: rows, or all of a scalar."""
    shape = tuple(map(int, spec.shape))
    if not shape:
        yield ...
        return
    step = max(1, _BLOCK_VALUES // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _children(tensor: np.ndarray, segment: Segment, genomes: Sequence[Genome], rows: Any) -> Iterator[np.ndarray]:
    """Yields rows of one tensor in every child: base plus task vector in float32 or wider, rounded once."""
    wide = tensor[rows].astype(np.result_type(tensor.dtype, np.float32))
    for genome in genomes:
        values = genome.values[segment.part]
        if isinstance(segment, Core):
            change = segment.expand(values.reshape(segment.shape), rows).reshape(wide.shape)
        else:
            change = segment.expand(values) if rows is ... else segment.expand(values, rows)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever uses the child finds infinity there
            yield np.asarray(wide + change, tensor.dtype)  # asarray: numpy makes 0-d a number


def changes_of(subspace: Subspace, genome: Genome) -> dict[str, Change]:
    """Returns what a genome adds to the base, unexpanded: for models that keep the base and add to it.

    Args:
        subspace: The space that the genome lives in.
        genome: The genome.

    Returns:
        Tensor name → change, of every tensor that any founder changes. Bases are the subspace's own arrays, the same
        for all genomes; cores are views of the genome.

    Raises:
        CheckpointError: If the genome belongs to another subspace.
    """
    subspace.check([genome])
    return {
        segment.name: _change(segment, genome.values[segment.part], subspace.base.specs[segment.name])
        for segment in subspace.segments
    }


def _change(segment: Segment, values: np.ndarray, spec: TensorSpec) -> Change:
    if isinstance(segment, Mix):
        return Change(np.asarray(segment.expand(values), np.float32))
    core = values.reshape(segment.shape)
    if len(spec.shape) == 2:
        return Change(core, segment.left, segment.right)
    return Change(np.asarray(segment.expand(core).reshape(tuple(map(int, spec.shape))), np.float32))


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
    save_children([path], subspace, [genome], histories=[history])


def save_children(
    paths: Sequence[str | Path],
    subspace: Subspace,
    genomes: Sequence[Genome],
    *,
    histories: Sequence[Mapping[str, Any] | None] | None = None,
) -> None:
    """Writes children as safetensors checkpoints over one read of the base; each appears whole or not at all.

    Every tensor is computed and written in blocks of rows, for all children while the base's rows are at hand: memory
    is bounded by a few blocks (about 50 MB), whatever the model and however many the children. A child's bytes do not
    depend on its siblings.

    Args:
        paths: P files to write, all different.
        subspace: The space that the genomes live in.
        genomes: P genomes.
        histories: P times where a child came from (parents, scores, run); anything JSON can hold, kept beside the
            genome.

    Raises:
        CheckpointError: If a genome belongs to another subspace, or there are not as many genomes or histories as
            paths.
        StorageError: If a file cannot be written.
    """
    subspace.check(genomes)
    histories = [None] * len(paths) if histories is None else histories
    if not len(paths) == len(genomes) == len(histories):
        raise CheckpointError(f"{len(paths)} paths, {len(genomes)} genomes and {len(histories)} histories do not match")
    segments = {segment.name: segment for segment in subspace.segments}

    def blocks(spec: TensorSpec) -> Iterator[Iterable[np.ndarray]]:
        tensor = subspace.base.tensor(spec.name)
        for rows in _blocks(spec):
            if spec.name in segments:
                yield _children(tensor, segments[spec.name], genomes, rows)
            else:
                yield [tensor[rows]] * len(genomes)

    metadata = (_metadata(subspace, genome, history) for genome, history in zip(genomes, histories, strict=True))
    write_checkpoints(paths, subspace.base.specs.values(), blocks, metadata=metadata)


def _metadata(subspace: Subspace, genome: Genome, history: Mapping[str, Any] | None) -> dict[str, str]:
    record: dict[str, Any] = {"digest": genome.digest, "subspace": genome.subspace, "base": subspace.base.digest}
    if genome.values.dtype != np.float32:
        record["dtype"] = genome.values.dtype.name
    if genome.values.nbytes <= LARGEST_EMBEDDED_BYTES:
        record["values"] = base64.b64encode(genome.values.tobytes()).decode()
    return {**subspace.base.metadata, GENOME_KEY: json.dumps(record | {"history": dict(history or {})})}


def read_genome(checkpoint: Checkpoint) -> Genome:
    """Returns the genome that `save_child` wrote into a checkpoint.

    Raises:
        CheckpointError: If the checkpoint carries no genome, only its name, or one that does not match its name.
    """
    try:
        record = json.loads(checkpoint.metadata[GENOME_KEY])
        dtype = {"float32": np.float32, "float64": np.float64}[record.get("dtype", "float32")]
        values = np.frombuffer(base64.b64decode(record["values"], validate=True), dtype=dtype)
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

    What a linear layer is, and whether it stores its weight transposed (GPT-2's Conv1D), is told by names and shapes:
    see `minerua.weights.layers`.

    Args:
        folder: The folder to create.
        subspace: The space that the genome lives in.
        genome: The genome.
        rank: The adapter's rank; the default keeps every matrix exact. A smaller one keeps the largest singular values.

    Returns:
        The share of the task vector's squared norm that the rank leaves out: 0.0 when nothing is.

    Raises:
        CheckpointError: If the genome belongs to another subspace, changes a tensor that a LoRA adapter cannot (a bias,
            a norm, an embedding, a tensor with more than two axes), holds NaN or infinity, or the rank is below one,
            or some of its layers lie transposed and others not, which one adapter cannot say; all faults at once.
        StorageError: If the folder cannot be written.
    """
    subspace.check([genome])
    linear = [s for s in subspace.segments if isinstance(s, Core) and is_linear(subspace.base, s.name)]
    cores = [core for core in linear if genome.values[core.part].any()] or linear
    faults = [*_adapter_faults(subspace, genome, {core.name for core in cores})]
    lying = transposed(subspace.base, (core.name for core in cores))
    upright = [core.name for core in cores if lying and core.name not in lying]
    faults += [f"{name}: lies as (outputs, inputs), others lie transposed" for name in upright]
    if rank is not None and rank < 1:
        faults.append(f"rank {rank}: at least 1 is needed")
    if faults:
        raise CheckpointError(
            f"genome {genome.digest} cannot be written as an adapter; write a checkpoint instead", faults
        )
    split = {core.name: _split(core, genome.values[core.part].reshape(core.shape), rank) for core in cores}
    products = {name: one.product for name, one in split.items()}
    largest = max(product.shape[1] for product in products.values())
    write_adapter(folder, products, rank=largest, fan_in_fan_out=bool(lying), metadata={BASE_KEY: subspace.base.digest})
    lost, total = (math.fsum(squares) for squares in zip(*((s.lost, s.total) for s in split.values()), strict=True))
    return lost / total if total else 0.0


def _adapter_faults(subspace: Subspace, genome: Genome, held: set[str]) -> Iterator[str]:
    """Yields what an adapter cannot hold; looks at cores, and expands small tensors only."""
    broken = []
    for segment in subspace.segments:
        values = genome.values[segment.part]
        change = segment.expand(values) if isinstance(segment, Mix) else values
        if segment.name not in held and change.any():
            yield f"{segment.name}: LoRA adapters hold changes of linear layers only"
        if not np.isfinite(change).all():
            broken.append(f"{segment.name}: holds NaN or infinity")
    yield from broken
    if not held:
        yield "the subspace has no weight matrix that an adapter could hold"


class _Split(NamedTuple):
    """A core as factors, with the squared norms left out and in all."""

    product: Product
    lost: float
    total: float


def _split(core: Core, values: np.ndarray, rank: int | None) -> _Split:
    """Splits a core into factors of at most this rank; those of its matrix are made when they are written."""
    U, sigma, V = np.linalg.svd(values.astype(np.float64), full_matrices=False)
    kept = slice(0, rank)
    left = (U[:, kept] * np.sqrt(sigma[kept])).astype(np.float32)
    right = (np.sqrt(sigma[kept])[:, None] * V[kept]).astype(np.float32)
    count = left.shape[1]
    rows = core.shape[0] if core.left is None else len(core.left)
    columns = core.shape[1] if core.right is None else len(core.right)
    product = Product(
        (rows, count, columns),
        functools.partial(_widened, core.left, left, transposed=False),
        functools.partial(_widened, core.right, right, transposed=True),
    )
    return _Split(product, float((sigma[count:] ** 2).sum()), float((sigma**2).sum()))


def _widened(basis: np.ndarray | None, factor: np.ndarray, *, transposed: bool) -> np.ndarray:
    """Returns a core's factor as its matrix's: Q_B L, or R Q_Aᵀ; float32."""
    if basis is None:
        return factor
    return np.asarray(factor @ basis.T if transposed else basis @ factor, np.float32)
