"""What was known before the run, as the terminal and the page show it."""

import json

import pytest

from minerua.errors import JournalError
from minerua.report import Pair, Preflight, preflight_text, render, summarise, table_json
from minerua.report.preflight import read_preflight

from .test_page import HOSTILE, Page, sections

FOUND = Preflight(
    matrices=4,
    matrices_in_all=4,
    norms={"add-expert": 1.0, "copy-expert": 0.0},
    pairs=(
        Pair(("add-expert", "copy-expert"), None, 0.0, None),
        Pair(("add-expert", "max-expert"), 0.987654, -0.125, 1.5),
    ),
    concerns=("“copy-expert” is equal to the base.",),
)


def with_preflight(events, found):
    return [*events[:2], {"event": "preflight", **json.loads(json.dumps(found.fields()))}, *events[2:]]


def test_fields_and_reading_are_inverse():
    assert read_preflight(json.loads(json.dumps(FOUND.fields(), allow_nan=False))) == FOUND


def test_the_page_has_a_section_with_every_pair_and_concern(toy_run):
    page = Page(render(with_preflight(toy_run().events, FOUND)))
    assert page.open == []
    assert "Before the run" in sections(page)
    text = page.text()
    assert "add-expert – max-expert 0.99 −0.12 1.50" in text
    assert "add-expert – copy-expert – 0.00 –" in text
    assert "“copy-expert” is equal to the base." in text
    assert "over 4 matrices; a hint, no proof. In CycleQD's table 4 it went with success (correlation 0.83)" in text


def test_a_cosine_has_a_proper_minus_and_none_where_it_rounds_to_nothing():
    pairs = tuple(Pair(("a", "z"), 0.5, cosine, 1.0) for cosine in (-0.5, -0.004, 0.004))
    found = Preflight(1, 1, {}, pairs, ())
    assert [line.split()[4] for line in preflight_text(found).splitlines()[1:4]] == ["−0.50", "0.00", "0.00"]


def test_an_unfinished_run_shows_it_too(toy_run):
    page = Page(render(with_preflight(toy_run().events, FOUND)[:3]))
    assert sections(page) == ["Before the run"]


def test_a_journal_without_it_has_no_section_and_says_null(toy_run):
    events = toy_run().events
    assert "Before the run" not in sections(Page(render(events)))
    assert table_json(summarise(events))["preflight"] is None


def test_table_json_has_it_as_the_journal_has_it(toy_run):
    summary = summarise(with_preflight(toy_run().events, FOUND))
    assert summary.preflight == FOUND
    assert json.loads(json.dumps(table_json(summary)))["preflight"] == FOUND.fields()


def test_names_from_the_journal_are_harmless_on_the_page_and_in_the_terminal(toy_run):
    hostile = f"{HOSTILE}\x1b[31m\n"
    found = Preflight(1, 1, {hostile: 1.0}, (Pair((hostile, hostile), 0.9, 0.1, 1.0),), (hostile,))
    page = Page(render(with_preflight(toy_run().events, found)))
    assert page.open == []
    assert not page.named("img")
    text = preflight_text(found)
    assert "\x1b" not in text
    assert len(text.splitlines()) == 4


def test_of_many_experts_the_terminal_shows_the_least_similar_pairs():
    names = [f"expert-{k}" for k in range(6)]
    pairs = [Pair((a, b), 0.0, 0.1, 1.0) for i, a in enumerate(names) for b in names[:i]]
    pairs = [Pair(p.experts, None if not k else 1 - k / 100, p.cosine, p.norm_ratio) for k, p in enumerate(pairs)]
    lines = preflight_text(Preflight(3, 9, {}, tuple(pairs), ())).splitlines()
    assert len(lines) == 1 + 10 + 2
    assert [float(line.split()[-3]) for line in lines[1:11]] == [round(1 - k / 100, 2) for k in range(14, 4, -1)]
    assert lines[11] == "and 5 pairs more, of more similar experts: see the report"
    assert lines[12] == "s: how alike two experts' singular values are, over 3 matrices of 9; a hint, no proof."


@pytest.mark.parametrize("field", ["matrices", "matrices_in_all", "norms", "pairs", "concerns"])
def test_an_event_without_a_field_is_named_with_its_line(toy_run, field):
    events = with_preflight(toy_run().events, FOUND)
    del events[2][field]
    with pytest.raises(
        JournalError, match=f"line 3 of the journal, event 'preflight', cannot be read: KeyError: '{field}'"
    ):
        summarise(events)


def test_a_pair_of_three_is_refused(toy_run):
    events = with_preflight(toy_run().events, FOUND)
    events[2]["pairs"][0]["experts"].append("third")
    with pytest.raises(
        JournalError, match="line 3 of the journal: a pair before the run has two experts, this one has 3"
    ):
        summarise(events)
