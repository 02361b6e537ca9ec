"""The subspace, and through it every fact about crossover, mutation and aggregation at the level of weights."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import CheckpointError, KernelError
from minerua.evolution import aggregation_weights, crossover_coefficients
from minerua.evolution.variants import VARIANTS
from minerua.run.variation import crossover_of, mutation_of
from minerua.values import Genome
from minerua.weights import Core, Factors, Mix, Subspace, TaskVector, dense, open_checkpoint, open_expert

from ..worlds import (
    COUNTER,
    LINEAR,
    MATRICES,
    SHAPES,
    SMALL,
    base_tensors,
    low_rank,
    tuned_tensors,
    write_lora,
    write_model,
)

KINDS = ("full", "lora", "mixed")
COUNTS = (2, 3, 4, 5)
PAPER = VARIANTS["paper"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("subspace")


@pytest.fixture(scope="module")
def base(folder):
    return open_checkpoint(write_model(folder / "base", base_tensors()))


@pytest.fixture(scope="module")
def vectors(folder, base):
    """Returns the task vectors of `count` experts of a kind."""

    def open_one(kind, k):
        path = folder / f"{kind}-{k}"
        if not path.exists() and kind == "full":
            write_model(path, tuned_tensors(base_tensors(), seed=k))
        elif not path.exists():
            write_lora(path, {"body.weight": 1, "head.weight": 1 + k % 2}, seed=10 * k)
        return open_expert(f"expert-{k}", path, base).task_vector

    def make(kind, count):
        kinds = [("lora" if k % 2 else "full") if kind == "mixed" else kind for k in range(count)]
        return {f"expert-{k}": open_one(kinds[k], k) for k in range(count)}

    return make


@pytest.fixture(params=[(kind, count) for kind in KINDS for count in COUNTS], ids=lambda p: f"{p[0]}-{p[1]}")
def world(request, base, vectors):
    """A subspace and its founders' task vectors, for every kind and number of experts."""
    founders = vectors(*request.param)
    return Subspace(base, founders), founders


def _dense(vector):
    return {name: dense(change).astype(np.float64) for name, change in vector.items()}


def _assert_close(found, expected, *, tolerance=2e-6):
    """Both are task vectors; a tensor that one of them lacks is unchanged there."""
    for name in {*found, *expected}:
        zero = np.zeros(SHAPES[name])
        np.testing.assert_allclose(found.get(name, zero), expected.get(name, zero), rtol=0, atol=tolerance)


def _moved(subspace, genomes, weights):
    """The same affine mix of whole models, on weights instead of genomes, around another base."""
    shifts = {name: np.random.default_rng(7).normal(size=shape) for name, shape in SHAPES.items()}
    members = [_dense(subspace.task_vector(genome)) for genome in genomes]
    return {
        name: sum(w * (member[name] + shifts[name]) for w, member in zip(weights, members, strict=True)) - shifts[name]
        for name in members[0]
    }


def _mutation(reading, subspace, experts=(), *, strength=0.3):
    return mutation_of(dataclasses.replace(PAPER, mutation=reading, mutation_strength=strength), subspace, experts)


def _scaled(subspace, genome, factor):
    return subspace.scale_spectrum(genome, lambda count: np.full(count, float(factor)))


# ── founders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_founder_lies_in_the_subspace_exactly(world):
    subspace, founders = world
    assert list(subspace.founders) == list(founders)
    for name, vector in founders.items():
        _assert_close(subspace.task_vector(subspace.founders[name]), _dense(vector))


def test_full_fine_tunes_have_identity_bases_and_cores_of_the_matrix_size(base, vectors):
    cores = {s.name: s for s in Subspace(base, vectors("full", 2)).segments if isinstance(s, Core)}
    assert sorted(cores) == sorted(MATRICES)
    assert all(core.left is None and core.right is None for core in cores.values())
    assert {name: core.shape for name, core in cores.items()} == {
        "body.weight": (8, 6),
        "conv.weight": (4, 12),
        "head.weight": (5, 8),
    }


