import copy
import json

import pytest

from minerua.evolution import decode_outcome
from minerua.report import summarise, table_json
from minerua.values import Scores

TASKS = ("add", "copy", "max", "sort", "reverse")


def until(events, name):
    """The journal of a run that was killed just before its first event with this name."""
    return events[: next(n for n, event in enumerate(events) if event["event"] == name)]


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
def test_every_archive_has_a_coverage_between_0_and_1_and_its_elites_in_its_cells(toy_run, tasks):
    summary = summarise(toy_run(tasks=TASKS[:tasks], bins=5, failing=7).events)
    assert len(summary.archives) == tasks
    for archive in summary.archives:
        assert 0 < archive.stats.coverage <= 1
        assert archive.stats.num_elites == len(archive.elites)
        assert all(len(elite.cell) == tasks - 1 and max(elite.cell) < 5 for elite in archive.elites)


@pytest.mark.parametrize("fractional", [False, True])
def test_rows_hold_the_journalled_means_inside_their_intervals(toy_run, fractional):
    events = toy_run(fractional=fractional).events
    summary = summarise(events)
    for event in (e for e in events if e["event"] == "final"):
        scores, row = decode_outcome(event), summary.row(event["row"])
        assert isinstance(scores, Scores)
        if event["split"] != "test":
            assert getattr(row, event["split"]) == scores.mean
            continue
        assert row.mean.mean == scores.mean
        assert row.mean.lower < row.mean.mean < row.mean.upper
        assert tuple(task.mean for task in row.tasks) == scores.means
        assert all(task.lower <= task.mean <= task.upper for task in row.tasks)


def test_rows_stand_in_order_of_their_test_scores(toy_run):
    means = [row.mean.mean for row in summarise(toy_run().events).rows]
    assert means == sorted(means, reverse=True)


def test_lead_is_the_chosen_rows_mean_minus_the_rows_own(toy_run):
    summary = summarise(toy_run().events)
    assert summary.chosen == "best"
    chosen = summary.row("best")
    assert chosen.lead is None
    for row in summary.rows:
        if row is not chosen:
            assert row.lead.mean == pytest.approx(chosen.mean.mean - row.mean.mean)
            assert row.lead.lower <= row.lead.mean <= row.lead.upper


def test_without_a_best_row_the_select_split_chooses_and_the_test_split_does_not(toy_run):
    events = [e for e in toy_run().events if e.get("row") != "best"]
    summary = summarise(events)
    assert summary.row(summary.chosen).select == max(row.select for row in summary.rows)


def test_one_model_under_two_names_differs_by_exactly_nothing(toy_run):
    events = toy_run().events
    twins = [e | {"row": "twin"} for e in events if e.get("row") == "best"]
    lead = summarise([*events, *twins]).row("twin").lead
    assert (lead.mean, lead.lower, lead.upper) == (0, 0, 0)


def test_row_that_failed_on_the_test_items_has_no_scores_and_is_among_the_failures(toy_run):
    events = toy_run().events
    for event in events:
        if event.get("row") == "aggregate" and event["split"] == "test":
            del event["scores"]
            event["failed"] = "out of memory"
    summary = summarise(events)
    row = summary.row("aggregate")
    assert (row.tasks, row.mean, row.lead) == (None, None, None)
    assert row.search is not None
    assert summary.failures[0].reason == "out of memory"
    assert summary.failures[0].who == ("aggregate (test)",)
    assert summary.rows[-1] is row


def test_search_score_of_a_row_without_its_own_comes_from_evolution(toy_run):
    events = toy_run().events
    short = [e for e in events if not (e["event"] == "final" and e["split"] == "search")]
    assert summarise(short).row("best").search == summarise(events).row("best").search
    assert summarise(short).row("base").search is None  # never scored on search otherwise


def test_failures_are_counted_by_reason_the_most_frequent_first(toy_run):
    run = toy_run(failing=4, failed_seed=True, children=80)
    summary = summarise(run.events)
    counts = [len(group.who) for group in summary.failures]
    journalled = sum("failed" in event for event in run.events)
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == journalled > 2
    assert ("ties",) in [group.who for group in summary.failures]


@pytest.mark.parametrize(
    ("event", "lacks"),
    [
        ("seed", ("the bounds of the archives", "the final scores", "the end of the run")),
        ("bounds", ("the bounds of the archives", "the final scores", "the end of the run")),
        ("ask", ("the final scores", "the end of the run")),
        ("tell", ("4 children asked for", "the final scores", "the end of the run")),
        ("final", ("the final scores", "the end of the run")),
        ("end", ("the end of the run",)),
    ],
)
def test_unfinished_run_gives_a_summary_that_says_what_it_lacks(toy_run, event, lacks):
    summary = summarise(until(toy_run().events, event))
    assert summary.unfinished == lacks
    assert table_json(summary)["finished"] is False


def test_finished_run_lacks_nothing(toy_run):
    summary = summarise(toy_run().events)
    assert summary.unfinished == ()
    assert table_json(summary)["finished"] is True


def test_best_of_an_unfinished_run_has_the_highest_search_mean(toy_run):
    summary = summarise(until(toy_run().events, "final"))
    scored = [child.mean for child in (*summary.seeds, *summary.children) if child.mean is not None]
    assert summary.best.mean == max(scored)


def test_best_model_is_the_one_that_the_journal_names(toy_run):
    events = toy_run().events
    assert summarise(events).best.digest == events[-1]["best"]


def test_aggregate_that_was_chosen_descends_from_the_archives_best(toy_run):
    run = toy_run()
    digest = next(e["digest"] for e in run.events if e.get("row") == "aggregate")
    summary = summarise([*run.events[:-1], run.events[-1] | {"best": digest}])
    assert (summary.best.origin, summary.best.label) == ("merge", "aggregate")
    assert set(summary.best.parents) == {archive.best().digest for archive in run.cycle.archives}
    assert summary.lineage.total > 2


def test_seed_that_was_chosen_has_no_ancestors(toy_run):
    events = toy_run().events
    seed = next(e for e in events if e["event"] == "seed")
    summary = summarise([*events[:-1], events[-1] | {"best": seed["digest"]}])
    assert (summary.best.origin, summary.best.label, summary.lineage.total) == ("seed", seed["name"], 0)


def test_marks_stand_in_the_cells_of_the_experts_scores(toy_run):
    run = toy_run()
    summary = summarise(run.events)
    for archive, original in zip(summary.archives, run.cycle.archives, strict=True):
        assert set(archive.marks) == {"add-expert", "copy-expert", "max-expert", "best"}
        assert archive.marks["best"] == original.cell_of(summary.best.means)


def test_table_json_is_plain_json_and_the_same_every_time(toy_run):
    events = toy_run(failing=6).events
    first = json.dumps(table_json(summarise(events)), allow_nan=False)
    assert first == json.dumps(table_json(summarise(copy.deepcopy(events))), allow_nan=False)
    assert json.loads(first)["rows"][0].keys() == {
        "name",
        "digest",
        "expert",
        "tasks",
        "mean",
        "search",
        "select",
        "lead",
    }
