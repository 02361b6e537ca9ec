"""Rows in batches, the same ones whoever reads them: in this process, in workers, from the beginning or from a step on.

What makes it exact: the order is a function of seed, epoch and step; workers are told epoch and index of each example,
so that what is drawn at random for it depends on nothing else; the loader draws from a generator of its own; and where
a run goes on is counted in steps that were taken, not in batches that were fetched ahead.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from minerua.errors import LearningError
from minerua.learning.order import Order, Window, mixed

_GLOBAL: Any = np.random  # its stubs leave out what swaps the global generator
_DRAWS, _LOADER = 1, 2  # what a seed is for; other numbers would be as good
AHEAD = 2
"""How many batches each worker reads ahead."""

TARGETS = ("target", "targets", "labels", "label")
"""Keys under which a mapping may hold what is to be predicted."""


class Batch(NamedTuple):
    """Examples that go through the model together.

    Args:
        inputs: What `forward` takes: a tensor, or a mapping or list of them.
        targets: What the loss compares with.
        counts: Whether they count.
    """

    inputs: Any
    targets: Any
    counts: bool = True


class Step(NamedTuple):
    """The batches of one optimizer step.

    Args:
        number: Its place in the epoch, from 0.
        size: How many examples it is over, all processes together.
        batches: What this process does of it.
    """

    number: int
    size: int
    batches: list[Batch]


class Loader:
    """Reads a dataset's examples in batches.

    Args:
        dataset: `len(dataset)`, and `dataset[i]` or, with random augmentation, `dataset.example(i, generator)`. One
            that draws from the global generators is exact as well, and slower, unless it says `pure = True`.
        order: Which examples a step is over.
        workers: How many processes read ahead.
        pinned: Whether batches lie in memory from which a CUDA device copies faster.
    """

    def __init__(self, dataset: Any, order: Order, *, workers: int = 0, pinned: bool = False) -> None:
        self.dataset, self.order = dataset, order
        self._plan = _Plan(order)
        self._generator = torch.Generator()
        self._fetched = self._reader(Keyed(dataset, order.seed), workers=workers, pinned=pinned)

    def _reader(self, dataset: Keyed, *, workers: int, pinned: bool) -> Callable[[], Iterator[Any]]:
        """Returns what begins to fetch the batches that are planned."""
        collate = getattr(self.dataset, "collate", None) or default_collate
        if not workers and not pinned:  # torch's loader would do the same, and take 10 µs a batch for itself
            return lambda: map(collate, map(dataset.__getitems__, self._plan))
        loader: Any = DataLoader(
            dataset,
            batch_sampler=self._plan,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pinned,
            generator=self._generator,
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0,
        )
        return lambda: iter(loader)

    def steps(self, epoch: int, first: int = 0, *, ready: Callable[[], None] | None = None) -> Iterator[Step]:
        """Yields an epoch's steps in order; draws nothing from the global generators.

        Args:
            epoch: From 0.
            first: The step to begin with, from 0.
            ready: Called when the readers are set up, before the first batch is asked for: the moment to restore
                generators, whatever setting up has drawn.

        Raises:
            LearningError: If a batch is not made of inputs and targets.
        """
        self._plan.epoch, self._plan.first = epoch, first
        self._generator.manual_seed(mixed(self.order.seed, epoch, _LOADER))
        fetched = self._fetched()
        if ready is not None:
            ready()
        for _ in range(first, self.order.steps):
            batch = next(fetched)
            window = self._plan.asked.popleft()  # there since its first batch was asked for
            batches = [Batch(*_parted(batch), window.parts[0].counts)]
            batches += [Batch(*_parted(next(fetched)), part.counts) for part in window.parts[1:]]
            yield Step(window.number, window.size, batches)


class _Plan:
    """Tells the loader which examples make a batch: a list of (epoch, index) for each.

    Attributes:
        asked: The steps whose batches were asked for and not yet taken, in order; workers are ahead of who takes them.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self.epoch = self.first = 0
        self.asked: deque[Window] = deque()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        self.asked.clear()
        for window in self._order.windows(self.epoch, self.first):
            self.asked.append(window)
            for part in window.parts:
                yield [(self.epoch, index) for index in part.indices]


class Keyed(Dataset[Any]):
    """A dataset whose examples are asked for by epoch and index, so that their randomness depends on both alone.

    Args:
        dataset: As `Loader` takes it.
        seed: The run's.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._generator = torch.Generator()
        self._fetch = self._fetcher()

    def _fetcher(self) -> Callable[[Sequence[tuple[int, int]]], list[Any]]:
        if hasattr(self._dataset, "example"):
            return self._drawn
        pure = getattr(self._dataset, "pure", isinstance(self._dataset, TensorDataset))
        return self._plain if pure else self._isolated

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Any]:
        return self._fetch(keys)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self._fetch([key])[0]

    def __getstate__(self) -> dict[str, Any]:  # a generator cannot be sent to a worker that is spawned
        return {"dataset": self._dataset, "seed": self._seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["dataset"], state["seed"])  # type: ignore[misc]

    def _plain(self, keys: Sequence[tuple[int, int]]) -> list[Any]:
        several = getattr(self._dataset, "__getitems__", None)
        indices = [index for _, index in keys]
        return list(several(indices)) if several else [self._dataset[index] for index in indices]

    def _drawn(self, keys: Sequence[tuple[int, int]]) -> list[Any]:
        examples = []
        for epoch, index in keys:
            self._generator.manual_seed(mixed(self._seed, epoch, index, _DRAWS))
            examples.append(self._dataset.example(index, self._generator))
        return examples

    def _isolated(self, keys: Sequence[tuple[int, int]]) -> list[Any]:
        """Lets a dataset draw from the global generators, seeded for each example, and puts them back."""
        everyday = torch.default_generator.get_state(), random.getstate(), _GLOBAL.get_bit_generator()
        _GLOBAL.set_bit_generator(np.random.MT19937())
        try:
            examples = []
            for epoch, index in keys:
                seed = mixed(self._seed, epoch, index, _DRAWS)
                torch.default_generator.manual_seed(seed)
                np.random.seed(seed & 0xFFFFFFFF)
                random.seed(seed)
                examples.append(self._dataset[index])
            return examples
        finally:
            torch.default_generator.set_state(everyday[0])
            random.setstate(everyday[1])
            _GLOBAL.set_bit_generator(everyday[2])


def _parted(batch: Any) -> tuple[Any, Any]:
    """Returns a batch's inputs and targets."""
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        for key in TARGETS:
            if key in batch:
                inputs = {name: value for name, value in batch.items() if name != key}
                return inputs["inputs"] if list(inputs) == ["inputs"] else inputs, batch[key]
    found = f"a mapping of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else _what(batch)
    raise LearningError(
        f"an example must be a pair of inputs and target, or a mapping with one of {', '.join(TARGETS)}; found {found}"
    )


def _what(batch: Any) -> str:
    several = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
    return f"a {type(batch).__name__}{several}"
