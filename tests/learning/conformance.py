"""What every optimizer and every loss has to do, whoever wrote it; each check fails with a message of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minerua.values import LossSpec

Build = Callable[..., torch.optim.Optimizer]


# ── what optimizers minimise ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Target:
    """Something to minimise, whose minimum is known.

    Args:
        start: Where parameters begin, tensors of any shape.
        minimum: Where they should end.
        objective: `objective(parameters)` is what is made small; 0 at the minimum.
    """

    start: tuple[torch.Tensor, ...]
    minimum: tuple[torch.Tensor, ...]
    objective: Callable[[Sequence[torch.Tensor]], torch.Tensor]

    def parameters(self) -> list[torch.nn.Parameter]:
        """Returns fresh parameters at the start."""
        return [torch.nn.Parameter(one.clone()) for one in self.start]


def squared_distance(minimum: Sequence[torch.Tensor]) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    def objective(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        squares = [(p - m).square().sum() for p, m in zip(parameters, minimum, strict=True)]
        return torch.stack(squares).sum()

    return objective


def parabola() -> Target:
    """The squared distance from a point of three numbers."""
    minimum = (torch.tensor([1.0, -1.0, 0.5]),)
    return Target((torch.tensor([-1.0, 1.5, 2.0]),), minimum, squared_distance(minimum))


def rosenbrock() -> Target:
    """The curved valley of Rosenbrock 1960: (1 − x)² + 100 (y − x²)², from (0, 0)."""

    def objective(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        x, y = parameters[0]
        return (1 - x).square() + 100 * (y - x.square()).square()

    return Target((torch.zeros(2),), (torch.ones(2),), objective)


def mixed_shapes() -> Target:
    """The squared distance from a scalar, a vector, a matrix and a tensor of four dimensions."""
    shapes = ((), (3,), (4, 3), (2, 3, 2, 2))
    generator = torch.Generator().manual_seed(7)
    minimum = tuple(torch.rand(shape, generator=generator) + 0.5 for shape in shapes)
    return Target(tuple(torch.zeros(shape) for shape in shapes), minimum, squared_distance(minimum))


# ── optimizers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def step(optimizer: torch.optim.Optimizer, target: Target, parameters: Sequence[torch.Tensor]) -> None:
    """Takes one step as a training loop does: without a closure."""
    optimizer.zero_grad()
    loss = target.objective(parameters)
    loss.backward()
    optimizer.step()


def check_learns(
    build: Build, target: Target, *, settings: Mapping[str, Any], steps: int, within: float = 0.05
) -> None:
    """The optimizer finds the minimum, with a rate that falls to zero like a cosine."""
    found = minimised(build, target, settings=settings, steps=steps)
    distance = max(float((p - m).abs().max()) for p, m in zip(found, target.minimum, strict=True))
    assert distance <= within, f"{distance:.3g} from the minimum after {steps} steps; at most {within} is allowed"
    assert all(p.shape == m.shape for p, m in zip(found, target.minimum, strict=True))


def check_descends(
    build: Build, target: Target, *, settings: Mapping[str, Any], steps: int, share: float = 0.1
) -> None:
    """The objective falls to a share of what it was: for targets whose minimum is far along a valley."""
    found = minimised(build, target, settings=settings, steps=steps)
    before, after = float(target.objective(target.start)), float(target.objective(found))
    assert after <= share * before, (
        f"{before:.3g} fell to {after:.3g} in {steps} steps; {share * before:.3g} is allowed"
    )


def minimised(build: Build, target: Target, *, settings: Mapping[str, Any], steps: int) -> list[torch.Tensor]:
    """Returns the parameters after so many steps, with a rate that falls to zero like a cosine."""
    parameters = target.parameters()
    optimizer = build([{"params": parameters}], **settings)
    rates = [group["lr"] for group in optimizer.param_groups]
    for number in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * number / steps))
        step(optimizer, target, parameters)
    return [p.detach() for p in parameters]


def check_state_round_trip(build: Build, *, settings: Mapping[str, Any], steps: int = 5) -> None:
    """A fresh optimizer that was given the state goes on bit for bit, and both states are equal in the end."""
    target = mixed_shapes()
    first = target.parameters()
    optimizer = build([{"params": first}], **settings)
    for _ in range(steps):
        step(optimizer, target, first)
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    resumed = build([{"params": second}], **settings)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(steps):
        step(optimizer, target, first)
        step(resumed, target, second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "the resumed optimizer went elsewhere"
    assert same_tree(optimizer.state_dict(), resumed.state_dict()), "the resumed optimizer has another state"


def check_repeatable(build: Build, *, settings: Mapping[str, Any], steps: int = 5) -> None:
    """The same start gives the same bits."""

    def run() -> list[torch.Tensor]:
        torch.manual_seed(0)
        target = mixed_shapes()
        parameters = target.parameters()
        optimizer = build([{"params": parameters}], **settings)
        for _ in range(steps):
            step(optimizer, target, parameters)
        return [p.detach() for p in parameters]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True)), "two equal runs gave different weights"


def check_groups_have_their_own_settings(build: Build, *, settings: Mapping[str, Any]) -> None:
    """A group with the rate 0 stays where it is, and one without gradients too."""
    target = mixed_shapes()
    parameters = target.parameters()
    frozen = torch.nn.Parameter(torch.ones(3, 3))
    groups = [
        {"params": parameters[:2], "weight_decay": 0.0},
        {"params": [*parameters[2:], frozen], "lr": 0.0, "weight_decay": 0.0},
    ]
    step(build(groups, **settings), target, parameters)
    moved = [not torch.equal(p, s) for p, s in zip(parameters, target.start, strict=True)]
    assert moved == [True, True, False, False], f"which parameters moved: {moved}"
    assert torch.equal(frozen, torch.ones(3, 3)), "a parameter without a gradient moved"


def same_tree(a: Any, b: Any) -> bool:
    """Whether two states are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_tree, a, b))
    return bool(a == b)


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def count_of(spec: LossSpec, targets: torch.Tensor, settings: Mapping[str, Any]) -> float:
    return len(targets) if spec.count is None else spec.count(targets, **settings)


