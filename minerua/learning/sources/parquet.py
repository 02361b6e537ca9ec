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

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig, TableConfig
from minerua.learning.rows import BadRows, RowError, seen
from minerua.learning.sources.fields import Fields
from minerua.learning.sources.index import Index, IndexFolder, IndexWriter, Stamp
from minerua.learning.sources.labels import Labels
from minerua.learning.sources.source import Scanned
from minerua.learning.sources.text_rows import missing, repeated
from minerua.learning.splitting import content_hash, key_hash

BATCH_ROWS = 4096
"""How many rows are laid out at a time."""

_ROWS = "rows.arrow"
_STARTS = "starts.json"


@final
class ParquetTable:
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
        self._stamp = Stamp(path, path.name)
        self._config, self._labels_config, self._dtype = config, labels, dtype
        self._fields, self._labels = Fields(config, dtype), Labels(labels)
        self._indexes = indexes
        self._index: Index | None = None
        self._batches: _Batches | None = None
        names = _opened(self._stamp).schema_arrow.names
        faults = [f"the column {seen(name)} stands there {names.count(name)} times" for name in repeated(names)]
        faults += missing(self._fields.needed, names)
        if faults:
            raise ConfigError(f"{self._stamp.name} has not the columns that it needs", faults)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": None}

    def scan(self, bad: BadRows) -> Scanned:
        """Looks at every row, unless an index of this very file is kept."""
        settings = [self._config.model_dump(mode="json", exclude={"path"}), self._labels_config.model_dump(mode="json")]
        self._index = self._indexes.index(self._stamp, {"parquet": settings, "dtype": self._dtype}, self._look)
        return self._index.scanned(bad)

    def _look(self, writer: IndexWriter) -> None:
        fields, labels = Fields(self._config, self._dtype), Labels(self._labels_config)
        number, starts = 0, []
        for batch in _laid_out(self._stamp, fields.needed, writer.folder / _ROWS):
            starts.append(number)
            for values in _values(batch, fields.needed):
                self._take(number, values, fields, labels, writer)
                number += 1
        writer.names = labels.names
        (writer.folder / _STARTS).write_text(json.dumps(starts), encoding="utf-8")

    def _take(self, number: int, values: Sequence[Any], fields: Fields, labels: Labels, writer: IndexWriter) -> None:
        try:
            inputs = fields.check(values)
            key = fields.key(values)
            code = labels.check(fields.label(values))
            writer.add(number, 0, content_hash(inputs) if key is None else key_hash(key), code)
        except RowError as error:
            writer.bad.add(f"{self._stamp.name}, row {number + 1}", error)

    def read(self, i: int) -> tuple[Any, Any]:
        """Returns inputs and target of usable row i."""
        if self._index is None:
            raise ConfigError(f"{self._stamp.name} has not been looked through; call scan first")
        if self._batches is None:
            self._batches = _Batches(self._index.folder)
        values = self._batches.row(self._index.place(i)[0], self._fields.needed)
        return self._fields.inputs(values), self._labels.target(self._fields.label(values))

    def place(self, i: int) -> str:
        """Returns the file and the number of usable row i, counted from 1."""
        return self._stamp.name if self._index is None else f"{self._stamp.name}, row {self._index.place(i)[0] + 1}"


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


def _values(batch: Any, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    """Yields the rows of a batch."""
    return zip(*(batch.column(column).to_pylist() for column in columns), strict=True)


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
