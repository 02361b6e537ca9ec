"""What the chosen model makes of some items: texts and pictures of the tasks' own, as a section of the page."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minerua.errors import BrokenPlugin, JournalError
from minerua.report.colours import letter, task_class
from minerua.report.markup import Markup, element
from minerua.values import Exhibit

FORMAT = 1


@dataclass(frozen=True)
class TaskExhibits:
    """What is shown of one task.

    Args:
        task: The task's name.
        plugin: What provides its evaluator, with its version.
        exhibits: What it showed.
        notes: What is not shown, and why; a sentence each.
        failed: Whether nothing came of it; the notes say why.
    """

    task: str
    plugin: str
    exhibits: tuple[Exhibit, ...] = ()
    notes: tuple[str, ...] = ()
    failed: bool = False


@dataclass(frozen=True)
class Exhibits:
    """What is shown of a run's chosen model.

    Args:
        best: The digest of its genome.
        tasks: The tasks that show something, in the run's order.
    """

    best: str
    tasks: tuple[TaskExhibits, ...]


# ── as JSON ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def exhibits_json(exhibits: Exhibits) -> dict[str, Any]:
    """Returns exhibits as plain JSON values, pictures in base 64."""
    tasks = [
        {
            "task": task.task,
            "plugin": task.plugin,
            "failed": task.failed,
            "notes": list(task.notes),
            "exhibits": [_plain(one) for one in task.exhibits],
        }
        for task in exhibits.tasks
    ]
    return {"format": FORMAT, "best": exhibits.best, "tasks": tasks}


def _plain(exhibit: Exhibit) -> dict[str, str | None]:
    png = None if exhibit.png is None else base64.b64encode(exhibit.png).decode()
    return {"item": exhibit.item, "title": exhibit.title, "text": exhibit.text, "png": png}


def read_exhibits(value: Any) -> Exhibits:
    """Returns the exhibits that `exhibits_json` made plain.

    Args:
        value: Plain JSON values.

    Raises:
        JournalError: They are not of this form.

    Example:
        >>> shown = Exhibits("d0", (TaskExhibits("leaf", "a plugin", (Exhibit("7", png=None, text="green"),)),))
        >>> read_exhibits(exhibits_json(shown)) == shown
        True
    """
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']!r}, not {FORMAT}")
        return Exhibits(_text(value["best"]), tuple(_task(task) for task in value["tasks"]))
    except (KeyError, TypeError, ValueError, binascii.Error, BrokenPlugin) as error:
        raise JournalError(f"exhibits that are not as a run writes them: {type(error).__name__}: {error}") from error


def _task(task: Any) -> TaskExhibits:
    return TaskExhibits(
        _text(task["task"]),
        _text(task["plugin"]),
        tuple(_exhibit(one) for one in task["exhibits"]),
        tuple(_text(note) for note in task["notes"]),
        bool(task["failed"]),
    )


def _exhibit(one: Any) -> Exhibit:
    png = one["png"]
    return Exhibit(one["item"], one["title"], one["text"], png and base64.b64decode(_text(png), validate=True))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} stands where a text belongs")
    return value


# ── as a section of the page ─────────────────────────────────────────────────────────────────────────────────────────


def exhibits_section(exhibits: Exhibits | None, tasks: Sequence[str]) -> Markup | None:
    """Returns the section, or nothing where no task shows anything.

    Args:
        exhibits: What is shown.
        tasks: The run's tasks; a task's place among them is its letter and its colour.
    """
    shown = [] if exhibits is None else [task for task in exhibits.tasks if task.task in tasks]
    if not shown:
        return None
    note = (
        "The first test items of each task, whatever became of them, and what the chosen model makes of each. Pictures "
        "and texts are the tasks' own."
    )
    parts = [_shown(task, tasks.index(task.task)) for task in shown]
    return element("section", element("h2", "What the chosen model does"), element("p", note, class_="note"), *parts)


def _shown(task: TaskExhibits, number: int) -> Markup:
    sign = element("span", letter(number), class_=f"sign {task_class(number)}", aria_hidden="true")
    notes = element("ul", *(element("li", note) for note in task.notes), class_="concerns") if task.notes else None
    figures = [_figure(one, task.task) for one in task.exhibits]
    width = "pictures" if all(one.text is None for one in task.exhibits) else "texts"
    return element(
        "div",
        element("h3", sign, task.task, " ", element("small", task.plugin)),
        notes,
        element("div", *figures, class_=f"shown {width}") if figures else None,
        class_="exhibits",
    )


def _figure(exhibit: Exhibit, task: str) -> Markup:
    title = element("b", exhibit.title) if exhibit.title else None
    caption = element("figcaption", title, element("small", exhibit.item))
    picture = None if exhibit.png is None else _picture(exhibit, exhibit.png, task)
    where = f"{task}, item {exhibit.item}"
    text = (
        element("pre", exhibit.text, tabindex="0", role="region", aria_label=where)
        if exhibit.text is not None
        else None
    )
    return element("figure", picture, caption, text)


def _picture(exhibit: Exhibit, png: bytes, task: str) -> Markup:
    width, height = png_size(png)
    return element(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(png).decode()}",
        alt=f"{task}, item {exhibit.item}: {exhibit.title or 'picture'}",
        width=width,
        height=height,
    )


def png_size(png: bytes) -> tuple[int, int]:
    r"""Returns width and height as the first chunk of a PNG file says.

    Source: W3C, "Portable Network Graphics (PNG) Specification", section 11.2.2 IHDR.

    Example:
        >>> png_size(bytes(16) + b"\0\0\1\0" + b"\0\0\0\2")
        (256, 2)
    """
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
