import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import ConfigError
from minerua.evaluation import deal, split_of
from minerua.values import SPLITS, EvaluatorSpec

FRACTIONS = {"search": 0.4, "select": 0.2, "test": 0.4}


def _task(name, items):
    return EvaluatorSpec(name, items if callable(items) else lambda: items, lambda model, ids, seed: [1.0] * len(ids))


def _ids(count, start=0):
    return [f"item-{i}" for i in range(start, start + count)]


def _where(task):
    return {id: split for split, ids in task.ids.items() for id in ids}


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t)), st.integers(0, 2**63 - 1))
def test_an_item_s_split_follows_from_its_id_and_the_seed_alone(id, seed):
    draw = int.from_bytes(hashlib.blake2b(f"{seed}:{id}".encode(), digest_size=8).digest(), "big") / 2**64
    expected = "search" if draw < 0.4 else "select" if draw < 0.4 + 0.2 else "test"
    assert split_of(id, FRACTIONS, seed=seed) == expected


def test_every_item_is_in_exactly_one_split():
    (task,) = deal([_task("t", _ids(200))], FRACTIONS, seed=0)
    assert tuple(task.ids) == SPLITS
    assert sorted(id for ids in task.ids.values() for id in ids) == sorted(_ids(200))


def test_items_that_are_added_later_move_no_other():
    (small,) = deal([_task("t", _ids(100))], FRACTIONS, seed=4)
    (large,) = deal([_task("t", _ids(300)[::-1])], FRACTIONS, seed=4)
    assert _where(small).items() <= _where(large).items()


def test_tasks_that_share_an_id_share_its_split():
    one, two = deal([_task("one", _ids(100)), _task("two", _ids(150, start=50))], FRACTIONS, seed=1)
    shared = _where(one).keys() & _where(two).keys()
    assert len(shared) == 50
    assert all(_where(one)[id] == _where(two)[id] for id in shared)


@pytest.mark.parametrize("fractions", [FRACTIONS, {"search": 0.6, "select": 0.3, "test": 0.1}])
def test_splits_have_nearly_their_share_of_the_items(fractions):
    (task,) = deal([_task("t", _ids(5000))], fractions, seed=0)
    for split, share in fractions.items():
        assert len(task.ids[split]) / 5000 == pytest.approx(share, abs=0.025)


def test_another_seed_deals_anew():
    (one,), (two,) = (deal([_task("t", _ids(300))], FRACTIONS, seed=seed) for seed in (0, 1))
    moved = sum(_where(one)[id] != _where(two)[id] for id in _ids(300))
    assert moved / 300 == pytest.approx(0.64, abs=0.1)  # 1 − Σ share²


def test_the_order_in_which_items_are_listed_does_not_matter():
    (one,), (two,) = (deal([_task("t", items)], FRACTIONS, seed=0) for items in (_ids(50), _ids(50)[::-1]))
    assert one.ids == two.ids
    assert all(list(ids) == sorted(ids) for ids in one.ids.values())


def test_tasks_keep_the_order_and_the_names_of_their_evaluators():
    evaluators = [_task("zebra", _ids(30)), _task("ant", _ids(30))]
    tasks = deal(evaluators, FRACTIONS, seed=0)
    assert [task.name for task in tasks] == ["zebra", "ant"]
    assert [task.evaluator for task in tasks] == evaluators


def _refuse():
    raise OSError("the drive is gone")


def test_all_faults_of_all_items_are_told_at_once():
    evaluators = [
        _task("empty", []),
        _task("gone", _refuse),
        _task("numbers", [*_ids(40), 7, "", "half \ud800", ["x"]]),
        _task("repeating", [*_ids(40), *_ids(3, start=5)]),
        _task("few", ["item-0"]),
        _task("sound", _ids(40)),
    ]
    with pytest.raises(ConfigError, match="the tasks' items cannot be split into search, select and test") as caught:
        deal(evaluators, FRACTIONS, seed=0)
    few = " and ".join(split for split in SPLITS if split != split_of("item-0", FRACTIONS, seed=0))
    assert caught.value.faults == (
        "evaluator 'empty' has no items",
        "evaluator 'gone' cannot list its items: OSError: the drive is gone",
        "evaluator 'numbers' has 4 ids that are no text, the first 7",
        "evaluator 'repeating' repeats 3 ids, among them 'item-5'",
        f"evaluator 'few': its 1 items leave {few} empty; give more items, or that split a larger share",
    )


def test_repeated_items_are_found_in_long_lists():
    items = [*_ids(30_000), "item-29999"]
    with pytest.raises(ConfigError, match="repeats 1 ids, among them 'item-29999'"):
        deal([_task("t", items)], FRACTIONS, seed=0)
