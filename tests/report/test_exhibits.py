"""The section of the page that shows what a model does: pictures inside the page, texts as they are, nothing acts."""

import base64
import re

import pytest

from minerua.errors import JournalError
from minerua.report import Exhibits, TaskExhibits, exhibits_json, read_exhibits, render, summarise
from minerua.values import Exhibit

from .test_page import HOSTILE, Page, sections

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAAAAACrCDVsAAAADElEQVR4nGNgYGAAAAADAAEO4vEJAAAAAElFTkSuQmCC")
"""Three pixels wide, two high."""


def shown(run, *exhibits, task="copy", **fields):
    best = summarise(run.events).row("best").digest
    return Exhibits(best, (TaskExhibits(task, "plugin 'p' (d 1.2)", exhibits, **fields),))


def test_pictures_are_inside_the_page_with_their_size_and_words_for_them(toy_run):
    run = toy_run()
    text = render(run.events, shown(run, Exhibit("i1", "Dice 0.5", png=PNG), Exhibit("i2", png=PNG)))
    page = Page(text)
    assert page.open == []
    first, second = page.named("img")
    assert first["src"] == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert (first["width"], first["height"]) == ("3", "2")
    assert first["alt"] == "copy, item i1: Dice 0.5"
    assert second["alt"] == "copy, item i2: picture"
    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv"))
    assert "img-src data:" in policy
    assert not re.search(r"https?:", text)


def test_the_section_stands_after_the_scores_and_names_task_plugin_and_items(toy_run):
    run = toy_run()
    page = Page(render(run.events, shown(run, Exhibit("i1", "right", "4"), notes=("Item i2 is left out.",))))
    assert sections(page)[:3] == ["Final scores", "What the chosen model does", "Archives"]
    for text in ("copy", "plugin 'p' (d 1.2)", "right", "i1", "Item i2 is left out."):
        assert text in [data for _, data in page.texts]
    assert "Written from the journal and what the tasks showed by minerua" in page.text()


def test_hostile_texts_stand_in_the_page_and_do_nothing(toy_run):
    run = toy_run(tasks=("add", "copy", HOSTILE))
    evil = f"</pre>{HOSTILE}"
    one = Exhibit(evil, evil, evil, PNG)
    page = Page(render(run.events, shown(run, one, task=HOSTILE, notes=(evil,))))
    assert page.open == []
    assert len(page.named("script")) == 2
    assert len(page.named("img")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert evil in [data for place, data in page.texts if place == "pre"]
    assert sum(evil in data for _, data in page.texts) == 4


def test_a_page_without_exhibits_is_as_it_was(toy_run):
    run = toy_run()
    plain = render(run.events)
    best = summarise(run.events).row("best").digest
    assert render(run.events, None) == plain
    assert "What the chosen model does" not in render(run.events, Exhibits(best, ()))
    assert render(run.events, Exhibits("0" * 32, shown(run, Exhibit("a", text="b")).tasks)) == plain
    assert "What the chosen model does" not in render(run.events, shown(run, Exhibit("a", text="b"), task="gone"))


def test_exhibits_come_back_from_json_as_they_were(toy_run):
    whole = shown(toy_run(), Exhibit("a", "t", "ü\n", PNG), Exhibit("b", text=""), notes=("n",), failed=True)
    assert read_exhibits(exhibits_json(whole)) == whole


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 2}, "its format is 2, not 1"),
        ({"best": None}, "None stands where a text belongs"),
        ({"tasks": [{"task": "a"}]}, "KeyError: 'plugin'"),
        ({"tasks": 3}, "TypeError"),
    ],
)
def test_json_that_no_run_wrote_is_refused(change, text):
    with pytest.raises(JournalError, match="exhibits that are not as a run writes them") as caught:
        read_exhibits({"format": 1, "best": "d", "tasks": [], **change})
    assert text in str(caught.value)


@pytest.mark.parametrize("png", ["!!", "AAAA", 3])
def test_a_picture_that_is_none_is_refused(toy_run, png):
    value = exhibits_json(shown(toy_run(), Exhibit("a", png=PNG)))
    value["tasks"][0]["exhibits"][0]["png"] = png
    with pytest.raises(JournalError, match="exhibits that are not as a run writes them"):
        read_exhibits(value)
