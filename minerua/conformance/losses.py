"""What every loss keeps: finite, differentiable, right by finite differences, the same in parts as whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from minerua.conformance.report import Check, Found, NotJudged
from minerua.conformance.subject import Subject
from minerua.values import LossSpec

if TYPE_CHECKING:
    import torch


class Form(NamedTuple):
    """What one kind of loss is called with."""

    name: str
    predictions: torch.Tensor
    targets: torch.Tensor
    settings: Mapping[str, Any]


# ── the laws, for any loss and any form ──────────────────────────────────────────────────────────────────────────────


def count_of(spec: LossSpec, targets: torch.Tensor, settings: Mapping[str, Any]) -> float:
    """Returns what the mean is over: what `count` says, or the first extent of the targets."""
    return len(targets) if spec.count is None else spec.count(targets, **settings)


def is_a_loss(
    spec: LossSpec, predictions: torch.Tensor, targets: torch.Tensor, settings: Mapping[str, Any]
) -> list[str]:
    """Tells if it is no finite number above zero that can be differentiated, or changes what it is given."""
    lent = targets.clone()
    inputs = predictions.detach().float().requires_grad_()
    loss = spec.call(inputs, lent, **settings)
    if loss.dim() != 0:
        return [f"the loss has the shape {list(loss.shape)}; a scalar is wanted"]
    if not loss.requires_grad:
        return ["the loss cannot be differentiated: it has no gradient function"]
    loss.backward()
    found = []
    if not (math.isfinite(loss.item()) and loss.item() > 0):
        found.append(f"the loss of predictions that are partly wrong is {loss.item()}, not a number above zero")
    if inputs.grad is None or not bool(inputs.grad.any()):
        found.append("the loss depends on no prediction")
    elif not bool(inputs.grad.isfinite().all()):
        found.append("the gradient has numbers that are NaN or infinite")
    if lent.shape != targets.shape or not bool((lent == targets).all()):
        found.append("the loss changed its targets")
    return found


def has_the_right_gradient(
    spec: LossSpec,
    predictions: torch.Tensor,
    targets: torch.Tensor,
    settings: Mapping[str, Any],
    *,
    may_round: bool = False,
) -> list[str]:
    """Tells where the gradient in float64 is not that of central differences.

    With `may_round` a loss that computes in float32 whatever it is given is held to two digits.
    """
    import torch

    inputs = predictions.detach().double().requires_grad_()
    loss = spec.call(inputs, targets, **settings)
    h, rtol, atol = (1e-2, 1e-2, 1e-3) if may_round and loss.dtype != torch.float64 else (1e-6, 1e-5, 1e-7)
    (gradient,) = torch.autograd.grad(loss, inputs)
    numbers = inputs.detach().clone()
    flat, estimate = numbers.view(-1), torch.empty(numbers.numel(), dtype=torch.float64)
    for i in range(len(flat)):
        value = float(flat[i])
        flat[i] = value + h
        above = float(spec.call(numbers, targets, **settings))
        flat[i] = value - h
        estimate[i] = (above - float(spec.call(numbers, targets, **settings))) / (2 * h)
        flat[i] = value
    wrong = ~torch.isclose(gradient.view(-1), estimate, rtol=rtol, atol=atol)
    if not bool(wrong.any()):
        return []
    first = int(wrong.nonzero()[0])
    is_, should = float(gradient.view(-1)[first]), float(estimate[first])
    return [
        f"the gradient is {is_:.6g} where differences say {should:.6g}, at {int(wrong.sum())} of {len(flat)} places"
    ]


def adds_up(
    spec: LossSpec, predictions: torch.Tensor, targets: torch.Tensor, settings: Mapping[str, Any], *, parts: int = 8
) -> list[str]:
    """Tells if a batch in parts, each weighed by its count, has not the loss and gradient of the whole within 1e-6."""
    import torch

    whole = predictions.detach().float().requires_grad_()
    loss = spec.call(whole, targets, **settings)
    loss.backward()
    inputs = predictions.detach().float().requires_grad_()
    total, summed = count_of(spec, targets, settings), 0.0
    for x, y in zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
        part = spec.call(x, y, **settings) * (count_of(spec, y, settings) / total)
        part.backward()
        summed += part.item()
    found = []
    if not abs(summed - loss.item()) <= 1e-6 * max(1.0, loss.item()):
        found.append(
            f"the loss is {summed:.8g} in {parts} parts, each weighed by its count, and {loss.item():.8g} whole"
        )
    if whole.grad is None or inputs.grad is None or not torch.allclose(inputs.grad, whole.grad, rtol=1e-6, atol=1e-6):
        found.append("the gradients of the parts do not add up to that of the whole")
    return found


# ── what a loss may be called with ───────────────────────────────────────────────────────────────────────────────────


def usual_forms() -> list[Form]:
    """Returns what losses are called with most often: classes, numbers, yes or no, distributions, pictures."""
    import torch

    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def classes(*shape: int) -> torch.Tensor:
        return torch.randint(3, shape, generator=generator)

    def yes(*shape: int) -> torch.Tensor:
        return (drawn(*shape) > 0).long()

    return [
        Form("logits and classes", drawn(9, 3), classes(9), {}),
        Form("log-probabilities and classes", drawn(9, 3).log_softmax(1), classes(9), {}),
        Form("logits and distributions", drawn(9, 3), drawn(9, 3).softmax(1), {}),
        Form("numbers", drawn(9, 3), drawn(9, 3), {}),
        Form("yes or no", drawn(9), yes(9), {}),
        Form("several times yes or no", drawn(9, 2), yes(9, 2), {}),
        Form("pictures and masks", drawn(9, 1, 3, 3), yes(9, 1, 3, 3).float(), {}),
        Form("pictures and classes of pixels", drawn(9, 3, 3, 3), classes(9, 3, 3), {}),
        Form("logits of tokens and tokens", drawn(9, 4, 3), classes(9, 4), {}),
    ]


def _form(subject: Subject) -> Form | NotJudged:
    return subject.once("form", lambda: _chosen_form(subject))


def _chosen_form(subject: Subject) -> Form | NotJudged:
    """Returns the author's form, or the usual one at which the loss has the fewest faults among those that it takes."""
    sample, spec = subject.sample, subject.spec
    if sample.predictions is not None:
        return Form("the author's", sample.predictions, sample.targets, subject.settings)
    taken = list[tuple[int, Form]]()
    for form in usual_forms():
        form = form._replace(settings=subject.settings)
        try:
            taken.append((len(is_a_loss(spec, *form[1:])), form))
        except Exception:  # noqa: BLE001 - whatever it raises, it does not take this form
            continue
    if not taken:
        return NotJudged("it takes none of the usual predictions and targets; hand some over as Sample(predictions=…)")
    return min(taken, key=lambda one: one[0])[1]


