import doctest
from types import SimpleNamespace

import numpy as np
import pytest

from minerua import kernels
from minerua.errors import CheckpointError, KernelError
from minerua.values import Genome
from minerua.weights import Core, Mix, Population, Subspace, population

from ..worlds import MATRICES, SHAPES, assert_close, dense_of


def members(subspace, count, *, seed=0, dtype=np.float32):
    """Random genomes of a subspace."""
    generator = np.random.default_rng(seed)
    return [Genome(subspace.digest, generator.normal(size=subspace.size).astype(dtype)) for _ in range(count)]


def draw(member, number, rank):
    """Multipliers that differ for every member and every tensor."""
    return 1 + 0.3 * np.random.default_rng([member, number]).uniform(-1, 1, rank)


def cores(subspace):
    return [segment for segment in subspace.segments if isinstance(segment, Core)]


@pytest.fixture
def small(base, vectors):
    return Subspace(base, vectors("mixed", 3))


def test_the_example_of_the_docstring_holds():
    assert doctest.testmod(population).failed == 0


# ── one array ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_members_lie_in_one_array_and_a_core_of_all_of_them_is_a_view(small):
    genomes = members(small, 4)
    group = Population(small, genomes)
    assert len(group) == 4
    assert group.values.shape == (4, small.size)
    assert group.values.flags.c_contiguous
    for core in cores(small):
        view = group.core(core.name)
        assert view.shape == (4, *core.shape)
        assert np.shares_memory(view, group.values)
        assert all(matrix.flags.c_contiguous for matrix in view)
        for member, genome in zip(view, genomes, strict=True):
            np.testing.assert_array_equal(member, genome.values[core.part].reshape(core.shape))


def test_parents_are_copied_and_a_member_is_a_copy_that_later_changes_do_not_reach(small):
    genomes = members(small, 2)
    before = [genome.values.copy() for genome in genomes]
    group = Population(small, genomes)
    taken = group.genome(1)
    group.mutate(draw)
    assert not np.array_equal(group.values[1], before[1])
    for genome, old in zip([*genomes, taken], [*before, before[1]], strict=True):
        np.testing.assert_array_equal(genome.values, old)


def test_genomes_handed_over_share_the_array_which_cannot_be_changed_any_more(small):
    group = Population(small, members(small, 3))
    handed = group.genomes()
    assert all(np.shares_memory(genome.values, group.values) for genome in handed)
    assert [genome.digest for genome in handed] == [group.genome(i).digest for i in range(3)]
    with pytest.raises(KernelError, match="is not contiguous, writable memory"):
        group.mutate(draw)
    with pytest.raises(ValueError, match="read-only"):
        group.add_cores(group)


# ── crossover ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("per_tensor", [False, True], ids=["model", "tensor"])
def test_children_crossed_together_have_the_bits_of_children_crossed_one_by_one(world, per_tensor):
    subspace, _ = world
    parents = members(subspace, 4)
    shape = (5, len(subspace.segments), 4) if per_tensor else (5, 4)
    coefficients = np.random.default_rng(1).normal(size=shape)
    together = Population(subspace, parents).crossover(coefficients)
    assert len(together) == 5
    for child, row in zip(together.genomes(), coefficients, strict=True):
        alone = Population.crossed(subspace, parents, row[None])
        assert alone.genomes()[0].digest == child.digest
        assert subspace.combine(parents, row if per_tensor else row[None]).digest == child.digest


def test_a_crossover_is_one_call_of_the_kernel_whatever_the_number_of_children(small, monkeypatch):
    calls = []

    def counted(experts, coefficients):
        calls.append(len(coefficients))
        return merge(experts, coefficients)

    merge = kernels.merge
    monkeypatch.setattr(population, "kernels", SimpleNamespace(merge=counted))
    group = Population(small, members(small, 3))
    group.crossover(np.ones((7, 3)))
    assert calls == [7]
    group.crossover(np.ones((7, len(small.segments), 3)))
    assert calls[1:] == [7] * len(small.segments)


