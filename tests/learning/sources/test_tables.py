import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig, TableConfig
from minerua.learning.rows import BadRows
from minerua.learning.sources.index import IndexFolder
from minerua.learning.sources.tables import TextTable, format_of


def table(path, *, cache=None, labels=None, **columns):
    columns = {"inputs": "x", "label": "y", **columns}
    config = TableConfig(path=path, **columns)
    return TextTable(path, config, LabelsConfig(**(labels or {})), dtype="float32", indexes=IndexFolder(cache))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(path, count):
    return write_jsonl(path, [{"x": [k, 2 * k], "y": f"c{k % 3}"} for k in range(count)])


def test_rows_are_read_in_any_order(tmp_path):
    source = table(numbered(tmp_path / "a.jsonl", 100))
    scanned = source.scan(BadRows())
    assert len(scanned.hashes) == len(np.unique(scanned.hashes)) == 100
    assert scanned.names == ("c0", "c1", "c2")
    for k in np.random.default_rng(0).permutation(100).tolist():
        assert source.read(k)[0].tolist() == [k, 2 * k]
        assert scanned.codes[k] == k % 3


def test_a_csv_and_a_jsonl_of_the_same_rows_are_the_same(tmp_path):
    (tmp_path / "a.csv").write_text("y,x\n" + "".join(f"c{k % 3},{k / 8}\n" for k in range(50)))
    write_jsonl(tmp_path / "a.jsonl", [{"x": k / 8, "y": f"c{k % 3}"} for k in range(50)])
    one, other = (table(tmp_path / name).scan(BadRows()) for name in ("a.csv", "a.jsonl"))
    assert (one.hashes == other.hashes).all()
    assert (one.codes == other.codes).all()


def test_tabs_part_the_columns_of_a_tsv(tmp_path):
    (tmp_path / "a.tsv").write_text("x\ty\n1\tc\n")
    source = table(tmp_path / "a.tsv")
    source.scan(BadRows())
    assert source.read(0)[0] == 1


def test_bad_rows_are_counted_with_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1, "y": "a"}\n\nnonsense\n{"x": NaN, "y": "a"}\n{"x": 2}\n{"x": 3, "y": "b"}\n')
    bad = BadRows()
    scanned = table(path).scan(bad)
    assert len(scanned.hashes) == 2
    assert scanned.blank_lines == 1
    assert [(row.place, row.reason) for row in bad.listed] == [
        ("a.jsonl:3", "not JSON"),
        ("a.jsonl:4", "not finite"),
        ("a.jsonl:5", "missing label"),
    ]


def test_a_key_names_a_row_in_place_of_its_content(tmp_path):
    rows = [{"x": 1, "y": 0, "id": "same"}, {"x": 2, "y": 0, "id": "same"}, {"x": 2, "y": 0, "id": "other"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    by_key, by_content = table(path, key="id").scan(BadRows()).hashes, table(path).scan(BadRows()).hashes
    assert by_key[0] == by_key[1] != by_key[2]
    assert by_content[0] != by_content[1] == by_content[2]


# ── the index ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_index_that_is_kept_spares_the_second_look(tmp_path):
    path, cache = numbered(tmp_path / "a.jsonl", 10), tmp_path / "kept" / "here"
    bad = BadRows()
    first = table(path, cache=cache).scan(bad)
    (folder,) = cache.iterdir()
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    second = table(path, cache=cache).scan(bad)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert (first.hashes == second.hashes).all()
    assert second.names == first.names


def test_a_kept_index_still_tells_of_the_bad_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("nonsense\n")
    for _ in range(2):
        bad = BadRows()
        table(tmp_path / "a.jsonl", cache=tmp_path / "kept").scan(bad)
        assert (bad.count, str(bad.listed[0])[:21]) == (1, "a.jsonl:1: not JSON: ")


@pytest.mark.parametrize("change", ["size", "time", "columns"])
def test_an_index_of_another_file_is_not_used(tmp_path, change):
    path, cache = numbered(tmp_path / "a.jsonl", 10), tmp_path / "kept"
    table(path, cache=cache).scan(BadRows())
    if change == "size":
        numbered(path, 11)
    elif change == "time":
        os.utime(path, ns=(1, 1))
    table(path, cache=cache, **({"key": "y"} if change == "columns" else {})).scan(BadRows())
    assert len(list(cache.iterdir())) == 2


def test_a_temporary_index_goes_with_its_table(tmp_path):
    source = table(numbered(tmp_path / "a.jsonl", 10))
    source.scan(BadRows())
    folder = source._indexes.path
    assert folder.is_dir()
    copy = pickle.loads(pickle.dumps(source))
    del copy
    assert folder.is_dir()
    del source
    assert not folder.exists()


def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path):
    path = numbered(tmp_path / "a.jsonl", 10)
    source = table(path)
    source.scan(BadRows())
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"a.jsonl was changed while it was in use; start again"):
        source.read(3)


def test_a_file_that_is_cut_short_while_it_is_open_is_refused(tmp_path, monkeypatch):
    path = numbered(tmp_path / "a.jsonl", 10)
    source = table(path)
    source.scan(BadRows())
    source.read(0)
    monkeypatch.setattr(os, "pread", lambda file, length, offset: b"")  # a network disk may hide that it has changed
    with pytest.raises(ConfigError, match=r"a.jsonl ends within the row at byte 229"):
        source.read(9)
    os.truncate(path, 10)
    with pytest.raises(ConfigError, match="was changed while it was in use"):
        source.read(9)


def test_rows_are_found_only_after_a_look(tmp_path):
    with pytest.raises(ConfigError, match=r"a.jsonl has not been looked through; call scan first"):
        table(numbered(tmp_path / "a.jsonl", 1)).read(0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read none.jsonl: No such file"):
        table(tmp_path / "none.jsonl")


def test_a_folder_and_a_pipe_are_no_tables(tmp_path):
    (tmp_path / "a.csv").mkdir()
    os.mkfifo(tmp_path / "b.csv")
    for name in ("a.csv", "b.csv"):
        with pytest.raises(ConfigError, match="it is a folder, a pipe or a device, not a file"):
            table(tmp_path / name)


def test_an_index_that_cannot_be_written_is_an_error_with_the_folder_s_name(tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(OSError, match="the index of rows cannot be written to"):
        table(numbered(tmp_path / "a.jsonl", 1), cache=tmp_path / "kept").scan(BadRows())


def test_a_name_that_says_nothing_needs_a_format(tmp_path):
    config = TableConfig(path="a.txt", inputs="x")
    with pytest.raises(ConfigError, match="the name does not say what the file holds; set format to csv, jsonl"):
        format_of(tmp_path / "a.txt", config)
    assert format_of(tmp_path / "A.NDJSON", config) == "jsonl"


MEMORY = """
import resource, sys
from pathlib import Path
from minerua.learning.data_config import read_data_config
from minerua.learning.datasets import DatasetManager
section = {"table": {"path": sys.argv[1], "text": "x", "label": "y"}}
used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
resource.setrlimit(resource.RLIMIT_DATA, [used * 1024 + 40_000_000] * 2)
rows = DatasetManager(read_data_config(section)).prepare().train
print(sum(len(rows[i][0]) for i in range(len(rows))) // len(rows))
"""


def test_a_file_larger_than_the_memory_that_is_allowed_is_read(tmp_path):
    path, text = tmp_path / "a.jsonl", "word " * 200_000
    with path.open("w") as file:
        for k in range(120):  # 120 MB, and 40 MB of memory
            file.write(json.dumps({"x": f"{k} {text}", "y": k % 2}) + "\n")
    done = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert int(done.stdout) >= 1_000_000
