"""CSV and JSONL as bytes: where each row begins and ends, and what one row's bytes say.

The rows are found by the same reader that later reads each of them, Python's own, so that quotes, and line ends within
quotes, mean the same in both. A row that cannot be read costs one line: what follows is read afresh.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol, final

from minerua.errors import ConfigError
from minerua.learning.rows import RowError, seen

BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_CHUNK = 1 << 16


class Row(NamedTuple):
    """A row as a look through a file finds it.

    Args:
        offset: Its first byte.
        length: Its bytes, line end included.
        line: Its first line, counted from 1.
        values: What it has in the wanted columns; `None` if it is bad, empty if it is blank.
        error: What is wrong with it.
    """

    offset: int
    length: int
    line: int
    values: Sequence[Any] | None
    error: RowError | None = None


class TextRows(Protocol):
    """How a text format has its rows."""

    def find(self, file: BinaryIO) -> Iterator[Row]:
        """Yields all rows of a file."""
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
            header = next(csv.reader(lines, delimiter=self._delimiter, strict=True), [])
        except (csv.Error, RowError) as error:
            raise ConfigError(f"the header of {name} cannot be read: {seen(str(error))}") from error
        if lines.error is not None:
            raise ConfigError(f"the header of {name} cannot be read: {lines.error}")
        if not header:
            raise ConfigError(
                f"{name} is empty, or begins with an empty line; a CSV file begins with its columns' names"
            )
        return header

    def find(self, file: BinaryIO) -> Iterator[Row]:
        """Yields all rows of the file, which is at its start; the header is none."""
        lines = _Lines(file, self._longest)
        with _FieldsUpTo(self._longest):
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            next(reader)
            while True:
                lines.begin()
                try:
                    row = next(reader, None)
                except (csv.Error, RowError) as error:
                    lines.skip_line()
                    reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
                    yield self._found(lines, None, error if isinstance(error, RowError) else _not_csv(error))
                    continue
                if row is None:
                    return
                yield self._found(lines, row, lines.error)

    def _found(self, lines: _Lines, row: list[str] | None, error: RowError | None) -> Row:
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
                    return self._wanted(next(csv.reader([text], delimiter=self._delimiter, strict=True)))
            return self._wanted(next(csv.reader([text], delimiter=self._delimiter, strict=True)))
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

    def find(self, file: BinaryIO) -> Iterator[Row]:
        """Yields all rows of the file, which is at its start."""
        lines = _Lines(file, self._longest)
        while True:
            lines.begin()
            raw = lines.raw()
            if not raw:
                return
            values, error = None, None
            try:
                if len(raw) > self._longest:
                    lines.skip_line()
                    raise RowError("row too long", f"more than {self._longest} bytes")
                values = self._values(raw, self._strict) if raw.strip() else ()
            except RowError as wrong:
                error = wrong
            yield Row(lines.offset, lines.position - lines.offset, lines.first_line, values, error)

    def parse(self, raw: bytes) -> Sequence[Any]:
        """Returns what the bytes of one row have under the wanted keys.

        Raises:
            RowError: If they are not one JSON object.
        """
        return self._values(raw, self._quick)

    def _values(self, raw: bytes, decoder: json.JSONDecoder) -> Sequence[Any]:
        try:
            row = decoder.decode(decoded(raw))
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
