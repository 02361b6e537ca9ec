"""QD score and coverage against evaluations, one step line per archive."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from minerua.report.colours import letter, task_class
from minerua.report.markup import Markup, element, join
from minerua.report.tables import ArchiveSummary, Summary
from minerua.report.words import percent

WIDTH, HEIGHT = 520.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 96.0, 12.0, 40.0
DASHES = (None, "7 3", "2 3", "9 3 2 3", "4 2")
STEPS = 240  # points of a line beyond which a screen shows no difference

Measure = Callable[[ArchiveSummary], Sequence[tuple[int, float]]]


def curve_figures(summary: Summary) -> Markup:
    """Returns the two figures, or nothing before the archives exist."""
    if not summary.archives:
        return Markup("")
    return join(
        _figure(summary, "QD score", "sum of the elites' qualities", _qd_score, lambda value: f"{value:.4g}"),
        _figure(summary, "Coverage", "occupied cells, % of all", _coverage, percent),
    )


def _qd_score(archive: ArchiveSummary) -> list[tuple[int, float]]:
    return [(point.evaluations, point.stats.qd_score) for point in archive.curve]


def _coverage(archive: ArchiveSummary) -> list[tuple[int, float]]:
    return [(point.evaluations, point.stats.coverage) for point in archive.curve]


def _figure(summary: Summary, name: str, meaning: str, measure: Measure, words: Callable[[float], str]) -> Markup:
    lines = [measure(archive) for archive in summary.archives]
    end = max(summary.evaluations, 1)
    ticks = nice_ticks(max(value for line in lines for _, value in line))
    scale = _Scale(end, ticks[-1])
    labels = spread([scale.y(line[-1][1]) for line in lines])
    title = f"{name} of every archive over {end} evaluations"
    drawn = [
        _line(summary, k, line, scale, label, words) for k, (line, label) in enumerate(zip(lines, labels, strict=True))
    ]
    return element(
        "figure",
        element("h3", name, element("small", f" {meaning}")),
        element(
            "svg",
            element("title", title),
            _axes(scale, ticks, words),
            *drawn,
            viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
            class_="curves",
            role="img",
            aria_label=f"{title}. At the end: " + _ends(summary, lines, words),
        ),
        class_="curve",
    )


def _ends(summary: Summary, lines: Sequence[Sequence[tuple[int, float]]], words: Callable[[float], str]) -> str:
    return ", ".join(f"{task} {words(line[-1][1])}" for task, line in zip(summary.tasks, lines, strict=True))


class _Scale:
    """From evaluations and values to a picture's coordinates."""

    def __init__(self, end: int, top: float) -> None:
        self.end, self.top = end, top

    def x(self, evaluations: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * evaluations / self.end

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top


def nice_ticks(top: float, *, about: int = 4) -> list[float]:
    """Returns round numbers from 0 to at least `top`.

    Example:
        >>> nice_ticks(87.0), nice_ticks(0.37)
        ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [0.0, 0.1, 0.2, 0.3, 0.4])
    """
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top / about))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if top / (power * factor) <= about + 0.5)
    return [round(k * step, 12) for k in range(math.ceil(top / step - 1e-9) + 1)]


def _axes(scale: _Scale, ticks: Sequence[float], words: Callable[[float], str]) -> Markup:
    parts = []
    for tick in ticks:
        y = scale.y(tick)
        parts.append(element("path", d=f"M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}", class_="rule"))
        parts.append(element("text", words(tick), x=LEFT - 7, y=y + 4, class_="end"))
    whole = [tick for tick in nice_ticks(scale.end) if tick <= scale.end and tick == int(tick)]
    y = HEIGHT - BOTTOM + 18
    parts += [element("text", f"{int(tick):,}", x=scale.x(tick), y=y, class_="middle") for tick in whole]
    middle = scale.x(scale.end / 2)
    parts.append(element("text", "evaluations", x=middle, y=HEIGHT - 5, class_="middle"))
    return element("g", *parts, class_="axis")


def _line(
    summary: Summary,
    task: int,
    line: Sequence[tuple[int, float]],
    scale: _Scale,
    label: float,
    words: Callable[[float], str],
) -> Markup:
    """A step line, its end, and its name beside it."""
    points = _thinned(line)
    path = f"M{scale.x(points[0][0]):.1f} {scale.y(points[0][1]):.1f}"
    path += "".join(f"H{scale.x(x):.1f}V{scale.y(y):.1f}" for x, y in points[1:]) + f"H{scale.x(scale.end):.1f}"
    x, y = scale.x(scale.end), scale.y(points[-1][1])
    name = summary.tasks[task]
    name = name if len(name) <= 9 else name[:8] + "…"
    return element(
        "g",
        element("path", d=path, class_="line", stroke_dasharray=DASHES[task % len(DASHES)]),
        element("path", d=f"M{x:.1f} {y:.1f}L{x + 9:.1f} {label:.1f}", class_="lead"),
        element("text", f"{letter(task)} {name} {words(line[-1][1])}", x=x + 12, y=label + 4),
        class_=task_class(task),
    )


def _thinned(line: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    if len(line) <= STEPS:
        return line
    stride = len(line) / STEPS
    return [line[int(k * stride)] for k in range(STEPS)] + [line[-1]]


def spread(heights: Sequence[float], *, gap: float = 16.0) -> list[float]:
    """Returns heights of labels moved apart until none covers another and all are inside; their order stays."""
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    placed = list(heights)
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    limit = HEIGHT - BOTTOM
    for k in reversed(order):
        placed[k] = min(placed[k], limit)
        limit = placed[k] - gap
    return placed
