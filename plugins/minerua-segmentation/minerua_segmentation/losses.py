"""Losses for masks: one logit per pixel, means over images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["boundary", "count_images", "dice", "dice_cross_entropy"]


def dice(predictions: torch.Tensor, targets: torch.Tensor, *, smooth: float = 1.0) -> torch.Tensor:
    """Returns the mean over images of 1 − (2 Σ p y + s) ÷ (Σ p + Σ y + s), p the probabilities.

    Args:
        predictions: Logits, shape (n, h, w).
        targets: Masks from 0 to 1, shape (n, h, w).
        smooth: s, in pixels, from 0: an image with an empty mask then has the loss 1 − s ÷ (Σ p + s), with a gradient.

    Raises:
        ValueError: Shapes differ, targets leave [0, 1], or a setting is out of range.

    Source: Milletari et al. 2016, arXiv 1606.04797, section 3, with Σ p for Σ p².
    """
    logits, masks = _checked(predictions, targets)
    if not smooth >= 0:
        raise ValueError(f"smooth is {smooth}; the Dice loss adds pixels, from 0")
    return _dice(logits.sigmoid(), masks, smooth).mean()


def dice_cross_entropy(
    predictions: torch.Tensor, targets: torch.Tensor, *, share: float = 0.5, smooth: float = 1.0
) -> torch.Tensor:
    """Returns share × Dice loss + (1 − share) × cross-entropy, the mean over an image's pixels.

    Args:
        predictions: Logits, shape (n, h, w).
        targets: Masks from 0 to 1, shape (n, h, w).
        share: Of the Dice loss, from 0 to 1.
        smooth: As in `dice`.

    Raises:
        ValueError: As in `dice`.
    """
    from torch.nn import functional

    logits, masks = _checked(predictions, targets)
    _check_share(share)
    entropy = functional.binary_cross_entropy_with_logits(logits, masks)
    return share * dice(predictions, targets, smooth=smooth) + (1 - share) * entropy


def boundary(
    predictions: torch.Tensor, targets: torch.Tensor, *, share: float = 0.3, smooth: float = 1.0
) -> torch.Tensor:
    """Returns (1 − share) × Dice loss + share × boundary loss: the mean over pixels of p φ.

    φ is a pixel's distance to the mask's edge, as a part of the image's longer side: to the nearest pixel of the mask
    where it is outside, minus the distance to the nearest pixel outside where it is inside. So far away from the edge a
    mistake costs more. Where a mask is empty or full there is no edge and φ is 0.

    Args:
        predictions: Logits, shape (n, h, w).
        targets: Masks, shape (n, h, w); above ½ is inside.
        share: Of the boundary loss, from 0 to 1. The paper lets it rise by 0.01 per epoch; a loss knows no epoch.
        smooth: As in `dice`.

    Raises:
        ValueError: As in `dice`.

    Source: Kervadec et al. 2019, arXiv 1812.07032, equations 5 and 6, with φ divided by the longer side, so that the
        share means the same at every size.
    """
    logits, masks = _checked(predictions, targets)
    _check_share(share)
    far = (logits.sigmoid() * _signed_distance(masks > 0.5).to(logits.dtype)).mean()
    return (1 - share) * dice(predictions, targets, smooth=smooth) + share * far


def count_images(targets: torch.Tensor, **_: Any) -> int:
    """Returns how many images a mean is over."""
    return len(targets)


def _dice(found: torch.Tensor, masks: torch.Tensor, smooth: float) -> torch.Tensor:
    import torch

    both, sums = (found * masks).sum((1, 2)), found.sum((1, 2)) + masks.sum((1, 2))
    return 1 - (2 * both + smooth) / (sums + smooth).clamp(min=torch.finfo(sums.dtype).tiny)


def _signed_distance(inside: torch.Tensor) -> torch.Tensor:
    """Returns φ of masks (n, h, w), bool: exact Euclidean distances, float32."""
    import torch

    mixed = inside.flatten(1).any(1) & ~inside.flatten(1).all(1)
    far = torch.zeros(inside.shape, device=inside.device)
    for k in mixed.nonzero().flatten().tolist():  # one image at a time: h × h × w numbers
        far[k] = _distance(inside[k]) - _distance(~inside[k])
    return far / max(inside.shape[1:])


def _distance(there: torch.Tensor) -> torch.Tensor:
    """Returns each pixel's distance to the nearest one that is there, of which there is at least one.

    Down the columns first, then the least of squared sums along the rows (Felzenszwalb and Huttenlocher 2012).
    """
    import torch

    height, width = there.shape
    rows, columns = (torch.arange(side, device=there.device) for side in (height, width))
    none = 4 * (height + width)  # farther than any two pixels; its square is a whole number in float32
    apart = (rows[:, None] - rows).abs()  # (h, h)
    down = torch.where(there[None], apart[:, :, None], none).amin(1).float() ** 2  # (h, w)
    across = (columns[:, None] - columns).float() ** 2  # (w, w)
    return (down[:, None, :] + across).amin(2).sqrt()


def _checked(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits and masks, wide enough to be added up."""
    if predictions.shape != targets.shape or predictions.ndim != 3:
        found = f"predictions have the shape {list(predictions.shape)}, targets {list(targets.shape)}"
        raise ValueError(f"{found}; a loss for masks takes one logit per pixel, (n, h, w)")
    if not ((targets >= 0) & (targets <= 1)).all():
        low, high = float(targets.min()), float(targets.max())
        raise ValueError(f"targets lie from {low:g} to {high:g}; masks have values from 0 to 1")
    logits = predictions.float() if predictions.dtype.itemsize < 4 else predictions
    return logits, targets.to(logits.dtype)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; a share lies from 0 to 1")
