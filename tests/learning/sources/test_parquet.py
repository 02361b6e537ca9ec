import importlib
import pickle

import numpy as np
import pytest

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig, TableConfig
from minerua.learning.rows import BadRows
from minerua.learning.sources import parquet as module
from minerua.learning.sources.index import IndexFolder
from minerua.learning.sources.parquet import ParquetTable


def table(path, **columns):
    config = TableConfig(path=path, **{"inputs": "x", "label": "y", **columns})
    return ParquetTable(path, config, LabelsConfig(), dtype="float32", indexes=IndexFolder(None))


def write(path, columns, **settings):
    import pyarrow as arrow
    from pyarrow import parquet

    parquet.write_table(arrow.table(columns), path, **settings)
    return path


def test_rows_of_any_row_group_are_read_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_ROWS", 7)
    columns = {"x": [[k, 2 * k] for k in range(100)], "unused": ["z"] * 100, "y": [f"c{k % 3}" for k in range(100)]}
    source = table(write(tmp_path / "a.parquet", columns, row_group_size=16))
    scanned = source.scan(BadRows())
    assert len(np.unique(scanned.hashes)) == 100
    copy = pickle.loads(pickle.dumps(source))
    for k in np.random.default_rng(0).permutation(100).tolist():
        assert copy.read(k)[0].tolist() == [k, 2 * k]
        assert scanned.names[scanned.codes[k]] == f"c{k % 3}"
    assert source.place(41) == "a.parquet, row 42"


def test_empty_cells_and_nan_are_bad_rows(tmp_path):
    columns = {"x": [1.0, None, float("nan"), 2.0], "y": ["a", "a", "a", None]}
    bad = BadRows()
    assert len(table(write(tmp_path / "a.parquet", columns)).scan(bad).hashes) == 1
    assert [str(row) for row in bad.listed] == [
        "a.parquet, row 2: missing input: column x",
        "a.parquet, row 3: not finite: 1 of 1 inputs",
        "a.parquet, row 4: missing label",
    ]


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no column is named y; found: x"):
        table(write(tmp_path / "a.parquet", {"x": [1.0]}))


def test_a_repeated_column_is_refused(tmp_path):
    import pyarrow as arrow
    from pyarrow import parquet

    twice = arrow.Table.from_arrays([arrow.array([1]), arrow.array([2]), arrow.array([3])], names=["x", "x", "y"])
    parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="the column x stands there 2 times"):
        table(tmp_path / "a.parquet")


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"x" * 1000)
    with pytest.raises(ConfigError, match=r"a.parquet cannot be read as Parquet"):
        table(tmp_path / "a.parquet")


def test_a_damaged_row_group_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": np.arange(10_000.0), "y": ["a"] * 10_000}, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:4000] = b"\xff" * 3996
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a.parquet is damaged"):
        table(path).scan(BadRows())


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"a.parquet is a Parquet file, which needs pyarrow: pip install pyarrow"):
        table(tmp_path / "a.parquet")


def test_rows_are_found_only_after_a_look(tmp_path):
    with pytest.raises(ConfigError, match=r"a.parquet has not been looked through"):
        table(write(tmp_path / "a.parquet", {"x": [1.0], "y": [1]})).read(0)
