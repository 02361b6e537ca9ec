"""Every fact about CycleQD's crossover, mutation and aggregation, at the level of weights; arXiv 2410.14735."""

import dataclasses

import numpy as np
import pytest

from minerua.errors import KernelError
from minerua.evolution import aggregation_weights, crossover_coefficients
from minerua.evolution.variants import VARIANTS
from minerua.run.variation import crossover_of, mutation_of
from minerua.values import Genome
from minerua.weights import Core, Mix, Population, Subspace

from ..worlds import MATRICES, SHAPES, assert_close, dense_of
from .conftest import KINDS

PAPER = VARIANTS["paper"]


def _moved(subspace, genomes, weights):
    """The same affine mix of whole models, on weights instead of genomes, around another base."""
    shifts = {name: np.random.default_rng(7).normal(size=shape) for name, shape in SHAPES.items()}
    members = [dense_of(subspace.task_vector(genome)) for genome in genomes]
    return {
        name: sum(w * (member[name] + shifts[name]) for w, member in zip(weights, members, strict=True)) - shifts[name]
        for name in members[0]
    }


def _mutation(reading, subspace, experts=(), *, strength=0.3):
    return mutation_of(dataclasses.replace(PAPER, mutation=reading, mutation_strength=strength), subspace, experts)


def _mutated_by(subspace, genome, draw):
    """The genome with its spectra multiplied by what `draw` says of each rank."""
    population = Population(subspace, [genome])
    population.mutate(lambda member, number, rank: draw(rank))
    return population.genomes()[0]


def _scaled(subspace, genome, factor):
    return _mutated_by(subspace, genome, lambda count: np.full(count, float(factor)))


def _sum_of_cores(subspace, genome, increment):
    population = Population(subspace, [genome])
    population.add_cores(Population(subspace, [increment]))
    return population.genomes()[0]


# ── crossover, CycleQD section 3.2 ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("per_tensor", [False, True], ids=["model", "tensor"])
@pytest.mark.parametrize("deviation", [0.03, 0.5])
def test_a_child_of_equal_parents_is_that_parent(world, deviation, per_tensor):
    subspace, _ = world
    variant = dataclasses.replace(PAPER, crossover_width=deviation, crossover_per_tensor=per_tensor)
    parent = next(iter(subspace.founders.values()))
    child = crossover_of(variant, subspace)([parent, parent], np.random.default_rng(0))
    np.testing.assert_allclose(child.values, parent.values, rtol=1e-5, atol=1e-6)


def test_crossover_with_normalised_weights_does_not_depend_on_the_base(world):
    subspace, _ = world
    parents = list(subspace.founders.values())[:2]
    weights = crossover_coefficients(np.random.default_rng(3), deviation=0.5)
    child = subspace.combine(parents, weights)
    assert_close(subspace.task_vector(child), _moved(subspace, parents, weights[0]))


def test_unnormalised_weights_would_depend_on_the_base(base, vectors):
    subspace = Subspace(base, vectors("full", 2))
    parents, weights = list(subspace.founders.values()), np.array([[1.0, 1.0]])
    with pytest.raises(AssertionError):
        assert_close(subspace.task_vector(subspace.combine(parents, weights)), _moved(subspace, parents, weights[0]))


def test_with_the_paper_s_deviation_a_child_is_nearly_the_midpoint(world):
    subspace, _ = world
    parents = list(subspace.founders.values())[:2]
    middle = subspace.combine(parents, np.array([[0.5, 0.5]]))
    apart = np.linalg.norm(parents[0].values - parents[1].values)
    for seed in range(20):
        child = crossover_of(PAPER, subspace)(parents, np.random.default_rng(seed))
        assert np.linalg.norm(child.values - middle.values) < 0.05 * apart


def test_crossover_per_tensor_draws_one_row_for_every_tensor(base, vectors):
    subspace = Subspace(base, vectors("full", 2))
    parents = list(subspace.founders.values())
    child = crossover_of(VARIANTS["minerua"], subspace)(parents, np.random.default_rng(5))
    shares = [child.values[s.start] for s in subspace.segments if isinstance(s, Mix)]
    assert len(set(shares)) == len(shares)


# ── mutation, CycleQD section 3.3 ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reading", ["literal", "additive", "two-sided", "expert", "gaussian", "none"])
def test_small_tensors_are_untouched_by_every_mutation(base, vectors, reading):
    subspace = Subspace(base, vectors("mixed", 3))
    experts = list(subspace.founders.values())
    parent = subspace.combine(experts, np.array([[0.2, 0.5, 0.3]]))
    child = _mutation(reading, subspace, experts)(parent, np.random.default_rng(0), 0)
    assert (child.digest == parent.digest) == (reading == "none")
    for segment in subspace.segments:
        kept = np.array_equal(child.values[segment.part], parent.values[segment.part])
        assert kept == (isinstance(segment, Mix) or reading == "none")


