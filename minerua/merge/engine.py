"""Carries out a plan: every tensor in one go from the files it lies in to the place where it belongs.

Tensors come in the order in which they lie on the disk; the passes of `minerua.kernels` cut them into tiles, so that
memory is bounded whatever the model's size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np

from minerua.errors import BrokenPlugin, CheckpointError, MineruaError
from minerua.kernels import num_threads, passes
from minerua.merge.models import Model
from minerua.merge.planning.plan import Job
from minerua.merge.recipes.recipe import ModelRef
from minerua.values import MergeInputs, MergeMethodSpec, MergeTensors, MergeTile
from minerua.weights.header import capped, nbytes

TILE_ELEMENTS = 1 << 18
"""Elements that a method with `uses="tiles"` is given at once: a few arrays of them stay in the cache."""

READ_AHEAD_BYTES = 1 << 28
"""How far reading runs ahead of merging."""

_MAX_FAULTS = 100

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and in all."""

Activations = Callable[[Mapping[str, np.ndarray], int], Mapping[str, np.ndarray]]
"""What `MergeInputs.activations` is: runs a model with these tensors on expert k's unlabelled inputs."""

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
    activations: Activations | None = None


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
    whole = WholeModel(work) if work.method.uses in ("grams", "model") else None
    prepared = prepare_method(work.method, _AllTensors(work))
    total = sum(job.nbytes for job in work.jobs)
    done = 0
    for job in _read_ahead(work):
        goal = target(job)
        if job.kind == "copy":
            faults += _copy(work, job, goal)
        else:
            counts = merge_one(work.method, _tensors(work, job, prepared), goal, whole=whole)
            faults += _number_faults(job, counts)
        done += job.nbytes
        if progress is not None:
            progress(done, total)
    if faults:
        raise CheckpointError("the models cannot be merged", capped(faults, limit=_MAX_FAULTS))


def merge_faults(method: MergeMethodSpec, jobs: Sequence[Job]) -> list[str]:
    """Returns what is wrong with the parameters of each tensor together, one sentence for all that share it.

    Args:
        method: Whose parameters they are.
        jobs: The tensors.
    """
    if method.check is None:
        return []
    found: dict[str, list[str]] = {}
    for job in jobs:
        text = _checked(method, job)
        if text is not None:
            found.setdefault(text, []).append(job.name)
    return [f"{text} (in {len(names)} tensors, the first is {names[0]!r})" for text, names in found.items()]


def _checked(method: MergeMethodSpec, job: Job) -> str | None:
    if method.check is None or job.kind != "merge" or not _is_set(method, job.parameters):
        return None
    try:
        return method.check(job.parameters)
    except Exception as error:  # noqa: BLE001 - a stranger's function; told with all other faults
        return f"merge method {method.name!r} cannot check its parameters: {type(error).__name__}: {error}"


def _is_set(method: MergeMethodSpec, parameters: Mapping[str, Any]) -> bool:
    """Whether all parameters have values; the plan tells those that have none."""
    values = [parameters.get(parameter.name) for parameter in method.parameters]
    return all(value is not None and not (isinstance(value, tuple) and None in value) for value in values)


def prepare_method(method: MergeMethodSpec, all_tensors: Sequence[MergeTensors]) -> Any:
    """Returns what a method wants to know of all tensors before the first is merged; `None` if nothing.

    Args:
        method: How they will be merged.
        all_tensors: What.

    Raises:
        MineruaError: The method refuses them.
        BrokenPlugin: It failed.
    """
    if method.prepare is None:
        return None
    try:
        return method.prepare(all_tensors)
    except (MineruaError, OSError):
        raise
    except Exception as error:
        raise BrokenPlugin(
            f"merge method {method.name!r} failed to prepare: {type(error).__name__}: {error}"
        ) from error


