"""Genomes as callables that can be scored: each built by itself, or several over one base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, final

import numpy as np

from minerua.errors import BrokenPlugin, CheckpointError
from minerua.evaluation import Evaluation
from minerua.values import Change, Failure, Genome, ModelSpec, Scores
from minerua.weights import Subspace, changes_of, materialise


@final
class Models:
    """Makes the callables that evaluators take.

    A model kind with `open` loads the base once, when the first genome is scored, and adds genomes to it; of any other
    kind each genome is materialised and built by itself.

    Args:
        spec: The model kind.
        subspace: The space that the genomes live in.
    """

    def __init__(self, spec: ModelSpec, subspace: Subspace) -> None:
        self._spec, self._subspace = spec, subspace

    @property
    def joint(self) -> bool:
        """Whether several genomes can be scored together."""
        return self._spec.open is not None

    def score(self, evaluation: Evaluation, genome: Genome, *, split: str = "search") -> Scores | Failure:
        """Scores a genome on one split."""
        return evaluation.score(genome.digest, lambda: self._build([genome])[0], split=split)

    def prefetch(self, evaluation: Evaluation, genomes: Sequence[Genome], *, split: str = "search") -> None:
        """Scores genomes together, as far as their model kind and the tasks can; `score` finds what came of it.

        On a resumed run all of a batch are to be scored again, even if the journal has some: with the same rows beside
        it a model gives the same bits.
        """
        if self.joint:
            evaluation.prefetch(
                [genome.digest for genome in genomes],
                lambda positions: self._build([genomes[k] for k in positions]),
                split=split,
            )

    def build(self, genome: Genome) -> Any:
        """Returns the callable of one genome, as `score` makes it; valid until the next one is made.

        Raises:
            Exception: Whatever the model kind raises.
            BrokenPlugin: The model kind does not return one callable per child.
            CheckpointError: The genome's tensors are not finite.
        """
        return self._build([genome])[0]

    def _build(self, genomes: Sequence[Genome]) -> Sequence[Any]:
        if self._children is None:
            return [self._spec.build(_finite(materialise(self._subspace, genome).tensors)) for genome in genomes]
        changes = [changes_of(self._subspace, genome) for genome in genomes]
        for change in changes:
            _finite({name: one.core for name, one in change.items()})
        made = self._children(changes)
        if len(made) != len(genomes):
            raise BrokenPlugin(f"model {self._spec.name!r} made {len(made)} callables of {len(genomes)} children")
        return made

    @cached_property
    def _children(self) -> Callable[[Sequence[Mapping[str, Change]]], Sequence[Any]] | None:
        base = self._subspace.base
        return self._spec.open and self._spec.open({name: base.tensor(name) for name in base.specs})


def _finite(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Returns the tensors of a child, or refuses them: an evaluator may take NaN for an answer."""
    broken = list(_broken(tensors.items()))
    if broken:
        raise CheckpointError(f"NaN or infinity in {len(broken)} tensors of the child, the first {broken[0]}")
    return tensors


def _broken(tensors: Iterable[tuple[str, np.ndarray]]) -> Iterable[str]:
    for name, tensor in tensors:
        if not (tensor.dtype.kind in "biu" or np.isfinite(tensor).all()):
            yield name
