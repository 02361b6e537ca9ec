import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from minerua.report import render, render_page, summarise
from minerua.report.colours import DARK_RAMP, DARK_TASKS, LIGHT_RAMP, LIGHT_TASKS, level
from minerua.report.curves import HEIGHT, nice_ticks, spread
from minerua.report.heat import shown_ids
from minerua.report.markup import VOID

TASKS = ("add", "copy", "max", "sort", "reverse")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Page(HTMLParser):
    """A page taken apart: every start tag with its attributes, the text, and whether all elements are closed."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len({name for name, _ in attrs}), f"an attribute stands twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self):
        return " ".join(text for place, text in self.texts if place not in ("style", "script"))

    def cards(self):
        return json.loads(next(text for place, text in self.texts if place == "script"))


def sections(page: Page) -> list[str]:
    return [text for place, text in page.texts if place == "h2"]


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
def test_page_is_balanced_and_complete_for_any_number_of_tasks(toy_run, tasks):
    page = Page(render(toy_run(tasks=TASKS[:tasks], bins=6, failing=7).events))
    assert page.open == []
    assert sections(page) == ["Final scores", "Archives", "Progress", "Lineage of the best model", "Failures"]


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
def test_every_pair_of_axes_has_its_map(toy_run, tasks):
    page = Page(render(toy_run(tasks=TASKS[:tasks], bins=6, failing=7).events))
    maps = [svg for svg in page.named("svg") if svg.get("class") == "heat"]
    assert len(maps) == tasks * max((tasks - 1) * (tasks - 2) // 2, 1)


@pytest.mark.parametrize("event", ["items", "seed", "bounds", "ask", "tell", "final", "end"])
def test_page_of_an_unfinished_run_is_balanced_and_says_so(toy_run, event):
    events = toy_run().events
    events = events[: next(n for n, e in enumerate(events) if e["event"] == event)]
    page = Page(render(events))
    assert page.open == []
    assert "The run is unfinished" in page.text()


def test_page_asks_the_network_for_nothing(toy_run):
    text = render(toy_run(failing=7).events)
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bfetch\b|XMLHttpRequest", text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "a", "image", "use")
        assert not {"src", "href", "xlink:href", "srcset", "action", "data"} & attributes.keys()
    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_names_from_the_journal_are_harmless_everywhere(toy_run):
    config = {"name": HOSTILE, "evolution": {"bins": 15}, HOSTILE: HOSTILE}
    events = toy_run(tasks=(HOSTILE, "<b>", "]]>"), config=config, failed_seed=True, failing=7).events
    for event in events:
        if "failed" in event:
            event["failed"] = HOSTILE
    page = Page(render(events))
    assert page.open == []
    assert len(page.named("script")) == 2
    assert not page.named("img")
    assert not page.named("b") or all(set(b) <= {"class"} for b in page.named("b"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.cards()["tasks"] == [HOSTILE, "<b>", "]]>"]
    assert HOSTILE in page.text()


def test_page_of_1200_children_is_under_a_megabyte(toy_run):
    assert len(render(toy_run(children=1200, batch=8).events).encode()) < 1_000_000


def test_same_journal_gives_the_same_bytes(toy_run):
    assert render(toy_run().events) == render(toy_run().events)


@pytest.mark.parametrize("tasks", [2, 3])
def test_every_elite_has_its_cell_and_every_cell_its_card(toy_run, tasks):
    summary = summarise(toy_run(tasks=TASKS[:tasks]).events)
    page = Page(render_page(summary))
    cells = [int(rect["data-c"]) for rect in page.named("rect") if "data-c" in rect]
    assert sorted(cells) == sorted(elite.id for archive in summary.archives for elite in archive.elites)
    assert {str(id) for id in cells} <= page.cards()["models"].keys()


@pytest.mark.parametrize("tasks", [4, 5])
def test_projected_cell_shows_its_best_elite(toy_run, tasks):
    summary = summarise(toy_run(tasks=TASKS[:tasks], bins=6, failing=7).events)
    for archive in summary.archives:
        best = max(archive.elites, key=lambda elite: elite.means[archive.task])
        assert best.means[archive.task] in [e.means[archive.task] for e in archive.elites if e.id in shown_ids(archive)]
        assert shown_ids(archive) <= {elite.id for elite in archive.elites}
    cards = Page(render_page(summary)).cards()["models"]
    assert all(str(id) in cards for archive in summary.archives for id in shown_ids(archive))


def test_card_tells_scores_parents_and_ancestry(toy_run):
    summary = summarise(toy_run().events)
    cards = Page(render_page(summary)).cards()
    card = cards["models"][str(cards["first"])]
    assert card["digest"] == summary.best.digest
    assert card["means"] == [round(mean, 4) for mean in summary.best.means]
    assert len(card["parents"]) == 2
    assert sum(share for _, share in card["shares"]) == pytest.approx(1, abs=0.01)


def test_every_picture_has_a_title_and_every_map_and_lineage_is_reached_by_keyboard(toy_run):
    text = render(toy_run().events)
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert re.match(r"<svg[^>]*><title>[^<]+</title>", picture)
    page = Page(text)
    spots = [attributes for _, attributes in page.tags if "data-c" in attributes]
    assert spots
    assert all(spot["role"] == "button" and "tabindex" in spot for spot in spots)
    assert all("tabindex" in div for div in page.named("div") if div.get("class") == "scroll")


def test_aggregate_that_was_chosen_is_drawn_with_its_ancestors(toy_run):
    events = toy_run().events
    digest = next(e["digest"] for e in events if e.get("row") == "aggregate")
    finals = [e | {"digest": digest} if e.get("row") == "best" else e for e in events[:-1]]
    page = Page(render([*finals, events[-1] | {"best": digest}]))
    assert "The best model, aggregate, has" in page.text()
    assert page.cards()["models"][str(page.cards()["first"])]["origin"] == "merge"


def test_run_without_elites_in_any_archive_is_drawn_empty(toy_run):
    events = toy_run(children=4).events
    events = [e for e in events if e["event"] in ("run", "items", "bounds")]
    page = Page(render(events))
    assert page.open == []
    assert not [rect for rect in page.named("rect") if "data-c" in rect]


# ── colours and scales ───────────────────────────────────────────────────────────────────────────────────────────────


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("tasks", "paper"), [(LIGHT_TASKS, "#ffffff"), (DARK_TASKS, "#12151b")])
def test_task_colours_can_be_read_as_text(tasks, paper):
    assert all(contrast(colour, paper) >= 4.5 for colour in tasks)


@pytest.mark.parametrize("ramp", [LIGHT_RAMP, DARK_RAMP[::-1]])
def test_quality_darkens_or_lightens_steadily_so_that_grey_keeps_its_order(ramp):
    light = [luminance(colour) for colour in ramp]
    assert light == sorted(light, reverse=True)


def test_ramp_has_its_ends_at_the_range_and_its_middle_for_a_single_value():
    assert (level(0.2, 0.2, 0.8), level(0.8, 0.2, 0.8), level(0.5, 0.5, 0.5)) == (0, 23, 12)


@pytest.mark.parametrize("top", [0.003, 0.37, 1.0, 87.0, 1200.0, 99999.0])
def test_ticks_are_few_even_and_reach_the_top(top):
    ticks = nice_ticks(top)
    assert ticks[0] == 0
    assert ticks[-1] >= top > ticks[-2]
    assert 3 <= len(ticks) <= 6


def test_labels_of_equal_curves_stand_apart_and_inside():
    placed = spread([250.0, 250.0, 250.0, 20.0, 21.0])
    ordered = sorted(placed)
    assert all(b - a >= 15.9 for a, b in itertools.pairwise(ordered))
    assert max(placed) <= HEIGHT
