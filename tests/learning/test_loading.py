"""Batches: the same ones with workers and without, from the beginning and from a step on."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch

from minerua.errors import LearningError
from minerua.learning.loading import Keyed, Loader, Step
from minerua.learning.order import Order

from .worlds import Careless, Points


def read(dataset: Any, *, first: int = 0, epoch: int = 1, workers: int = 0, accumulate: int = 2) -> list[Step]:
    order = Order(len(dataset), 8, 5, accumulate=accumulate)
    return list(Loader(dataset, order, workers=workers).steps(epoch, first))


def same(ours: list[Step], theirs: list[Step]) -> bool:
    pairs = [(a, b) for one, two in zip(ours, theirs, strict=True) for a, b in zip(one[2], two[2], strict=True)]
    return all(torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in pairs)


@pytest.mark.parametrize("dataset", [Points(21, augmented=True), Careless(21)], ids=["example", "global generators"])
def test_what_is_drawn_for_an_example_depends_on_nothing_but_seed_epoch_and_index(dataset: Any) -> None:
    whole = read(dataset)
    torch.manual_seed(123)
    random.seed(5)
    assert same(read(dataset, first=1), whole[1:])
    assert same(read(dataset, accumulate=1), read(dataset, accumulate=1))
    assert not same(read(dataset, epoch=2), whole)
    assert same(read(dataset, workers=2), whole)


def test_reading_draws_nothing_from_the_global_generators() -> None:
    def states() -> tuple[Any, ...]:
        numpy: Any = np.random.get_state()
        return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2]

    before = states()
    for dataset in (Careless(9), Points(9, augmented=True), Points(9)):
        read(dataset)
        assert states() == before


def test_ready_is_called_before_the_first_example_is_asked_for() -> None:
    happened: list[str] = []

    class Noting(Points):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            happened.append("read")
            return super().__getitem__(index)

    next(Loader(Noting(8), Order(8, 4)).steps(0, ready=lambda: happened.append("ready")))
    assert happened[0] == "ready"
    assert "read" in happened


def test_a_dataset_is_read_many_rows_at_a_time_where_it_can() -> None:
    class Quick(Points):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [(self.inputs[index], torch.tensor(7)) for index in indices]

    (step,) = read(Quick(4))
    assert step.batches[0].targets.tolist() == [7, 7]


def test_a_mapping_is_parted_into_inputs_and_target() -> None:
    class Mapped(Points):
        def __getitem__(self, index: int) -> Any:
            return {"ids": self.inputs[index], "mask": index, "labels": self.targets[index]}

    class Plain(Points):
        def __getitem__(self, index: int) -> Any:
            return {"inputs": self.inputs[index], "target": self.targets[index]}

    batch = read(Mapped(8))[0].batches[0]
    assert sorted(batch.inputs) == ["ids", "mask"]
    assert torch.is_tensor(batch.targets)
    assert torch.is_tensor(read(Plain(8))[0].batches[0].inputs)


def test_an_example_without_a_target_is_refused() -> None:
    class Alone(Points):
        def __getitem__(self, index: int) -> Any:
            return self.inputs[index]

    class Named(Points):
        def __getitem__(self, index: int) -> Any:
            return {"ids": self.inputs[index]}

    with pytest.raises(LearningError, match=r"must be a pair of inputs and target, or a mapping .* found a Tensor"):
        read(Alone(8))
    with pytest.raises(LearningError, match=r"found a mapping of ids"):
        read(Named(8))


def test_a_keyed_dataset_can_be_sent_to_a_worker_that_is_spawned() -> None:
    copy = pickle.loads(pickle.dumps(Keyed(Points(4), 3)))
    assert len(copy) == 4
    assert torch.equal(copy[(0, 2)][0], Points(4)[2][0])
