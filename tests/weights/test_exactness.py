"""The road through cores is exact: a hundred generations on cores equal those on whole matrices, in double precision.

Where singular values are equal, SVD mutation is not unique: two correct programs may differ by the difference of the
multipliers times the value. So the seeds here are such that no two values cluster, and the tests make sure of it.
"""

import itertools

import numpy as np
import pytest

from minerua.evolution.operators import READINGS, crossover_coefficients, multipliers
from minerua.weights import Core, Factors, Population, Subspace, TaskVector, open_checkpoint, write_checkpoint

SHAPES = {
    "down.weight": (16, 40),
    "gate.weight": (9, 30),
    "key.weight": (14, 26),
    "query.weight": (24, 18),
    "up.weight": (40, 16),
}
RANKS = (
    {"query.weight": 2, "key.weight": 3, "up.weight": 2},
    {"query.weight": 4, "down.weight": 3, "gate.weight": 4},
    {"query.weight": 1, "key.weight": 2, "up.weight": 4, "down.weight": 2, "gate.weight": 6},
)
"""Three experts of mixed ranks and target modules; the rows of `gate` are filled, so its left basis is the identity."""

GENERATIONS = 100
LEAST_GAP = 1e-3
"""Two neighbouring singular values of a matrix differ by this share of the larger one, or are both nothing."""

NOTHING = 1e-9
"""Singular values below this share of the largest: of a matrix of lower rank."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("exactness") / "base.safetensors"
    write_checkpoint(path, {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    return open_checkpoint(path)


def scaled(subspace, genome, draw, precision="float32"):
    """Mutates one genome; `draw` maps a rank to the multipliers of the next matrix."""
    population = Population(subspace, [genome])
    population.mutate(lambda member, number, rank: draw(rank), precision=precision)
    return population.genome(0)


def added(subspace, genome, increment):
    """Adds another genome's cores."""
    population = Population(subspace, [genome])
    population.add_cores(Population(subspace, [increment]))
    return population.genome(0)


def _experts():
    generator = np.random.default_rng(4)
    experts = {}
    for k, ranks in enumerate(RANKS):
        deltas = {}
        for name, rank in ranks.items():
            rows, columns = SHAPES[name]
            left, right = generator.normal(size=(rows, rank)), generator.normal(size=(rank, columns))
            deltas[name] = Factors(left.astype(np.float32), right.astype(np.float32))
        experts[f"expert-{k}"] = TaskVector(str(k), deltas)
    return experts


def _whole(vector):
    """Returns a task vector as full matrices in double precision."""
    changes = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    return changes | {name: left.astype(np.float64) @ right for name, (left, right) in vector.items()}


def _scaled(matrix, numbers, gaps):
    """Scales the singular values of a full matrix by numpy's own decomposition, and remembers how near two came."""
    U, sigma, V = np.linalg.svd(matrix, full_matrices=False)
    large = sigma[: len(numbers)][sigma[: len(numbers)] > NOTHING * sigma[0]]
    gaps.extend((one - two) / one for one, two in itertools.pairwise(large))
    return (U[:, : len(numbers)] * (numbers * sigma[: len(numbers)])) @ V[: len(numbers)]


def _distance(found, expected):
    return max(np.linalg.norm(found[n] - expected[n]) / max(np.linalg.norm(expected[n]), 1e-300) for n in SHAPES)


def _add(one, two):
    return {name: one[name] + two[name] for name in SHAPES}


@pytest.mark.parametrize("per_tensor", [False, True], ids=["model", "tensor"])
def test_a_hundred_generations_on_cores_equal_those_on_whole_matrices(base, per_tensor):
    founders = _experts()
    subspace = Subspace(base, founders, dtype=np.float64)
    cores = [segment for segment in subspace.segments if isinstance(segment, Core)]
    generator, gaps, worst = np.random.default_rng(8), [], 0.0
    experts = [(subspace.founders[name], _whole(vector)) for name, vector in founders.items()]
    members = experts * 2
    kinds = list(itertools.product(READINGS, (None, 3)))
    for generation in range(GENERATIONS):
        reading, top = kinds[generation % len(kinds)]
        i, j = generator.choice(len(members), 2, replace=False)
        rows = crossover_coefficients(generator, rows=len(cores) if per_tensor else 1, deviation=0.5)
        child = subspace.combine([members[i][0], members[j][0]], rows)
        shares = {core.name: rows[k if per_tensor else 0] for k, core in enumerate(cores)}
        whole = {n: a * members[i][1][n] + b * members[j][1][n] for n, (a, b) in shares.items()}
        draws = {
            core.name: multipliers(generator.random, min(core.shape), reading=READINGS[reading], strength=0.3, top=top)
            for core in cores
        }
        mutated, oracle = experts[generation % 3] if reading == "expert" else (child, whole)
        queue = iter(draws.values())
        mutated = scaled(subspace, mutated, lambda count, queue=queue: next(queue))
        oracle = {name: _scaled(oracle[name], draws[name], gaps) for name in SHAPES}
        if reading == "expert":
            mutated, oracle = added(subspace, child, mutated), _add(whole, oracle)
        members[generation % len(members)] = (mutated, oracle)
        worst = max(worst, _distance(subspace.task_vector(mutated), oracle))
    assert min(gaps) > LEAST_GAP
    assert worst < 1e-10


