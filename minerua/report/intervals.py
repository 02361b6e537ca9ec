"""How sure a score is: 95 % intervals for one task, for the mean of tasks, and for two models on the same items.

All three are formulas, not resampling, so that the same journal gives the same page. Items that appear in several tasks
under one id are treated as one draw: their outcomes may be correlated, and the interval of the mean says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minerua.errors import JournalError
from minerua.values import Scores

Z_95 = 1.959963984540054
"""The normal distribution's 97.5 % point."""

ItemIds = Mapping[str, Sequence[str]]
"""Task → the ids of its items, in the order of the outcomes."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Args:
        mean: The estimate.
        lower: The interval's lower end, at most `mean`.
        upper: The interval's upper end, at least `mean`.
    """

    mean: float
    lower: float
    upper: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals share a point."""
        return self.lower <= other.upper and other.lower <= self.upper


def task_interval(outcomes: Sequence[float]) -> Interval:
    """Returns the mean outcome with Wilson's score interval.

    It is never empty, also where all outcomes are equal. For outcomes between 0 and 1 it is wider than needed, because
    their variance is at most that of a coin with the same mean.

    Args:
        outcomes: Shape (items,), at least one; numbers in [0, 1].

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> interval = task_interval([1.0, 1.0, 1.0, 0.0])
        >>> round(interval.lower, 3), interval.mean, round(interval.upper, 3)
        (0.301, 0.75, 0.954)
    """
    n, mean = len(outcomes), sum(outcomes) / len(outcomes)
    shrink = 1 + Z_95**2 / n
    centre = (mean + Z_95**2 / (2 * n)) / shrink
    radius = Z_95 * float(np.sqrt(mean * (1 - mean) / n + Z_95**2 / (4 * n**2))) / shrink
    # rounding may leave an end on the wrong side of a mean of exactly 0 or 1
    return Interval(mean, max(0.0, min(mean, centre - radius)), min(1.0, max(mean, centre + radius)))


def mean_interval(scores: Scores, ids: ItemIds) -> Interval:
    """Returns the mean of the tasks' means with its interval.

    The tasks' Wilson intervals are combined by the method of variance estimates recovery; tasks that share items are
    correlated as their outcomes on these items are.

    Args:
        scores: One model's outcomes.
        ids: The items' ids; a task that is missing here shares no items with another.

    Raises:
        JournalError: If a task has another number of ids than of outcomes.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures: a general approach", written
        for a sum of K estimates instead of a difference of two.
    """
    tasks = [task_interval(score.outcomes) for score in scores.tasks.values()]
    covariance = _covariance(scores, ids)
    deviation = np.sqrt(np.diag(covariance))
    scale = np.outer(deviation, deviation)
    correlation = np.divide(covariance, scale, out=np.eye(len(tasks)), where=scale > 0)
    below = _norm([task.mean - task.lower for task in tasks], correlation)
    above = _norm([task.upper - task.mean for task in tasks], correlation)
    return Interval(scores.mean, max(0.0, scores.mean - below), min(1.0, scores.mean + above))


def _norm(distances: Sequence[float], correlation: np.ndarray) -> float:
    """Length of the K distances under their correlation, ÷ K: how far the mean of K estimates may be off."""
    vector = np.asarray(distances)
    return float(np.sqrt(max(vector @ correlation @ vector, 0.0))) / len(vector)


def paired_difference(first: Scores, second: Scores, ids: ItemIds) -> Interval:
    """Returns how far the first model's mean is above the second's, on the same items, with its interval.

    A normal approximation over the items' differences. Half a won and half a lost item are added to each task's
    variance, so that two models which differ nowhere on the items at hand are not declared equal for certain.

    Args:
        first: Outcomes of one model.
        second: Outcomes of the other, on the same tasks and items.
        ids: The items' ids, as for `mean_interval`.

    Raises:
        JournalError: If the two have other tasks or other numbers of items.

    Source: Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions" (the added
        half items; the centre is left where it is).
    """
    if [(t, s.count) for t, s in first.tasks.items()] != [(t, s.count) for t, s in second.tasks.items()]:
        raise JournalError(
            "two models can be compared only on the same items, and the final rows differ in their tasks or numbers of "
            "items; the journal is damaged"
        )
    differences = {
        task: np.subtract(score.outcomes, second.tasks[task].outcomes) for task, score in first.tasks.items()
    }
    counts = np.array([len(d) for d in differences.values()])
    covariance = _influence(differences, ids)
    covariance = covariance.T @ covariance + np.diag(1.0 / counts**2)
    mean = float(np.mean([d.mean() for d in differences.values()]))
    radius = Z_95 * float(np.sqrt(covariance.sum())) / len(counts)
    return Interval(mean, max(-1.0, mean - radius), min(1.0, mean + radius))


def _covariance(scores: Scores, ids: ItemIds) -> np.ndarray:
    """Shape (K, K): the covariance of the tasks' means."""
    influence = _influence({task: np.asarray(score.outcomes) for task, score in scores.tasks.items()}, ids)
    return influence.T @ influence


def _influence(outcomes: Mapping[str, np.ndarray], ids: ItemIds) -> np.ndarray:
    """Shape (distinct items, K): how far each item pulls each task's mean away from its value."""
    keys = [_keys(task, len(values), ids) for task, values in outcomes.items()]
    row = {key: position for position, key in enumerate(dict.fromkeys(key for column in keys for key in column))}
    influence = np.zeros((len(row), len(outcomes)))
    for k, values in enumerate(outcomes.values()):
        influence[[row[key] for key in keys[k]], k] = (values - values.mean()) / len(values)
    return influence


def _keys(task: str, count: int, ids: ItemIds) -> Sequence[object]:
    """The names of a task's items; where the journal names none, each item is its own."""
    names = ids.get(task)
    if names is None:
        return [(task, position) for position in range(count)]
    if len(names) != count:
        raise JournalError(f"task {task!r} has {len(names)} items and {count} outcomes; the journal is damaged")
    return names
