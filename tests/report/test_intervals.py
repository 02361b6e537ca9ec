from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerua.errors import JournalError
from minerua.report.intervals import Interval, mean_interval, paired_difference, task_interval
from minerua.values import Scores, TaskScore

outcomes = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def scores(**tasks) -> Scores:
    return Scores({task: TaskScore(tuple(map(float, values))) for task, values in tasks.items()})


def assert_equal(first: Interval, second: Interval) -> None:
    assert astuple(first) == pytest.approx(astuple(second))


@given(outcomes)
def test_interval_of_a_task_contains_its_mean_and_stays_between_0_and_1(values):
    interval = task_interval(values)
    assert 0 <= interval.lower <= interval.mean <= interval.upper <= 1


@given(outcomes, outcomes)
def test_interval_of_the_mean_contains_it_and_stays_between_0_and_1(first, second):
    interval = mean_interval(scores(a=first, b=second), {})
    assert 0 <= interval.lower <= interval.mean <= interval.upper <= 1


def test_interval_of_a_task_is_wilsons_as_printed_in_textbooks():
    interval = task_interval([1.0] * 81 + [0.0] * 182)  # 81 of 263: 0.2553 to 0.3662, Newcombe 1998
    assert interval.lower == pytest.approx(0.2553, abs=5e-5)
    assert interval.upper == pytest.approx(0.3662, abs=5e-5)


def test_model_that_solves_everything_is_not_certain_to_solve_the_next_item():
    interval = mean_interval(scores(a=[1] * 20, b=[1] * 20), {})
    assert interval.mean == interval.upper == 1
    assert interval.lower < 0.95


def test_mean_of_one_task_has_the_interval_of_that_task():
    values = [1, 0, 1, 1, 0, 1, 1]
    assert_equal(mean_interval(scores(a=values), {}), task_interval(values))


def test_tasks_that_share_all_items_and_outcomes_are_as_sure_as_one_task():
    values, ids = [1, 0, 1, 1, 0, 0, 0, 1], list("abcdefgh")
    together = mean_interval(scores(a=values, b=values), {"a": ids, "b": ids})
    assert_equal(together, task_interval(values))


def test_tasks_that_share_no_items_are_surer_together_than_alone():
    values = [1, 0, 1, 1, 0, 0, 0, 1]
    together, alone = mean_interval(scores(a=values, b=values), {}), task_interval(values)
    assert together.upper - together.mean == pytest.approx((alone.upper - alone.mean) / np.sqrt(2))


def test_interval_of_the_mean_covers_the_truth_in_about_95_of_100_cases():
    generator, truth = np.random.default_rng(5), np.array([0.3, 0.9, 0.6])
    hits = 0
    for _ in range(400):
        draws = generator.random((3, 60)) < truth[:, None]
        interval = mean_interval(scores(a=draws[0], b=draws[1], c=draws[2]), {})
        hits += interval.lower <= truth.mean() <= interval.upper
    assert 0.92 <= hits / 400 <= 0.985


def test_paired_difference_covers_the_truth_in_about_95_of_100_cases():
    generator, hits = np.random.default_rng(6), 0
    for _ in range(400):
        luck = generator.random((2, 60))  # one luck per item: the two models' outcomes are correlated
        first, second = luck < 0.7, luck < 0.6
        interval = paired_difference(scores(a=first[0], b=first[1]), scores(a=second[0], b=second[1]), {})
        hits += interval.lower <= 0.1 <= interval.upper
    assert hits / 400 >= 0.93


@given(outcomes)
def test_paired_difference_changes_its_sign_with_the_order(values):
    other = [1 - value for value in values]
    there = paired_difference(scores(a=values), scores(a=other), {})
    back = paired_difference(scores(a=other), scores(a=values), {})
    assert (there.mean, there.lower, there.upper) == pytest.approx((-back.mean, -back.upper, -back.lower))
    assert there.lower <= there.mean <= there.upper


def test_pairing_is_surer_than_two_intervals_side_by_side():
    first = [1, 1, 1, 0] * 10
    second = [1, 1, 0, 0] * 10
    lead = paired_difference(scores(a=first), scores(a=second), {})
    assert task_interval(first).overlaps(task_interval(second))
    assert lead.lower > 0


def test_models_that_agree_on_every_item_are_not_equal_for_certain():
    lead = paired_difference(scores(a=[1, 0, 1]), scores(a=[1, 0, 1]), {})
    assert lead.mean == 0
    assert lead.lower < 0 < lead.upper


def test_models_on_other_items_cannot_be_compared():
    with pytest.raises(JournalError, match="only on the same items"):
        paired_difference(scores(a=[1, 0]), scores(a=[1, 0, 1]), {})


def test_ids_that_do_not_fit_the_outcomes_are_refused_with_both_numbers():
    with pytest.raises(JournalError, match="task 'a' has 2 items and 3 outcomes; the journal is damaged"):
        mean_interval(scores(a=[1, 0, 1]), {"a": ["x", "y"]})


def test_intervals_overlap_where_they_touch():
    assert Interval(0.2, 0.1, 0.3).overlaps(Interval(0.4, 0.3, 0.5))
    assert not Interval(0.2, 0.1, 0.3).overlaps(Interval(0.5, 0.4, 0.6))
