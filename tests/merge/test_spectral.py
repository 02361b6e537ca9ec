from types import MappingProxyType

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.kernels.passes import Source, Target
from minerua.merge.methods.spectral import DEPENDENT, METHODS, leading, polar_factor, respectrum
from minerua.registry.specs import KINDS, spec_faults
from minerua.values import MergeMethodSpec, MergeTensors

SPECS = MappingProxyType({spec.name: spec for spec in METHODS})
SHAPES = [(12, 8), (8, 12), (9, 9), (1, 5), (5, 1), (1, 1)]


def _vectors(count=3, shape=(12, 8), *, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for _ in range(count)]


def _base(shape=(12, 8)):
    return np.random.default_rng(99).normal(size=shape).astype(np.float32)


def _tensors(name, experts, base, weights=None, **given_):
    """Returns what the engine gives a method: the recipe's parameters, and defaults for the others."""
    defaults = {parameter.name: parameter.default for parameter in SPECS[name].parameters}
    parameters = {**defaults, "weight": tuple(weights or (1.0,) * len(experts)), **given_}
    return MergeTensors("w", base.shape, 0, tuple(map(_source, experts)), _source(base), parameters)


def _source(array):
    return array if isinstance(array, Source) else Source(np.ascontiguousarray(array))


def _merge_models(name, experts, base, *, dtype=np.float32, weights=None, **given_):
    out = np.full(base.shape, 7, dtype)
    counts = SPECS[name].merge(_tensors(name, experts, base, weights, **given_), Target(out.dtype, array=out))
    return out, counts


def _merge(name, vectors, weights=None, **given_):
    """Returns the merged task vector; a base of zeros keeps every digit."""
    out, counts = _merge_models(name, vectors, np.zeros(vectors[0].shape, np.float32), weights=weights, **given_)
    assert counts.tolist() == [0] * (len(vectors) + 2)
    return out


@pytest.fixture(params=sorted(SPECS))
def name(request):
    return request.param


# ── the definitions, by full singular value decompositions in float64 ────────────────────────────────────────────────


def _svd(matrix):
    left, sigma, right = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return left, sigma, right.T


def _polar(matrix):
    left, _, right = _svd(matrix)
    return left @ right.T


def _tsv(vectors, budget=1.0):
    count = max(1, min(int(budget * min(vectors[0].shape) / len(vectors)), min(vectors[0].shape)))
    parts = [_svd(vector) for vector in vectors]
    left, right = (np.concatenate([part[i][:, :count] for part in parts], axis=1) for i in (0, 2))
    return _polar(left) @ np.diag(np.concatenate([part[1][:count] for part in parts])) @ _polar(right).T


def _iso_c(vectors):
    left, sigma, right = _svd(sum(vector.astype(np.float64) for vector in vectors))
    return sigma.mean() * left @ right.T


def _iso_cts(vectors, common=0.8):
    rank, count = min(vectors[0].shape), len(vectors)
    own = round((rank - int(rank * common)) / count)
    shared = rank - own * count
    left, sigma, right = _svd(sum(vector.astype(np.float64) for vector in vectors))
    basis = left[:, :shared]
    parts = [[x[..., :own] for x in _svd(vector - basis @ basis.T @ vector)] for vector in vectors]
    parts.append([basis, sigma[:shared], right[:, :shared]])
    lefts, sigmas, rights = (np.concatenate([part[i] for part in parts], axis=-1) for i in range(3))
    return sigmas.mean() * _polar(lefts) @ _polar(rights).T


def _boosted(vectors, boost=0.01):
    left, sigma, right = _svd(sum(vector.astype(np.float64) for vector in vectors))
    least = sigma[np.argmax(np.cumsum(sigma) / sigma.sum() >= boost)]
    return left @ np.diag(np.maximum(sigma, least)) @ right.T