@pytest.mark.parametrize("reading", ["additive", "two-sided", "expert", "gaussian"])
def test_a_mutation_of_strength_zero_is_the_identity(world, reading):
    subspace, _ = world
    experts = list(subspace.founders.values())
    child = _mutation(reading, subspace, experts, strength=0.0)(experts[0], np.random.default_rng(0), 1)
    np.testing.assert_allclose(child.values, experts[0].values, rtol=0, atol=2e-6)


def test_reading_a_literal_with_all_ones_is_the_identity_and_with_zeros_the_base(world):
    subspace, _ = world
    genome = next(iter(subspace.founders.values()))
    np.testing.assert_allclose(_scaled(subspace, genome, 1).values, genome.values, rtol=0, atol=2e-6)
    gone = subspace.task_vector(_scaled(subspace, genome, 0))
    assert not any(gone[name].any() for name in MATRICES if name in gone)


def test_reading_b_additive_with_w_zero_is_the_identity(world):
    subspace, _ = world
    genome = next(iter(subspace.founders.values()))
    child = _mutated_by(subspace, genome, lambda count: 1.0 + np.zeros(count))
    np.testing.assert_allclose(child.values, genome.values, rtol=0, atol=2e-6)


def test_reading_c_with_w_one_on_the_base_gives_the_expert_s_matrices(world):
    subspace, founders = world
    for name, expert in subspace.founders.items():
        child = subspace.task_vector(_sum_of_cores(subspace, subspace.zero(), _scaled(subspace, expert, 1)))
        assert_close({n: change for n, change in child.items() if n in MATRICES}, _matrices(founders[name]))


def _matrices(vector):
    return {name: change for name, change in dense_of(vector).items() if name in MATRICES}


def test_the_expert_mutation_uses_the_active_task_s_expert(base, vectors):
    subspace = Subspace(base, vectors("full", 3))
    experts = list(subspace.founders.values())
    child = _mutation("expert", subspace, experts, strength=0.1)(subspace.zero(), np.random.default_rng(0), 2)
    core = next(s for s in subspace.segments if isinstance(s, Core))
    change, expert = child.values[core.part].reshape(core.shape), experts[2].values[core.part].reshape(core.shape)
    U, sigma, V = np.linalg.svd(expert.astype(np.float64), full_matrices=False)
    seen = U.T @ change @ V.T
    assert np.abs(seen - np.diag(np.diag(seen))).max() < 1e-6
    assert ((np.diag(seen) / sigma > 0) & (np.diag(seen) / sigma < 0.1)).all()


def test_a_mutation_scales_the_singular_values_of_the_child_s_own_task_vector(world):
    subspace, _ = world
    genome = next(iter(subspace.founders.values()))
    factors = {}

    def draw(count):
        factors[len(factors)] = 1 + np.linspace(0, 0.3, count)
        return factors[len(factors) - 1]

    child = subspace.task_vector(_mutated_by(subspace, genome, draw))
    cores = [segment for segment in subspace.segments if isinstance(segment, Core)]
    assert [len(factors[i]) for i in range(len(cores))] == [min(core.shape) for core in cores]
    for i, core in enumerate(cores):
        before = subspace.task_vector(genome)[core.name].reshape(SHAPES[core.name][0], -1).astype(np.float64)
        U, sigma, V = np.linalg.svd(before, full_matrices=False)
        rank = len(factors[i])
        expected = (U[:, :rank] * (factors[i] * sigma[:rank])) @ V[:rank]
        np.testing.assert_allclose(child[core.name].reshape(expected.shape), expected, rtol=0, atol=3e-6)


def test_the_norm_of_the_change_is_that_of_w_times_the_spectrum(world):
    subspace, _ = world
    genome = next(iter(subspace.founders.values()))
    predicted, w = 0.0, 0.3
    for core in (s for s in subspace.segments if isinstance(s, Core)):
        sigma = np.linalg.svd(genome.values[core.part].reshape(core.shape).astype(np.float64), compute_uv=False)
        predicted += ((w * sigma) ** 2).sum()
    before, after = subspace.task_vector(genome), subspace.task_vector(_scaled(subspace, genome, 1 + w))
    change = sum(((after[name] - before[name]).astype(np.float64) ** 2).sum() for name in before)
    assert change == pytest.approx(predicted, rel=1e-4)


