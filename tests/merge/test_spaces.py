import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import CheckpointError
from minerua.merge.adapters.spaces import core_space, knots_space, merge_adapters
from minerua.weights import Factors, open_adapter, open_checkpoint, write_adapter, write_checkpoint


def _scaled_knots(factors):
    return knots_space(factors, scaled=True)


SPACES = {"core": core_space, "KnOTS": knots_space, "KnOTS as in the authors' program": _scaled_knots}


@pytest.fixture(params=sorted(SPACES))
def space(request):
    return SPACES[request.param]


def _pair(rank, shape=(20, 14), *, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    left, right = generator.normal(size=(shape[0], rank)), generator.normal(size=(rank, shape[1]))
    return Factors((scale * left).astype(np.float32), right.astype(np.float32))


def _pairs(ranks=(2, 5, 3), shape=(20, 14), *, seed=0):
    return [_pair(rank, shape, seed=10 * seed + number) for number, rank in enumerate(ranks)]


def _product(pair):
    return np.float64(0) if pair is None else pair.left.astype(np.float64) @ pair.right


def _expanded(shared, array):
    inside = shared.left.astype(np.float64) * shared.scales @ array
    return inside if shared.right is None else inside @ shared.right


def _error(found, exact):
    """Returns the largest difference, as a share of the largest number."""
    return np.abs(found - exact).max() / max(np.abs(exact).max(), np.finfo(np.float64).tiny)


# ── the spaces ───────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(SPACES)),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 99),
)
def test_merging_linearly_in_the_space_is_merging_the_task_vectors(name, ranks, weights, shape, seed):
    pairs = _pairs(ranks, shape, seed=seed)
    shared = SPACES[name](pairs)
    merged = sum(np.float64(w) * array for w, array in zip(weights, shared.arrays, strict=False))
    exact = sum(w * _product(pair) for w, pair in zip(weights, pairs, strict=False))
    size = max(np.abs(_product(pair)).max() for pair in pairs)
    assert np.abs(_expanded(shared, merged) - exact).max() <= 2e-6 * size
    factors, lost = shared.factors(merged)
    assert lost == 0
    assert np.abs(_product(factors) - exact).max() <= 2e-6 * size


def test_each_adapter_is_its_own_array(space):
    pairs = _pairs()
    shared = space(pairs)
    for pair, array in zip(pairs, shared.arrays, strict=True):
        assert _error(_expanded(shared, array), _product(pair)) < 1e-6
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    assert {array.shape for array in shared.arrays} == {shared.arrays[0].shape}


def test_bases_are_orthonormal(space):
    shared = space(_pairs())
    np.testing.assert_allclose(shared.left.T @ shared.left, np.eye(shared.left.shape[1]), atol=1e-6)
    if shared.right is not None:
        np.testing.assert_allclose(shared.right @ shared.right.T, np.eye(len(shared.right)), atol=1e-6)


def test_a_space_is_as_small_as_the_ranks_together():
    assert core_space(_pairs((2, 5, 3))).arrays[0].shape == (10, 10)
    assert knots_space(_pairs((2, 5, 3))).arrays[0].shape == (10, 14)
    assert core_space(_pairs((9, 9, 9))).arrays[0].shape == (20, 14)  # or as the matrix


def test_directions_that_adapters_share_are_counted_once(space):
    one, two = _pairs((3, 3))
    same_columns = Factors(np.ascontiguousarray(one.left[:, ::-1]), two.right)
    shared = space([one, same_columns, one])
    assert shared.arrays[0].shape[0] == 3
    assert _error(_expanded(shared, shared.arrays[1]), _product(same_columns)) < 1e-6


def test_an_adapter_that_does_not_change_the_matrix_is_zero(space):
    one, two = _pairs((2, 3))
    shared = space([one, None, two])
    assert not shared.arrays[1].any()
    assert _error(_expanded(shared, shared.arrays[2]), _product(two)) < 1e-6
    np.testing.assert_array_equal(shared.arrays[0], space([one, two]).arrays[0])


