"""The laws of optimizers: each is broken once on purpose."""

from __future__ import annotations

import itertools

import pytest
import torch

from minerua import OptimizerSpec
from minerua.conformance import Sample, examine

from .asking import found, reasons

TICKS = itertools.count()


class Descent(torch.optim.Optimizer):
    """Gradient descent, to be broken by what is done beside it."""

    def __init__(self, parameters, lr=0.1, beside=lambda optimizer, parameter: None, **_):
        super().__init__(parameters, {"lr": lr})
        self.beside = beside

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"])
                self.beside(self, parameter)


def spec(beside=lambda optimizer, parameter: None):
    def build(parameters, *, lr=0.1):
        return Descent(parameters, lr, beside)

    return OptimizerSpec("o", build)


def turned(optimizer, parameter):
    if parameter.grad is not None:
        parameter.add_(parameter.grad, alpha=2 * optimizer.param_groups[0]["lr"])


def remembers_outside(optimizer, parameter):
    optimizer.steps = getattr(optimizer, "steps", 0) + 1
    parameter.add_(0.01 / optimizer.steps)


def counts_in_its_state(optimizer, parameter):
    optimizer.state[parameter]["tick"] = next(TICKS)


def reshaped(optimizer, parameter):
    if parameter.dim() == 0:
        parameter.data = parameter.data.reshape(1)


class WithoutRate(torch.optim.SGD):
    """Keeps its rate to itself."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            del group["lr"]


def refuses_badly(parameters, lr=0.1, **settings):
    if settings:
        raise KeyError("what is this")
    return Descent(parameters, lr)


def refuses_silently(parameters, lr=0.1, **settings):
    if settings:
        raise TypeError("wrong call")
    return Descent(parameters, lr)


BROKEN = [
    (OptimizerSpec("o", lambda parameters, lr=0.1: "sgd"), "builds", "build returned str, no torch.optim.Optimizer"),
    (
        OptimizerSpec("o", lambda parameters, lr=0.1: WithoutRate(parameters)),
        "builds",
        "its parameter groups have no 'lr'",
    ),
    (spec(turned), "parabola", "with none of the rates 0.1, 0.03"),
    pytest.param(
        spec(turned), "valley", "with the last: the objective fell from 1 to ", marks=pytest.mark.slow, id="valley"
    ),
    (spec(turned), "mixed-shapes", "from the minimum after 150 steps; at most 0.05 is allowed"),
    (spec(reshaped), "mixed-shapes", "a parameter has another shape after the steps than before them"),
    (spec(remembers_outside), "state", "the resumed optimizer went elsewhere"),
    (spec(counts_in_its_state), "state", "the resumed optimizer has another state"),
    (spec(lambda o, p: p.add_(1e-3 * next(TICKS))), "repeatable", "two equal runs gave different weights"),
    (
        spec(lambda o, p: p.add_(1.0)),
        "groups",
        "which of two groups' parameters moved, rate 0: [True, True, True, True]",
    ),
    (
        spec(lambda o, p: p.add_(1.0) if p.grad is None else None),
        "groups",
        "a parameter without a gradient moved",
    ),
    (OptimizerSpec("o", Descent), "unknown-setting", "build took the setting no_such_setting without a word"),
    (
        OptimizerSpec("o", refuses_badly),
        "unknown-setting",
        "build with the setting no_such_setting raised KeyError: 'what is this'",
    ),
    (OptimizerSpec("o", refuses_silently), "unknown-setting", "the TypeError does not name the setting: wrong call"),
]


@pytest.mark.parametrize(("broken", "check", "text"), BROKEN)
def test_an_optimizer_that_breaks_a_law_is_told(broken, check, text):
    (one, *_) = found(broken, check)
    assert text in one


@pytest.mark.slow
def test_an_optimizer_that_keeps_the_laws_passes_but_for_the_valley_which_is_too_long_without_momentum():
    assert {problem.check for problem in examine(spec()).problems} == {"valley"}


def test_the_author_s_rate_is_the_only_one_that_is_tried():
    (one,) = found(spec(), "parabola", samples={"o": Sample(settings={"lr": 1e-5})})
    assert one.endswith("from the minimum after 150 steps; at most 0.05 is allowed")
    assert found(spec(), "parabola", samples={"o": Sample(settings={"lr": 0.1})}) == []
    (why,) = reasons(spec(), "valley", samples={"o": Sample(settings={"lr": 0.1})})
    assert why == "the author's rate is for the other targets; leave lr out to have this one tried"
