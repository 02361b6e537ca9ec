"""A run from its prepared parts to its last child: seeds, archives, the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import minerua
from minerua.errors import EvolutionError
from minerua.evaluation import Evaluation
from minerua.evolution import SAMPLERS, Bounds, Cycle, Proposal, Result
from minerua.evolution.cycle import Mutation
from minerua.run.models import Models
from minerua.run.preflight import Announce, check_experts
from minerua.run.prepare import Prepared
from minerua.run.record import Record
from minerua.run.seeds import Founder, found
from minerua.run.shelf import GenomeShelf
from minerua.run.variation import crossover_of, mutation_of
from minerua.values import Failure, Genome, Scores
from minerua.weights import GenomeStore, Subspace

GENOMES = "genomes"
"""The folder, in that of the run, for the genomes of its elites; made only where they are large."""

LARGEST_IN_MEMORY_BYTES = 1 << 20
"""Genomes above this are kept on the disk. Hundreds of elites of this size are hundreds of megabytes."""

Progress = Callable[[int, int, float], None]
"""Called with children told, children in all, and the best mean search score so far."""


@dataclass(frozen=True, eq=False)
class Population:
    """A population during and after its evolution.

    Args:
        subspace: The space that it lives in.
        founders: Its seeds, experts first.
        evaluation: Scores a genome; remembers outcomes.
        cycle: The archives.
        models: Makes the callables that evaluators take.
        shelf: Where the elites' genomes lie; `None` if they are kept in memory.
    """

    subspace: Subspace
    founders: tuple[Founder, ...]
    evaluation: Evaluation
    cycle: Cycle
    models: Models
    shelf: GenomeShelf | None = None

    def score(self, genome: Genome, *, split: str = "search") -> Scores | Failure:
        """Scores a genome on one split."""
        return self.models.score(self.evaluation, genome, split=split)

    def prefetch(self, genomes: Sequence[Genome], *, split: str = "search") -> None:
        """Scores genomes together, where models and tasks can; `score` then finds what came of it."""
        self.models.prefetch(self.evaluation, genomes, split=split)


def evolve(
    prepared: Prepared, record: Record, progress: Progress | None = None, announce: Announce | None = None
) -> Population:
    """Carries a run from its first seed to its last child; what the record already holds is taken over.

    Args:
        prepared: The checked parts.
        record: The journal, fresh or resumed.
        progress: Called after every child.
        announce: Called with how alike the experts are, once, before the first seed of a fresh run is scored.

    Raises:
        JournalError: If the record belongs to another run.
        EvolutionError: If no expert can be scored, or a child bred again is not what it was.
        CheckpointError: If a genome on the disk is damaged.
        StorageError: If the journal or a genome cannot be written.
    """
    config = prepared.config
    subspace, founders = found(prepared)
    evaluation = Evaluation(prepared.tasks, seed=config.seed, time_limit_seconds=config.time_limit_seconds)
    models = Models(prepared.model, subspace)
    record.confirm(_run_event(prepared, subspace))
    record.confirm({"event": "items", "items": {task.name: dict(task.ids) for task in prepared.tasks}})
    check_experts(record, subspace, founders, announce)
    seeds = _score_seeds(record, evaluation, founders, models, together=config.evolution.batch)
    bounds = _bounds(prepared, founders, [outcome for _, outcome in seeds])
    record.confirm({"event": "bounds", "lower": bounds.lower, "upper": bounds.upper})
    large = seeds[0][0].values.nbytes > LARGEST_IN_MEMORY_BYTES
    shelf = GenomeShelf(GenomeStore(record.folder / GENOMES)) if large else None
    cycle = Cycle(
        seeds,
        bounds,
        crossover=crossover_of(prepared.variant, subspace),
        mutate=_mutation(prepared, subspace, founders),
        sampler=SAMPLERS[prepared.variant.sampling],
        bins=config.evolution.bins,
        active=[config.task_names.index(name) for name in config.evolution.active or config.task_names],
        seed=config.seed,
        genomes=shelf,
    )
    population = Population(subspace, founders, evaluation, cycle, models, shelf)
    _loop(prepared, record, population, progress)
    return population


def _mutation(prepared: Prepared, subspace: Subspace, founders: Sequence[Founder]) -> Mutation:
    experts = [founder.genome for founder in founders if founder.expert]
    return mutation_of(prepared.variant, subspace, experts, precision=prepared.config.evolution.precision)


def _run_event(prepared: Prepared, subspace: Subspace) -> Mapping[str, object]:
    return {
        "event": "run",
        "format": 1,
        "minerua": minerua.__version__,
        "config": prepared.config.plain(),
        "variant": asdict(prepared.variant),
        "tasks": [task.name for task in prepared.tasks],
        "versions": {
            "model": prepared.model.version,
            "tasks": {task.name: task.evaluator.version for task in prepared.tasks},
        },
        "base": prepared.base.digest,
        "experts": {expert.name: expert.digest for expert in prepared.experts},
        "subspace": subspace.digest,
    }


def _score_seeds(
    record: Record, evaluation: Evaluation, founders: Sequence[Founder], models: Models, *, together: int
) -> list[tuple[Genome, Scores | Failure]]:
    seeds = []
    for id, founder in enumerate(founders):
        genome = founder.genome
        group = founders[id : id + together]
        if id % together == 0 and not record.holds(len(group)):
            models.prefetch(evaluation, [member.genome for member in group])
        event = {"event": "seed", "id": id, "name": founder.name, "digest": genome.digest, "expert": founder.expert}
        outcome = record.outcome(event, partial(models.score, evaluation, genome))
        if isinstance(outcome, Scores):
            evaluation.remember(genome.digest, outcome)
        seeds.append((genome, outcome))
    return seeds


def _bounds(prepared: Prepared, founders: Sequence[Founder], outcomes: Sequence[Scores | Failure]) -> Bounds:
    """Returns the bounds that the run file gives, or those that the experts' scores imply."""
    means = [o.means for f, o in zip(founders, outcomes, strict=True) if f.expert and isinstance(o, Scores)]
    if not means:
        reasons = [f"{f.name}: {o.reason}" for f, o in zip(founders, outcomes, strict=True) if isinstance(o, Failure)]
        raise EvolutionError("no expert could be scored, so there is nothing to evolve", reasons)
    settings = prepared.config.evolution
    if prepared.variant.bounds == "best-seed":
        scored = [o for o in outcomes if isinstance(o, Scores)]
        implied = Bounds.around(max(scored, key=lambda scores: scores.mean).means)
    else:
        implied = Bounds.of_experts(means)
    return Bounds(settings.lower_bounds or implied.lower, settings.upper_bounds or implied.upper)


