"""Rows of Parquet files: read once by row groups, laid out as an Arrow file, and read from its map in any order.

A row group is compressed as a whole, so that a row in the middle costs all of it; a shuffled order would read every
group thousands of times. The columns that are needed are therefore written once, uncompressed, beside the index.
"""

from __future__ import annotations

import bisect
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig, TableConfig
from minerua.learning.rows import seen
from minerua.learning.sources.block import Block
from minerua.learning.sources.file_table import FileTable
from minerua.learning.sources.index import Index, IndexFolder, Stamp
from minerua.learning.sources.text_rows import missing, repeated

BATCH_ROWS = 4096
"""How many rows are laid out at a time."""

_ROWS = "rows.arrow"
_STARTS = "starts.json"


@final
class ParquetTable(FileTable):
    """A Parquet file.

    Args:
        path: The file.
        config: Its columns.
        labels: What targets are.
        dtype: What numbers become.
        indexes: Where its index and its needed columns are kept.

    Raises:
        ConfigError: If pyarrow is missing, the file cannot be read, or it lacks columns.
    """

    def __init__(
        self, path: Path, config: TableConfig, labels: LabelsConfig, *, dtype: str, indexes: IndexFolder
    ) -> None:
        super().__init__(path, config, labels, dtype=dtype, indexes=indexes)
        names = _opened(self._stamp).schema_arrow.names
        faults = [f"the column {seen(name)} stands there {names.count(name)} times" for name in repeated(names)]
        faults += missing(self._fields.needed, names)
        if faults:
            raise ConfigError(f"{self._stamp.name} has not the columns that it needs", faults)

    def _found(self, folder: Path) -> Iterator[Block]:
        starts = [0]
        for batch in _laid_out(self._stamp, self._fields.needed, folder / _ROWS):
            numbers = np.arange(starts[-1], starts[-1] + batch.num_rows)
            starts.append(starts[-1] + batch.num_rows)
            if batch.num_rows:
                columns = [batch.column(column).to_pylist() for column in self._fields.needed]
                yield Block(numbers, np.zeros_like(numbers), numbers + 1, columns)
        (folder / _STARTS).write_text(json.dumps(starts[:-1]), encoding="utf-8")

    def _line(self, line: int) -> str:
        return f"{self._stamp.name}, row {line}"

    def _open(self, index: Index) -> _Batches:
        return _Batches(index.folder)

    def _values(self, offset: int, length: int) -> Sequence[Any]:
        return self._opened.row(offset, self._fields.needed)

    def place(self, i: int) -> str:
        """Returns the file and the number of usable row i, counted from 1."""
        return self._stamp.name if self._index is None else self._line(self._index.place(i)[0] + 1)


def _arrow(module: str) -> Any:
    return importlib.import_module(module)  # pyarrow has no types


def _opened(stamp: Stamp) -> Any:
    try:
        pyarrow, parquet = _arrow("pyarrow"), _arrow("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{stamp.name} is a Parquet file, which needs pyarrow: pip install pyarrow, or write the rows as JSONL"
        ) from error
    try:
        return parquet.ParquetFile(stamp.path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{stamp.name} cannot be read as Parquet: {seen(str(error))}") from error


def _laid_out(stamp: Stamp, columns: Sequence[str], path: Path) -> Iterator[Any]:
    """Yields the file's rows in batches, each after it was written to `path`."""
    pyarrow, names = _arrow("pyarrow"), list(dict.fromkeys(columns))
    try:
        with _opened(stamp) as file:
            schema = pyarrow.schema([file.schema_arrow.field(name) for name in names])
            with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_file(out, schema) as writer:
                for batch in file.iter_batches(BATCH_ROWS, columns=names):
                    writer.write_batch(batch.select(names))
                    yield batch
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{stamp.name} is damaged: {seen(str(error))}") from error


@final
class _Batches:
    """The laid-out columns, mapped."""

    def __init__(self, folder: Path) -> None:
        pyarrow = _arrow("pyarrow")
        self._file = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / _ROWS)))
        self._starts: list[int] = json.loads((folder / _STARTS).read_text(encoding="utf-8"))
        self._kept: dict[int, Any] = {}

    def row(self, number: int, columns: Sequence[str]) -> Sequence[Any]:
        """Returns what a row has in some columns."""
        k = bisect.bisect_right(self._starts, number) - 1
        if k not in self._kept:
            self._kept[k] = self._file.get_batch(k)  # views of the map: what is kept is a few hundred bytes
        batch, position = self._kept[k], number - self._starts[k]
        return [batch.column(column)[position].as_py() for column in columns]
