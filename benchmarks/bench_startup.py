"""How long until the command line is there? Expected: `import minerua` under 0.15 s, `plugins list` under 0.4 s.

A merge that is planned and not carried out (numpy, PyYAML and the headers are read): under 0.8 s. Whole processes; the
bare interpreter stands beside them as the floor.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minerua.weights import write_checkpoint

RECIPE = "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]}"
CASES = {
    "python (floor)": (["-c", "pass"], None),
    "import minerua": (["-c", "import minerua"], 0.15),
    "minerua --help": (["-m", "minerua", "--help"], 0.4),
    "minerua plugins list": (["-m", "minerua", "plugins", "list"], 0.4),
    "minerua merge --dry-run": (["-m", "minerua", "merge", "recipe.yml", "out", "--dry-run"], 0.8),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds two small models and a recipe for them."""
    for name in "ab":
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name / "model.safetensors", {"w": np.ones((2, 2), np.float32)})
    (tmp_path / "recipe.yml").write_text(RECIPE)
    return tmp_path


def _seconds_of_import() -> float:
    code = "import time; t = time.perf_counter(); import minerua; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("case", CASES)
def test_command_line_is_there_at_once(benchmark, smoke, folder, case):
    arguments, limit = CASES[case]
    command = [sys.executable, *arguments]
    code = (
        "import sys; before = set(sys.modules); import minerua; print('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    benchmark.pedantic(
        lambda: subprocess.run(command, cwd=folder, capture_output=True, check=True),
        rounds=3 if smoke else 15,
        warmup_rounds=1,
    )
    seconds = min(_seconds_of_import() for _ in range(7)) if case == "import minerua" else benchmark.stats.stats.min
    benchmark.extra_info["seconds"] = seconds
    if limit is not None and not smoke:
        assert seconds < limit
