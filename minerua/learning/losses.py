"""Losses for learning: means over what counts, so that a batch in parts weighs as it does whole.

Each loss is a mean, and knows its own denominator: `count` gives it for any targets. So the mean over a batch is the
mean over its parts, each weighed by its count, also where tokens are ignored or classes have weights. A part in which
nothing counts has the loss zero, where torch's has NaN. Predictions of 16 bits are widened first.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from minerua.learning.settings import refusal, unknown_settings, with_numbers
from minerua.values import LossSpec

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The class index that is left out by default, as in torch."""


def losses() -> list[LossSpec]:
    """Returns minerua's own losses; torch is imported when one is called.

    Example:
        >>> [spec.name for spec in losses()][:3]
        ['cross-entropy', 'nll', 'kl-divergence']
    """
    return [
        _spec("cross-entropy", cross_entropy, _count_classes),
        _spec("nll", nll, _count_classes),
        _spec("kl-divergence", kl_divergence, _count_rows),
        _spec("binary-cross-entropy", binary_cross_entropy, _count_elements),
        _spec("mse", mse, _count_elements),
        _spec("l1", l1, _count_elements),
        _spec("huber", huber, _count_elements),
        _spec("smooth-l1", smooth_l1, _count_elements),
        _spec("cosine", cosine, _count_vectors),
        _spec("hinge", hinge, _count_elements),
        _spec("multi-margin", multi_margin, _count_elements),
    ]


# ── classes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def cross_entropy(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORED,
    class_weights: Sequence[float] | torch.Tensor | None = None,
    class_axis: int = 1,
) -> torch.Tensor:
    """Returns the mean negative log-probability of the right classes.

    Args:
        predictions: Logits, the classes along `class_axis`: (n, C), (n, C, …) or, with -1, (n, …, C).
        targets: Class indices, without that axis; or a probability per class, in the shape of the predictions.
        label_smoothing: The share of each target that is spread over all classes, in [0, 1].
        ignore_index: Targets of this index do not count.
        class_weights: One weight per class. The mean is then weighed: its denominator is the sum of the targets'
            weights; with probabilities it stays the number of targets. With smoothing, a target of a class that weighs
            nothing still adds to the sum: let each weigh something, or parts of a batch are not the whole.
        class_axis: Where the classes lie; language models have them last: -1.

    Returns:
        A scalar; zero where no target counts.

    Source: `torch.nn.functional.cross_entropy`, whose mean this is wherever that is a number.
    """
    from torch.nn import functional

    logits, classes = _flat_classes(predictions, targets, class_axis)
    weights = _weights(class_weights, logits)

    def reduced(reduction: str) -> torch.Tensor:
        return functional.cross_entropy(
            logits, classes, weights, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )

    return _mean(reduced, classes, weights, ignore_index, extent=logits.shape[1])


def nll(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    *,
    ignore_index: int = IGNORED,
    class_weights: Sequence[float] | torch.Tensor | None = None,
    class_axis: int = 1,
) -> torch.Tensor:
    """Returns the mean negative log-probability of the right classes, from log-probabilities.

    Args:
        predictions: Log-probabilities, otherwise as in `cross_entropy`.
        targets: Class indices.
        ignore_index: Targets of this index do not count.
        class_weights: One weight per class; the denominator is the sum of the targets' weights.
        class_axis: Where the classes lie.
    """
    from torch.nn import functional

    logs, classes = _flat_classes(predictions, targets, class_axis)
    weights = _weights(class_weights, logs)

    def reduced(reduction: str) -> torch.Tensor:
        return functional.nll_loss(logs, classes, weights, ignore_index=ignore_index, reduction=reduction)

    return _mean(reduced, classes, weights, ignore_index, extent=logs.shape[1])


