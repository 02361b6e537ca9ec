"""CSV and JSONL as bytes: where each row begins and ends, and what one row's bytes say.

The rows are found by the same reader that later reads each of them, Python's own, so that quotes, and line ends within
quotes, mean the same in both. A row that cannot be read costs one line: what follows is read afresh.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol, final

import numpy as np

from minerua.errors import ConfigError
from minerua.learning.rows import RowError, seen
from minerua.learning.sources.block import Block, Row

BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_CHUNK = 1 << 16
_MOST_AHEAD, _LEAST_AHEAD = 1 << 15, 1 << 12
"""How many bytes are looked at together: as many as a cache holds with what is made of them; fewer where rows are bad,
because what follows a bad row is looked at again."""


class TextRows(Protocol):
    """How a text format has its rows."""

    def find(self, file: BinaryIO) -> Iterator[Block | Row]:
        """Yields all rows of a file in order: sound ones in blocks, each other one by itself."""
        ...

    def parse(self, raw: bytes) -> Sequence[Any]:
        """Returns what the bytes of one row have in the wanted columns."""
        ...


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@final
class _Lines:
    """Gives a file's lines to `csv.reader`, and knows where the row begins that it is at work on."""

    def __init__(self, file: BinaryIO, longest: int) -> None:
        self._file, self._longest = file, longest
        self._ahead = min(_MOST_AHEAD, longest)
        self.position = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(self.position)
        self.line = 0
        self.error: RowError | None = None
        self.begin()

    def begin(self) -> None:
        """Says that the next line begins a row."""
        self.offset, self.first_line, self.error = self.position, self.line + 1, None

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self.raw()
        if not raw:
            raise StopIteration
        if self.position - self.offset > self._longest:
            raise RowError("row too long", f"more than {self._longest} bytes; is a quote never closed?")
        try:
            return decoded(raw)
        except RowError as error:
            self.error = (
                self.error or error
            )  # the rest of the row is read on, so that the next one begins where it does
            return raw.decode("utf-8", "replace")

    def raw(self) -> bytes:
        """Returns the next line, cut just above the longest row; empty at the end of the file."""
        raw = self._file.readline(self._longest + 1)
        self.position += len(raw)
        self.line += bool(raw)
        return raw

    def ahead(self) -> tuple[bytes, str]:
        """Returns the whole lines that follow, some kilobytes of them, as far as they are text; goes nowhere."""
        raw = self._file.read(self._ahead)
        self._file.seek(self.position)
        self._ahead = min(_LEAST_AHEAD, self._longest)  # unless rows are taken
        raw = raw[: raw.rfind(b"\n", 0, raw.find(0) if 0 in raw else len(raw)) + 1]
        try:
            return raw, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raw = raw[: raw.rfind(b"\n", 0, error.start) + 1]
            return raw, raw.decode("utf-8")

    def taken(self, raw: bytes, ends: Sequence[int], columns: Sequence[Sequence[Any]]) -> Block:
        """Goes behind sound rows.

        Args:
            raw: What `ahead` returned.
            ends: Behind which of its lines each row ends, counted from 1; at least one.
            columns: What the rows have in the wanted columns.
        """
        behind = np.flatnonzero(np.frombuffer(raw, np.uint8) == ord("\n")) + 1  # each line's end
        last = np.array(ends)
        stops = np.concatenate([[0], behind[last - 1]])
        lines = self.line + 1 + np.concatenate([[0], last[:-1]])
        block = Block(self.position + stops[:-1], np.diff(stops), lines, columns)
        self.position, self.line = self.position + int(stops[-1]), self.line + ends[-1]
        self._file.seek(self.position)
        self._ahead = min(max(2 * int(stops[-1]), _LEAST_AHEAD), _MOST_AHEAD, self._longest)
        return block

    def skip_line(self) -> None:
        """Goes to the end of the row's first line, however long that is."""
        self._file.seek(self.offset)
        self.position, self.line = self.offset, self.first_line
        while chunk := self._file.readline(_CHUNK):
            self.position += len(chunk)
            if chunk.endswith(b"\n"):
                return


def decoded(raw: bytes) -> str:
    """Returns the text of some bytes.

    Raises:
        RowError: If they are no text.
    """
    if b"\0" in raw:
        raise RowError("not text", f"byte {raw.index(0)} is 0, as in binary files")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("not UTF-8", f"byte {error.start} of the line is {raw[error.start]:#04x}") from None


