"""Carries out a plan: every tensor in one go from the files it lies in to the place where it belongs.

Tensors come in the order in which they lie on the disk; the passes of `minerua.kernels` cut them into tiles, so that
memory is bounded whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np

from minerua.errors import BrokenPlugin, CheckpointError, MineruaError
from minerua.kernels import num_threads, passes
from minerua.merge.models import Model
from minerua.merge.plan import Job
from minerua.merge.recipe import ModelRef
from minerua.values import MergeInputs, MergeMethodSpec, MergeTensors, MergeTile
from minerua.weights.header import capped

TILE_ELEMENTS = 1 << 18
"""Elements that a method with `uses="tiles"` is given at once: with a few arrays of them the tile stays in the cache."""

READ_AHEAD_BYTES = 1 << 28
"""How far reading runs ahead of merging."""

_MAX_FAULTS = 100

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and in all."""

SourceOf = Callable[[ModelRef, str, Job], passes.Source]
"""Gives the source of a model's tensor for a job."""


@dataclass(frozen=True, eq=False)
class Work:
    """What is merged, checked and ready.

    Args:
        method: How.
        jobs: What, in the order in which it is done.
        models: Reference → the opened model.
        source: Gives a model's tensor for a job; where vocabularies are aligned, with rows in the merged order.
        semantics: `"mergekit"` or `"paper"`.
        seed: Of everything random.
        activations: `activations(tensors, k)` runs a model with these tensors on expert k's unlabelled inputs; `None`
            where the method does not need it.
    """

    method: MergeMethodSpec
    jobs: tuple[Job, ...]
    models: Mapping[ModelRef, Model]
    source: SourceOf
    semantics: Literal["mergekit", "paper"]
    seed: int
    activations: Callable[[Mapping[str, np.ndarray], int], Mapping[str, np.ndarray]] | None = None


def carry_out(work: Work, target: Callable[[Job], passes.Target], *, progress: Progress | None = None) -> None:
    """Merges every tensor into its target.

    Args:
        work: What is merged.
        target: Where a job's result goes.
        progress: Called after every tensor.

    Raises:
        CheckpointError: Numbers that are NaN or infinite, or that became so by rounding; buffers of whole numbers that
            differ. All of them, found while reading; the targets' content is then of no use.
        BrokenPlugin: The method failed, or returned what cannot be used.
        OSError: The system refused to write.
    """
    faults: list[str] = []
    whole = _WholeModel(work) if work.method.uses in ("grams", "model") else None
    prepared = work.method.prepare(_AllTensors(work)) if work.method.prepare else None
    total = sum(job.nbytes for job in work.jobs)
    done = 0
    for job in _read_ahead(work):
        goal = target(job)
        if job.kind == "copy":
            faults += _copy(work, job, goal)
        else:
            counts = _merge(work, job, goal, prepared, whole)
            faults += _number_faults(work, job, counts)
        done += job.nbytes
        if progress is not None:
            progress(done, total)
    if faults:
        raise CheckpointError("the models cannot be merged", capped(faults, limit=_MAX_FAULTS))


def _merge(
    work: Work, job: Job, target: passes.Target, prepared: Any, whole: _WholeModel | None
) -> Sequence[int] | None:
    """Merges one tensor; what a method raises is wrapped once, with its name and the tensor's."""
    try:
        if work.method.uses == "tensors":
            return work.method.merge(replace(_tensors(work, job), prepared=prepared), target)
        if work.method.uses == "tiles":
            return _merge_tiles(work, job, target)
        return _merge_task_vectors(work, job, target, whole)
    except (MineruaError, OSError):
        raise
    except Exception as error:
        raise BrokenPlugin(
            f"merge method {work.method.name!r} failed at tensor {job.name!r}: {type(error).__name__}: {error}"
        ) from error


def _tensors(work: Work, job: Job) -> MergeTensors:
    return MergeTensors(
        name=job.name,
        shape=job.shape,
        number=job.number,
        experts=tuple(work.source(model, name, job) for model, name in job.experts),
        base=None if job.base is None else work.source(*job.base, job),
        parameters=job.parameters,
        semantics=work.semantics,
        seed=work.seed,
    )


