"""The laws of models: each is broken once on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minerua import EvaluatorSpec, ModelSpec, hookimpl
from minerua.conformance import Sample, examine

from .asking import found, reasons

WEIGHTS = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "layer.bias": np.ones(2, np.float32)}
INPUTS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
SAMPLE = {"m": Sample(tensors=WEIGHTS, inputs=INPUTS)}


class Built:
    """A layer, to be broken by what is done beside it."""

    def __init__(self, tensors, beside=lambda model, answer: answer):
        self.tensors, self.beside = tensors, beside

    def __call__(self, inputs):
        return self.beside(self, inputs @ self.tensors["layer.weight"].T + self.tensors["layer.bias"])


class Layer(torch.nn.Module):
    """The same layer, to be learned."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, inputs):
        return self.layer(inputs)


def seen(model, inputs):
    return {"layer.weight": inputs}


def children_of(base):
    def children(changes):
        built = []
        for change in changes:
            tensors = {name: array + (change[name].core if name in change else 0) for name, array in base.items()}
            built.append(Built(tensors))
        return built

    return children


def spec(**fields):
    return ModelSpec(**{"name": "m", "build": Built, **fields})


def writes(model, answer):
    model.tensors["layer.bias"][0] = 7.0
    return answer


def drawn(model, answer):
    return answer + np.random.default_rng(id(model)).normal()


def cleared(tensors):
    for array in tensors.values():
        if array.flags.writeable:
            array.fill(0)
    return Built(tensors)


THE_SAME = Layer()
BROKEN = [
    (spec(build=lambda tensors: 7), "builds", "build returned int, which cannot be called"),
    (
        spec(build=lambda tensors: Built(tensors, writes)),
        "borrows",
        "build, or a call, changed the tensor 'layer.bias'",
    ),
    (
        spec(build=cleared),
        "borrows",
        "build, or a call, changed the tensor 'layer.weight'",
    ),
    (
        spec(build=lambda tensors: Built(tensors, drawn)),
        "repeatable",
        "two models of the same weights gave different answers to the same inputs",
    ),
    (
        spec(activations=lambda model, inputs: {"layer": inputs}),
        "activations",
        "activations name 'layer', which is no matrix among the weights",
    ),
    (
        spec(activations=lambda model, inputs: {"layer.weight": inputs.astype(np.float64)}),
        "activations",
        "activations['layer.weight'] is float64 of shape (4, 3); float32 of shape (rows, n) is wanted",
    ),
    (
        spec(activations=lambda model, inputs: {"layer.weight": "rows"}),
        "activations",
        "activations['layer.weight'] is str; float32",
    ),
    (
        spec(activations=lambda model, inputs: {"layer.weight": inputs[:, :2]}),
        "activations",
        "activations['layer.weight'] has 2 columns; the weight [2, 3] takes 3",
    ),
    (
        spec(activations=lambda model, inputs: {"layer.weight": inputs / np.float32(np.inf) * np.float32(np.inf)}),
        "activations",
        "activations['layer.weight'] has numbers that are not finite",
    ),
    (spec(module=lambda: THE_SAME), "module", "module returned the same parameters twice; what is learned twice"),
    (
        spec(module=Layer, build=lambda tensors: None),
        "module",
        "build does not take the names of the module's state_dict",
    ),
    (
        spec(module=Layer, build=lambda tensors: Built(tensors, lambda model, answer: 2 * answer)),
        "learned-is-built",
        "the module and what build makes of its weights answer differently",
    ),
    (
        spec(open=lambda base: lambda changes: [Built(base) for _ in changes]),
        "open",
        "children over one base answer differently than models built by themselves ('layer.weight' changed)",
    ),
]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(("broken", "check", "text"), BROKEN, ids=[f"{i}-{case[1]}" for i, case in enumerate(BROKEN)])
def test_a_model_that_breaks_a_law_is_told(broken, check, text):
    (one, *_) = found(broken, check, samples=SAMPLE)
    assert text in one


class Odd:
    """No module, but with its methods."""

    def state_dict(self):
        return {}

    def parameters(self):
        return iter(())


def test_what_is_no_module_is_told():
    assert found(spec(module=Odd), "module") == ["module returned Odd, no torch.nn.Module"]


def test_a_model_that_keeps_the_laws_passes():
    report = examine(spec(module=Layer, activations=seen, open=children_of), samples=SAMPLE)
    assert not report.problems, str(report)
    assert not report.of("not judged")


def test_what_is_not_known_is_asked_of_the_author():
    (why,) = reasons(spec(), "builds")
    assert why == "it has no module to make weights of; hand weights over as Sample(tensors={…})"
    (why,) = reasons(spec(module=Layer), "repeatable")
    assert why == "nothing is known to call it with; hand inputs over as Sample(inputs=…)"
    (why,) = reasons(spec(module=lambda *, width: Layer()), "module")
    assert why.startswith("its module needs settings (")
    assert why.endswith("hand weights over as Sample(tensors={…})")
    (why,) = reasons(spec(module=Layer), "learned-is-built")
    assert why == "no arrays are known to call both with; hand some over as Sample(inputs=…)"
    (why,) = reasons(spec(activations=lambda model, inputs: None), "activations", samples=SAMPLE)
    assert why == "its activations are None: it cannot tell"


def test_the_inputs_of_a_task_of_the_same_plugin_are_what_its_model_is_called_with():
    class Plugin:
        @hookimpl
        def minerua_models(self):
            return [spec(module=Layer, activations=seen)]

        @hookimpl
        def minerua_evaluators(self):
            def evaluate(model, ids, seed):
                return [float(model(INPUTS[:1])[0, 0] > 0) for _ in ids]

            items = ["a", "b", "c"]
            return [EvaluatorSpec("task", lambda: items, evaluate, inputs=lambda ids: INPUTS[: len(ids)])]

    report = examine(Plugin(), only=["model/*", "evaluator/*"])
    assert not report.problems, str(report)
    assert not report.of("not judged")
