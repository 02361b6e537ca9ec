import numpy as np
import pytest

from minerua.merge.methods import pieces

from .oracle import (
    METHODS,
    SHAPES,
    assert_close,
    drawn,
    error,
    in_bfloat16,
    merge,
    mergekit,
    mergekit_methods,
    minerua,
)


@pytest.fixture(params=[40, 1 << 18], ids=["small pieces", "one piece"])
def piece_elements(request, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", request.param)


# ── as mergekit ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0.0, 0.01, 0.2, 5.0])
def test_nearswap_gives_what_mergekit_gives(shape, t):
    experts, base = drawn(1, shape)
    assert_close(minerua("nearswap", experts, base, t=t), mergekit("nearswap", experts, base, t=t))


def _with_unchanged(count, shape, *, seed=0):
    """Returns experts each of which has left about half of the base as it is."""
    experts, base = drawn(count, shape, seed=seed)
    generator = np.random.default_rng(seed + 100)
    return [np.where(generator.random(shape) < 0.5, base, expert) for expert in experts], base


@pytest.mark.parametrize("name", ["ram", "ramplus_tl"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_ram_gives_what_mergekit_gives(name, shape, count, epsilon, piece_elements):
    experts, base = _with_unchanged(count, shape)
    assert_close(minerua(name, experts, base, epsilon=epsilon), mergekit(name, experts, base, epsilon=epsilon))


@pytest.mark.parametrize("r", [0.1, 1.0, -0.5])
@pytest.mark.parametrize("alpha", [0.2, 0.0, 5.0])
def test_ramplus_raises_what_one_expert_alone_has_changed_as_mergekit_does(r, alpha):
    experts, base = _with_unchanged(3, (6, 35))
    asked = {"r": r, "alpha": alpha}
    assert_close(minerua("ramplus_tl", experts, base, **asked), mergekit("ramplus_tl", experts, base, **asked))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("select_topk", [1.0, 0.9, 0.3, 0.001, 0.0])
def test_sce_gives_what_mergekit_gives(shape, count, select_topk, piece_elements):
    experts, base = _with_unchanged(count, shape, seed=2)
    asked = {"select_topk": select_topk}
    ours, theirs = minerua("sce", experts, base, **asked), mergekit("sce", experts, base, **asked)
    np.testing.assert_array_equal(ours != base, theirs != base)
    assert_close(ours, theirs)


@pytest.mark.parametrize("select_topk", [1.0, 0.3])
def test_sce_of_small_changes_weighs_all_experts_alike_as_mergekit_does(select_topk):
    experts, base = drawn(3, (6, 35), spread=1e-4)
    base = np.zeros_like(base)
    experts = [base + np.float32(1e-4 * k) * e for k, e in enumerate(experts, start=1)]
    asked = {"select_topk": select_topk}
    assert_close(minerua("sce", experts, base, **asked), mergekit("sce", experts, base, **asked))


def _far_from_the_fence(shape, seed):
    """Returns a model whose elements are not so close to the limit that mergekit's float32 would move them across."""
    (expert,), base = drawn(1, shape, seed=seed, spread=1.0)
    return expert, base


@pytest.mark.parametrize("shape", [(37,), (6, 35), (3, 4, 10), (40, 50)])
@pytest.mark.parametrize("seed", range(5))
def test_arcee_fusion_gives_what_mergekit_gives(shape, seed, piece_elements):
    expert, base = _far_from_the_fence(shape, seed)
    ours, theirs = minerua("arcee_fusion", [expert], base), mergekit("arcee_fusion", [expert], base)
    np.testing.assert_array_equal(ours != base, theirs != base)
    assert (ours != base).any()
    assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(1, 1), ()])
def test_arcee_fusion_of_one_number_gives_what_mergekit_gives(shape):
    (expert,), base = drawn(1, shape)
    theirs = mergekit("arcee_fusion", [expert], base, dtype="float64")
    assert_close(minerua("arcee_fusion", [expert], base), theirs)


# ── in bfloat16 ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "count", "asked"),
    [("nearswap", 1, {"t": 0.1}), ("ram", 3, {}), ("ramplus_tl", 3, {}), ("sce", 3, {}), ("arcee_fusion", 1, {})],
)
def test_in_bfloat16_the_error_is_at_most_mergekit_s(name, count, asked):
    experts, base = drawn(count, (40, 50), seed=4)
    *experts, base = in_bfloat16([*experts, base])
    true = mergekit(name, experts, base, dtype="float64", **asked)
    ours = minerua(name, experts, base, dtype="bfloat16", **asked)
    assert error(ours, true) <= error(mergekit(name, experts, base, dtype="bfloat16", **asked), true)


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "asked"), [("ram", {}), ("ramplus_tl", {}), ("sce", {}), ("nearswap", {"t": 1e3})])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_expert_merges_to_itself(name, asked, shape):
    experts, base = drawn(1, shape)
    assert_close(minerua(name, experts, base, **asked), np.float64(experts[0]), tolerance=2e-7)


@pytest.mark.parametrize("name", ["ram", "ramplus_tl", "sce"])
def test_equal_experts_merge_to_themselves(name):
    experts, base = drawn(1, (6, 35))
    assert_close(minerua(name, experts * 3, base), np.float64(experts[0]), tolerance=3e-7)


@pytest.mark.parametrize("name", ["nearswap", "ram", "ramplus_tl", "sce", "arcee_fusion"])
def test_experts_that_change_nothing_leave_the_base(name):
    _, base = drawn(0, (6, 35))
    count = METHODS[name.replace("_", "-")].most or 3
    asked = {"t": 0.1} if name == "nearswap" else {}
    np.testing.assert_array_equal(minerua(name, [base] * count, base, **asked), base)