@pytest.mark.parametrize(("reading", "mean", "square"), [("literal", 0.15, 0.03), ("additive", 0.15, 0.03)])
def test_on_average_literal_shrinks_to_15_percent_and_additive_grows_by_15(base, vectors, reading, mean, square):
    subspace = Subspace(base, vectors("full", 2))
    genome = subspace.founders["expert-0"]
    mutate, generator = _mutation(reading, subspace, strength=0.3), np.random.default_rng(0)
    part = np.concatenate([np.arange(subspace.size)[s.part] for s in subspace.segments if isinstance(s, Core)])
    own = genome.values[part].astype(np.float64)
    children = np.stack([mutate(genome, generator, 0).values[part] for _ in range(150)]).astype(np.float64)
    added = children if reading == "literal" else children - own
    assert (added @ own / (own @ own)).mean() == pytest.approx(mean, abs=0.01)
    assert (added**2).sum(axis=1).mean() / (own @ own) == pytest.approx(square, rel=0.1)  # E[w²] = 0.3² ÷ 3


@pytest.mark.parametrize("kind", KINDS)
def test_noise_on_the_cores_has_the_predicted_norm_in_the_weights(base, vectors, kind):
    subspace = Subspace(base, vectors(kind, 2))
    size = sum(s.shape[0] * s.shape[1] for s in subspace.segments if isinstance(s, Core))
    mutate, generator = _mutation("gaussian", subspace, strength=0.5), np.random.default_rng(0)
    squares = []
    for _ in range(100):
        child = subspace.task_vector(mutate(subspace.zero(), generator, 0))
        squares.append(sum((change**2).sum() for change in child.values()))
    assert np.mean(squares) == pytest.approx(size * 0.25, rel=0.1)


@pytest.mark.parametrize("reading", ["literal", "additive", "two-sided", "expert", "gaussian"])
def test_a_mutation_depends_on_nothing_but_genome_task_and_generator(base, vectors, reading):
    subspace = Subspace(base, vectors("lora", 3))
    experts = list(subspace.founders.values())
    mutate = _mutation(reading, subspace, experts)
    one, two = (mutate(experts[0], np.random.default_rng(9), 1).digest for _ in range(2))
    assert one == two != mutate(experts[0], np.random.default_rng(10), 1).digest


def test_a_genome_with_nan_has_no_spectrum_to_scale(base, vectors):
    subspace = Subspace(base, vectors("full", 2))
    broken = Genome(subspace.digest, np.full(subspace.size, np.nan, np.float32))
    with pytest.raises(KernelError, match="NaN"):
        _scaled(subspace, broken, 1)
    assert _mutation("additive", subspace)(broken, np.random.default_rng(0), 0) is broken


# ── the road through cores equals the road through weights ───────────────────────────────────────────────────────────


def test_generations_on_cores_equal_generations_on_whole_matrices(world):
    """Crossover and SVD mutation, ten generations: the same draws on cores, and on dense task vectors in float64."""
    subspace, founders = world
    generator = np.random.default_rng(11)
    names = [segment.name for segment in subspace.segments]
    dense_vectors = {name: {n: np.zeros(SHAPES[n]) for n in names} | dense_of(v) for name, v in founders.items()}
    population = [(subspace.founders[name], dense_vectors[name]) for name in founders]
    for _ in range(10):
        i, j = generator.choice(len(population), 2, replace=False)
        a, b = (crossover_coefficients(generator, deviation=0.5))[0]
        child = subspace.combine([population[i][0], population[j][0]], np.array([[a, b]]))
        oracle = {n: a * population[i][1][n] + b * population[j][1][n] for n in names}
        draws = {s.name: 1 + generator.uniform(-0.3, 0.3, min(s.shape)) for s in subspace.segments if _is_core(s)}
        queue = iter(draws.values())
        child = _mutated_by(subspace, child, lambda count, queue=queue: next(queue))
        population.append((child, {n: _mutated(oracle[n], draws.get(n)) for n in names}))
        assert_close(subspace.task_vector(child), population[-1][1], tolerance=2e-5)


def _is_core(segment):
    return isinstance(segment, Core)


def _mutated(change, multipliers):
    if multipliers is None:
        return change
    U, sigma, V = np.linalg.svd(change.reshape(len(change), -1), full_matrices=False)
    rank = len(multipliers)
    return ((U[:, :rank] * (multipliers * sigma[:rank])) @ V[:rank]).reshape(change.shape)


# ── aggregation, CycleQD section 3.4 ─────────────────────────────────────────────────────────────────────────────────


def test_the_aggregate_does_not_depend_on_the_base(world):
    subspace, founders = world
    genomes = list(subspace.founders.values())
    weights = aggregation_weights(np.random.default_rng(0).uniform(size=len(founders)))
    assert_close(subspace.task_vector(subspace.combine(genomes, weights[None])), _moved(subspace, genomes, weights))


def test_equal_scores_aggregate_to_the_plain_mean(world):
    subspace, founders = world
    genomes = list(subspace.founders.values())
    child = subspace.combine(genomes, aggregation_weights([0.4] * len(founders))[None])
    np.testing.assert_allclose(child.values, np.mean([g.values for g in genomes], axis=0), rtol=0, atol=1e-6)
