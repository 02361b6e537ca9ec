"""Settings by name: unknown ones are named with the nearest known ones; numbers that YAML takes for texts are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minerua.errors import unknown
from minerua.settings import EXPONENT


def unknown_settings(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Returns one sentence for each name that is not known.

    Args:
        names: What was given.
        known: What there is.

    Example:
        >>> unknown_settings(["lr", "betaz"], ["lr", "betas"])
        ["no setting is named 'betaz'; did you mean 'betas'? Known: betas, lr"]
    """
    return [unknown("setting", name, known) for name in names if name not in known]


def refusal(owner: str, faults: Sequence[str]) -> TypeError:
    """Returns the error for settings that somebody does not take, which is Python's own for such calls.

    Args:
        owner: Who was called, such as `"optimizer 'adamw'"`.
        faults: What is wrong with the settings, one sentence each.
    """
    return TypeError("\n  - ".join([f"{owner} cannot be called with these settings", *faults]))


def with_numbers(value: Any) -> Any:
    """Returns a value with texts such as `"1e-8"` as numbers, and lists as tuples.

    YAML 1.1, which PyYAML reads, knows no number without a point before its exponent.

    Example:
        >>> with_numbers({"eps": "1e-8", "betas": [0.9, 0.99], "foreach": None})
        {'eps': 1e-08, 'betas': (0.9, 0.99), 'foreach': None}
    """
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, list | tuple):
        return tuple(map(with_numbers, value))
    if isinstance(value, Mapping):
        return {key: with_numbers(one) for key, one in value.items()}
    return value
