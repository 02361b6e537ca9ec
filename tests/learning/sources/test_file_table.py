"""A look at many rows at a time finds what a look at each of them finds, however many are bad, and wherever."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minerua.learning.data_config import LabelsConfig, TableConfig
from minerua.learning.rows import BadRows
from minerua.learning.sources import file_table, text_rows
from minerua.learning.sources.index import IndexFolder
from minerua.learning.sources.parquet import ParquetTable
from minerua.learning.sources.tables import TextTable

SOUND = [
    b"1,2.5,a,k%d\n",
    b'"3",4e3,b,k%d\r\n',
    b' 5 ,-6,"c ""q""",k%d\n',
    b'7,8,"two\nlines",k%d\n',
    "9,1,\u00e9\u2028x,k%d\n".encode(),
]
DOUBTFUL = [
    *(b"1_0,2,a,k%d\n", b"x,2,a,k%d\n", b",2,a,k%d\n", b"nan,2,a,k%d\n", b"1e39,2,a,k%d\n", b"1" * 25 + b",2,a,k%d\n"),
    *(b"1,2,,k%d\n", b"1,2,  ,k%d\n", b"1,2,a,\n", b"1,200,a,k%d\n", b"1,2,unknown,k%d\n"),
    *(b"1,2,a\n", b"1,2,a,b,c%d\n", b"\n", b"\r\n", b"\xff,2,a,k%d\n", b"1,\0,a,k%d\n"),
    *(b'1,2,"a"b,k%d\n', b"1,2,a,k%d\rx\n", b'1,2,"never closed,k%d\n', b"1,2," + b"z" * 400 + b",k%d\n"),
]
CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"inputs": ["u", "v"], "key": "id", "label": "y"}, {}, "float32"),
    ({"inputs": ["u", "v"], "label": "y"}, {"classes": ["a", "b", 'c "q"']}, "float64"),
    ({"inputs": "u", "label": "v"}, {"kind": "number", "most": 100}, "float32"),
    ({"inputs": ["u"], "label": "y"}, {}, "int64"),
    ({"text": ["y", "u"], "label": "v"}, {"kind": "text"}, "float32"),
    ({"text": "y", "key": "id"}, {"kind": "inputs"}, "float32"),
]
LINES = st.lists(st.sampled_from(SOUND * 4 + DOUBTFUL) | st.sampled_from(SOUND), max_size=60)


def found(source: Any) -> dict[str, Any]:
    """All that a look has found: usable rows with their places, and bad rows with theirs."""
    bad = BadRows()
    scanned = source.scan(bad)
    return {
        "places": [source.place(i) for i in range(len(scanned.hashes))],
        "rows": [repr(source.read(i)) for i in range(len(scanned.hashes))],
        "hashes": scanned.hashes.tolist(),
        "codes": scanned.codes.tolist(),
        "names": scanned.names,
        "blank": scanned.blank_lines,
        "reasons": bad.reasons,
        "bad": list(map(str, bad.listed)),
    }


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets every row be looked at by itself, or no longer."""

    def switch(*, on: bool) -> None:
        monkeypatch.undo()
        if on:
            monkeypatch.setattr(file_table, "FEW", 1 << 30)
            monkeypatch.setattr(file_table._Taking, "_at_once", lambda self, block: False)

    return switch


@pytest.mark.parametrize(("columns", "labels", "dtype"), CASES)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, cut=st.booleans())
def test_many_at_a_time_is_one_by_one(one_by_one, tmp_path, columns, labels, dtype, lines, cut) -> None:
    path = tmp_path / "a.csv"
    text = b"u,v,y,id\n" + b"".join(line.replace(b"%d", b"%d" % (k % 50)) for k, line in enumerate(lines))
    path.write_bytes(text.rstrip(b"\n") if cut else text)
    config = TableConfig(path=path, longest_row_bytes=300, **columns)

    def look(*, singly: bool) -> dict[str, Any]:
        one_by_one(on=singly)
        return found(TextTable(path, config, LabelsConfig(**labels), dtype=dtype, indexes=IndexFolder(None)))

    assert look(singly=False) == look(singly=True)


def numbered(path: Path, bad: set[int]) -> TextTable:
    lines = [f"{'x' if k in bad else k},c{k % 7}\n" for k in range(20_000)]
    path.write_text("u,y\n" + "".join(lines))
    config = TableConfig(path=path, inputs="u", label="y")
    return TextTable(path, config, LabelsConfig(), dtype="float32", indexes=IndexFolder(None))


def test_a_bad_row_is_named_wherever_it_lies_in_a_block(tmp_path: Path) -> None:
    bad, wrong = BadRows(), {0, 1, 4095, 9000, 19_999}
    scanned = numbered(tmp_path / "a.csv", wrong).scan(bad)
    assert [row.place for row in bad.listed] == [f"a.csv:{k + 2}" for k in sorted(wrong)]
    usable = [k for k in range(20_000) if k not in wrong]
    assert [scanned.names[code] for code in scanned.codes] == [f"c{k % 7}" for k in usable]


def test_sound_rows_are_not_looked_at_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    singles = []
    single = file_table._Taking.single
    monkeypatch.setattr(file_table._Taking, "single", lambda self, row: singles.append(row) or single(self, row))
    numbered(tmp_path / "a.csv", set()).scan(BadRows())
    ahead = (tmp_path / "a.csv").stat().st_size // text_rows._MOST_AHEAD
    assert len(singles) <= ahead + 2  # the one behind each block
    singles.clear()
    numbered(tmp_path / "b.csv", {100, 10_000}).scan(BadRows())
    assert len(singles) <= 2 * (ahead + 2 + 2 * file_table.FEW)


def test_rows_of_parquet_are_found_alike(one_by_one, tmp_path: Path) -> None:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    numbers: list[Any] = np.arange(900.0).tolist()
    numbers[17], numbers[899] = None, float("nan")
    labels = [None if k == 500 else k % 3 for k in range(900)]
    parquet.write_table(arrow.table({"u": numbers, "v": list(range(900)), "y": labels}), tmp_path / "a.parquet")
    config = TableConfig(path=tmp_path / "a.parquet", inputs=["u", "v"], label="y")

    def look(*, singly: bool) -> dict[str, Any]:
        one_by_one(on=singly)
        path = tmp_path / "a.parquet"
        return found(ParquetTable(path, config, LabelsConfig(), dtype="float32", indexes=IndexFolder(None)))

    many = look(singly=False)
    assert many == look(singly=True)
    assert many["bad"] == [
        "a.parquet, row 18: missing input: column u",
        "a.parquet, row 501: missing label",
        "a.parquet, row 900: not finite: 1 of 2 inputs",
    ]
