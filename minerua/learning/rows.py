"""Rows that cannot be used: each one counted, with its place and its reason, and an error where they are too many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

from minerua.errors import ConfigError

LISTED = 100
"""How many bad rows are kept with their places; the others are only counted."""

LONGEST_SHOWN = 60
"""How many characters of a value from a file a message shows."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Args:
        place: File and line, or the row's number: `"train.csv:17"`.
        reason: What is wrong, in words that many rows may share: they are counted by it.
        detail: What was found in this row.
    """

    place: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" + (f": {self.detail}" if self.detail else "")


class RowError(ConfigError):
    """One row that cannot be used; whoever looks through a source counts it and goes on.

    Args:
        reason: As in `BadRow`.
        detail: The same.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return RowError, (self.reason, self.detail)  # a worker of a DataLoader sends its errors to the trainer


@final
class BadRows:
    """Counts bad rows; keeps the first of them."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}
        self.listed: list[BadRow] = []

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.reasons.values())

    def add(self, place: str, error: RowError) -> None:
        """Counts one row."""
        self.reasons[error.reason] = self.reasons.get(error.reason, 0) + 1
        if len(self.listed) < LISTED:
            self.listed.append(BadRow(place, error.reason, error.detail))

    def merge(self, reasons: Mapping[str, int], listed: Sequence[BadRow]) -> None:
        """Counts what somebody else has found."""
        for reason, count in reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.listed += list(listed)[: LISTED - len(self.listed)]


@dataclass(frozen=True)
class DataReport:
    """What was found in a run's data, and what became of every row.

    Args:
        rows: Rows in all sources, bad ones included; empty lines are not rows.
        bad: How many of them cannot be used.
        reasons: Reason → how many rows it holds for; they sum to `bad`.
        listed: The first bad rows, with their places.
        blank_lines: Empty lines of text files.
        duplicates: Usable rows whose key another row had before; they are used, and lie in the same split as that one.
        overlaps: Split → how many of its rows have a key that also occurs in `train`; only where files are named.
        splits: Split → its rows.
        classes: The labels by class number, or `None` where there are no classes.
        checked: Whether every row was read; otherwise bad ones show when they are used.
    """

    rows: int
    bad: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    listed: tuple[BadRow, ...] = ()
    blank_lines: int = 0
    duplicates: int = 0
    overlaps: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    checked: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run says of its data when it starts: `lines`."""
        return tuple(self.lines())

    def lines(self) -> list[str]:
        """Returns the report as a person reads it, the bad rows last.

        Example:
            >>> DataReport(rows=3, bad=1, reasons={"missing label": 1}, splits={"train": 2}).lines()
            ['3 rows: 2 used, 1 bad (1 missing label)', 'splits: train 2']
        """
        why = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        lines = [f"{self.rows} rows: {self.rows - self.bad} used, {self.bad} bad" + (f" ({why})" if why else "")]
        lines.append("splits: " + ", ".join(f"{split} {count}" for split, count in self.splits.items()))
        if self.classes is not None:
            lines.append(f"{len(self.classes)} classes: {seen(', '.join(self.classes))}")
        if self.blank_lines:
            lines.append(f"{self.blank_lines} blank lines")
        if self.duplicates:
            lines.append(f"{self.duplicates} duplicates, each in the split of the row that it repeats")
        lines += [f"{count} rows of {split} also stand in train" for split, count in self.overlaps.items() if count]
        if not self.checked:
            lines.append("the rows were not looked at before they are used")
        return [*lines, *map(str, self.listed)]

    def plain(self) -> dict[str, Any]:
        """Returns the report as JSON would hold it."""
        return {**asdict(self), "listed": [asdict(row) for row in self.listed]}


def seen(value: object) -> str:
    """Returns a value from a file as it may stand in a message: escaped where it must be, and short."""
    try:
        text = repr(value[: LONGEST_SHOWN + 1] if isinstance(value, str | bytes) else value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    text = text[1:-1] if isinstance(value, str) and text.startswith("'") else text
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