def check_encoding(start: bytes, name: str) -> None:
    """Refuses a file that says by its first bytes that it is in another encoding.

    Raises:
        ConfigError: If it does.
    """
    for mark, encoding in _OTHER_BOMS.items():
        if start.startswith(mark):
            raise ConfigError(f"{name} is written in {encoding}; save it as UTF-8")


def _found(
    lines: _Lines, block: Callable[[_Lines], Block | None], row: Callable[[_Lines], Row | None]
) -> Iterator[Block | Row]:
    """Yields blocks of rows and, after each, the row that is no part of it: a bad or blank one, or just the next."""
    while True:
        sound = block(lines)
        if sound is not None:
            yield sound
        lines.begin()
        one = row(lines)
        if one is None:
            return
        yield one


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@final
class CsvRows:
    """Rows of a CSV file with a header line.

    Args:
        file: The file, at its start; its header is read.
        name: What it is called in messages.
        needed: The columns that are wanted.
        delimiter: What parts columns.
        longest: The longest row that is taken, in bytes.

    Raises:
        ConfigError: If there is no header, it repeats a wanted name, or a wanted name is missing; all faults at once.
    """

    def __init__(self, file: BinaryIO, name: str, needed: Sequence[str], *, delimiter: str, longest: int) -> None:
        self._delimiter, self._longest = delimiter, longest
        header = self._header(file, name)
        faults = [f"the column {seen(c)} stands in the header {header.count(c)} times" for c in repeated(header)]
        faults += missing(needed, header)
        if faults:
            raise ConfigError(f"{name} has not the columns that it needs", faults)
        self._width = len(header)
        self._columns = [header.index(column) for column in needed]

    def _header(self, file: BinaryIO, name: str) -> list[str]:
        check_encoding(file.read(2), name)
        file.seek(0)
        lines = _Lines(file, self._longest)
        try:
            header = next(self._reader(lines), [])
        except (csv.Error, RowError) as error:
            raise ConfigError(f"the header of {name} cannot be read: {seen(str(error))}") from error
        if lines.error is not None:
            raise ConfigError(f"the header of {name} cannot be read: {lines.error}")
        if not header:
            raise ConfigError(
                f"{name} is empty, or begins with an empty line; a CSV file begins with its columns' names"
            )
        return header

    def find(self, file: BinaryIO) -> Iterator[Block | Row]:
        """Yields all rows of the file, which is at its start, sound ones in blocks; the header is none."""
        lines = _Lines(file, self._longest)
        with _FieldsUpTo(self._longest):
            next(self._reader(lines))
            yield from _found(lines, self._block, self._row)

    def _reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def _block(self, lines: _Lines) -> Block | None:
        """Takes the rows that follow, up to the first that is bad, blank or cut off."""
        raw, text = lines.ahead()
        rows: list[list[str]] = []
        ends: list[int] = []
        reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=self._delimiter, strict=True)
        with contextlib.suppress(csv.Error):  # the row is read again by itself, which says what is wrong
            for row in reader:
                if len(row) != self._width:
                    break
                rows.append(row)
                ends.append(reader.line_num)
        columns = list(zip(*rows, strict=True))
        return lines.taken(raw, ends, [columns[k] for k in self._columns]) if rows else None

    def _row(self, lines: _Lines) -> Row | None:
        try:
            row = next(self._reader(lines), None)
        except (csv.Error, RowError) as error:
            lines.skip_line()
            return self._judged(lines, None, error if isinstance(error, RowError) else _not_csv(error))
        return None if row is None else self._judged(lines, row, lines.error)

    def _judged(self, lines: _Lines, row: list[str] | None, error: RowError | None) -> Row:
        values: Sequence[str] | None = None
        if row == [] and error is None:
            values = ()
        elif row is not None and error is None:
            try:
                values = self._wanted(row)
            except RowError as wrong:
                error = wrong
        return Row(lines.offset, lines.position - lines.offset, lines.first_line, values, error)

    def parse(self, raw: bytes) -> Sequence[str]:
        """Returns what the bytes of one row have in the wanted columns.

        Raises:
            RowError: If they are not one row.
        """
        text = decoded(raw)
        if '"' not in text:  # as csv.reader does, in a third of the time
            return self._wanted(text.rstrip("\r\n").split(self._delimiter))
        try:
            if len(raw) > csv.field_size_limit():
                with _FieldsUpTo(self._longest):
                    return self._wanted(next(self._reader([text])))
            return self._wanted(next(self._reader([text])))
        except (csv.Error, StopIteration) as error:
            raise _not_csv(error) from None

    def _wanted(self, row: list[str]) -> Sequence[str]:
        if len(row) != self._width:
            raise RowError("wrong number of columns", f"{len(row)} where the header has {self._width}")
        return [row[column] for column in self._columns]


