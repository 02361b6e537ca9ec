"""What is special in a task's settings: limits, a sandbox, and a file of verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from minerua.settings import Settings

from .sandbox import MODES, Limits, Sandbox
from .verdict import Verdict, reporter

__all__ = ["read_limits", "read_report", "read_sandbox"]


def read_limits(told: Settings, default: Limits) -> Limits:
    """Returns the limits: a mapping of the fields of `Limits`, over defaults."""
    section = told.section("limits")
    found = {field.name: section.value(field.name, getattr(default, field.name)) for field in fields(Limits)}
    return told.made(lambda: Limits(**found), default)


def read_sandbox(told: Settings, *, readable: Sequence[str | Path] = ()) -> Sandbox | None:
    """Returns the sandbox in the mode that is named, by default the strongest; `None` after a fault."""
    mode = told.choice("sandbox", MODES, None)
    if mode is None and told.value("sandbox", None) is not None:
        return None
    return told.made(lambda: Sandbox(mode, readable=readable), None)


def read_report(told: Settings) -> Callable[[str, Verdict], None] | None:
    """Returns what writes verdicts down, if a file for them is named."""
    path = told.path("report", None)
    return None if path is None else told.made(lambda: reporter(path), None)
