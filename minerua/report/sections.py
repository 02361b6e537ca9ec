"""The final table, what was known before the run, the failures and the settings as HTML."""

from __future__ import annotations

import json

from minerua.report.colours import letter, task_class
from minerua.report.intervals import Interval
from minerua.report.markup import Markup, element, join
from minerua.report.preflight import Preflight
from minerua.report.tables import FailureGroup, Row, Summary
from minerua.report.words import counted, interval_words, lead_words, pair_cells, percent, points

BAR, BAR_HEIGHT = 110.0, 14.0  # pixels of an interval's picture
GROUPS, NAMED = 40, 12  # failures shown in full; the rest is counted


def final_table(summary: Summary) -> Markup:
    """Returns the final table: every model with its scores, intervals and distance to the chosen one."""
    heads = [
        element("th", "Model", scope="col"),
        *(element("th", _sign(k), task, scope="col", class_="num") for k, task in enumerate(summary.tasks)),
        element("th", "Mean, 95 % interval", scope="col", colspan="2", class_="num wide"),
        element("th", "Search", scope="col", class_="num quiet"),
        element("th", "Select", scope="col", class_="num quiet"),
        element("th", f"“{summary.chosen}” minus this row", scope="col", colspan="2", class_="num wide"),
    ]
    means = [row.mean for row in summary.rows if row.mean is not None]
    leads = [row.lead for row in summary.rows if row.lead is not None]
    body = [_row(row, summary, _span(means), _span([*leads, Interval(0, 0, 0)])) for row in summary.rows]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *body))
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Final scores")


def _sign(task: int) -> Markup:
    return element("span", letter(task), class_=f"sign {task_class(task)}", aria_hidden="true")


def _span(intervals: list[Interval]) -> tuple[float, float]:
    """The common scale of a column of bars, with a little air at its ends."""
    low = min((interval.lower for interval in intervals), default=0.0)
    high = max((interval.upper for interval in intervals), default=1.0)
    air = 0.04 * ((high - low) or 1.0)
    return low - air, high + air


def _row(row: Row, summary: Summary, means: tuple[float, float], leads: tuple[float, float]) -> Markup:
    tag = "chosen" if row.name == summary.chosen else "expert" if row.expert else None
    name = element("th", row.name, element("small", tag) if tag else None, scope="row")
    tasks = [None] * len(summary.tasks) if row.tasks is None else list(row.tasks)
    return element(
        "tr",
        name,
        *(_score(interval) for interval in tasks),
        *_mean(row.mean, means),
        element("td", percent(row.search), class_="num quiet"),
        element("td", percent(row.select), class_="num quiet"),
        *_lead(row, summary, leads),
        class_="chosen" if row.name == summary.chosen else None,
    )


def _score(interval: Interval | None) -> Markup:
    if interval is None:
        return element("td", "failed", class_="num quiet")
    return element("td", percent(interval.mean), element("small", interval_words(interval)), class_="num")


def _mean(interval: Interval | None, span: tuple[float, float]) -> tuple[Markup, ...]:
    if interval is None:
        return (element("td", "failed", class_="num quiet", colspan="2"),)
    text = element("td", element("b", percent(interval.mean)), element("small", interval_words(interval)), class_="num")
    return text, element("td", _bar(interval, span, f"{percent(interval.mean)} %, {interval_words(interval)} %"))


def _lead(row: Row, summary: Summary, span: tuple[float, float]) -> tuple[Markup, ...]:
    if row.lead is None:
        return (element("td", "–", class_="num quiet", colspan="2"),)
    sure = row.lead.lower > 0 or row.lead.upper < 0
    small = element("small", lead_words(row.lead))
    text = element("td", points(row.lead.mean), small, class_="num" if sure else "num unsure")
    return text, element(
        "td", _bar(row.lead, span, f"{points(row.lead.mean)} points, {lead_words(row.lead)}", zero=True)
    )


def _bar(interval: Interval, span: tuple[float, float], title: str, *, zero: bool = False) -> Markup:
    """An interval as a line with its estimate as a dot; `zero` draws the line of no difference."""

    def at(value: float) -> float:
        return BAR * (value - span[0]) / (span[1] - span[0])

    middle = BAR_HEIGHT / 2
    return element(
        "svg",
        element("title", title),
        element("path", d=f"M0 {middle:.0f}H{BAR:.0f}", class_="rule"),
        element("path", d=f"M{at(0):.1f} 0V{BAR_HEIGHT:.0f}", class_="zero") if zero else None,
        element("path", d=f"M{at(interval.lower):.1f} {middle:.0f}H{at(interval.upper):.1f}", class_="range"),
        element("circle", cx=at(interval.mean), cy=middle, r=4),
        viewBox=f"0 0 {BAR:.0f} {BAR_HEIGHT:.0f}",
        class_="bar",
        role="img",
    )


def pair_table(found: Preflight) -> Markup:
    """Returns the table of every two experts, and below it what speaks against merging them."""
    titles = ("s", "Cosine", "Norm ratio")
    heads = [element("th", "Experts", scope="col"), *(element("th", t, scope="col", class_="num") for t in titles)]
    body = [
        element("tr", element("th", name, scope="row"), *(element("td", cell, class_="num") for cell in cells))
        for name, *cells in map(pair_cells, found.pairs)
    ]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *body), class_="pairs")
    scroll = element("div", table, class_="scroll", tabindex="0", role="region", aria_label="Experts before the run")
    concerns = [element("li", concern) for concern in found.concerns]
    return join(scroll, element("ul", *concerns, class_="concerns") if concerns else None)


def failure_list(summary: Summary) -> Markup:
    """Returns the failures, grouped by reason, the most frequent first."""
    shown = [_failure(group) for group in summary.failures[:GROUPS]]
    rest = summary.failures[GROUPS:]
    more = (
        element("p", f"{counted(len(rest), 'further reason')}, {sum(len(g.who) for g in rest)} times.")
        if rest
        else None
    )
    return join(element("ul", *shown, class_="failures"), more)


def _failure(group: FailureGroup) -> Markup:
    named = ", ".join(group.who[:NAMED]) + (f" and {len(group.who) - NAMED} more" if len(group.who) > NAMED else "")
    return element("li", element("b", f"{len(group.who)}×"), " ", group.reason, element("small", named))


def settings(summary: Summary) -> Markup:
    """Returns the run's settings, folded."""
    text = json.dumps(summary.config, indent=2, ensure_ascii=False)
    block = element("pre", text, tabindex="0", role="region", aria_label="Settings")
    return element("details", element("summary", "Settings of the run"), block)
