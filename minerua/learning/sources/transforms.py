"""What becomes of numbers on their way to a model: scaled, changed at random in the train split, normalised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np

from minerua.learning.data_config import TransformsConfig

if TYPE_CHECKING:
    import torch


@final
class Transform:
    """Changes the inputs of one row.

    Args:
        config: What is done.
        scale: What numbers are multiplied with where the config leaves it open.
    """

    def __init__(self, config: TransformsConfig, *, scale: float = 1.0) -> None:
        self._augment = config.augment
        self._dtype = np.dtype(config.dtype)
        self._scale = self._dtype.type(scale if config.scale is None else config.scale)
        self._scaled = self._scale != 1
        self._mean, self._std = np.array(config.mean, self._dtype), np.array(config.std, self._dtype)
        self._plain = not (self._scaled or self._mean.size or self._std.size)

    @property
    def augments(self) -> bool:
        """Whether anything random happens."""
        return self._augment.active

    def faults(self, shape: tuple[int, ...]) -> list[str]:
        """Returns what cannot be done to rows of a shape."""
        faults = [
            f"transforms.{name} has {array.size} numbers, the rows' first axis has {shape[0] if shape else 'none'}"
            for name, array in (("mean", self._mean), ("std", self._std))
            if array.size > 1 and (not shape or array.size != shape[0])
        ]
        needed = 2 if self._augment.shift else 1 if self._augment.flip else 0
        if len(shape) < needed:
            faults.append(f"transforms.augment: flip needs rows of 1 axis and shift of 2, found shape {list(shape)}")
        if self._augment.shift and len(shape) >= 2 and self._augment.shift >= min(shape[-2:]):
            faults.append(f"transforms.augment.shift moves rows of shape {list(shape)} out of sight")
        return faults

    def apply(self, row: np.ndarray, generator: torch.Generator | None = None) -> np.ndarray:
        """Returns the row as a model sees it.

        Args:
            row: Any shape, numbers; left as it is.
            generator: What augmentation draws from; `None` for none.

        Returns:
            The same shape, of the configured dtype; the same generator state gives the same bits.
        """
        if self._plain and generator is None:
            return row.astype(self._dtype)
        row = row.astype(self._dtype)
        if self._scaled:
            row *= self._scale
        if generator is not None and self.augments:
            row = self._drawn(row, generator)
        if self._mean.size:
            row -= self._along(self._mean, row)
        if self._std.size:
            row /= self._along(self._std, row)
        return row

    def _along(self, numbers: np.ndarray, row: np.ndarray) -> Any:
        return numbers.reshape(-1, *[1] * (row.ndim - 1)) if numbers.size > 1 else numbers[0]

    def _drawn(self, row: np.ndarray, generator: torch.Generator) -> np.ndarray:
        import torch

        if self._augment.flip and float(torch.rand((), generator=generator)) < self._augment.flip:
            row = row[..., ::-1].copy()
        if self._augment.shift:
            most = self._augment.shift
            down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
            row = shifted(row, down, right)
        if self._augment.noise:
            noise = torch.randn(row.shape, generator=generator).numpy()
            row = row + (self._augment.noise * noise).astype(row.dtype)
        return row


def shifted(row: np.ndarray, down: int, right: int) -> np.ndarray:
    """Returns a row moved along its last two axes; zeros come in.

    Example:
        >>> shifted(np.array([[1, 2], [3, 4]]), 0, 1).tolist()
        [[0, 1], [0, 3]]
    """
    moved = np.zeros_like(row)
    into_y, from_y = _overlap(down)
    into_x, from_x = _overlap(right)
    moved[..., into_y, into_x] = row[..., from_y, from_x]
    return moved


def _overlap(step: int) -> tuple[slice, slice]:
    """Returns where elements come to lie, and where they came from."""
    if step >= 0:
        return slice(step, None), slice(None, -step or None)
    return slice(None, step), slice(-step, None)
