"""How fast is the SVD mutation, beside torch's SVD in its best form, beside a lean Gram route and beside dense LoRA?

All rows of a group mutate the same matrices on two threads: cores as they come from LoRA experts of an 8-billion-
parameter model (224 of 64 × 64 and of 192 × 192), and larger ones, with a power law (σ_k ∝ 1/k) and with a Gaussian
matrix's spectrum. Bound: a mutation of n × n costs some 14 n³ floating-point operations in cache, so no bytes set it;
peers do. `torch svd` and `torch gram` (Gram matrix, `torch.linalg.eigh`, two products) run as one batch, with one
matrix per worker thread, and one by one with all threads; the fastest form counts. Expected of minerua, in float32:
at least CASES' factors ahead of torch's best SVD; a core at least 1000 times ahead of the same mutation done on the
dense task vector. On a GPU, where there is one: 5 times ahead of torch's best driver for sides of 64 to 512, and all
matrices of Llama-3-8B mutated and materialised within 10 ms; without one those rows say that they were not measured.

Beside each time: `error`, ‖τ' − reference‖₂ / σ₁ divided by the multipliers' width, the reference being LAPACK's SVD in
float64 (of the large ones, the singular vectors that they were made from); and `defect`, ‖τ'τ'ᵀ − ττᵀ‖₂ / σ₁² for
multipliers of ±1, which is zero when the vectors used are orthonormal. Norms by power iteration, in float64.

    pytest benchmarks/bench_svd_mutation.py            # some 15 minutes on two cores, 4 GB of memory
    pytest benchmarks/bench_svd_mutation.py --smoke    # tiny matrices: that it runs, and that the answers are right
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from minerua import kernels

THREADS = 2

LOWEST, HIGHEST = 0.7, 1.3
"""Of the multipliers: the two-sided mutation of strength 0.3."""

LARGE = 1024
"""Smaller sides above this are held against the vectors they were made from, as LAPACK's float64 takes minutes; what
the matrix's own rounding to float32 does to those then counts as error."""


@dataclass(frozen=True)
class Case:
    """A stack of matrices, and how far ahead of torch's best SVD minerua has to be with it."""

    count: int
    shape: tuple[int, int]
    ahead: float
    rounds: int


CASES = {
    "224 of 64x64": Case(224, (64, 64), 3.5, 10),
    "224 of 192x192": Case(224, (192, 192), 3.0, 5),
    "16 of 512x512": Case(16, (512, 512), 1.5, 3),
    "1 of 4096x4096": Case(1, (4096, 4096), 1.0, 1),
    "1 of 14336x4096": Case(1, (14336, 4096), 1.0, 1),
}


# ── matrices ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def power_law(shape: tuple[int, int]) -> np.ndarray:
    return 1.0 / np.arange(1, min(shape) + 1)


def gaussian(shape: tuple[int, int]) -> np.ndarray:
    """Returns the singular values of a Gaussian matrix where they are expected, so that no two come close by chance.

    Source: Marchenko & Pastur 1967; the density of σ between |√m − √n| and √m + √n, and its quantiles.
    """
    m, n = shape
    lowest, highest = abs(m**0.5 - n**0.5), m**0.5 + n**0.5
    sigma = np.linspace(lowest, highest, 200_001)[1:]
    density = np.sqrt(np.maximum((highest**2 - sigma**2) * (sigma**2 - lowest**2), 0.0)) / sigma
    share = np.cumsum(density) / density.sum()
    places = (np.arange(min(m, n))[::-1] + 0.5) / min(m, n)  # descending
    return np.interp(places, share, sigma) / highest


SPECTRA = {"power law": power_law, "Gaussian": gaussian}


@dataclass(frozen=True, eq=False)
class Stack:
    """Matrices U diag(σ) Vᵀ, float32, with what they were made from: float64, shapes (B, m, r), (B, r), (B, n, r)."""

    matrices: np.ndarray
    U: np.ndarray
    sigma: np.ndarray
    V: np.ndarray


