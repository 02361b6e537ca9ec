"""Archives as heat maps: a strip for two tasks, a grid for three, one grid per pair of tasks for more."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from minerua.report.colours import LEVELS, letter, level, task_class
from minerua.report.markup import Markup, element, join
from minerua.report.tables import BEST_ROW, ArchiveSummary, Summary
from minerua.report.words import percent
from minerua.values import Elite

SIDE = 300.0  # a map's longest side, in SVG units, which are pixels on a wide screen
LEFT, TOP, BOTTOM, RIGHT = 56.0, 8.0, 44.0, 10.0


def archive_figure(summary: Summary, archive: ArchiveSummary) -> Markup:
    """Returns one archive: its name, its numbers, its map or maps, the legend of its colours."""
    task = summary.tasks[archive.task]
    stats = archive.stats
    numbers = f"{stats.num_elites} of {archive.bins ** len(archive.others):,} cells · best {percent(stats.obj_max)} %"
    return element(
        "figure",
        element("h3", _sign(archive.task), task),
        element("p", numbers, class_="quiet"),
        element("div", *(_map(summary, archive, axes) for axes in _projections(archive)), class_="maps"),
        element("figcaption", _legend(archive, task)),
        class_=f"archive {task_class(archive.task)}",
    )


def _sign(task: int) -> Markup:
    return element("span", letter(task), class_=f"sign {task_class(task)}", aria_hidden="true")


def _map(summary: Summary, archive: ArchiveSummary, axes: Sequence[int]) -> Markup:
    """One map over one or two of the archive's axes; a cell shows the best of all elites that fall into it."""
    size = SIDE / archive.bins
    height = size * archive.bins if len(axes) == 2 else max(size * 2, 40.0)
    low, high = quality_range(archive)
    shown = _best_per_cell(archive, axes)
    names = {seed.id: seed.label for seed in summary.seeds}
    cells = [
        _cell(archive, elite, names.get(elite.id, f"#{elite.id}"), place, size, height, low, high)
        for place, elite in shown.items()
    ]
    title = f"Archive of {summary.tasks[archive.task]}: " + " and ".join(_axis_words(summary, archive, a) for a in axes)
    return element(
        "svg",
        element("title", title),
        element("rect", x=LEFT, y=TOP, width=SIDE, height=height, class_="empty"),
        _lines(archive.bins, size, height, rows=len(axes) == 2),
        element("g", *cells, class_="cells"),
        element("rect", class_="frame"),
        _marks(archive, axes, size, height),
        _axes(summary, archive, axes, height),
        viewBox=f"0 0 {LEFT + SIDE + RIGHT:.0f} {TOP + height + BOTTOM:.0f}",
        class_="heat",
        role="group",
        aria_label=title,
    )


def quality_range(archive: ArchiveSummary) -> tuple[float, float]:
    """Returns the lowest and highest quality in an archive: the ends of its colours; (0, 1) for an empty one."""
    qualities = [elite.means[archive.task] for elite in archive.elites]
    return (min(qualities), max(qualities)) if qualities else (0.0, 1.0)


def shown_ids(archive: ArchiveSummary) -> set[int]:
    """Returns the numbers of the elites that the archive's maps show."""
    return {elite.id for axes in _projections(archive) for elite in _best_per_cell(archive, axes).values()}


def _projections(archive: ArchiveSummary) -> list[tuple[int, ...]]:
    """The pairs of axes that maps are drawn for; a single axis is a strip."""
    axes = range(len(archive.others))
    return [(0,)] if len(axes) == 1 else list(itertools.combinations(axes, 2))


def _best_per_cell(archive: ArchiveSummary, axes: Sequence[int]) -> dict[tuple[int, ...], Elite]:
    """The projection onto these axes; of equals the older child stays, as in the archive itself."""
    best: dict[tuple[int, ...], Elite] = {}
    for elite in archive.elites:
        place = tuple(elite.cell[axis] for axis in axes)
        now = best.get(place)
        if now is None or (elite.means[archive.task], -elite.id) > (now.means[archive.task], -now.id):
            best[place] = elite
    return dict(sorted(best.items()))


def _corner(place: Sequence[int], size: float, height: float) -> tuple[float, float]:
    """Upper left corner of a cell; the second axis grows upwards, a strip has one row."""
    return LEFT + place[0] * size, TOP + (height - (place[1] + 1) * size if len(place) == 2 else 0.0)


def _cell(
    archive: ArchiveSummary,
    elite: Elite,
    name: str,
    place: tuple[int, ...],
    size: float,
    height: float,
    low: float,
    high: float,
) -> Markup:
    x, y = _corner(place, size, height)
    quality = elite.means[archive.task]
    return element(
        "rect",
        element("title", f"{name}: {percent(quality)} %"),
        x=x,
        y=y,
        width=size,
        height=size if len(place) == 2 else height,
        class_=f"q{level(quality, low, high)}",
        data_c=elite.id,
        tabindex="-1",
        role="button",
    )


