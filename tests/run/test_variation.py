"""How a variant chooses crossover and mutation; what these do to weights is in tests/weights/test_cycleqd.py."""

import dataclasses

import numpy as np
import pytest

from minerua import kernels
from minerua.evolution import crossover_coefficients
from minerua.evolution.variants import VARIANTS
from minerua.run.variation import crossover_of, draws_of, mutation_of
from minerua.values import Genome
from minerua.weights import Core, Mix, Population, Subspace, open_checkpoint, open_expert

from ..worlds import base_tensors, tuned_tensors, write_model


@pytest.fixture(scope="module")
def subspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variation")
    base = open_checkpoint(write_model(folder / "base", base_tensors()))
    paths = {f"e{k}": write_model(folder / f"e{k}", tuned_tensors(base_tensors(), seed=k)) for k in range(3)}
    return Subspace(base, {name: open_expert(name, path, base).task_vector for name, path in paths.items()})


@pytest.fixture(scope="module")
def experts(subspace):
    return list(subspace.founders.values())


def _variant(name="paper", **changes):
    return dataclasses.replace(VARIANTS[name], **changes)


def _shares(subspace, child):
    """The first parent's share in each small tensor, given that the parents are the first two founders."""
    return [float(child.values[mix.start]) for mix in subspace.segments if isinstance(mix, Mix)]


# ── crossover ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["paper", "repo"])
def test_the_paper_and_the_code_draw_one_pair_of_weights_for_the_whole_model(subspace, experts, name):
    variant = _variant(name)
    child = crossover_of(variant, subspace)(experts[:2], np.random.default_rng(4))
    weights = crossover_coefficients(np.random.default_rng(4), deviation=variant.crossover_width)
    assert child.digest == subspace.combine(experts[:2], weights).digest


@pytest.mark.parametrize("crossover", ["gaussian", "directed"])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_shares_are_drawn_per_model_or_per_tensor(subspace, experts, crossover, per_tensor):
    variant = _variant(crossover=crossover, crossover_per_tensor=per_tensor, crossover_width=0.5)
    shares = _shares(subspace, crossover_of(variant, subspace)(experts[:2], np.random.default_rng(4)))
    assert len(set(shares)) == (len(shares) if per_tensor else 1)


@pytest.mark.parametrize("width", [0.0, 0.25, 0.5])
def test_directed_crossover_stays_around_the_first_parent(subspace, experts, width):
    variant = _variant(crossover="directed", crossover_width=width)
    generator = np.random.default_rng(0)
    shares = [_shares(subspace, crossover_of(variant, subspace)(experts[:2], generator))[0] for _ in range(200)]
    assert 1 - width <= min(shares) <= max(shares) <= 1 + width
    assert np.ptp(shares) == pytest.approx(2 * width, rel=0.05)


def test_a_crossover_of_width_zero_is_the_midpoint(subspace, experts):
    child = crossover_of(_variant(crossover_width=0.0), subspace)(experts[:2], np.random.default_rng(0))
    assert child.digest == subspace.combine(experts[:2], np.array([[0.5, 0.5]])).digest


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variation_depends_on_nothing_but_parents_task_and_generator(subspace, experts, name):
    cross, mutate = crossover_of(VARIANTS[name], subspace), mutation_of(VARIANTS[name], subspace, experts)

    def bred(seed):
        generator = np.random.default_rng(seed)
        return mutate(cross(experts[:2], generator), generator, 1).digest

    assert bred(1) == bred(1) != bred(2)


# ── mutation ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_the_stated_share_of_children_is_mutated(subspace, experts, probability):
    mutate = mutation_of(_variant(mutation_probability=probability), subspace, experts)
    generator = np.random.default_rng(0)
    changed = [mutate(experts[0], generator, 0).digest != experts[0].digest for _ in range(200)]
    assert np.mean(changed) == pytest.approx(probability, abs=0.08 if 0 < probability < 1 else 0)


@pytest.mark.parametrize(
    ("reading", "low", "high"),
    [("literal", 0.0, 0.3), ("additive", 1.0, 1.3), ("two-sided", 0.7, 1.3), ("none", 1.0, 1.0)],
)
def test_each_reading_multiplies_the_spectrum_within_its_range(subspace, experts, reading, low, high):
    mutate = mutation_of(_variant(mutation=reading, mutation_strength=0.3), subspace, experts)
    child = mutate(experts[0], np.random.default_rng(0), 0)
    ratios = np.concatenate(_ratios(subspace, experts[0], child))
    assert low - 1e-4 <= min(ratios) <= max(ratios) <= high + 1e-4
    assert np.ptp(ratios) > 0.6 * (high - low) or low == high


