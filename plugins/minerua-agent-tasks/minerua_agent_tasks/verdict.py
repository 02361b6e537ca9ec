"""What an answer is worth, why, and where that is written down."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from minerua.errors import ConfigError, StorageError

__all__ = ["Verdict", "reporter"]


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth.

    Args:
        outcome: In [0, 1].
        reason: Why, in words; what a program raised is quoted, cut to 200 letters.
        passed: How many tests passed.
        total: How many tests there are.
        is_certain: Whether the same answer would be worth the same on a busier machine: no limit had a part in it.
    """

    outcome: float
    reason: str
    passed: int = 0
    total: int = 0
    is_certain: bool = True


def reporter(path: Path) -> Callable[[str, Verdict], None]:
    r"""Returns what adds a verdict to a JSONL file: a line with the item's id, outcome and reason.

    Lines of several processes do not mix. The file is made at once.

    Raises:
        ConfigError: The file cannot be written; later, `StorageError`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "verdicts.jsonl")
        ...     reporter(file)("7", Verdict(1.0, "all 3 tests passed", 3, 3))
        ...     file.read_text()
        '{"id": "7", "outcome": 1.0, "reason": "all 3 tests passed", "passed": 3, "total": 3}\n'
    """
    try:
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(f"the verdicts cannot be written to {path}: {error.strerror}") from error

    def report(id: str, verdict: Verdict) -> None:
        told = {name: value for name, value in asdict(verdict).items() if name != "is_certain"}
        line = json.dumps({"id": id, **told}).encode() + b"\n"
        try:
            opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(opened, line)
            finally:
                os.close(opened)
        except OSError as error:
            raise StorageError(f"the verdict of {id} cannot be added to {path}: {error.strerror}") from error

    return report
