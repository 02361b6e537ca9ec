"""The page's colours: one hue per task, and a ramp for quality that keeps its order in grey and to every eye."""

from __future__ import annotations

from typing import Final

LEVELS: Final = 24
"""Steps of the quality ramp; more than an eye can tell apart in a map."""

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The sign of each task beside its colour."""

LIGHT_RAMP: Final = ("#cfe6bf", "#9fd3b2", "#5fb9b5", "#2f91b0", "#2465a3", "#26387f")
DARK_RAMP: Final = ("#27336b", "#275f9c", "#2b8fae", "#5cbcae", "#a9dba6", "#f4f3b4")

# Okabe and Ito 2008, "Color universal design"; darkened on white and lightened on black to keep text readable
LIGHT_TASKS: Final = ("#0b62a3", "#b34700", "#00785a", "#9c3f78", "#7d5f00")
DARK_TASKS: Final = ("#6db9f0", "#f2935a", "#4fc9a4", "#e29ac6", "#e3b94a")


def level(value: float, low: float, high: float) -> int:
    """Returns the step of the ramp for a value between `low` and `high`; the middle where the two are equal."""
    if high <= low:
        return LEVELS // 2
    return min(max(int((value - low) / (high - low) * LEVELS), 0), LEVELS - 1)


def letter(task: int) -> str:
    """Returns a task's sign."""
    return LETTERS[task % len(LETTERS)]


def variables(*, dark: bool) -> str:
    """Returns the colours of one theme as CSS custom properties: `--q0` … for the ramp, `--t0` … for the tasks."""
    ramp = [_between(DARK_RAMP if dark else LIGHT_RAMP, step / (LEVELS - 1)) for step in range(LEVELS)]
    tasks = DARK_TASKS if dark else LIGHT_TASKS
    named = [f"--q{k}:{colour}" for k, colour in enumerate(ramp)] + [
        f"--t{k}:{colour}" for k, colour in enumerate(tasks)
    ]
    return ";".join(named)


def classes() -> str:
    """Returns the CSS classes that use them: `q0` … fill a cell, `t0` … set a task's colour."""
    ramp = [f".q{k}{{fill:var(--q{k})}}" for k in range(LEVELS)]
    return "".join(ramp + [f".t{k}{{--task:var(--t{k})}}" for k in range(len(LIGHT_TASKS))])


def task_class(task: int) -> str:
    """Returns the class that sets a task's colour; colours repeat after five tasks, letters do not."""
    return f"t{task % len(LIGHT_TASKS)}"


def _between(ramp: tuple[str, ...], position: float) -> str:
    """The colour at a position in [0, 1], linear between the ramp's fixed colours."""
    place = position * (len(ramp) - 1)
    left = min(int(place), len(ramp) - 2)
    first, second = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in ramp[left : left + 2])
    mixed = (round(a + (b - a) * (place - left)) for a, b in zip(first, second, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
