"""The moment before a step: what an exception or a guard may want back."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import nn

_version = attrgetter("_version")  # counts the changes of a tensor


class Boundary:
    """The moment before a step, as far as an exception or a guard may want it back.

    Python's and numpy's global generators are not among it: saving their states would take longer than many steps. A
    model that draws from them goes on exactly from every checkpoint but one that was written on an exception.
    """

    def __init__(self, module: nn.Module, device: torch.device, *, keeps_buffers: bool) -> None:
        self._buffers = list(module.buffers())
        self._keeps_buffers = keeps_buffers and bool(self._buffers)
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or 0])
        self._states: list[torch.Tensor] = []
        self._versions: list[int] = []
        self._copies: list[torch.Tensor] = []

    def remember(self) -> None:
        """Marks the moment."""
        self._states = list(map(torch.Generator.get_state, self._generators))  # at every step, so without a loop
        self._versions = list(map(_version, self._buffers))
        if self._keeps_buffers:
            self._copies = [buffer.clone() for buffer in self._buffers]

    def go_back(self) -> bool:
        """Puts the generators back; returns whether everything else is as it was."""
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)
        if self._keeps_buffers:
            self.restore_buffers()
            return True
        return self._versions == list(map(_version, self._buffers))

    def restore_buffers(self) -> None:
        """Puts the buffers back, such as running means that have seen a NaN."""
        for buffer, copy in zip(self._buffers, self._copies, strict=False):
            buffer.copy_(copy)
