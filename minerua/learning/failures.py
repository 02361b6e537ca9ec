"""What went wrong in a step, in words: memory that ran out, shapes that do not fit, labels out of range."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minerua.errors import LearningError, MineruaError, OutOfMemory
from minerua.learning.config import TrainingConfig
from minerua.learning.devices import DeviceManager, is_out_of_memory
from minerua.learning.loading import Step


def explained(
    error: Exception, step: Step | None, config: TrainingConfig, devices: DeviceManager, *, number: int
) -> Exception:
    """Returns what to raise for an exception in a step: ours stays as it is.

    Args:
        error: What model, loss or optimizer raised.
        step: What it was about; `None`: an evaluation.
        config: The run's.
        devices: Where.
        number: The step's number, from 1.
    """
    if isinstance(error, MineruaError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory(_memory_text(config, devices, number))
    if step is None:
        return LearningError(f"the evaluation after step {number} failed: {what_happened(error)}")
    batch = step.batches[0]
    return LearningError(
        f"step {number} failed: {what_happened(error)}; inputs: {described(batch.inputs)}; "
        f"targets: {described(batch.targets)}"
    )


def _memory_text(config: TrainingConfig, devices: DeviceManager, number: int) -> str:
    parts = config.accumulate * devices.processes
    tried = max(1, config.batch_size // parts)
    more = next((n for n in range(config.accumulate + 1, config.batch_size + 1) if config.batch_size % n == 0), None)
    advice = f"set accumulate to {more}, which gives the same result in less memory" if more else "use a smaller model"
    precision = "" if config.device.precision != "float32" else ", or device.precision to bfloat16"
    return (
        f"step {number}: memory ran out on {devices.device} with {tried} examples at a time (batch_size "
        f"{config.batch_size}, accumulate {config.accumulate}, {devices.processes} processes); {advice}{precision}; "
        "--resume goes on from the last checkpoint"
    )


def what_happened(error: BaseException) -> str:
    """Returns an exception's type, text and place in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if "torch" not in Path(one.filename).parts] or list(frames)
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def described(value: Any) -> str:
    """Returns the shapes, dtypes and ranges of a batch.

    Example:
        >>> described({"ids": torch.tensor([[1, 2]])})
        '{ids: [1, 2] int64 from 1 to 2}'
    """
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        span = (
            f" from {value.min().item():.6g} to {value.max().item():.6g}"
            if value.numel() and value.isreal().all()
            else ""
        )
        return f"{list(value.shape)} {dtype}{span}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {described(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(described, value[:4])) + ("…" if len(value) > 4 else "") + "]"
    return f"a {type(value).__name__}"
