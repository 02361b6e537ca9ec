"""Where numbers are computed: one device or several processes, precision, reproducibility; all of it torch's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from minerua.errors import LearningError
from minerua.learning.config import DeviceConfig

T = TypeVar("T")

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_AS_IT_IS = contextlib.nullcontext()


class DeviceManager:
    """Places a model and its batches, and speaks for all processes that work on it.

    Under `torchrun` several processes do; each takes the GPU of its local rank, or the CPU.

    Args:
        config: Device, precision, strategy and so on.

    Raises:
        LearningError: If the device is not there, or cannot compute in the precision; lists all faults.
    """

    def __init__(self, config: DeviceConfig) -> None:
        self.config = config
        self.rank = int(os.environ.get("RANK", "0"))
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = _device(config.name)
        faults = _faults(config, self.device)
        if faults:
            raise LearningError("the section device cannot be carried out here", faults)
        self.scaler = torch.amp.GradScaler("cuda") if config.precision == "float16" else None
        self._dtype = _DTYPES.get(config.precision)
        self._mesh: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def waits(self) -> bool:
        """Whether reading a number off the device makes this process wait for it."""
        return self.device.type != "cpu"

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Joins the other processes and sets what belongs to the whole process; puts it back in the end."""
        with contextlib.ExitStack() as stack:
            if self.config.threads is not None:
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(self.config.threads)
            if self.config.deterministic:
                stack.enter_context(_deterministic())
            if self.processes > 1:
                stack.enter_context(self._joined())
            yield

    @contextlib.contextmanager
    def _joined(self) -> Iterator[None]:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        mine = not torch.distributed.is_initialized()
        if mine:
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        try:
            yield
        finally:
            if mine:
                torch.distributed.destroy_process_group()

    # ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────

    def place(self, module: nn.Module) -> nn.Module:
        """Brings a model to the device, and cuts it up for the processes where the strategy says so; in place."""
        module.to(self.device)
        if self.config.compile:
            module.compile()
        if self.processes > 1 and self.config.strategy == "fsdp":
            self._shard(module)
        return module

    def _shard(self, module: nn.Module) -> None:
        """Lets each process hold a part of the weights: each block of a list of blocks by itself, then the rest."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._mesh = init_device_mesh(self.device.type, (self.processes,))
        blocks = [block for one in module.modules() if isinstance(one, nn.ModuleList) for block in one]
        for block in [one for one in blocks if any(True for _ in one.parameters())]:
            fully_shard(block, mesh=self._mesh)
        fully_shard(module, mesh=self._mesh)

    def settle(self, module: nn.Module) -> None:
        """Lets each process hold its own part again, where a forward pass has brought all parts together."""
        if self._mesh is not None:
            for one in module.modules():
                if hasattr(one, "reshard"):
                    one.reshard()  # type: ignore[operator]

    def parallel(self, module: nn.Module) -> Callable[..., Any]:
        """Returns what a training step calls: the model, or torch's wrapper that adds up gradients."""
        if self.processes == 1 or self.config.strategy == "fsdp":
            return module
        where = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=where)

    @contextlib.contextmanager
    def unsynchronised(self, forward: Any) -> Iterator[None]:
        """Keeps gradients to this process: for all parts of a batch but the last."""
        if hasattr(forward, "no_sync"):
            with forward.no_sync():
                yield
        elif hasattr(forward, "set_requires_gradient_sync"):
            forward.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                forward.set_requires_gradient_sync(True)
        else:
            yield

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self._dtype) if self._dtype else _AS_IT_IS

    def moved(self, batch: Any) -> Any:
        """Returns a batch on the device; texts and numbers stay as they are."""
        if self.device.type == "cpu":
            return batch
        if isinstance(batch, torch.Tensor):
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, dict):
            return {key: self.moved(value) for key, value in batch.items()}
        return type(batch)(map(self.moved, batch)) if isinstance(batch, list | tuple) else batch

    # ── several processes ────────────────────────────────────────────────────────────────────────────────────────────

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Returns the sums of numbers over all processes, the same in each."""
        if self.processes == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        sums = sums.to(self.device)
        torch.distributed.all_reduce(sums)
        return [float(one) for one in sums.tolist()]

    def gathered(self, content: torch.Tensor) -> list[torch.Tensor]:
        """Returns what each process has: bytes of any length."""
        if self.processes == 1:
            return [content]
        lengths = [0.0] * self.processes
        lengths[self.rank] = float(len(content))
        sizes = [int(one) for one in self.totals(lengths)]
        mine = torch.zeros(max(sizes), dtype=torch.uint8)
        mine[: len(content)] = content
        every = [torch.empty_like(mine, device=self.device) for _ in sizes]
        torch.distributed.all_gather(every, mine.to(self.device))
        return [one[:size].cpu() for one, size in zip(every, sizes, strict=True)]

    def in_turn(self, act: Callable[[], T]) -> T:
        """Lets the first process act before the others do; returns what this one got."""
        result = act() if self.is_first else None
        self.barrier()
        if result is None:
            result = act()
        self.barrier()
        return result

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.processes > 1:
            torch.distributed.barrier()

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns one tensor of one that the processes share; each must ask."""
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def placed(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Brings a whole tensor to where another is, cut up as that one is."""
        tensor = tensor.to(self.device)
        if not hasattr(like, "full_tensor") or tensor.dim() == 0:
            return tensor
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor) or tensor.shape != like.shape:
            return tensor
        return distribute_tensor(tensor, like.device_mesh, like.placements)


def _device(name: str) -> torch.device:
    if name in ("auto", "cuda"):
        local = os.environ.get("LOCAL_RANK", "0")
        if torch.cuda.is_available() or name == "cuda":
            return torch.device(f"cuda:{local}")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    return torch.device(name)


def _faults(config: DeviceConfig, device: torch.device) -> list[str]:
    faults = []
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        faults.append(f"device.name: {config.name} means {device}, here are {count} CUDA devices; try cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        faults.append("device.name: mps needs an Apple GPU and a torch built for it; try cpu or auto")
    if config.precision == "float16" and device.type != "cuda":
        faults.append(f"device.precision: float16 with a scaled loss needs CUDA, the device is {device}; try bfloat16")
    return faults


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Lets torch refuse operations whose bits differ from run to run."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for; read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("no"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in said)
