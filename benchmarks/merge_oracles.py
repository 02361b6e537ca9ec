"""What merges should give, in float64, written from the formulas: plain, slow, sharing nothing with what is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

Parameters = Mapping[str, Any]
Oracle = Callable[[Sequence[np.ndarray], np.ndarray, Parameters], np.ndarray]
"""(K experts, base, parameters), arrays of one shape, float64 → the merged tensor."""


def linear(experts: Sequence[np.ndarray], base: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Returns the weighted mean."""
    return np.average(experts, axis=0, weights=parameters["weight"])


def task_arithmetic(experts: Sequence[np.ndarray], base: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Source: Ilharco 2023, arXiv 2212.04089."""
    return base + sum(w * (x - base) for w, x in zip(parameters["weight"], experts, strict=True))


def ties(experts: Sequence[np.ndarray], base: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Trims per tensor, elects by weighted sum, divides by the weights that agree: mergekit's reading of 2306.01708."""
    size = base.size
    kept = [_between(x - base, 0, int(d * size)) for x, d in zip(experts, parameters["density"], strict=True)]
    return base + _elected(kept, parameters["weight"], divide=True)


def breadcrumbs(experts: Sequence[np.ndarray], base: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Source: Davari 2023, arXiv 2312.06795."""
    total = np.zeros_like(base)
    for x, weight, density in zip(experts, parameters["weight"], parameters["density"], strict=True):
        first = int(parameters["gamma"] * base.size)
        total += weight * _between(x - base, first, first + int(density * base.size))
    return base + total


def slerp(experts: Sequence[np.ndarray], base: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Turns from the base to the one other model along the great circle between their directions."""
    (other,), t = experts, parameters["t"]
    angle = np.arccos(_cosine(base, other))
    return (np.sin((1 - t) * angle) * base + np.sin(t * angle) * other) / np.sin(angle)


def model_stock(experts: Sequence[np.ndarray], base: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Source: Jang 2024, arXiv 2403.19522, equation 3, with the mean cosine of all pairs."""
    deltas, count = [x - base for x in experts], len(experts)
    cosine = np.mean([_cosine(deltas[i], deltas[j]) for j in range(count) for i in range(j)])
    t = count * cosine / (1 + (count - 1) * cosine)
    return base + t * np.mean(deltas, axis=0)


def karcher(experts: Sequence[np.ndarray], base: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Returns the Riemannian mean of the directions, as long as the mean of the lengths; iterated until it rests."""
    lengths = [float(np.linalg.norm(x)) for x in experts]
    units = [x / length for x, length in zip(experts, lengths, strict=True)]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(20):
        angles = [np.arccos(_cosine(mean, unit)) for unit in units]
        tangents = [a / np.sin(a) * (u - np.cos(a) * mean) for a, u in zip(angles, units, strict=True)]
        step = np.mean(tangents, axis=0)
        size = np.linalg.norm(step)
        if size < 1e-12:
            break
        mean = np.cos(size) * mean + np.sin(size) * step / size
    return np.mean(lengths) * mean


def share_explained(
    merged: np.ndarray, experts: Sequence[np.ndarray], base: np.ndarray, parameters: Parameters
) -> float:
    """Returns which share of a random merge's elements some choice of kept experts explains, with an elected sign.

    An expert's task vector is made longer by Σ|δ| ÷ Σ|kept δ|, here by its expectation, from which it is some 1.25 ÷ √n
    away in a tensor of n elements; four times that is the tolerance, beside one rounding to bfloat16.
    """
    tolerance = 5 / base.size**0.5
    possible = choices(experts, base, parameters, elect=True)
    near = np.abs(possible - merged) <= 2**-8 * np.abs(possible) + tolerance * np.abs(possible - base)
    return float(np.mean(near.any(axis=0)))


def choices(experts: Sequence[np.ndarray], base: np.ndarray, parameters: Parameters, *, elect: bool) -> np.ndarray:
    """Returns what a merge at random can give: shape (2^K, …), one row for each choice of experts that are kept."""
    deltas = [(x - base) / _kept_share(x - base, parameters, k) for k, x in enumerate(experts)]
    rows, weights = [], parameters["weight"]
    for choice in product((0.0, 1.0), repeat=len(experts)):
        parts = [keep * delta for keep, delta in zip(choice, deltas, strict=True)]
        sum_of = sum(w * part for w, part in zip(weights, parts, strict=True))
        rows.append(base + (_elected(parts, weights, divide=parameters["normalize"]) if elect else sum_of))
    return np.stack(rows)


ORACLES: Mapping[str, Oracle] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "breadcrumbs": breadcrumbs,
    "slerp": slerp,
    "model_stock": model_stock,
    "karcher": karcher,
}


def _between(delta: np.ndarray, first: int, end: int) -> np.ndarray:
    """Keeps the `first`-th to the `end`-th largest, equal ones in their order; magnitudes in float32, as documented."""
    flat = delta.reshape(-1)
    kept = np.argsort(-np.abs(flat.astype(np.float32)), kind="stable")[first:end]
    result = np.zeros_like(flat)
    result[kept] = flat[kept]
    return result.reshape(delta.shape)


def _elected(parts: Sequence[np.ndarray], weights: Sequence[float], *, divide: bool) -> np.ndarray:
    weighted = [w * part for w, part in zip(weights, parts, strict=True)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    agree = [np.sign(part) == sign for part in weighted]
    total = sum(part * a for part, a in zip(weighted, agree, strict=True))
    divisor = sum(w * a for w, a in zip(weights, agree, strict=True))
    return total / np.where(divisor == 0, 1.0, divisor) if divide else total


def _kept_share(delta: np.ndarray, parameters: Parameters, k: int) -> float:
    """Returns the expected Σ|kept δ| ÷ Σ|δ|: with `epsilon` the probability runs with the rank in the row."""
    sizes, density, epsilon = np.abs(np.atleast_2d(delta)), parameters["density"][k], parameters.get("epsilon", 0.0)
    ranks = np.argsort(np.argsort(sizes, axis=1), axis=1) / (sizes.shape[1] - 1)
    return float((sizes * (density - epsilon + 2 * epsilon * ranks)).sum() / sizes.sum())


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
