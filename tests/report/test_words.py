import pytest

from minerua.report import sentences, summarise, table_text
from minerua.report.intervals import Interval
from minerua.report.words import verdict


def test_account_names_experts_tasks_evaluations_result_and_rivals(toy_run):
    words = " ".join(sentences(summarise(toy_run().events)))
    assert words.startswith("3 experts on 3 tasks, 4 seeds, 60 evaluations, none failed.")
    assert "On 150 test items, which evolution never saw, “best” scores" in words
    assert "The best expert, “" in words
    assert "The plain mean of the experts, “mean”, scores" in words


def test_account_holds_the_result_against_the_merge_that_evolution_started_from(toy_run):
    renamed = {"mean": "regmean"}
    events = [e | {key: renamed.get(e[key], e[key]) for key in ("name", "row") if key in e} for e in toy_run().events]
    words = " ".join(sentences(summarise(events)))
    assert "The merge that was best on search before evolution, “regmean”, scores" in words
    assert "The plain mean of the experts" not in words


@pytest.mark.parametrize("seed", range(4))
def test_account_says_overlap_exactly_where_the_intervals_overlap(toy_run, seed):
    summary = summarise(toy_run(seed=seed).events)
    chosen, expert = summary.row("best"), next(row for row in summary.rows if row.expert)
    said = next(sentence for sentence in sentences(summary) if sentence.startswith("The best expert"))
    assert ("do not overlap" in said) != chosen.mean.overlaps(expert.mean)
    assert ("cannot tell the two apart" in said) == (expert.lead.lower <= 0 <= expert.lead.upper)


def test_unfinished_account_says_so_and_warns_of_search_scores(toy_run):
    events = [e for e in toy_run().events if e["event"] not in ("final", "end")]
    words = " ".join(sentences(summarise(events)))
    assert "The run is unfinished: its journal lacks the final scores and the end of the run." in words
    assert "tends to be too high; no test item has been used" in words


def test_account_says_when_a_seed_was_chosen(toy_run):
    events = toy_run().events
    seed = next(e for e in events if e["event"] == "seed")
    finals = [e | {"digest": seed["digest"]} if e.get("row") == "best" else e for e in events[:-1]]
    words = " ".join(sentences(summarise([*finals, events[-1] | {"best": seed["digest"]}])))
    assert f"It is the seed “{seed['name']}”: no child was chosen over it." in words


def test_failed_result_is_said_to_be_unscored(toy_run):
    events = [
        {k: v for k, v in e.items() if k != "scores"} | {"failed": "lost"}
        if e.get("row") == "best" and e["split"] == "test"
        else e
        for e in toy_run().events
    ]
    summary = summarise(events)
    assert "The model “best” could not be scored on the test items." in sentences(summary)
    assert all(row.lead is None for row in summary.rows)


@pytest.mark.parametrize(
    ("lead", "said"),
    [
        (Interval(0.05, 0.01, 0.09), "is ahead by 5.0 points (+1.0 to +9.0)"),
        (Interval(-0.05, -0.09, -0.01), "is behind by 5.0 points (−9.0 to −1.0)"),
        (Interval(0.05, -0.01, 0.11), "these items cannot tell the two apart"),
        (Interval(0.0, 0.0, 0.0), "one and the same model"),
    ],
)
def test_verdict_claims_no_more_than_the_interval(lead, said):
    assert said in verdict("best", lead)


def test_columns_of_the_terminal_table_are_aligned(toy_run):
    summary = summarise(toy_run().events)
    block = table_text(summary).split("\n\n")[1].splitlines()
    assert len(block) == len(summary.rows) + 1
    ends = {line.index("[") for line in block[1:]}
    assert len(ends) == 1


def test_names_cannot_command_a_terminal(toy_run):
    text = table_text(summarise(toy_run(tasks=("a\x1b[31m", "b\nc")).events))
    assert "\x1b" not in text
    assert "b\nc" not in text
