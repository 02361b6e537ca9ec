"""Whether rows are those that were expected."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["is_agentbench_answer", "is_same_rows"]

_TOLERANCE = 1e-6
_AGENTBENCH_TOLERANCE = 1e-2


def is_same_rows(found: Sequence[Sequence[Any]], wanted: Sequence[Sequence[Any]], *, ordered: bool = False) -> bool:
    """Whether two lists of rows hold the same.

    Columns count by their place, names do not. Numbers, also those written as texts, are equal within 1e-6 of their
    size or of 1; texts are equal letter by letter; null is equal to null only. Rows that come twice must come twice.

    Args:
        found: Rows.
        wanted: Rows.
        ordered: Whether the order of rows counts.

    Example:
        >>> is_same_rows([["b", 2], ["a", "1.0"]], [["a", 1], ["b", 2]])
        True
    """
    if len(found) != len(wanted):
        return False
    if ordered:
        return all(map(_is_same_row, found, wanted))
    return _are_matched([tuple(row) for row in found], [tuple(row) for row in wanted], _is_same_row)


def _is_same_row(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return len(found) == len(wanted) and all(map(_is_same, found, wanted))


def _is_same(found: Any, wanted: Any) -> bool:
    if found is None or wanted is None:
        return found is wanted
    numbers = _number(found), _number(wanted)
    if numbers[0] is None or numbers[1] is None:
        return str(found) == str(wanted)
    return math.isclose(numbers[0], numbers[1], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _number(value: Any) -> float | None:
    try:
        return float(value) if re.fullmatch(r"[\s\d.eE+-]+", str(value)) or not isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def _are_matched(found: Sequence[Any], wanted: Sequence[Any], is_same: Callable[[Any, Any], bool]) -> bool:
    """Whether each of the one has its own among the other: what is plainly equal first, the rest one by one."""
    rest = list((Counter(wanted) - Counter(found)).elements())
    for value in (Counter(found) - Counter(wanted)).elements():
        place = next((k for k, other in enumerate(rest) if is_same(value, other)), None)
        if place is None:
            return False
        del rest[place]
    return not rest


# ── as AgentBench does ───────────────────────────────────────────────────────────────────────────────────────────────

_NOTHING = {"none", "null", "undefined", "nan", "inf", "infinity", "-inf", "-infinity", ""}


def is_agentbench_answer(found: Sequence[Sequence[Any]], wanted: Sequence[Sequence[Any]]) -> bool:
    """Whether an answer is the label of an AgentBench item.

    All values in a row, as texts without blanks, quotes, a percent sign at the end and commas; null, `nan`, `inf` and
    the empty text are 0. One value on both sides: numbers within 0.01, else the same text. Otherwise, if all are
    numbers: each has its own within 0.01, in any order. Otherwise the same set of texts.

    Source: Liu et al. 2023, arXiv 2308.03688, and what its public task `dbbench` compares at present; in its first
    version numbers were equal only if they were so exactly, and several values only as sets.

    Example:
        >>> is_agentbench_answer([["1,200"], [5]], [["5.0"], ["1200"]])
        True
    """
    ours, theirs = ([_text(value) for row in rows for value in row] for rows in (found, wanted))
    ours, theirs = ours or ["0"], theirs or ["0"]
    numbers = [_float(value) for value in (*ours, *theirs)]
    if all(number is not None for number in numbers):
        return len(ours) == len(theirs) and _are_matched(numbers[: len(ours)], numbers[len(ours) :], _is_near)
    return set(ours) == set(theirs)


def _is_near(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= _AGENTBENCH_TOLERANCE


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text(value: Any) -> str:
    text = "" if value is None else str(value).strip().strip("'\"")
    text = text[:-1].strip() if text.endswith("%") else text.replace(",", "")
    return "0" if text.lower() in _NOTHING else text
