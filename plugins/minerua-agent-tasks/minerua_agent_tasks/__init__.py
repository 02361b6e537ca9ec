"""Evaluators that execute what models write, and the sandbox that they do it in; nothing heavy is imported here."""

from __future__ import annotations

from .coding import CodingItem, Verdict, code_in, coding_evaluator, judge, read_items

__all__ = ["CodingItem", "Verdict", "code_in", "coding_evaluator", "judge", "read_items"]
