"""What every evaluator keeps: items with names of their own, outcomes in [0, 1], the same for the same arguments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from minerua.conformance.models import any_model
from minerua.conformance.report import Check, Found, NotJudged
from minerua.conformance.subject import Subject, same, within
from minerua.registry.specs import exhibit_faults

_MOST_ITEMS = 6
_TOLERANCE = 1e-6


def _ids(subject: Subject) -> list[str]:
    """Returns the few items that are scored."""
    return subject.once("ids", lambda: list(subject.spec.items())[:_MOST_ITEMS])


def _model(subject: Subject) -> Any:
    """Returns the author's model, or fresh weights in a model kind of the same plugin."""
    if subject.sample.model is not None:
        return subject.sample.model
    return subject.once("model", lambda: any_model(subject.plugin))


def _outcomes(subject: Subject) -> Any:
    """Returns what the few items' outcomes are, as the evaluator returned them, or why that cannot be said."""
    model = _model(subject)
    if isinstance(model, NotJudged):
        return model
    return subject.once("outcomes", lambda: _timed(subject, model))


def _timed(subject: Subject, model: Any) -> Any:
    started = time.monotonic()
    returned = within(subject.seconds, lambda: subject.spec.evaluate(model, _ids(subject), 0))
    subject.once("seconds", lambda: time.monotonic() - started)
    return returned


def _items(subject: Subject) -> Found:
    items = list(subject.spec.items())
    found = [f"items() has {item!r:.80}; an id is a text that is not empty" for item in items if not _is_id(item)][:3]
    repeated = sorted({str(item) for item in items if items.count(item) > 1}) if len(items) < 20_000 else []
    if repeated or len(set(map(str, items))) < len(items):
        found.append(f"items() has ids more than once: {', '.join(repeated[:3])}")
    if len(items) < 3:
        found.append(f"items() has {len(items)} ids; three splits need one each")
    if list(subject.spec.items()) != items and sorted(map(str, subject.spec.items())) != sorted(map(str, items)):
        found.append("items() called twice gave different ids")
    return found


def _is_id(item: object) -> bool:
    return isinstance(item, str) and bool(item)


def _range(subject: Subject) -> Found:
    outcomes = _outcomes(subject)
    if isinstance(outcomes, NotJudged):
        return _slow_or_not_judged(outcomes)
    numbers = [float(outcome) for outcome in outcomes]
    found = []
    if len(numbers) != len(_ids(subject)):
        found.append(f"evaluate returned {len(numbers)} outcomes for {len(_ids(subject))} ids; one per id is wanted")
    wrong = [number for number in numbers if not 0.0 <= number <= 1.0]
    if wrong:
        found.append(f"evaluate returned the outcome {wrong[0]!r}; outcomes are in [0, 1], where 1 is best")
    return found


def _slow_or_not_judged(outcomes: NotJudged) -> Found:
    return [f"evaluate: {outcomes.reason}"] if "did not end" in outcomes.reason else outcomes


def _repeats(subject: Subject) -> Found:
    outcomes, model = _outcomes(subject), _model(subject)
    if isinstance(outcomes, NotJudged):
        return outcomes
    again = subject.spec.evaluate(model, _ids(subject), 0)
    equal = same(_numbers(outcomes), _numbers(again))
    return [] if equal else [f"the same call gave {_numbers(outcomes)} and {_numbers(again)}"]


def _numbers(outcomes: Any) -> list[float]:
    return [float(outcome) for outcome in outcomes]


def _apart(subject: Subject) -> Found:
    outcomes, model = _outcomes(subject), _model(subject)
    if isinstance(outcomes, NotJudged):
        return outcomes
    ids = _ids(subject)
    backwards = _numbers(subject.spec.evaluate(model, ids[::-1], 0))[::-1]
    first = _numbers(subject.spec.evaluate(model, ids[:1], 0))
    expected = _numbers(outcomes)
    if not same(backwards, expected, tolerance=_TOLERANCE):
        return [f"in the other order the items have other outcomes: {_told(expected, backwards)}"]
    if not same(first, expected[:1], tolerance=_TOLERANCE):
        return [f"the first item by itself has another outcome than among others: {_told(expected[:1], first)}"]
    return []


def _told(expected: Sequence[float], found: Sequence[float]) -> str:
    return f"{list(expected)} and {list(found)}"


def _many(subject: Subject) -> Found:
    spec = subject.spec
    outcomes, model, ids = _outcomes(subject), _model(subject), _ids(subject)
    if isinstance(outcomes, NotJudged):
        return outcomes
    rows = [_numbers(row) for row in spec.evaluate_many([model, model], [ids, ids[1:]], 0)]
    expected = [_numbers(outcomes), _numbers(spec.evaluate(model, ids[1:], 0))]
    equal = same(rows, expected, tolerance=_TOLERANCE)
    return [] if equal else [f"evaluate_many gave {rows}, evaluate one by one {expected}"]


def _inputs(subject: Subject) -> Found:
    spec, ids = subject.spec, _ids(subject)
    inputs = spec.inputs(ids)
    if inputs is None:
        return NotJudged("its inputs are None: it has none to offer")
    again = spec.inputs(ids)
    if not same(inputs, again):
        return ["inputs of the same ids, asked for twice, are different"]
    counted = getattr(inputs, "__len__", None)
    if counted is not None and counted() < 1:
        return ["inputs of several ids are empty"]
    return []


def _exhibit(subject: Subject) -> Found:
    model, ids = _model(subject), _ids(subject)[:2]
    if isinstance(model, NotJudged):
        return model
    shown = within(subject.seconds, lambda: subject.spec.exhibit(model, list(ids)))
    if isinstance(shown, NotJudged):
        return [f"exhibit: {shown.reason}"]
    faults = exhibit_faults(shown, ids)
    if faults or shown == subject.spec.exhibit(model, list(ids)):
        return faults
    return ["exhibit of the same items, asked for twice, shows different things"]


CHECKS: tuple[Check, ...] = (
    Check(
        "items",
        "items() returns the ids of all items: at least three texts, not empty, unique, the same at every call",
        "name each item by what it is, not by its place in a list that changes",
        _items,
    ),
    Check(
        "outcomes",
        "evaluate returns one outcome in [0, 1] per id, within the time limit",
        "give every item a number, 0 for an answer that is none; scale what is measured",
        _range,
    ),
    Check(
        "repeatable",
        "the same arguments give the same outcomes",
        "draw whatever is random from the seed that is handed in",
        _repeats,
    ),
    Check(
        "apart",
        "an item's outcome depends neither on the other items of the call nor on their order",
        "score each item by itself: outcomes are kept by item, and looked up one by one",
        _apart,
    ),
    Check(
        "many",
        "evaluate_many gives each model what evaluate gives it",
        "share the work, not the outcomes: compare the two on a small model",
        _many,
        lambda subject: subject.spec.evaluate_many is not None,
    ),
    Check(
        "inputs",
        "inputs(ids) returns the same inputs for the same ids",
        "take them from the items alone; return None where there are none to offer",
        _inputs,
        lambda subject: subject.spec.inputs is not None,
    ),
    Check(
        "exhibit",
        "exhibit(model, ids) returns Exhibits of these items, at most one of each, the same at every call",
        "show what evaluate looks at: the item, the answer, and what it is worth, as a text or as a PNG",
        _exhibit,
        lambda subject: subject.spec.exhibit is not None,
    ),
)
