"""How long does `minerua demo` take, learning included, in how much memory? Expected: below 60 s, 1 GB on two cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LIMIT_SECONDS = 60.0
LIMIT_BYTES = 1 << 30


def _demo(folder: Path, evaluations: int) -> int:
    """Runs the demo as a process of its own; returns its peak memory in bytes."""
    command = [sys.executable, "-m", "minerua", "demo", "--out", str(folder), "--evaluations", str(evaluations)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone; getrusage would give the largest of all
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_demo_ends_in_time_and_in_little_memory(benchmark, tmp_path, smoke):
    evaluations = 30 if smoke else 1200
    folders = (tmp_path / str(i) for i in range(100))
    peaks = []
    benchmark.pedantic(lambda: peaks.append(_demo(next(folders), evaluations)), rounds=1 if smoke else 3)
    assert json.loads((tmp_path / "0" / "table.json").read_text())
    assert (tmp_path / "0" / "best.safetensors").exists()
    benchmark.extra_info["peak MB"] = max(peaks) / 1e6
    assert max(peaks) < LIMIT_BYTES
    assert benchmark.stats.stats.min < LIMIT_SECONDS
