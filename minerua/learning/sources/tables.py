"""Rows of CSV and JSONL files of any size: looked through once, then read in any order by their place in the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig, TableConfig
from minerua.learning.sources.block import Block, Row
from minerua.learning.sources.file_table import FileTable
from minerua.learning.sources.index import Index, IndexFolder, Stamp
from minerua.learning.sources.text_rows import CsvRows, JsonRows, TextRows

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
class TextTable(FileTable):
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
        super().__init__(path, config, labels, dtype=dtype, indexes=indexes)
        self._rows = self._format()

    def _format(self) -> TextRows:
        needed, longest = self._fields.needed, self._config.longest_row_bytes
        if format_of(self._stamp.path, self._config) == "jsonl":
            return JsonRows(needed, longest=longest)
        delimiter = "\t" if self._stamp.path.suffix.lower() == ".tsv" else self._config.delimiter
        try:
            with open(self._stamp.path, "rb") as file:
                return CsvRows(file, self._stamp.name, needed, delimiter=delimiter, longest=longest)
        except OSError as error:
            raise ConfigError(f"cannot read {self._stamp.name}: {error.strerror or error}") from error

    def _found(self, folder: Path) -> Iterator[Block | Row]:
        with open(self._stamp.path, "rb") as file:
            yield from self._rows.find(file)

    def _line(self, line: int) -> str:
        return f"{self._stamp.name}:{line}"

    def _open(self, index: Index) -> _File:
        return _File(self._stamp)

    def _values(self, offset: int, length: int) -> Sequence[Any]:
        return self._rows.parse(self._opened.read(offset, length))

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