@functools.lru_cache(maxsize=1)
def vectors(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Draws orthonormal U and V; of the largest matrices they take longer than an SVD of the smaller ones."""
    generator = torch.Generator().manual_seed(1)
    (m, n), r = case.shape, min(case.shape)
    drawn = (torch.randn(case.count, side, r, dtype=torch.float64, generator=generator) for side in (m, n))
    U, V = (torch.linalg.qr(columns).Q.numpy() for columns in drawn)
    return U, V


@functools.lru_cache(maxsize=1)
def stack_of(case: Case, spectrum: str) -> Stack:
    U, V = vectors(case)
    sigma = np.tile(SPECTRA[spectrum](case.shape), (case.count, 1))
    sigma /= sigma[:, :1]
    matrices = (U * sigma[:, None, :]) @ V.transpose(0, 2, 1)
    return Stack(matrices.astype(np.float32), U, sigma, V)


def multipliers_of(stack: Stack) -> np.ndarray:
    return np.random.default_rng(3).uniform(LOWEST, HIGHEST, stack.sigma.shape).astype(np.float32)


def signs_of(stack: Stack) -> np.ndarray:
    return np.random.default_rng(4).choice(np.array([-1, 1], np.float32), stack.sigma.shape)


# ── the ways to mutate ───────────────────────────────────────────────────────────────────────────────────────────────

Method = Callable[[np.ndarray, np.ndarray], Sequence[Any]]
"""Takes matrices (B, m, n) and multipliers (B, r), returns B mutated matrices."""


def by_svd(matrices: torch.Tensor, multipliers: torch.Tensor, driver: str | None = None) -> torch.Tensor:
    U, sigma, Vt = torch.linalg.svd(matrices, full_matrices=False, driver=driver)
    return (U * (sigma * multipliers)[..., None, :]) @ Vt


def by_gram(matrices: torch.Tensor, multipliers: torch.Tensor) -> torch.Tensor:
    V = torch.linalg.eigh(matrices.mT @ matrices).eigenvectors  # ascending
    return ((matrices @ V) * multipliers.flip(-1)[..., None, :]) @ V.mT


def in_one_batch(mutate: Callable[..., torch.Tensor], matrices: np.ndarray, multipliers: np.ndarray) -> Sequence[Any]:
    return mutate(torch.from_numpy(matrices), torch.from_numpy(multipliers)).numpy()


def one_by_one(mutate: Callable[..., torch.Tensor], matrices: np.ndarray, multipliers: np.ndarray) -> Sequence[Any]:
    pairs = zip(torch.from_numpy(matrices), torch.from_numpy(multipliers), strict=True)
    return [mutate(matrix, numbers).numpy() for matrix, numbers in pairs]


WORKERS = ThreadPoolExecutor(THREADS)


def one_per_worker(mutate: Callable[..., torch.Tensor], matrices: np.ndarray, multipliers: np.ndarray) -> Sequence[Any]:
    results: list[Any] = [None] * len(matrices)

    def work(first: int) -> None:
        torch.set_num_threads(1)  # of this worker
        own = slice(first, None, THREADS)
        results[own] = one_by_one(mutate, matrices[own], multipliers[own])

    list(WORKERS.map(work, range(THREADS)))
    return results


FORMS = {"one batch": in_one_batch, "one per worker": one_per_worker, "one by one": one_by_one}

METHODS: dict[str, Method] = {
    **{f"torch svd, {form}": functools.partial(run, by_svd) for form, run in FORMS.items()},
    **{f"torch gram, {form}": functools.partial(run, by_gram) for form, run in FORMS.items()},
    "minerua float64": functools.partial(kernels.svd_mutation, precision="float64"),
    "minerua float32": functools.partial(kernels.svd_mutation, precision="float32"),
}

PROMISED = {True: 3e-4, False: 4.5e-3}
"""The error that minerua's documentation states for a Gram matrix in float32, by whether its own loops decompose it."""

OWN_SIDE = 256
"""Smaller sides above this go to torch.linalg on the CPU too."""

SLACK = 8.0
"""How many units of rounding a decomposition may be away from the exact one of the same matrix."""

FLOOR = 2e-6
"""What the products after it may add, in float32."""

DEFECT = 2e-5
"""Largest defect taken: that of vectors which are orthonormal to float32's rounding, over some steps per vector."""


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

Apply = Callable[[np.ndarray], np.ndarray]


def norm_of(forward: Apply, backward: Apply, start: tuple[int, ...]) -> float:
    """Returns the largest singular value of a stack of operators, by 30 steps of power iteration on 4 columns.

    Args:
        forward: Applies the operators to columns.
        backward: Applies their transposes.
        start: Shape (B, n) of what `forward` takes.
    """
    x = np.random.default_rng(5).standard_normal((*start, 4))
    for _ in range(30):
        lengths = np.linalg.norm(x, axis=-2, keepdims=True)
        y = forward(x / np.where(lengths > 0.0, lengths, 1.0))
        x = backward(y)
    return float(np.linalg.norm(y, axis=-2).max())


def limit_of(name: str, sigma: np.ndarray) -> float:
    """Returns the largest error to be taken, from how far rounding turns neighbouring singular vectors.

    Source: Davis & Kahan 1970: by some ε · σ₁ ÷ (σᵢ − σᵢ₊₁), of a Gram matrix by ε · σ₁² ÷ (σᵢ² − σᵢ₊₁²), at most by a
    right angle. A Gram matrix in float64 leaves float32's rounding of the products alone.
    """
    if name.endswith("float64"):
        return FLOOR
    power = 1 if "svd" in name else 2
    gaps = sigma[:-1] ** power - sigma[1:] ** power
    return FLOOR + float((sigma[:-1] * np.minimum(1.0, SLACK * 2.0**-24 / gaps)).max())


@functools.lru_cache(maxsize=1)
def reference_of(stack: Stack) -> np.ndarray:
    """Returns the mutated matrices by LAPACK's SVD in float64."""
    return np.asarray(kernels.svd_mutation(stack.matrices.astype(np.float64), multipliers_of(stack)))


def error_of(got: Sequence[Any], stack: Stack) -> float:
    """Returns ‖τ' − reference‖₂ / σ₁, the largest of the stack, divided by the multipliers' width."""
    mutated = np.stack([np.asarray(matrix, np.float64) for matrix in got])
    scaled = stack.sigma * multipliers_of(stack)
    if min(stack.matrices.shape[1:]) <= LARGE:
        mutated -= reference_of(stack)
        scaled = np.zeros_like(scaled)
    start = (len(mutated), mutated.shape[2])
    norm = norm_of(
        lambda x: mutated @ x - stack.U @ (scaled[:, :, None] * (_t(stack.V) @ x)),
        lambda y: _t(mutated) @ y - stack.V @ (scaled[:, :, None] * (_t(stack.U) @ y)),
        start,
    )
    return norm / (HIGHEST - LOWEST)  # σ₁ is 1


def defect_of(got: Sequence[Any], stack: Stack) -> float:
    """Returns ‖τ'τ'ᵀ − ττᵀ‖₂, the largest of the stack, for what multipliers of ±1 made."""
    mutated = np.stack([np.asarray(matrix, np.float64) for matrix in got])
    before = stack.matrices.astype(np.float64)

    def apply(x: np.ndarray) -> np.ndarray:
        return mutated @ (_t(mutated) @ x) - before @ (_t(before) @ x)

    return norm_of(apply, apply, before.shape[:2])


def _t(matrices: np.ndarray) -> np.ndarray:
    return matrices.transpose(0, 2, 1)


def check(name: str, stack: Stack, got: Sequence[Any], signed: Sequence[Any] | None) -> dict[str, float]:
    """Returns the error and, where the call with signs was made, the defect; both have to be within their limits."""
    found = {"error": error_of(got, stack)}
    assert found["error"] <= limit_of(name, stack.sigma[0])
    if signed is not None:
        found["defect"] = defect_of(signed, stack)
        assert found["defect"] <= DEFECT
    return found


# ── on the CPU ───────────────────────────────────────────────────────────────────────────────────────────────────────

SECONDS: dict[tuple[str, str], float] = {}
"""By group and row: the least so far of this run."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = kernels.num_threads(), torch.get_num_threads()
    kernels.set_num_threads(THREADS)
    yield
    kernels.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def timed(benchmark: Any, group: str, name: str, rounds: int, function: Callable[[], Any]) -> Any:
    """Times one row; returns what the function returned last."""
    benchmark.group = group
    # A worker's own number of threads also sets MKL's, which is the same for all threads.
    result = benchmark.pedantic(function, setup=lambda: torch.set_num_threads(THREADS), rounds=rounds)
    if benchmark.stats is not None:  # --benchmark-disable
        SECONDS[group, name] = benchmark.stats.stats.min
    return result


def compare(benchmark: Any, group: str, name: str, peers: str, ahead: float | None) -> None:
    """Notes how far ahead of the fastest of the peers a row is, and holds it to its bound."""
    others = {other: seconds for (g, other), seconds in SECONDS.items() if g == group and other.startswith(peers)}
    if (group, name) not in SECONDS or not others:
        return
    fastest = min(others, key=lambda other: others[other])
    ratio = others[fastest] / SECONDS[group, name]
    benchmark.extra_info[f"ahead of {fastest}"] = ratio
    assert ahead is None or ratio >= ahead, f"{ratio:.2f} times ahead of {fastest}; asked: {ahead}"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("title", CASES)
def test_svd_mutation(benchmark, smoke, title, spectrum, name):
    case = CASES[title]
    if case.count == 1 and name.startswith("torch") and not name.endswith("one by one"):
        pytest.skip("one matrix: the three forms are the same, but that a worker has one thread")
    if smoke:
        case = replace(case, count=min(case.count, 3), shape=tuple(max(8, side // 64) for side in case.shape), rounds=1)
    stack, mutate = stack_of(case, spectrum), METHODS[name]
    multipliers = multipliers_of(stack)
    group = f"{title}, {spectrum}"
    if case.rounds > 1 or smoke:
        benchmark.extra_info.update(
            check(name, stack, mutate(stack.matrices, multipliers), mutate(stack.matrices, signs_of(stack)))
        )
    got = timed(benchmark, group, name, case.rounds, lambda: mutate(stack.matrices, multipliers))
    if case.rounds == 1 and not smoke:  # its one call takes half a minute: that call is the one that is checked
        signed = mutate(stack.matrices, signs_of(stack)) if name == "minerua float32" else None
        benchmark.extra_info.update(check(name, stack, got, signed))
    if name.startswith("minerua") and not smoke:
        compare(benchmark, group, name, "torch gram", None)
        compare(benchmark, group, name, "torch svd", case.ahead if name == "minerua float32" else None)
        assert benchmark.extra_info["error"] <= PROMISED[min(case.shape) <= OWN_SIDE]


# ── a core beside the dense task vector ──────────────────────────────────────────────────────────────────────────────

DENSE_SIDE, DENSE_RANK = 4096, 192


@pytest.mark.parametrize("name", ["dense", "minerua"])
def test_core_against_dense_task_vector(benchmark, smoke, name):
    """A Llama's q_proj with three LoRA experts of rank 64: expand, decompose and scale 4096 × 4096, or 192 × 192."""
    side, rank = (96, 12) if smoke else (DENSE_SIDE, DENSE_RANK)
    core = stack_of(Case(1, (rank, rank), 0, 0), "power law")
    generator = torch.Generator().manual_seed(6)
    left, right = (torch.linalg.qr(torch.randn(side, rank, generator=generator)).Q for _ in range(2))
    multipliers = multipliers_of(core)
    padded = torch.cat([torch.from_numpy(multipliers[0]), torch.ones(side - rank)])

    def dense() -> torch.Tensor:
        return by_svd(left @ torch.from_numpy(core.matrices[0]) @ right.T, padded)

    def small() -> np.ndarray:
        return kernels.svd_mutation(core.matrices, multipliers)

    group = f"a task vector of {side} × {side}, rank {rank}"
    got = timed(benchmark, group, name, 1 if name == "dense" else 50, dense if name == "dense" else small)
    inside = (left.T @ got @ right).numpy()[None] if name == "dense" else got
    benchmark.extra_info.update(check(f"{name} gram", core, inside, None))
    if name == "dense":  # all of it lies in the bases, so the core says all about it
        assert abs(float(got.double().norm()) - float(np.linalg.norm(inside))) < 1e-4
    if name == "minerua" and not smoke:
        compare(benchmark, group, name, "dense", 1000.0)


# ── on a GPU ─────────────────────────────────────────────────────────────────────────────────────────────────────────

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="not measured: no GPU here")

