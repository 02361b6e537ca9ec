"""How fast are merging and SVD mutation on the CPU, beside the leanest torch code for the same result?

Bounds. Merging moves K + 1 + P streams (experts, base, children) through memory: B bytes in all, so it cannot be
faster than a copy that moves B bytes, which is a copy of B / 2 bytes, read once and written once; `copy` is that row.
It copies into memory that is already there, while a merge also has to get fresh memory for its children from the
system. An SVD mutation of n × n costs about 14 n³ floating-point operations in double precision, in cache: it has no
bound in bytes; `reference` is LAPACK's SVD by numpy, `torch` the batched `torch.linalg.svd`. Every answer is checked
before it is timed; that call is the warm-up.

Remarks of the rows: `GB/s` by the bytes above, `x copy` and `x minerua` the median as a multiple of that row's median.
"""

import functools

import numpy as np
import pytest
import torch

from minerua import kernels

EXPERTS = 4
SHAPES = [(128, 64), (128, 128), (10, 128)]
THREADS = sorted({1, kernels.num_threads()})


@pytest.fixture(params=THREADS, ids=lambda count: f"threads={count}")
def threads(request):
    """One number of threads for minerua and for torch."""
    before = kernels.num_threads(), torch.get_num_threads()
    kernels.set_num_threads(request.param)
    torch.set_num_threads(request.param)
    yield request.param
    kernels.set_num_threads(before[0])
    torch.set_num_threads(before[1])


MEDIANS: dict[tuple[str, str], float] = {}  # by group and peer, in the order in which the rows were timed


def timed(benchmark, smoke, group, peer, function):
    """Times one row and notes its ratios to the rows of its group that came before it."""
    benchmark.group = group
    benchmark.pedantic(function, rounds=2 if smoke else 7)
    if benchmark.stats is None:  # --benchmark-disable
        return None
    median = MEDIANS[group, peer] = benchmark.stats.stats.median
    for other in ("copy", "minerua"):
        if other != peer and (group, other) in MEDIANS:
            benchmark.extra_info[f"x {other}"] = median / MEDIANS[group, other]
    return median


# ── merging ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def merge_with_minerua(experts, coefficients, base):
    return kernels.merge(experts, coefficients, base=base)


def merge_with_torch(experts, coefficients, base):
    """Lean torch, accumulating in float32: one accumulator per child, one in-place addition per expert."""
    children = []
    for row in coefficients.tolist():
        total = base.float().mul_(1.0 - sum(row))
        for c, expert in zip(row, experts, strict=True):
            total.add_(expert, alpha=c)
        children.append(total.to(base.dtype))
    return torch.stack(children)


MERGES = {"minerua": merge_with_minerua, "torch": merge_with_torch}


@functools.lru_cache(maxsize=1)
def tensors_of(size):
    """A base and its experts; drawing them takes longer than merging them."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(size, generator=generator)
    changed = [base + 0.01 * torch.randn(size, generator=generator) for _ in range(EXPERTS)]
    return base.bfloat16(), [expert.bfloat16() for expert in changed]


def merge_inputs(size, children):
    base, experts = tensors_of(size)
    generator = torch.Generator().manual_seed(2)
    return experts, torch.rand(children, EXPERTS, generator=generator) / 2, base


def copies_of(moved):
    """A function that moves `moved` bytes with a plain copy, checked."""
    source, target = torch.ones(moved // 2, dtype=torch.uint8), torch.zeros(moved // 2, dtype=torch.uint8)
    target.copy_(source)
    assert target.equal(source)
    return functools.partial(target.copy_, source)


def merge_of(peer, experts, coefficients, base):
    """A function that merges, checked on every 16th element: the reference takes its time."""
    got = MERGES[peer](experts, coefficients, base)[:, ::16].float()
    sampled = [expert[::16] for expert in experts]
    expected = kernels.merge(sampled, coefficients, base=base[::16], backend="reference").float()
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=1e-3)
    return functools.partial(MERGES[peer], experts, coefficients, base)


@pytest.mark.parametrize("peer", ["copy", *MERGES])
@pytest.mark.parametrize("children", [1, 8])
def test_merge(benchmark, smoke, threads, children, peer):
    size = 1 << (12 if smoke else 23)
    moved = 2 * size * (EXPERTS + 1 + children)
    function = copies_of(moved) if peer == "copy" else merge_of(peer, *merge_inputs(size, children))
    group = f"merge of {EXPERTS} experts, {children} children, bfloat16, {size} elements, {threads} threads"
    median = timed(benchmark, smoke, group, peer, function)
    if median is not None:
        benchmark.extra_info["GB/s"] = moved / median / 1e9


# ── SVD mutation ──────────────────────────────────────────────────────────────────────────────────────────────────────


def svd_with_minerua(matrices, multipliers):
    return kernels.svd_mutation(matrices, multipliers)


def svd_with_reference(matrices, multipliers):
    return kernels.svd_mutation(matrices, multipliers, backend="reference")


def svd_with_torch(matrices, multipliers):
    u, sigma, vt = torch.linalg.svd(torch.from_numpy(matrices), full_matrices=False)
    return ((u * (sigma * torch.from_numpy(multipliers))[:, None, :]) @ vt).numpy()


MUTATIONS = {"minerua": svd_with_minerua, "reference": svd_with_reference, "torch": svd_with_torch}


def matrices_with_gaps(batch, m, n):
    """Singular values 1 … 0.1, evenly spaced, so that every correct implementation gives the same result."""
    rng, r = np.random.default_rng(2), min(m, n)
    u, _ = np.linalg.qr(rng.standard_normal((batch, m, r)))
    v, _ = np.linalg.qr(rng.standard_normal((batch, n, r)))
    return ((u * np.linspace(1.0, 0.1, r)) @ v.transpose(0, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("peer", MUTATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_svd_mutation(benchmark, smoke, threads, shape, peer):
    batch = 2 if smoke else 64
    matrices = matrices_with_gaps(batch, *shape)
    multipliers = np.random.default_rng(3).uniform(0.7, 1.3, (batch, min(shape))).astype(np.float32)
    got = MUTATIONS[peer](matrices, multipliers)
    np.testing.assert_allclose(got, svd_with_reference(matrices, multipliers), atol=1e-5)
    group = f"SVD mutation of {batch} matrices of {shape[0]} × {shape[1]}, {threads} threads"
    median = timed(benchmark, smoke, group, peer, functools.partial(MUTATIONS[peer], matrices, multipliers))
    if median is not None:
        benchmark.extra_info["µs per matrix"] = median / batch * 1e6