def test_factors_of_zeros_are_harmless(space):
    zero = Factors(np.zeros((20, 4), np.float32), _pair(4).right)
    shared = space([zero, zero])
    assert not any(array.any() for array in shared.arrays)
    factors, lost = shared.factors(shared.arrays[0])
    assert (factors.left.shape, factors.right.shape, lost) == ((20, 1), (1, 14), 0)
    assert not _product(factors).any()
    with_other = space([zero, _pair(2)])
    assert _error(_expanded(with_other, with_other.arrays[1]), _product(_pair(2))) < 1e-6


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_an_adapter_much_smaller_than_another_keeps_its_digits(scale):
    """In core space; a shared Σ cannot hold both, so KnOTS leaves out what is below 1e-6 of its largest value."""
    pairs = [_pair(2), _pair(3, seed=1, scale=scale)]
    shared = core_space(pairs)
    for pair, array in zip(pairs, shared.arrays, strict=True):
        assert _error(_expanded(shared, array), _product(pair)) < 1e-5


def test_the_order_of_the_adapters_does_not_matter(space):
    pairs = _pairs()

    def merge(pairs, weights):
        shared = space(pairs)
        return _expanded(shared, sum(w * array for w, array in zip(weights, shared.arrays, strict=True)))

    np.testing.assert_allclose(merge(pairs[::-1], [3, 2, 1]), merge(pairs, [1, 2, 3]), atol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("ranks", [(2, 5, 3), (4,), (8, 8, 8)])
def test_knots_is_its_definition_by_a_full_decomposition(ranks, scaled):
    pairs = _pairs(ranks)
    U, sigma, V = np.linalg.svd(np.concatenate([_product(pair) for pair in pairs], axis=1), full_matrices=False)
    shared = knots_space(pairs, scaled=scaled)
    count = len(shared.scales)
    assert count == np.linalg.matrix_rank(U * sigma)
    np.testing.assert_allclose(np.ones(count) if scaled else sigma[:count], shared.scales, rtol=1e-6)
    signs = np.sign(np.sum(shared.left * U[:, :count], axis=0))  # a decomposition fixes vectors up to the sign
    np.testing.assert_allclose(signs * shared.left, U[:, :count], atol=1e-5)
    for array, block in zip(shared.arrays, np.split(V[:count], len(pairs), axis=1), strict=True):
        inside = sigma[:count, None] if scaled else 1
        np.testing.assert_allclose(signs[:, None] * array, inside * block, atol=1e-5 * sigma[0])


def test_the_core_of_an_adapter_has_its_singular_values():
    pairs = _pairs()
    for pair, core in zip(pairs, core_space(pairs).arrays, strict=True):
        sigma = np.linalg.svd(_product(pair), compute_uv=False)
        np.testing.assert_allclose(np.linalg.svd(core, compute_uv=False), sigma[:10], atol=1e-5 * sigma[0])


# ── back to factors ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rank_keeps_the_nearest_matrix_and_says_what_it_leaves_out(space):
    pairs = _pairs()
    shared = space(pairs)
    exact = sum(map(_product, pairs))
    U, sigma, V = np.linalg.svd(exact)
    for rank in (1, 4, 9):
        factors, lost = shared.factors(sum(shared.arrays), rank=rank)
        assert factors.left.shape[1] == factors.right.shape[0] == rank
        assert _error(_product(factors), (U[:, :rank] * sigma[:rank]) @ V[:rank]) < 1e-5
        assert lost == pytest.approx((sigma[rank:] ** 2).sum() / (sigma**2).sum(), rel=1e-4)


def test_a_rank_that_is_large_enough_leaves_nothing_out(space):
    shared = space(_pairs((2, 3)))
    factors, lost = shared.factors(sum(shared.arrays), rank=100)
    assert (factors.left.shape[1], lost) == (5, 0)


def test_both_factors_have_the_same_norm(space):
    shared = space(_pairs())
    factors, _ = shared.factors(sum(shared.arrays))
    np.testing.assert_allclose(np.linalg.norm(factors.left), np.linalg.norm(factors.right), rtol=1e-5)
    assert factors.left.dtype == factors.right.dtype == np.float32


def _fault(call):
    with pytest.raises(CheckpointError) as caught:
        call()
    (fault,) = caught.value.faults
    return fault


def test_a_merged_array_that_does_not_fit_is_refused(space):
    shared = space(_pairs())
    wrong = np.array(shared.arrays[0])
    wrong[0, :2] = [np.nan, np.inf]
    assert f"2 of its {wrong.size} merged numbers are not finite" in _fault(lambda: shared.factors(wrong))
    assert "it has the shape [3], the adapters' arrays have [10, " in _fault(lambda: shared.factors(np.ones(3)))
    assert _fault(lambda: shared.factors(shared.arrays[0], rank=0)) == "rank 0: an adapter needs at least 1"
    with pytest.raises(CheckpointError, match="a merged array cannot be turned into factors"):
        shared.factors(np.ones(3))


def test_factors_that_do_not_fit_together_are_refused(space):
    one, other = _pair(2), _pair(2, (20, 15))
    fault = _fault(lambda: space([one, other]))
    assert fault.startswith("the adapters change matrices of different shapes: adapter 1 of [20, 14], adapter 2 of [20")
    broken = Factors(one.left, other.right[:1])
    assert "adapter 2 has left [20, 2] and right [1, 15], which cannot be mult" in _fault(lambda: space([one, broken]))
    infinite = Factors(one.left * np.float32(np.inf), one.right)
    assert _fault(lambda: space([infinite, one])) == "the factors of adapter 1 hold NaN or infinity"
    assert _fault(lambda: space([None, None])) == "none of 2 adapters changes this matrix"
    with pytest.raises(CheckpointError, match="factors do not share a space"):
        space([])


# ── whole adapters ───────────────────────────────────────────────────────────────────────────────────────────────────


def _mean(_, arrays):
    return sum(arrays) / len(arrays)


def test_adapters_of_mixed_ranks_and_matrices_merge_to_an_adapter(space):
    one = {"q.weight": _pair(2), "k.weight": _pair(3, (6, 14), seed=1)}
    two = {"q.weight": _pair(5, seed=2), "v.weight": _pair(1, (8, 14), seed=3)}
    done = merge_adapters([one, two], _mean, space=space)
    assert list(done.factors) == ["k.weight", "q.weight", "v.weight"]
    for name, factors in done.factors.items():
        exact = (_product(one.get(name)) + _product(two.get(name))) / 2
        assert _error(_product(factors), exact) < 2e-6
    assert done.lost == {"k.weight": 0, "q.weight": 0, "v.weight": 0}
    assert done.lost_fraction == 0


def test_what_a_rank_leaves_out_of_a_whole_adapter_is_weighed_by_size(space):
    adapters = [{"q.weight": _pair(3, scale=10), "k.weight": _pair(2, seed=1)}, {"q.weight": _pair(2, seed=2)}]
    done = merge_adapters(adapters, lambda _, arrays: sum(arrays), space=space, rank=2)
    lost = total = 0.0
    for name in done.factors:
        sigma = np.linalg.svd(sum(_product(adapter.get(name)) for adapter in adapters), compute_uv=False)
        lost, total = lost + (sigma[2:] ** 2).sum(), total + (sigma**2).sum()
        assert done.lost[name] == pytest.approx((sigma[2:] ** 2).sum() / (sigma**2).sum(), abs=1e-6)
    assert done.lost_fraction == pytest.approx(lost / total, rel=1e-4)


def test_a_merge_method_sees_the_arrays_under_the_tensor_s_name():
    seen = {}

    def merge(name, arrays):
        seen[name] = [array.shape for array in arrays]
        return arrays[0]

    adapters = [{"q.weight": _pair(2)}, {"q.weight": _pair(3, seed=1), "k.weight": _pair(1, (6, 14))}]
    merge_adapters(adapters, merge)
    assert seen == {"k.weight": [(1, 1)] * 2, "q.weight": [(5, 5)] * 2}


def test_a_merged_adapter_can_be_written_and_opened(tmp_path):
    adapters = [{"m.q.weight": _pair(2)}, {"m.q.weight": _pair(4, seed=1), "m.k.weight": _pair(3, (6, 14))}]
    done = merge_adapters(adapters, _mean)
    base = {"m.q.weight": np.zeros((20, 14), np.float32), "m.k.weight": np.zeros((6, 14), np.float32)}
    write_checkpoint(tmp_path / "base.safetensors", base)
    write_adapter(tmp_path / "merged", done.factors, rank=max(pair.left.shape[1] for pair in done.factors.values()))
    opened = open_adapter(tmp_path / "merged", open_checkpoint(tmp_path / "base.safetensors"))
    for name, factors in done.factors.items():
        assert _error(_product(opened.factors[name]), _product(factors)) < 1e-6


def test_all_faults_of_all_matrices_are_reported_at_once():
    one = {"k.weight": _pair(2), "q.weight": _pair(2), "v.weight": _pair(2)}
    two = {"k.weight": _pair(2, (20, 15)), "q.weight": _pair(2)}
    with pytest.raises(CheckpointError, match="2 adapters cannot be merged into one") as caught:
        merge_adapters([one, two], lambda name, arrays: arrays[0] * np.nan if name == "q.weight" else arrays[0])
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["'k.weight'", "'q.weight'"]
