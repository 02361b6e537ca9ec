"""How fast are rows of files that do not fit into memory, in a shuffled order, and how much memory do they take?

A million rows of CSV and of JSONL, eight numbers and a label each (some 95 and 170 MB). Bounds: a row read in place
costs a system call of about 1 µs, parsing its text (`csv.reader` 2 µs, `json.loads` 3 µs) and eight conversions; the
first look at a file costs the same per row and a hash. Expected: at least 50,000 rows per second in any order, and
memory beyond file maps that grows by no more than 40 bytes per row, whatever the rows' size.

Peers, where they are installed: pandas, which holds the whole table in memory; Hugging Face datasets, which lays it out
as Arrow first, as minerua does for Parquet. A plain Python list of parsed rows in memory is the floor.

    pytest benchmarks/bench_datasets.py            # a few minutes, 1 GB of disk
    pytest benchmarks/bench_datasets.py --smoke    # tiny files: that it runs, and that the answers are right
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .bench_merge import run_alone

COLUMNS = [f"x{k}" for k in range(8)]
ROWS, FEW_ROWS, READS, FEW_READS = 1_000_000, 2_000, 200_000, 1_000
PEERS = {"minerua": "minerua", "pandas": "pandas", "datasets": "datasets"}

READER = """
import json, sys, time
import numpy as np
path, peer, kind, reads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
columns = [f"x{k}" for k in range(8)]
start = time.perf_counter()
if peer == "minerua":
    from minerua.learning.data_config import read_data_config
    from minerua.learning.datasets import DatasetManager
    split = {"train": 1, "validation": 0, "test": 0}
    section = {"table": {"path": path, "inputs": columns, "label": "label", "key": "id"}, "split": split}
    rows = DatasetManager(read_data_config(section)).prepare().train
    read = rows.__getitem__
elif peer == "pandas":
    import pandas
    table = pandas.read_csv(path) if kind == "csv" else pandas.read_json(path, lines=True)
    inputs, labels = table[columns].to_numpy(np.float32), table["label"].to_numpy()
    rows = table
    read = lambda i: (inputs[i], labels[i])
else:
    import datasets
    datasets.disable_progress_bars()
    cache = sys.argv[5]
    rows = datasets.load_dataset({"csv": "csv", "jsonl": "json"}[kind], data_files=path, split="train", cache_dir=cache)
    def read(i):
        row = rows[int(i)]
        return np.array([row[c] for c in columns], np.float32), row["label"]
opened = time.perf_counter() - start
order = np.random.default_rng(0).permutation(len(rows))[:reads].tolist()
start = time.perf_counter()
total = 0.0
for i in order:
    total += float(read(i)[0][0])
seconds = time.perf_counter() - start
print(json.dumps({"rows": len(rows), "opened": opened, "rows per second": len(order) / seconds, "total": total}))
"""


@dataclass(frozen=True)
class Table:
    """A file, and what its shuffled reads sum up to."""

    path: Path
    kind: str
    rows: int
    reads: int
    total: float


@pytest.fixture(scope="module", params=["csv", "jsonl"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Writes the file once for all peers."""
    smoke = request.config.getoption("--smoke")
    rows, reads = (FEW_ROWS, FEW_READS) if smoke else (ROWS, READS)
    numbers = np.random.default_rng(1).normal(size=(rows, len(COLUMNS))).round(6)
    path = tmp_path_factory.mktemp("tables") / f"rows.{request.param}"
    with path.open("w") as file:
        if request.param == "csv":
            file.write(",".join(["id", *COLUMNS, "label"]) + "\n")
        for i, row in enumerate(numbers.tolist()):
            file.write(_line(request.param, i, row))
    order = np.random.default_rng(0).permutation(rows)[:reads]
    total = float(numbers[order, 0].astype(np.float32).astype(np.float64).sum())
    return Table(path, request.param, rows, reads, total)


def _line(kind: str, i: int, row: list[float]) -> str:
    if kind == "csv":
        return ",".join([str(i), *map(str, row), f"class {i % 10}"]) + "\n"
    named = dict(zip(COLUMNS, row, strict=True))
    return json.dumps({"id": i, **named, "label": f"class {i % 10}"}) + "\n"


@pytest.mark.parametrize("peer", PEERS)
def test_rows_in_a_shuffled_order(benchmark: Any, table: Table, peer: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(PEERS[peer]) is None:
        pytest.skip(f"{peer} is not installed")
    command = [sys.executable, "-c", READER, str(table.path), peer, table.kind, str(table.reads), str(tmp_path)]
    log = tmp_path / "log.txt"
    run = benchmark.pedantic(lambda: run_alone(command, log), rounds=1)
    found = json.loads(log.read_text().splitlines()[-1])
    assert found["rows"] == table.rows
    assert found["total"] == pytest.approx(table.total, rel=1e-6)
    benchmark.extra_info.update(
        {
            "rows/s": round(found["rows per second"]),
            "opened s": round(found["opened"], 2),
            "peak MB": round(run.peak_bytes / 1e6),
            "file MB": round(table.path.stat().st_size / 1e6),
        }
    )
