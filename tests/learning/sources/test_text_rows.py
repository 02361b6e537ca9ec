import csv
import io
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import ConfigError
from minerua.learning.rows import RowError
from minerua.learning.sources.block import singly
from minerua.learning.sources.text_rows import CsvRows, JsonRows


def csv_rows(content, needed, *, delimiter=",", longest=1000):
    return CsvRows(io.BytesIO(content), "a.csv", needed, delimiter=delimiter, longest=longest)


def found(content, needed=("x", "y"), **settings):
    return list(singly(csv_rows(content, needed, **settings).find(io.BytesIO(content))))


def found_json(content, needed=("x",), longest=1000):
    return list(singly(JsonRows(needed, longest=longest).find(io.BytesIO(content))))


def faults(rows):
    return [(row.line, row.error.reason) for row in rows if row.error is not None]


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(FIELD, FIELD), max_size=8),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(",;\t"),
)
def test_every_row_is_found_where_it_lies_whatever_is_quoted(rows, mark, ending, delimiter):
    text = io.StringIO(newline="")
    bare = any("\r" in field for row in rows for field in row)  # which the csv module writes without quotes otherwise
    quoting = csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator=ending, delimiter=delimiter, quoting=quoting)
    writer.writerows([("x", "y"), *rows])
    content = mark + text.getvalue().encode()
    reader = csv_rows(content, ("y", "x"), delimiter=delimiter)
    there = list(singly(reader.find(io.BytesIO(content))))
    assert [tuple(row.values[::-1]) for row in there] == rows
    for row in there:
        assert list(reader.parse(content[row.offset : row.offset + row.length])) == list(row.values)
    assert sum(row.length for row in there) + there[0].offset == len(content) if there else True


def test_a_quoted_line_end_belongs_to_its_row():
    first, second = found(b'x,y\n"a\nb",1\nc,2\n')
    assert (first.values, first.line) == (["a\nb", "1"], 2)
    assert (second.values, second.line) == (["c", "2"], 4)


def test_a_last_row_needs_no_line_end():
    assert [row.values for row in found(b"x,y\n1,2")] == [["1", "2"]]


def test_blank_lines_are_no_rows():
    assert [row.values for row in found(b"x,y\n\n1,2\r\n\r\n")] == [(), ["1", "2"], ()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"x,y\n1\n1,2,3\n1,2\n", [(2, "wrong number of columns"), (3, "wrong number of columns")]),
        (b'x,y\n"1,2\n3,4\n', [(2, "not CSV")]),
        (b'x,y\n"a"b,2\n3,4\n', [(2, "not CSV")]),
        (b"x,y\n\xff,2\n3,4\n", [(2, "not UTF-8")]),
        (b'x,y\n"a\n\xff",2\n3,4\n', [(2, "not UTF-8")]),
        (b"x,y\n1,\0\n3,4\n", [(2, "not text")]),
        (b"x,y\n" + b"z" * 2000 + b",1\n3,4\n", [(2, "row too long")]),
        (b'x,y\n"' + b"z\n" * 800 + b"3,4\n", [(2, "row too long")]),
    ],
)
def test_a_broken_row_is_named_and_what_follows_is_read(content, expected):
    rows = found(content)
    assert faults(rows)[: len(expected)] == expected
    assert rows[-1].values in (["3", "4"], ["1", "2"])


def test_what_is_wrong_is_said_in_numbers():
    assert str(found(b"x,y\n1\n")[0].error) == "wrong number of columns: 1 where the header has 2"
    assert str(found(b"x,y\n\xff,2\n")[0].error) == "not UTF-8: byte 0 of the line is 0xff"
    assert str(found(b"x,y\n1,\0\n")[0].error) == "not text: byte 2 is 0, as in binary files"
    long = found(b"x,y\n" + b"z" * 2000 + b",1\n")[0].error
    assert str(long) == "row too long: more than 1000 bytes; is a quote never closed?"


def test_many_quotes_that_are_never_closed_take_no_more_than_a_moment():
    rows = found(b"x,y\n" + b'"a,1\n' * 20_000, longest=1 << 20)
    assert len(faults(rows)) == len(rows) > 0


def test_a_field_may_be_longer_than_the_csv_module_s_own_limit():
    before = csv.field_size_limit()
    content = b"x,y\n" + b"z" * (before + 10) + b",1\n"
    reader = csv_rows(content, ("x",), longest=1 << 20)
    (row,) = singly(reader.find(io.BytesIO(content)))
    assert len(row.values[0]) == before + 10
    assert len(reader.parse(content[row.offset :])[0]) == before + 10
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.csv is empty, or begins with an empty line; a CSV file begins with its columns' names"),
        (b"\xff\xfex\0", "a.csv is written in UTF-16; save it as UTF-8"),
        (b"x,\xff\n", "the header of a.csv cannot be read: not UTF-8"),
        (b'x,"y\n', "the header of a.csv cannot be read: unexpected end of data"),
        (b"x,x,y\n", "the column x stands in the header 2 times"),
        (b"x,z\n", "no column is named y; found: x, z"),
        (b"z" * 5000, "the header of a.csv cannot be read: row too long"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(content, said):
    with pytest.raises(ConfigError) as caught:
        csv_rows(content, ("x", "y"))
    assert said in str(caught.value)


def test_missing_and_repeated_columns_are_told_together():
    with pytest.raises(ConfigError, match="has not the columns that it needs") as caught:
        csv_rows(b"x,x\n", ("x", "y"))
    assert len(caught.value.faults) == 2


def test_bytes_that_are_no_row_any_more_are_refused():
    reader = csv_rows(b"x,y\n", ("x",))
    with pytest.raises(RowError, match="not CSV"):
        reader.parse(b'"a"b,1\n')


# ── JSONL ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.dictionaries(FIELD, st.none() | st.booleans() | st.integers() | FIELD | st.lists(FIELD), max_size=3))
)
def test_every_line_is_a_row(rows):
    content = b"\xef\xbb\xbf" + b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    reader = pickle.loads(pickle.dumps(JsonRows(("a", "b"), longest=10_000)))
    there = list(singly(reader.find(io.BytesIO(content))))
    assert [row.values for row in there] == [[row.get("a"), row.get("b")] for row in rows]
    for row in there:
        assert reader.parse(content[row.offset : row.offset + row.length]) == row.values


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON: Expecting property name"),
        (b"[1]", "not an object: found list [1]"),
        (b'{"x": NaN}', "not finite: JSON has no NaN"),
        (b'{"x": 1, "x": 2}', "repeated key: x"),
        (b'{"x": ' + b"[" * 100_000, "not JSON: nested deeper than can be read"),
        (b'{"x": ' + b"9" * 10_000 + b"}", "not JSON: Exceeds the limit"),
        (b"\x89PNG\r", "not UTF-8: byte 0 of the line is 0x89"),
        (b'{"x": "' + b"z" * 500_000 + b'"}', "row too long: more than 400000 bytes"),
    ],
)
def test_a_broken_line_costs_itself_and_no_more(line, said):
    first, second = found_json(line + b'\n{"x": 1}\n', longest=400_000)
    assert str(first.error).startswith(said)
    assert (second.values, second.line) == ([1], 2)


def test_blank_lines_of_jsonl_are_no_rows():
    assert [row.values for row in found_json(b'\n{"x": 1}\n \n')] == [(), [1], ()]