def _not_csv(error: BaseException) -> RowError:
    return RowError("not CSV", str(error))


class _FieldsUpTo:
    """Lets fields be as long as rows may be; the limit is the csv module's own, and belongs to the whole process."""

    def __init__(self, longest: int) -> None:
        self._longest = longest

    def __enter__(self) -> None:
        self._before = csv.field_size_limit()
        csv.field_size_limit(max(self._longest, self._before))

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self._before)


def repeated(names: Sequence[str]) -> list[str]:
    """Returns the names that stand there more than once, each once."""
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def missing(needed: Sequence[str], found: Sequence[str]) -> list[str]:
    """Returns a fault for every column that is wanted and not there."""
    shown = seen(", ".join(found))
    return [f"no column is named {seen(column)}; found: {shown}" for column in needed if column not in found]


# ── JSONL ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@final
class JsonRows:
    """Rows of a JSONL file: one object per line.

    Args:
        needed: The keys that are wanted; one that a row lacks has the value `None`.
        longest: The longest row that is taken, in bytes.
    """

    def __init__(self, needed: Sequence[str], *, longest: int) -> None:
        self._needed, self._longest = tuple(needed), longest
        self._strict, self._quick = _decoders()

    def __getstate__(self) -> tuple[tuple[str, ...], int]:
        return self._needed, self._longest

    def __setstate__(self, state: tuple[tuple[str, ...], int]) -> None:
        self._needed, self._longest = state
        self._strict, self._quick = _decoders()

    def find(self, file: BinaryIO) -> Iterator[Block | Row]:
        """Yields all rows of the file, which is at its start, sound ones in blocks."""
        return _found(_Lines(file, self._longest), self._block, self._row)

    def _block(self, lines: _Lines) -> Block | None:
        """Takes the rows that follow, up to the first that is bad, blank or cut off."""
        raw, text = lines.ahead()
        rows: list[Sequence[Any]] = []
        with contextlib.suppress(RowError):  # the row is read again by itself, which says where it stands
            rows.extend(self._values(line, self._strict) for line in io.StringIO(text, newline="\n"))
        return lines.taken(raw, range(1, len(rows) + 1), list(zip(*rows, strict=True))) if rows else None

    def _row(self, lines: _Lines) -> Row | None:
        raw = lines.raw()
        if not raw:
            return None
        values, error = None, None
        try:
            if len(raw) > self._longest:
                lines.skip_line()
                raise RowError("row too long", f"more than {self._longest} bytes")
            values = self._values(decoded(raw), self._strict) if raw.strip() else ()
        except RowError as wrong:
            error = wrong
        return Row(lines.offset, lines.position - lines.offset, lines.first_line, values, error)

    def parse(self, raw: bytes) -> Sequence[Any]:
        """Returns what the bytes of one row have under the wanted keys.

        Raises:
            RowError: If they are not one JSON object.
        """
        return self._values(decoded(raw), self._quick)

    def _values(self, text: str, decoder: json.JSONDecoder) -> Sequence[Any]:
        try:
            row = decoder.decode(text)
        except RecursionError:
            raise RowError("not JSON", "nested deeper than can be read") from None
        except ValueError as error:
            if isinstance(error, RowError):
                raise
            raise RowError("not JSON", str(error)) from None
        if not isinstance(row, dict):
            raise RowError("not an object", f"found {type(row).__name__} {seen(row)}")
        return [row.get(key) for key in self._needed]


def _decoders() -> tuple[json.JSONDecoder, json.JSONDecoder]:
    """Returns one that looks at every key, for the first look at a file, and one for later."""
    return json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refused), json.JSONDecoder()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = repeated([key for key, _ in pairs])
        raise RowError("repeated key", seen(twice[0]))
    return found


def _refused(constant: str) -> float:
    raise RowError("not finite", f"JSON has no {constant}")
