"""Everything that a run would forget, as values that a file can hold: JSON and tensors, typed and versioned.

Never pickle. A *tree* is made of `None`, flags, numbers, texts, lists, tuples, mappings and tensors. Tensors go to a
safetensors file, the rest to JSON, which keeps every float's bits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import ml_dtypes
import numpy as np
import torch

from minerua.errors import CheckpointError, LearningError
from minerua.learning.reports import EvaluationReport

FORMAT = 1
"""The version of the state's format; another one is refused."""

Tensors = dict[str, torch.Tensor]


@dataclass
class Progress:
    """How far a run is.

    Args:
        epoch: The epoch that the next step belongs to, from 0.
        window: The step's place in it.
        step: How many steps were taken.
        skipped: How many steps the guard did not let through.
    """

    epoch: int = 0
    window: int = 0
    step: int = 0
    skipped: int = 0

    def next_step(self, steps_per_epoch: int) -> None:
        """Counts a step."""
        self.step += 1
        self.window += 1
        if self.window == steps_per_epoch:
            self.epoch, self.window = self.epoch + 1, 0


@dataclass
class TrainingState:
    """What a checkpoint holds besides the weights.

    Args:
        kind: `"regular"`, or why it was written out of turn: `"signal"`, `"exception"`.
        config: What the run may not change, as `TrainingConfig.binding` gives it.
        environment: What bits depend on besides: version of torch, device, threads, processes, digests of the splits.
        progress: How far the run is.
        plateau: Of the schedule.
        stopping: Of the early stopping.
        guard: Of the guard.
        scaler: Of the loss scaler; empty without one.
        optimizer: A tree: parameter groups and state by parameter name.
        history: All evaluations so far.
        random: A tree: one state of all generators per process, in bytes.
        format: The version of this layout.
    """

    kind: str
    config: dict[str, Any]
    environment: dict[str, Any]
    progress: Progress
    plateau: dict[str, Any]
    stopping: dict[str, Any]
    guard: dict[str, Any]
    scaler: dict[str, Any]
    optimizer: dict[str, Any]
    history: list[EvaluationReport]
    random: list[torch.Tensor] = field(default_factory=list)
    format: int = FORMAT

    def encoded(self) -> tuple[bytes, Tensors]:
        """Returns the state as JSON and the tensors that it names.

        Raises:
            LearningError: If an optimizer keeps something that cannot be written.
        """
        tensors: Tensors = {}
        tree = {one.name: getattr(self, one.name) for one in fields(self)}
        tree["progress"], tree["history"] = asdict(self.progress), [_plain_report(one) for one in self.history]
        return json.dumps(encode(tree, "", tensors), indent=1).encode(), tensors

    @classmethod
    def decoded(cls, text: bytes, tensors: Tensors, *, where: str) -> TrainingState:
        """Returns the state that `encoded` wrote.

        Args:
            text: The JSON.
            tensors: By name.
            where: What messages call it.

        Raises:
            CheckpointError: If it has another version, or is not a state.
        """
        try:
            content = json.loads(text)
            version = content["map"]["format"] if "map" in content else content.get("format")
            if version != FORMAT:
                raise CheckpointError(
                    f"{where} has version {version!r} of the state's format, this minerua reads {FORMAT}; "
                    "go on with the version that wrote it, or begin anew in another folder"
                )
            tree = decode(content, tensors)
            history = [EvaluationReport(**one) for one in tree["history"]]
            return cls(**{**tree, "progress": Progress(**tree["progress"]), "history": history})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{where} is not the state of a training run: {error}") from error


def _plain_report(report: EvaluationReport) -> dict[str, Any]:
    return {**asdict(report), "metrics": dict(report.metrics)}