def test_a_founder_in_double_precision_is_its_factors_product(base):
    founders = _experts()
    subspace = Subspace(base, founders, dtype=np.float64)
    for name, vector in founders.items():
        assert _distance(subspace.task_vector(subspace.founders[name]), _whole(vector)) < 1e-13


def test_bases_in_double_precision_are_orthonormal_to_it(base):
    for core in Subspace(base, _experts(), dtype=np.float64).segments:
        for basis in (core.left, core.right):
            if basis is not None:
                assert basis.dtype == np.float64
                assert np.abs(basis.T @ basis - np.eye(basis.shape[1])).max() < 1e-14
    assert any(core.left is None for core in Subspace(base, _experts(), dtype=np.float64).segments)


# ── a mutation is well posed, whatever the spectrum ──────────────────────────────────────────────────────────────────

TOLERANCES = {("float32", "float32"): 2e-6, ("float32", "float64"): 1e-6, ("float64", "float64"): 1e-13}
"""(dtype of the cores, precision of the kernel) → error relative to the largest singular value."""


@pytest.fixture(params=TOLERANCES, ids="-".join)
def posed(request, base):
    """A subspace, a genome in it with equal and vanishing singular values, a way to mutate it, and its tolerance."""
    dtype, precision = request.param
    subspace = Subspace(base, _experts(), dtype=dtype)
    values, generator = np.zeros(subspace.size, dtype), np.random.default_rng(1)
    for core in subspace.segments:
        rank = min(core.shape)
        left, right = (np.linalg.qr(generator.normal(size=(side, rank))).Q for side in core.shape)
        sigma = np.array([2.0, 2.0, 1.0, 0.5, 0.5, 0.5, 1e-5, 0.0, 0.0])[:rank]
        sigma = np.pad(sigma, (0, rank - len(sigma)))
        values[core.part] = ((left * sigma) @ right.T).ravel()
    genome = type(subspace.zero())(subspace.digest, values)

    def mutate(draw):
        return scaled(subspace, genome, draw, precision=precision)

    return subspace, genome, mutate, TOLERANCES[request.param]


def _matrices(subspace, genome):
    return [genome.values[core.part].reshape(core.shape).astype(np.float64) for core in subspace.segments]


def test_one_multiplier_for_all_scales_the_task_vector(posed):
    _, genome, mutate, tolerance = posed
    for factor in (0.0, 1.0, -0.7, 1.3):
        found = mutate(lambda count, factor=factor: np.full(count, factor))
        np.testing.assert_allclose(found.values, factor * genome.values, rtol=0, atol=2 * tolerance)


def test_signs_as_multipliers_leave_the_gram_matrices_alone(posed):
    """τ' = τ V W Vᵀ with W² = 1 has τ'ᵀτ' = τᵀτ, if and only if V is orthonormal and diagonalises τᵀτ."""
    subspace, genome, mutate, tolerance = posed
    found = mutate(lambda count: np.where(np.arange(count) % 2, -1.0, 1.0))
    for before, after in zip(_matrices(subspace, genome), _matrices(subspace, found), strict=True):
        np.testing.assert_allclose(after.T @ after, before.T @ before, rtol=0, atol=8 * tolerance)
        np.testing.assert_allclose(after @ after.T, before @ before.T, rtol=0, atol=8 * tolerance)
    assert np.abs(found.values - genome.values).max() > 0.1


def test_the_singular_values_of_a_mutant_are_the_products_as_a_set(posed):
    subspace, genome, mutate, tolerance = posed
    numbers = np.random.default_rng(2).uniform(0.5, 1.5, 40)
    found = mutate(lambda count: numbers[:count])
    for before, after in zip(_matrices(subspace, genome), _matrices(subspace, found), strict=True):
        sigma = np.linalg.svd(before, compute_uv=False)
        expected = np.sort(numbers[: len(sigma)] * sigma)[::-1]
        np.testing.assert_allclose(np.linalg.svd(after, compute_uv=False), expected, rtol=0, atol=4 * tolerance)


def test_a_mutation_and_its_inverse_give_the_genome_back(posed):
    subspace, genome, mutate, tolerance = posed
    numbers = np.array([2.0, 2.0, 1.7, 1.5, 1.5, 1.5, 1.0, 1.0, 1.0])  # equal where the values are, descending
    there = mutate(lambda count: np.pad(numbers[:count], (0, max(0, count - len(numbers))), constant_values=1.0))
    back = scaled(
        subspace,
        there,
        lambda count: 1 / np.pad(numbers[:count], (0, max(0, count - len(numbers))), constant_values=1.0),
    )
    np.testing.assert_allclose(back.values, genome.values, rtol=0, atol=3e-4 if tolerance > 1e-10 else 1e-12)


def test_zero_and_rank_deficient_cores_are_harmless(posed):
    subspace, _, _, _ = posed
    assert not scaled(subspace, subspace.zero(), np.ones).values.any()
    for founder in subspace.founders.values():  # two of three lack a tensor, all lack rank
        found = scaled(subspace, founder, lambda count: np.full(count, 1.5))
        scale = np.abs(founder.values).max()
        np.testing.assert_allclose(found.values, 1.5 * founder.values, rtol=0, atol=3e-6 * scale)
