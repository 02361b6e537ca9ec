"""What every model kind keeps: it borrows its weights, names its layers, and gives the same for the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minerua.conformance.report import Check, Found, NotJudged
from minerua.conformance.subject import Subject, same
from minerua.registry import Registry
from minerua.values import Change, ModelSpec

_NO_WEIGHTS = "it has no module to make weights of; hand weights over as Sample(tensors={…})"
_NO_INPUTS = "nothing is known to call it with; hand inputs over as Sample(inputs=…)"
_TOLERANCE = 1e-4


# ── weights and inputs ───────────────────────────────────────────────────────────────────────────────────────────────


def fresh_weights(spec: ModelSpec) -> dict[str, Any] | NotJudged:
    """Returns the weights of a fresh module, drawn from seed 0: tensor name → read-only array."""
    if spec.module is None:
        return NotJudged(_NO_WEIGHTS)
    import torch

    torch.manual_seed(0)
    try:
        module = spec.module()
    except TypeError as error:
        return NotJudged(f"its module needs settings ({error}); hand weights over as Sample(tensors={{…}})")
    return {name: _read_only(tensor.detach().float().numpy().copy()) for name, tensor in module.state_dict().items()}


def _read_only(array: Any) -> Any:
    array.setflags(write=False)
    return array


def any_model(plugin: Registry) -> Any:
    """Returns a model with fresh weights in the first kind of a plugin that has some, or why there is none."""
    for spec in plugin.models.values():
        if spec.configure is None and not isinstance(tensors := fresh_weights(spec), NotJudged):
            return spec.build(tensors)
    return NotJudged("there is no model to score; hand one over as Sample(model=…)")


def _tensors(subject: Subject) -> dict[str, Any] | NotJudged:
    given = subject.sample.tensors
    if given is None:
        return subject.once("tensors", lambda: fresh_weights(subject.spec))
    return subject.once("tensors", lambda: {name: _read_only(array.copy()) for name, array in given.items()})


def _inputs(subject: Subject) -> Any:
    """Returns the author's inputs, or those of an evaluator of the same plugin."""
    if subject.sample.inputs is not None:
        return subject.sample.inputs
    return subject.once("inputs", lambda: _inputs_of_tasks(subject.plugin))


def _inputs_of_tasks(plugin: Registry) -> Any:
    for evaluator in plugin.evaluators.values():
        if evaluator.configure is None and evaluator.inputs is not None:
            return evaluator.inputs(list(evaluator.items())[:4])
    return NotJudged(_NO_INPUTS)


def _built(subject: Subject) -> Any:
    """Returns the model and its inputs as a pair, or why there is none of them."""
    tensors, inputs = _tensors(subject), _inputs(subject)
    if isinstance(tensors, NotJudged):
        return tensors
    if isinstance(inputs, NotJudged):
        return inputs
    return subject.once("built", lambda: subject.spec.build(tensors)), inputs


# ── the checks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _builds(subject: Subject) -> Found:
    tensors = _tensors(subject)
    if isinstance(tensors, NotJudged):
        return tensors
    built = subject.spec.build(tensors)
    return [] if callable(built) else [f"build returned {type(built).__name__}, which cannot be called"]


def _borrows(subject: Subject) -> Found:
    tensors, pair = _tensors(subject), _built(subject)
    if isinstance(tensors, NotJudged):
        return tensors
    lent = {name: array.copy() for name, array in tensors.items()}  # writable, so that a change can be seen
    model = subject.spec.build(lent)
    if not isinstance(pair, NotJudged):
        model(pair[1])
    return [f"build, or a call, changed the tensor {name!r}" for name in tensors if not same(lent[name], tensors[name])]


def _repeats(subject: Subject) -> Found:
    tensors, pair = _tensors(subject), _built(subject)
    if isinstance(tensors, NotJudged) or isinstance(pair, NotJudged):
        return tensors if isinstance(tensors, NotJudged) else pair
    model, inputs = pair
    equal = same(model(inputs), subject.spec.build(tensors)(inputs))
    return [] if equal else ["two models of the same weights gave different answers to the same inputs"]


def _activations(subject: Subject) -> Found:
    spec, pair = subject.spec, _built(subject)
    if isinstance(pair, NotJudged):
        return pair
    seen, tensors = spec.activations(*pair), _tensors(subject)
    if seen is None or isinstance(tensors, NotJudged):
        return NotJudged("its activations are None: it cannot tell")
    return [fault for name, array in seen.items() for fault in _activation_faults(name, array, tensors)]


