import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import ConfigError
from minerua.merge.methods import averages, minerua_merge_methods, pieces, sphere

from .oracle import (
    METHODS,
    SHAPES,
    assert_close,
    drawn,
    error,
    in_bfloat16,
    merge,
    mergekit,
    minerua,
)

WEIGHTS = [0.7, 0.2, 1.3, -0.4]


@pytest.fixture(params=[4, 1 << 18], ids=["small pieces", "one piece"])
def piece_elements(request, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", request.param)


# ── as mergekit ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("normalize", [True, False])
def test_linear_gives_what_mergekit_gives(shape, count, normalize):
    experts, _ = drawn(count, shape)
    asked = {"weight": WEIGHTS[:count], "normalize": normalize}
    assert_close(minerua("linear", experts, **asked), mergekit("linear", experts, **asked))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0, 1.4, -0.2])
@pytest.mark.parametrize("spread", [0.3, 0.02, 1e-4, 3.0])
def test_slerp_gives_what_mergekit_gives(shape, t, spread):
    experts, base = drawn(1, shape, spread=spread)
    assert_close(minerua("slerp", experts, base, t=t), mergekit("slerp", experts, base, t=t))


@pytest.mark.parametrize("case", ["zero base", "zero expert", "opposite", "equal"])
def test_slerp_of_vectors_without_an_arc_gives_what_mergekit_gives(case):
    (expert,), base = drawn(1, (5, 7))
    base = {"zero base": 0 * base, "zero expert": base, "opposite": -expert, "equal": expert}[case]
    expert = 0 * expert if case == "zero expert" else expert
    assert_close(minerua("slerp", [expert], base, t=0.3), mergekit("slerp", [expert], base, t=0.3))


