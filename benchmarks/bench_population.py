"""What does a population of Llama-3-8B cost: bytes and seconds per child, memory for a hundred?

Three LoRA experts of rank 64 on all seven matrices of the 32 layers, so 224 cores of 192 × 192 per child. Bounds: a
child is 224 · 192² · 4 = 33.0 million bytes, and decomposing its cores costs some 14 · 192³ floating-point operations
each, 22 · 10⁹ in all. Expected: under 40 MB and under 0.25 s per child (crossover and mutation, two cores); a hundred
children bred, stored and reopened within 4 GB of memory, all open at once and file maps included; memory and time in
proportion to the children and to the matrices.

Beside it what a system with a checkpoint per child needs: two bytes per parameter, and for the crossover alone three
streams of them through memory (two parents, one child). Its seconds are computed, from the bandwidth of a plain copy
that is measured in the same run; its mutation, by SVDs of whole matrices, is not counted (`bench_svd_mutation.py`
times one).

    pytest benchmarks/bench_population.py            # some 10 minutes on two cores, 4 GB of memory, 8 GB of disk
    pytest benchmarks/bench_population.py --smoke    # a tiny model: that it runs, and that the answers are right
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minerua import kernels
from minerua.values import Genome
from minerua.weights import Core, Subspace

from . import population_world
from .bench_merge import run_alone
from .population_world import FULL, SMALL, Size, breed, coefficients_of, multipliers_of, parameters_of, write_world

CHILD_BYTES, CHILD_SECONDS, MEMORY_BYTES = 40_000_000, 0.25, 4_000_000_000

CHILDREN = 100

GRID = [(children, eighths) for eighths in (1, 2, 4) for children in (25, 50, 100)]
"""Children, and eighths of the model's matrices."""

RESIDUALS = {"processor seconds to breed": 0.15, "most bytes beyond maps": 0.02}
"""How far a point of the grid may be from the straight line through all of them, as a share of it."""

ERROR = 3e-4
"""Largest ‖C' − reference‖₂ / σ₁, divided by the multipliers' width."""