def kl_divergence(
    predictions: torch.Tensor, targets: torch.Tensor, *, log_targets: bool = False, class_axis: int = 1
) -> torch.Tensor:
    """Returns the mean Kullback-Leibler divergence of the predicted distributions from the targets'.

    Args:
        predictions: Logits, or log-probabilities: the softmax leaves these as they are.
        targets: Probabilities in the same shape.
        log_targets: Whether the targets are log-probabilities.
        class_axis: Along which each distribution lies.
    """
    from torch.nn import functional

    logits, wanted = _paired(predictions, targets)
    logs = functional.log_softmax(logits, class_axis)
    rows = max(1, wanted.numel() // wanted.shape[class_axis])
    return functional.kl_div(logs, wanted, reduction="sum", log_target=log_targets) / rows


def multi_margin(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    *,
    p: int = 1,
    margin: float = 1.0,
    class_weights: Sequence[float] | torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns how far right classes stay behind the margin to the others, over all classes, in the mean.

    Args:
        predictions: A score per class, shape (n, C).
        targets: Class indices, shape (n,).
        p: The power of each shortfall: 1 or 2.
        margin: By how much the right class should lead.
        class_weights: One weight per class; the mean is over targets all the same.
    """
    from torch.nn import functional

    scores = _wide(predictions)
    return functional.multi_margin_loss(scores, targets, p=p, margin=margin, weight=_weights(class_weights, scores))


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def binary_cross_entropy(
    predictions: torch.Tensor, targets: torch.Tensor, *, positive_weight: float | None = None
) -> torch.Tensor:
    """Returns the mean negative log-probability of yes-or-no answers.

    Args:
        predictions: Logits of "yes".
        targets: 1 for yes, 0 for no, or probabilities; the same shape.
        positive_weight: What each "yes" weighs; the mean is over elements all the same.
    """
    from torch.nn import functional

    logits, wanted = _paired(predictions, targets)
    weight = None if positive_weight is None else logits.new_tensor(positive_weight)
    return functional.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight)


def mse(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared difference of two tensors of one shape."""
    from torch.nn import functional

    return functional.mse_loss(*_paired(predictions, targets))


def l1(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean absolute difference of two tensors of one shape."""
    from torch.nn import functional

    return functional.l1_loss(*_paired(predictions, targets))


def huber(predictions: torch.Tensor, targets: torch.Tensor, *, delta: float = 1.0) -> torch.Tensor:
    """Returns the mean difference, squared (and halved) up to `delta`, from there on linear, with the slope `delta`.

    Args:
        predictions: Any shape.
        targets: The same shape.
        delta: Where the square ends; above 0.
    """
    from torch.nn import functional

    return functional.huber_loss(*_paired(predictions, targets), delta=delta)


def smooth_l1(predictions: torch.Tensor, targets: torch.Tensor, *, beta: float = 1.0) -> torch.Tensor:
    """Returns the mean difference, squared (over 2 `beta`) up to `beta`, from there on linear, with the slope 1.

    Args:
        predictions: Any shape.
        targets: The same shape.
        beta: Where the square ends; 0: nowhere squared.
    """
    from torch.nn import functional

    return functional.smooth_l1_loss(*_paired(predictions, targets), beta=beta)


def cosine(predictions: torch.Tensor, targets: torch.Tensor, *, eps: float = 1e-8) -> torch.Tensor:
    """Returns one minus the cosine between vectors, which lie along the last axis, in the mean.

    Args:
        predictions: Shape (…, d).
        targets: The same shape.
        eps: The least product of two lengths that is divided by.
    """
    from torch.nn import functional

    return (1 - functional.cosine_similarity(*_paired(predictions, targets), dim=-1, eps=eps)).mean()


def hinge(
    predictions: torch.Tensor, targets: torch.Tensor, *, margin: float = 1.0, squared: bool = False
) -> torch.Tensor:
    """Returns how far scores stay behind a margin on the right side of zero, in the mean.

    Args:
        predictions: Scores: positive means yes.
        targets: Positive for yes; zero, false or negative for no; the same shape.
        margin: How far a score should be from zero.
        squared: Whether each shortfall is squared.
    """
    scores, wanted = _paired(predictions, targets)
    shortfall = (margin - scores * (wanted > 0).to(scores.dtype).mul(2).sub(1)).clamp(min=0)
    return (shortfall.square() if squared else shortfall).mean()


# ── what a mean is over ──────────────────────────────────────────────────────────────────────────────────────────────


def _count_elements(targets: torch.Tensor, **_: Any) -> int:
    return targets.numel()


def _count_vectors(targets: torch.Tensor, **_: Any) -> int:
    return targets.numel() // targets.shape[-1]


def _count_rows(targets: torch.Tensor, *, class_axis: int = 1, **_: Any) -> int:
    return targets.numel() // targets.shape[class_axis]


def _count_classes(
    targets: torch.Tensor,
    *,
    ignore_index: int = IGNORED,
    class_weights: Sequence[float] | torch.Tensor | None = None,
    class_axis: int = 1,
    **_: Any,
) -> float:
    """Returns how many targets count, or what they weigh: with class weights no whole number."""
    if targets.is_floating_point():
        return _count_rows(targets, class_axis=class_axis)
    counted = targets != ignore_index
    if class_weights is None:
        return int(counted.sum())
    import torch

    weights = torch.as_tensor(class_weights, dtype=torch.float64, device="cpu")
    return float(weights[targets[counted].cpu()].sum())


def _mean(
    reduced: Callable[[str], torch.Tensor],
    classes: torch.Tensor,
    weights: torch.Tensor | None,
    ignore_index: int,
    *,
    extent: int,
) -> torch.Tensor:
    """Returns a mean that is zero where nothing counts.

    torch's own mean is NaN there, and costs four operations less; to look at it makes nobody wait on the CPU alone.
    """
    if classes.device.type == "cpu":
        mean = reduced("mean")
        if math.isfinite(mean.detach().item()):
            return mean
    return reduced("sum") / _denominator(classes, weights, ignore_index, extent=extent)


def _denominator(
    classes: torch.Tensor, weights: torch.Tensor | None, ignore_index: int, *, extent: int
) -> torch.Tensor | int:
    """Returns what `_count_classes` returns, where the predictions are, so that nobody waits for it; never zero."""
    if classes.is_floating_point():
        return max(1, classes.numel() // extent)
    counted = classes != ignore_index
    if weights is None:
        return counted.sum().clamp(min=1)
    total = (weights[classes.where(counted, 0)] * counted).sum()
    return total + (total == 0)


# ── shapes and types ─────────────────────────────────────────────────────────────────────────────────────────────────


def _wide(predictions: torch.Tensor) -> torch.Tensor:
    return predictions.float() if predictions.dtype.itemsize < 4 else predictions


def _paired(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both in one shape and dtype; torch would stretch one over the other and average over all pairs."""
    if predictions.shape == (*targets.shape, 1):  # the usual output of a layer with one neuron
        predictions = predictions.squeeze(-1)
    if predictions.shape != targets.shape:
        found = f"predictions have the shape {list(predictions.shape)}, targets {list(targets.shape)}"
        raise ValueError(f"{found}; this loss compares them element by element: give both one shape")
    wide = _wide(predictions)
    return wide, targets.to(wide.dtype)


def _flat_classes(
    predictions: torch.Tensor, targets: torch.Tensor, class_axis: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both as torch wants them: the classes second; or, where they lie last, all rows in one axis."""
    logits = _wide(predictions)
    is_probability = targets.is_floating_point()
    wanted = targets.to(logits.dtype) if is_probability else targets.long()
    _check_extents(logits, wanted, class_axis)
    if class_axis in (-1, logits.ndim - 1):
        flat = logits if logits.ndim == 2 else logits.reshape(-1, logits.shape[-1])
        shape = flat.shape if is_probability else flat.shape[:1]
        return flat, wanted if wanted.shape == shape else wanted.reshape(shape)
    return logits.movedim(class_axis, 1), wanted.movedim(class_axis, 1) if is_probability else wanted


def _check_extents(logits: torch.Tensor, targets: torch.Tensor, class_axis: int) -> None:
    shape = list(logits.shape)
    if not -len(shape) <= class_axis < len(shape):
        raise ValueError(f"class_axis is {class_axis}, but predictions have the shape {shape}")
    if targets.shape == logits.shape and targets.is_floating_point():
        return
    del shape[class_axis]
    if list(targets.shape) not in (shape, [*shape, 1]) or targets.is_floating_point():
        hint = "; the classes seem to lie last: set class_axis to -1" if logits.shape[:-1] == targets.shape else ""
        found = f"predictions have the shape {list(logits.shape)} with the classes along axis {class_axis}"
        raise ValueError(f"{found}, so that targets need the shape {shape}; they have {list(targets.shape)}{hint}")


def _weights(weights: Sequence[float] | torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """Returns class weights where the predictions are."""
    if weights is None:
        return None
    if isinstance(weights, Sequence):
        return _weights_there(tuple(weights), like.dtype, like.device)
    return weights.to(like)


@lru_cache(maxsize=8)
def _weights_there(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns a list's tensor, moved once and not with every batch."""
    import torch

    with torch.inference_mode(False):  # one that an evaluation made first could not be learned with
        return torch.tensor(weights, dtype=dtype, device=device)


# ── how a spec is put together ───────────────────────────────────────────────────────────────────────────────────────


def _spec(name: str, call: Callable[..., torch.Tensor], count: Callable[..., float]) -> LossSpec:
    """Returns the spec of a loss that refuses settings it does not know, with the nearest ones."""
    known = tuple(p.name for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY)

    def checked(settings: dict[str, Any]) -> dict[str, Any]:
        if not settings:
            return settings
        faults = unknown_settings(settings, known)
        if faults:
            raise refusal(f"loss {name!r}", faults)
        return {key: one if type(one) is float else with_numbers(one) for key, one in settings.items()}

    def checked_call(predictions: torch.Tensor, targets: torch.Tensor, **settings: Any) -> torch.Tensor:
        return call(predictions, targets, **checked(settings))

    def checked_count(targets: torch.Tensor, **settings: Any) -> Any:
        return count(targets, **checked(settings))

    return LossSpec(name, checked_call, checked_count)
