"""Which examples a step is over: a function of the seed, the epoch and the step, and of nothing else.

A batch is cut into `accumulate` × processes chunks of nearly equal length. Chunk j × processes + r is the j-th part of
process r. So the same examples meet in a step whatever the number of processes or parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_MASK = (1 << 64) - 1


def mixed(*words: int) -> int:
    """Returns 63 bits that any change of any word changes beyond recognition.

    Source: the finalizer of SplitMix64, Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".

    Example:
        >>> mixed(1, 2) == mixed(1, 2), mixed(1, 2) == mixed(2, 1)
        (True, False)
    """
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the order of an epoch's examples.

    Args:
        seed: The run's.
        epoch: From 0.
        count: How many examples there are.

    Returns:
        Shape (count,), uint32 or uint64.
    """
    order = np.arange(count, dtype=np.uint32 if count < 1 << 32 else np.uint64)
    np.random.Generator(np.random.Philox(key=[seed, epoch])).shuffle(order)
    return order


class Part(NamedTuple):
    """What one process does at one go.

    Args:
        indices: Which examples.
        counts: Whether they count; a process without a share of a short batch goes along with an example of another's,
            so that no process waits for one that never comes.
    """

    indices: tuple[int, ...]
    counts: bool = True


class Window(NamedTuple):
    """One optimizer step.

    Args:
        number: Its place in the epoch, from 0.
        size: How many examples it is over, all processes together.
        parts: What this process does, in order.
    """

    number: int
    size: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Order:
    """The steps of every epoch, as one of several processes sees them.

    Args:
        count: How many examples there are.
        batch_size: Examples per step, of all processes and parts together.
        seed: The run's.
        accumulate: In how many parts each process goes through its share.
        rank: Which process this is, from 0.
        processes: How many there are.
        shuffle: Whether each epoch has an order of its own.
        drop_last: Whether an incomplete last batch is left out.
    """

    count: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    rank: int = 0
    processes: int = 1
    shuffle: bool = True
    drop_last: bool = False

    @property
    def steps(self) -> int:
        """How many steps an epoch has."""
        return self.count // self.batch_size if self.drop_last else -(-self.count // self.batch_size)

    def windows(self, epoch: int, first: int = 0) -> Iterator[Window]:
        """Yields an epoch's steps in order.

        Args:
            epoch: From 0.
            first: The step to begin with, from 0.
        """
        order = permutation(self.seed, epoch, self.count) if self.shuffle else None
        count, size = self.count, self.batch_size
        for number in range(first, self.steps):
            begin, end = number * size, min((number + 1) * size, count)
            batch = list(range(begin, end)) if order is None else order[begin:end].tolist()
            yield Window(number, len(batch), self._parts(batch))

    def _parts(self, batch: list[int]) -> tuple[Part, ...]:
        chunks = self.accumulate * self.processes
        if chunks == 1:
            return (Part(tuple(batch)),)
        rounds = min(self.accumulate, -(-len(batch) // self.processes))  # those in which some process has examples
        edges = [len(batch) * k // (rounds * self.processes) for k in range(rounds * self.processes + 1)]
        mine = [j * self.processes + self.rank for j in range(rounds)]
        shares = [tuple(batch[edges[k] : edges[k + 1]]) for k in mine]
        return tuple(Part(share) if share else Part((batch[0],), counts=False) for share in shares)
