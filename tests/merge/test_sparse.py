import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import ConfigError
from minerua.kernels import reference_passes
from minerua.kernels.sources import Mask

from .oracle import (
    METHODS,
    SHAPES,
    assert_close,
    drawn,
    error,
    filled,
    in_bfloat16,
    merge,
    mergekit,
    mergekit_methods,
    minerua,
    tensors_of,
)

WEIGHTS = [0.7, 0.2, 1.3, -0.4]
DENSITIES = [0.5, 0.2, 1.0, 0.83]
FLAGS = [(True, True, 0.8), (True, False, 1.0), (False, True, -0.3), (False, False, 1.0)]
"""Values of `normalize`, `rescale` and `lambda` that tests go through."""

EXACT = ["task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties"]
RANDOM = {"dare_linear": {}, "dare_ties": {}, "della_linear": {"epsilon": 0.1}, "della": {"epsilon": 0.1}}
ALL = [*EXACT, *RANDOM]
ELECTED = ["ties", "dare_ties", "breadcrumbs_ties", "della"]


@pytest.fixture
def our_masks(monkeypatch):
    """Makes mergekit's random masks ours: sets what its next ones are, and keeps the probabilities that it asks for."""
    mergekit_methods()
    import torch

    class Injected:
        def __init__(self):
            self.masks, self.asked = [], []

    injected = Injected()

    def bernoulli(probabilities):
        injected.asked.append(probabilities.double().numpy())
        mask = injected.masks.pop(0)
        return torch.from_numpy(mask).reshape(probabilities.shape).to(probabilities.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return injected


def _kept(expert, base, mask):
    return reference_passes.kept_elements(np.float32(expert - base).reshape(-1), mask)


# ── as mergekit ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("density", ["mixed", 0.01, 1.0, 0.0])
def test_a_method_without_chance_gives_what_mergekit_gives(name, shape, count, density):
    experts, base = drawn(count, shape, seed=5)
    asked = {"weight": WEIGHTS[:count], "density": DENSITIES[:count] if density == "mixed" else [density] * count}
    for normalize, rescale, lambda_ in FLAGS:
        asked |= {"normalize": normalize, "rescale": rescale, "lambda_": lambda_}
        ours, theirs = minerua(name, experts, base, **asked), mergekit(name, experts, base, **asked)
        np.testing.assert_array_equal(ours != base, theirs != base)
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.2, 0.9, [0.3, 0.0, 0.02]])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
def test_breadcrumbs_drop_the_outliers_that_mergekit_drops(name, gamma, density):
    experts, base = drawn(3, (6, 35), seed=6)
    asked = {"weight": 1.0, "density": density, "gamma": gamma, "rescale": True}
    ours, theirs = minerua(name, experts, base, **asked), mergekit(name, experts, base, **asked)
    np.testing.assert_array_equal(ours != base, theirs != base)
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("shape", [(37,), (6, 35)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_with_our_masks_mergekit_gives_what_we_give(name, shape, count, normalize, rescale, our_masks):
    experts, base = drawn(count, shape, seed=7)
    densities, epsilon = DENSITIES[:count], RANDOM[name].get("epsilon", 0.0)
    masks = [
        Mask(keep=density, spread=epsilon, columns=shape[-1], model=k, tensor=3, seed=11)
        for k, density in enumerate(densities)
        if density < 1
    ]
    models = [k for k, density in enumerate(densities) if density < 1]
    kept = [_kept(experts[k], base, mask) for k, mask in zip(models, masks, strict=True)]
    our_masks.masks = [mask for mask, _ in kept]
    asked = {
        "weight": WEIGHTS[:count],
        "density": densities,
        "normalize": normalize,
        "rescale": rescale,
        **RANDOM[name],
    }
    theirs = mergekit(name, experts, base, **asked)
    ours = minerua(name, experts, base, seed=11, number=3, **asked)
    np.testing.assert_array_equal(ours != base, theirs != base)
    assert_close(ours, theirs)
    for (_, probabilities), theirs_asked in zip(kept, our_masks.asked, strict=True):
        np.testing.assert_allclose(probabilities, theirs_asked.reshape(-1), atol=1e-6)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("density", [0.3, 0.5, 0.8])
def test_random_methods_keep_their_density_and_the_l1_norm(name, density):
    experts, base = drawn(1, (300, 400), seed=8)
    asked = {"weight": 1.0, "density": density, **RANDOM[name]}
    delta = np.float64(experts[0]) - base
    kept = minerua(name, experts, base, **asked) - base
    assert np.mean(kept != 0) == pytest.approx(density, rel=0.01)
    assert np.abs(kept).sum() == pytest.approx(np.abs(delta).sum(), rel=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_int8_mask_changes_nothing_as_in_mergekit(name):
    experts, base = drawn(3, (6, 35))
    asked = {"weight": [0.7, 0.2, 1.3], "density": 0.5}
    theirs = mergekit(name, experts, base, int8_mask=True, **asked)
    np.testing.assert_array_equal(theirs, mergekit(name, experts, base, **asked))
    assert_close(minerua(name, experts, base, int8_mask=True, **asked), theirs)


@pytest.mark.parametrize("name", ALL)
def test_without_experts_the_base_is_left_as_in_mergekit(name):
    _, base = drawn(0, (6, 35))
    np.testing.assert_array_equal(minerua(name, [], base, weight=[]), base)
    np.testing.assert_array_equal(mergekit(name, [], base), base)
    base[1, 2] = np.nan
    assert merge(name, [], base, weight=[])[1] == [1, 1]


# ── in bfloat16 ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _true(name, experts, base, kept, weights, *, normalize):
    """The formula in float64, with the elements that are kept given."""
    parts = [np.where(k, np.float64(e) - np.float64(base), 0) for e, k in zip(experts, kept, strict=True)]
    whole = [np.abs(np.float64(e) - np.float64(base)).sum() for e in experts]
    ratios = [w / np.abs(p).sum() if name in RANDOM else 1 for w, p in zip(whole, parts, strict=True)]
    weighted = np.stack([w * r * p for w, r, p in zip(weights, ratios, parts, strict=True)])
    agrees = np.ones(weighted.shape, bool)
    if name in ELECTED:
        agrees = np.sign(weighted) == np.where(weighted.sum(axis=0) >= 0, 1, -1)
    shares = np.array(weights).reshape(-1, *[1] * np.ndim(base)) * agrees
    divisor = np.where(shares.sum(axis=0) == 0, 1, shares.sum(axis=0)) if normalize else 1
    return np.float64(base) + np.where(agrees, weighted, 0).sum(axis=0) / divisor


@pytest.mark.parametrize("name", ALL)
def test_in_bfloat16_the_error_is_at_most_mergekit_s(name, our_masks):
    *experts, base = in_bfloat16([*drawn(3, (40, 50), seed=9)[0], drawn(3, (40, 50), seed=9)[1]])
    weights, density = [0.7, 0.2, 1.3], 1.0 if name in EXACT else 0.6
    mask = Mask(keep=density, spread=RANDOM.get(name, {}).get("epsilon", 0.0), columns=50, seed=4)
    kept = [np.ones(base.shape, bool)] * 3
    if name in RANDOM:
        terms = [expert.astype(np.float32) - base.astype(np.float32) for expert in experts]
        kept = [
            reference_passes.kept_elements(t.reshape(-1), mask._replace(model=k))[0].reshape(base.shape)
            for k, t in enumerate(terms)
        ]
        our_masks.masks = [k.reshape(-1) for k in kept]
    asked = {"weight": weights, "density": density, **RANDOM.get(name, {})}
    normalize = next(p.default for p in METHODS[name.replace("_", "-")].parameters if p.name == "normalize")
    true = _true(name, experts, base, kept, weights, normalize=normalize)
    ours = minerua(name, experts, base, dtype="bfloat16", seed=4, **asked)
    theirs = mergekit(name, experts, base, dtype="bfloat16", **asked)
    assert error(ours, true) <= error(theirs, true)
    beyond_one_rounding = np.abs(ours - true) > 2**-8 * np.abs(true) + 1e-6
    assert beyond_one_rounding.mean() < 0.005  # elections of which float32 cannot tell who won


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_expert_of_full_density_merges_to_itself(name, shape):
    experts, base = drawn(1, shape)
    assert_close(minerua(name, experts, base, weight=1.0), np.float64(experts[0]), tolerance=2e-7)


@pytest.mark.parametrize("name", ALL)
def test_an_expert_of_weight_zero_does_not_count(name):
    experts, base = drawn(3, (6, 35))
    asked = {"density": 0.6, **RANDOM.get(name, {})}
    with_it = minerua(name, experts, base, weight=[1.0, 0.5, 0.0], **asked)
    assert_close(with_it, minerua(name, experts[:2], base, weight=[1.0, 0.5], **asked))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("semantics", ["mergekit", "paper"])
def test_the_order_of_the_experts_does_not_matter(name, semantics):
    experts, base = drawn(4, (6, 35))
    asked = {"weight": [1.0, 2.0, 0.5, 0.1], "density": [0.5, 0.2, 0.9, 0.7]}
    turned = {key: value[::-1] for key, value in asked.items()}
    one, other = (_prepared(name, e, base, semantics, a) for e, a in ((experts, asked), (experts[::-1], turned)))
    assert_close(one, other)


@pytest.mark.parametrize("name", ALL)
def test_task_vectors_without_a_base_merge_as_experts_with_one_do(name):
    experts, base = drawn(3, (6, 35))
    asked = {"weight": 0.5, "density": 0.6, **RANDOM.get(name, {})}
    deltas = [expert - base for expert in experts]
    assert_close(base + minerua(name, deltas, **asked), minerua(name, experts, base, **asked))


@pytest.mark.parametrize("name", ALL)
def test_models_that_are_not_finite_are_counted_and_warn_of_nothing(name):
    experts, base = drawn(2, (6, 35))
    experts[1][2, 3:5] = np.nan, np.inf
    counts = merge(name, experts, base, weight=1.0, density=0.5)[1]
    assert counts[:3] == [0, 2, 0]


@given(density=st.floats(0.001, 1), count=st.integers(1, 200), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_ties_keeps_the_part_that_was_asked_for_and_the_largest(density, count, seed):
    (expert,), base = drawn(1, (count,), seed=seed)
    kept = minerua("ties", [expert], base, weight=1.0, density=density) != base
    delta = np.abs(expert - base)
    assert kept.sum() == max(1, int(density * count))
    assert delta[kept].min() >= delta[~kept].max(initial=0)


# ── with the papers' semantics ───────────────────────────────────────────────────────────────────────────────────────


def _prepared(name, experts, base, semantics, asked):
    """Merges a tensor that is the whole model."""
    spec = METHODS[name.replace("_", "-")]
    tensors = tensors_of(experts, base, filled(spec, len(experts), asked), semantics=semantics)
    prepared = spec.prepare([tensors]) if spec.prepare else None
    return minerua(name, experts, base, semantics=semantics, prepared=prepared, **asked)


def _ties_model(tensors, semantics="paper", **asked):
    """Merges a model of several tensors, each `(experts, base)`, with TIES."""
    spec = METHODS["ties"]
    given = [
        tensors_of(experts, base, filled(spec, len(experts), asked), semantics=semantics, number=number)
        for number, (experts, base) in enumerate(tensors, start=7)
    ]
    prepared = spec.prepare(given)
    return [
        minerua("ties", experts, base, semantics=semantics, number=number, prepared=prepared, **asked)
        for number, (experts, base) in enumerate(tensors, start=7)
    ]


def test_ties_prepares_nothing_for_mergekit_s_semantics():
    experts, base = drawn(2, (6, 35))
    spec = METHODS["ties"]
    assert spec.prepare([tensors_of(experts, base, filled(spec, 2, {"weight": 1.0}))]) is None


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0, 0.0])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, 0.2, 1.3]])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_paper_s_ties_trims_the_whole_model_elects_without_weights_and_divides_by_the_count(
    density, weights, normalize
):
    parts = [drawn(3, shape, seed=n, spread=0.1 * (1 + n)) for n, shape in enumerate([(6, 35), (37,), (3, 4, 10)])]
    deltas = np.stack([np.concatenate([(e[k] - b).reshape(-1) for e, b in parts]) for k in range(3)])
    bounds = np.sort(np.abs(deltas), axis=1)[:, ::-1][:, max(int(density * deltas.shape[1]), 1) - 1]
    trimmed = np.where((np.abs(deltas) >= bounds[:, None]) & (density > 0), deltas, 0).astype(np.float64)
    agrees = np.sign(trimmed) == np.where(trimmed.sum(axis=0) >= 0, 1, -1)
    total = (trimmed * agrees * np.array(weights)[:, None]).sum(axis=0)
    expected = total / np.maximum(agrees.sum(axis=0), 1) if normalize else total
    merged = _ties_model(parts, weight=weights, density=density, normalize=normalize)
    found = np.concatenate([(m - b).reshape(-1) for m, (_, b) in zip(merged, parts, strict=True)])
    np.testing.assert_array_equal(found != 0, expected != 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_equal_magnitudes_at_the_paper_s_threshold_go_to_the_first_tensors():
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    parts = [([one], zero), ([-one], zero), ([3 * one[:1]], zero[:1])]
    merged = _ties_model(parts, weight=1.0, density=6.5 / 9)
    assert [m.tolist() for m in merged] == [[1, 1, 1, 1], [-1, 0, 0, 0], [3]]


def test_the_paper_s_ties_refuses_densities_that_differ_between_tensors():
    experts, base = drawn(2, (6, 35))
    spec = METHODS["ties"]
    tensors = [
        tensors_of(experts, base, filled(spec, 2, {"weight": 1.0, "density": d}), semantics="paper") for d in (0.5, 0.2)
    ]
    with pytest.raises(ConfigError, match=r"densities differ between tensors: \[0.5, 0.5\] and \[0.2, 0.2\]"):
        spec.prepare(tensors)


@pytest.mark.parametrize("name", RANDOM)
def test_the_papers_random_methods_divide_by_the_probability_of_keeping(name):
    experts, base = drawn(1, (6, 35))
    epsilon = RANDOM[name].get("epsilon", 0.0)
    kept, probability = _kept(experts[0], base, Mask(keep=0.6, spread=epsilon, columns=35, tensor=2, seed=5))
    delta = (experts[0] - base).reshape(-1)
    expected = base.reshape(-1) + np.where(kept, delta / probability, 0)
    asked = {"weight": 1.0, "density": 0.6, "seed": 5, "number": 2, "semantics": "paper", **RANDOM[name]}
    np.testing.assert_allclose(minerua(name, experts, base, **asked).reshape(-1), expected, atol=1e-6)
    plain = base.reshape(-1) + np.where(kept, delta, 0)
    np.testing.assert_allclose(minerua(name, experts, base, rescale=False, **asked).reshape(-1), plain, atol=1e-6)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_the_papers_random_methods_are_right_on_average(name):
    (expert,), base = drawn(1, (5, 8))
    asked = {"weight": 1.0, "density": 0.6, "semantics": "paper", **RANDOM[name]}
    mean = np.mean([minerua(name, [expert], base, seed=seed, **asked) for seed in range(500)], axis=0)
    np.testing.assert_allclose(mean, expert, atol=0.2 * np.abs(expert - base).max())


@pytest.mark.parametrize("name", ELECTED)
def test_the_papers_elect_without_weights(name):
    base = np.zeros(3, np.float32)
    experts = [np.float32([1, 1, 1]), np.float32([-2, -2, -2])]
    asked = {"weight": [10.0, 1.0], "normalize": True}
    assert minerua(name, experts, base, **asked).tolist() == [1, 1, 1]
    assert _prepared(name, experts, base, "paper", asked).tolist() == [-2, -2, -2]


# ── where mergekit and minerua differ ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_of_equal_magnitudes_the_first_are_kept(name):
    base = np.zeros((4, 5), np.float32)
    expert = np.where(np.arange(20) % 2, 1, -1).astype(np.float32).reshape(4, 5)
    asked = {"weight": 1.0, "density": 0.3, **({} if name == "ties" else {"gamma": 0.1})}
    dropped = 0 if name == "ties" else 2
    kept = minerua(name, [expert], base, **asked).reshape(-1) != 0
    assert np.flatnonzero(kept).tolist() == list(range(dropped, dropped + 6))


@pytest.mark.parametrize("name", RANDOM)
def test_random_masks_depend_on_seed_tensor_and_model_and_on_nothing_else(name):
    import torch

    (expert,), base = drawn(1, (6, 35))
    asked = {"weight": 1.0, "density": 0.5, **RANDOM[name]}

    def kept(experts=(expert,), **more):
        merged = minerua(name, list(experts), base, **{**asked, "weight": [1.0] + [0.0] * (len(experts) - 1), **more})
        return (merged != base).tolist()

    first = kept()
    torch.manual_seed(5)
    assert kept() == first
    assert kept([expert, 2 * expert - base]) == first
    assert kept(number=1) != first
    assert kept(seed=1) != first
    assert kept([base, expert], weight=[0.0, 1.0]) != first
    theirs = [mergekit(name, [expert], base, **asked) for _ in range(2)]
    assert (theirs[0] != theirs[1]).any()  # from torch's own generator, in the order of the merge


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_ranks_along_the_last_axis_whatever_the_shape(name, our_masks):
    experts, base = drawn(2, (3, 4, 10))
    asked = {"weight": 1.0, "density": 0.5, "epsilon": 0.4}
    flat = minerua(name, [e.reshape(12, 10) for e in experts], base.reshape(12, 10), **asked)
    np.testing.assert_array_equal(minerua(name, experts, base, **asked).reshape(12, 10), flat)
    our_masks.masks = [np.ones((3, 4, 10), bool)] * 2
    mergekit(name, experts, base, **asked)
    assert len(np.unique(our_masks.asked[0].round(6))) == 4  # along the middle one


@pytest.mark.parametrize("name", ["della", "della_linear"])
@pytest.mark.parametrize("shape", [(400, 1), (1,), ()])
def test_della_keeps_rows_of_one_element_with_the_plain_density(name, shape):
    (expert,), base = drawn(1, shape)
    asked = {"weight": 1.0, "density": 0.5, "epsilon": 0.1, "rescale": False}
    seeds = range(1 if len(shape) == 2 else 200)
    with pytest.raises(RuntimeError if shape else IndexError, match=r"p_in >= 0 && p_in <= 1|Dimension out of range"):
        mergekit(name, [expert], base, **asked)
    kept = [minerua(name, [expert], base, seed=seed, **asked) != base for seed in seeds]
    assert 0.4 < np.mean(kept) < 0.6


def test_in_bfloat16_della_s_probabilities_are_not_rounded(our_masks):
    (expert,), base = drawn(1, (1, 1500))
    our_masks.masks = [np.ones((1, 1500), bool)]
    mergekit("della", [expert], base, dtype="bfloat16", weight=1.0, density=0.5)
    _, ours = _kept(expert, base, Mask(keep=0.5, spread=0.15, columns=1500))
    assert len(np.unique(our_masks.asked[0])) < 200
    assert len(np.unique(ours)) == 1500


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_refuses_probabilities_beyond_0_and_1_before_anything_is_merged(name):
    experts, base = drawn(2, (6, 35))
    check = METHODS[name.replace("_", "-")].check
    assert check({"density": (0.5, 1.0), "epsilon": (0.15, 0.15)}) is None
    fault = check({"density": (0.9, 0.1), "epsilon": (0.15, 0.15)})
    assert "density 0.9 ± epsilon 0.15 and density 0.1 ± epsilon 0.15 is not between 0 and 1; choose a smaller" in fault
    with pytest.raises(ConfigError, match="tensor 'w' cannot be thinned"):
        minerua(name, experts, base, weight=1.0, density=0.9)
