"""One quantity of a training run over its steps: named lines, a band where a line is a mean, a ring at the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from minerua.report.colours import letter, task_class
from minerua.report.curves import BOTTOM, DASHES, HEIGHT, LEFT, RIGHT, TOP, WIDTH, nice_ticks, spread
from minerua.report.markup import Markup, element

POINTS = 240
"""Points of a line beyond which a screen shows no difference."""

DECADES = 1.5
"""From how many powers of ten on the axis is logarithmic: below, a curve that starts at zero says more."""


@dataclass(frozen=True)
class Curve:
    """A line of a picture.

    Args:
        name: What stands at its end.
        points: Step and value, in the order of the steps; NaN and infinity are left out of the picture.
        spread: Whether least and greatest values are shown where one point stands for several.
    """

    name: str
    points: tuple[tuple[int, float], ...]
    spread: bool = False


@dataclass(frozen=True)
class _Point:
    """Several neighbouring points as one: their mean step, mean, least and greatest value."""

    step: float
    value: float
    least: float
    greatest: float


def curve_figure(
    name: str, curves: Sequence[Curve], *, best: int | None = None, is_linear: bool = False
) -> Markup | None:
    """Returns a picture, or `None` if no curve has a number.

    Args:
        name: Its title.
        curves: Its lines.
        best: The step that is marked on every curve but the first of several.
        is_linear: Whether the axis is linear whatever the values are.
    """
    drawn = [(k, curve, points) for k, curve in enumerate(curves) if (points := _joined(curve))]
    if not drawn:
        return None
    scale = _Scale([point for _, _, points in drawn for point in points], is_linear=is_linear)
    heights = spread([scale.y(points[-1].value) for _, _, points in drawn])
    title = f"{name} over {scale.end:,} steps"
    ends = ", ".join(f"{curve.name} {points[-1].value:.4g}" for _, curve, points in drawn)
    lines = [_line(k, curve, points, scale, y) for (k, curve, points), y in zip(drawn, heights, strict=True)]
    rings = [_ring(k, curve, scale, best) for k, curve, _ in drawn[len(drawn) > 1 :]]
    note = element("small", " logarithmic") if scale.is_logarithmic else None
    return element(
        "figure",
        element("h3", name, note),
        element(
            "svg",
            element("title", title),
            _axes(scale),
            *lines,
            *rings,
            viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
            class_="curves",
            role="img",
            aria_label=f"{title}. At the end: {ends}",
        ),
        class_="curve",
    )


def _joined(curve: Curve) -> list[_Point]:
    """At most `POINTS` points, each over equally many neighbours."""
    finite = [(step, value) for step, value in curve.points if math.isfinite(value)]
    count = min(len(finite), POINTS)
    cuts = [len(finite) * k // count for k in range(count + 1)] if count else []
    parts = [finite[start:end] for start, end in itertools.pairwise(cuts)]
    return [
        _Point(
            sum(step for step, _ in part) / len(part),
            math.fsum(value / len(part) for _, value in part),
            min(value for _, value in part),
            max(value for _, value in part),
        )
        for part in parts
    ]


class _Scale:
    """From steps and values to a picture's coordinates."""

    def __init__(self, points: Sequence[_Point], *, is_linear: bool) -> None:
        least, greatest = min(point.least for point in points), max(point.greatest for point in points)
        self.end = max(math.ceil(max(point.step for point in points)), 1)
        self.is_logarithmic = not is_linear and least > 0 and math.log10(greatest / least) > DECADES
        self.ticks = _powers(least, greatest) if self.is_logarithmic else _round(least, greatest)
        self._low, self._high = self._placed(self.ticks[0]), self._placed(self.ticks[-1])

    def _placed(self, value: float) -> float:
        return math.log10(max(value, self.ticks[0])) if self.is_logarithmic else value

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.end

    def y(self, value: float) -> float:
        part = (self._placed(value) - self._low) / (self._high - self._low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part


def _powers(least: float, greatest: float) -> list[float]:
    """Powers of ten around the values, at most seven of them."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(greatest))
    stride = max(1, math.ceil((high - low) / 6))
    return [10.0**power for power in range(low, high + stride, stride)]


def _round(least: float, greatest: float) -> list[float]:
    """Round numbers around the values and zero."""
    above = nice_ticks(max(greatest, 0.0)) if greatest > 0 or least >= 0 else [0.0]
    if least >= 0:
        return above
    step = max(above[-1] and above[1], nice_ticks(-least)[1])
    below = [-step * k for k in range(math.ceil(-least / step - 1e-9), 0, -1)]
    return [*below, *(step * k for k in range(math.ceil(max(greatest, 0.0) / step - 1e-9) + 1))]


def _axes(scale: _Scale) -> Markup:
    parts = []
    for tick in scale.ticks:
        y = scale.y(tick)
        parts.append(element("path", d=f"M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}", class_="rule"))
        parts.append(element("text", f"{tick:.4g}", x=LEFT - 7, y=y + 4, class_="end"))
    whole = [tick for tick in nice_ticks(scale.end) if tick <= scale.end and tick == int(tick)]
    y = HEIGHT - BOTTOM + 18
    parts += [element("text", f"{int(tick):,}", x=scale.x(tick), y=y, class_="middle") for tick in whole]
    parts.append(element("text", "steps", x=scale.x(scale.end / 2), y=HEIGHT - 5, class_="middle"))
    return element("g", *parts, class_="axis")


def _line(number: int, curve: Curve, points: Sequence[_Point], scale: _Scale, label: float) -> Markup:
    """A line, its band, its end, and its name beside it."""
    path = "L".join(f"{scale.x(point.step):.1f} {scale.y(point.value):.1f}" for point in points)
    x, y = scale.x(points[-1].step), scale.y(points[-1].value)
    at = WIDTH - RIGHT
    name = curve.name if len(curve.name) <= 10 else f"{curve.name[:9]}…"
    return element(
        "g",
        _band(points, scale) if curve.spread else None,
        element("path", d=f"M{path}", class_="line", stroke_dasharray=DASHES[number % len(DASHES)]),
        element("circle", cx=x, cy=y, r=2.5, class_="end"),
        element("path", d=f"M{x:.1f} {y:.1f}L{at + 9:.1f} {label:.1f}", class_="lead"),
        element("text", f"{letter(number)} {name}", x=at + 12, y=label + 4),
        class_=task_class(number),
    )


def _band(points: Sequence[_Point], scale: _Scale) -> Markup:
    above = [f"{scale.x(point.step):.1f} {scale.y(point.greatest):.1f}" for point in points]
    below = [f"{scale.x(point.step):.1f} {scale.y(point.least):.1f}" for point in reversed(points)]
    return element("path", d=f"M{'L'.join([*above, *below])}Z", class_="band")


def _ring(number: int, curve: Curve, scale: _Scale, best: int | None) -> Markup | None:
    value = next((value for step, value in curve.points if step == best and math.isfinite(value)), None)
    if best is None or value is None:
        return None
    mark = element(
        "circle",
        element("title", f"best: {value:.4g} after {best:,} steps"),
        cx=scale.x(best),
        cy=scale.y(value),
        r=5.5,
    )
    return element("g", mark, class_=f"best {task_class(number)}")
