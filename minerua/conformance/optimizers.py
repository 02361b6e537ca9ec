"""What every optimizer keeps: it finds known minima, goes on from its state bit for bit, and names unknown settings."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minerua.conformance.report import Check, Found, NotJudged
from minerua.conformance.subject import Subject, same

if TYPE_CHECKING:
    import torch

Build = Callable[..., Any]

RATES = (0.1, 0.03, 0.3, 0.01, 1.0, 0.003, 3.0, 20.0, 0.001)
"""What is tried where the author names no rate: optimizers differ by four orders of magnitude in what suits them."""


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
        import torch

        return [torch.nn.Parameter(one.clone()) for one in self.start]


def _squared_distance(minimum: Sequence[torch.Tensor]) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    def objective(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        squares = [(p - m).square().sum() for p, m in zip(parameters, minimum, strict=True)]
        return torch.stack(squares).sum()

    return objective


def parabola() -> Target:
    """Returns the squared distance from a point of three numbers."""
    import torch

    minimum = (torch.tensor([1.0, -1.0, 0.5]),)
    return Target((torch.tensor([-1.0, 1.5, 2.0]),), minimum, _squared_distance(minimum))


def rosenbrock() -> Target:
    """Returns the curved valley of Rosenbrock 1960: (1 − x)² + 100 (y − x²)², from (0, 0)."""
    import torch

    def objective(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        x, y = parameters[0]
        return (1 - x).square() + 100 * (y - x.square()).square()

    return Target((torch.zeros(2),), (torch.ones(2),), objective)


def mixed_shapes() -> Target:
    """Returns the squared distance from a scalar, a vector, a matrix and a tensor of four dimensions."""
    import torch

    shapes = ((), (3,), (4, 3), (2, 3, 2, 2))
    generator = torch.Generator().manual_seed(7)
    minimum = tuple(torch.rand(shape, generator=generator) + 0.5 for shape in shapes)
    return Target(tuple(torch.zeros(shape) for shape in shapes), minimum, _squared_distance(minimum))


# ── the laws, for any builder and settings ───────────────────────────────────────────────────────────────────────────


def learns(build: Build, target: Target, *, settings: Mapping[str, Any], steps: int, within: float = 0.05) -> list[str]:
    """Tells how far from the minimum the optimizer ends, with a rate that falls to zero like a cosine; [] if near."""
    found = minimised(build, target, settings=settings, steps=steps)
    if any(p.shape != m.shape for p, m in zip(found, target.minimum, strict=True)):
        return ["a parameter has another shape after the steps than before them"]
    distance = max(float((p - m).abs().max()) for p, m in zip(found, target.minimum, strict=True))
    far = not distance <= within  # NaN is far
    return [f"{distance:.3g} from the minimum after {steps} steps; at most {within} is allowed"] if far else []


def descends(build: Build, target: Target, *, settings: Mapping[str, Any], steps: int, share: float = 0.1) -> list[str]:
    """Tells if the objective does not fall to a share of what it was: for a minimum far along a valley."""
    found = minimised(build, target, settings=settings, steps=steps)
    before, after = float(target.objective(target.start)), float(target.objective(found))
    far = not after <= share * before
    return (
        [f"the objective fell from {before:.3g} to {after:.3g} in {steps} steps; {share * before:.3g} is allowed"]
        if far
        else []
    )


def step(optimizer: torch.optim.Optimizer, target: Target, parameters: Sequence[torch.Tensor]) -> None:
    """Takes one step as a training loop does: without a closure."""
    optimizer.zero_grad()
    loss = target.objective(parameters)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


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


def goes_on_from_its_state(build: Build, *, settings: Mapping[str, Any], steps: int = 5) -> list[str]:
    """Tells if a fresh optimizer that was given the state does not go on bit for bit, or ends with another state."""
    import torch

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
    apart = not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = not same_tree(optimizer.state_dict(), resumed.state_dict())
    return ["the resumed optimizer went elsewhere"] * apart + ["the resumed optimizer has another state"] * other


def repeats(build: Build, *, settings: Mapping[str, Any], steps: int = 5) -> list[str]:
    """Tells if the same start does not give the same bits."""
    import torch

    def run() -> list[torch.Tensor]:
        torch.manual_seed(0)
        target = mixed_shapes()
        parameters = target.parameters()
        optimizer = build([{"params": parameters}], **settings)
        for _ in range(steps):
            step(optimizer, target, parameters)
        return [p.detach() for p in parameters]

    equal = all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    return [] if equal else ["two equal runs gave different weights"]


def keeps_groups_apart(build: Build, *, settings: Mapping[str, Any]) -> list[str]:
    """Tells if a group with the rate 0 moves, or a parameter without a gradient, or if a group does not move at all."""
    import torch

    target = mixed_shapes()
    parameters = target.parameters()
    frozen = torch.nn.Parameter(torch.ones(3, 3))
    groups = [
        {"params": parameters[:2]},
        {"params": [*parameters[2:], frozen], "lr": 0.0},
    ]
    step(build(groups, **settings), target, parameters)
    moved = [not torch.equal(p, s) for p, s in zip(parameters, target.start, strict=True)]
    found = [] if moved == [True, True, False, False] else [f"which of two groups' parameters moved, rate 0: {moved}"]
    if not torch.equal(frozen, torch.ones(3, 3)):
        found.append("a parameter without a gradient moved")
    return found


def same_tree(a: Any, b: Any) -> bool:
    """Tells whether two states are equal, tensors bit for bit."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_tree, a, b))
    return same(a, b)


