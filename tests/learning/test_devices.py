"""Where numbers are computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minerua.errors import LearningError
from minerua.learning.config import DeviceConfig
from minerua.learning.devices import DeviceManager, is_out_of_memory

from .worlds import INPUTS, mlp


def manager(**settings: Any) -> DeviceManager:
    return DeviceManager(DeviceConfig(**{"name": "cpu", **settings}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "cuda"}, "device.name: cuda means cuda:0, here are 0 CUDA devices; try cpu or auto"),
        ({"name": "cuda:3"}, "here are 0 CUDA devices"),
        ({"name": "mps"}, "device.name: mps needs an Apple GPU and a torch built for it"),
        ({"precision": "float16"}, "float16 with a scaled loss needs CUDA, the device is cpu; try bfloat16"),
    ],
)
def test_what_is_not_there_is_refused_with_what_to_do(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(LearningError, match=r"the section device cannot be carried out here") as caught:
        manager(**settings)
    assert expected in str(caught.value)


def test_threads_and_determinism_are_put_back() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with manager(threads=1, deterministic=True).at_work():
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_bfloat16_is_the_precision_of_the_forward_pass_only() -> None:
    devices = manager(precision="bfloat16")
    module = devices.place(mlp())
    with devices.autocast():
        out = module(torch.zeros(2, INPUTS))
    assert out.dtype == torch.bfloat16
    assert next(module.parameters()).dtype == torch.float32


def test_alone_there_is_nobody_to_wait_for() -> None:
    devices = manager()
    assert devices.totals([1.5, 2.0]) == [1.5, 2.0]
    assert devices.in_turn(lambda: 3) == 3
    (found,) = devices.gathered(torch.arange(3, dtype=torch.uint8))
    assert found.tolist() == [0, 1, 2]
    module = mlp()
    assert devices.parallel(module) is module
    with devices.unsynchronised(module):
        devices.barrier()


def test_batches_of_every_shape_are_moved() -> None:
    devices = manager()
    devices.device = torch.device("meta")  # a device that every torch has
    moved = devices.moved({"a": torch.zeros(2), "b": [torch.zeros(1), "text"], "c": (1, torch.zeros(1))})
    assert moved["a"].device.type == moved["b"][0].device.type == moved["c"][1].device.type == "meta"
    assert moved["b"][1] == "text"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_recognised(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