# ── the checks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _on_its_form(law: Any) -> Any:
    def run(subject: Subject) -> Found:
        form = _form(subject)
        return form if isinstance(form, NotJudged) else [f"{fault} ({form.name})" for fault in law(subject, form)]

    return run


def _repeats(subject: Subject, form: Form) -> list[str]:
    import torch

    values = []
    for _ in range(2):
        torch.manual_seed(0)
        values.append(subject.spec.call(form.predictions, form.targets, **form.settings))
    return [] if torch.equal(*values) else [f"called twice it is {float(values[0])!r} and {float(values[1])!r}"]


def _unknown_setting(subject: Subject, form: Form) -> list[str]:
    try:
        subject.spec.call(form.predictions, form.targets, **form.settings, no_such_setting=1.0)
    except TypeError as error:
        return [] if "no_such_setting" in str(error) else [f"the TypeError says nothing of the setting: {error}"]
    except Exception as error:  # noqa: BLE001 - any other error is the problem
        return [f"call with the setting no_such_setting raised {type(error).__name__}: {error}"]
    return ["call took the setting no_such_setting without a word"]


def _count(subject: Subject, form: Form) -> list[str]:
    total = count_of(subject.spec, form.targets, form.settings)
    if isinstance(total, bool) or not isinstance(total, int | float) or not total > 0:
        shape = list(form.targets.shape)
        return [f"count returned {total!r} for targets of the shape {shape}; a number above zero is wanted"]
    return []


CHECKS: tuple[Check, ...] = (
    Check(
        "finite",
        "a loss is a finite scalar above zero that depends on its predictions, and leaves its targets alone",
        "look at empty denominators and logarithms of zero; work on copies",
        _on_its_form(lambda subject, form: is_a_loss(subject.spec, *form[1:])),
    ),
    Check(
        "gradient",
        "the gradient is that of central differences, to five digits in float64, to two in float32",
        "look for detach, item, rounding and in-place changes between the predictions and the result",
        _on_its_form(lambda subject, form: has_the_right_gradient(subject.spec, *form[1:], may_round=True)),
    ),
    Check(
        "count",
        "count tells how many terms the mean is over",
        "return a number from the targets alone, such as targets.numel()",
        _on_its_form(_count),
    ),
    Check(
        "parts",
        "a batch in parts, each weighed by its count, is the whole batch within 1e-6",
        "return the mean over what count counts; where a batch cannot be parted, declare the exemption",
        _on_its_form(lambda subject, form: adds_up(subject.spec, *form[1:], parts=3)),
    ),
    Check(
        "repeatable",
        "the same arguments give the same bits",
        "take nothing from clocks or addresses",
        _on_its_form(_repeats),
    ),
    Check(
        "unknown-setting",
        "a setting that a loss does not know raises a TypeError that names it",
        "name every setting as a keyword of call; do not swallow the rest with **settings",
        _on_its_form(_unknown_setting),
    ),
)