GPU_CASES = {64: 224, 128: 224, 256: 64, 512: 16}
"""Side → how many matrices."""

DRIVERS = ("gesvd", "gesvdj", "gesvda")


def synchronised(function: Callable[..., Any], *arguments: Any) -> Any:
    result = function(*arguments)
    torch.cuda.synchronize()
    return result


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", [*(f"torch svd, {driver}" for driver in DRIVERS), "torch gram", "minerua"])
@pytest.mark.parametrize("side", GPU_CASES)
def test_svd_mutation_on_a_gpu(benchmark, smoke, side, name):
    case = Case(2 if smoke else GPU_CASES[side], (side, side), 5.0, 2 if smoke else 7)
    stack, driver = stack_of(case, "Gaussian"), name.rpartition(", ")[2]
    multipliers = multipliers_of(stack)
    matrices, numbers = torch.from_numpy(stack.matrices).cuda(), torch.from_numpy(multipliers).cuda()
    mutate: dict[str, Callable[..., torch.Tensor]] = {
        "minerua": lambda x, w: kernels.svd_mutation(x, multipliers),
        "torch gram": by_gram,
    }
    chosen = mutate.get(name, functools.partial(by_svd, driver=driver))
    got = synchronised(chosen, matrices, numbers).cpu().numpy()
    benchmark.extra_info.update(check(f"{name} gram", stack, got, None))
    group = f"{case.count} of {side} × {side} on {torch.cuda.get_device_name()}"
    timed(benchmark, group, name, case.rounds, lambda: synchronised(chosen, matrices, numbers))
    if name == "minerua" and not smoke:
        compare(benchmark, group, name, "torch svd", case.ahead)


