import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.merge.methods.means import mean, regmean, task_arithmetic


def _vectors(count=3, shape=(4, 5), *, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for _ in range(count)]


def _inputs(count=3, width=5, *, rows=30, seed=1):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(rows, width)) @ generator.normal(size=(width, width)) for _ in range(count)]


def _grams(inputs):
    return [x.T @ x for x in inputs]


def _regmean(vectors, weights):
    return regmean(vectors, weights, _grams(_inputs(len(vectors), vectors[0].shape[1])))


MEANS = {"mean": mean, "regmean": _regmean, "regmean without inputs": lambda v, w: regmean(v, w, None)}
"""Methods that stay between the experts: their weights count only in proportion."""

ALL = {**MEANS, "task-arithmetic": task_arithmetic}


@pytest.fixture(params=sorted(MEANS))
def average(request):
    return MEANS[request.param]


@pytest.fixture(params=sorted(ALL))
def method(request):
    return ALL[request.param]


# ── laws of all ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_merge_is_float32_of_the_experts_shape(method, count):
    vectors = _vectors(count)
    before = [vector.copy() for vector in vectors]
    merged = method(vectors, [1.0] * count)
    assert (merged.dtype, merged.shape) == (np.float32, (4, 5))
    for vector, copy in zip(vectors, before, strict=True):
        np.testing.assert_array_equal(vector, copy)


def test_one_expert_of_weight_one_merges_to_itself(method):
    (vector,) = _vectors(1)
    np.testing.assert_allclose(method([vector], [1.0]), vector, atol=1e-4)


def test_a_merge_is_linear_in_the_task_vectors(method):
    one, two = _vectors(3), _vectors(3, seed=9)
    weights = [0.5, 1.0, 2.0]
    both = method([2 * a + b for a, b in zip(one, two, strict=True)], weights)
    np.testing.assert_allclose(both, 2 * method(one, weights) + method(two, weights), atol=1e-4)


def test_the_merge_of_nothing_is_nothing(method):
    assert not method([np.zeros((4, 5), np.float32)] * 3, [1.0, 2.0, 3.0]).any()


# ── laws of means ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("weight", [0.25, 1.0, 7.0])
def test_one_expert_merges_to_itself_whatever_its_weight(average, weight):
    (vector,) = _vectors(1)
    np.testing.assert_allclose(average([vector], [weight]), vector, atol=1e-4)


def test_equal_experts_merge_to_themselves(average):
    (vector,) = _vectors(1)
    np.testing.assert_allclose(average([vector] * 4, [0.1, 1.0, 2.0, 0.5]), vector, atol=1e-4)


def test_weights_count_only_in_proportion(average):
    vectors = _vectors(3)
    one, two = average(vectors, [1.0, 2.0, 0.5]), average(vectors, [10.0, 20.0, 5.0])
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_an_expert_of_weight_zero_has_no_say(average):
    vectors = _vectors(3)
    other = [*vectors[:2], 100 * vectors[2]]
    np.testing.assert_allclose(average(vectors, [1.0, 2.0, 0.0]), average(other, [1.0, 2.0, 0.0]), atol=1e-4)


# ── the formulas ─────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 3.0), min_size=1, max_size=5), st.permutations(range(5)))
def test_the_order_of_the_experts_does_not_matter(weights, order):
    order = [i for i in order if i < len(weights)]
    vectors, grams = _vectors(len(weights)), _grams(_inputs(len(weights)))
    shuffled = [vectors[i] for i in order], [weights[i] for i in order]
    np.testing.assert_allclose(mean(*shuffled), mean(vectors, weights), atol=1e-5)
    np.testing.assert_allclose(task_arithmetic(*shuffled), task_arithmetic(vectors, weights), atol=1e-5)
    found = regmean(*shuffled, [grams[i] for i in order])
    np.testing.assert_allclose(found, regmean(vectors, weights, grams), atol=1e-4)


def test_the_mean_is_numpy_s():
    vectors, weights = _vectors(3), [1.0, 2.0, 0.5]
    np.testing.assert_allclose(mean(vectors, weights), np.average(vectors, axis=0, weights=weights), atol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 2, 2)])
