"""The first population: the experts, and merges of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minerua.errors import ConfigError
from minerua.run.prepare import Prepared
from minerua.values import Genome, MergeMethodSpec
from minerua.weights import Delta, Factors, Subspace, TaskVector, apply, dense


@dataclass(frozen=True, eq=False)
class Founder:
    """A member of the first population.

    Args:
        name: An expert's name, or that of a merge.
        genome: Its genome.
        expert: Whether it is an expert; bounds are taken from experts alone.
    """

    name: str
    genome: Genome
    expert: bool


def found(prepared: Prepared) -> tuple[Subspace, tuple[Founder, ...]]:
    """Builds the subspace that experts and merges span, and the founders in it, experts first.

    Args:
        prepared: The checked parts.
    """
    vectors: dict[str, TaskVector] = {expert.name: expert.task_vector for expert in prepared.experts}
    experts = set(vectors)
    vectors |= _merges(prepared)
    subspace = Subspace(prepared.base, vectors)
    return subspace, tuple(Founder(name, genome, name in experts) for name, genome in subspace.founders.items())


def _merges(prepared: Prepared) -> dict[str, TaskVector]:
    """Merges all experts with equal weights, once per merge method."""
    vectors = [expert.task_vector for expert in prepared.experts]
    hungry = any(merge.uses_grams for merge in prepared.merges)
    grams = [_grams(prepared, i) for i in range(len(vectors))] if hungry else []
    names = sorted({name for vector in vectors for name in vector})
    merged = {}
    for method in prepared.merges:
        deltas = {name: _merge(prepared, method, vectors, grams, name) for name in names}
        digest = hashlib.blake2b("".join([method.name, *(v.digest for v in vectors)]).encode(), digest_size=16)
        merged[method.name] = TaskVector(digest.hexdigest(), deltas)
    return merged


def _grams(prepared: Prepared, expert: int) -> Mapping[str, np.ndarray]:
    """Returns XᵀX of the inputs that reach each layer of an expert on its own task's unlabelled search items."""
    task, model = prepared.tasks[expert], prepared.model
    if model.activations is None or task.evaluator.inputs is None:
        raise ConfigError(f"{model.name} and {task.name} must give activations and inputs")  # prepare() has checked it
    weights = apply(prepared.base, prepared.experts[expert].task_vector)
    seen = model.activations(model.build(weights), task.evaluator.inputs(task.ids["search"]))
    return {name: x.T.astype(np.float64) @ x for name, x in seen.items()}


def _merge(
    prepared: Prepared,
    method: MergeMethodSpec,
    vectors: Sequence[TaskVector],
    grams: Sequence[Mapping[str, np.ndarray]],
    name: str,
) -> Delta:
    """Merges one tensor; low-rank changes stay low-rank where the method leaves their columns alone."""
    zero = np.zeros(prepared.base.tensor(name).shape, np.float32)
    deltas = [vector.get(name) for vector in vectors]
    known = [g[name] for g in grams if name in g]
    matrices = known if method.uses_grams and len(known) == len(vectors) else None
    merged = method.merge([zero if d is None else dense(d) for d in deltas], [1.0] * len(vectors), matrices)
    spans = [delta.left for delta in deltas if isinstance(delta, Factors)]
    return _compress(merged, spans) if spans and len(spans) == sum(d is not None for d in deltas) else merged


def _compress(delta: np.ndarray, spans: Sequence[np.ndarray]) -> Delta:
    """Returns a change as factors if its columns lie in the span of the given ones, as it is if not."""
    basis, _ = np.linalg.qr(np.concatenate(spans, axis=1).astype(np.float64))
    right = basis.T @ delta
    if basis.shape[1] >= min(delta.shape) or np.linalg.norm(basis @ right - delta) > 1e-5 * np.linalg.norm(delta):
        return delta
    return Factors(basis.astype(np.float32), right.astype(np.float32))