# ── trees ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def encode(value: Any, place: str, tensors: Tensors) -> Any:
    """Returns a tree as JSON holds it; tensors are added to `tensors` under their place, on the CPU.

    Raises:
        LearningError: If something is inside that is none of a tree's types; names its place.

    Example:
        >>> tensors = {}
        >>> encode({"beta": (0.9, None), "w": torch.zeros(2)}, "adam", tensors), sorted(tensors)
        ({'map': {'beta': {'tuple': [0.9, None]}, 'w': {'tensor': 'adam/w', 'device': 'cpu'}}}, ['adam/w'])
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach()
        return {"tensor": place, "device": "cpu" if value.device.type == "cpu" else "device"}
    if isinstance(value, list | tuple):
        items = [encode(one, f"{place}/{number}", tensors) for number, one in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"map": {key: encode(one, f"{place}/{key}".lstrip("/"), tensors) for key, one in value.items()}}
    raise LearningError(
        f"{place or 'the state'} holds a {type(value).__name__}, which a checkpoint cannot hold; "
        "it takes numbers, texts, tensors, and lists and mappings of them"
    )


def decode(value: Any, tensors: Tensors) -> Any:
    """Returns the tree that `encode` has written; a tensor that was not on the CPU comes as a `Moved`."""
    if isinstance(value, list):
        return [decode(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return Moved(tensors[value["tensor"]]) if value["device"] != "cpu" else tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(decode(one, tensors) for one in value["tuple"])
    return {key: decode(one, tensors) for key, one in value["map"].items()}


@dataclass(frozen=True)
class Moved:
    """A tensor that belongs to where the weights are.

    Args:
        tensor: Its values, on the CPU.
    """

    tensor: torch.Tensor


# ── the optimizer ────────────────────────────────────────────────────────────────────────────────────────────────────


def optimizer_tree(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], whole: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """Returns an optimizer's groups and state by parameter name.

    Args:
        optimizer: Of any kind whose state is a tree.
        names: `id(parameter)` → its name.
        whole: Makes one tensor of one that several processes share.
    """
    groups = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "names": [names[id(p)] for p in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    state = {
        names[id(p)]: _with_tensors(optimizer.state[p], whole)
        for group in optimizer.param_groups
        for p in group["params"]
        if p in optimizer.state
    }
    return {"groups": groups, "state": state}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tree: Mapping[str, Any],
    names: Mapping[int, str],
    placed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Gives an optimizer the groups and the state that `optimizer_tree` returned.

    Args:
        optimizer: Of the same kind, over the same parameters.
        tree: What was saved.
        names: `id(parameter)` → its name.
        placed: `placed(tensor, parameter)` brings a tensor to where the parameter is.

    Raises:
        CheckpointError: If the parameters are not those that were saved.
    """
    here = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    there = [group["names"] for group in tree["groups"]]
    if here != there:
        raise CheckpointError(
            "the optimizer's parameter groups are not those of the checkpoint", list(_group_faults(here, there))
        )
    for group, saved in zip(optimizer.param_groups, tree["groups"], strict=True):
        group.update({key: _with_tensors(value, _unmoved) for key, value in saved.items() if key != "names"})
        for p in group["params"]:
            if names[id(p)] in tree["state"]:
                move = _mover(p, placed)
                optimizer.state[p] = _with_tensors(tree["state"][names[id(p)]], move)


def _group_faults(here: list[list[str]], there: list[list[str]]) -> Iterable[str]:
    if len(here) != len(there):
        yield f"the checkpoint has {len(there)} groups, this run {len(here)}"
    for number, (mine, saved) in enumerate(zip(here, there, strict=False)):
        if mine != saved:
            yield f"group {number}: the checkpoint has {', '.join(saved[:8])}; this run has {', '.join(mine[:8])}"


def _mover(
    parameter: torch.Tensor, placed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Callable[[Any], torch.Tensor]:
    shared = hasattr(parameter, "full_tensor")  # a part of it is here: then its state is cut up as it is

    def move(value: Any) -> torch.Tensor:
        if isinstance(value, Moved):
            return placed(value.tensor, parameter)
        return placed(value, parameter) if shared and value.shape == parameter.shape else value

    return move


def _unmoved(value: Any) -> torch.Tensor:
    return value.tensor if isinstance(value, Moved) else value


def _with_tensors(value: Any, change: Callable[[Any], torch.Tensor]) -> Any:
    """Returns a tree with every tensor changed; mappings become plain dictionaries."""
    if isinstance(value, torch.Tensor | Moved):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _with_tensors(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(one, change) for one in value)
    return value


# ── generators ───────────────────────────────────────────────────────────────────────────────────────────────────────


def random_state(device: torch.device) -> torch.Tensor:
    """Returns the states of Python's, numpy's, torch's and the device's generators, as bytes in a tensor."""
    numpy: Any = np.random.get_state(legacy=False)
    content = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {"key": numpy["state"]["key"].tolist(), "pos": numpy["state"]["pos"]}},
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "device": _device_state(device),
    }
    return torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)


def restore_random(state: torch.Tensor, device: torch.device) -> None:
    """Gives all generators the states that `random_state` returned."""
    content = json.loads(state.numpy().tobytes())
    version, words, gauss = content["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = content["numpy"]
    numpy["state"]["key"] = np.array(numpy["state"]["key"], np.uint32)
    np.random.set_state(numpy)
    torch.set_rng_state(_bytes_tensor(content["torch"]))
    if content["device"] and device.type == "cuda":
        torch.cuda.set_rng_state(_bytes_tensor(content["device"]), device)
    if content["device"] and device.type == "mps":
        torch.mps.set_rng_state(_bytes_tensor(content["device"]))


def _device_state(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return torch.mps.get_rng_state().cpu().numpy().tobytes().hex() if device.type == "mps" else ""


def _bytes_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(bytes.fromhex(text)), dtype=torch.uint8)


# ── tensors and arrays ───────────────────────────────────────────────────────────────────────────────────────────────

_VIEWS = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
}


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Returns a tensor's numbers as an array that a checkpoint can hold; shares memory where it can."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in _VIEWS:
        carrier, dtype = _VIEWS[tensor.dtype]
        return tensor.view(carrier).numpy().view(dtype)
    return tensor.numpy()


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Returns a copy of an array's numbers as a tensor on the CPU."""
    for dtype, (carrier, scalar) in _VIEWS.items():
        if array.dtype == scalar:
            plain = np.array(array).view(np.int16 if carrier == torch.int16 else np.uint8)
            return torch.from_numpy(plain).view(dtype)
    return torch.from_numpy(np.array(array))
