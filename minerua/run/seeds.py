"""The first population: the experts, and merges of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from minerua.errors import BrokenPlugin
from minerua.merge.engine import merge_arrays
from minerua.run.activations import activations_of
from minerua.run.prepare import Prepared
from minerua.values import Genome, MergeInputs, MergeMethodSpec
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

    Raises:
        BrokenPlugin: If a merge method fails.
        CheckpointError: If no expert differs from the base.
    """
    vectors: dict[str, TaskVector] = {expert.name: expert.task_vector for expert in prepared.experts}
    experts = set(vectors)
    vectors |= _merges(prepared)
    subspace = Subspace(prepared.base, vectors)
    return subspace, tuple(Founder(name, genome, name in experts) for name, genome in subspace.founders.items())


def _merges(prepared: Prepared) -> dict[str, TaskVector]:
    """Merges all experts by every method, with equal weights; those that use inputs also with each expert twice."""
    models = _Models(prepared)
    merged = {}
    for method in prepared.merges:
        for name, weights in _weightings(prepared, method).items():
            deltas = models.merge(method, weights)
            parts = [method.name, str(weights), *(expert.digest for expert in prepared.experts)]
            digest = hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()
            merged[name] = TaskVector(digest, deltas)
    return merged


def _weightings(prepared: Prepared, method: MergeMethodSpec) -> dict[str, list[float]]:
    equal = [1.0] * len(prepared.experts)
    weightings = {method.name: equal}
    if method.uses in ("grams", "model"):
        for k, expert in enumerate(prepared.experts):
            weightings[f"{method.name}+{expert.name}"] = [*equal[:k], 2.0, *equal[k + 1 :]]
    return weightings


class _Models:
    """The experts as merge methods see them; what is costly is made once, when it is first needed."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._vectors = [expert.task_vector for expert in prepared.experts]
        self._activations = activations_of(prepared.model, prepared.tasks)

    def merge(self, method: MergeMethodSpec, weights: Sequence[float]) -> Mapping[str, Delta]:
        """Merges the experts; where all of them are low-rank, so is the merge."""
        try:
            merged = self._merge(method, weights)
        except Exception as error:
            raise BrokenPlugin(
                f"merge method {method.name!r} failed: {type(error).__name__}: {error}; "
                "mend it, or leave it out of evolution.merges"
            ) from error
        faults = [fault for name, delta in merged.items() for fault in self._faults(name, delta)]
        if faults:
            raise BrokenPlugin(
                f"merge method {method.name!r} returned what cannot be used; leave it out of evolution.merges", faults
            )
        return {name: _compress(delta, self._spans(name)) for name, delta in merged.items()}

    def _merge(self, method: MergeMethodSpec, weights: Sequence[float]) -> dict[str, np.ndarray]:
        if method.uses == "model":
            merged = method.merge(self._inputs, weights)
            return {name: np.asarray(delta, np.float32) for name, delta in merged.items()}
        names = sorted({name for vector in self._vectors for name in vector})
        return {name: np.asarray(self._merge_tensor(method, weights, name), np.float32) for name in names}

    def _faults(self, name: str, delta: np.ndarray) -> list[str]:
        """Says what is wrong with a merged tensor; one NaN in it could reach every genome through the bases."""
        spec = self._prepared.base.specs.get(name)
        if spec is None or delta.shape != spec.shape:
            return [f"{name}: shape {list(delta.shape)}, the base has {list(spec.shape) if spec else 'no such tensor'}"]
        return [] if np.isfinite(delta).all() else [f"{name}: NaN or infinity"]

    def _merge_tensor(self, method: MergeMethodSpec, weights: Sequence[float], name: str) -> Any:
        zero = np.zeros(self._prepared.base.tensor(name).shape, np.float32)
        deltas = [dense(vector.get(name, zero)) for vector in self._vectors]
        if method.uses == "weights":
            return method.merge(deltas, weights)
        if method.uses in ("tiles", "tensors"):
            return merge_arrays(method, deltas, name=name, settings={"weight": tuple(weights)})
        grams = [grams[name] for grams in self._grams if name in grams]
        return method.merge(deltas, weights, grams if len(grams) == len(deltas) else None)

    def _spans(self, name: str) -> list[np.ndarray]:
        """The column spaces of the experts' changes of a tensor, if all of them are low-rank."""
        deltas = [vector[name] for vector in self._vectors if name in vector]
        spans = [delta.left for delta in deltas if isinstance(delta, Factors)]
        return spans if len(spans) == len(deltas) else []

    @cached_property
    def _inputs(self) -> MergeInputs:
        prepared = self._prepared
        experts = [apply(prepared.base, vector) for vector in self._vectors]
        return MergeInputs(apply(prepared.base, {}), experts, self._activations)

    @cached_property
    def _grams(self) -> list[Mapping[str, np.ndarray]]:
        """XᵀX of the inputs that reach each layer of every expert on its own task's unlabelled search items."""
        seen = [self._activations(expert, k) for k, expert in enumerate(self._inputs.experts)]
        return [{name: x.T.astype(np.float64) @ x for name, x in layers.items()} for layers in seen]


def _compress(delta: np.ndarray, spans: Sequence[np.ndarray]) -> Delta:
    """Returns a change projected onto the columns that low-rank experts span, as factors; without them, as it is.

    Means and RegMean lie in that span; of least squares, such as layer matching, the projection is the best answer in
    it. So a population of adapters stays a population of small cores, whatever merges it starts from.
    """
    if not spans:
        return delta
    basis, _ = np.linalg.qr(np.concatenate(spans, axis=1).astype(np.float64))
    if basis.shape[1] >= min(delta.shape):
        return delta
    return Factors(basis.astype(np.float32), (basis.T @ delta).astype(np.float32))