class _AllTensors(Sequence[MergeTensors]):
    """Every tensor that is merged, opened when it is looked at."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._jobs = [job for job in work.jobs if job.kind == "merge"]

    def __len__(self) -> int:
        return len(self._jobs)

    @overload
    def __getitem__(self, index: int) -> MergeTensors: ...
    @overload
    def __getitem__(self, index: slice) -> list[MergeTensors]: ...
    def __getitem__(self, index: int | slice) -> MergeTensors | list[MergeTensors]:
        if isinstance(index, slice):
            return [_tensors(self._work, job) for job in self._jobs[index]]
        return _tensors(self._work, self._jobs[index])


# ── methods of the simpler kinds ─────────────────────────────────────────────────────────────────────────────────────


def _merge_tiles(work: Work, job: Job, target: passes.Target) -> np.ndarray:
    """Merges a tensor a piece at a time, pieces side by side; numpy lets go of the interpreter's lock."""
    tensors = _tensors(work, job)
    size = int(np.prod(job.shape))
    counts = np.zeros(len(tensors.experts) + 2, np.int64)

    def merge_piece(begin: int) -> np.ndarray:
        end = min(begin + TILE_ELEMENTS, size)
        experts = tuple(passes.load(source, begin, end) for source in tensors.experts)
        base = None if tensors.base is None else passes.load(tensors.base, begin, end)
        with np.errstate(all="ignore"):  # what is not finite is counted, and reported by name
            merged = np.asarray(work.method.merge(MergeTile(job.name, experts, base, job.parameters)))
        _expect_shape(work, job, merged, (end - begin,))
        target.write(begin, merged)
        looked_at = [*experts, np.zeros(0) if base is None else base, _rounded(merged, target.dtype)]
        return np.array([np.count_nonzero(~np.isfinite(array)) for array in looked_at], np.int64)

    with ThreadPoolExecutor(num_threads()) as pool:
        for found in pool.map(merge_piece, range(0, size, TILE_ELEMENTS)):
            counts += found
    return counts


def _merge_task_vectors(work: Work, job: Job, target: passes.Target, whole: _WholeModel | None) -> np.ndarray:
    """Merges a tensor's task vectors as whole arrays, and adds the result to the base."""
    tensors = _tensors(work, job)
    base = _dense(tensors.base, job)
    experts = [_dense(source, job) for source in tensors.experts]
    with np.errstate(all="ignore"):
        merged = _merged_task_vector(work, job, [expert - base for expert in experts], whole)
        if merged is None:
            merged = np.zeros(job.shape, np.float32)
        _expect_shape(work, job, merged, job.shape)
        result = base + np.asarray(merged, np.float32)
    target.write(0, result)
    looked_at = [*experts, base, _rounded(result, target.dtype)]
    return np.array([np.count_nonzero(~np.isfinite(array)) for array in looked_at], np.int64)


def _merged_task_vector(
    work: Work, job: Job, task_vectors: list[np.ndarray], whole: _WholeModel | None
) -> np.ndarray | None:
    weights = list(job.parameters["weight"])
    if whole is None:
        return np.asarray(work.method.merge(task_vectors, weights))
    if work.method.uses == "model":
        return whole.merged(weights).get(job.name)
    return np.asarray(work.method.merge(task_vectors, weights, whole.grams(job.name)))


def _dense(source: passes.Source | None, job: Job) -> np.ndarray:
    if source is None:
        return np.zeros(job.shape, np.float32)
    return passes.load(source, 0, source.size).reshape(job.shape)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(dtype).astype(np.float32)


def _expect_shape(work: Work, job: Job, found: np.ndarray, shape: tuple[int, ...]) -> None:
    if found.shape != shape:
        raise BrokenPlugin(
            f"merge method {work.method.name!r} returned shape {list(found.shape)} for {list(shape)} of {job.name!r}"
        )


