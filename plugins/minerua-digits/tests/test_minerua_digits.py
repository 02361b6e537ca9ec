"""The digits plugin through its hooks: what the views are, what the items are, what is learned from, what fails."""

from __future__ import annotations

import json
import subprocess
import sys

import minerua_digits as plugin
import numpy as np
import pytest

from minerua.errors import LearningError
from minerua.evaluation import Evaluation, deal
from minerua.learning import LearningPipeline, TrainingConfig
from minerua.learning import plugin as learning
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


def pipeline(counts, *, epochs, rate, seed=0, base=None):
    """What learns the network from images; counts: view → how many."""
    registry = Registry.of(plugin, learning)
    content = {
        "seed": seed,
        "model": {"name": "digits-mlp", "base": base},
        "data": {
            "skill": "digits-images",
            "settings": counts,
            "labels": {"classes": 10},
            "split": {"train": 1, "validation": 0, "test": 0},
        },
        "loss": "cross-entropy",
        "optimizer": {"rate": rate},
        "epochs": epochs,
        "batch_size": 60,
        "save_every_steps": 10_000,
        "evaluate_every_steps": 10_000,
        "device": {"name": "cpu", "threads": 1},
    }
    return LearningPipeline(
        TrainingConfig.read(content),
        models=registry.models,
        optimizers=registry.optimizers,
        losses=registry.losses,
        skills=registry.skills,
    )


def tensors(learned):
    checkpoint = open_checkpoint(learned.model)
    return {name: np.array(checkpoint.tensor(name)) for name in checkpoint.specs}


@pytest.fixture(scope="module")
def base_run(tmp_path_factory):
    counts = {"upright": 900, "rotated": 200, "inverted": 200, "mirrored": 200}
    return pipeline(counts, epochs=16, rate=2e-3).run(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(base_run):
    return tensors(base_run)


@pytest.fixture(scope="module")
def experts(base_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    runs = {
        view: pipeline({view: 900}, epochs=13, rate=1e-3, seed=k, base=str(base_run.model)).run(folder / view)
        for k, view in enumerate(plugin.VIEWS, 1)
    }
    return {view: tensors(run) for view, run in runs.items()}


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


def images_to_learn_from(**counts):
    (skill,) = plugin.minerua_skills()
    made = skill.call(**counts)
    assert {name: type(value) for name, value in made.items()} == dict(skill.outputs)
    return made["dataset"]["inputs"], made["dataset"]["targets"]


def test_the_images_to_learn_from_are_the_first_ones_as_each_view_shows_them():
    inputs, targets = images_to_learn_from(rotated=900, mirrored=3)
    images, digits = plugin._digits()
    assert (inputs.shape, inputs.dtype, targets.dtype) == ((903, 64), np.float32, np.int64)
    np.testing.assert_array_equal(inputs[:900], plugin.VIEWS["rotated"](images[:900]).reshape(900, 64))
    np.testing.assert_array_equal(inputs[900:], plugin.VIEWS["mirrored"](images[:3]).reshape(3, 64))
    np.testing.assert_array_equal(targets, [*digits[:900], *digits[:3]])


def test_the_order_in_which_views_are_named_does_not_matter():
    np.testing.assert_array_equal(
        images_to_learn_from(upright=2, inverted=1)[0], images_to_learn_from(inverted=1, upright=2)[0]
    )


def test_no_image_to_learn_from_is_an_item():
    inputs, _ = images_to_learn_from(**dict.fromkeys(plugin.SHOWN, 900))
    shown = {row.tobytes() for row in inputs}
    for spec in EVALUATORS.values():
        assert shown.isdisjoint(row.tobytes() for row in spec.inputs(spec.items()))


@pytest.mark.parametrize("counts", [{}, {"rotated": 901}, {"upright": 900, "rotated": 0}, {"sideways": 5}])
def test_counts_that_would_show_items_or_nothing_are_refused(tmp_path, counts):
    known = "name one or more of upright, rotated, inverted, mirrored, each with a count from 1 to 900"
    with pytest.raises(LearningError, match="the run cannot begin") as caught:
        pipeline(counts, epochs=1, rate=1e-3).run(tmp_path)
    (fault,) = caught.value.faults
    assert known in fault
    assert f"(the other images are items); found {counts}" in fault
    assert list(tmp_path.iterdir()) == []


def test_the_network_that_is_learned_is_the_one_that_is_evaluated(base):
    import torch

    module = MODEL.module()
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == SHAPES
    module.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in base.items()})
    inputs = EVALUATORS["rotated"].inputs(["image-900", "image-1000"])
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(inputs)), MODEL.build(base)(inputs), rtol=1e-5, atol=1e-5)


def test_the_base_has_the_layers_that_the_model_takes(base):
    assert {name: tensor.shape for name, tensor in base.items()} == SHAPES
    assert {tensor.dtype for tensor in base.values()} == {np.dtype("float32")}


def test_the_same_seed_learns_the_same_weights_bit_for_bit_and_another_seed_others(tmp_path):
    first, again, other = (
        tensors(pipeline({"rotated": 120}, epochs=2, rate=1e-3, seed=seed).run(tmp_path / str(number)))
        for number, seed in enumerate((0, 0, 1))
    )
    assert {name: tensor.tobytes() for name, tensor in again.items()} == {n: t.tobytes() for n, t in first.items()}
    assert other["layers.1.weight"].tobytes() != first["layers.1.weight"].tobytes()


@pytest.mark.parametrize("view", list(plugin.VIEWS))
def test_an_expert_is_better_at_home_than_the_base_and_worse_abroad(base, experts, view):
    assert accuracy(experts[view], view) > accuracy(base, view) + 0.05
    for abroad in plugin.VIEWS.keys() - {view}:
        assert accuracy(experts[view], abroad) < accuracy(base, abroad) - 0.05


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
        "minerua_skills": ["digits-images"],
        "minerua_models": ["digits-mlp"],
        "minerua_evaluators": ["digits-inverted", "digits-mirrored", "digits-rotated"],
    }
    assert heavy == []


def test_the_hooks_are_valid_specs_under_the_names_of_the_recipe():
    registry = Registry.of(plugin)
    assert not registry.problems
    assert sorted(registry.evaluators) == ["digits-inverted", "digits-mirrored", "digits-rotated"]
    assert list(registry.models) == ["digits-mlp"]
    assert list(registry.skills) == ["digits-images"]