def test_children_in_float64_are_the_combinations_to_its_rounding(small):
    parents = members(small, 3, dtype=np.float64)
    rows = np.random.default_rng(0).normal(size=(4, 3))
    children = Population(small, parents).crossover(rows)
    assert children.values.dtype == np.float64
    exact = rows @ np.stack([parent.values for parent in parents])
    np.testing.assert_allclose(children.values, exact, rtol=0, atol=1e-14)


# ── mutation ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_members_mutated_together_have_the_bits_of_members_mutated_one_by_one(world, precision):
    subspace, _ = world
    parents = members(subspace, 4)
    together = Population(subspace, parents)
    together.mutate(draw, precision=precision)
    for i, parent in enumerate(parents):
        alone = Population(subspace, [parent])
        alone.mutate(lambda _, number, rank, i=i: draw(i, number, rank), precision=precision)
        assert alone.genome(0).digest == together.genome(i).digest


def test_a_mutation_is_one_call_of_the_kernel_that_writes_into_the_members_themselves(small, monkeypatch):
    calls = []

    def counted(matrices, multipliers, *, precision, out):
        calls.append((len(matrices), precision, out is matrices))
        return mutation(matrices, multipliers, precision=precision, out=out)

    mutation = kernels.svd_mutation
    monkeypatch.setattr(population, "kernels", SimpleNamespace(svd_mutation=counted))
    group = Population(small, members(small, 5))
    group.mutate(draw)
    group.mutate(draw, members=[1, 3], precision="float64")
    group.mutate(draw, members=[])
    assert calls == [(5 * len(cores(small)), "float32", True), (2 * len(cores(small)), "float64", True)]


def test_a_mutation_multiplies_the_spectra_and_leaves_small_tensors_alone(world):
    subspace, _ = world
    group = Population(subspace, members(subspace, 2))
    before = group.values.astype(np.float64)
    group.mutate(draw, precision="float64")
    for number, segment in enumerate(subspace.segments):
        for member in range(2):
            old, new = (values[member, segment.part] for values in (before, group.values))
            if isinstance(segment, Mix):
                np.testing.assert_array_equal(new, old)
                continue
            U, sigma, V = np.linalg.svd(old.reshape(segment.shape), full_matrices=False)
            expected = (U * (draw(member, number, len(sigma)) * sigma)) @ V
            np.testing.assert_allclose(new.reshape(segment.shape), expected, rtol=0, atol=2e-5)


def test_members_that_are_not_named_are_not_looked_at(small):
    genomes = members(small, 3)
    genomes[1] = Genome(small.digest, np.full(small.size, np.nan, np.float32))
    group = Population(small, genomes)
    group.mutate(draw, members=[0, 2])
    assert np.isnan(group.values[1]).all()
    assert all(not np.array_equal(group.values[i], genomes[i].values) for i in (0, 2))
    untouched = group.values.copy()
    with pytest.raises(KernelError, match="NaN or infinity in matrix"):
        group.mutate(draw)
    np.testing.assert_array_equal(group.values, untouched)


def test_a_hundred_generations_in_float64_equal_those_on_whole_matrices_to_1e_10(base, vectors):
    """Crossover and SVD mutation in turn, on cores and on dense task vectors."""
    founders = vectors("mixed", 3)
    subspace = Subspace(base, founders, dtype=np.float64)
    names = [segment.name for segment in subspace.segments]
    group = Population(subspace, list(subspace.founders.values()))
    whole = [{name: np.zeros(SHAPES[name]) for name in names} | dense_of(vector) for vector in founders.values()]
    generator = np.random.default_rng(2)
    for _ in range(100):
        rows = generator.dirichlet(np.ones(3), (3, len(names)))
        group = group.crossover(rows)
        whole = [
            {n: sum(w * v[n] for w, v in zip(row[i], whole, strict=True)) for i, n in enumerate(names)} for row in rows
        ]
        scales = 1 + generator.uniform(-0.1, 0.1, (3, len(names), 64))
        group.mutate(lambda member, number, rank, scales=scales: scales[member, number, :rank])
        whole = [_multiplied(subspace, vector, scales[member]) for member, vector in enumerate(whole)]
    for i, vector in enumerate(whole):
        assert np.linalg.norm(vector["body.weight"]) > 0.1
        assert_close(subspace.task_vector(group.genome(i)), vector, tolerance=1e-10)