class _WholeModel:
    """What methods that use activations look at; each part is made once, when it is first needed."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._merged: dict[tuple[float, ...], Mapping[str, np.ndarray]] = {}
        self._grams: list[Mapping[str, np.ndarray]] | None = None

    def merged(self, weights: Sequence[float]) -> Mapping[str, np.ndarray]:
        """Returns the task vectors that a method with `uses="model"` returns for these weights."""
        key = tuple(weights)
        if key not in self._merged:
            work = self._work
            inputs = MergeInputs(self._arrays(None), self._experts(), self._activations)
            self._merged[key] = work.method.merge(inputs, list(key))
        return self._merged[key]

    def grams(self, name: str) -> list[np.ndarray] | None:
        """Returns XᵀX of the inputs that reach a layer in every expert, or `None` for a tensor that has none."""
        if self._grams is None:
            seen = [self._activations(expert, k) for k, expert in enumerate(self._experts())]
            self._grams = [{n: x.T.astype(np.float64) @ x for n, x in layers.items()} for layers in seen]
        found = [grams[name] for grams in self._grams if name in grams]
        return found if len(found) == len(self._grams) else None

    def _activations(self, tensors: Mapping[str, np.ndarray], k: int) -> Mapping[str, np.ndarray]:
        if self._work.activations is None:
            raise BrokenPlugin(f"merge method {self._work.method.name!r} needs activations, and the recipe names none")
        return self._work.activations(tensors, k)

    def _experts(self) -> list[Mapping[str, np.ndarray]]:
        count = len(next(job for job in self._work.jobs if job.kind == "merge").experts)
        return [self._arrays(k) for k in range(count)]

    def _arrays(self, k: int | None) -> Mapping[str, np.ndarray]:
        """Returns all tensors of expert k, or of the base, in the output's names."""
        arrays = {}
        for job in self._work.jobs:
            holder = job.base if k is None or job.kind == "copy" else job.experts[k]
            model, name = holder or job.experts[0]
            stored = self._work.models[model].tensor(name)
            arrays[job.name] = stored if job.kind == "copy" else _dense(self._work.source(model, name, job), job)
        return arrays


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


def _copy(work: Work, job: Job, target: passes.Target) -> list[str]:
    """Copies a tensor that is not merged; returns a fault if the models hold different ones."""
    holders = [*([job.base] if job.base else []), *job.experts]
    model, name = holders[0]
    first = work.models[model].tensor(name)
    target.write(0, first)
    return [
        f"tensor {job.name!r} is {first.dtype.name} and differs between {model.text} and {other.text}; "
        "only floating-point tensors can be merged"
        for other, its_name in holders[1:]
        if not np.array_equal(first, work.models[other].tensor(its_name))
    ]


def _number_faults(work: Work, job: Job, counts: Sequence[int] | None) -> list[str]:
    """Says which numbers of a tensor were not finite, and which became so."""
    if counts is None or not any(counts):
        return []
    owners = [model for model, _ in job.experts] + ([job.base[0]] if job.base else [])
    faults = [
        f"{model.text}: {count} numbers of tensor {name!r} are NaN or infinite"
        for (model, name), count in zip([*job.experts, *([job.base] if job.base else [])], counts[:-1], strict=False)
        if count
    ]
    if counts[-1] and not faults:
        faults.append(f"tensor {job.name!r}: {counts[-1]} merged numbers are beyond {job.dtype}; ask for a wider dtype")
    return faults if owners else []


# ── reading ahead ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_ahead(work: Work) -> Iterator[Job]:
    """Yields the jobs in order, while the system already fetches what the next ones need."""
    waiting, ahead = list(work.jobs), 0
    asked = 0
    for number, job in enumerate(waiting):
        while asked < len(waiting) and (asked <= number or ahead < READ_AHEAD_BYTES):
            ahead += _ask_for(work, waiting[asked])
            asked += 1
        yield job
        ahead -= _read_bytes(work, job)


def _ask_for(work: Work, job: Job) -> int:
    for model, name in _inputs(job):
        work.models[model].read_ahead(name)
    return _read_bytes(work, job)


def _read_bytes(work: Work, job: Job) -> int:
    from minerua.weights.header import nbytes

    return sum(nbytes(work.models[model].specs[name]) for model, name in _inputs(job))


def _inputs(job: Job) -> list[tuple[ModelRef, str]]:
    return [*job.experts, *([job.base] if job.base else [])]
