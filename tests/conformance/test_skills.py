"""The laws of skills: each is broken once on purpose, and each is kept by what keeps it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minerua import Skill, TensorSpec
from minerua.conformance import Sample, examine
from minerua.errors import ChainError, ConfigError

from .asking import found, reasons

ROWS = TensorSpec("rows", ("batch", 3), "float32")
TICKS = itertools.count()


def changes_rows(rows):
    rows += 1
    return {"rows": rows}


async def doubled_later(rows):
    return {"rows": 2 * rows}


def doubled_in_parts(rows):
    yield {"rows": rows}
    yield {"rows": 2 * rows}


async def doubled_in_parts_later(rows):
    yield {"rows": 2 * rows}


def of_rows(call, **fields):
    return Skill("s", call, {"rows": ROWS}, {"rows": ROWS}, **{"pure": True, **fields})


def of_number(call, **fields):
    return Skill("s", call, {"number": int}, {"number": int}, **{"pure": True, **fields})


def needs(number, extra=None):
    return {"number": number + extra}


class Unreadable:
    """Something that can be called, and whose signature cannot be read."""

    __signature__ = "none"

    def __call__(self, number):
        return {"number": number}


BROKEN = [
    (of_number(lambda other: {"number": 1}), "takes", "a call with number does not fit (other)"),
    (
        Skill("s", lambda a, b: {}, {"a": int, "b": int}, {}, optional=("b",)),
        "takes",
        "a call with a does not fit (a, b)",
    ),
    (of_number(lambda number: {"nmber": 1}), "returns", "'number', an output, is missing; integer is wanted there"),
    (of_number(lambda number: {"number": "1"}), "returns", "'number', an output, must be integer, found text '1'"),
    (of_rows(lambda rows: {"rows": rows[:1]}), "returns", "axis 0 has 1 instead of 2, where batch is 2"),
    (of_number(lambda number: number.nothing), "returns", "it raised AttributeError: 'int' object has no attribute"),
    (
        Skill("s", needs, {"number": int, "extra": int}, {"number": int}, optional=("extra",), pure=True),
        "optional",
        "without 'extra', which is optional, it raised TypeError: unsupported operand",
    ),
    (of_rows(changes_rows), "borrows", "the call changed its input 'rows'"),
    (
        of_number(lambda number: {"number": next(TICKS)}, pure=True),
        "pure",
        "called twice with the same inputs it returned different outputs",
    ),
    (
        of_rows(lambda rows: {"rows": rows - rows.mean(axis=0)}, batchable=True),
        "batchable",
        "two calls joined along the first axis gave other outputs than each by itself",
    ),
]


@pytest.mark.parametrize(("skill", "check", "text"), BROKEN, ids=[f"{i}-{case[1]}" for i, case in enumerate(BROKEN)])
def test_a_skill_that_breaks_a_law_is_told(skill, check, text):
    (one, *_) = found(skill, check)
    assert text in one


KEPT = [
    of_rows(lambda rows: {"rows": 2 * rows}, pure=True, batchable=True),
    of_rows(doubled_later),
    of_rows(doubled_in_parts),
    of_rows(doubled_in_parts_later),
    Skill(
        "s", load=lambda setup: lambda rows: {"rows": rows}, inputs={"rows": ROWS}, outputs={"rows": ROWS}, pure=True
    ),
    Skill(
        "s",
        lambda **all_of_them: {"n": 1},
        {"a": bool, "b": bytes, "c": list, "d": dict, "e": float},
        {"n": int},
        pure=True,
    ),
    Skill(
        "s",
        lambda ids, extra=0: {"n": ids},
        {"ids": TensorSpec("", (2,), "int64"), "extra": int},
        {"n": np.ndarray},
        optional=("extra",),
        pure=True,
    ),
]


@pytest.mark.parametrize("skill", KEPT)
def test_a_skill_that_keeps_the_laws_passes(skill):
    report = examine(skill)
    assert not report.problems, str(report)
    assert not report.of("not judged")


def test_inputs_that_cannot_be_made_up_or_are_refused_are_not_judged_and_the_author_can_hand_some_over():
    thing = Skill("s", lambda thing: {"n": thing.n}, {"thing": Sample}, {"n": int}, pure=True)
    for check in ("returns", "borrows"):
        (why,) = reasons(thing, check)
        assert why.startswith(
            "no value can be made up for thing (minerua.conformance.report.Sample); hand inputs over as"
        )
    picky = Skill("s", lambda text: {"n": int(text)}, {"text": str}, {"n": int}, pure=True)
    (why,) = reasons(picky, "returns")
    assert "it refused made-up inputs (ValueError: invalid literal" in why
    assert found(picky, "returns", samples={"s": Sample(inputs={"text": "7"})}) == []
    (one,) = found(picky, "returns", samples={"s": Sample(inputs={"text": "x"})})
    assert "it raised ValueError: invalid literal for int()" in one


def test_arrays_of_texts_and_calls_without_a_signature_are_not_judged():
    words = Skill("s", lambda words: {}, {"words": TensorSpec("", (2,), "str")}, {}, pure=True)
    assert "no value can be made up for words" in reasons(words, "returns")[0]
    assert reasons(of_number(Unreadable()), "takes") == ["its call has no signature that can be read"]


def test_only_arrays_are_joined():
    mixed = Skill(
        "s", lambda rows, n: {"rows": rows}, {"rows": ROWS, "n": int}, {"rows": ROWS}, batchable=True, pure=True
    )
    assert reasons(mixed, "batchable") == ["only arrays with made-up values can be joined"]


def family(refusal):
    def configure(settings, context):
        if set(settings) - {"factor"}:
            raise refusal(settings)
        return of_number(lambda number: {"number": settings.get("factor", 1) * number})

    return Skill("s", configure=configure)


@pytest.mark.parametrize("error", [ConfigError, ChainError])
def test_a_family_that_refuses_what_it_does_not_know_passes_and_its_skills_are_examined_with_settings(error):
    good = family(lambda settings: error("these settings cannot be used", [f"unknown: {name}" for name in settings]))
    report = examine(good)
    assert [verdict.check for verdict in report.of("passed")] == ["spec", "family"]
    assert [verdict.reason for verdict in report.of("not judged")] == [
        "it is made from settings; hand some over as Sample(settings={…}) to have what it makes examined"
    ]
    with_settings = examine(good, samples={"s": Sample(settings={"factor": 3})})
    assert "returns" in [verdict.check for verdict in with_settings.of("passed")]


@pytest.mark.parametrize(
    ("skill", "text"),
    [
        (family(lambda settings: ConfigError("no")), "the error does not name the setting: no"),
        (family(lambda settings: KeyError("x")), "configure with the setting no_such_setting raised KeyError: 'x'"),
        (
            Skill("s", configure=lambda settings, context: of_number(lambda number: {"number": 1})),
            "configure took the setting no_such_setting without a word",
        ),
    ],
)
def test_a_family_that_does_not_refuse_what_it_does_not_know_is_told(skill, text):
    assert found(skill, "family") == [text]


def test_a_family_that_makes_a_family_is_told():
    again = Skill("s", configure=lambda settings, context: Skill("s", configure=lambda *_: None))
    told = found(again, "takes", samples={"s": Sample(settings={})})
    assert told == ["configure returned a family again; it returns a skill with call or load"]


def test_a_family_that_cannot_be_configured_with_the_author_s_settings_is_told_by_every_law():
    broken = family(lambda settings: ConfigError("these cannot be used", list(map(str, settings))))
    told = found(broken, "returns", samples={"s": Sample(settings={"fctor": 3})})
    assert "it raised ConfigError: these cannot be used - fctor" in told[0]


def test_what_is_not_pure_is_never_called_with_made_up_inputs():
    called = []
    skill = Skill("s", lambda path: called.append(path), {"path": str}, {})
    for check in ("returns", "borrows"):
        (why,) = reasons(skill, check)
        assert why == "it is not pure, and might act on made-up inputs; hand some over as Sample(inputs={…})"
    assert called == []
    examine(skill, samples={"s": Sample(inputs={"path": "mine"})})
    assert set(called) == {"mine"}