def _lines(bins: int, size: float, height: float, *, rows: bool) -> Markup:
    """The grid of empty cells, as one path; left out where its lines would cover the cells."""
    if size < 4:
        return Markup("")
    upright = "".join(f"M{LEFT + k * size:.1f} {TOP:.0f}v{height:.1f}" for k in range(1, bins))
    across = "".join(f"M{LEFT:.0f} {TOP + k * size:.1f}h{SIDE:.0f}" for k in range(1, bins)) if rows else ""
    return element("path", d=upright + across, class_="grid")


def _marks(archive: ArchiveSummary, axes: Sequence[int], size: float, height: float) -> Markup:
    """Experts as numbered rings, the best model as a star; those in one cell stand side by side."""
    cells: dict[tuple[int, ...], list[str]] = {}
    experts = [name for name in archive.marks if name != BEST_ROW]
    for name, cell in archive.marks.items():
        sign = "★" if name == BEST_ROW else str(experts.index(name) + 1)
        cells.setdefault(tuple(cell[axis] for axis in axes), []).append(sign)
    drawn = []
    for place, signs in cells.items():
        x, y = _corner(place, size, height)
        middle = y + (size if len(place) == 2 else height) / 2
        drawn += [
            _mark(sign, x + size / 2 + (k - (len(signs) - 1) / 2) * 15, middle) for k, sign in enumerate(sorted(signs))
        ]
    return element("g", *drawn, class_="marks", aria_hidden="true")


def _mark(sign: str, x: float, y: float) -> Markup:
    x = min(max(x, LEFT + 8), LEFT + SIDE - 8)
    return join(
        element("circle", cx=x, cy=y, r=7.5, class_="star" if sign == "★" else None),
        element("text", sign, x=x, y=y + 3.7),
    )


def _axis_words(summary: Summary, archive: ArchiveSummary, axis: int) -> str:
    task = archive.others[axis]
    low, high = archive.bounds.lower[task], archive.bounds.upper[task]
    return f"{summary.tasks[task]} from {percent(low)} to {percent(high)} %"


def _axes(summary: Summary, archive: ArchiveSummary, axes: Sequence[int], height: float) -> Markup:
    parts = [_across(summary, archive, archive.others[axes[0]], TOP + height)]
    if len(axes) == 2:
        parts.append(_upward(summary, archive, archive.others[axes[1]], height))
    return element("g", *parts, class_="axis", aria_hidden="true")


def _across(summary: Summary, archive: ArchiveSummary, task: int, y: float) -> Markup:
    low, high = archive.bounds.lower[task], archive.bounds.upper[task]
    anchors = ("start", "middle", "end")
    ticks = [
        element("text", percent(low + part * (high - low)), x=LEFT + part * SIDE, y=y + 15, text_anchor=anchor)
        for part, anchor in zip((0.0, 0.5, 1.0), anchors, strict=True)
    ]
    name = element("text", axis_name(summary, task), x=LEFT + SIDE / 2, y=y + 34, class_=f"name {task_class(task)}")
    return join(*ticks, name)


def _upward(summary: Summary, archive: ArchiveSummary, task: int, height: float) -> Markup:
    low, high = archive.bounds.lower[task], archive.bounds.upper[task]
    ticks = [
        element(
            "text", percent(low + part * (high - low)), x=LEFT - 6, y=TOP + height * (1 - part) + shift, class_="end"
        )
        for part, shift in ((0.0, 0.0), (0.5, 4.0), (1.0, 9.0))
    ]
    turn = f"translate(10 {TOP + height / 2:.0f}) rotate(-90)"
    return join(*ticks, element("text", axis_name(summary, task), transform=turn, class_=f"name {task_class(task)}"))


def axis_name(summary: Summary, task: int, *, limit: int = 30) -> str:
    """Returns a task's letter and name for an axis; a name too long for it is cut."""
    name = summary.tasks[task]
    return f"{letter(task)} · {name if len(name) <= limit else name[: limit - 1] + '…'} %"


def _legend(archive: ArchiveSummary, task: str) -> Markup:
    low, high = quality_range(archive)
    steps = [element("rect", x=float(k * 6), y=0, width=6.5, height=10, class_=f"q{k}") for k in range(LEVELS)]
    title = f"Colours of the map: {task} from {percent(low)} to {percent(high)} %"
    bar = element("svg", element("title", title), *steps, viewBox=f"0 0 {LEVELS * 6} 10", class_="ramp", role="img")
    return element("span", f"{percent(low)} ", bar, f" {percent(high)} % {task}", class_="legend")