def test_with_full_fine_tunes_a_founder_is_encoded_to_the_bit(base, vectors):
    founders = vectors("full", 3)
    subspace = Subspace(base, founders)
    for name, vector in founders.items():
        for tensor, change in subspace.task_vector(subspace.founders[name]).items():
            np.testing.assert_array_equal(change, dense(vector[tensor]))


@pytest.mark.parametrize("count", COUNTS)
def test_with_adapters_a_core_is_as_large_as_their_ranks_together(base, vectors, count):
    founders = vectors("lora", count)
    subspace = Subspace(base, founders)
    assert [segment.name for segment in subspace.segments] == list(LINEAR)
    for core in subspace.segments:
        ranks = sum(founder[core.name].left.shape[1] for founder in founders.values())
        assert core.shape == tuple(min(ranks, side) for side in SHAPES[core.name])
        for basis in (core.left, core.right):
            if basis is not None:
                np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)


def test_small_tensors_carry_one_coefficient_per_founder(base, vectors):
    subspace = Subspace(base, vectors("full", 3))
    mixes = {s.name: s for s in subspace.segments if isinstance(s, Mix)}
    assert sorted(mixes) == sorted(SMALL)
    for k, genome in enumerate(subspace.founders.values()):
        for mix in mixes.values():
            assert genome.values[mix.part].tolist() == np.eye(3)[k].tolist()


def test_segments_fill_the_genome_without_gaps(world):
    subspace, _ = world
    ends = [0, *(segment.part.stop for segment in subspace.segments)]
    assert [segment.part.start for segment in subspace.segments] == ends[:-1]
    assert subspace.size == ends[-1]
    assert all(genome.values.shape == (subspace.size,) for genome in subspace.founders.values())


def test_tensors_that_no_founder_changes_and_counters_have_no_segment(world):
    names = {segment.name for segment in world[0].segments}
    assert not names & {"untouched.weight", COUNTER}


def test_the_zero_genome_changes_nothing(world):
    subspace, _ = world
    assert not any(change.any() for change in subspace.task_vector(subspace.zero()).values())


def test_a_subspace_needs_a_founder(base):
    with pytest.raises(CheckpointError, match="needs at least one founder"):
        Subspace(base, {})


def test_a_subspace_needs_a_founder_that_differs_from_the_base(base, folder):
    copy = open_expert("copy", write_model(folder / "copy", base_tensors()), base).task_vector
    nothing = TaskVector("0", {"body.weight": Factors(np.zeros((8, 1), np.float32), np.ones((1, 6), np.float32))})
    with pytest.raises(CheckpointError, match="no founder differs from the base at .*: copy, nothing"):
        Subspace(base, {"copy": copy, "nothing": nothing})


def test_a_founder_equal_to_the_base_may_stand_beside_others(base, folder, vectors):
    copy = open_expert("copy", write_model(folder / "copy", base_tensors()), base).task_vector
    subspace = Subspace(base, {**vectors("full", 2), "copy": copy})
    assert not any(change.any() for change in subspace.task_vector(subspace.founders["copy"]).values())


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 10_000), change=st.sampled_from([1e-30, -1.0, 0.5, np.inf]))
def test_a_genome_s_digest_changes_with_any_of_its_values(position, change):
    values = np.arange(10, dtype=np.float32)
    other = values.copy()
    other[position % 10] = change
    assert (Genome("s", values).digest == Genome("s", other).digest) == np.array_equal(values, other)
    assert Genome("s", values).digest != Genome("t", values).digest
    assert len(bytes.fromhex(Genome("s", values).digest)) == 16


def test_genomes_cannot_be_changed(world):
    subspace, _ = world
    first = next(iter(subspace.founders.values()))
    noisy = subspace.add_noise(first, np.random.default_rng(0), 0.1)
    for genome in (first, subspace.zero(), _scaled(subspace, first, 2), subspace.add_cores(first, first), noisy):
        with pytest.raises(ValueError, match="read-only"):
            genome.values[0] = 1


