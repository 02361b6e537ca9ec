import re

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
    dense,
    open_checkpoint,
    open_expert,
    write_checkpoint,
)

from ..worlds import (
    COUNTER,
    LINEAR,
    MATRICES,
    SHAPES,
    SMALL,
    assert_close,
    base_tensors,
    dense_of,
    low_rank,
    write_model,
)
from .conftest import COUNTS, KINDS

NAME = "body.weight"

# ── founders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_founder_lies_in_the_subspace_exactly(world):
    subspace, founders = world
    assert list(subspace.founders) == list(founders)
    for name, vector in founders.items():
        assert_close(subspace.task_vector(subspace.founders[name]), dense_of(vector))


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


def test_a_basis_that_would_fill_its_side_is_the_identity(base):
    adapters = {str(k): TaskVector(str(k), {"body.weight": low_rank((8, 6), 3, seed=k)}) for k in range(2)}
    (core,) = Subspace(base, adapters).segments
    assert (core.shape, core.right) == ((6, 6), None)
    assert core.left.shape == (8, 6)


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
    with pytest.raises(CheckpointError, match=r"no founder differs from the base at .*: copy, nothing; name the"):
        Subspace(base, {"copy": copy, "nothing": nothing})


def test_a_founder_equal_to_the_base_may_stand_beside_others(base, folder, vectors):
    copy = open_expert("copy", write_model(folder / "copy", base_tensors()), base).task_vector
    subspace = Subspace(base, {**vectors("full", 2), "copy": copy})
    assert not any(change.any() for change in subspace.task_vector(subspace.founders["copy"]).values())


def _founder(deltas, base=None):
    return TaskVector("0", deltas, base=base)


@pytest.mark.parametrize(
    ("delta", "fault"),
    [
        (np.ones((6, 8), np.float32), "its change has shape [6, 8], the base has [8, 6]"),
        (low_rank((6, 8), 2, seed=0), "its factors are [6, 2] and [2, 8], the base has [8, 6]"),
        (Factors(np.ones((8, 2)), np.ones((3, 6))), "its factors are [8, 2] and [3, 6], the base has [8, 6]"),
        (np.full((8, 6), np.nan, np.float32), "48 of 48 numbers are NaN or infinite"),
        (Factors(np.full((8, 1), np.inf), np.ones((1, 6))), "8 of 14 numbers are NaN or infinite"),
    ],
)
def test_a_change_that_cannot_be_used_is_named_with_founder_and_tensor(base, delta, fault):
    with pytest.raises(CheckpointError, match=r"founders do not fit the base at .*base") as caught:
        Subspace(base, {"good": _founder({"head.weight": low_rank((5, 8), 1, seed=0)}), "bad": _founder({NAME: delta})})
    assert caught.value.faults == (f"founder 'bad': tensor '{NAME}': {fault}",)


def test_all_faults_of_all_founders_are_told_at_once(base, folder):
    other = open_checkpoint(write_model(folder / "stranger", base_tensors(seed=5)))
    founders = {
        "one": _founder({"gone.weight": low_rank((8, 6), 1, seed=0), COUNTER: np.ones(3, np.float32)}),
        "two": _founder({"body.bias": low_rank((8, 1), 1, seed=0), NAME: np.ones((2, 2), np.float32)}, other),
    }
    with pytest.raises(CheckpointError, match="founders do not fit the base") as caught:
        Subspace(base, founders)
    assert caught.value.faults == (
        "founder 'one' changes tensor 'gone.weight', which the base lacks",
        f"founder 'two' is a change of another base, {other.path} ({other.digest}); here it is {base.path} "
        f"({base.digest})",
        "founder 'two': tensor 'body.bias': its factors are [8, 1] and [1, 1], the base has [8]",
        "founder 'two': tensor 'body.weight': its change has shape [2, 2], the base has [8, 6]",
        "founder 'one': tensor 'steps': it is changed, the base holds int64, and only floating-point tensors can be "
        "merged",
    )


def test_a_founder_of_the_same_base_opened_twice_is_none_of_another(base):
    again = open_checkpoint(base.path)
    assert Subspace(base, {"e": _founder({NAME: low_rank((8, 6), 1, seed=0)}, again)}).size == 1


def test_bases_are_orthonormal_whether_their_columns_are_independent_or_not(tmp_path):
    write_checkpoint(tmp_path / "base.safetensors", {"w.weight": np.zeros((60, 50), np.float32)})
    base = open_checkpoint(tmp_path / "base.safetensors")
    one = low_rank((60, 50), 4, seed=0)
    for slip in (1.0, 1e-3, 1e-5, 0.0):  # how far the second expert's columns leave the first one's span
        left = one.left @ np.float32(np.eye(4)[::-1]) + np.float32(slip) * low_rank((60, 50), 4, seed=1).left
        other = Factors(left, one.right)
        (core,) = Subspace(base, {"a": _founder({"w.weight": one}), "b": _founder({"w.weight": other})}).segments
        assert core.shape == (8 if slip else 4, 4)
        assert np.abs(core.left.T @ core.left - np.eye(core.shape[0])).max() < 1e-6


def test_a_subspace_of_another_dtype_is_refused(base, vectors):
    with pytest.raises(CheckpointError, match="a subspace of float16 cannot be built; float32 and float64 are known"):
        Subspace(base, vectors("lora", 2), dtype=np.float16)


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
    for genome in (
        first,
        subspace.zero(),
        subspace.combine([first], np.array([[2.0]])),
        noisy,
    ):
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
        lambda: here.add_noise(stranger, np.random.default_rng(0), 1.0),
        lambda: here.task_vector(stranger),
        lambda: here.task_vector(Genome(here.digest, own.values[:-1])),
    ]
    for use in uses:
        with pytest.raises(CheckpointError, match="genomes of another subspace cannot be used here") as caught:
            use()
        (fault,) = caught.value.faults
        assert re.fullmatch(rf"subspace \w+ with \d+ values, here {here.digest} with {here.size}", fault)


# ── combining ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_combining_genomes_combines_the_task_vectors(world):
    subspace, founders = world
    weights = np.random.default_rng(0).normal(size=len(founders))
    child = subspace.combine(list(subspace.founders.values()), weights[None])
    expected = {
        name: sum(w * dense_of(v).get(name, 0) for w, v in zip(weights, founders.values(), strict=True))
        for name in (segment.name for segment in subspace.segments)
    }
    assert_close(subspace.task_vector(child), expected)


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


# ── projecting ───────────────────────────────────────────────────────────────────────────────────────────────────────


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


def test_spans_that_hold_each_other_do_not_widen_the_bases(tmp_path):
    write_checkpoint(tmp_path / "base.safetensors", {"w.weight": np.zeros((20, 16), np.float32)})
    base = open_checkpoint(tmp_path / "base.safetensors")
    generator = np.random.default_rng(0)
    one = Factors(*(generator.standard_normal(shape).astype(np.float32) for shape in ((20, 2), (2, 16))))
    mixed = Factors(one.left @ np.float32([[1, 2], [3, 4]]) * 1e-4, one.right * 1e4)  # the same spans, other lengths
    founders = {"one": TaskVector("a", {"w.weight": one}), "mixed": TaskVector("b", {"w.weight": mixed})}
    subspace = Subspace(base, founders)
    assert subspace.segments[0].shape == (2, 2)
    for name, vector in founders.items():
        found = subspace.task_vector(subspace.founders[name])["w.weight"]
        np.testing.assert_allclose(found, vector["w.weight"].left @ vector["w.weight"].right, rtol=1e-4, atol=1e-4)
