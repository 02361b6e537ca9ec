import random

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig
from minerua.learning.rows import BadRows
from minerua.learning.sources.objects import ObjectRows


def rows(dataset, *, check=True, **labels):
    return ObjectRows(dataset, "mine", LabelsConfig(**labels), check=check)


class Keyed:
    """Names its rows, and counts how often they are read."""

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return 3

    def __getitem__(self, i):
        self.reads += 1
        return random.random(), i

    def key(self, i):
        return f"row {i}"


def test_a_torch_dataset_is_taken_as_it_is():
    dataset = TensorDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0]))
    source = rows(dataset)
    scanned = source.scan(BadRows())
    assert len(np.unique(scanned.hashes)) == 3
    assert torch.equal(source.read(1)[0], torch.tensor([2.0, 3.0]))


def test_rows_may_be_mappings():
    bad = BadRows()
    scanned = rows([{"ids": np.arange(3), "mask": np.ones(2), "label": k} for k in range(4)]).scan(bad)
    assert bad.count == 0
    assert len(set(scanned.hashes.tolist())) == 1  # the label is no part of the key


def test_every_kind_of_bad_row_is_counted():
    class Broken(list):
        def __getitem__(self, i):
            if i == 1:
                raise RuntimeError("gone")
            return list.__getitem__(self, i)

    good = (np.zeros(2), 0)
    dataset = Broken(
        [good, None, (np.zeros(3), 0), (np.full(2, np.nan), 0), (np.zeros(2), 7), 5, (np.zeros(2), float("nan")), good]
    )
    bad, source = BadRows(), rows(dataset, classes=2)
    scanned = source.scan(bad)
    assert len(scanned.hashes) == 2
    assert source.read(1) == good
    assert [str(row) for row in bad.listed] == [
        "mine[1]: cannot be read: RuntimeError: gone",
        "mine[2]: another shape: [3] where the first row has [2]",
        "mine[3]: not finite: 2 of 2 inputs",
        "mine[4]: out of range: target 7 is not in [0, 1]",
        "mine[5]: not a pair: a row is (inputs, target), or a mapping with one of target, targets, labels, label; "
        "found int",
        "mine[6]: not finite: target nan",
    ]


def test_targets_outside_their_limits_are_bad_rows():
    bad = BadRows()
    rows([(np.zeros(1), 0.5), (np.ones(1), 2.5)], kind="number", most=1).scan(bad)
    assert str(bad.listed[0]) == "mine[1]: out of range: target 2.5 is not in [-inf, 1]"


def test_rows_with_keys_need_not_be_read():
    dataset = Keyed()
    scanned = rows(dataset, check=False).scan(BadRows())
    assert dataset.reads == 0
    assert not scanned.checked
    assert len(set(scanned.hashes.tolist())) == 3


def test_rows_without_keys_must_be_read():
    with pytest.raises(ConfigError, match="check: false needs a dataset with key"):
        rows([(1.0, 0)], check=False)


def test_random_rows_without_keys_are_refused():
    class Random(list):
        def __getitem__(self, i):
            return np.random.default_rng().random(2), 0

    with pytest.raises(ConfigError, match="is another row each time it is read, so that no split of it would last"):
        rows(Random([0, 0])).scan(BadRows())
    assert len(rows(Keyed()).scan(BadRows()).hashes) == 3


def test_rows_without_content_are_bad_without_keys():
    bad = BadRows()
    rows([(object(), 0)]).scan(bad)
    assert str(bad.listed[0]) == "mine[0]: no content: object has no content to go by; give the dataset a key(i)"


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(0, 0)])


@pytest.mark.parametrize("dataset", [Stream(), iter([(0, 0)]), 7, "rows", {"a": 1}])
def test_what_has_no_numbered_rows_is_refused_with_the_reason(dataset):
    with pytest.raises(
        ConfigError, match="an iterable dataset can neither be shuffled exactly nor resumed in the middle"
    ):
        rows(dataset)
