"""A toy landscape with known optima: genomes are points, each task is the closeness to a target."""

from __future__ import annotations

import numpy as np

from minerua.evolution import Bounds, Cycle, Result
from minerua.evolution.operators import crossover_coefficients
from minerua.values import Genome, Scores, TaskScore

ITEMS = 20


def genome(*values: float) -> Genome:
    array = np.asarray(values, np.float32)
    array.flags.writeable = False
    return Genome("toy", array)


def scores(*means: float) -> Scores:
    return Scores({f"task-{k}": TaskScore((float(m),)) for k, m in enumerate(means)})


def closeness(point: Genome, tasks: int) -> Scores:
    """Task k wants coordinate k at 1 and all others at 0.2; the best mean lies between the corners."""
    values = point.values.astype(float)
    means = []
    for k in range(tasks):
        target = np.full(tasks, 0.2)
        target[k] = 1.0
        means.append(float(np.exp(-np.sum((values - target) ** 2))))
    return scores(*means)


def cross(parents, generator):
    weights = crossover_coefficients(generator, deviation=0.5)[0]
    return genome(*sum(w * p.values for w, p in zip(weights, parents, strict=True)))


def jitter(point, generator, task):
    return genome(*(point.values + generator.normal(0, 0.1, point.values.shape)))


def corners(tasks: int) -> list[tuple[Genome, Scores]]:
    points = [genome(*np.eye(tasks)[k]) for k in range(tasks)]
    return [(point, closeness(point, tasks)) for point in points]


def toy_cycle(tasks: int, *, seed: int = 0, bins: int = 15, **settings) -> Cycle:
    seeds = corners(tasks)
    bounds = Bounds.of_experts([s.means for _, s in seeds])
    options = {"crossover": cross, "mutate": jitter, "bins": bins, "seed": seed} | settings
    return Cycle(seeds, bounds, **options)


def advance(cycle: Cycle, tasks: int, children: int, *, batch: int = 1) -> list[Result]:
    results = []
    for _ in range(0, children, batch):
        for proposal in cycle.ask(batch):
            child = cycle.breed(proposal)
            results.append(Result(proposal.id, child.digest, closeness(child, tasks)))
            cycle.tell(results[-1])
    return results
