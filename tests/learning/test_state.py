"""State: what is encoded comes back with every bit, and nothing is pickled."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from minerua.errors import CheckpointError, LearningError
from minerua.learning.reports import EvaluationReport
from minerua.learning.state import (
    Moved,
    Progress,
    TrainingState,
    decode,
    encode,
    optimizer_tree,
    random_state,
    restore_optimizer,
    restore_random,
    to_array,
    to_tensor,
)

from .worlds import OPTIMIZERS, mlp


def some_state(**changes: Any) -> TrainingState:
    values: dict[str, Any] = {
        "kind": "regular",
        "config": {"seed": 1},
        "environment": {"torch": "2"},
        "progress": Progress(1, 2, 10, 3),
        "plateau": {"scale": 0.1},
        "stopping": {"best": math.pi},
        "guard": {"recent": [1.0, math.inf]},
        "scaler": {},
        "optimizer": {"groups": [{"betas": (0.9, 0.999)}], "state": {"w": {"step": torch.tensor(3.0)}}},
        "history": [EvaluationReport(3, 1, "validation", 0.5, {"loss": 0.5}, math.nan)],
        "random": [torch.arange(4, dtype=torch.uint8)],
    }
    return TrainingState(**{**values, **changes})


def test_a_state_comes_back_as_it_was() -> None:
    state = some_state()
    found = TrainingState.decoded(*state.encoded(), where="here")
    assert repr(found.progress) == repr(state.progress)
    assert found.optimizer["groups"] == [{"betas": (0.9, 0.999)}]
    assert torch.equal(found.optimizer["state"]["w"]["step"], torch.tensor(3.0))
    assert found.stopping["best"].hex() == math.pi.hex()
    assert math.isinf(found.guard["recent"][1])
    assert repr(found.history) == repr(state.history)
    assert torch.equal(found.random[0], state.random[0])


def test_another_version_is_refused_with_both_numbers() -> None:
    text, tensors = some_state(format=7).encoded()
    with pytest.raises(CheckpointError, match=r"here has version 7 of the state's format, this minerua reads 1"):
        TrainingState.decoded(text, tensors, where="here")


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"map": {"format": 1}}'])
def test_what_is_no_state_is_refused(text: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"here is not the state of a training run"):
        TrainingState.decoded(text, {}, where="here")


def test_what_a_file_cannot_hold_is_named_with_its_place() -> None:
    with pytest.raises(LearningError, match=r"optimizer/w holds a set, which a checkpoint cannot hold"):
        encode({"optimizer": {"w": {1, 2}}}, "", {})


def test_trees_keep_their_types() -> None:
    tree = {"a": [1, 2.5, None, True, "x"], "b": (1, (2,)), "c": {}, "d": torch.ones(2, dtype=torch.bfloat16)}
    tensors: dict[str, torch.Tensor] = {}
    found = decode(json.loads(json.dumps(encode(tree, "", tensors))), tensors)
    assert (found["a"], found["b"], found["c"]) == (tree["a"], tree["b"], tree["c"])
    assert torch.equal(found["d"], tree["d"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_of_every_dtype_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    found = to_tensor(to_array(tensor))
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_for_bit(name: str) -> None:
    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer, dict[int, str]]:
        torch.manual_seed(0)
        module = mlp()
        groups = [{"params": [p], "weight_decay": 0.1 * (n == "0.weight")} for n, p in module.named_parameters()]
        return module, OPTIMIZERS[name].build(groups, lr=0.01), {id(p): n for n, p in module.named_parameters()}

    def stepped(module: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        inputs = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(inputs).square().mean().backward()
        optimizer.step()

    module, optimizer, names = made()
    for seed in range(3):
        stepped(module, optimizer, seed)
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(encode(optimizer_tree(optimizer, names, lambda tensor: tensor), "o", tensors))
    tree = decode(json.loads(text), {name: tensor.clone() for name, tensor in tensors.items()})
    other, again, other_names = made()
    other.load_state_dict(module.state_dict())
    restore_optimizer(again, tree, other_names, lambda tensor, _: tensor.clone())
    for seed in range(3, 6):
        stepped(module, optimizer, seed)
        stepped(other, again, seed)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_an_optimizer_over_other_parameters_is_refused_with_both_sides() -> None:
    module = mlp()
    names = {id(p): n for n, p in module.named_parameters()}
    one = torch.optim.SGD(module.parameters(), lr=0.1)
    tree = optimizer_tree(one, names, lambda tensor: tensor)
    fewer = torch.optim.SGD([next(module.parameters())], lr=0.1)
    with pytest.raises(CheckpointError, match=r"parameter groups are not those of the checkpoint") as caught:
        restore_optimizer(fewer, tree, names, lambda tensor, _: tensor)
    assert "group 0: the checkpoint has 0.weight, 0.bias, 3.weight, 3.bias; this run has 0.weight" in str(caught.value)
    two = torch.optim.SGD([{"params": [p]} for p in module.parameters()], lr=0.1)
    with pytest.raises(CheckpointError, match=r"the checkpoint has 1 groups, this run 4"):
        restore_optimizer(two, tree, names, lambda tensor, _: tensor)


def test_a_tensor_that_was_not_on_the_cpu_is_brought_to_where_the_parameter_is() -> None:
    value = decode({"tensor": "a", "device": "device"}, {"a": torch.ones(2)})
    assert isinstance(value, Moved)


def test_all_generators_come_back() -> None:
    def drawn() -> tuple[float, ...]:
        return random.random(), random.gauss(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(()))

    drawn()
    state = random_state(torch.device("cpu"))
    first = drawn()
    restore_random(state, torch.device("cpu"))
    assert drawn() == first


def test_progress_counts_steps_into_epochs() -> None:
    progress = Progress()
    for _ in range(5):
        progress.next_step(3)
    assert (progress.epoch, progress.window, progress.step) == (1, 2, 5)
