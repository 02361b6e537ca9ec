"""The best model's ancestors as a picture: the model at the top, its seeds at the bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minerua.report.colours import letter, task_class
from minerua.report.lineage import Lineage, layers
from minerua.report.markup import Markup, element
from minerua.report.replay import Child
from minerua.report.tables import Summary
from minerua.report.words import counted, percent

WIDTH, HEIGHT = 100.0, 40.0  # of a node, in pixels
STEP_X, STEP_Y = 118.0, 72.0
NAME = 12  # characters of a seed's name that fit a node

Places = Mapping[str, tuple[float, float]]
"""Digest → the middle of a node."""


def lineage_figure(summary: Summary, lineage: Lineage) -> Markup:
    """Returns the picture of a lineage, wider than a narrow screen, which scrolls it."""
    rows = layers(lineage)
    width = max(len(row) for row in rows) * STEP_X
    places = {
        child.digest: (width / 2 + (x - (len(row) - 1) / 2) * STEP_X, (y + 0.5) * STEP_Y)
        for y, row in enumerate(rows)
        for x, child in enumerate(row)
    }
    best = lineage.children[0]
    title = (
        f"Ancestors of {best.label}: {counted(lineage.total, 'ancestor')}, {counted(lineage.generations, 'generation')}"
    )
    height = len(rows) * STEP_Y
    picture = element(
        "svg",
        element("title", title),
        element("g", *_edges(lineage, places), class_="edges"),
        element("g", *(_node(summary, lineage, child, places) for child in lineage.children), class_="nodes"),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        class_="lineage",
        role="group",
        aria_label=title,
    )
    return element("div", picture, class_="scroll", tabindex="0", role="region", aria_label="Picture of the lineage")


def _edges(lineage: Lineage, places: Places) -> list[Markup]:
    number = {child.digest: child.id for child in lineage.children}
    return [
        _edge(places[child.digest], places[parent], ends=f"{child.id} {number[parent]}")
        for child in lineage.children
        for parent in dict.fromkeys(child.parents)
        if parent in places
    ]


def _edge(child: tuple[float, float], parent: tuple[float, float], *, ends: str) -> Markup:
    (x1, y1), (x2, y2) = child, parent
    y1, y2 = y1 + HEIGHT / 2, y2 - HEIGHT / 2
    bend = min((y2 - y1) / 2, 60.0)
    curve = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
    return element("path", d=curve, data_e=ends)


def _node(summary: Summary, lineage: Lineage, child: Child, places: Places) -> Markup:
    x, y = places[child.digest]
    active = summary.tasks.index(child.task) if child.task in summary.tasks else None
    missing = sum(parent not in places for parent in set(child.parents))
    return element(
        "g",
        element("title", f"{child.label}: {percent(child.mean)} % on average"),
        element("rect", x=x - WIDTH / 2, y=y - HEIGHT / 2, width=WIDTH, height=HEIGHT, rx=7),
        element("text", _name(child), x=x - WIDTH / 2 + 9, y=y - 3, class_="who"),
        element("text", f"{percent(child.mean)} %", x=x - WIDTH / 2 + 9, y=y + 13),
        *_badge(active, x, y),
        element("text", f"+{missing} older", x=x, y=y + HEIGHT / 2 + 13, class_="more") if missing else None,
        class_=_classes(child, lineage, active),
        data_c=child.id,
        tabindex="-1",
        role="button",
    )


def _name(child: Child) -> str:
    return child.label if len(child.label) <= NAME else child.label[: NAME - 1] + "…"


def _badge(active: int | None, x: float, y: float) -> Sequence[Markup]:
    if active is None:
        return ()
    x = x + WIDTH / 2 - 14
    return (element("circle", cx=x, cy=y, r=8.5), element("text", letter(active), x=x, y=y + 4, class_="letter"))


def _classes(child: Child, lineage: Lineage, active: int | None) -> str:
    role = "top" if child is lineage.children[0] else "seed" if active is None else ""
    return f"{role} {'' if active is None else task_class(active)}".strip() or "node"
