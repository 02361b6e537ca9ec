"""What the tests of single laws ask: one check of one spec, and what it found."""

from __future__ import annotations

from typing import Any

from minerua.conformance import examine


def found(target: object, check: str, **options: Any) -> list[str]:
    """Returns what is wrong by one check."""
    return [problem.found for problem in examine(target, only=f"*/{check}", **options).problems]


def reasons(target: object, check: str, **options: Any) -> list[str]:
    """Returns why one check was not judged."""
    return [verdict.reason for verdict in examine(target, only=f"*/{check}", **options).of("not judged")]