def merge_one(
    method: MergeMethodSpec, tensors: MergeTensors, target: passes.Target, *, whole: WholeModel | None = None
) -> np.ndarray | None:
    """Merges one tensor by a method of any kind.

    Args:
        method: How.
        tensors: What.
        target: Where the merged weights go.
        whole: For methods that use activations.

    Returns:
        K + 2 counts of numbers that are not finite: of each expert, of the base, and of the result; others where a
        method's last pass was over other sources; or `None` where it does not count.

    Raises:
        BrokenPlugin: The method failed, or returned another shape; names it and the tensor.
        OSError: The system refused to write.
    """
    try:
        if method.uses == "tensors":
            return _expect_counts(method, tensors.name, method.merge(tensors, target))
        if method.uses == "tiles":
            return _merge_tiles(method, tensors, target)
        return _merge_task_vectors(method, tensors, target, whole)
    except (MineruaError, OSError):
        raise
    except Exception as error:
        raise BrokenPlugin(
            f"merge method {method.name!r} failed at tensor {tensors.name!r}: {type(error).__name__}: {error}"
        ) from error


def merge_arrays(
    method: MergeMethodSpec, task_vectors: Sequence[np.ndarray], *, name: str, settings: Mapping[str, Any]
) -> np.ndarray:
    """Merges one tensor's task vectors in memory, by a method that looks at nothing else.

    Args:
        method: With `uses` of `weights`, `tiles` or `tensors`; what its `prepare` sees is this tensor alone.
        task_vectors: K arrays of one shape, float32.
        name: The tensor's name; random masks are drawn by it.
        settings: Values of parameters; the rest have their defaults.

    Returns:
        The merged task vector, float32.

    Raises:
        BrokenPlugin: The method failed.

    Example:
        >>> from minerua.merge.methods.means import mean
        >>> spec = MergeMethodSpec("mean", mean)
        >>> merge_arrays(spec, [np.float32([0, 2]), np.float32([4, 4])], name="w", settings={"weight": (1, 1)}).tolist()
        [2.0, 3.0]
    """
    count, shape = len(task_vectors), task_vectors[0].shape
    defaults = {p.name: (p.default,) * count if p.per_model else p.default for p in method.parameters}
    merged = np.empty(shape, np.float32)
    base = None if method.base == "ignored" else passes.Source(np.zeros(shape, np.float32))
    sources = tuple(passes.Source(np.ascontiguousarray(vector, np.float32)) for vector in task_vectors)
    tensors = MergeTensors(name, shape, number_of(name), sources, base, {**defaults, **settings})
    prepared = method.prepare([tensors]) if method.prepare else None
    merge_one(method, replace(tensors, prepared=prepared), passes.Target(merged.dtype, merged))
    return merged


def number_of(name: str) -> int:
    """Returns what a tensor's random masks are drawn by: 32 bits of its name's digest, whatever else is merged."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def _tensors(work: Work, job: Job, prepared: Any = None) -> MergeTensors:
    return MergeTensors(
        name=job.name,
        shape=job.shape,
        number=number_of(job.name),
        experts=tuple(work.source(model, name, job) for model, name in job.experts),
        base=None if job.base is None else work.source(*job.base, job),
        parameters=job.parameters,
        semantics=work.semantics,
        seed=work.seed,
        prepared=prepared,
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


def _merge_tiles(method: MergeMethodSpec, tensors: MergeTensors, target: passes.Target) -> np.ndarray:
    """Merges a tensor a piece at a time, pieces side by side; numpy lets go of the interpreter's lock."""
    from concurrent.futures import ThreadPoolExecutor

    size = math.prod(tensors.shape)
    counts = np.zeros(len(tensors.experts) + 2, np.int64)

    def merge_piece(begin: int) -> np.ndarray:
        end = min(begin + TILE_ELEMENTS, size)
        experts = tuple(passes.load(source, begin, end) for source in tensors.experts)
        base = None if tensors.base is None else passes.load(tensors.base, begin, end)
        with np.errstate(all="ignore"):  # what is not finite is counted, and reported by name
            merged = np.asarray(method.merge(MergeTile(tensors.name, experts, base, tensors.parameters)))
        _expect_shape(method, tensors, merged, (end - begin,))
        target.write(begin, merged)
        return _not_finite(experts, base, merged, target)

    with ThreadPoolExecutor(num_threads()) as pool:
        for found in pool.map(merge_piece, range(0, size, TILE_ELEMENTS)):
            counts += found
    return counts