ORACLES = {"tsv-m": _tsv, "iso-c": _iso_c, "iso-cts": _iso_cts, "subspace-boosting": _boosted}


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (9, 9), (33, 20)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_method_is_its_definition(name, shape, count):
    vectors = _vectors(count, shape)
    np.testing.assert_allclose(_merge(name, vectors), ORACLES[name](vectors), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "given_", "keywords"),
    [
        ("tsv-m", {"rank_budget": 2.5}, {"budget": 2.5}),  # more directions than the matrix has
        ("tsv-m", {"rank_budget": 0.4}, {"budget": 0.4}),
        ("tsv-m", {"rank_budget": 0.0}, {"budget": 0.0}),
        ("iso-cts", {"common": 0.3}, {"common": 0.3}),
        ("iso-cts", {"common": 1.0}, {"common": 1.0}),
        ("subspace-boosting", {"boost": 0.6}, {"boost": 0.6}),
        ("subspace-boosting", {"boost": 0.0}, {"boost": 0.0}),
    ],
)
def test_a_parameter_is_the_definition_s(name, given_, keywords):
    vectors = _vectors(3)
    np.testing.assert_allclose(_merge(name, vectors, **given_), ORACLES[name](vectors, **keywords), atol=2e-5)


def test_each_expert_keeps_the_leading_directions_that_the_budget_gives_it():
    """Experts in different coordinates do not meet, so that each shows what it keeps."""
    one, two = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    one[:4, :4], two[4:, 4:] = np.diag([8.0, 4, 2, 1]), np.diag([7.0, 5, 3, 1])
    kept = np.diag(_merge("tsv-m", [one, two], rank_budget=0.5))
    np.testing.assert_allclose(kept, [8, 4, 0, 0, 7, 5, 0, 0], atol=1e-5)
    np.testing.assert_allclose(_merge("tsv-m", [one, two]), one + two, atol=1e-5)


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "given_"), [("tsv-m", {}), ("subspace-boosting", {"boost": 1.0})])
def test_one_expert_merges_to_itself(name, given_, shape):
    (vector,) = _vectors(1, shape)
    np.testing.assert_allclose(_merge(name, [vector], **given_), vector, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "given_"), [("iso-c", {}), ("iso-cts", {}), ("subspace-boosting", {"boost": 0.0})])
def test_a_flat_spectrum_is_flat(name, given_, shape):
    sigma = np.linalg.svd(_merge(name, _vectors(3, shape), **given_), compute_uv=False)
    np.testing.assert_allclose(sigma, sigma[0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (30, 30)])
def test_iso_c_keeps_the_sum_of_the_singular_values_even_of_steep_spectra_and_low_rank(shape):
    generator = np.random.default_rng(3)
    for rank, steepest in ((30, 1e-4), (7, 1e-3), (1, 1.0)):
        sigma = np.geomspace(1, steepest, rank)
        left, right = (np.linalg.qr(generator.normal(size=(extent, rank)))[0] for extent in shape)
        vector = ((left * sigma) @ right.T).astype(np.float32)
        found = np.linalg.svd(_merge("iso-c", [vector]), compute_uv=False)
        np.testing.assert_allclose(found[:rank], sigma.mean(), rtol=1e-3)
        np.testing.assert_allclose(found[rank:], 0, atol=1e-3 * sigma.mean())


def test_iso_cts_with_common_directions_only_is_iso_c():
    vectors = _vectors(3)
    np.testing.assert_allclose(_merge("iso-cts", vectors, common=1.0), _merge("iso-c", vectors), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(sorted(SPECS)),
    st.permutations(range(4)),
    st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    st.sampled_from([(12, 8), (8, 12), (12,)]),
)
def test_the_order_of_the_experts_does_not_matter(name, order, weights, shape):
    vectors = _vectors(4, shape)
    shuffled = _merge(name, [vectors[i] for i in order], [weights[i] for i in order])
    np.testing.assert_allclose(shuffled, _merge(name, vectors, weights), atol=2e-3)


def test_turning_all_experts_turns_the_merge(name):
    """Singular values know no coordinates: Q merge(τ) R = merge(Q τ R)."""
    generator = np.random.default_rng(4)
    rows, columns = (np.linalg.qr(generator.normal(size=(n, n)))[0].astype(np.float32) for n in (12, 8))
    vectors = _vectors(3)
    turned = _merge(name, [rows @ vector @ columns for vector in vectors])
    np.testing.assert_allclose(turned, rows @ _merge(name, vectors) @ columns, atol=5e-5)


