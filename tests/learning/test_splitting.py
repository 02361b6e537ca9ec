import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.learning.rows import RowError
from minerua.learning.splitting import content_hash, deal, draws, key_hash, repeats

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def hashes(count, start=0):
    return np.array([key_hash(f"row {i}") for i in range(start, start + count)], np.uint64)


def where(values, seed=0):
    return {int(values[i]): split for split, at in deal(values, SHARES, seed=seed).items() for i in at}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1)), st.integers())
def test_every_row_lies_in_exactly_one_split(values, seed):
    parts = deal(np.array(values, np.uint64), SHARES, seed=seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(values)))


def test_rows_that_are_added_removed_or_reordered_move_no_other():
    before = where(hashes(500))
    after = where(np.random.default_rng(0).permutation(hashes(900, start=100)))
    assert all(after[key] == split for key, split in before.items() if key in after)


def test_shares_are_kept_on_average():
    parts = deal(hashes(20_000), SHARES, seed=0)
    for split, share in SHARES.items():
        assert len(parts[split]) == pytest.approx(20_000 * share, abs=5 * (20_000 * share * (1 - share)) ** 0.5)


def test_another_seed_deals_anew():
    assert where(hashes(100), seed=0) != where(hashes(100), seed=1)


def test_a_draw_is_what_it_has_always_been():
    assert key_hash("row") == int.from_bytes(hashlib.blake2b(b"row", digest_size=8).digest(), "little")
    word = key_hash("split 7")
    z = 5 ^ word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    assert draws(np.array([5], np.uint64), seed=7)[0] == ((z ^ (z >> 31)) >> 11) / 2**53


ROWS = [
    None,
    0,
    0.0,
    "0",
    b"0",
    [],
    ["0"],
    [["0"]],
    {"a": 1},
    {"a": "1"},
    np.zeros(1, np.float32),
    np.zeros(2, np.float32),
    np.zeros((1, 2), np.float32),
    np.zeros(2, np.int32),
    np.array(["a"]),
    torch.zeros(2, dtype=torch.bfloat16),
    True,
    ("ab", "c"),
    ("a", "bc"),
]


def test_rows_that_differ_in_anything_have_different_hashes():
    assert len({content_hash(row) for row in ROWS}) == len(ROWS)


def test_equal_rows_have_equal_hashes_however_they_lie_in_memory():
    wide = np.arange(12.0).reshape(3, 4)
    assert content_hash(wide.T) == content_hash(np.ascontiguousarray(wide.T))
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash(torch.ones(3)) == content_hash(torch.ones(6)[::2])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (object(), "object has no content to go by; give the dataset a key"),
        (np.array([None]), "arrays of Python objects cannot be told apart by their bytes"),
    ],
)
def test_what_has_no_content_is_refused(row, said):
    with pytest.raises(RowError) as caught:
        content_hash(row)
    assert said in str(caught.value)


def test_repeats_are_counted():
    assert repeats(np.array([3, 1, 3, 3], np.uint64)) == 2
