import numpy as np
import pytest

from minerua.merge.methods.layer_match import match_layers
from minerua.merge.methods.means import mean
from minerua.values import MergeInputs

from ..worlds import COUNTER, SHAPES, activations, base_tensors, build, inputs, tuned_tensors

ITEMS = [[f"expert-{k}-{i}" for i in range(200)] for k in range(5)]


def _merge_inputs(experts, *, items=ITEMS):
    def seen(tensors, k):
        return activations(build(tensors), inputs(items[k]))

    return MergeInputs(base_tensors(), experts, seen)


def _experts(count, **settings):
    return [tuned_tensors(base_tensors(), seed=k, **settings) for k in range(count)]


def _sum(base, vector):
    return {name: base[name] + vector.get(name, 0) for name in base}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_merge_changes_what_an_expert_changes_and_nothing_else(count):
    merged = match_layers(_merge_inputs(_experts(count)), [1.0] * count)
    assert sorted(merged) == sorted(set(SHAPES) - {"untouched.weight"})
    assert all((change.dtype, change.shape) == (np.float32, SHAPES[name]) for name, change in merged.items())


def test_one_expert_merges_to_itself():
    (expert,) = _experts(1)
    for name, tensor in _sum(base_tensors(), match_layers(_merge_inputs([expert]), [3.0])).items():
        np.testing.assert_allclose(tensor, expert[name], atol=1e-3)


def test_equal_experts_merge_to_themselves():
    (expert,) = _experts(1)
    for name, tensor in _sum(base_tensors(), match_layers(_merge_inputs([expert] * 3), [1.0, 2.0, 1.0])).items():
        np.testing.assert_allclose(tensor, expert[name], atol=1e-3)


def test_weights_count_only_in_proportion():
    given = _merge_inputs(_experts(3))
    one, two = match_layers(given, [1.0, 2.0, 1.0]), match_layers(given, [4.0, 8.0, 4.0])
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-5)


def test_tensors_without_known_inputs_take_the_weighted_mean():
    experts, base = _experts(3), base_tensors()
    merged = match_layers(_merge_inputs(experts), [1.0, 2.0, 1.0])
    for name in ("conv.weight", "norm.weight", "temperature"):
        expected = mean([np.float32(expert[name]) - base[name] for expert in experts], [0.25, 0.5, 0.25])
        np.testing.assert_allclose(merged[name], expected, atol=1e-6)


def test_the_first_layer_is_the_least_squares_answer():
    experts = _experts(3)
    merged = _sum(base_tensors(), match_layers(_merge_inputs(experts), [1.0, 1.0, 1.0]))
    rows = [np.column_stack([inputs(ITEMS[k]), np.ones(200)]).astype(np.float64) for k in range(3)]
    thetas = [np.column_stack([expert["body.weight"], expert["body.bias"]]) for expert in experts]
    answers = [x @ theta.T for x, theta in zip(rows, thetas, strict=True)]
    solved, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(answers), rcond=None)
    np.testing.assert_allclose(np.column_stack([merged["body.weight"], merged["body.bias"]]), solved.T, atol=1e-3)


def test_the_next_layer_is_fitted_to_what_the_merged_one_before_it_gives():
    experts = _experts(3)
    merged = _sum(base_tensors(), match_layers(_merge_inputs(experts), [1.0, 1.0, 1.0]))
    reaching = [activations(build(merged), inputs(ITEMS[k]))["head.weight"].astype(np.float64) for k in range(3)]
    own = [activations(build(expert), inputs(ITEMS[k]))["head.weight"] for k, expert in enumerate(experts)]
    answers = [x @ expert["head.weight"].T for x, expert in zip(own, experts, strict=True)]
    solved, *_ = np.linalg.lstsq(np.concatenate(reaching), np.concatenate(answers), rcond=None)
    np.testing.assert_allclose(merged["head.weight"], solved.T, atol=5e-4)


def test_the_merge_answers_the_experts_inputs_more_as_they_do_than_the_mean_does():
    experts, base = _experts(3), base_tensors()
    matched = _sum(base, match_layers(_merge_inputs(experts), [1.0] * 3))
    mean_ = {name: np.mean([expert[name] for expert in experts], axis=0) for name in base}

    def error(tensors):
        model = build(tensors)
        return sum(np.linalg.norm(model(inputs(ITEMS[k])) - build(e)(inputs(ITEMS[k]))) for k, e in enumerate(experts))

    assert error(matched) < error(mean_)


def test_without_any_input_the_merge_is_the_mean():
    experts, base = _experts(2), base_tensors()

    def nothing(tensors, k):
        return {"body.weight": np.zeros((4, 6), np.float32)}

    merged = match_layers(MergeInputs(base, experts, nothing), [1.0, 1.0])
    expected = np.mean([expert["body.weight"] for expert in experts], axis=0) - base["body.weight"]
    np.testing.assert_allclose(merged["body.weight"], expected, atol=1e-5)


def test_counters_are_left_alone():
    assert COUNTER not in match_layers(_merge_inputs(_experts(2)), [1.0, 1.0])


def test_the_experts_and_the_base_stay_as_they_are():
    given = _merge_inputs(_experts(2))
    match_layers(given, [1.0, 1.0])
    for kept, fresh in zip([given.base, *given.experts], [base_tensors(), *_experts(2)], strict=True):
        for name in fresh:
            np.testing.assert_array_equal(kept[name], fresh[name])
