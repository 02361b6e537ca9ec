import itertools

import pytest

from minerua.errors import JournalError
from minerua.report.replay import BINS, Replay

TASKS = ("add", "copy", "max", "sort", "reverse")


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
@pytest.mark.parametrize("settings", [{}, {"failing": 5, "failed_seed": True, "fractional": True}])
def test_archives_rebuilt_from_the_journal_equal_those_of_the_cycle(toy_run, tasks, settings):
    run = toy_run(tasks=TASKS[:tasks], bins=6, **settings)
    replay = Replay(run.events)
    assert [archive.elites for archive in replay.archives] == [archive.elites for archive in run.cycle.archives]
    assert [curve[-1].stats for curve in replay.curves] == [archive.stats() for archive in run.cycle.archives]
    assert replay.evaluations == run.cycle.evaluations


def test_curves_never_fall_and_start_with_the_seeds(toy_run):
    for curve in Replay(toy_run().events).curves:
        assert curve[0].evaluations == 0
        assert all(a.evaluations < b.evaluations for a, b in itertools.pairwise(curve))
        assert all(a.stats.qd_score < b.stats.qd_score for a, b in itertools.pairwise(curve))
        assert all(0 < point.stats.coverage <= 1 for point in curve)


def test_shares_of_ancestry_sum_to_one(toy_run):
    for child in Replay(toy_run().events).children:
        assert sum(child.shares.values()) == pytest.approx(1)


def test_child_has_the_mean_shares_of_its_parents(toy_run):
    replay = Replay(toy_run().events)
    child = replay.children[-1]
    first, second = (replay.by_digest[digest] for digest in child.parents)
    for seed, share in child.shares.items():
        assert share == pytest.approx((first.shares.get(seed, 0) + second.shares.get(seed, 0)) / 2)


def test_journal_whose_statuses_contradict_its_scores_is_refused(toy_run):
    events = toy_run().events
    line, tell = next((n, e) for n, e in enumerate(events, 1) if e["event"] == "tell" and any(e["added"]))
    tell["added"] = [0, 0, 0]
    with pytest.raises(JournalError, match=rf"line {line} of the journal: child {tell['id']} was filed as \[0, 0, 0\]"):
        Replay(events)


def test_score_changed_after_the_run_is_noticed(toy_run):
    events = toy_run().events
    tell = next(e for e in events if e["event"] == "tell" and not any(e["added"]))
    for score in tell["scores"].values():
        score["values"] = [1.0] * score["n"]  # would have entered every archive
    with pytest.raises(JournalError, match="was filed as"):
        Replay(events)


def test_events_and_fields_of_later_versions_are_ignored(toy_run):
    events = toy_run().events
    extended = [events[0], {"event": "weather", "wind": 3}, *({**event, "later": 1} for event in events[1:])]
    assert Replay(extended).children == Replay(events).children


@pytest.mark.parametrize(
    ("place", "settings", "expected"),
    [
        ({"bins": 5}, {"evolution": {"bins": 5}}, 5),
        ({}, {"evolution": {"bins": 5}}, 5),
        ({}, {"bins": 5}, 5),
        ({}, {}, BINS),
    ],
)
def test_bins_come_from_the_bounds_then_the_settings_then_the_paper(toy_run, place, settings, expected):
    events = toy_run(bins=expected, config=settings or {"seed": 1}, children=10).events
    assert Replay([e | place if e["event"] == "bounds" else e for e in events]).bins == expected


def test_file_that_is_no_journal_is_refused():
    with pytest.raises(JournalError, match="starts with an event 'run'"):
        Replay([{"event": "tell"}])


def test_empty_journal_is_refused():
    with pytest.raises(JournalError, match="starts with an event 'run'"):
        Replay([])


def test_run_with_one_task_is_refused():
    with pytest.raises(JournalError, match="two tasks or more, this one has 1"):
        Replay([{"event": "run", "tasks": ["a"]}])


def test_event_without_a_field_is_named_with_its_line(toy_run):
    events = toy_run().events
    line = next(n for n, e in enumerate(events) if e["event"] == "tell")
    del events[line]["id"]
    with pytest.raises(JournalError, match=rf"line {line + 1} of the journal, event 'tell', cannot be read: KeyError"):
        Replay(events)


def test_child_that_nobody_asked_for_is_refused(toy_run):
    events = [event for event in toy_run().events if event["event"] != "ask"]
    with pytest.raises(JournalError, match="was told, and nobody asked for it"):
        Replay(events)


def test_parent_that_is_nowhere_is_refused(toy_run):
    events = toy_run().events
    next(e for e in events if e["event"] == "ask")["children"][0]["parents"][0] = "f" * 32
    with pytest.raises(JournalError, match="whom the journal does not know"):
        Replay(events)


def test_scores_without_items_are_refused(toy_run):
    events = toy_run().events
    seed = next(e for e in events if e["event"] == "seed")
    seed["scores"]["copy"] = {"n": 0, "mean": 0, "bits": ""}
    with pytest.raises(JournalError, match="a task has no items"):
        Replay(events)
