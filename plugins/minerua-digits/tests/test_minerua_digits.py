"""The digits plugin through its hooks: what the views are, what the items are, what is learned, what fails."""

from __future__ import annotations

import json
import subprocess
import sys

import minerua_digits as plugin
import numpy as np
import pytest

from minerua.evaluation import Evaluation, deal
from minerua.registry import Registry
from minerua.values import Failure, Scores
from minerua.weights import open_checkpoint

SHAPES = {
    "layers.0.weight": (128, 64),
    "layers.0.bias": (128,),
    "layers.1.weight": (128, 128),
    "layers.1.bias": (128,),
    "layers.2.weight": (10, 128),
    "layers.2.bias": (10,),
}
MODEL = plugin.minerua_models()[0]
EVALUATORS = {spec.name.removeprefix("digits-"): spec for spec in plugin.minerua_evaluators()}


@pytest.fixture(scope="module")
def base():
    return plugin.learn_base(seed=0)


@pytest.fixture(scope="module")
def experts(base):
    return {view: plugin.learn_expert(base, [view], seed=k) for k, view in enumerate(plugin.VIEWS, 1)}


def accuracy(tensors, view):
    """The mean outcome of a model on all items of a view."""
    spec = EVALUATORS[view]
    return float(np.mean(spec.evaluate(MODEL.build(tensors), spec.items(), 0)))


# ── views and items ──────────────────────────────────────────────────────────────────────────────────────────────────


