"""The script of a run: what the journal already holds is checked and taken over, what it lacks is done and written."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from minerua.errors import JournalError
from minerua.evolution import Journal, decode_outcome, encode_outcome
from minerua.evolution.journal import Event
from minerua.values import Failure, Scores


class Record:
    """A journal seen by a run that carries out the same steps whether it is fresh or resumed.

    Args:
        journal: The open journal; the events that it held when it was opened are replayed first.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal: Final = journal
        self._past = deque(journal.events)

    @property
    def folder(self) -> Path:
        """The folder of the run: where its journal lies."""
        return self._journal.path.parent

    @property
    def replaying(self) -> bool:
        """Whether the next event is already in the journal."""
        return bool(self._past)

    def holds(self, count: int) -> bool:
        """Whether the next so many events are already in the journal."""
        return len(self._past) >= count

    def next_digest(self) -> str:
        """Returns the name of the genome in the next journalled event; empty if that event names none."""
        return str(self._past[0].get("digest", "")) if self._past else ""

    def confirm(self, event: Mapping[str, Any]) -> None:
        """Writes an event, or, while replaying, checks that the journal holds just this one here.

        Raises:
            JournalError: If the journal holds another event: another run file, other weights, another version.
            StorageError: If it cannot be written.
        """
        if not self._past:
            self._journal.write(event)
            return
        self._compare(self._past.popleft(), event)

    def _compare(self, past: Event, event: Mapping[str, Any]) -> None:
        differences = _differences(past, json.loads(json.dumps(event)))
        if differences:
            raise JournalError(
                f"{self._journal.path} belongs to another run: what this run does next is not what stands there; "
                "undo what was changed, or begin anew in another folder",
                differences,
            )

    def outcome(
        self,
        event: Mapping[str, Any],
        evaluate: Callable[[], Scores | Failure],
        added: Callable[[Scores | Failure], Mapping[str, Any]] = lambda outcome: {},
    ) -> Scores | Failure:
        """Returns an outcome from the journal, or evaluates and writes it.

        Args:
            event: What identifies the outcome; must equal the journal's while replaying.
            evaluate: Called only if the journal does not have the outcome.
            added: Maps the outcome to fields that follow from it.

        Raises:
            JournalError: If the journal holds another event here.
            StorageError: If it cannot be written.
        """
        if self._past:  # compared before anything follows from the outcome, which may be another run's
            self._compare({key: self._past[0].get(key) for key in event}, event)
        outcome = decode_outcome(self._past[0]) if self._past and _has_outcome(self._past[0]) else evaluate()
        self.confirm({**event, **encode_outcome(outcome), **added(outcome)})
        return outcome


def _has_outcome(event: Event) -> bool:
    return "scores" in event or "failed" in event


def _differences(past: Event, now: Event, place: str = "") -> list[str]:
    """Returns the places in which two events differ, with both values shortened."""
    found = []
    for key in dict.fromkeys([*past, *now]):
        here, there = past.get(key), now.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            found += _differences(here, there, f"{place}{key}.")
        elif here != there:
            found.append(f"{place}{key}: the journal has {_short(here)}, this run has {_short(there)}")
    return found[:20]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."
