"""What tables in files share: a look that takes many rows at a time, an index of what it found, rows by number."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig, TableConfig
from minerua.learning.rows import BadRows, RowError
from minerua.learning.sources.block import Block, Row
from minerua.learning.sources.fields import Fields
from minerua.learning.sources.index import Index, IndexFolder, IndexWriter, Stamp
from minerua.learning.sources.labels import Labels
from minerua.learning.sources.source import Scanned
from minerua.learning.splitting import content_hash, content_hashes, key_hash, key_hashes

FEW = 8
"""How many rows are looked at one by one where something is wrong with one of them."""


class FileTable(abc.ABC):
    """A file of rows with named columns.

    Args:
        path: The file.
        config: Its columns.
        labels: What targets are.
        dtype: What numbers become.
        indexes: Where its index is kept, and what else is laid out of it.

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
        self._opened: Any = None  # what rows are read from; each process has its own

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @abc.abstractmethod
    def _found(self, folder: Path) -> Iterator[Block | Row]:
        """Yields all rows in order; what it lays out for later goes into a folder."""

    @abc.abstractmethod
    def _line(self, line: int) -> str:
        """Returns where a row stands that a look has found, for messages."""

    @abc.abstractmethod
    def _open(self, index: Index) -> Any:
        """Returns what usable rows are read from."""

    @abc.abstractmethod
    def _values(self, offset: int, length: int) -> Sequence[Any]:
        """Returns what a row has in the needed columns; `_opened` is there."""

    def scan(self, bad: BadRows) -> Scanned:
        """Looks at every row, unless an index of this very file is kept."""
        settings = [self._config.model_dump(mode="json", exclude={"path"}), self._labels_config.model_dump(mode="json")]
        self._index = self._indexes.index(self._stamp, {"table": settings, "dtype": self._dtype}, self._look)
        return self._index.scanned(bad)

    def _look(self, writer: IndexWriter) -> None:
        taking = _Taking(Fields(self._config, self._dtype), Labels(self._labels_config), writer)
        for one in self._found(writer.folder):
            for row, error in taking.several(one) if isinstance(one, Block) else taking.single(one):
                writer.bad.add(self._line(row.line), error)
        writer.names = taking.labels.names

    def read(self, i: int) -> tuple[Any, Any]:
        """Returns inputs and target of usable row i."""
        if self._index is None:
            raise ConfigError(f"{self._stamp.name} has not been looked through; call scan first")
        if self._opened is None:
            self._opened = self._open(self._index)
        values = self._values(*self._index.place(i))
        return self._fields.inputs(values), self._labels.target(self._fields.label(values))

    @abc.abstractmethod
    def place(self, i: int) -> str:
        """Returns where usable row i stands, for messages."""


@final
class _Taking:
    """Takes usable rows into an index, and gives back the others with what is wrong with them.

    Nearly all rows are sound. So many are looked at together, and only where something may be wrong with one of them
    their halves, down to a few that are looked at one by one: what is found is the same.
    """

    def __init__(self, fields: Fields, labels: Labels, writer: IndexWriter) -> None:
        self.labels = labels
        self._fields, self._writer = fields, writer

    def several(self, block: Block) -> Iterator[tuple[Row, RowError]]:
        """Takes rows in order; yields the bad ones."""
        if self._at_once(block):
            return
        if len(block) <= FEW:
            for row in block.rows():
                yield from self.single(row)
        else:
            for half in block.halves():
                yield from self.several(half)

    def _at_once(self, block: Block) -> bool:
        """Takes rows if each of them is sound; otherwise none."""
        try:
            inputs = self._fields.check_several(block.columns)
            keys = self._fields.keys(block.columns)
            hashes = content_hashes(inputs) if keys is None else key_hashes(keys)
            codes = self.labels.check_several(self._fields.label(block.columns) or [None] * len(block))
        except RowError:
            return False
        self._writer.add_several(block.offsets, block.lengths, hashes, codes)
        return True

    def single(self, row: Row) -> Iterator[tuple[Row, RowError]]:
        """Takes a row, or yields it with what is wrong with it; a blank one is counted."""
        try:
            if row.error is not None:
                raise row.error
            if not row.values:
                self._writer.blank_lines += 1
                return
            inputs = self._fields.check(row.values)
            key = self._fields.key(row.values)
            code = self.labels.check(self._fields.label(row.values))
            hash = content_hash(inputs) if key is None else key_hash(key)
            self._writer.add(row.offset, row.length, hash, code)
        except RowError as error:
            yield row, error
