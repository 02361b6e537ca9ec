"""Measures from cores are those of the task vectors that the cores stand for; reference: dense, in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import CheckpointError
from minerua.values import Genome
from minerua.weights import (
    Core,
    Factors,
    Mix,
    Subspace,
    TaskVector,
    compare_spectra,
    cosines,
    distances,
    inner_products,
    measures,
    norms,
    open_checkpoint,
    spectra,
    spectral_similarity,
    write_checkpoint,
)

from ..worlds import low_rank


def dense(subspace, genome):
    """The task vector in float64: tensor name → matrix, or vector for small tensors."""
    found = {}
    for segment in subspace.segments:
        values = genome.values[segment.part].astype(np.float64)
        if isinstance(segment, Mix):
            found[segment.name] = np.tensordot(values, segment.directions.astype(np.float64), axes=1).ravel()
        else:
            found[segment.name] = segment.expand(values.reshape(segment.shape))
    return found


def flat(subspace, genomes):
    """One row per genome: its whole task vector."""
    return np.stack([np.concatenate([t.ravel() for t in dense(subspace, g).values()]) for g in genomes])


def members(subspace):
    """The founders, a child, a noisy child and the base itself."""
    founders = list(subspace.founders.values())
    child = subspace.combine(founders, np.linspace(0.2, 1.1, len(founders))[None])
    noisy = subspace.add_noise(child, np.random.default_rng(0), 0.1)
    return [*founders, child, noisy, subspace.zero()]


def space_of(folder, deltas, shape):
    """A subspace of one matrix `w` and the genomes of its founders."""
    write_checkpoint(folder / "base.safetensors", {"w": np.zeros(shape, np.float32)})
    founders = {name: TaskVector(name, {"w": delta}) for name, delta in deltas.items()}
    subspace = Subspace(open_checkpoint(folder / "base.safetensors"), founders)
    return subspace, list(subspace.founders.values())


# ── products, norms, cosines, distances ──────────────────────────────────────────────────────────────────────────────


def test_inner_products_are_those_of_the_dense_task_vectors(world):
    subspace, _ = world
    genomes = members(subspace)
    rows = flat(subspace, genomes)
    lengths = np.linalg.norm(rows, axis=1)
    found = inner_products(subspace, genomes)
    assert found.dtype == np.float64
    assert (found == found.T).all()
    assert (np.abs(found - rows @ rows.T) <= 1e-6 * np.outer(lengths, lengths)).all()


def test_norms_cosines_and_distances_are_those_of_the_dense_task_vectors(world):
    subspace, _ = world
    genomes = members(subspace)
    rows = flat(subspace, genomes)
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(norms(subspace, genomes), lengths, rtol=1e-6)
    np.testing.assert_allclose(
        distances(subspace, genomes), np.linalg.norm(rows[:, None] - rows[None], axis=2), rtol=1e-6
    )
    units = rows[:-1] / lengths[:-1, None]
    np.testing.assert_allclose(cosines(subspace, genomes)[:-1, :-1], units @ units.T, rtol=0, atol=1e-6)


def test_measures_of_founders_are_those_of_the_experts_themselves(world):
    subspace, founders = world
    names = [segment.name for segment in subspace.segments]
    experts = []
    for vector in founders.values():
        changes = {
            name: delta.left @ delta.right if isinstance(delta, Factors) else delta for name, delta in vector.items()
        }
        zeros = {segment.name: np.zeros(subspace.base.tensor(segment.name).shape) for segment in subspace.segments}
        experts.append(np.concatenate([np.ravel((zeros | changes)[name]).astype(np.float64) for name in names]))
    expected = np.stack(experts) @ np.stack(experts).T
    found = inner_products(subspace, list(subspace.founders.values()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


def test_in_a_subspace_of_float64_the_measures_are_exact(base, vectors):
    subspace = Subspace(base, vectors("mixed", 3), dtype=np.float64)
    genomes = members(subspace)
    assert genomes[0].values.dtype == np.float64
    rows = flat(subspace, genomes)
    expected = rows @ rows.T
    np.testing.assert_allclose(inner_products(subspace, genomes), expected, rtol=0, atol=1e-12 * expected.max())


def test_no_weight_matrix_is_expanded(base, vectors, monkeypatch):
    subspace = Subspace(base, vectors("lora", 3))
    genomes = members(subspace)

    def expand(self, core):
        raise AssertionError("a weight matrix was expanded")

    monkeypatch.setattr(Core, "expand", expand)
    assert distances(subspace, genomes).shape == (6, 6)
    assert len(spectra(subspace, genomes[0])) == 2


def test_the_base_itself_has_no_length_and_no_direction(base, vectors):
    subspace = Subspace(base, vectors("full", 2))
    genomes = [*subspace.founders.values(), subspace.zero()]
    assert norms(subspace, genomes)[-1] == 0
    found = cosines(subspace, genomes)
    assert (found[-1] == 0).all()
    assert found.diagonal().tolist() == [1.0, 1.0, 0.0]
    np.testing.assert_allclose(distances(subspace, genomes)[-1], norms(subspace, genomes), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 1000, 100_000])
def test_members_that_nearly_coincide_keep_the_digits_of_their_distance(base, vectors, steps):
    subspace = Subspace(base, vectors("mixed", 3))
    one = subspace.founders["expert-0"]
    values = one.values.copy()
    place = int(np.abs(values).argmax())
    values[place] += steps * np.spacing(values[place])
    other = Genome(subspace.digest, values)
    rows = flat(subspace, [one, other])
    found = distances(subspace, [one, other, one])
    assert found[0, 1] == pytest.approx(np.linalg.norm(rows[0] - rows[1]), rel=1e-6)
    assert found[0, 1] > 0
    assert found[0, 2] == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_distances_keep_the_triangle_inequality_and_cosines_the_interval(world_of_three, seed):
    generator = np.random.default_rng(seed)
    genomes = [
        world_of_three.combine(list(world_of_three.founders.values()), generator.normal(size=(1, 3))) for _ in range(3)
    ]
    far = distances(world_of_three, genomes)
    assert far[0, 2] <= (far[0, 1] + far[1, 2]) * (1 + 1e-12)
    assert (np.abs(cosines(world_of_three, genomes)) <= 1).all()


@pytest.fixture(scope="module")
def world_of_three(base, vectors):
    return Subspace(base, vectors("mixed", 3))


def test_blocks_of_any_size_give_the_same_numbers(base, vectors, monkeypatch):
    subspace = Subspace(base, vectors("mixed", 3))
    genomes = members(subspace)
    whole = inner_products(subspace, genomes)
    for values in (1, 40, 1000):
        monkeypatch.setattr(measures, "BLOCK_VALUES", values)
        np.testing.assert_allclose(inner_products(subspace, genomes), whole, rtol=1e-12, atol=1e-14)


def test_no_genomes_have_no_measures(base, vectors):
    subspace = Subspace(base, vectors("full", 2))
    assert inner_products(subspace, []).shape == distances(subspace, []).shape == (0, 0)
    assert norms(subspace, []).shape == (0,)


# ── spectra ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_spectra_are_the_singular_values_of_the_dense_matrices(world):
    subspace, _ = world
    for genome in members(subspace):
        matrices = dense(subspace, genome)
        found = spectra(subspace, genome)
        assert list(found) == [segment.name for segment in subspace.segments if isinstance(segment, Core)]
        for name, sigma in found.items():
            expected = np.linalg.svd(matrices[name], compute_uv=False)[: len(sigma)]
            assert (np.diff(sigma) <= 0).all()
            np.testing.assert_allclose(sigma, expected, rtol=0, atol=1e-6 * expected[0])


def test_spectra_can_be_asked_for_by_name(base, vectors):
    subspace = Subspace(base, vectors("full", 2))
    first = subspace.founders["expert-0"]
    assert list(spectra(subspace, first, ["head.weight"])) == ["head.weight"]
    with pytest.raises(
        CheckpointError, match="2 of 3 tensors have no core in this subspace, and so no spectrum; it has 3"
    ) as caught:
        spectra(subspace, first, ["head.weight", "norm.weight", "nose.weight"])
    assert caught.value.faults == ("norm.weight", "nose.weight")


def test_the_similarity_is_the_mean_cosine_of_the_spectra(base, vectors):
    subspace = Subspace(base, vectors("full", 2))
    a, b = subspace.founders.values()
    here, there = dense(subspace, a), dense(subspace, b)
    cosine = []
    for segment in subspace.segments:
        if isinstance(segment, Core):
            x, y = (np.linalg.svd(t[segment.name], compute_uv=False) for t in (here, there))
            cosine.append(x @ y / np.sqrt((x @ x) * (y @ y)))
    assert len(cosine) == 3
    assert spectral_similarity(subspace, a, b) == pytest.approx(np.mean(cosine), rel=1e-9)
    assert spectral_similarity(subspace, b, a) == spectral_similarity(subspace, a, b)


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([1e-18, 0.1, 3.0, 1e18]), expert=st.integers(0, 2))
def test_the_similarity_knows_neither_lengths_nor_signs(world_of_three, scale, expert):
    genome = list(world_of_three.founders.values())[expert]
    scaled = world_of_three.combine([genome], np.array([[-scale]]))
    assert spectral_similarity(world_of_three, genome, scaled) == pytest.approx(1.0, abs=1e-9)


def test_the_similarity_knows_no_directions(tmp_path):
    generator = np.random.default_rng(1)
    left, right = (np.linalg.qr(generator.normal(size=(6, 6)))[0] for _ in range(2))
    one = np.diag([5.0, 3, 2, 1, 0.5, 0.1])
    deltas = {"a": one.astype(np.float32), "b": (left @ one @ right).astype(np.float32)}
    subspace, (a, b) = space_of(tmp_path, deltas, (6, 6))
    assert spectral_similarity(subspace, a, b) == pytest.approx(1.0, abs=1e-6)
    assert abs(cosines(subspace, [a, b])[0, 1]) < 0.6


def test_matrices_of_rank_one_do_not_count(tmp_path):
    shape = (40, 30)
    deltas = {"a": low_rank(shape, 1, seed=1), "b": low_rank(shape, 3, seed=2), "c": low_rank(shape, 2, seed=3)}
    subspace, (a, b, c) = space_of(tmp_path, deltas, shape)
    assert subspace.segments[0].shape == (6, 6)
    assert spectral_similarity(subspace, a, b) is None
    assert spectral_similarity(subspace, a, a) is None
    similarity = spectral_similarity(subspace, b, c)
    assert similarity is not None
    assert 0.5 < similarity < 1


def test_without_a_matrix_of_rank_above_one_in_both_there_is_no_similarity(base, vectors):
    subspace = Subspace(base, vectors("full", 2))
    assert spectral_similarity(subspace, subspace.founders["expert-0"], subspace.zero()) is None
    assert compare_spectra({}, {}) is None
    assert compare_spectra({"a": np.array([2.0, 1.0])}, {"b": np.array([2.0, 1.0])}) is None


# ── what cannot be measured ──────────────────────────────────────────────────────────────────────────────────────────

USES = (
    lambda subspace, genomes: inner_products(subspace, genomes),
    lambda subspace, genomes: norms(subspace, genomes),
    lambda subspace, genomes: cosines(subspace, genomes),
    lambda subspace, genomes: distances(subspace, genomes),
)


def test_genomes_of_another_subspace_are_refused_with_both_names(base, vectors):
    here, there = Subspace(base, vectors("full", 2)), Subspace(base, vectors("full", 3))
    own, stranger = here.founders["expert-0"], there.founders["expert-0"]
    uses = [lambda use=use: use(here, [own, stranger]) for use in USES]
    uses.append(lambda: spectra(here, stranger))
    uses.append(lambda: spectral_similarity(here, own, stranger))
    for use in uses:
        with pytest.raises(
            CheckpointError, match="genomes belong to another subspace and cannot be measured"
        ) as caught:
            use()
        (fault,) = caught.value.faults
        assert fault == (f"subspace {there.digest} with {there.size} values, here {here.digest} with {here.size}")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_genomes_that_are_not_finite_are_refused_by_name(base, vectors, number):
    subspace = Subspace(base, vectors("full", 2))
    first, second = subspace.founders.values()
    values = first.values.copy()
    values[subspace.segments[-1].start] = number
    broken = Genome(subspace.digest, values)
    for use in USES:
        with pytest.raises(
            CheckpointError, match="1 of 2 genomes hold NaN or infinity and cannot be measured"
        ) as caught:
            use(subspace, [second, broken])
        assert caught.value.faults == (f"genome {broken.digest}",)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_spectrum_that_does_not_exist_is_refused_with_genome_and_tensor(base, vectors, number):
    subspace = Subspace(base, vectors("full", 2))
    core = next(segment for segment in subspace.segments if segment.name == "head.weight")
    values = subspace.founders["expert-1"].values.copy()
    values[core.start] = number
    broken = Genome(subspace.digest, values)
    with pytest.raises(
        CheckpointError, match=rf"genome {broken.digest} holds NaN or infinity in head\.weight, which has no spectrum"
    ):
        spectra(subspace, broken)
    assert "body.weight" in spectra(subspace, broken, ["body.weight"])
