"""What a trainer works with, and how weights leave a model and come back to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from minerua.errors import CheckpointError
from minerua.learning.checkpoints import CheckpointManager, Opened
from minerua.learning.devices import DeviceManager
from minerua.learning.evaluator import ModelEvaluator
from minerua.learning.loading import Loader
from minerua.learning.state import restore_optimizer
from minerua.learning.stepping import Loss


@dataclass(frozen=True)
class Parts:
    """What a trainer works with.

    Args:
        module: The model, where it is to be; its `state_dict` has the names of the weights.
        optimizer: Over its parameters.
        loss: What is made small.
        training: The training split.
        validation: The validation split; `None` without one: the training loss stands for it.
        devices: Where.
        evaluator: Measures.
        checkpoints: Where runs are saved.
        environment: What bits depend on besides the configuration; compared when a run goes on, and told.
        identity: What must be the same when a run goes on, besides the configuration, such as digests.
        saved: Which tensors of the `state_dict` are saved; `None`: all.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    training: Loader
    validation: Loader | None
    devices: DeviceManager
    evaluator: ModelEvaluator
    checkpoints: CheckpointManager
    environment: Mapping[str, Any]
    identity: Mapping[str, Any]
    saved: frozenset[str] | None = None

    @property
    def names(self) -> dict[int, str]:
        """`id(parameter)` → its name."""
        return {id(p): name for name, p in self.module.named_parameters()}

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the tensors that are saved, by name; every process must ask."""
        return {name: self.devices.whole(tensor) for name, tensor in self._wanted().items()}

    def broken(self) -> str:
        """Returns the name of a weight that holds NaN or infinity; empty if each is sound. Every process must ask."""
        tensors = {name: one for name, one in self._wanted().items() if one.is_floating_point()}
        local = [one.to_local() if hasattr(one, "to_local") else one for one in tensors.values()]
        sound = [bool(flag) for flag in torch.stack([torch.isfinite(one).all() for one in local]).tolist()]
        (faults,) = self.devices.totals([float(not all(sound))])
        first = next(
            (name for name, flag in zip(tensors, sound, strict=True) if not flag), "a weight of another process"
        )
        return first if faults else ""

    def load(self, opened: Opened) -> None:
        """Takes weights and optimizer from a checkpoint.

        Raises:
            CheckpointError: If names or shapes are not the model's.
        """
        self.load_weights(opened.weights, where=str(opened.path))
        restore_optimizer(self.optimizer, opened.state.optimizer, self.names, self.devices.placed)

    def load_weights(self, weights: Mapping[str, torch.Tensor], *, where: str) -> None:
        """Gives the model the weights of a checkpoint, in place.

        Raises:
            CheckpointError: If names or shapes are not the model's.
        """
        wanted = self._wanted()
        faults = _weight_faults(wanted, weights)
        if faults:
            raise CheckpointError(f"{where} holds another model than the one that is trained", faults)
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(self.devices.placed(weights[name], tensor))

    def _wanted(self) -> dict[str, torch.Tensor]:
        self.devices.settle(self.module)
        tensors = self.module.state_dict().items()
        return {name: tensor for name, tensor in tensors if self.saved is None or name in self.saved}


def _weight_faults(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    faults = [f"{name}: the model has it, the checkpoint does not" for name in wanted if name not in found]
    faults += [f"{name}: the checkpoint has it, the model does not" for name in found if name not in wanted]
    faults += [
        f"{name}: the model has the shape {list(tensor.shape)}, the checkpoint {list(found[name].shape)}"
        for name, tensor in wanted.items()
        if name in found and tensor.shape != found[name].shape
    ]
    return faults