def _loop(prepared: Prepared, record: Record, population: Population, progress: Progress | None) -> None:
    cycle, total = population.cycle, prepared.config.evolution.evaluations
    names = [task.name for task in prepared.tasks]
    best = max(sum(elite.means) / len(elite.means) for archive in cycle.archives for elite in archive.elites)
    tidied = False
    while cycle.evaluations < total:
        proposals = cycle.ask(min(prepared.config.evolution.batch, total - cycle.evaluations))
        children = [{"id": p.id, "task": names[p.task], "parents": list(p.parents)} for p in proposals]
        record.confirm({"event": "ask", "children": children})
        bred: dict[int, Genome] = {}
        if population.models.joint and not record.holds(len(proposals)):
            bred = {proposal.id: cycle.breed(proposal) for proposal in proposals}
            population.prefetch(list(bred.values()))
        for proposal in proposals:
            tidied = tidied or _tidy(record, population)
            outcome = _child(record, population, proposal, bred.get(proposal.id))
            best = max(best, outcome.mean) if isinstance(outcome, Scores) else best
            if progress:
                progress(cycle.evaluations, total, best)
    _complete(population)


def _tidy(record: Record, population: Population) -> bool:
    """Deletes what an earlier process has left on the shelf, once the record is at its end and says who is alive."""
    if population.shelf is not None and not record.replaying:
        population.shelf.sweep(population.cycle.alive)
    return not record.replaying


def _complete(population: Population) -> None:
    """Leaves the genomes of all elites on the shelf, and no others: those of an uninterrupted run."""
    if population.shelf is not None:
        population.shelf.sweep(population.cycle.alive)
        for digest in population.cycle.alive:
            if digest not in population.shelf:
                population.cycle.genome(digest)
        population.shelf.settle()


def _child(record: Record, population: Population, proposal: Proposal, bred: Genome | None) -> Scores | Failure:
    """Scores and files one child, bred or not, or takes over what the record has of it without breeding it."""
    cycle, shelf = population.cycle, population.shelf
    replayed = record.replaying
    genome = None if replayed else bred or cycle.breed(proposal)
    digest = genome.digest if genome else record.next_digest()
    outcome = record.outcome(
        {"event": "tell", "id": proposal.id, "digest": digest},
        lambda: population.score(genome or cycle.breed(proposal)),
        lambda outcome: {"added": [int(status) for status in cycle.tell(Result(proposal.id, digest, outcome))]},
    )
    if shelf is not None and not replayed:
        shelf.settle()
    if genome is None and isinstance(outcome, Scores):
        population.evaluation.remember(digest, outcome)
    return outcome
