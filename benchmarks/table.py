"""Turns saved benchmark results into the tables of README.md: `python benchmarks/table.py RESULTS.json`.

The results come from `pytest benchmarks/bench_x.py --benchmark-json=RESULTS.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def rows(results: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a Markdown table: minimum, median and spread of each case, and the slowest's ratio to it."""
    lines = ["| benchmark | minimum | median | spread (IQR) | remarks |", "|---|---|---|---|---|"]
    for case in results["benchmarks"]:
        stats = case["stats"]
        times = " | ".join(_time(stats[key]) for key in ("min", "median", "iqr"))
        lines.append(f"| {case['name'].removeprefix('test_')} | {times} | {_remarks(case['extra_info'])} |")
    return lines


def machine(results: Mapping[str, Any]) -> str:
    """Returns one line about where the results come from."""
    found = results["machine_info"]
    cpu = found.get("cpu", {})
    name = cpu.get("brand_raw", "an unnamed processor")
    return f"{cpu.get('count', '?')} cores of {name}, Python {found['python_version']}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _remarks(extra: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in extra.items() if isinstance(value, str | int | float)}
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in plain.items()
    )


def main() -> None:
    """Prints the table of each file named on the command line."""
    for path in sys.argv[1:]:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        print(f"{machine(results)}\n")
        print("\n".join(rows(results)), end="\n\n")


if __name__ == "__main__":
    main()
