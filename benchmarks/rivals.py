"""What the tables of evolved models share: searches over merges with a budget, and rows with intervals over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cma
import numpy as np
import scipy.stats

from minerua.weights import write_bytes

CHOICES = 20
Accuracy = tuple[float, ...]  # one per task


class World(Protocol):
    """One seed's models, and their scores."""

    def score(self, model: Any, split: str, digest: str) -> Accuracy:
        """Returns the accuracy of a model on one split, per task."""

    def prefetch(self, models: Sequence[Any], split: str) -> None:
        """Scores several models at once, where that is faster."""


def taken_over(folder: Path | None, name: str, make: Callable[[], Any]) -> Any:
    """Returns what an earlier run has written down, or makes it and writes it down; values of JSON.

    Args:
        folder: Where; `None`: it is made, and not written down.
        name: The file's name, without its end; says all that the value depends on.
        make: Makes it.
    """
    if folder is None:
        return make()
    path = folder / f"{name}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(make(), indent=1, default=float).encode() + b"\n")
    return json.loads(path.read_bytes())


@dataclass
class Tried:
    """A model that a search evaluated."""

    mean: float
    digest: str
    model: Any


class Search:
    """Counts evaluations and remembers the best models."""

    def __init__(self, world: World, label: str, evaluations: int) -> None:
        self.world, self.label, self.left = world, label, evaluations
        self.tried: list[Tried] = []

    def __call__(self, model: Any) -> float:
        """Evaluates a model on the search items and returns its mean accuracy."""
        return float(np.mean(self.means(model)))

    def means(self, model: Any) -> Accuracy:
        """Evaluates a model on the search items and returns its accuracy per task."""
        self.left -= 1
        digest = f"{self.label}-{self.left}"
        found = self.world.score(model, "search", digest)
        self.tried.append(Tried(float(np.mean(found)), digest, model))
        self.tried = sorted(self.tried, key=lambda tried: -tried.mean)[:CHOICES]  # stable: of equals the first
        return found

    def rows(self) -> dict[str, Accuracy]:
        """Returns the test accuracy of the best on search, and of the best on select."""
        chosen = max(self.tried, key=lambda t: np.mean(self.world.score(t.model, "select", t.digest)))
        best = {self.label: self.tried[0], f"{self.label}, on select": chosen}
        return {name: self.world.score(tried.model, "test", tried.digest) for name, tried in best.items()}


def random_search(search: Search, make: Callable, shape: tuple[int, ...], generator: np.random.Generator) -> None:
    """Draws coefficients from U[0, 1.2) until the evaluations are spent."""
    while search.left:
        search(make(generator.uniform(0, 1.2, shape)))


def cma_es(search: Search, make: Callable, shape: tuple[int, ...], start: float, seed: int) -> None:
    """Runs CMA-ES (pycma, its own population size, σ 0.2), restarted where it converged, until nothing is left."""
    run = 0
    while search.left:
        run += 1
        options = {"seed": 1000 * seed + run, "verbose": -9, "maxfevals": search.left}
        es = cma.CMAEvolutionStrategy(np.full(math.prod(shape), start), 0.2, options)
        while not es.stop() and search.left:
            asked = es.ask()[: search.left]
            made = [make(np.reshape(x, shape)) for x in asked]
            search.world.prefetch(made, "search")
            values = [-search(model) for model in made]
            if len(asked) < es.popsize:
                return
            es.tell(asked, values)


def nsga2(search: Search, make: Callable, size: int, generator: np.random.Generator, *, highest: float = 1.2) -> None:
    """Runs NSGA-II (Deb et al. 2002) over coefficients in [0, highest], one objective per task, population 20.

    Simulated binary crossover with η = 15 and polynomial mutation with η = 20, one value of a child on average: the
    settings of the paper's authors for real values. Of the children beyond the budget none is evaluated.
    """
    population = generator.uniform(0, highest, (min(20, search.left), size))
    scores = _evaluated(search, make, population)
    while search.left:
        parents = _tournament(scores, 2 * len(population), generator)
        children = _bred(population[parents], highest, generator)[: search.left]
        found = _evaluated(search, make, children)
        population, scores = np.concatenate([population, children]), np.concatenate([scores, found])
        kept = np.lexsort(_standing(scores))[: min(20, len(scores))]
        population, scores = population[kept], scores[kept]


