"""The laws of evaluators: each is broken once on purpose."""

from __future__ import annotations

import itertools
import threading

import pytest

from minerua import EvaluatorSpec
from minerua.conformance import Sample, examine
from minerua.values import Exhibit

from .asking import found, reasons

TICKS = itertools.count()
IDS = ["a", "b", "c", "d"]
FOREVER = threading.Event()


def evaluate(model, ids, seed):
    return [model(id) for id in ids]


def spec(**fields):
    return EvaluatorSpec(**{"name": "e", "items": lambda: list(IDS), "evaluate": evaluate, **fields})


MODEL = {"e": Sample(model=lambda id: IDS.index(id) / 4)}
BROKEN = [
    (spec(items=lambda: ["a", "", "b"]), "items", "items() has ''; an id is a text that is not empty"),
    (spec(items=lambda: ["a", "b", "c", "a"]), "items", "items() has ids more than once: a"),
    (spec(items=lambda: ["a", "b"]), "items", "items() has 2 ids; three splits need one each"),
    (spec(items=lambda: ["a", "b", f"c{next(TICKS)}"]), "items", "items() called twice gave different ids"),
    (
        spec(evaluate=lambda m, ids, s: [0.5]),
        "outcomes",
        "evaluate returned 1 outcomes for 4 ids; one per id is wanted",
    ),
    (
        spec(evaluate=lambda m, ids, s: [1.5] * 4),
        "outcomes",
        "evaluate returned the outcome 1.5; outcomes are in [0, 1]",
    ),
    (spec(evaluate=lambda m, ids, s: [float("nan")] * 4), "outcomes", "evaluate returned the outcome nan"),
    (spec(evaluate=lambda m, ids, s: FOREVER.wait(9)), "outcomes", "evaluate: a call did not end within 0.2 s"),
    (spec(evaluate=lambda m, ids, s: [1 / (2 + next(TICKS)) for _ in ids]), "repeatable", "the same call gave ["),
    (
        spec(evaluate=lambda m, ids, s: [n / len(ids) for n in range(len(ids))]),
        "apart",
        "in the other order the items have other outcomes: [0.0, 0.25, 0.5, 0.75] and",
    ),
    (
        spec(evaluate=lambda m, ids, s: [1 / len(ids)] * len(ids)),
        "apart",
        "the first item by itself has another outcome than among others: [0.25] and [1.0]",
    ),
    (
        spec(evaluate_many=lambda models, ids, seed: [[0.0] * len(row) for row in ids]),
        "many",
        "evaluate_many gave [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], evaluate one by one [[0.0, 0.25",
    ),
    (spec(inputs=lambda ids: [next(TICKS)]), "inputs", "inputs of the same ids, asked for twice, are different"),
    (spec(inputs=lambda ids: []), "inputs", "inputs of several ids are empty"),
    (
        spec(exhibit=lambda m, ids: None),
        "exhibit",
        "exhibit returned a NoneType; return a list with an Exhibit per item",
    ),
    (spec(exhibit=lambda m, ids: ["a"]), "exhibit", "exhibit returned a str among its things; each is an Exhibit"),
    (
        spec(exhibit=lambda m, ids: [Exhibit("d", text="x")]),
        "exhibit",
        "exhibit shows item 'd', which it was not asked for",
    ),
    (
        spec(exhibit=lambda m, ids: [Exhibit("a", text="x")] * 2),
        "exhibit",
        "exhibit shows item 'a' more than once; one Exhibit is enough",
    ),
    (
        spec(exhibit=lambda m, ids: [Exhibit("a", text=str(next(TICKS)))]),
        "exhibit",
        "exhibit of the same items, asked for twice, shows different things",
    ),
    (spec(exhibit=lambda m, ids: FOREVER.wait(9)), "exhibit", "exhibit: a call did not end within 0.2 s"),
    (
        spec(exhibit=lambda m, ids: [Exhibit("a", png=b"GIF89a")]),
        "exhibit",
        "png begins with b'GIF89a'; the bytes of a",
    ),
]


@pytest.mark.parametrize(("broken", "check", "text"), BROKEN, ids=[f"{i}-{case[1]}" for i, case in enumerate(BROKEN)])
def test_an_evaluator_that_breaks_a_law_is_told(broken, check, text):
    (one, *_) = found(broken, check, samples=MODEL, seconds=0.2)
    assert text in one


def test_an_evaluator_that_keeps_the_laws_passes():
    def many(models, ids, seed):
        return [evaluate(model, row, seed) for model, row in zip(models, ids, strict=True)]

    def exhibit(model, ids):
        assert len(ids) == 2
        return [Exhibit(id, text=f"{model(id)}") for id in ids]

    one = spec(evaluate_many=many, inputs=lambda ids: list(ids), exhibit=exhibit)
    report = examine(one, samples=MODEL)
    assert not report.problems, str(report)
    assert not report.of("not judged")


def test_without_a_model_outcomes_are_not_judged():
    assert reasons(spec(), "outcomes") == ["there is no model to score; hand one over as Sample(model=…)"]
    for check in ("repeatable", "apart"):
        assert reasons(spec(), check) == reasons(spec(), "outcomes")


def test_inputs_that_are_none_are_not_judged():
    assert reasons(spec(inputs=lambda ids: None), "inputs") == ["its inputs are None: it has none to offer"]
