"""The engine: whose turn it is to be quality, who the parents are, where a child ends up.

`ask` names parents, `breed` makes the child, `tell` files its scores; nothing else has effects. A child depends on its
parents, on its number and on the run's seed alone, so it can be bred again at any time: genomes of the dead are
forgotten, and a resumed run breeds only what it still needs. Where the genomes of the living are kept is the caller's
choice: any mapping of names to genomes will do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from minerua.errors import EvolutionError
from minerua.evolution.archive import AddStatus, Archive, Bounds
from minerua.evolution.selection import SAMPLERS, Sampler, sample_parents
from minerua.values import Failure, Genome, Scores

Crossover = Callable[[Sequence[Genome], np.random.Generator], Genome]
"""Makes one genome of two parents."""

Mutation = Callable[[Genome, np.random.Generator, int], Genome]
"""Makes a changed genome; the last argument is the index of the active task."""

_PARENTS, _BREEDING = 0, 1  # independent streams of random numbers for each child


@dataclass(frozen=True)
class Proposal:
    """A child to be bred and evaluated.

    Args:
        id: Its number; seeds come first.
        task: Index of the active archive, from which the parents were drawn.
        parents: The parents' digests, in the order of their crossover coefficients.
    """

    id: int
    task: int
    parents: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What became of a proposal.

    Args:
        id: The proposal's number.
        digest: The name of the genome that was bred.
        outcome: Its scores, or why it has none.
    """

    id: int
    digest: str
    outcome: Scores | Failure


