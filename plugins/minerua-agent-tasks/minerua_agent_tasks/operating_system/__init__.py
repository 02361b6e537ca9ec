"""Operating-system tasks: a model writes shell commands over several turns, and what they did or found is checked."""

from __future__ import annotations

from .dialogue import Rules
from .evaluator import LIMITS, configure_operating_system, operating_system_evaluator
from .formats import FORMATS, Act, Format
from .items import OperatingItem, Script, read_items
from .room import Conditions

__all__ = [
    "FORMATS",
    "LIMITS",
    "Act",
    "Conditions",
    "Format",
    "OperatingItem",
    "Rules",
    "Script",
    "configure_operating_system",
    "operating_system_evaluator",
    "read_items",
]
