"""The U-Net as arithmetic: names and shapes of its layers, and the way through them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["GROUP", "forward", "layers_of"]

GROUP = 4
"""Channels that are normalised together."""


def layers_of(width: int, depth: int) -> dict[str, tuple[int, int]]:
    """Returns name → (m, n) of every layer in forward order: m channels out, n = channels in × 9 places of a patch.

    On the way down each step halves the picture and doubles the channels; on the way up each joins what went down.

    Args:
        width: Channels of the first step.
        depth: How many sizes there are.

    Example:
        >>> layers_of(2, 2)  # doctest: +NORMALIZE_WHITESPACE
        {'down0a': (2, 27), 'down0b': (2, 18), 'down1a': (4, 18), 'down1b': (4, 36), 'up0a': (2, 54), 'up0b': (2, 18),
         'out': (1, 2)}
    """
    shapes: dict[str, tuple[int, int]] = {}
    before = 3
    for step in range(depth):
        channels = width * 2**step
        shapes |= {f"down{step}a": (channels, 9 * before), f"down{step}b": (channels, 9 * channels)}
        before = channels
    for step in reversed(range(depth - 1)):
        channels = width * 2**step
        shapes |= {f"up{step}a": (channels, 9 * (before + channels)), f"up{step}b": (channels, 9 * channels)}
        before = channels
    return shapes | {"out": (1, before)}


def forward(
    tensors: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    depth: int,
    seen: dict[str, torch.Tensor] | None = None,
    *,
    most: int = 0,
) -> torch.Tensor:
    """Runs the network.

    Args:
        tensors: `layers.NAME.weight` and `layers.NAME.bias` for each of `layers_of`.
        images: Shape (n, h, w, 3), float32 in [0, 1]; any size, it is padded.
        depth: As in `layers_of`.
        seen: Is filled with `layers.NAME.weight` → patches that reached it, shape (rows, n), if it is given.
        most: How many rows of each image.

    Returns:
        Logits, shape (n, h, w).
    """
    from torch.nn import functional

    way = _Way(tensors, seen, most)
    height, width = images.shape[1:3]
    short = [-side % 2 ** (depth - 1) for side in (width, height)]
    x = (images.permute(0, 3, 1, 2) - 0.5) * 4
    x = functional.pad(x, (0, short[0], 0, short[1]), mode="replicate") if any(short) else x
    kept = []
    for step in range(depth):
        x = functional.max_pool2d(x, 2) if step else x
        x = way.layer(f"down{step}b", way.layer(f"down{step}a", x))
        kept.append(x)
    for step in reversed(range(depth - 1)):
        x = way.join(functional.interpolate(x, scale_factor=2.0), kept[step])
        x = way.layer(f"up{step}b", way.layer(f"up{step}a", x))
    return way.out(x)[:, :height, :width]


class _Way:
    """One way through the layers; notes what reaches them if it is asked to."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], seen: dict[str, torch.Tensor] | None, most: int) -> None:
        self.tensors, self.seen, self.most = tensors, seen, most

    def layer(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Convolves with 3 × 3 patches, normalises groups of channels, without weights, and cuts below zero."""
        from torch.nn import functional

        x = self._convolve(name, x, 3)
        channels = x.shape[1]
        return functional.relu(functional.group_norm(x, channels // GROUP if channels % GROUP == 0 else 1))

    def out(self, x: torch.Tensor) -> torch.Tensor:
        """Returns one logit per pixel."""
        return self._convolve("out", x, 1)[:, 0]

    def join(self, up: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
        """Returns the channels of both."""
        import torch

        return torch.cat([up, across], 1)

    def _convolve(self, name: str, x: torch.Tensor, side: int) -> torch.Tensor:
        from torch.nn import functional

        weight, bias = self.tensors[f"layers.{name}.weight"], self.tensors[f"layers.{name}.bias"]
        if self.seen is not None:
            self.seen[f"layers.{name}.weight"] = self._patches(x, side)
        return functional.conv2d(x, weight.view(len(weight), -1, side, side), bias, padding=side // 2)

    def _patches(self, x: torch.Tensor, side: int) -> torch.Tensor:
        """Returns patches as rows, evenly spread over each image's places; the same ones for every model."""
        import torch
        from torch.nn import functional

        count, channels, height, width = x.shape
        here = min(self.most, height * width)
        places = torch.arange(here) * (height * width) // here
        rows, columns = places // width, places % width
        step = torch.arange(side)
        wide = functional.pad(x, [side // 2] * 4)
        down = (rows[:, None] + step)[:, :, None]  # (here, side, 1)
        found = wide[:, :, down, (columns[:, None] + step)[:, None, :]]  # (count, channels, here, side, side)
        return found.permute(0, 2, 1, 3, 4).reshape(count * here, channels * side * side)
