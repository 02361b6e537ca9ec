"""Rows of CSV and JSONL files of any size: looked through once, then read in any order by their place in the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, final

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig, TableConfig
from minerua.learning.rows import BadRows, RowError
from minerua.learning.sources.fields import Fields
from minerua.learning.sources.index import Index, IndexFolder, IndexWriter, Stamp
from minerua.learning.sources.labels import Labels
from minerua.learning.sources.source import Scanned
from minerua.learning.sources.text_rows import CsvRows, JsonRows, Row, TextRows
from minerua.learning.splitting import content_hash, key_hash

FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}


def format_of(path: Path, config: TableConfig) -> str:
    """Returns `csv`, `jsonl` or `parquet`.

    Raises:
        ConfigError: If neither the config nor the file's name says which.
    """
    found = config.format or FORMATS.get(path.suffix.lower())
    if found is None:
        raise ConfigError(f"{path}: the name does not say what the file holds; set format to csv, jsonl or parquet")
    return found


@final
class TextTable:
    """A CSV or JSONL file.

    Args:
        path: The file.
        config: Its columns.
        labels: What targets are.
        dtype: What numbers become.
        indexes: Where its index is kept.

    Raises:
        ConfigError: If it cannot be read, or lacks columns.
    """

    def __init__(
        self, path: Path, config: TableConfig, labels: LabelsConfig, *, dtype: str, indexes: IndexFolder
    ) -> None:
        self._stamp = Stamp(path, path.name)
        self._config, self._labels_config, self._dtype = config, labels, dtype
        self._fields, self._labels = Fields(config, dtype), Labels(labels)
        self._indexes = indexes
        self._index: Index | None = None
        self._file: _File | None = None
        self._rows = self._opened()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _opened(self) -> TextRows:
        needed, longest = self._fields.needed, self._config.longest_row_bytes
        if format_of(self._stamp.path, self._config) == "jsonl":
            return JsonRows(needed, longest=longest)
        delimiter = "\t" if self._stamp.path.suffix.lower() == ".tsv" else self._config.delimiter
        try:
            with open(self._stamp.path, "rb") as file:
                return CsvRows(file, self._stamp.name, needed, delimiter=delimiter, longest=longest)
        except OSError as error:
            raise ConfigError(f"cannot read {self._stamp.name}: {error.strerror or error}") from error

    def scan(self, bad: BadRows) -> Scanned:
        """Looks at every row, unless an index of this very file is kept."""
        settings = [self._config.model_dump(mode="json", exclude={"path"}), self._labels_config.model_dump(mode="json")]
        self._index = self._indexes.index(self._stamp, {"table": settings, "dtype": self._dtype}, self._look)
        return self._index.scanned(bad)

    def _look(self, writer: IndexWriter) -> None:
        fields, labels = Fields(self._config, self._dtype), Labels(self._labels_config)
        with open(self._stamp.path, "rb") as file:
            for row in self._rows.find(file):
                self._take(row, fields, labels, writer)
        writer.names = labels.names

    def _take(self, row: Row, fields: Fields, labels: Labels, writer: IndexWriter) -> None:
        try:
            if row.error is not None:
                raise row.error
            if not row.values:
                writer.blank_lines += 1
                return
            inputs = fields.check(row.values)
            key = fields.key(row.values)
            code = labels.check(fields.label(row.values))
            writer.add(row.offset, row.length, content_hash(inputs) if key is None else key_hash(key), code)
        except RowError as error:
            writer.bad.add(f"{self._stamp.name}:{row.line}", error)

    def read(self, i: int) -> tuple[Any, Any]:
        """Returns inputs and target of usable row i."""
        if self._index is None:
            raise ConfigError(f"{self._stamp.name} has not been looked through; call scan first")
        if self._file is None:
            self._file = _File(self._stamp)
        values = self._rows.parse(self._file.read(*self._index.place(i)))
        return self._fields.inputs(values), self._labels.target(self._fields.label(values))

    def place(self, i: int) -> str:
        """Returns the file and the first byte of usable row i."""
        return self._stamp.name if self._index is None else f"{self._stamp.name}, byte {self._index.place(i)[0]}"


@final
class _File:
    """An open file that is read at given places; a fork may share it, for no position moves."""

    def __init__(self, stamp: Stamp) -> None:
        stamp.check()
        self._stamp = stamp
        self._number = os.open(stamp.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def read(self, offset: int, length: int) -> bytes:
        raw = os.pread(self._number, length, offset)
        if len(raw) < length:
            self._stamp.check()
            raise ConfigError(f"{self._stamp.name} ends within the row at byte {offset}")
        return raw

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)
