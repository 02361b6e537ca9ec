"""A journal read from its first line to its last: the archives as they were, the children, the curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from minerua.errors import JournalError
from minerua.evolution import Archive, ArchiveStats, Bounds, decode_outcome
from minerua.report.preflight import Preflight, read_preflight
from minerua.values import Failure, Scores

Event = Mapping[str, Any]

BINS = 15
"""Bins per behaviour characteristic where a journal names no number: the paper's."""


@dataclass(frozen=True)
class Child:
    """A seed or a child as the journal tells it.

    Args:
        id: Its number; seeds come first.
        digest: The name of its genome.
        origin: `seed`, `child`, or `merge` for a model that was merged from others after evolution.
        name: A seed's or merge's name; `None` for a child.
        expert: Whether it is one of the experts.
        task: Name of the archive that its parents came from; `None` for others than children.
        parents: The parents' digests.
        means: Shape (K,); its mean outcome per task on the search split, or `None` if it could not be scored.
        failure: Why it could not be scored.
        shares: Seed's name → the part of the ancestry that leads to it, each parent counting the same; sums to 1.
    """

    id: int
    digest: str
    origin: Literal["seed", "child", "merge"]
    name: str | None
    expert: bool
    task: str | None
    parents: tuple[str, ...]
    means: tuple[float, ...] | None
    failure: str | None
    shares: Mapping[str, float]

    @property
    def label(self) -> str:
        """What people call it: a seed's or merge's name, or `#` and the number."""
        return self.name if self.name is not None else f"#{self.id}"

    @property
    def mean(self) -> float | None:
        """The mean of its tasks' means, or `None` if it could not be scored."""
        return None if self.means is None else sum(self.means) / len(self.means)


@dataclass(frozen=True)
class Point:
    """An archive after so many evaluations.

    Args:
        evaluations: Children told so far, failed ones included, seeds not.
        stats: The archive in numbers at that time.
    """

    evaluations: int
    stats: ArchiveStats


