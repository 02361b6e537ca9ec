"""Which examples a step is over, whoever asks."""

from __future__ import annotations

import numpy as np
import pytest

from minerua.learning.order import Order, mixed, permutation


def test_an_epoch_shows_every_example_once() -> None:
    order = Order(count=23, batch_size=5, seed=3)
    seen = [index for window in order.windows(1) for part in window.parts for index in part.indices]
    assert sorted(seen) == list(range(23))
    assert [window.size for window in order.windows(1)] == [5, 5, 5, 5, 3]


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    assert permutation(1, 2, 50).tolist() == permutation(1, 2, 50).tolist()
    others = {tuple(permutation(seed, epoch, 50).tolist()) for seed in (1, 2) for epoch in (0, 1)}
    assert len(others) == 4


def test_an_epoch_can_be_entered_at_any_step() -> None:
    order = Order(count=23, batch_size=5, seed=3, accumulate=2)
    assert list(order.windows(4, first=3)) == list(order.windows(4))[3:]


def test_an_incomplete_batch_is_left_out_only_where_that_is_asked_for() -> None:
    assert Order(count=23, batch_size=5).steps == 5
    assert Order(count=23, batch_size=5, drop_last=True).steps == 4


def test_without_shuffling_examples_come_in_their_order() -> None:
    (window,) = Order(count=4, batch_size=4, shuffle=False).windows(7)
    assert window.parts[0].indices == (0, 1, 2, 3)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_processes_and_parts_change_no_batch(processes: int, accumulate: int) -> None:
    whole = [set(window.parts[0].indices) for window in Order(count=21, batch_size=8, seed=1).windows(2)]
    ranks = [
        list(Order(21, 8, 1, accumulate=accumulate, rank=rank, processes=processes).windows(2))
        for rank in range(processes)
    ]
    for number, wanted in enumerate(whole):
        windows = [windows[number] for windows in ranks]
        counted = [index for window in windows for part in window.parts if part.counts for index in part.indices]
        assert sorted(counted) == sorted(wanted)
        assert len({len(window.parts) for window in windows}) == 1  # or a process would wait for ever


def test_a_process_without_a_share_goes_along_with_an_example_that_does_not_count() -> None:
    last = [list(Order(5, 4, accumulate=2, rank=rank, processes=2, shuffle=False).windows(0))[-1] for rank in (0, 1)]
    assert sorted(part.counts for window in last for part in window.parts) == [False, True]
    assert all(part.indices for window in last for part in window.parts)


def test_mixed_words_are_spread_and_repeatable() -> None:
    words = {mixed(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(40)}
    assert len(words) == 1000
    assert all(0 <= word < 2**63 for word in words)
    bits = np.array([[word >> bit & 1 for bit in range(63)] for word in words])
    assert abs(bits.mean() - 0.5) < 0.02
