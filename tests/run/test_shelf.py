"""A genome store as a cycle sees it: deletions wait until the journal holds their reason."""

import numpy as np
import pytest

from minerua.run.shelf import GenomeShelf
from minerua.values import Genome
from minerua.weights import GenomeStore


def genome(number):
    values = np.full(5, number, np.float32)
    values.flags.writeable = False
    return Genome("space", values)


@pytest.fixture
def store(tmp_path):
    return GenomeStore(tmp_path / "genomes")


@pytest.fixture
def shelf(store):
    return GenomeShelf(store)


def put(shelf, *numbers):
    genomes = [genome(number) for number in numbers]
    for one in genomes:
        shelf[one.digest] = one
    return [one.digest for one in genomes]


def test_a_shelf_is_a_mapping_of_names_to_genomes_read_from_the_disk(shelf):
    names = put(shelf, 1, 2, 2)
    assert dict(shelf).keys() == set(names)
    assert len(shelf) == 2
    assert shelf[names[1]].values.tolist() == [2.0] * 5
    assert shelf.get("0" * 32) is None
    with pytest.raises(KeyError, match="0000"):
        del shelf["0" * 32]


def test_what_is_dropped_is_gone_for_the_cycle_and_on_the_disk_until_it_is_settled(shelf, store):
    one, two = put(shelf, 1, 2)
    del shelf[one]
    assert one not in shelf
    assert list(shelf) == [two]
    with pytest.raises(KeyError, match=one):
        shelf[one]
    assert sorted(store) == sorted([one, two])
    shelf.settle()
    assert list(store) == [two]
    shelf.settle()
    assert list(store) == [two]


def test_what_is_dropped_and_put_back_before_it_is_settled_stays(shelf, store):
    (one,) = put(shelf, 1)
    del shelf[one]
    put(shelf, 1)
    shelf.settle()
    assert list(store) == [one]
    del shelf[one]
    shelf.settle()
    assert list(store) == []


def test_a_sweep_keeps_the_living_of_an_earlier_process_even_if_they_were_dropped_during_the_replay(shelf, store):
    one, two, three = put(shelf, 1, 2, 3)
    later = GenomeShelf(GenomeStore(store.folder))
    del later[one]
    del later[two]
    later.sweep([one])
    assert list(later) == [one]
    later.settle()
    assert list(later) == [one]
    assert not {two, three} & set(store)