class Replay:
    """What a journal says, gathered event by event.

    Events and fields that this version does not know are ignored.

    Args:
        events: A journal's events, oldest first.

    Attributes:
        run: The `run` event.
        tasks: Names of the tasks, in order.
        items: Task → split → ids of its items.
        preflight: What was known of the experts before the run, or `None`.
        children: Every seed and every child, in the order of the journal.
        by_digest: Digest → the first seed or child with that name.
        bounds: The archives' bounds, or `None` before they are known.
        bins: Bins per behaviour characteristic.
        archives: One archive per task, as after the last event; empty before the bounds are known.
        curves: Per archive, the points at which it changed.
        evaluations: How many children were told.
        pending: How many children were asked for and not told.
        merged: Digest → name and parents of every candidate for the final model.
        finals: Row → split → (digest, outcome).
        end: The `end` event, or `None` in an unfinished run.

    Raises:
        JournalError: If the journal does not start with `run`, an event lacks a field, or an archive rebuilt from the
            scores differs from what the journal says was added.
    """

    def __init__(self, events: Sequence[Event]) -> None:
        if not events or events[0].get("event") != "run":
            raise JournalError("a journal starts with an event 'run', and this one does not; is it a journal?")
        self.run: Final = events[0]
        self.tasks: tuple[str, ...] = ()
        self.items: Mapping[str, Mapping[str, Sequence[str]]] = {}
        self.preflight: Preflight | None = None
        self.children: list[Child] = []
        self.by_digest: dict[str, Child] = {}
        self.bounds: Bounds | None = None
        self.bins = BINS
        self.archives: tuple[Archive, ...] = ()
        self.curves: list[list[Point]] = []
        self.evaluations = 0
        self.finals: dict[str, dict[str, tuple[str, Scores | Failure]]] = {}
        self.merged: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.end: Event | None = None
        self._asked: dict[int, Event] = {}
        for line, event in enumerate(events, 1):
            self._read(line, event)

    @property
    def pending(self) -> int:
        """How many children were asked for and not told."""
        return len(self._asked)

    def _read(self, line: int, event: Event) -> None:
        handlers: dict[str, Callable[[Event], None]] = {
            "run": self._start,
            "items": self._items,
            "preflight": self._preflight,
            "seed": self._seed,
            "bounds": self._open,
            "ask": self._ask,
            "tell": self._tell,
            "candidate": self._candidate,
            "final": self._final,
            "end": self._end,
        }
        try:
            handler = handlers.get(event["event"])
            if handler is not None:
                handler(event)
        except JournalError as error:
            raise JournalError(f"line {line} of the journal: {error.message}") from error
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise JournalError(
                f"line {line} of the journal, event {event.get('event')!r}, cannot be read: "
                f"{type(error).__name__}: {error}; restore the journal from a copy"
            ) from error

    def _start(self, event: Event) -> None:
        self.tasks = tuple(str(task) for task in event["tasks"])
        if len(self.tasks) < 2:
            raise JournalError(f"a run has two tasks or more, this one has {len(self.tasks)}")

    def _items(self, event: Event) -> None:
        self.items = event["items"]

    def _preflight(self, event: Event) -> None:
        self.preflight = read_preflight(event)

    def _seed(self, event: Event) -> None:
        name = str(event["name"])
        self._enter(event, self._outcome(event), name=name, expert=bool(event.get("expert")), shares={name: 1.0})

    def _open(self, event: Event) -> None:
        self.bounds = Bounds(tuple(event["lower"]), tuple(event["upper"]))
        self.bins = _bins(event, self.run.get("config"))
        self.archives = tuple(Archive(task, self.bounds, bins=self.bins) for task in range(len(self.tasks)))
        for seed in self.children:
            self._offer(seed)
        self.curves = [[Point(0, archive.stats())] for archive in self.archives]

    def _ask(self, event: Event) -> None:
        self._asked |= {int(child["id"]): child for child in event["children"]}

    def _tell(self, event: Event) -> None:
        origin = self._asked.pop(event["id"], None)
        if origin is None:
            raise JournalError(f"child {event['id']} was told, and nobody asked for it")
        child = self._enter(event, self._outcome(event), origin=origin, shares=self.shares(origin["parents"]))
        self.evaluations += 1
        added = self._offer(child)
        if added != list(event["added"]):
            raise JournalError(
                f"child {child.id} was filed as {list(event['added'])} when it was told and as {added} when the "
                f"archives are rebuilt with {self.bins} bins; the journal is damaged or another version wrote it"
            )
        for curve, archive, status in zip(self.curves, self.archives, added, strict=True):
            if status:
                curve.append(Point(self.evaluations, archive.stats()))

    def _candidate(self, event: Event) -> None:
        self.merged[str(event["digest"])] = (str(event["name"]), tuple(event["parents"]))

    def _final(self, event: Event) -> None:
        splits = self.finals.setdefault(str(event["row"]), {})
        splits[event["split"]] = (str(event.get("digest", "")), self._outcome(event))

    def _end(self, event: Event) -> None:
        self.end = event

    def _outcome(self, event: Event) -> Scores | Failure:
        """An event's outcome, with its tasks in the run's order."""
        outcome = decode_outcome(event)
        if isinstance(outcome, Failure):
            return outcome
        if not all(outcome.tasks[task].count for task in self.tasks):
            raise JournalError("a task has no items; a model that was not evaluated has 'failed' in place of 'scores'")
        return Scores({task: outcome.tasks[task] for task in self.tasks})

    def _enter(
        self,
        event: Event,
        outcome: Scores | Failure,
        *,
        shares: Mapping[str, float],
        name: str | None = None,
        expert: bool = False,
        origin: Event | None = None,
    ) -> Child:
        child = Child(
            id=int(event["id"]),
            digest=str(event.get("digest") or ""),
            origin="seed" if origin is None else "child",
            name=name,
            expert=expert,
            task=None if origin is None else str(origin["task"]),
            parents=() if origin is None else tuple(origin["parents"]),
            means=outcome.means if isinstance(outcome, Scores) else None,
            failure=outcome.reason if isinstance(outcome, Failure) else None,
            shares=shares,
        )
        self.children.append(child)
        if child.digest:  # a child whose breeding failed has no name
            self.by_digest.setdefault(child.digest, child)
        return child

    def _offer(self, child: Child) -> list[int]:
        if child.means is None:
            return [0] * len(self.archives)
        return [int(archive.add(child.id, child.digest, child.means)[0]) for archive in self.archives]

    def shares(self, parents: Sequence[str]) -> dict[str, float]:
        """Returns the ancestry of a model with these parents: seed's name → part, each parent counting the same.

        Raises:
            JournalError: If the journal does not know a parent.
        """
        shares: dict[str, float] = {}
        for digest in parents:
            if digest not in self.by_digest:
                raise JournalError(f"a child has the parent {digest}, whom the journal does not know")
            for seed, share in self.by_digest[digest].shares.items():
                shares[seed] = shares.get(seed, 0.0) + share / len(parents)
        return shares


def _bins(event: Event, config: object) -> int:
    """The number of bins: from the `bounds` event, else from the run's settings, else the paper's."""
    places = [event, config, *(config.values() if isinstance(config, Mapping) else ())]
    found = [place["bins"] for place in places if isinstance(place, Mapping) and isinstance(place.get("bins"), int)]
    return int(found[0]) if found else BINS