def test_means_take_tensors_of_any_number_of_axes(shape):
    vectors = _vectors(2, shape)
    vectors = [np.asarray(vector, np.float32) for vector in vectors]
    np.testing.assert_allclose(mean(vectors, [1, 1]), (vectors[0] + vectors[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(regmean(vectors, [1, 1], None), (vectors[0] + vectors[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(task_arithmetic(vectors, [2, -1]), 2 * vectors[0] - vectors[1], atol=1e-6)


def test_regmean_is_its_formula():
    vectors, weights, grams = _vectors(3), [1.0, 2.0, 0.5], _grams(_inputs(3))
    pulled = sum(w * t.astype(np.float64) @ g for w, t, g in zip(weights, vectors, grams, strict=True))
    exact = pulled @ np.linalg.inv(sum(w * g for w, g in zip(weights, grams, strict=True)))
    np.testing.assert_allclose(regmean(vectors, weights, grams), exact, atol=1e-4)


def test_regmean_is_the_least_squares_answer():
    """min over W of Σ w_i ‖X_i Wᵀ − X_i τ_iᵀ‖²: stack the inputs of all experts and solve once."""
    vectors, weights, inputs = _vectors(3), [1.0, 2.0, 0.5], _inputs(3)
    stacked = np.concatenate([np.sqrt(w) * x for w, x in zip(weights, inputs, strict=True)])
    answers = np.concatenate([np.sqrt(w) * x @ t.T for w, x, t in zip(weights, inputs, vectors, strict=True)])
    solved, *_ = np.linalg.lstsq(stacked, answers, rcond=None)
    np.testing.assert_allclose(regmean(vectors, weights, _grams(inputs)), solved.T, atol=1e-4)


def test_regmean_answers_the_experts_inputs_better_than_the_mean():
    vectors, inputs = _vectors(3), _inputs(3)

    def error(merged):
        return sum(np.linalg.norm(x @ (merged - t).T) ** 2 for x, t in zip(inputs, vectors, strict=True))

    assert error(regmean(vectors, [1, 1, 1], _grams(inputs))) < 0.9 * error(mean(vectors, [1, 1, 1]))


def test_regmean_with_equal_inputs_is_the_mean():
    vectors, (gram,) = _vectors(3), _grams(_inputs(1))
    np.testing.assert_allclose(regmean(vectors, [1, 1, 1], [gram] * 3), mean(vectors, [1, 1, 1]), atol=1e-4)


def test_regmean_takes_each_expert_where_only_it_has_inputs():
    vectors = _vectors(2, (3, 4))
    grams = [np.diag([5.0, 3.0, 0.0, 0.0]), np.diag([0.0, 0.0, 2.0, 4.0])]
    merged = regmean(vectors, [1.0, 1.0], grams)
    np.testing.assert_allclose(merged[:, :2], vectors[0][:, :2], atol=1e-4)
    np.testing.assert_allclose(merged[:, 2:], vectors[1][:, 2:], atol=1e-4)


def test_regmean_without_any_input_is_zero():
    assert not regmean(_vectors(2), [1.0, 1.0], [np.zeros((5, 5))] * 2).any()


def test_regmean_does_not_depend_on_the_base():
    vectors, weights, inputs = _vectors(3), [1.0, 2.0, 0.5], _inputs(3)
    base = np.random.default_rng(5).normal(size=(4, 5)).astype(np.float32)
    whole = regmean([base + vector for vector in vectors], weights, _grams(inputs))
    np.testing.assert_allclose(whole - base, regmean(vectors, weights, _grams(inputs)), atol=1e-4)


def test_as_many_weights_and_inputs_as_experts_are_needed():
    vectors, grams = _vectors(3), _grams(_inputs(3))
    for weights, given_ in (([1.0, 1.0], grams), ([1.0, 1.0, 1.0], grams[:2])):
        with pytest.raises(ValueError, match="zip"):
            regmean(vectors, weights, given_)