@dataclass
class World:
    """The models on disk, by how many eighths of the matrices their experts change; made when asked for."""

    folder: Path
    size: Size
    subspaces: dict[int, Subspace] = field(default_factory=dict)

    def subspace(self, eighths: int) -> Subspace:
        """Returns one of the subspaces."""
        if eighths not in self.subspaces:
            self.subspaces[eighths] = write_world(self.path(eighths), self.size, eighths=eighths)
        return self.subspaces[eighths]

    def path(self, eighths: int) -> Path:
        """Returns where a subspace lies."""
        return self.folder / f"{eighths}-of-8"

    def run(self, eighths: int, way: str, children: int) -> dict[str, float]:
        """Breeds children in a process of their own; returns what it says, and its peak beyond file maps."""
        self.subspace(eighths)
        command = [sys.executable, population_world.__file__, str(self.path(eighths)), way, str(children)]
        log = self.folder / "log.txt"
        run = run_alone(command, log)
        return {**json.loads(log.read_text()), "most bytes beyond maps": run.peak_bytes}


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Holds what is measured, until the last benchmark is done."""
    folder = tmp_path_factory.mktemp("population")
    yield World(folder, SMALL if request.config.getoption("--smoke") else FULL)
    shutil.rmtree(folder)


# ── one child ────────────────────────────────────────────────────────────────────────────────────────────────────────


def error_of(subspace: Subspace, parents: list[Genome], child: Genome, number: int) -> float:
    """Returns the largest error of three of a child's cores against LAPACK's SVD in float64."""
    row, draw = coefficients_of([number], len(parents))[0], multipliers_of([number])
    cores = [(place, segment) for place, segment in enumerate(subspace.segments) if isinstance(segment, Core)]
    errors = []
    for place, core in (cores[0], cores[len(cores) // 2], cores[-1]):
        crossed = sum(c * p.values[core.part].astype(np.float64) for c, p in zip(row, parents, strict=True))
        numbers = draw(0, place, min(core.shape))
        exact = kernels.svd_mutation(crossed.reshape(1, *core.shape), numbers[None])[0]
        apart = np.linalg.norm(child.values[core.part].reshape(core.shape) - exact, 2)
        errors.append(apart / np.linalg.norm(crossed.reshape(core.shape), 2) / np.ptp(numbers))
    return float(max(errors))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_child_by_crossover_and_mutation(benchmark, smoke, world, precision):
    subspace = world.subspace(8)
    parents = list(subspace.founders.values())[:2]
    (child,) = breed(subspace, parents, [7], precision=precision).genomes()
    benchmark.group = "one child"
    benchmark.extra_info["error"] = error_of(subspace, parents, child, 7)
    benchmark.extra_info["MB per child"] = child.values.nbytes / 1e6
    benchmark.extra_info["cores"] = len(subspace.segments)
    assert benchmark.extra_info["error"] <= ERROR
    assert child.values.nbytes < CHILD_BYTES
    benchmark.pedantic(lambda: breed(subspace, parents, [7], precision=precision), rounds=2 if smoke else 10)
    assert smoke or precision == "float64" or benchmark.stats.stats.min < CHILD_SECONDS


def test_checkpoint_per_child_as_computed_from_a_copy(benchmark, smoke, world):
    source = np.ones(1 << (20 if smoke else 29), np.uint8)
    target = np.zeros_like(source)
    np.copyto(target, source)
    assert np.array_equal(target, source)
    benchmark.group = "one child"
    benchmark.pedantic(lambda: np.copyto(target, source), rounds=2 if smoke else 7)
    bandwidth = 2 * source.nbytes / benchmark.stats.stats.min  # read once and written once
    child_bytes = 2 * parameters_of(world.size)
    benchmark.extra_info["GB/s of the copy"] = bandwidth / 1e9
    benchmark.extra_info["MB per child"] = child_bytes / 1e6
    benchmark.extra_info["seconds per crossover (computed)"] = 3 * child_bytes / bandwidth
    benchmark.extra_info[f"GB for {CHILDREN} children (computed)"] = CHILDREN * child_bytes / 1e9


# ── many children ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hundred_children_bred_stored_and_reopened(benchmark, smoke, world):
    children, found = 6 if smoke else CHILDREN, {}
    world.subspace(8)
    benchmark.group = f"{children} children"
    benchmark.pedantic(lambda: found.update(world.run(8, "stored", children)), rounds=1)
    note(benchmark, found)
    genome_bytes = 4 * world.subspace(8).size
    assert children * genome_bytes < found["bytes on disk"] < children * (genome_bytes + 4096)
    assert found["most bytes beyond maps"] <= MEMORY_BYTES
    assert found["most resident bytes, one open"] <= MEMORY_BYTES
    assert found["most resident bytes, all open"] <= MEMORY_BYTES
    shutil.rmtree(world.path(8) / "genomes")


def note(benchmark: Any, found: dict[str, float]) -> None:
    """Notes what a process said, bytes as MB."""
    for name, value in found.items():
        benchmark.extra_info[name.replace("bytes", "MB")] = value / 1e6 if "bytes" in name else value


POINTS: dict[tuple[int, int], dict[str, float]] = {}
"""What was found so far, by children and eighths."""


@pytest.mark.parametrize(("children", "eighths"), GRID)
def test_growth(benchmark, smoke, world, children, eighths):
    """All children held in memory, in a process of their own, the best of three; the last point fits the line."""
    if smoke and children != 25 * eighths:
        pytest.skip("three points show that it runs")
    world.subspace(eighths)
    runs: list[dict[str, float]] = []
    benchmark.group = "growth"
    made = children // 25 if smoke else children
    benchmark.pedantic(lambda: runs.append(world.run(eighths, "held", made)), rounds=1 if smoke else 3)
    point = POINTS[children, eighths] = {name: min(run[name] for run in runs) for name in runs[0]}
    note(benchmark, point)
    assert point["bytes of the population"] == made * 4 * world.subspace(eighths).size
    if (children, eighths) == GRID[-1] and len(POINTS) == (3 if smoke else len(GRID)):
        residuals = {name: residual_of(name) for name in RESIDUALS}
        benchmark.extra_info.update({f"residual of {name}": value for name, value in residuals.items()})
        assert smoke or all(residuals[name] <= limit for name, limit in RESIDUALS.items())


def residual_of(name: str) -> float:
    """Returns how far the points are from a + b · children · eighths at most, as a share of the fitted value.

    Fitted by least squares of these shares: a line through 16-fold different values, each as precise as the other.
    """
    sizes = np.array([children * eighths for children, eighths in POINTS], float)
    values = np.array([point[name] for point in POINTS.values()])
    design = np.column_stack([np.ones_like(sizes), sizes])
    line = design @ np.linalg.lstsq(design / values[:, None], np.ones_like(values), rcond=None)[0]
    return float(np.abs(values / line - 1.0).max())
