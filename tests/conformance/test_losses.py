"""The laws of losses: each is broken once on purpose."""

from __future__ import annotations

import itertools

import pytest
import torch

from minerua import LossSpec
from minerua.conformance import Sample, examine
from minerua.conformance.losses import usual_forms

from .asking import found, reasons

TICKS = itertools.count()


def of_numbers(call, count=lambda targets: targets.numel()):
    """Returns a loss that takes numbers alone, so that the exam's choice of a form does not matter."""

    def checked(predictions, targets):
        if predictions.shape != targets.shape or not targets.is_floating_point() or predictions.dim() != 2:
            raise ValueError
        return call(predictions, targets)

    return LossSpec("l", checked, count)


def squares(predictions, targets):
    return (predictions - targets).square().mean()


def rewrites(predictions, targets):
    loss = squares(predictions, targets.clone())
    targets.zero_()
    return loss


def rounded(predictions, targets):
    return squares(predictions + (predictions**2 - (predictions**2).detach()), targets)


def endless(predictions, targets):
    return squares(predictions, targets) + (predictions - predictions.detach()).abs().sqrt().sum()


def wrong_in_parts(predictions, targets):
    return squares(predictions, targets).sqrt() * 3


def swallows(predictions, targets, **settings):
    return squares(predictions, targets)


def refuses_badly(predictions, targets, **settings):
    if settings:
        raise KeyError("what is this")
    return squares(predictions, targets)


def refuses_silently(predictions, targets, **settings):
    if settings:
        raise TypeError("wrong call")
    return squares(predictions, targets)


BROKEN = [
    (of_numbers(lambda p, t: (p - t).square()), "finite", "the loss has the shape [9, 3]; a scalar is wanted"),
    (
        of_numbers(lambda p, t: squares(p.detach(), t)),
        "finite",
        "the loss cannot be differentiated: it has no gradient",
    ),
    (of_numbers(lambda p, t: -squares(p, t)), "finite", "the loss of predictions that are partly wrong is -"),
    (of_numbers(lambda p, t: 0 * p.sum() + 1), "finite", "the loss depends on no prediction"),
    (of_numbers(endless), "finite", "the gradient has numbers that are NaN or infinite"),
    (of_numbers(rewrites), "finite", "the loss changed its targets"),
    (of_numbers(rounded), "gradient", "where differences say "),
    (of_numbers(rounded), "gradient", "of 27 places (logits and distributions)"),
    (
        of_numbers(squares, lambda targets: 0),
        "count",
        "count returned 0 for targets of the shape [9, 3]; a number above zero",
    ),
    (of_numbers(wrong_in_parts), "parts", "in 3 parts, each weighed by its count, and "),
    (of_numbers(lambda p, t: p.sum() ** 2 + 1e-9), "parts", "the loss is "),
    (of_numbers(lambda p, t: squares(p, t) + 1e-5 * next(TICKS)), "repeatable", "called twice it is "),
    (LossSpec("l", swallows), "unknown-setting", "call took the setting no_such_setting without a word"),
    (
        LossSpec("l", refuses_badly),
        "unknown-setting",
        "call with the setting no_such_setting raised KeyError: 'what is",
    ),
    (LossSpec("l", refuses_silently), "unknown-setting", "the TypeError says nothing of the setting: wrong call"),
]


@pytest.mark.parametrize(("loss", "check", "text"), BROKEN, ids=[f"{i}-{case[1]}" for i, case in enumerate(BROKEN)])
def test_a_loss_that_breaks_a_law_is_told(loss, check, text):
    assert any(text in one for one in found(loss, check))


def test_gradients_that_do_not_add_up_are_told():
    def steep(predictions, targets):
        return squares(predictions, targets) + 0 * predictions.sum() + hidden(predictions, len(targets))

    def hidden(predictions, rows):  # its value is nothing, its gradient depends on the batch
        return (predictions - predictions.detach()).sum() * rows

    (one,) = found(of_numbers(steep), "parts")
    assert one.startswith("the gradients of the parts do not add up to that of the whole")


def test_a_loss_that_keeps_the_laws_passes():
    report = examine(of_numbers(squares))
    assert not report.problems, str(report)


def test_the_usual_forms_are_known():
    assert [form.name for form in usual_forms()] == [
        "logits and classes",
        "log-probabilities and classes",
        "logits and distributions",
        "numbers",
        "yes or no",
        "several times yes or no",
        "pictures and masks",
        "pictures and classes of pixels",
        "logits of tokens and tokens",
    ]


def test_a_loss_that_takes_no_usual_form_is_not_judged_until_its_author_hands_one_over():
    def of_pairs(predictions, targets):
        if predictions.shape != (4, 7):
            raise ValueError("pairs are wanted")
        return squares(predictions, targets)

    loss = LossSpec("l", of_pairs)
    (why,) = reasons(loss, "finite")
    assert why.startswith("it takes none of the usual predictions and targets; hand some over as Sample(predictions=…)")
    sample = Sample(predictions=torch.ones(4, 7), targets=torch.zeros(4, 7))
    assert found(loss, "finite", samples={"l": sample}) == []