def test_the_same_founders_span_the_same_subspace_and_others_another(base, vectors):
    digests = {kind: Subspace(base, vectors(kind, 3)).digest for kind in KINDS}
    assert Subspace(base, vectors("lora", 3)).digest == digests["lora"]
    assert len(set(digests.values())) == len(KINDS)
    assert Subspace(base, vectors("full", 4)).digest != digests["full"]


def test_genomes_of_another_subspace_are_refused_with_both_names(base, vectors):
    here, there = Subspace(base, vectors("full", 2)), Subspace(base, vectors("full", 3))
    stranger, own = there.founders["expert-0"], here.founders["expert-0"]
    uses = [
        lambda: here.combine([own, stranger], np.array([[0.5, 0.5]])),
        lambda: here.scale_spectrum(stranger, np.ones),
        lambda: here.add_cores(own, stranger),
        lambda: here.add_cores(stranger, own),
        lambda: here.add_noise(stranger, np.random.default_rng(0), 1.0),
        lambda: here.task_vector(stranger),
        lambda: here.task_vector(Genome(here.digest, own.values[:-1])),
    ]
    for use in uses:
        with pytest.raises(CheckpointError, match="genomes of another subspace") as caught:
            use()
        (fault,) = caught.value.faults
        assert fault.endswith(f"here {here.digest} with {here.size}")


# ── combining ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_combining_genomes_combines_the_task_vectors(world):
    subspace, founders = world
    weights = np.random.default_rng(0).normal(size=len(founders))
    child = subspace.combine(list(subspace.founders.values()), weights[None])
    expected = {
        name: sum(w * _dense(v).get(name, 0) for w, v in zip(weights, founders.values(), strict=True))
        for name in (segment.name for segment in subspace.segments)
    }
    _assert_close(subspace.task_vector(child), expected)


def test_every_tensor_may_have_coefficients_of_its_own(world):
    subspace, founders = world
    genomes = list(subspace.founders.values())
    rows = np.random.default_rng(1).normal(size=(len(subspace.segments), len(founders)))
    child = subspace.combine(genomes, rows)
    for segment, row in zip(subspace.segments, rows, strict=True):
        whole = subspace.combine(genomes, row[None])
        np.testing.assert_array_equal(child.values[segment.part], whole.values[segment.part])


def test_equal_rows_for_every_tensor_are_one_row_for_the_model(world):
    subspace, founders = world
    genomes, row = list(subspace.founders.values()), np.random.default_rng(2).normal(size=(1, len(founders)))
    rows = np.repeat(row, len(subspace.segments), axis=0)
    assert subspace.combine(genomes, rows).digest == subspace.combine(genomes, row).digest


@pytest.mark.parametrize("shape", [(2,), (2, 2), (1, 3), (0, 2), (1, 2, 1)])
def test_coefficients_of_another_shape_are_refused(base, vectors, shape):
    subspace = Subspace(base, vectors("full", 2))
    with pytest.raises(CheckpointError, match=r"the shape \(1, 2\) or \(6, 2\), found "):
        subspace.combine(list(subspace.founders.values()), np.ones(shape))


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
    _assert_close(subspace.task_vector(child), _moved(subspace, parents, weights[0]))


def test_unnormalised_weights_would_depend_on_the_base(base, vectors):
    subspace = Subspace(base, vectors("full", 2))
    parents, weights = list(subspace.founders.values()), np.array([[1.0, 1.0]])
    with pytest.raises(AssertionError):
        _assert_close(subspace.task_vector(subspace.combine(parents, weights)), _moved(subspace, parents, weights[0]))


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
    child = subspace.scale_spectrum(genome, lambda count: 1.0 + np.zeros(count))
    np.testing.assert_allclose(child.values, genome.values, rtol=0, atol=2e-6)


