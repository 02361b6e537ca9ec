"""Weights: checkpoints on disk, experts, the subspace a population lives in, and the way back to weights."""

from minerua.weights.adapter import Adapter, Factors, is_adapter, open_adapter
from minerua.weights.atomic import partial_folder, remove_partials, write_bytes
from minerua.weights.checkpoint import Checkpoint, compare, find_non_finite, open_checkpoint
from minerua.weights.materialise import Child, apply, materialise, read_genome, save_adapter, save_child
from minerua.weights.subspace import Core, Mix, Subspace
from minerua.weights.task_vector import Delta, Expert, TaskVector, dense, is_floating, open_expert
from minerua.weights.writer import write_adapter, write_checkpoint

__all__ = [
    "Adapter",
    "Checkpoint",
    "Child",
    "Core",
    "Delta",
    "Expert",
    "Factors",
    "Mix",
    "Subspace",
    "TaskVector",
    "apply",
    "compare",
    "dense",
    "find_non_finite",
    "is_adapter",
    "is_floating",
    "materialise",
    "open_adapter",
    "open_checkpoint",
    "open_expert",
    "partial_folder",
    "read_genome",
    "remove_partials",
    "save_adapter",
    "save_child",
    "write_adapter",
    "write_bytes",
    "write_checkpoint",
]