LLAMA_3_8B = ((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336))
"""The seven matrices of each of the 32 layers."""

WITHIN_SECONDS = 0.010


def mutate_and_materialise(
    bases: Sequence[torch.Tensor],
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]],
    cores: torch.Tensor,
    multipliers: np.ndarray,
    children: Sequence[torch.Tensor],
) -> None:
    """Writes W + Q_B C' Q_Aᵀ into the children, C' being the mutated cores; bfloat16 beside the cores."""
    mutated = kernels.svd_mutation(cores, multipliers).bfloat16()
    for base, (left, right), core, child in zip(bases, factors, mutated, children, strict=True):
        torch.addmm(base, left @ core, right.T, out=child)


@on_a_gpu
@pytest.mark.gpu
def test_whole_llama_mutated_and_materialised_on_a_gpu(benchmark, smoke):
    """With cores of 64 × 64, of four experts of rank 16: 14 GB are read and 14 GB written."""
    layers, rank = (1, 64) if smoke else (32, 64)
    options = {"device": "cuda", "dtype": torch.bfloat16}
    shapes = LLAMA_3_8B * layers
    bases = [torch.randn(shape, **options) * 0.02 for shape in shapes]
    factors = [
        tuple(torch.linalg.qr(torch.randn(s, rank, device="cuda")).Q.bfloat16() for s in shape) for shape in shapes
    ]
    stack = stack_of(Case(len(shapes), (rank, rank), 0, 0), "Gaussian")
    cores, multipliers = torch.from_numpy(stack.matrices).cuda(), multipliers_of(stack)
    children = [torch.empty_like(base) for base in bases]
    arguments = (bases, factors, cores, multipliers, children)
    synchronised(mutate_and_materialise, *arguments)
    left, right = (Q.double().cpu() for Q in factors[0])
    exact = bases[0].double().cpu() + left @ torch.from_numpy(stack_mutated(stack, multipliers)) @ right.T
    torch.testing.assert_close(children[0].double().cpu(), exact, rtol=2**-8, atol=1e-4)
    timed(
        benchmark, "Llama-3-8B", "minerua", 2 if smoke else 10, lambda: synchronised(mutate_and_materialise, *arguments)
    )
    assert smoke or benchmark.stats.stats.min <= WITHIN_SECONDS


def stack_mutated(stack: Stack, multipliers: np.ndarray) -> np.ndarray:
    """Returns the first of the stack, mutated in float64."""
    first = (stack.U[0] * (stack.sigma[0] * multipliers[0])) @ stack.V[0].T
    return np.asarray(first)
