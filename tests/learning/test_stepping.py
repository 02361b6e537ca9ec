"""One step: parts weighed, gradients clipped, losses guarded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from minerua.learning.config import DeviceConfig, GuardConfig
from minerua.learning.devices import DeviceManager
from minerua.learning.loading import Batch, Step
from minerua.learning.stepping import Guard, Loss, Stepper, first_extent

from .worlds import CLASSES, INPUTS, LOSSES, mlp


def world(
    *, loss: str = "cross-entropy", clip_norm: float | None = None, guard: Any = None, norm: bool = False
) -> tuple[nn.Module, Stepper]:
    torch.manual_seed(0)
    module = mlp(norm=norm)
    devices = DeviceManager(DeviceConfig(name="cpu"))
    stepper = Stepper(
        forward=module,
        parameters=list(module.parameters()),
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        loss=Loss(LOSSES[loss], {}),
        devices=devices,
        clip_norm=clip_norm,
        guard=Guard(guard or GuardConfig(), waits=False),
    )
    return module, stepper


def examples(count: int, ignored: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    targets[:ignored] = -100
    return torch.randn(count, INPUTS, generator=generator), targets


def parted(inputs: torch.Tensor, targets: torch.Tensor, sizes: list[int]) -> Step:
    batches = zip(inputs.split(sizes), targets.split(sizes), strict=True)
    return Step(0, len(inputs), [Batch(x, y) for x, y in batches])


@pytest.mark.parametrize("sizes", [[8] * 8, [1, 13, 25, 25], [64]])
@pytest.mark.parametrize(("loss", "ignored"), [("cross-entropy", 0), ("ignoring", 20)])
def test_a_batch_in_parts_is_the_whole_batch(sizes: list[int], loss: str, ignored: int) -> None:
    inputs, targets = examples(64, ignored)
    whole, parts = world(loss=loss), world(loss=loss)
    one = whole[1].take(parted(inputs, targets, [64]))
    two = parts[1].take(parted(inputs, targets, sizes))
    assert float(one.loss) == pytest.approx(float(two.loss), abs=1e-6)
    for a, b in zip(whole[0].parameters(), parts[0].parameters(), strict=True):
        assert (a - b).abs().max() < 1e-6


def test_a_part_of_which_nothing_counts_changes_nothing() -> None:
    inputs, targets = examples(8, ignored=4)
    whole, parts = world(loss="ignoring"), world(loss="ignoring")
    whole[1].take(parted(inputs, targets, [8]))
    parts[1].take(parted(inputs, targets, [4, 4]))  # the mean over the first part is NaN
    for a, b in zip(whole[0].parameters(), parts[0].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_a_longer_gradient_is_shortened_and_a_shorter_one_is_not() -> None:
    inputs, targets = examples(16)
    for longest in (0.01, 1e6):
        module, stepper = world(clip_norm=longest)
        taken = stepper.take(parted(inputs, targets, [16]))
        found = math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None))
        assert found == pytest.approx(min(longest, float(taken.norm or 0)), rel=1e-4)


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_loss_that_is_no_number_changes_no_weight(policy: Any) -> None:
    inputs, targets = examples(8)
    module, stepper = world(guard=GuardConfig(policy=policy))
    before = [p.clone() for p in module.parameters()]
    taken = stepper.take(parted(inputs * math.nan, targets, [8]))
    assert taken.why == "the loss is nan"
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_an_infinite_gradient_is_seen_where_steps_can_be_skipped() -> None:
    guard = Guard(GuardConfig(policy="skip"), waits=False)
    assert guard.verdict(1.0, float("inf")) == "the gradient's norm is inf"
    assert Guard(GuardConfig(), waits=False).verdict(1.0, None) == ""


def test_without_a_guard_everything_passes() -> None:
    assert Guard(GuardConfig(policy="off"), waits=False).verdict(math.nan, None) == ""


def test_a_leap_is_measured_in_robust_deviations() -> None:
    guard = Guard(GuardConfig(policy="skip", spike=5), waits=False)
    for number in range(20):
        assert guard.verdict(1.0 + 0.01 * (number % 5), 1.0) == ""
    assert guard.verdict(1.06, 1.0) == ""
    assert guard.verdict(3.0, 1.0).startswith("the loss leapt to 3, the median of the last 21 is 1.0")
    assert guard.verdict(0.1, 1.0) == ""  # down is no leap


def test_losses_of_a_device_that_is_waited_for_are_read_together() -> None:
    guard = Guard(GuardConfig(), waits=True)
    losses = [torch.tensor(math.nan if number == 3 else 1.0) for number in range(Guard.READ_EVERY)]
    assert [guard.verdict(loss, None) for loss in losses[:-1]] == [""] * (Guard.READ_EVERY - 1)
    assert guard.verdict(losses[-1], None) == "the loss is nan"
    assert guard.read() == ""
    guard.verdict(torch.tensor(2.0), None)
    assert guard.read() == ""
    assert guard.take_losses() == (2.0 + 3.0, 4)  # those before the NaN, and the one after


def test_a_guard_goes_on_from_its_state() -> None:
    one, other = (Guard(GuardConfig(policy="skip", spike=5), waits=False) for _ in range(2))
    for number in range(12):
        one.verdict(1.0 + number / 100, 1.0)
    other.restore(one.state())
    assert other.state() == one.state()
    assert other.verdict(9.0, 1.0) == one.verdict(9.0, 1.0) != ""


def test_targets_of_any_kind_can_be_counted() -> None:
    assert first_extent(torch.zeros(3, 2)) == 3
    assert first_extent({"boxes": torch.zeros(4, 2)}) == 4
    assert first_extent(["a", "b"]) == 2
