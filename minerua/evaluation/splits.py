"""Which items evolution may see: three disjoint parts that stay put when items are added."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minerua.errors import ConfigError
from minerua.values import SPLITS, EvaluatorSpec


@dataclass(frozen=True, eq=False)
class Task:
    """An evaluator with its items dealt out.

    Args:
        evaluator: What scores a model.
        ids: Split (`search`, `select`, `test`) → item ids, in the order in which outcomes are kept.
    """

    evaluator: EvaluatorSpec
    ids: Mapping[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """The evaluator's name."""
        return self.evaluator.name


def split_of(id: str, fractions: Mapping[str, float], *, seed: int) -> str:
    """Returns the split that an item belongs to: a function of its id and the seed alone.

    Items that are added later move no other item, and tasks that share an id share its split, so that nothing leaks
    from one task's search into another's test.

    Args:
        id: The item's id.
        fractions: Split → its share of all items; the shares sum to one.
        seed: Another seed deals the items out anew.

    Example:
        >>> split_of("image-7", {"search": 0.5, "select": 0.2, "test": 0.3}, seed=0)
        'search'
    """
    draw = int.from_bytes(hashlib.blake2b(f"{seed}:{id}".encode(), digest_size=8).digest(), "big") / 2**64
    bound = 0.0
    for split in SPLITS[:-1]:
        bound += fractions[split]
        if draw < bound:
            return split
    return SPLITS[-1]


def deal(evaluators: Sequence[EvaluatorSpec], fractions: Mapping[str, float], *, seed: int) -> tuple[Task, ...]:
    """Deals the items of every evaluator into the three splits.

    Args:
        evaluators: The tasks, in the run's order.
        fractions: Split → its share.
        seed: Seed of the deal.

    Returns:
        One task per evaluator; within a split the ids are sorted.

    Raises:
        ConfigError: If an evaluator has no items, repeats one, names one that is no text, cannot list them, or has too
            few for every split to get one; all faults at once.
    """
    tasks, faults = [], []
    for evaluator in evaluators:
        items, found = _items(evaluator)
        faults += found
        dealt: dict[str, list[str]] = {split: [] for split in SPLITS}
        for id in sorted(items):
            dealt[split_of(id, fractions, seed=seed)].append(id)
        empty = [split for split in SPLITS if items and not dealt[split]]
        if empty:
            faults.append(
                f"evaluator {evaluator.name!r}: its {len(items)} items leave {' and '.join(empty)} empty; "
                "give more items, or that split a larger share"
            )
        tasks.append(Task(evaluator, {split: tuple(ids) for split, ids in dealt.items()}))
    if faults:
        raise ConfigError("the tasks' items cannot be split into search, select and test", faults)
    return tuple(tasks)


def item_faults(evaluators: Sequence[EvaluatorSpec]) -> list[str]:
    """Returns what is wrong with the evaluators' items themselves, however they are to be dealt out."""
    return [fault for evaluator in evaluators for fault in _items(evaluator)[1]]


def _items(evaluator: EvaluatorSpec) -> tuple[list[str], list[str]]:
    """Returns an evaluator's ids, and what is wrong with them."""
    try:
        items = list(evaluator.items())
    except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything; it is reported with the rest
        return [], [f"evaluator {evaluator.name!r} cannot list its items: {type(error).__name__}: {error}"]
    faults = []
    wrong = [item for item in items if not _is_text(item)]
    if not items:
        faults.append(f"evaluator {evaluator.name!r} has no items")
    if wrong:
        faults.append(f"evaluator {evaluator.name!r} has {len(wrong)} ids that are no text, the first {wrong[0]!r}")
    counts = Counter(item for item in items if _is_text(item))
    if counts.total() > len(counts):
        twice = next(item for item, count in counts.items() if count > 1)
        faults.append(f"evaluator {evaluator.name!r} repeats {counts.total() - len(counts)} ids, among them {twice!r}")
    return list(counts), faults


def _is_text(item: object) -> bool:
    """Whether an id is a text with at least one letter that can be written down; half a surrogate pair cannot."""
    return isinstance(item, str) and item != "" and not any("\ud800" <= letter <= "\udfff" for letter in item)