def _merge_task_vectors(
    method: MergeMethodSpec, tensors: MergeTensors, target: passes.Target, whole: WholeModel | None
) -> np.ndarray:
    """Merges a tensor's task vectors as whole arrays, and adds the result to the base."""
    experts = [dense(source, tensors.shape) for source in tensors.experts]
    base = np.zeros(tensors.shape, np.float32) if tensors.base is None else dense(tensors.base, tensors.shape)
    weights = list(tensors.parameters["weight"])
    with np.errstate(all="ignore"):
        task_vectors = [np.asarray(expert - base) for expert in experts]  # numpy makes 0-d a number
        if method.uses == "weights" or whole is None:
            merged = method.merge(task_vectors, weights)
        elif method.uses == "grams":
            merged = method.merge(task_vectors, weights, whole.grams(tensors.name))
        else:
            merged = whole.merged(weights).get(tensors.name, np.zeros(tensors.shape, np.float32))
        _expect_shape(method, tensors, np.asarray(merged), tensors.shape)
        result = np.asarray(base + np.asarray(merged, np.float32))
    target.write(0, result)
    return _not_finite(experts, base, result, target)


def dense(source: passes.Source, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a whole tensor in float32."""
    return passes.load(source, 0, math.prod(shape)).reshape(shape)


def _not_finite(
    experts: Sequence[np.ndarray], base: np.ndarray | None, merged: np.ndarray, target: passes.Target
) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = merged.astype(target.dtype).astype(np.float32)
    arrays = [*experts, np.zeros(0) if base is None else base, rounded]
    return np.array([np.count_nonzero(~np.isfinite(array)) for array in arrays], np.int64)


def _expect_shape(method: MergeMethodSpec, tensors: MergeTensors, found: np.ndarray, shape: tuple[int, ...]) -> None:
    if found.shape != shape:
        raise BrokenPlugin(
            f"merge method {method.name!r} returned shape {list(found.shape)} for {list(shape)} of {tensors.name!r}"
        )


def _expect_counts(method: MergeMethodSpec, name: str, found: Any) -> np.ndarray | None:
    counts = np.asarray([] if found is None else found)
    if found is not None and (counts.ndim != 1 or counts.dtype.kind not in "iu"):
        raise BrokenPlugin(
            f"merge method {method.name!r} returned {found!r} for {name!r}; return what a pass of minerua.kernels "
            "returns, or None"
        )
    return None if found is None else counts


class WholeModel:
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
            arrays[job.name] = stored if job.kind == "copy" else dense(self._work.source(model, name, job), job.shape)
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


def _number_faults(job: Job, counts: np.ndarray | None) -> list[str]:
    """Says which numbers of a tensor were not finite, and which became so by rounding."""
    if counts is None or not any(counts.tolist()):
        return []
    holders = [*job.experts, *([job.base] if job.base else [])]
    if len(counts) != len(job.experts) + 2:  # of a pass over others than the experts and the base
        return [f"tensor {job.name!r}: {counts.sum()} numbers of its models, or merged ones, are NaN or infinite"]
    faults = [
        f"{model.text}: {count} numbers of tensor {name!r} are NaN or infinite"
        for (model, name), count in zip(holders, counts, strict=False)
        if count
    ]
    if not faults:
        faults.append(f"tensor {job.name!r}: {counts[-1]} merged numbers are beyond {job.dtype}; ask for a wider dtype")
    return faults


# ── reading ahead ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_ahead(work: Work) -> Iterator[Job]:
    """Yields the jobs in order, while the system already fetches what the next ones need."""
    waiting, ahead = list(work.jobs), 0
    asked: list[int] = []  # the bytes of every job that was asked for
    for number, job in enumerate(waiting):
        while len(asked) < len(waiting) and (len(asked) <= number or ahead < READ_AHEAD_BYTES):
            asked.append(_ask_for(work, waiting[len(asked)]))
            ahead += asked[-1]
        yield job
        ahead -= asked[number]


def _ask_for(work: Work, job: Job) -> int:
    """Asks for all that a job reads; returns how many bytes that is."""
    inputs = [(work.models[model], name) for model, name in _inputs(job)]
    for model, name in inputs:
        model.read_ahead(name)
    return sum(nbytes(model.specs[name]) for model, name in inputs)


def _inputs(job: Job) -> list[tuple[ModelRef, str]]:
    return [*job.experts, *([job.base] if job.base else [])]