def _evaluated(search: Search, make: Callable, rows: np.ndarray) -> np.ndarray:
    made = [make(row) for row in rows]
    search.world.prefetch(made, "search")
    return np.array([search.means(model) for model in made])


def _standing(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns keys for `lexsort`: minus the crowding distance, after the front that each row belongs to."""
    better = (scores[:, None] >= scores[None]).all(-1) & (scores[:, None] > scores[None]).any(-1)  # (i, j): i beats j
    front, left, number = np.zeros(len(scores)), np.ones(len(scores), bool), 0
    while left.any():
        first = left & ~(better & left[:, None]).any(0)
        front[first], left, number = number, left & ~first, number + 1
    distance = np.zeros(len(scores))
    for number in np.unique(front):
        rows = np.flatnonzero(front == number)
        for task in range(scores.shape[1]):
            order = rows[np.argsort(scores[rows, task], kind="stable")]
            span = np.ptp(scores[rows, task]) or 1.0
            distance[order[[0, -1]]] = np.inf
            distance[order[1:-1]] += (scores[order[2:], task] - scores[order[:-2], task]) / span
    return -distance, front


def _tournament(scores: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draws rows: of two at random the one that stands better."""
    place = np.argsort(np.lexsort(_standing(scores)))
    pairs = generator.integers(0, len(scores), (count, 2))
    return np.where(place[pairs[:, 0]] <= place[pairs[:, 1]], pairs[:, 0], pairs[:, 1])


def _bred(parents: np.ndarray, highest: float, generator: np.random.Generator) -> np.ndarray:
    """Returns one child of every two parents."""
    first, second = parents[::2], parents[1::2]
    u = generator.uniform(size=first.shape)
    spread = np.where(u <= 0.5, 2 * u, 1 / (2 - 2 * u)) ** (1 / 16)
    children = 0.5 * ((1 + spread) * first + (1 - spread) * second)
    u = generator.uniform(size=first.shape)
    step = np.where(u < 0.5, (2 * u) ** (1 / 21) - 1, 1 - (2 - 2 * u) ** (1 / 21))
    mutates = generator.uniform(size=first.shape) < 1 / first.shape[1]
    return np.clip(children + mutates * step * highest, 0, highest)


def positive(make: Callable) -> Callable:
    """Lets a search over all numbers yield positive weights: w = exp(x)."""
    return lambda x: make(np.exp(np.clip(x, -8, 8)))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the half-width of its 95 % interval, by Student's t over the seeds."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    quantile = scipy.stats.t.ppf(0.975, n - 1)
    return float(np.mean(values)), float(quantile * np.std(values, ddof=1) / math.sqrt(n))


def table(seeds: Sequence[Mapping[str, Accuracy]], *, ours: str) -> list[dict[str, object]]:
    """Returns one row per method: accuracy per task and on average, and how far ours is ahead, in points."""
    best = np.array([np.mean(rows[ours]) for rows in seeds])
    result = []
    for name in seeds[0]:
        accuracy = 100 * np.array([rows[name] for rows in seeds])  # (seeds, tasks)
        mean, half = interval(accuracy.mean(axis=1))
        lead, lead_half = interval(100 * best - accuracy.mean(axis=1))
        result.append(
            {
                "row": name,
                "tasks": [interval(column) for column in accuracy.T],
                "mean": mean,
                "±": half,
                "lead": lead,
                "lead ±": lead_half,
            }
        )
    return sorted(result, key=lambda row: -float(row["mean"]))  # type: ignore[arg-type]


def text(rows: Sequence[Mapping[str, object]], tasks: Sequence[str], *, ours: str) -> str:
    """Returns the table as Markdown."""
    lines = [f"| model | {' | '.join(tasks)} | mean | `minerua` ahead by |", "|---|" + "---|" * (len(tasks) + 2)]
    for row in rows:
        scores = " | ".join(f"{value:.1f} ± {half:.1f}" for value, half in row["tasks"])  # type: ignore[attr-defined]
        lead = "" if row["row"] == ours else f"{row['lead']:+.2f} ± {row['lead ±']:.2f}"
        lines.append(f"| {row['row']} | {scores} | {row['mean']:.2f} ± {row['±']:.2f} | {lead} |")
    return "\n".join(lines)