def test_multipliers_come_from_philox_by_64_bits_of_the_generator_and_the_tensor_s_number(subspace, experts):
    variant = _variant(mutation="additive", mutation_strength=0.3)
    draw = draws_of(variant, [np.random.default_rng(k) for k in (7, 8)])
    for member, seed in enumerate((7, 8)):
        key = int(np.random.default_rng(seed).integers(1 << 64, dtype=np.uint64))
        for number in (0, 3):
            expected = 1 + 0.3 * kernels.uniform(key, count=6, tensor=number).astype(np.float64)
            np.testing.assert_array_equal(draw(member, number, 6), expected)
    assert len({tuple(draw(member, number, 6)) for member in (0, 1) for number in (0, 1, 2)}) == 6


@pytest.mark.parametrize("reading", ["literal", "additive", "two-sided", "expert"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("top", [None, 1])
def test_children_mutated_one_by_one_have_the_bits_of_a_batch(subspace, experts, reading, precision, top):
    variant = _variant(mutation=reading, mutation_probability=1.0, mutation_top=top)
    mutate = mutation_of(variant, subspace, experts, precision=precision)
    tasks, seeds = (2, 0, 1), (5, 6, 7)
    coins = [np.random.default_rng(seed) for seed in seeds]
    alone = [mutate(experts[0], coin, task) for coin, task in zip(coins, tasks, strict=True)]
    start = [experts[task] for task in tasks] if reading == "expert" else [experts[0]] * 3
    batch = Population(subspace, start)
    batch.mutate(draws_of(variant, [_after_the_coin(seed) for seed in seeds]), precision=precision)
    if reading == "expert":
        increments, batch = batch, Population(subspace, [experts[0]] * 3)
        batch.add_cores(increments)
    assert [genome.digest for genome in batch.genomes()] == [genome.digest for genome in alone]


def _after_the_coin(seed):
    """A generator as a mutation has it when it has decided to mutate."""
    generator = np.random.default_rng(seed)
    generator.random()
    return generator


@pytest.mark.parametrize("reading", ["literal", "additive", "two-sided"])
@pytest.mark.parametrize("top", [0, 1, 3, 100])
def test_below_the_top_all_directions_of_a_matrix_are_scaled_alike(subspace, experts, reading, top):
    variant = _variant(mutation=reading, mutation_strength=0.3, mutation_top=top)
    mutate = mutation_of(variant, subspace, experts, precision="float64")
    ratios = _ratios(subspace, experts[0], mutate(experts[0], np.random.default_rng(0), 0))
    for matrix in ratios:
        np.testing.assert_allclose(matrix[top:], matrix[-1], rtol=0, atol=1e-4)
        assert len(set(matrix[: top + 1].round(4))) == min(top + 1, len(matrix))
    assert len({matrix[-1] for matrix in ratios}) == len(ratios)


def _ratios(subspace, before, after):
    """By what each matrix's singular directions were multiplied, the largest singular value first."""
    ratios = []
    for core in (segment for segment in subspace.segments if isinstance(segment, Core)):
        old, new = (g.values[core.part].reshape(core.shape).astype(np.float64) for g in (before, after))
        U, sigma, V = np.linalg.svd(old, full_matrices=False)
        ratios.append(np.diag(U.T @ new @ V.T) / sigma)
    return ratios


@pytest.mark.parametrize("task", [0, 1, 2])
def test_the_expert_mutation_moves_towards_the_active_task_s_expert(subspace, experts, task):
    mutate = mutation_of(VARIANTS["repo"], subspace, experts)
    change = mutate(subspace.zero(), np.random.default_rng(0), task).values.astype(np.float64)
    cores = np.concatenate([np.arange(subspace.size)[s.part] for s in subspace.segments if isinstance(s, Core)])
    shares = [change[cores] @ e.values[cores] / (e.values[cores] @ e.values[cores]) for e in experts]
    assert int(np.argmax(shares)) == task
    assert shares[task] == pytest.approx(0.05, abs=0.03)  # w ~ U[0, 0.1)


def test_small_tensors_pass_through_the_expert_mutation(subspace, experts):
    child = mutation_of(VARIANTS["repo"], subspace, experts)(experts[0], np.random.default_rng(0), 1)
    for mix in (segment for segment in subspace.segments if isinstance(segment, Mix)):
        np.testing.assert_array_equal(child.values[mix.part], experts[0].values[mix.part])


@pytest.mark.parametrize("mutation", ["literal", "additive", "two-sided", "expert", "gaussian", "none"])
def test_a_child_with_nan_is_passed_on_to_fail_in_its_evaluation(subspace, experts, mutation):
    broken = Genome(subspace.digest, np.full(subspace.size, np.nan, np.float32))
    mutate = mutation_of(_variant(mutation=mutation), subspace, experts)
    assert mutate(broken, np.random.default_rng(0), 0) is broken
