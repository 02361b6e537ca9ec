"""What the tables of evolved models share: searches over merges with a budget, and rows with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cma
import numpy as np
import scipy.stats

CHOICES = 20
Accuracy = tuple[float, ...]  # one per task


class World(Protocol):
    """One seed's models, and their scores."""

    def score(self, model: Any, split: str, digest: str) -> Accuracy:
        """Returns the accuracy of a model on one split, per task."""

    def prefetch(self, models: Sequence[Any], split: str) -> None:
        """Scores several models at once, where that is faster."""


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
