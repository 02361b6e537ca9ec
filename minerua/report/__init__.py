"""From a journal to what a person reads: numbers, words, and one page that needs no network.

The caller reads the journal and writes the files; nothing here touches the disk except for the page's own style sheet.

Example:
    >>> from minerua.evolution import read_journal
    >>> page = render(read_journal("run/journal.jsonl"))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence

from minerua.report.exhibits import Exhibits, TaskExhibits, exhibits_json, png_size, read_exhibits
from minerua.report.intervals import Interval
from minerua.report.page import render_page
from minerua.report.preflight import Pair, Preflight
from minerua.report.replay import Event
from minerua.report.tables import Summary, summarise, table_json
from minerua.report.training import TrainingLog, read_training_log, render_training
from minerua.report.words import preflight_text, sentences, table_text

__all__ = [
    "Exhibits",
    "Interval",
    "Pair",
    "Preflight",
    "Summary",
    "TaskExhibits",
    "TrainingLog",
    "exhibits_json",
    "png_size",
    "preflight_text",
    "read_exhibits",
    "read_training_log",
    "render",
    "render_page",
    "render_training",
    "sentences",
    "summarise",
    "table_json",
    "table_text",
]


def render(events: Sequence[Event], exhibits: Exhibits | None = None) -> str:
    """Returns a run's report as one HTML page that works offline.

    Args:
        events: A journal's events, oldest first, as `read_journal` returns them.
        exhibits: What the chosen model makes of some items; passed over where they are another model's.

    Raises:
        JournalError: If an event lacks a field or contradicts the others.
    """
    return render_page(summarise(events), exhibits)
