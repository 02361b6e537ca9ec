"""What went wrong, in words."""

from __future__ import annotations

import pytest
import torch

from minerua.errors import LearningError, OutOfMemory
from minerua.learning.config import DeviceConfig, TrainingConfig
from minerua.learning.devices import DeviceManager
from minerua.learning.failures import described, explained, what_happened
from minerua.learning.loading import Batch, Step

STEP = Step(0, 4, [Batch(torch.zeros(4, 3), torch.tensor([0, 1, 9, 2]))])
DEVICES = DeviceManager(DeviceConfig(name="cpu"))


def told(error: Exception, **changes: object) -> str:
    config = TrainingConfig.read({"model": "mlp", "loss": "mse", "batch_size": 12}).changed(**changes)
    return str(explained(error, STEP, config, DEVICES, number=3))


def test_memory_that_ran_out_says_what_was_tried_and_what_to_change() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory")
    assert isinstance(
        explained(error, STEP, TrainingConfig.read({"model": "m", "loss": "l"}), DEVICES, number=1), OutOfMemory
    )
    text = told(error, accumulate=2)
    assert "step 3: memory ran out on cpu with 6 examples at a time (batch_size 12, accumulate 2, 1 processes)" in text
    assert "set accumulate to 3, which gives the same result in less memory, or device.precision to bfloat16" in text
    assert "use a smaller model" in told(error, accumulate=12, device={"precision": "bfloat16"})
    assert "; --resume goes on from the last checkpoint" in text


def test_another_failure_says_what_the_batch_was() -> None:
    assert told(IndexError("Target 9 is out of bounds.")) == (
        "step 3 failed: IndexError: Target 9 is out of bounds.; inputs: [4, 3] float32 from 0 to 0; "
        "targets: [4] int64 from 0 to 9"
    )


def test_an_evaluation_can_fail_too() -> None:
    config = TrainingConfig.read({"model": "mlp", "loss": "mse"})
    error = explained(ValueError("a bug"), None, config, DEVICES, number=8)
    assert str(error) == "the evaluation after step 8 failed: ValueError: a bug"
    assert isinstance(explained(MemoryError(), None, config, DEVICES, number=8), OutOfMemory)


def test_our_own_errors_stay_as_they_are() -> None:
    assert told(LearningError("as it is")) == "as it is"


def test_the_place_is_outside_torch() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert "(test_failures.py:" in what_happened(caught.value)


def test_values_are_described() -> None:
    assert described([torch.tensor([1.5]), "a"]) == "[[1] float32 from 1.5 to 1.5, a str]"
    assert described(torch.zeros(0)) == "[0] float32"
