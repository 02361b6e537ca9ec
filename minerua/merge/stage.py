"""A merge that can start, and what it reads: tensors as they are stored, or in the merged vocabulary's order."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from minerua.errors import MineruaError
from minerua.kernels import passes
from minerua.merge.engine import Activations, Work
from minerua.merge.layout.output import Shard
from minerua.merge.models import Model
from minerua.merge.planning.plan import Job, Plan
from minerua.merge.recipes.ingredients import ModelRef, Recipe
from minerua.merge.tokenizers.token_rows import RowMap, extra_rows
from minerua.merge.tokenizers.tokenizer import TokenizerPlan
from minerua.values import MergeMethodSpec
from minerua.weights.header import nbytes

TILES_BYTES = 96 << 20
"""What the passes take, whatever the model's size: tiles and counters of all threads, measured and rounded up."""

LARGE_BYTES = 1 << 27
"""Rows that no model has, made anew for merged vocabularies, are kept in a file from here on."""

_T = TypeVar("_T")


class Faults(list[str]):
    """Collects what is wrong, so that one message can say it all."""

    def attempt(self, step: Callable[[], _T]) -> _T | None:
        """Returns what a step returns, or `None`, and keeps the faults of the error that it raised."""
        try:
            return step()
        except MineruaError as error:
            self += [f"{error.message}: {fault}" for fault in error.faults] or [error.message]
            return None


@dataclass(frozen=True, eq=False)
class Stage:
    """A merge that can start.

    Args:
        recipe: What it was asked for.
        method: How.
        models: Reference → model; a stage's own are put in their place when they have been merged.
        plan: What becomes of every tensor; its jobs in the order in which they are done.
        tokenizer: The merged tokenizer, where vocabularies are aligned; or `None`.
        shards: Where every tensor will lie.
        config: The merged model's configuration; empty without one.
        files: Path in the merged model's folder → content, of everything but the weights.
        semantics: Whom to follow where mergekit and the papers differ.
        seed: Of everything random.
        activations: For methods that look at them.
        notes: What the user should know.
    """

    recipe: Recipe
    method: MergeMethodSpec
    models: dict[ModelRef, Model]
    plan: Plan
    tokenizer: TokenizerPlan | None
    shards: tuple[Shard, ...]
    config: Mapping[str, Any]
    files: Mapping[str, bytes]
    semantics: Literal["mergekit", "paper"]
    seed: int
    activations: Activations | None
    notes: tuple[str, ...]
    _aligned: dict[tuple[ModelRef, tuple[ModelRef, ...]], RowMap] = field(default_factory=dict, repr=False)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Its tensors, in the order in which they are done."""
        return self.plan.jobs

    @property
    def layer_counts(self) -> Mapping[str, int]:
        """Family of layers → how many the merged model has."""
        return self.plan.layer_counts

    @property
    def file_names(self) -> list[str]:
        """What it writes, the model card left out."""
        return [*(shard.file_name for shard in self.shards), *sorted(self.files)]

    @functools.cached_property
    def work(self) -> Work:
        """What the engine carries out."""
        return Work(self.method, self.jobs, self.models, self.source, self.semantics, self.seed, self.activations)

    @property
    def write_bytes(self) -> int:
        """How much it writes."""
        return sum(shard.nbytes for shard in self.shards) + sum(map(len, self.files.values()))

    @property
    def read_bytes(self) -> int:
        """How much of its models' tensors it looks at, each byte once."""
        used = dict.fromkeys(pair for job in self.jobs for pair in job_inputs(job))
        return sum(nbytes(self.models[model].specs[name]) for model, name in used)

    @property
    def memory_bytes(self) -> int:
        """An upper bound of what it holds beyond the maps of files: tiles, or tensors where the method needs them."""
        largest = max((4 * _count(job.shape) * (len(job.experts) + 3) for job in self.jobs), default=0)
        whole = sum(4 * _count(job.shape) * (len(job.experts) + 2) for job in self.jobs)
        holds = {"weights": largest, "grams": 2 * whole, "model": 2 * whole, "tiles": 0, "tensors": 0}[self.method.uses]
        rows = sum(4 * _numbers_of(row_map) for row_map in self._aligned.values())
        return TILES_BYTES + (largest if self.method.whole else holds) + rows

    def source(self, model: ModelRef, name: str, job: Job) -> passes.Source:
        """Returns a model's tensor for a job, its rows in the order of the merged vocabulary where it has such."""
        source = self.models[model].source(name)
        if self.tokenizer is None or not job.vocabulary:
            return source
        row_map = self._row_map(self.tokenizer, model, job)
        if row_map.is_identity(source.shape[0]):
            return source
        return _in_merged_order(source, row_map, lambda other, rows: self._rows(other, job, rows))

    def _row_map(self, tokenizer: TokenizerPlan, model: ModelRef, job: Job) -> RowMap:
        members = tuple(holder for holder, _ in job_inputs(job))
        if (model, members) not in self._aligned:
            maps = tokenizer.row_maps(list(dict.fromkeys(members)), base=self.recipe.base)
            self._aligned.update({(holder, members): row_map for holder, row_map in maps.items()})
        return self._aligned[model, members]

    def _rows(self, model: ModelRef, job: Job, rows: np.ndarray) -> np.ndarray:
        """Returns rows of a model's own tensor, shape (n, width), float32, its adapter applied."""
        name = next(its_name for holder, its_name in job_inputs(job) if holder == model)
        source = self.models[model].source(name)
        picked = _two_dimensional(source)
        left = None if picked.left is None else np.ascontiguousarray(picked.left[rows])
        chosen = passes.Source(picked.array, left=left, right=picked.right, rows=np.ascontiguousarray(rows))
        return passes.load(chosen, 0, chosen.size).reshape(len(rows), -1)


def job_inputs(job: Job) -> tuple[tuple[ModelRef, str], ...]:
    """Returns all that a job reads: of each expert the model and its tensor's name, then of the base."""
    return job.experts if job.base is None else (*job.experts, job.base)


# ── rows in another order ────────────────────────────────────────────────────────────────────────────────────────────


def _in_merged_order(
    source: passes.Source, row_map: RowMap, read: Callable[[ModelRef, np.ndarray], np.ndarray]
) -> passes.Source:
    picked = _two_dimensional(source)
    extra = None
    if row_map.extra_count:
        extra = extra_rows(row_map, read, out=_room(row_map.extra_count, picked.array.shape[1]))
    left = picked.left
    if left is not None:  # rows that are made anew have the adapter in them already
        left = np.where(row_map.rows[:, None] >= 0, left[np.maximum(row_map.rows, 0)], np.float32(0))
        left = np.ascontiguousarray(left)
    return passes.Source(picked.array, left=left, right=picked.right, rows=row_map.rows, extra=extra)


def _two_dimensional(source: passes.Source) -> passes.Source:
    """Returns a source whose rows can be picked: a vector has rows of one element."""
    if source.array.ndim == 1:
        return passes.Source(source.array.reshape(-1, 1))
    return passes.Source(source.array.reshape(len(source.array), -1), left=source.left, right=source.right)


def _room(rows: int, columns: int) -> np.ndarray:
    """Returns memory for rows, shape (rows, columns), float32; of many, a file that has no name, so none is used up."""
    if 4 * rows * columns <= LARGE_BYTES:
        return np.empty((rows, columns), np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(rows, columns))


def _numbers_of(row_map: RowMap) -> int:
    """Returns how many numbers a row map keeps in memory, its extra rows taken as 4096 wide."""
    return 2 * len(row_map.rows) + 4096 * row_map.extra_count


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