def check_is_a_loss(
    spec: LossSpec, predictions: torch.Tensor, targets: torch.Tensor, settings: Mapping[str, Any]
) -> None:
    """A finite number above zero that can be differentiated, and leaves what it is given alone."""
    before = targets.clone()
    inputs = predictions.float().requires_grad_()
    loss = spec.call(inputs, targets, **settings)
    loss.backward()
    assert loss.dim() == 0, f"the loss has the shape {list(loss.shape)}"
    assert math.isfinite(loss.item())
    assert loss.item() > 0
    assert inputs.grad is not None
    assert bool(inputs.grad.isfinite().all())
    assert bool(inputs.grad.any()), "the loss depends on no prediction"
    assert torch.equal(before, targets), "the loss changed its targets"


def check_gradient(
    spec: LossSpec, predictions: torch.Tensor, targets: torch.Tensor, settings: Mapping[str, Any], *, h: float = 1e-6
) -> None:
    """The gradient in float64 is that of central differences."""
    inputs = predictions.double().requires_grad_()
    (gradient,) = torch.autograd.grad(spec.call(inputs, targets, **settings), inputs)
    numbers = inputs.detach().clone()
    flat, estimate = numbers.view(-1), torch.empty(numbers.numel(), dtype=torch.float64)
    for i in range(len(flat)):
        value = float(flat[i])
        flat[i] = value + h
        above = float(spec.call(numbers, targets, **settings))
        flat[i] = value - h
        estimate[i] = (above - float(spec.call(numbers, targets, **settings))) / (2 * h)
        flat[i] = value
    torch.testing.assert_close(gradient.view(-1), estimate, rtol=1e-5, atol=1e-7)


def check_accumulation(
    spec: LossSpec, predictions: torch.Tensor, targets: torch.Tensor, settings: Mapping[str, Any], *, parts: int = 8
) -> None:
    """A batch in parts, each weighed by its count, has the loss and the gradient of the whole batch within 1e-6."""
    whole = predictions.float().requires_grad_()
    loss = spec.call(whole, targets, **settings)
    loss.backward()
    inputs = predictions.float().requires_grad_()
    total, summed = count_of(spec, targets, settings), 0.0
    for x, y in zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
        part = spec.call(x, y, **settings) * (count_of(spec, y, settings) / total)
        part.backward()
        summed += part.item()
    assert whole.grad is not None
    assert inputs.grad is not None
    assert abs(summed - loss.item()) <= 1e-6 * max(1.0, loss.item()), f"{summed} in parts, {loss.item()} whole"
    torch.testing.assert_close(inputs.grad, whole.grad, rtol=1e-6, atol=1e-6)
