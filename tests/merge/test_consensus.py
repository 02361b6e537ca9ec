import numpy as np
import pytest

from minerua.merge.methods.consensus import METHODS, merge_consensus
from minerua.registry.specs import KINDS, spec_faults
from minerua.values import MergeMethodSpec, MergeTile


def _vectors(count=3, size=50, *, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=size).astype(np.float32) for _ in range(count)]


def _merge(vectors, weights=None, *, base=None, **given):
    start = np.zeros_like(vectors[0]) if base is None else base
    defaults = {parameter.name: parameter.default for parameter in METHODS[0].parameters}
    parameters = {**defaults, "weight": tuple(weights or (1.0,) * len(vectors)), **given}
    return merge_consensus(MergeTile("w", tuple(start + vector for vector in vectors), start, parameters))


def test_an_element_is_merged_where_enough_experts_have_a_say_in_it():
    vectors, agreement, selfishness = _vectors(4), 3, 0.3
    total = sum(vectors)
    for i, merged in enumerate(_merge(vectors, agreement=float(agreement), selfishness=selfishness)):
        says = sum(abs(v[i]) > selfishness * abs(sum(u[i] for u in vectors) - v[i]) for v in vectors)
        assert merged == pytest.approx(total[i] if says >= agreement else 0, abs=1e-6)


def test_without_a_need_to_agree_it_is_task_arithmetic():
    vectors = _vectors()
    np.testing.assert_allclose(
        _merge(vectors, [0.5, 1.0, -2.0], agreement=0.0), vectors[0] / 2 + vectors[1] - 2 * vectors[2], atol=1e-6
    )


def test_what_only_one_expert_changes_is_dropped():
    one, two = np.float32([3, 0, 2]), np.float32([0, 4, 2])
    assert _merge([one, two]).tolist() == [0, 0, 4]


def test_an_element_that_no_expert_changes_stays_the_base_s():
    base = np.float32([1.5, -2.0])
    np.testing.assert_array_equal(_merge([np.zeros(2, np.float32)] * 3, base=base), base)


def test_a_selfish_mask_leaves_less():
    vectors = _vectors()
    kept = [np.count_nonzero(_merge(vectors, selfishness=s)) for s in (0.0, 0.5, 2.0, 100.0)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 50
    assert kept[-1] < 5


def test_the_order_of_the_experts_does_not_matter():
    vectors = _vectors()
    np.testing.assert_allclose(_merge(vectors[::-1], [3.0, 2.0, 1.0]), _merge(vectors, [1.0, 2.0, 3.0]), atol=1e-5)


def test_lambda_scales_what_is_added_to_the_base():
    vectors, (base,) = _vectors(), _vectors(1, seed=7)
    full, half = _merge(vectors, base=base), _merge(vectors, base=base, **{"lambda": 0.5})
    np.testing.assert_allclose(half - base, (full - base) / 2, atol=1e-6)


def test_merging_piece_by_piece_is_merging_at_once():
    vectors = _vectors()
    pieces = [_merge([vector[start : start + 7] for vector in vectors]) for start in range(0, 50, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), _merge(vectors))


def test_the_result_is_float32():
    assert _merge(_vectors()).dtype == np.float32


def test_the_registry_takes_the_spec():
    (kind,) = (kind for kind in KINDS if kind.spec is MergeMethodSpec)
    assert [spec_faults(kind, spec) for spec in METHODS] == [[]]
