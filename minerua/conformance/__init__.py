"""The exam that every plugin sits: what it provides is held to the laws of its kind, and all problems are told at once.

In a plugin's own tests, one line: `test_exam = exam("my-plugin")`. Importing this room loads none of its parts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minerua.conformance.examination import cases, exam, examine
    from minerua.conformance.report import Problem, Report, Sample, Verdict

_HOMES = {
    "minerua.conformance.examination": ("cases", "exam", "examine"),
    "minerua.conformance.report": ("Problem", "Report", "Sample", "Verdict"),
}

__all__ = ["Problem", "Report", "Sample", "Verdict", "cases", "exam", "examine"]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"minerua.conformance has no {name!r}; it has {', '.join(__all__)}")
