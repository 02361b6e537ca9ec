"""Weights: checkpoints on disk, experts, the subspace a population lives in, and the way back to weights."""

from minerua.weights.adapter import Adapter, Factors, is_adapter, open_adapter
from minerua.weights.atomic import partial_folder, remove_partials, write_bytes
from minerua.weights.checkpoint import Checkpoint, compare, find_non_finite, open_checkpoint
from minerua.weights.materialise import (
    Child,
    apply,
    changes_of,
    materialise,
    read_genome,
    save_adapter,
    save_child,
    save_children,
)
from minerua.weights.measures import (
    compare_spectra,
    cosines,
    distances,
    inner_products,
    norms,
    spectra,
    spectral_similarity,
)
from minerua.weights.population import Population
from minerua.weights.store import GenomeStore
from minerua.weights.subspace import Core, Mix, Subspace
from minerua.weights.task_vector import Delta, Expert, TaskVector, dense, difference, is_floating, open_expert
from minerua.weights.truncation import TruncatedMatrix, TruncatedVector, TruncationReport, truncated
from minerua.weights.writer import write_adapter, write_checkpoint, write_checkpoints

__all__ = [
    "Adapter",
    "Checkpoint",
    "Child",
    "Core",
    "Delta",
    "Expert",
    "Factors",
    "GenomeStore",
    "Mix",
    "Population",
    "Subspace",
    "TaskVector",
    "TruncatedMatrix",
    "TruncatedVector",
    "TruncationReport",
    "apply",
    "changes_of",
    "compare",
    "compare_spectra",
    "cosines",
    "dense",
    "difference",
    "distances",
    "find_non_finite",
    "inner_products",
    "is_adapter",
    "is_floating",
    "materialise",
    "norms",
    "open_adapter",
    "open_checkpoint",
    "open_expert",
    "partial_folder",
    "read_genome",
    "remove_partials",
    "save_adapter",
    "save_child",
    "save_children",
    "spectra",
    "spectral_similarity",
    "truncated",
    "write_adapter",
    "write_bytes",
    "write_checkpoint",
    "write_checkpoints",
]
