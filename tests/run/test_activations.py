import numpy as np
import pytest

from minerua import EvaluatorSpec, ModelSpec
from minerua.config import SplitsConfig
from minerua.errors import ConfigError
from minerua.evaluation import deal
from minerua.registry import Registry
from minerua.run.activations import activations_of, open_activations

from .. import worlds


@pytest.fixture
def registry():
    silent = ModelSpec("silent", worlds.build)
    blind = EvaluatorSpec("blind", lambda: ["x"], lambda model, ids, seed: [0.0])
    return Registry.of(worlds.Toys(evaluators=[blind], models=[silent]))


def test_each_expert_is_run_on_its_own_tasks_search_items_alone(registry):
    activations = open_activations("toy-network", ["toy-0", "toy-1"], registry=registry)
    tensors = worlds.base_tensors()
    specs = [registry.evaluators[name] for name in ("toy-0", "toy-1")]
    for k, task in enumerate(deal(specs, SplitsConfig().fractions, seed=0)):
        found = activations(tensors, k)
        inputs = worlds.inputs(task.ids["search"])
        assert 0 < len(inputs) < 40
        np.testing.assert_array_equal(found["body.weight"], inputs)
        assert found["head.weight"].shape == (len(inputs), 8)


def test_the_same_names_give_the_same_inputs_each_time(registry):
    tensors = worlds.base_tensors()
    one, two = (open_activations("toy-network", ["toy-2"], registry=registry)(tensors, 0) for _ in range(2))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_everything_that_cannot_be_had_is_named_at_once(registry):
    with pytest.raises(ConfigError, match="the activations that the recipe asks for cannot be had") as caught:
        open_activations("silent", ["toy-0", "blind", "toy-9"], registry=registry)
    unknown, silent, blind = caught.value.faults
    assert unknown.startswith("no evaluator is named 'toy-9'; did you mean 'toy-")
    assert silent == "model 'silent' cannot give activations; name another in activations.model"
    assert blind == "task 'blind' cannot give unlabelled inputs"
    with pytest.raises(ConfigError) as caught:
        open_activations("toy-netwrok", ["toy-0"], registry=registry)
    assert caught.value.faults[0].startswith("no model is named 'toy-netwrok'; did you mean 'toy-network'")


def test_what_has_nothing_to_give_is_refused_when_it_is_asked(registry):
    tasks = deal([registry.evaluators["toy-0"]], SplitsConfig().fractions, seed=0)
    activations = activations_of(registry.models["silent"], tasks)
    with pytest.raises(ConfigError, match="model silent and task toy-0 must give activations and inputs"):
        activations(worlds.base_tensors(), 0)