def test_reading_c_with_w_one_on_the_base_gives_the_expert_s_matrices(world):
    subspace, founders = world
    for name, expert in subspace.founders.items():
        child = subspace.task_vector(subspace.add_cores(subspace.zero(), _scaled(subspace, expert, 1)))
        _assert_close({n: change for n, change in child.items() if n in MATRICES}, _matrices(founders[name]))


def _matrices(vector):
    return {name: change for name, change in _dense(vector).items() if name in MATRICES}


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

    child = subspace.task_vector(subspace.scale_spectrum(genome, draw))
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
    dense_vectors = {name: {n: np.zeros(SHAPES[n]) for n in names} | _dense(v) for name, v in founders.items()}
    population = [(subspace.founders[name], dense_vectors[name]) for name in founders]
    for _ in range(10):
        i, j = generator.choice(len(population), 2, replace=False)
        a, b = (crossover_coefficients(generator, deviation=0.5))[0]
        child = subspace.combine([population[i][0], population[j][0]], np.array([[a, b]]))
        oracle = {n: a * population[i][1][n] + b * population[j][1][n] for n in names}
        draws = {s.name: 1 + generator.uniform(-0.3, 0.3, min(s.shape)) for s in subspace.segments if _is_core(s)}
        queue = iter(draws.values())
        child = subspace.scale_spectrum(child, lambda count, queue=queue: next(queue))
        population.append((child, {n: _mutated(oracle[n], draws.get(n)) for n in names}))
        _assert_close(subspace.task_vector(child), population[-1][1], tolerance=2e-5)


def _is_core(segment):
    return isinstance(segment, Core)


def _mutated(change, multipliers):
    if multipliers is None:
        return change
    U, sigma, V = np.linalg.svd(change.reshape(len(change), -1), full_matrices=False)
    rank = len(multipliers)
    return ((U[:, :rank] * (multipliers * sigma[:rank])) @ V[:rank]).reshape(change.shape)


def test_a_child_of_adapters_has_at_most_their_rank_together(base, vectors):
    subspace = Subspace(base, vectors("lora", 2))
    parents = list(subspace.founders.values())
    child = subspace.add_noise(subspace.combine(parents, np.array([[0.5, 0.5]])), np.random.default_rng(0), 0.1)
    assert np.linalg.matrix_rank(subspace.task_vector(child)["body.weight"], tol=1e-4) == 2
    assert np.linalg.matrix_rank(subspace.task_vector(child)["head.weight"], tol=1e-4) == 3


def test_a_dense_change_is_projected_to_the_nearest_core(base, vectors):
    subspace = Subspace(base, vectors("lora", 2))
    core = subspace.segments[0]
    change = np.random.default_rng(0).normal(size=SHAPES[core.name]).astype(np.float32)
    nearest = core.expand(core.project(change))
    expected = core.left @ (core.left.T @ change @ core.right) @ core.right.T
    np.testing.assert_allclose(nearest, expected, atol=1e-5)
    np.testing.assert_allclose(core.expand(core.project(nearest)), nearest, atol=1e-5)


def test_factors_and_their_product_have_the_same_core(base, vectors):
    for core in Subspace(base, vectors("lora", 3)).segments:
        factors = low_rank(SHAPES[core.name], 2, seed=5)
        np.testing.assert_allclose(core.project(factors), core.project(dense(factors)), atol=1e-5)


# ── aggregation, CycleQD section 3.4 ─────────────────────────────────────────────────────────────────────────────────


def test_the_aggregate_does_not_depend_on_the_base(world):
    subspace, founders = world
    genomes = list(subspace.founders.values())
    weights = aggregation_weights(np.random.default_rng(0).uniform(size=len(founders)))
    _assert_close(subspace.task_vector(subspace.combine(genomes, weights[None])), _moved(subspace, genomes, weights))


def test_equal_scores_aggregate_to_the_plain_mean(world):
    subspace, founders = world
    genomes = list(subspace.founders.values())
    child = subspace.combine(genomes, aggregation_weights([0.4] * len(founders))[None])
    np.testing.assert_allclose(child.values, np.mean([g.values for g in genomes], axis=0), rtol=0, atol=1e-6)
