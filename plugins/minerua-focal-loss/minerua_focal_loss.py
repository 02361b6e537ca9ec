"""The focal loss: cross-entropy in which what is already right counts less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minerua import LossSpec, hookimpl

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The class index that is left out, as in torch."""


def focal(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    *,
    gamma: float = 2.0,
    alpha: Sequence[float] | None = None,
    ignore_index: int = IGNORED,
) -> torch.Tensor:
    """Returns the mean of `-alpha (1 - p)^gamma log p`, p the probability of the right class.

    Args:
        predictions: Logits, shape (n, C) or (n, C, …).
        targets: Class indices, shape (n,) or (n, …).
        gamma: How much less counts what is right; 0 is cross-entropy.
        alpha: One factor per class; the mean is over targets all the same.
        ignore_index: Targets of this index do not count.

    Returns:
        A scalar; zero where no target counts.

    Raises:
        ValueError: `gamma` is negative, or `alpha` has another length than there are classes.

    Source: Lin et al. 2017, arXiv 1708.02002, equation 5, with a softmax for the sigmoid.
    """
    _check_gamma(gamma)
    counted = targets != ignore_index
    classes = targets.where(counted, 0).long()
    logs = _wide(predictions).log_softmax(1).gather(1, classes.unsqueeze(1)).squeeze(1)
    losses = -(_missing(logs) ** gamma) * logs if gamma else -logs
    if alpha is not None:
        if len(alpha) != predictions.shape[1]:
            raise ValueError(f"alpha has {len(alpha)} factors for {predictions.shape[1]} classes; give one per class")
        losses = losses * logs.new_tensor(alpha)[classes]
    return (losses * counted).sum() / counted.sum().clamp(min=1)


def binary_focal(
    predictions: torch.Tensor, targets: torch.Tensor, *, gamma: float = 2.0, alpha: float | None = 0.25
) -> torch.Tensor:
    """Returns the mean focal loss of yes-or-no answers.

    Args:
        predictions: Logits of "yes", any shape.
        targets: 1 for yes, 0 for no; the same shape.
        gamma: How much less counts what is right; 0 is cross-entropy.
        alpha: The factor of "yes", in [0, 1]; "no" has 1 - alpha. `None`: both count the same.

    Raises:
        ValueError: Shapes differ, or a setting is out of range.

    Source: Lin et al. 2017, arXiv 1708.02002, equation 5; the defaults of its section 5.1.
    """
    from torch.nn import functional

    _check_gamma(gamma)
    if predictions.shape != targets.shape:
        found = f"predictions have the shape {list(predictions.shape)}, targets {list(targets.shape)}"
        raise ValueError(f"{found}; give the focal loss one logit per target")
    wide = _wide(predictions)
    wanted = targets.to(wide.dtype)
    logs = functional.logsigmoid(wide * (2 * wanted - 1))
    losses = -(_missing(logs) ** gamma) * logs if gamma else -logs
    if alpha is not None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; the factor of yes is in [0, 1]")
        losses = losses * (alpha * wanted + (1 - alpha) * (1 - wanted))
    return losses.mean()


@hookimpl
def minerua_losses() -> list[LossSpec]:
    """Provides the focal loss, for classes and for yes or no."""
    return [LossSpec("focal", focal, count_targets), LossSpec("binary-focal", binary_focal, count_elements)]


def count_targets(targets: torch.Tensor, *, ignore_index: int = IGNORED, **_: object) -> int:
    """Returns how many targets count."""
    return int((targets != ignore_index).sum())


def count_elements(targets: torch.Tensor, **_: object) -> int:
    """Returns how many answers there are."""
    return targets.numel()


def _missing(logs: torch.Tensor) -> torch.Tensor:
    """Returns 1 - p of log-probabilities; above zero, where a root's slope is a number."""
    import torch

    return (-logs.expm1()).clamp(min=torch.finfo(logs.dtype).tiny)


def _wide(predictions: torch.Tensor) -> torch.Tensor:
    return predictions.float() if predictions.dtype.itemsize < 4 else predictions


def _check_gamma(gamma: float) -> None:
    if not gamma >= 0:
        raise ValueError(f"gamma is {gamma}; the focal loss needs at least 0")
