"""What was executed before and would come out the same again: children of a population mostly say what others said."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar, final

__all__ = ["MOST_KNOWN", "Memory"]

MOST_KNOWN = 1 << 16
"""How many results an evaluator remembers; those of the longest unused questions leave first."""

_T = TypeVar("_T")


@final
class Memory(Generic[_T]):
    """Questions with the results that were found, up to a number; threads may share it.

    Args:
        most: How many.

    Example:
        >>> known = Memory[int](most=2)
        >>> for word in ("one", "two", "three"):
        ...     known.keep(word, len(word))
        >>> known.find("one"), known.find("three")
        (None, 5)
    """

    def __init__(self, most: int = MOST_KNOWN) -> None:
        self._most, self._lock = most, threading.Lock()
        self._known: OrderedDict[Hashable, _T] = OrderedDict()

    def find(self, question: Hashable) -> _T | None:
        """Returns what is known; `None` if nothing is."""
        with self._lock:
            if question in self._known:
                self._known.move_to_end(question)
            return self._known.get(question)

    def keep(self, question: Hashable, result: _T) -> None:
        """Remembers a result that would be the same at another time and on a busier machine."""
        with self._lock:
            self._known[question] = result
            self._known.move_to_end(question)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
