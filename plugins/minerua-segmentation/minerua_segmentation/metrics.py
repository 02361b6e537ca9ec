"""How well masks are found, per image, in [0, 1]: 1 is best for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["EPSILON", "METRICS", "absolute", "dice", "iou", "s_measure"]

EPSILON = 1e-12
"""Keeps quotients of nothing by nothing finite; far below any share of a pixel."""


def iou(found: np.ndarray, masks: np.ndarray, *, cut: float = 0.5) -> np.ndarray:
    """Returns intersection over union per image; 1 where both are empty, 0 where one of them is.

    Args:
        found: Probabilities, shape (n, h, w).
        masks: Shape (n, h, w), bool.
        cut: What is above it counts as found.

    Example:
        >>> import numpy as np
        >>> iou(np.array([[[0.9, 0.8]]]), np.array([[[True, False]]])).tolist()
        [0.5]
    """
    import numpy as np

    chosen = found > cut
    both, either = (chosen & masks).sum((1, 2)), (chosen | masks).sum((1, 2))
    return np.where(either, both / np.maximum(either, 1), 1.0)


def dice(found: np.ndarray, masks: np.ndarray, *, cut: float = 0.5) -> np.ndarray:
    """Returns twice the intersection over the sum of both areas, per image; empty masks as in `iou`.

    Args:
        found: Probabilities, shape (n, h, w).
        masks: Shape (n, h, w), bool.
        cut: What is above it counts as found.
    """
    import numpy as np

    overlap = iou(found, masks, cut=cut)
    return np.asarray(2 * overlap / (1 + overlap))


def absolute(found: np.ndarray, masks: np.ndarray, *, cut: float = 0.5) -> np.ndarray:
    """Returns 1 − the mean absolute error of probabilities, per image; empty masks are masks like others.

    Args:
        found: Probabilities, shape (n, h, w).
        masks: Shape (n, h, w), bool.
        cut: Plays no part.
    """
    import numpy as np

    return np.asarray(1 - np.abs(found - masks).mean((1, 2)))


def s_measure(found: np.ndarray, masks: np.ndarray, *, cut: float = 0.5) -> np.ndarray:
    """Returns the structure measure, per image: half of it judges the object, half the four regions around its centre.

    With x the probabilities and μ the mask's share of the image

        S = ½ S_o + ½ S_r
        S_o = μ O(x on the mask) + (1 − μ) O(1 − x off the mask),  O(x) = 2 x̄ ÷ (x̄² + 1 + σ_x)
        S_r = Σ_k w_k 4 x̄ ȳ σ_xy ÷ ((x̄² + ȳ²)(σ_x² + σ_y²)) over the quarters at the mask's centroid, w_k their areas

    with deviations over n − 1, and λ = ½, so that 2λσ = σ. A mask that is empty has S = 1 − x̄, one that is full x̄. A
    quarter in which nothing varies, or that is black in both, counts 1; one where only the numerator is 0 counts 0.
    Below 0 it is 0.

    Args:
        found: Probabilities, shape (n, h, w).
        masks: Shape (n, h, w), bool.
        cut: Plays no part.

    Source: Fan et al. 2017, arXiv 1708.00786, equations 1 to 9; what is empty as in its public code.
    """
    import numpy as np

    wide = found.astype(np.float64)
    return np.array([_structure(x, mask) for x, mask in zip(wide, masks, strict=True)])


def _structure(x: np.ndarray, mask: np.ndarray) -> float:
    share = float(mask.mean())
    if share in (0.0, 1.0):
        return float(x.mean() if share else 1 - x.mean())
    alike = share * _object(x[mask]) + (1 - share) * _object(1 - x[~mask])
    return min(max(0.0, (alike + _regions(x, mask)) / 2), 1.0)  # rounding may pass 1 by a bit


def _object(values: np.ndarray) -> float:
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + spread)


def _regions(x: np.ndarray, mask: np.ndarray) -> float:
    rows, columns = mask.nonzero()
    row, column = round(float(rows.mean())) + 1, round(float(columns.mean())) + 1  # the centre belongs to the first
    total = 0.0
    for down in (slice(row), slice(row, None)):
        for right in (slice(column), slice(column, None)):
            part = mask[down, right]
            total += part.size / mask.size * (_alike(x[down, right], part.astype(float)) if part.size else 0.0)
    return total


def _alike(x: np.ndarray, y: np.ndarray) -> float:
    """Returns how alike two regions are: structural similarity without its constants."""
    mean_x, mean_y, free = float(x.mean()), float(y.mean()), max(x.size - 1, 1)
    varied = (float(((x - mean_x) ** 2).sum()) + float(((y - mean_y) ** 2).sum())) / free
    together = float(((x - mean_x) * (y - mean_y)).sum()) / free
    above, below = 4 * mean_x * mean_y * together, (mean_x**2 + mean_y**2) * varied
    if abs(above) > EPSILON:
        return above / (below + EPSILON)
    return 1.0 if below <= EPSILON else 0.0


METRICS: Mapping[str, Callable[..., np.ndarray]] = {"dice": dice, "iou": iou, "s-measure": s_measure, "mae": absolute}
"""Name → the function; `mae` is 1 − the mean absolute error."""