@pytest.mark.parametrize(
    ("name", "asked"), [("ram", {}), ("ramplus_tl", {}), ("sce", {}), ("sce", {"select_topk": 0.3})]
)
def test_the_order_of_the_experts_does_not_matter(name, asked):
    experts, base = _with_unchanged(4, (6, 35))
    assert_close(minerua(name, experts, base, **asked), minerua(name, experts[::-1], base, **asked))


@pytest.mark.parametrize("name", ["nearswap", "ram", "ramplus_tl", "sce"])
def test_task_vectors_without_a_base_merge_as_experts_with_one_do(name):
    experts, base = drawn(METHODS[name.replace("_", "-")].most or 3, (6, 35))
    asked = {"t": 0.1} if name == "nearswap" else {}
    deltas = [expert - base for expert in experts]
    assert_close(base + minerua(name, deltas, **asked), minerua(name, experts, base, **asked))


@pytest.mark.parametrize(
    ("name", "asked"), [("ramplus_tl", {}), ("sce", {}), ("sce", {"select_topk": 0.3}), ("arcee_fusion", {})]
)
def test_models_that_are_not_finite_are_counted_and_warn_of_nothing(name, asked, piece_elements):
    experts, base = drawn(METHODS[name.replace("_", "-")].most or 2, (6, 35))
    experts[-1][2, 3:5] = np.nan, np.inf
    counts = merge(name, experts, base, **asked)[1]
    assert counts[:-1] == [0] * (len(experts) - 1) + [2, 0]


@pytest.mark.parametrize("name", ["ramplus_tl", "sce", "arcee_fusion"])
def test_a_tensor_without_elements_merges_to_nothing(name):
    experts, base = drawn(METHODS[name.replace("_", "-")].most or 2, (3, 0))
    assert minerua(name, experts, base).shape == (3, 0)


# ── with the papers' semantics ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("select_topk", [1.0, 0.3])
def test_the_paper_s_sce_weighs_small_changes_too(select_topk):
    experts, base = drawn(3, (6, 35))
    experts = [base + np.float32(k) * (e - base) for k, e in enumerate(experts, start=1)]
    small = [np.float32(1e-4) * (e - base) for e in experts]
    expected = 1e-4 * (minerua("sce", experts, base, select_topk=select_topk) - base)
    zero = np.zeros_like(base)
    assert_close(minerua("sce", small, zero, select_topk=select_topk, semantics="paper"), expected, tolerance=1e-5)
    assert error(minerua("sce", small, zero, select_topk=select_topk), expected) > 0.1 * np.abs(expected).mean()


# ── where mergekit and minerua differ ────────────────────────────────────────────────────────────────────────────────


def test_arcee_fusion_looks_at_every_number_where_mergekit_draws_a_sample(monkeypatch):
    mergekit_methods()
    import torch
    from mergekit.merge_methods import arcee_fusion

    expert, base = _far_from_the_fence((40, 50), 1)
    exact = mergekit("arcee_fusion", [expert], base)
    monkeypatch.setattr(arcee_fusion, "_QUANTILE_SAMPLE_SIZE", 100)
    torch.manual_seed(0)
    sampled = [mergekit("arcee_fusion", [expert], base) for _ in range(2)]
    assert (sampled[0] != sampled[1]).any()
    assert_close(minerua("arcee_fusion", [expert], base), exact)


def test_arcee_fusion_of_close_models_finds_divergences_that_mergekit_loses_in_rounding():
    (expert,), base = drawn(1, (40, 50), spread=1e-3)
    exact = mergekit("arcee_fusion", [expert], base, dtype="float64") != base
    assert ((minerua("arcee_fusion", [expert], base) != base) == exact).all()
    assert ((mergekit("arcee_fusion", [expert], base) != base) != exact).any()


@pytest.mark.parametrize("elements", [1, 4, 20])
def test_of_equal_variances_sce_selects_the_first(elements, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", elements)
    base = np.zeros((4, 5), np.float32)
    experts = [np.ones_like(base), 3 * np.ones_like(base)]
    merged = minerua("sce", experts, base, select_topk=0.3).reshape(-1)
    np.testing.assert_allclose(merged, [2.8] * 6 + [0] * 14, rtol=1e-6)  # (1 · 1 + 9 · 3) ÷ 10


@pytest.mark.parametrize("elements", [1, 4, 20])
def test_the_squares_that_sce_weighs_by_are_those_of_what_is_selected(elements, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", elements)
    base = np.zeros(6, np.float32)
    experts = [np.float32([1, 1, 5, 1, 9, 9]), np.float32([3, 3, 7, 3, 9, 9])]  # all but the last two vary alike
    merged = minerua("sce", experts, base, select_topk=0.5)
    first, second = 1 + 1, 9 + 9
    assert merged[2:].tolist() == [0] * 4
    np.testing.assert_allclose(merged[:2], (first * 1 + second * 3) / (first + second), rtol=1e-6)


def test_an_expert_with_hardly_any_share_counts_in_full_where_sce_has_nobody_else():
    base = np.zeros(2, np.float32)
    experts = [np.float32([1e3, 1e3]), np.float32([-1e-1, -1e-1])]
    experts[0][1] = 0
    assert minerua("sce", experts, base)[1] == pytest.approx(-0.1)
    assert abs(mergekit("sce", experts, base)[1]) < 0.01


def test_ramplus_has_no_ratio_where_there_is_nothing_to_count():
    experts, base = drawn(2, (6, 35))
    experts = [experts[0], base]
    asked = {"epsilon": 0.0}
    assert np.isnan(mergekit("ramplus_tl", experts, base, **asked)).any()
    assert_close(minerua("ramplus_tl", experts, base, **asked), np.float64(experts[0]))
