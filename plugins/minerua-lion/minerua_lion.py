"""Lion, an optimizer that steps by the sign of a momentum: half of Adam's state, and steps of one size."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from minerua import OptimizerSpec, hookimpl

if TYPE_CHECKING:
    import torch


def build(
    parameters: Iterable[Any],
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Builds Lion.

    Args:
        parameters: Parameter groups, or tensors.
        lr: The step of every weight; 3 to 10 times smaller than AdamW's.
        betas: How slowly the direction of a step, and the momentum, forget; each in [0, 1).
        weight_decay: Decoupled; 3 to 10 times larger than AdamW's, since it is multiplied by the rate.

    Raises:
        ValueError: A setting is out of range.

    Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2.
    """
    defaults = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
    return _lion()(parameters, defaults)


@hookimpl
def minerua_optimizers() -> list[OptimizerSpec]:
    """Provides Lion."""
    return [OptimizerSpec("lion", build)]


@lru_cache(maxsize=1)
def _lion() -> type[torch.optim.Optimizer]:
    """Returns the class; made when it is first needed, because `minerua plugins list` does without torch."""
    import torch

    class Lion(torch.optim.Optimizer):
        """Lion over parameter groups with `lr`, `betas` and `weight_decay`."""

        def add_param_group(self, param_group: dict[str, Any]) -> None:
            """Adds a group, once its settings are in their ranges."""
            _check({**self.defaults, **param_group})
            super().add_param_group(param_group)

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            """Changes every parameter that has a gradient."""
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        _change(parameter, parameter.grad, self.state[parameter], group)
            return loss

    return Lion


def _change(parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], settings: dict[str, Any]) -> None:
    """Takes one step: the sign of what the momentum and the gradient agree on, and the decay, both times the rate."""
    import torch

    if "momentum" not in state:
        state["momentum"] = torch.zeros_like(parameter)
    momentum, (beta_1, beta_2), rate = state["momentum"], settings["betas"], settings["lr"]
    direction = momentum.mul(beta_1).add_(gradient, alpha=1 - beta_1).sign_()
    parameter.sub_(direction.add_(parameter, alpha=settings["weight_decay"]).mul_(rate))
    momentum.mul_(beta_2).add_(gradient, alpha=1 - beta_2)


def _check(settings: dict[str, Any]) -> None:
    betas = settings["betas"]
    faults = [
        f"{name} is {settings[name]}; it is at least 0" for name in ("lr", "weight_decay") if not settings[name] >= 0
    ]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        faults.append(f"betas are {betas}; two numbers in [0, 1) are needed")
    if faults:
        raise ValueError(f"Lion cannot be built: {'; '.join(faults)}")