# ── the checks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _settings(subject: Subject) -> dict[str, Any]:
    """Returns the author's settings, or no decay where that can be said: a minimum is sought, not a small weight."""
    return subject.once("settings", lambda: subject.settings or _without_decay(subject.spec.build))


def _without_decay(build: Build) -> dict[str, Any]:
    try:
        build([{"params": parabola().parameters()}], lr=0.1, weight_decay=0.0)
    except TypeError:
        return {}
    return {"weight_decay": 0.0}


def _at_some_rate(subject: Subject, law: Callable[[Mapping[str, Any]], list[str]]) -> Found:
    """Tells what is wrong at the best rate: nothing, if the law holds at one of them."""
    settings = _settings(subject)
    if "lr" in settings:
        return law(settings)
    found = list[str]()
    for rate in RATES:
        found = law({**settings, "lr": rate})
        if not found:
            return []
    return [f"with none of the rates {', '.join(map(str, RATES))}; with the last: {found[0]}"]


def _with_a_rate(subject: Subject) -> dict[str, Any]:
    return {"lr": 0.01, **_settings(subject)}


def _builds(subject: Subject) -> Found:
    import torch

    built = subject.spec.build([{"params": parabola().parameters()}], **_with_a_rate(subject))
    if not isinstance(built, torch.optim.Optimizer):
        return [f"build returned {type(built).__name__}, no torch.optim.Optimizer"]
    return [] if all("lr" in group for group in built.param_groups) else ["its parameter groups have no 'lr'"]


def _unknown_setting(subject: Subject) -> Found:
    try:
        subject.spec.build([{"params": parabola().parameters()}], no_such_setting=1.0)
    except TypeError as error:
        return [] if "no_such_setting" in str(error) else [f"the TypeError does not name the setting: {error}"]
    except Exception as error:  # noqa: BLE001 - any other error is the problem
        return [f"build with the setting no_such_setting raised {type(error).__name__}: {error}"]
    return ["build took the setting no_such_setting without a word"]


def _learning(target: Callable[[], Target]) -> Callable[[Subject], Found]:
    def run(subject: Subject) -> Found:
        build = subject.spec.build
        return _at_some_rate(subject, lambda settings: learns(build, target(), settings=settings, steps=150))

    return run


def _valley(subject: Subject) -> Found:
    build = subject.spec.build
    chosen = "lr" in subject.settings  # a rate for a parabola is seldom one for a valley that is 100 times as steep
    if chosen:
        return NotJudged("the author's rate is for the other targets; leave lr out to have this one tried")
    return _at_some_rate(subject, lambda settings: descends(build, rosenbrock(), settings=settings, steps=600))


_REPAIR = "compare a step with the formula of its paper; or hand over settings that suit it, as Sample(settings=…)"

CHECKS: tuple[Check, ...] = (
    Check(
        "builds",
        "build takes parameter groups and returns a torch.optim.Optimizer whose groups have a rate",
        "return an instance of a subclass of torch.optim.Optimizer",
        _builds,
    ),
    Check("parabola", "150 steps end within 0.05 of a parabola's minimum", _REPAIR, _learning(parabola)),
    Check("valley", "600 steps fall to a tenth in the valley of Rosenbrock", _REPAIR, _valley),
    Check(
        "mixed-shapes",
        "a scalar, a vector, a matrix and a tensor of four dimensions are learned together",
        "look at what is done to each shape; what is for matrices alone must leave the others to another rule",
        _learning(mixed_shapes),
    ),
    Check(
        "state",
        "an optimizer that was given the state of another goes on bit for bit",
        "keep everything that a step needs in self.state or in the groups, so that state_dict has it",
        lambda subject: goes_on_from_its_state(subject.spec.build, settings=_with_a_rate(subject)),
    ),
    Check(
        "repeatable",
        "the same start and the same seed give the same bits",
        "draw random numbers from torch's generator alone, and nothing from clocks or addresses",
        lambda subject: repeats(subject.spec.build, settings=_with_a_rate(subject)),
    ),
    Check(
        "groups",
        "groups have settings of their own, and a parameter without a gradient stays where it is",
        "read settings from the group, not from the defaults, and pass over parameters whose grad is None",
        lambda subject: keeps_groups_apart(subject.spec.build, settings=_with_a_rate(subject)),
    ),
    Check(
        "unknown-setting",
        "a setting that it does not know raises a TypeError that names it",
        "name every setting as a keyword of build; do not take **settings and drop what is left",
        _unknown_setting,
    ),
)