def test_slerp_without_a_base_starts_at_zero():
    (expert,), _ = drawn(1, (5, 7))
    assert_close(minerua("slerp", [expert], t=0.3), minerua("slerp", [expert], 0 * expert, t=0.3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", [[0.7, 0.2], [1.0, 1.0], [1.0, -1.0], [0.0, 1.0]])
@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("row_wise", [True, False])
@pytest.mark.parametrize("with_base", [True, False])
def test_nuslerp_gives_what_mergekit_gives(shape, weight, flatten, row_wise, with_base, piece_elements):
    experts, base = drawn(2, shape)
    asked = {"weight": weight, "nuslerp_flatten": flatten, "nuslerp_row_wise": row_wise}
    base = base if with_base else None
    short = not flatten and (shape[:1] if row_wise else shape[-1:]) in [(), (1,), (3,)]
    dtype = "float64" if short else "float32"  # almost on a line, where mergekit's cosine is off by rounding
    theirs = mergekit("nuslerp", experts, base, dtype=dtype, **asked)
    assert_close(minerua("nuslerp", experts, base, **asked), theirs)


@pytest.mark.parametrize("length", [0.0, 1e-9, 1e-6])
def test_nuslerp_of_hardly_any_vector_gives_what_mergekit_gives(length):
    experts, _ = drawn(2, (5, 7))
    experts[0] = np.float32(length) * experts[0] / np.linalg.norm(experts[0])
    asked = {"weight": [0.7, 0.2]}
    assert_close(minerua("nuslerp", experts, **asked), mergekit("nuslerp", experts, **asked))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("asked", [{}, {"normalize_weights": False}, {"eps": 0.3}, {"eps": 0.0}])
@pytest.mark.parametrize("with_base", [True, False])
def test_multislerp_gives_what_mergekit_gives(shape, count, asked, with_base):
    experts, base = drawn(count, shape, seed=3)
    asked = {"weight": [0.7, 0.2, 1.3, 0.4][:count], **asked}
    base = base if with_base else None
    one_number = shape in [(), (1, 1)]
    if one_number and asked.get("eps") == 0:
        asked["eps"] = 1e-8  # with 0 mergekit divides zero by zero
    theirs = mergekit("multislerp", experts, base, dtype="float64" if one_number else "float32", **asked)
    assert_close(minerua("multislerp", experts, base, **asked), theirs, tolerance=2e-6 if "eps" in asked else 1e-6)


@pytest.mark.parametrize("shape", [(37,), (6, 35), (3, 4, 10)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("asked", [{}, {"max_iter": 0}, {"max_iter": 1}, {"max_iter": 40}, {"tol": 0.05}])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_karcher_gives_what_mergekit_gives(shape, count, asked, spread):
    experts, _ = drawn(count, shape, spread=spread)
    assert_close(minerua("karcher", experts, **asked), mergekit("karcher", experts, **asked))


@pytest.mark.parametrize("zeros", [1, 3])
def test_karcher_of_experts_without_a_direction_gives_what_mergekit_gives(zeros):
    experts, _ = drawn(3, (4, 6))
    experts[:zeros] = [0 * expert for expert in experts[:zeros]]
    assert_close(minerua("karcher", experts), mergekit("karcher", experts))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("filter_wise", [True, False])
@pytest.mark.parametrize("spread", [0.3, 1e-4])
def test_model_stock_gives_what_mergekit_gives(shape, count, filter_wise, spread):
    shape = (1,) if filter_wise and shape == () else shape  # mergekit takes no number without axes there
    experts, base = drawn(count, shape, spread=spread)
    asked = {"filter_wise": filter_wise}
    theirs = mergekit("model_stock", experts, base, dtype="float64" if spread < 1e-3 else "float32", **asked)
    ours = minerua("model_stock", experts, base, **asked)
    assert_close(ours, theirs, tolerance=1e-6 if ours.size > 1 else 4e-6)  # one number may be the rest of a difference


def test_model_stock_of_opposite_changes_is_the_base_as_in_mergekit():
    base = np.round(drawn(0, (4, 6))[1])
    experts = [base + np.float32(0.25), base - np.float32(0.25)]
    assert_close(minerua("model_stock", experts, base), mergekit("model_stock", experts, base))
    np.testing.assert_array_equal(minerua("model_stock", experts, base), base)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("asked", [{}, {"scale": 0.3}, {"scale": 0.0}])
def test_passthrough_gives_what_mergekit_gives(shape, asked):
    experts, _ = drawn(1, shape)
    np.testing.assert_array_equal(minerua("passthrough", experts, **asked), mergekit("passthrough", experts, **asked))


# ── in bfloat16 ──────────────────────────────────────────────────────────────────────────────────────────────────────

AVERAGES = {
    "linear": {"weight": [0.3, 0.5]},
    "nuslerp": {"weight": [0.3, 0.5]},
    "multislerp": {"weight": [0.3, 0.5]},
    "karcher": {},
    "slerp": {"t": 0.3},
    "model_stock": {},
}


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("spread", [0.3, 0.01])
def test_in_bfloat16_the_error_is_at_most_mergekit_s(name, spread):
    experts, base = drawn(1 if name == "slerp" else 2, (40, 50), spread=spread)
    *experts, base = in_bfloat16([*experts, base])
    base = base if name in ("slerp", "model_stock") else None
    true = mergekit(name, experts, base, dtype="float64", **AVERAGES[name])
    ours = minerua(name, experts, base, dtype="bfloat16", **AVERAGES[name])
    theirs = mergekit(name, experts, base, dtype="bfloat16", **AVERAGES[name])
    assert error(ours, true) <= error(theirs, true) * (1 + 1e-6)
    np.testing.assert_allclose(ours, true, rtol=2**-8, atol=1e-6)  # half a unit in the last place: one rounding


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

WITHOUT_BASE = {"linear": {"weight": 1.0}, "multislerp": {"weight": 1.0}, "karcher": {}}


@pytest.mark.parametrize("name", WITHOUT_BASE)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_expert_merges_to_itself(name, shape):
    experts, _ = drawn(1, shape)
    np.testing.assert_array_equal(minerua(name, experts, **WITHOUT_BASE[name]), experts[0])


@pytest.mark.parametrize("name", [*WITHOUT_BASE, "nuslerp", "model-stock"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_experts_merge_to_themselves(name, shape):
    experts, base = drawn(1, shape)
    asked = {"weight": 0.7} if name == "nuslerp" else WITHOUT_BASE.get(name, {})
    merged = minerua(name, experts * 2, base if name == "model-stock" else None, **asked)
    assert_close(merged, np.float64(experts[0]))


@pytest.mark.parametrize("name", [*WITHOUT_BASE, "model-stock"])
def test_the_order_of_the_experts_does_not_matter(name):
    experts, base = drawn(4, (6, 35))
    base = base if name == "model-stock" else None
    asked = {"weight": [1.0, 2.0, 0.5, 0.1]} if "weight" in WITHOUT_BASE.get(name, {}) else {}
    turned = {key: value[::-1] for key, value in asked.items()}
    assert_close(minerua(name, experts, base, **asked), minerua(name, experts[::-1], base, **turned))


@pytest.mark.parametrize("name", ["linear", "multislerp"])
def test_an_expert_of_weight_zero_does_not_count(name):
    experts, _ = drawn(3, (6, 35))
    assert_close(minerua(name, experts, weight=[1.0, 0.5, 0.0]), minerua(name, experts[:2], weight=[1.0, 0.5]))


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_an_arc_starts_at_one_model_and_ends_at_the_other(name):
    experts, _ = drawn(2, (6, 35))

    def at(t):
        if name == "slerp":
            return minerua(name, experts[1:], experts[0], t=t)
        return minerua(name, experts, weight=[1 - t, t])

    assert_close(at(0.0), np.float64(experts[0]))
    assert_close(at(1.0), np.float64(experts[1]))


@given(t=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_a_point_of_an_arc_between_vectors_of_one_length_has_their_length(t, seed):
    vectors = np.random.default_rng(seed).normal(size=(2, 9))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    coefficients = sphere.nuslerp((vectors @ vectors.T)[None], t)[0]
    assert np.linalg.norm(coefficients @ vectors) == pytest.approx(1)


@given(seed=st.integers(0, 1000), count=st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_the_karcher_mean_has_the_mean_length_and_no_pull_is_left(seed, count):
    vectors = np.random.default_rng(seed).normal(1, 1, size=(count, 9))
    coefficients = sphere.karcher(vectors @ vectors.T, max_iter=200, tol=1e-9)
    merged, lengths = coefficients @ vectors, np.linalg.norm(vectors, axis=1)
    assert np.linalg.norm(merged) == pytest.approx(lengths.mean())
    mean, units = merged / np.linalg.norm(merged), vectors / lengths[:, None]
    angles = np.arccos(np.clip(units @ mean, -1, 1))
    pull = (angles / np.sin(angles)) @ (units - (units @ mean)[:, None] * mean)
    np.testing.assert_allclose(pull, 0, atol=1e-6)


def test_every_method_takes_experts_without_a_base_as_task_vectors():
    experts, base = drawn(3, (6, 35))
    deltas = [expert - base for expert in experts]
    for name, asked in {"multislerp": {"weight": 1.0}, "model-stock": {}}.items():
        assert_close(base + minerua(name, deltas, **asked), minerua(name, experts, base, **asked), tolerance=1e-5)


def test_models_that_are_not_finite_are_counted_and_warn_of_nothing():
    for spec in minerua_merge_methods():
        if getattr(averages, spec.name.replace("-", "_"), None) is None:
            continue
        experts, base = drawn(spec.most or 3, (6, 35))
        experts[0][2, 3:5] = np.nan, np.inf
        base = None if spec.base == "ignored" else base
        asked = {p.name: 0.4 for p in spec.parameters if p.default is None}
        _, counts = merge(spec.name, experts, base, **asked)
        assert counts[:-1] == [2] + [0] * len(experts)
        assert counts[-1] > 0


@pytest.mark.parametrize("row_wise", [True, False])
def test_nuslerp_by_rows_and_columns_counts_what_is_not_finite(row_wise, piece_elements):
    experts, base = drawn(2, (6, 35))
    base[1, 1] = np.inf
    asked = {"weight": 1.0, "nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
    merged, counts = merge("nuslerp", experts, base, **asked)
    assert counts == [0, 0, 1, 6 if row_wise else 35]
    assert np.isfinite(merged).sum() == 210 - counts[-1]


def test_rows_of_no_length_merge_to_nothing():
    experts, base = drawn(2, (3, 0))
    for name, asked in {
        "nuslerp": {"weight": 1.0, "nuslerp_flatten": False},
        "model-stock": {"filter_wise": True},
    }.items():
        assert minerua(name, experts, base, **asked).shape == (3, 0)
    assert minerua("nuslerp", experts, base, weight=1.0, nuslerp_flatten=False, nuslerp_row_wise=True).shape == (3, 0)


# ── where mergekit and minerua differ ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(5))
def test_the_karcher_mean_leaves_out_what_is_opposite_to_it(seed):
    (expert,), _ = drawn(1, (50, 70), seed=seed)
    models = [expert, np.float32(0.3) * expert, -np.float32(1.1) * expert]
    assert_close(minerua("karcher", models), np.float64(expert) * 0.8)  # the mean length is 2.4 ÷ 3
    assert error(mergekit("karcher", models), np.float64(expert) * 0.8) > 0.3  # divided by the sine of a half turn


def test_without_eps_experts_on_a_line_have_a_mean_direction_where_mergekit_has_none():
    (expert,), _ = drawn(1, ())
    asked = {"weight": 1.0, "eps": 0.0}
    assert np.isnan(mergekit("multislerp", [expert, expert], **asked))
    np.testing.assert_array_equal(minerua("multislerp", [expert, expert], **asked), expert)


def test_three_experts_that_cancel_out_have_no_mean_direction():
    first, second = drawn(2, (5, 7))[0]
    third = -(first / np.linalg.norm(first) + second / np.linalg.norm(second))
    weight = [1.0, 1.0, float(np.linalg.norm(third))]
    with pytest.raises(ConfigError, match=r"tensor 'w' the 3 experts .* cancel out, so they have no mean direction"):
        minerua("multislerp", [first, second, third], weight=weight)
    theirs = [mergekit("multislerp", [first, second, third], weight=weight, dtype=d) for d in ("float32", "float64")]
    assert error(*theirs) > 0.1  # made of rounding


def test_a_tensor_that_no_expert_changed_stays_the_base_s():
    (base,), _ = drawn(1, (5, 7))
    np.testing.assert_array_equal(minerua("multislerp", [base, base, base], base=base, weight=1.0), base)


def test_two_opposite_experts_take_their_weighted_sum():
    (expert,), _ = drawn(1, (5, 7))
    opposite = [expert, -expert]
    assert_close(minerua("multislerp", opposite, weight=1.0) + 1, mergekit("multislerp", opposite, weight=1.0) + 1)


@pytest.mark.parametrize(("name", "normalize"), [("linear", "normalize"), ("multislerp", "normalize_weights")])
def test_weights_that_sum_to_zero_are_refused(name, normalize):
    experts, _ = drawn(2, (5, 7))
    with pytest.raises(ConfigError, match="tensor 'w' cannot be averaged") as caught:
        minerua(name, experts, weight=[1.0, -1.0])
    assert "weights [1.0, -1.0] sum to zero and cannot be normalised" in str(caught.value)
    assert np.isfinite(minerua(name, experts, weight=[1.0, -1.0], **{normalize: False})).all()
    assert not np.isfinite(mergekit(name, experts, weight=[1.0, -1.0])).all()


def test_weights_that_sum_to_zero_are_told_before_anything_is_merged():
    check = METHODS["linear"].check
    assert check({"normalize": True, "weight": (1.0, 1.0)}) is None
    assert check({"normalize": False, "weight": (1.0, -1.0)}) is None
    assert check({"normalize": True, "weight": (1.0, -1.0)}).endswith("set other weights, or switch that off")
    assert "sum to infinity and cannot be normalised; set smaller" in check({"normalize": True, "weight": (1e308,) * 2})


def test_a_number_of_steps_that_is_not_whole_is_told():
    assert METHODS["karcher"].check({"max_iter": 2.0}) is None
    assert METHODS["karcher"].check({"max_iter": 2.5}) == "max_iter is 2.5; expected a whole number"


def test_with_paper_semantics_short_changes_have_a_cosine_too():
    direction = drawn(1, (6, 35))[0][0]
    base = np.zeros_like(direction)
    experts = [direction * np.float32(1e-5), direction * np.float32(2e-5)]
    mean = np.mean(np.float64(experts), axis=0)
    assert_close(minerua("model-stock", experts, base, semantics="paper"), mean)
    assert error(minerua("model-stock", experts, base), mean) > 0.1 * np.abs(mean).mean()