@pytest.mark.parametrize("name", sorted(set(SPECS) - {"iso-cts"}))  # which projects columns out, and not rows
def test_a_transposed_merge_is_the_merge_of_the_transposed(name):
    vectors = _vectors(3)
    transposed = _merge(name, [np.ascontiguousarray(vector.T) for vector in vectors])
    np.testing.assert_allclose(transposed, _merge(name, vectors).T, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_merge_grows_with_the_task_vectors(name, scale):
    vectors = _vectors(3)
    merged = _merge(name, [np.float32(scale) * vector for vector in vectors])
    np.testing.assert_allclose(merged / scale, _merge(name, vectors), atol=2e-5)


def test_weights_scale_the_task_vectors_and_lambda_the_merge(name):
    vectors, weights = _vectors(3), [0.5, 2.0, -1.0]
    scaled = [np.float32(w) * vector for w, vector in zip(weights, vectors, strict=True)]
    expected = 0.25 * _merge(name, scaled)
    np.testing.assert_allclose(_merge(name, vectors, weights, **{"lambda": 0.25}), expected, atol=1e-6)


def test_an_expert_of_weight_zero_adds_nothing_to_the_sum():
    for name in ("iso-c", "subspace-boosting"):
        one, two = _vectors(2)
        np.testing.assert_allclose(_merge(name, [one, two], [1.0, 0.0]), _merge(name, [one]), atol=1e-5)


# ── harmless matrices ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [*SHAPES, (4,), (), (0, 3), (3, 0), (2, 3, 4)])
def test_the_merge_of_nothing_is_the_base(name, shape):
    base = _base(shape)
    merged, counts = _merge_models(name, [base] * 3, base)
    np.testing.assert_array_equal(merged, base)
    assert not counts.any()


def test_an_expert_that_changes_nothing_leaves_the_other_s_directions_alone():
    (vector,) = _vectors(1)
    zero = np.zeros_like(vector)
    for name in ("iso-c", "subspace-boosting"):
        np.testing.assert_allclose(_merge(name, [vector, zero]), _merge(name, [vector]), atol=1e-5)
    half = _merge("tsv-m", [vector], rank_budget=0.5)  # the budget is for two, and one has nothing
    np.testing.assert_allclose(_merge("tsv-m", [vector, zero]), half, atol=1e-5)


def test_experts_of_low_rank_merge_within_their_directions(name):
    generator = np.random.default_rng(6)
    left, right = generator.normal(size=(3, 40, 2)), generator.normal(size=(3, 2, 30))
    vectors = [(b @ a).astype(np.float32) for b, a in zip(left, right, strict=True)]
    merged = _merge(name, vectors)
    columns, rows = np.concatenate(list(left), axis=1), np.concatenate(list(right), axis=0)
    assert np.linalg.matrix_rank(merged, rtol=1e-4) == 6
    for basis, matrix in ((columns, merged), (rows.T, merged.T)):
        projector = _polar(basis) @ _polar(basis).T
        np.testing.assert_allclose(projector @ matrix, matrix, atol=1e-4)


def test_equal_experts_merge_to_what_one_keeps():
    (vector,) = _vectors(1, (40, 30))
    half = _merge("tsv-m", [vector], rank_budget=0.5)
    np.testing.assert_allclose(_merge("tsv-m", [vector, vector.copy()]), half, atol=1e-5)


# ── other tensors ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_tensors_that_are_no_matrices_take_the_mean_and_boosting_the_sum(name, shape):
    base = _base(shape)
    experts = [base + vector for vector in _vectors(3, shape)]
    merged, _ = _merge_models(name, experts, base, weights=[1.0, 2.0, 0.5], **{"lambda": 0.5})
    total = sum(w * (expert - base) for w, expert in zip([1.0, 2.0, 0.5], experts, strict=True))
    share = 1 if name == "subspace-boosting" else 3
    np.testing.assert_allclose(merged, base + 0.5 * total / share, atol=1e-5)


def test_a_matrix_that_is_not_spectral_takes_the_mean_too(name):
    vectors = _vectors(3)
    share = 1 if name == "subspace-boosting" else 3
    np.testing.assert_allclose(_merge(name, vectors, spectral=False), sum(vectors) / share, atol=1e-6)


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_merge_is_added_to_the_base_and_rounded_once(name):
    base = _base().astype(ml_dtypes.bfloat16)
    experts = [(base.astype(np.float32) + vector).astype(ml_dtypes.bfloat16) for vector in _vectors(3)]
    merged, counts = _merge_models(name, experts, base, dtype=ml_dtypes.bfloat16)
    vectors = [expert.astype(np.float32) - base.astype(np.float32) for expert in experts]
    exact = base.astype(np.float32) + _merge(name, vectors)
    np.testing.assert_array_equal(merged, exact.astype(ml_dtypes.bfloat16))
    assert not counts.any()


def test_an_adapter_of_the_base_is_seen_without_the_base_s_rounding(name):
    base = np.float32(1e6) * _base()
    generator = np.random.default_rng(8)
    pairs = [
        (generator.normal(size=(12, 2)).astype(np.float32), generator.normal(size=(2, 8)).astype(np.float32))
        for _ in range(2)
    ]
    merged, _ = _merge_models(name, [Source(base, left, right) for left, right in pairs], base)
    exact = base.astype(np.float64) + _merge(name, [left @ right for left, right in pairs])
    np.testing.assert_allclose(merged, exact, rtol=1e-7, atol=1e-6)


def test_a_reordered_expert_is_read_in_its_new_order(name):
    base, (vector,) = _base(), _vectors(1)
    order = np.random.default_rng(5).permutation(12)
    shuffled = Source((base + vector)[order], rows=np.argsort(order).astype(np.int64))
    np.testing.assert_array_equal(
        _merge_models(name, [shuffled], base)[0], _merge_models(name, [base + vector], base)[0]
    )


def test_numbers_that_are_not_finite_are_counted_and_spoil_the_whole_matrix(name):
    base, experts = _base(), [_base() + vector for vector in _vectors(2)]
    experts[1][0, :3] = [np.nan, np.inf, -np.inf]
    merged, counts = _merge_models(name, experts, base)
    assert counts.tolist() == [0, 3, 0, base.size]
    assert np.isnan(merged).all()


def test_a_result_beyond_the_range_of_its_type_is_counted(name):
    base = np.zeros((12, 8), np.float32)
    merged, counts = _merge_models(name, [np.float32(1e6) * v for v in _vectors(2)], base, dtype=np.float16)
    assert counts.tolist() == [0, 0, 0, np.count_nonzero(np.isinf(merged))]
    assert counts[-1] > 40


# ── matrices ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [*SHAPES, (3000, 4), (4, 3000)])
def test_leading_triplets_are_those_of_a_full_decomposition(shape):
    (matrix,) = _vectors(1, shape)
    left, sigma, right = leading(matrix, 3)
    U, S, V = (part[..., :3] for part in _svd(matrix))
    np.testing.assert_allclose(sigma, S, rtol=1e-6)
    np.testing.assert_allclose((left * sigma) @ right.T, (U * S) @ V.T, atol=1e-5)
    np.testing.assert_allclose(left.T @ left, np.eye(len(sigma)), atol=1e-5)
    np.testing.assert_allclose(right.T @ right, np.eye(len(sigma)), atol=1e-5)


def test_directions_that_are_rounding_noise_are_left_out():
    matrix = np.diag([1.0, 2 * DEPENDENT, DEPENDENT / 2, 0])
    assert len(leading(matrix, 4)[1]) == 2
    np.testing.assert_allclose(polar_factor(matrix), np.diag([1.0, 1, 0, 0]), atol=1e-6)
    assert leading(np.diag([3.0, 2, 1]), 3, noise=1.5)[1].tolist() == pytest.approx([3, 2])


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)])
def test_a_polar_factor_is_the_nearest_orthonormal_matrix(shape):
    (matrix,) = _vectors(1, shape)
    np.testing.assert_allclose(polar_factor(matrix), _polar(matrix), atol=1e-6)


def test_a_new_spectrum_is_applied_to_the_old_directions():
    (matrix,) = _vectors(1)
    left, sigma, right = _svd(matrix)
    np.testing.assert_allclose(respectrum(matrix, np.sqrt), left @ np.diag(np.sqrt(sigma)) @ right.T, atol=1e-6)
    np.testing.assert_allclose(respectrum(matrix, lambda sigma: sigma), matrix, atol=1e-6)


# ── the specs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_registry_takes_the_specs():
    (kind,) = (kind for kind in KINDS if kind.spec is MergeMethodSpec)
    assert [spec_faults(kind, spec) for spec in METHODS] == [[]] * 4
