"""JSONL files: every line read, every fault told with the number of its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from minerua.errors import ConfigError

__all__ = ["read_lines"]

_Item = TypeVar("_Item")
_MOST_FAULTS = 50


def read_lines(path: str | Path, parse: Callable[[dict[str, Any]], tuple[_Item | None, list[str]]]) -> list[_Item]:
    """Reads a file of one JSON object per line; empty lines are passed over.

    Args:
        path: The file, UTF-8.
        parse: Object → the item that it describes, or what is wrong with it.

    Raises:
        ConfigError: The file cannot be read, has no items, or lines that are none: the first 50 faults with their
            lines, and how many more there are.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"the items in {path} cannot be read: {error.strerror}; give a JSONL file") from error
    items, faults = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            item, wrong = _parsed(line, parse)
            faults += [f"line {number}: {fault}" for fault in wrong]
            items += [] if item is None else [item]
    if not items and not faults:
        faults = ["there is no item in it; a line is one JSON object"]
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS} more faults"] if len(faults) > _MOST_FAULTS else []
        raise ConfigError(f"the items in {path} are not as they should be", [*faults[:_MOST_FAULTS], *more])
    return items


def _parsed(line: bytes, parse: Callable[[dict[str, Any]], tuple[_Item | None, list[str]]]) -> Any:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, [f"is not JSON: {error}"]
    if not isinstance(content, dict):
        return None, [f"is a JSON {type(content).__name__}, not an object with named fields"]
    return parse(content)