def _multiplied(subspace, vector, scales):
    """The task vector with the spectra of its matrices multiplied, in the whole space."""
    changed = dict(vector)
    for number, core in enumerate(subspace.segments):
        if isinstance(core, Core):
            matrix = vector[core.name].reshape(len(vector[core.name]), -1)
            U, sigma, V = np.linalg.svd(matrix, full_matrices=False)
            rank = min(core.shape)
            changed[core.name] = ((U[:, :rank] * (scales[number, :rank] * sigma[:rank])) @ V[:rank]).reshape(
                vector[core.name].shape
            )
    return changed


def test_cores_of_another_population_are_added_member_by_member(world):
    subspace, founders = world
    experts = list(subspace.founders.values())
    group = Population(subspace, [subspace.zero()] * len(experts))
    group.add_cores(Population(subspace, experts))
    for i, vector in enumerate(founders.values()):
        change = subspace.task_vector(group.genome(i))
        matrices = {name: delta for name, delta in dense_of(vector).items() if name in MATRICES}
        assert_close({name: delta for name, delta in change.items() if name in MATRICES}, matrices)
        assert not any(group.genome(i).values[s.part].any() for s in subspace.segments if isinstance(s, Mix))


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_genomes_that_do_not_belong_together_are_refused_each_by_its_number(small):
    good = members(small, 1)[0]
    strangers = [
        Genome("f" * 32, good.values),
        Genome(small.digest, good.values[:-1]),
        Genome(small.digest, good.values.astype(np.float64)),
    ]
    for make in (Population, lambda subspace, genomes: Population.crossed(subspace, genomes, np.ones((1, 4)))):
        with pytest.raises(CheckpointError, match="of another subspace or dtype cannot form this") as caught:
            make(small, [good, *strangers])
        assert all(f"genome {i} belongs to subspace " in fault for i, fault in enumerate(caught.value.faults, 1))
        assert len(caught.value.faults) == 3
        assert f"here it is {small.digest} with {small.size} of float32" in caught.value.faults[0]
    with pytest.raises(CheckpointError, match="needs at least one genome, and there is none"):
        Population(small, [])


@pytest.mark.parametrize("shape", [(), (2,), (0, 2), (1, 3), (1, 99, 2), (1, 1, 1, 2)])
def test_coefficients_of_another_shape_are_refused_with_the_shapes_that_fit(small, shape):
    with pytest.raises(CheckpointError, match=r"for the children of 2 parents need the shape \(C, 2\) or ") as caught:
        Population(small, members(small, 2)).crossover(np.ones(shape))
    assert str(caught.value).endswith(f"or (C, {len(small.segments)}, 2), found {shape}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_coefficients_that_are_not_finite_are_refused(small, dtype):
    with pytest.raises(CheckpointError, match="coefficients must be finite, found inf"):
        Population(small, members(small, 2, dtype=dtype)).crossover([[1.0, np.inf]])


def test_a_core_that_is_not_there_is_refused_with_those_that_are(small):
    with pytest.raises(CheckpointError, match=r"no matrix of this subspace is named 'bdy'; known: body\.weight, "):
        Population(small, members(small, 1)).core("bdy")


def test_cores_of_another_space_or_number_are_not_added(small, base, vectors):
    other = Subspace(base, vectors("full", 2))
    for stranger in (Population(other, [other.zero()]), Population(small, members(small, 2))):
        with pytest.raises(CheckpointError, match="both must be of one subspace and one size"):
            Population(small, members(small, 1)).add_cores(stranger)