class Cycle:
    """K archives over K tasks, each child bred from the active archive and offered to all.

    The active archive of child t = 1, 2, … after the seeds is t mod K, or that of `active`. Determinism: the same
    seeds, functions and `seed`, and the same order of `ask` and `tell`, give the same proposals and archives.

    Args:
        seeds: The first population: genomes with their outcomes, numbered from 0. Failed seeds take part in nothing.
        bounds: The score ranges of the archives, for K tasks.
        crossover: Makes a child of two parents.
        mutate: Changes the child.
        sampler: Gives each elite's probability of being a parent; the paper's elite sampling.
        bins: Bins per behaviour characteristic.
        active: Which archives give parents, by turns, beginning with the second of them as the method does; all by
            default. One alone is the ablation without a cycle.
        seed: The run's seed, from 0 to 2⁶³ − 1; with the child's number it is the key of a Philox generator.
        genomes: Where the genomes of elites are kept, by name, for as long as somebody needs them; what it holds
            already is taken as it is. A fresh dictionary by default. The cycle itself keeps the seeds, and children
            until they are told.

    Raises:
        EvolutionError: If no seed has scores, a seed is scored on another number of tasks than `bounds` has, or an
            archive that is to be active does not exist.
    """

    def __init__(
        self,
        seeds: Sequence[tuple[Genome, Scores | Failure]],
        bounds: Bounds,
        *,
        crossover: Crossover,
        mutate: Mutation,
        sampler: Sampler = SAMPLERS["elite"],
        bins: int = 15,
        active: Sequence[int] | None = None,
        seed: int = 0,
        genomes: MutableMapping[str, Genome] | None = None,
    ) -> None:
        tasks = len(bounds.lower)
        self.archives: Final = tuple(Archive(task, bounds, bins=bins) for task in range(tasks))
        self._crossover, self._mutate, self._sampler, self._seed = crossover, mutate, sampler, seed
        self._active = tuple(range(tasks) if active is None else active)
        if not self._active or not set(self._active) <= set(range(tasks)):
            raise EvolutionError(f"active archives must be one or more of 0 to {tasks - 1}, found {self._active}")
        self._founders = {genome.digest: genome for genome, _ in seeds}
        self._first_child = self._next = len(seeds)
        self._origin: dict[str, Proposal] = {}
        self._cradle: dict[str, Genome] = {}
        self._genomes: MutableMapping[str, Genome] = {} if genomes is None else genomes
        self._occupied: Counter[str] = Counter()
        self._pending: dict[int, Proposal] = {}
        self._told: dict[int, tuple[str, object]] = {}
        for id, (genome, outcome) in enumerate(seeds):
            self._file(Result(id, genome.digest, outcome))
        if not self._occupied:
            raise EvolutionError("evolution needs at least one seed with scores, and none could be scored")

    @property
    def evaluations(self) -> int:
        """How many children have been told so far, failed ones included, seeds not."""
        return len(self._told)

    @property
    def pending(self) -> tuple[Proposal, ...]:
        """Children that were asked for and not yet told, in the order in which they were asked."""
        return tuple(self._pending.values())

    @property
    def alive(self) -> tuple[str, ...]:
        """Names of the children whose genomes are needed: elites, and parents of children still to be bred; sorted."""
        parents = {digest for proposal in self._pending.values() for digest in proposal.parents}
        return tuple(sorted(((+self._occupied).keys() | parents) - self._founders.keys()))

    def ask(self, n: int = 1) -> tuple[Proposal, ...]:
        """Names the parents of the next n children, from the archives as they are now.

        Args:
            n: How many; at least 1.

        Raises:
            EvolutionError: If n is below 1.
        """
        if n < 1:
            raise EvolutionError(f"ask for at least one child, not {n}")
        return tuple(self._propose() for _ in range(n))

    def _propose(self) -> Proposal:
        id = self._next
        task = self._active[(id - self._first_child + 1) % len(self._active)]
        parents = sample_parents(self.archives[task], self._sampler, self._generator(id, _PARENTS))
        self._next += 1
        self._pending[id] = Proposal(id, task, parents)
        return self._pending[id]

    def _generator(self, id: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self._seed, 2 * id + stream], np.uint64)))

    def breed(self, proposal: Proposal) -> Genome:
        """Makes the child of a proposal: crossover, then mutation.

        Parents whose genomes were forgotten, as after a resume, are bred first.

        Raises:
            EvolutionError: If a parent, bred again, is not what it was: another version or another machine is at work.
        """
        child = self._breed(proposal, [self.genome(digest) for digest in proposal.parents])
        self._cradle[child.digest] = child
        return child

    def _breed(self, proposal: Proposal, parents: Sequence[Genome]) -> Genome:
        generator = self._generator(proposal.id, _BREEDING)
        return self._mutate(self._crossover(parents, generator), generator, proposal.task)

    def genome(self, digest: str) -> Genome:
        """Returns the genome with this name: a seed, a child known to the cycle, or one bred again from its ancestors.

        Raises:
            EvolutionError: If nobody has that name, or a genome bred again is not what it was.
        """
        missing, bred = [digest], [digest]
        while (found := self._known(digest)) is None:  # a loop: a lineage may be deeper than Python's stack
            name = missing[-1]
            origin = self._origin.get(name)
            if origin is None:
                raise EvolutionError(f"no genome of this run is named {name}")
            unknown = [parent for parent in origin.parents if not self._is_known(parent)]
            if not unknown:
                self._breed_again(missing.pop(), origin)
                bred.append(name)
            missing += unknown
        for name in bred:
            self._forget(name)
        return found

    def _is_known(self, digest: str) -> bool:
        return any(digest in place for place in (self._founders, self._cradle, self._genomes))

    def _known(self, digest: str) -> Genome | None:
        for place in (self._founders, self._cradle, self._genomes):
            if digest in place:
                return place[digest]
        return None

    def _breed_again(self, digest: str, origin: Proposal) -> None:
        parents = [genome for parent in origin.parents if (genome := self._known(parent)) is not None]
        child = self._breed(origin, parents)
        if child.digest != digest:
            raise EvolutionError(
                f"child {origin.id} was {digest} when it was first bred and is {child.digest} now: the run was "
                "written by another version of minerua or numpy, or on another kind of machine; go on with that one"
            )
        self._genomes[digest] = child

    def tell(self, result: Result) -> tuple[AddStatus, ...]:
        """Files a child's outcome and offers the child to every archive.

        Results may come in any order; the same result told twice is filed once.

        Returns:
            What became of the child, one status per archive.

        Raises:
            EvolutionError: If nobody asked for this child, or it was told with another outcome before.
        """
        told, now = self._told.get(result.id), (result.digest, _summary(result.outcome))
        if told is not None:
            if told != now:
                raise EvolutionError(
                    f"child {result.id} was told before with another outcome; one child has one outcome"
                )
            return (AddStatus.NOT_ADDED,) * len(self.archives)
        proposal = self._pending.pop(result.id, None)
        if proposal is None:
            asked = ", ".join(str(id) for id in self._pending) or "none"
            raise EvolutionError(f"nobody asked for child {result.id}; waiting for: {asked}")
        self._told[result.id] = now
        self._origin.setdefault(result.digest, proposal)
        statuses = self._file(result)
        for parent in proposal.parents:  # a parent that left every archive meanwhile has stayed for this child alone
            self._forget(parent)
        return statuses

    def _file(self, result: Result) -> tuple[AddStatus, ...]:
        if isinstance(result.outcome, Failure):
            self._forget(result.digest)
            return (AddStatus.NOT_ADDED,) * len(self.archives)
        means = result.outcome.means
        if len(means) != len(self.archives):
            raise EvolutionError(
                f"child {result.id} has scores on {len(means)} tasks, the cycle has {len(self.archives)}"
            )
        added = [archive.add(result.id, result.digest, means) for archive in self.archives]
        self._occupied[result.digest] += sum(status is not AddStatus.NOT_ADDED for status, _ in added)
        if self._occupied[result.digest] and result.digest in self._cradle:
            self._genomes[result.digest] = self._cradle.pop(result.digest)
        for _, displaced in added:
            if displaced is not None:
                self._occupied[displaced.digest] -= 1
                self._forget(displaced.digest)
        self._forget(result.digest)
        return tuple(status for status, _ in added)

    def _forget(self, digest: str) -> None:
        """Drops a genome that nobody needs: in no archive, and no parent of a child still to be bred."""
        needed = self._occupied[digest] > 0 or any(digest in proposal.parents for proposal in self._pending.values())
        if not needed:
            self._cradle.pop(digest, None)
            self._occupied.pop(digest, None)
            if digest in self._genomes:
                del self._genomes[digest]


def _summary(outcome: Scores | Failure) -> object:
    """What a repeated result is compared by; item outcomes are not kept here, the journal has them."""
    return outcome if isinstance(outcome, Failure) else outcome.means
