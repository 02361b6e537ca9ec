"""Tasks drawn by chance: what was chosen is remembered, so that learning never sees what evaluators ask."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import yaml

__all__ = ["Draw", "Task", "example_tasks", "item_tasks", "listed", "templates"]

_T = TypeVar("_T")
_HELD_OUT = 5  # one in so many templates, and one in so many of a template's numbers


class Draw:
    """Draws the parts of one task, and remembers its template and its numbers.

    Args:
        random: Where chance comes from.
    """

    def __init__(self, random: random.Random) -> None:
        self.random = random
        self._template: list[str] = []
        self._numbers: list[int] = []

    def part(self, options: Sequence[_T]) -> _T:
        """Returns one of the options, which becomes a part of the task's template."""
        option = self.random.choice(options)
        self._template.append(getattr(option, "__name__", str(option)))  # what stands there twice is drawn more often
        return option

    def filling(self, options: Sequence[_T]) -> _T:
        """Returns one of the options, which fills a template and is no part of it, such as a name."""
        return self.random.choice(options)

    def number(self, low: int, high: int) -> int:
        """Returns a whole number from `low` to `high` that the task speaks of."""
        value = self.random.randint(low, high)
        self._numbers.append(value)
        return value

    @property
    def template(self) -> str:
        """The template so far: its parts, in order."""
        return " | ".join(self._template)

    @property
    def held_out(self) -> bool:
        """Whether learning must not see the task: it is kept for evaluators.

        A fifth of all templates is, whatever their numbers, and of the other templates a fifth of their numbers: by the
        digests of both. Names that fill a template do not count.
        """
        whole = f"{self.template} | {self._numbers}"
        return any(hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT == 0 for text in (self.template, whole))


@dataclass(frozen=True)
class Task:
    """One task: a dialogue that solves it, and what an evaluator needs to know.

    Args:
        turns: What is said, by turns: the prompt, its answer, what comes back, its answer and so on.
        fields: Makes the fields of its item, all but the id.
    """

    turns: tuple[str, ...]
    fields: Callable[[], Mapping[str, Any]]

    @property
    def id(self) -> str:
        """12 hexadecimal digits of the digest of what the task shows: the same prompt has the same id in any file."""
        return hashlib.sha256(self.turns[0].encode()).hexdigest()[:12]


def item_tasks(draw: Callable[[Draw], Task], chance: random.Random, count: int) -> Iterator[Task]:
    """Yields tasks that learning never sees, no two with one prompt."""
    return _tasks(draw, chance, count, held_out=True)


def example_tasks(draw: Callable[[Draw], Task], chance: random.Random, count: int) -> Iterator[Task]:
    """Yields tasks to learn from, no two with one prompt."""
    return _tasks(draw, chance, count, held_out=False)


def _tasks(draw: Callable[[Draw], Task], chance: random.Random, count: int, *, held_out: bool) -> Iterator[Task]:
    seen: set[str] = set()
    while len(seen) < count:
        one = Draw(chance)
        task = draw(one)
        if one.held_out is held_out and task.turns[0] not in seen:
            seen.add(task.turns[0])
            yield task


def listed(words: Sequence[str]) -> str:
    """Returns the words as a sentence lists them.

    Example:
        >>> listed(["red", "blue", "green"])
        'red, blue and green'
    """
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def templates(section: str) -> dict[str, Any]:
    """Returns a section of `templates.yaml`: name → a text, or a tuple of texts or of tuples of texts."""
    return _read()[section]


@functools.cache
def _read() -> dict[str, dict[str, Any]]:
    read = resources.files(__package__).joinpath("templates.yaml").read_text(encoding="utf-8")
    whole = yaml.safe_load(read)
    return {section: {name: _frozen(value) for name, value in texts.items()} for section, texts in whole.items()}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