def _activation_faults(name: str, array: Any, tensors: Mapping[str, Any]) -> list[str]:
    import numpy as np

    weight = tensors.get(name)
    if weight is None or weight.ndim != 2:
        return [f"activations name {name!r}, which is no matrix among the weights"]
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2:
        return [f"activations[{name!r}] is {_described(array)}; float32 of shape (rows, n) is wanted"]
    found, wanted = array.shape[1], weight.shape[1]
    if found != wanted:
        return [f"activations[{name!r}] has {found} columns; the weight {list(weight.shape)} takes {wanted}"]
    return [] if np.isfinite(array).all() else [f"activations[{name!r}] has numbers that are not finite"]


def _described(array: Any) -> str:
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    return type(array).__name__ if shape is None else f"{dtype} of shape {tuple(shape)}"


def _module(subject: Subject) -> Found:
    import torch

    spec = subject.spec
    weights = fresh_weights(spec)
    if isinstance(weights, NotJudged):
        return weights
    first, second = spec.module(), spec.module()
    if not isinstance(first, torch.nn.Module):
        return [f"module returned {type(first).__name__}, no torch.nn.Module"]
    if first is second or any(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True)):
        return ["module returned the same parameters twice; what is learned twice must begin twice"]
    if not callable(spec.build(weights)):
        return ["build does not take the names of the module's state_dict"]
    return []


def _learned_is_built(subject: Subject) -> Found:
    import numpy as np
    import torch

    inputs, weights = _inputs(subject), fresh_weights(subject.spec)
    if isinstance(weights, NotJudged) or not isinstance(inputs, np.ndarray):
        return NotJudged("no arrays are known to call both with; hand some over as Sample(inputs=…)")
    module = subject.spec.module().eval()
    module.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    with torch.inference_mode():
        expected = module(torch.as_tensor(inputs))
    answer = subject.spec.build(weights)(inputs)
    equal = same(torch.as_tensor(answer), expected, tolerance=_TOLERANCE)
    return [] if equal else ["the module and what build makes of its weights answer differently"]


def _open(subject: Subject) -> Found:
    spec, tensors, pair = subject.spec, _tensors(subject), _built(subject)
    if isinstance(tensors, NotJudged) or isinstance(pair, NotJudged):
        return tensors if isinstance(tensors, NotJudged) else pair
    import numpy as np

    name = next((name for name, array in tensors.items() if array.ndim == 2), next(iter(tensors)))
    change = np.random.default_rng(0).normal(scale=0.5, size=tensors[name].shape).astype(np.float32)
    children = spec.open(tensors)([{}, {name: Change(change)}])
    changed = {**tensors, name: _read_only((tensors[name] + change).astype(tensors[name].dtype))}
    expected = [pair[0](pair[1]), spec.build(changed)(pair[1])]
    found = [child(pair[1]) for child in children]
    equal = same(found, expected, tolerance=_TOLERANCE)
    return (
        []
        if equal
        else [f"children over one base answer differently than models built by themselves ({name!r} changed)"]
    )


CHECKS: tuple[Check, ...] = (
    Check(
        "builds",
        "build makes something that can be called of read-only arrays",
        "copy what must be written; return an object with __call__",
        _builds,
    ),
    Check("borrows", "weights are borrowed: neither build nor a call changes them", "work on copies", _borrows),
    Check(
        "repeatable",
        "the same weights give the same answers to the same inputs",
        "switch to evaluation; leave dropout and unseeded draws out",
        _repeats,
    ),
    Check(
        "activations",
        "activations names matrices of the weights, with inputs of shape (rows, n), float32, finite",
        "use the names that the weights have in their checkpoint; flatten all axes but the last",
        _activations,
        lambda subject: subject.spec.activations is not None,
    ),
    Check(
        "module",
        "module returns a fresh torch.nn.Module whose state_dict has the names that build takes",
        "make a new module in every call, with parameters named like the weights",
        _module,
        lambda subject: subject.spec.module is not None,
    ),
    Check(
        "learned-is-built",
        "what was learned as a module answers the same when it is built",
        "let both run the same forward function",
        _learned_is_built,
        lambda subject: subject.spec.module is not None,
    ),
    Check(
        "open",
        "children over one base answer as models that are built by themselves",
        "add left @ core @ right.T, or core alone where there are no bases, to the base's tensor",
        _open,
        lambda subject: subject.spec.open is not None,
    ),
)