def images():
    return np.random.default_rng(0).random((5, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("view", ["inverted", "mirrored"])
def test_a_view_seen_twice_is_the_image_and_seen_once_is_not(view):
    once = plugin.VIEWS[view](images())
    assert not np.allclose(once, images())
    np.testing.assert_allclose(plugin.VIEWS[view](once), images(), atol=1e-7)


def test_four_quarter_turns_are_none_and_two_are_a_half_turn():
    turned = images()
    for quarter in range(1, 5):
        turned = plugin.VIEWS["rotated"](turned)
        np.testing.assert_array_equal(turned, np.rot90(images(), quarter, axes=(1, 2)))
    np.testing.assert_array_equal(turned, images())


def test_the_items_are_the_897_images_that_nothing_was_learned_from_in_every_view():
    for spec in EVALUATORS.values():
        assert list(spec.items()) == [f"image-{i}" for i in range(900, 1797)]
    assert len(EVALUATORS) == 3


def test_the_inputs_of_an_item_are_its_image_in_the_view():
    ids = ["image-950", "image-901", "image-1796"]
    images, _ = plugin._digits()
    for view, spec in EVALUATORS.items():
        found = spec.inputs(ids)
        assert (found.shape, found.dtype) == ((3, 64), np.float32)
        np.testing.assert_array_equal(found, plugin.VIEWS[view](images[[950, 901, 1796]]).reshape(3, 64))
        assert 0 <= found.min() < found.max() <= 1


def test_an_evaluator_answers_one_outcome_per_id_in_their_order(experts):
    spec, model = EVALUATORS["mirrored"], MODEL.build(experts["rotated"])
    forward = spec.evaluate(model, ["image-900", "image-1200", "image-1500", "image-903"], 0)
    backward = spec.evaluate(model, ["image-903", "image-1500", "image-1200", "image-900"], 1)
    np.testing.assert_array_equal(forward, backward[::-1])
    whole = spec.evaluate(model, spec.items(), 0)
    assert set(np.unique(whole)) == {0.0, 1.0}
    np.testing.assert_array_equal(forward, whole[[0, 300, 600, 3]])


# ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_base_has_the_layers_that_the_model_takes(base):
    assert {name: tensor.shape for name, tensor in base.items()} == SHAPES
    assert {tensor.dtype for tensor in base.values()} == {np.dtype("float32")}


def test_the_same_seed_learns_the_same_weights_bit_for_bit_and_another_seed_others(base, experts):
    again, other = plugin.learn_base(seed=0), plugin.learn_base(seed=1)
    assert {name: tensor.tobytes() for name, tensor in again.items()} == {n: t.tobytes() for n, t in base.items()}
    assert other["layers.1.weight"].tobytes() != base["layers.1.weight"].tobytes()
    expert = plugin.learn_expert(base, ["rotated"], seed=1)
    assert all(expert[name].tobytes() == tensor.tobytes() for name, tensor in experts["rotated"].items())


def test_learning_an_expert_leaves_the_base_as_it_is(base):
    before = {name: tensor.copy() for name, tensor in base.items()}
    plugin.learn_expert(base, ["inverted"], seed=5)
    for name, tensor in base.items():
        np.testing.assert_array_equal(tensor, before[name])


@pytest.mark.parametrize("view", list(plugin.VIEWS))
def test_an_expert_is_better_at_home_than_the_base_and_worse_abroad(base, experts, view):
    assert accuracy(experts[view], view) > accuracy(base, view) + 0.05
    for abroad in plugin.VIEWS.keys() - {view}:
        assert accuracy(experts[view], abroad) < accuracy(base, abroad) - 0.05


def test_the_skill_writes_checkpoints_that_can_be_opened_and_names_them(tmp_path):
    (skill,) = plugin.minerua_skills()
    written = skill.call(out_dir=str(tmp_path), seed=3)
    assert written == {
        "base": "base.safetensors",
        "experts": {view: f"experts/{view}.safetensors" for view in plugin.VIEWS},
    }
    assert {name: type(value) for name, value in written.items()} == dict(skill.outputs)
    for path in [written["base"], *written["experts"].values()]:
        assert {name: spec.shape for name, spec in open_checkpoint(tmp_path / path).specs.items()} == SHAPES
    assert len({open_checkpoint(tmp_path / path).digest for path in written["experts"].values()}) == 3
    learned = plugin.learn_base(seed=3)
    np.testing.assert_array_equal(
        open_checkpoint(tmp_path / "base.safetensors").tensor("layers.2.bias"), learned["layers.2.bias"]
    )


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_activations_are_the_inputs_of_each_layer_in_forward_order(base):
    model, inputs = MODEL.build(base), EVALUATORS["rotated"].inputs(["image-900", "image-901"])
    seen = MODEL.activations(model, inputs)
    assert list(seen) == ["layers.0.weight", "layers.1.weight", "layers.2.weight"]
    np.testing.assert_array_equal(seen["layers.0.weight"], inputs)
    for i in range(2):
        layer = seen[f"layers.{i}.weight"] @ base[f"layers.{i}.weight"].T + base[f"layers.{i}.bias"]
        np.testing.assert_allclose(seen[f"layers.{i + 1}.weight"], gelu(layer), atol=1e-5)
    assert {x.dtype for x in seen.values()} == {np.dtype("float32")}


def gelu(x):
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def test_a_built_model_keeps_its_weights_when_the_array_it_was_built_from_is_gone(base):
    copies = {name: tensor.copy() for name, tensor in base.items()}
    model = MODEL.build(copies)
    for tensor in copies.values():
        tensor[:] = 0
    spec = EVALUATORS["mirrored"]
    expected = spec.evaluate(MODEL.build(base), spec.items(), 0)
    np.testing.assert_array_equal(spec.evaluate(model, spec.items(), 0), expected)


@pytest.mark.parametrize("where", ["layers.0.weight", "layers.2.bias"])
def test_nan_weights_are_a_failure_and_not_a_score(base, where):
    evaluation = Evaluation(deal([EVALUATORS["rotated"], EVALUATORS["inverted"]], SHARES, seed=0))
    assert isinstance(evaluation.score("sound", lambda: MODEL.build(base)), Scores)
    broken = {**base, where: np.full_like(base[where], np.nan)}
    outcome = evaluation.score("broken", lambda: MODEL.build(broken))
    assert isinstance(outcome, Failure)
    assert "outcomes lie outside [0, 1], the first nan for item 'image-" in outcome.reason


SHARES = {"search": 0.4, "select": 0.2, "test": 0.4}


def test_one_nan_among_the_logits_is_no_answer(base):
    bias = base["layers.2.bias"].copy()
    bias[7] = np.nan
    spec = EVALUATORS["inverted"]
    outcomes = spec.evaluate(MODEL.build({**base, "layers.2.bias": bias}), ["image-900", "image-901"], 0)
    assert np.isnan(outcomes).all()


# ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_installed_plugin_loads_through_its_entry_point_without_torch_or_sklearn():
    script = """
import json, sys
from minerua.registry import Registry
plugin = next(plugin for plugin in Registry.load().plugins if plugin.name == "digits")
heavy = sorted({"torch", "sklearn", "scipy"} & set(sys.modules))
print(json.dumps([plugin.distribution, plugin.status, plugin.reason, dict(plugin.provides), heavy]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    distribution, status, reason, provides, heavy = json.loads(done.stdout)
    assert (distribution, status, reason) == ("minerua-digits", "ok", None)
    assert {hook: sorted(names) for hook, names in provides.items()} == {
        "minerua_skills": ["digits-experts"],
        "minerua_models": ["digits-mlp"],
        "minerua_evaluators": ["digits-inverted", "digits-mirrored", "digits-rotated"],
    }
    assert heavy == []


def test_the_hooks_are_valid_specs_under_the_names_of_the_recipe():
    registry = Registry.of(plugin)
    assert not registry.problems
    assert sorted(registry.evaluators) == ["digits-inverted", "digits-mirrored", "digits-rotated"]
    assert list(registry.models) == ["digits-mlp"]
    assert list(registry.skills) == ["digits-experts"]
