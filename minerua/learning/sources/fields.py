"""From the columns of a row to what a model is given: a vector of numbers, an array, a text, or several texts."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any, final

import numpy as np

from minerua.learning.data_config import TableConfig
from minerua.learning.rows import RowError, seen
from minerua.learning.sources.labels import to_floats
from minerua.learning.sources.source import check_inputs


@final
class Fields:
    """Reads the inputs of a table's rows.

    Args:
        config: Which columns, and what they hold.
        dtype: What numbers become: `"float32"`, `"float64"` or `"int64"`.
    """

    def __init__(self, config: TableConfig, dtype: str) -> None:
        self.columns = config.inputs or config.text
        self.rest = tuple(column for column in (config.label, config.key) if column is not None)
        self._text = bool(config.text)
        self._dtype = np.dtype(dtype)
        self._code = {"float32": "f", "float64": "d"}.get(dtype)
        self._label, self._key = config.label is not None, config.key is not None
        self._shape: tuple[int, ...] | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that are read, inputs first, then label and key."""
        return self.columns + self.rest

    def inputs(self, values: Sequence[Any]) -> Any:
        """Returns the inputs of a row.

        Args:
            values: What the row has in the columns `needed`, in that order.

        Raises:
            RowError: If one is missing, or not what it has to be.
        """
        own = values[: len(self.columns)]
        if self._text:
            texts = [self._one_text(value, column) for value, column in zip(own, self.columns, strict=True)]
            return texts[0] if len(texts) == 1 else dict(zip(self.columns, texts, strict=True))
        return self._numbers(own)

    def check(self, values: Sequence[Any]) -> Any:
        """Returns the inputs of a row after a look at their shape and at every number.

        Raises:
            RowError: As in `inputs`, or for another shape than the first row's, or for NaN and infinity.
        """
        inputs = self.inputs(values)
        if isinstance(inputs, np.ndarray):
            check_inputs(inputs, self._shape)
            self._shape = inputs.shape
        return inputs

    def check_several(self, columns: Sequence[Sequence[Any]]) -> Any:
        """Returns the inputs of rows after the look that `check` takes at each, all at once.

        Args:
            columns: For each column in `needed` what the n rows have there.

        Returns:
            An array whose first axis counts the rows, or a list of texts or mappings of texts; the same as `check`
            returns of each row.

        Raises:
            RowError: If a row may be bad, or needs to be looked at by itself; which one, and why, `check` says.
        """
        own = columns[: len(self.columns)]
        if self._text:
            return [self.inputs(values) for values in zip(*own, strict=True)]
        rows = self._several_numbers(own)
        if self._shape not in (None, rows.shape[1:]) or not np.isfinite(rows).all():
            raise RowError("not alike")
        self._shape = rows.shape[1:]
        return rows

    def _several_numbers(self, columns: Sequence[Sequence[Any]]) -> np.ndarray:
        read, wide = (int, np.int64) if self._code is None else (float, np.float64)
        values = list(chain.from_iterable(columns))
        kinds = set(map(type, values))
        if kinds == {str}:
            are_plain = "_" not in "".join(values)
        else:
            are_plain = kinds <= {int, float} and len(columns) > 1 and self._code is not None
        if not are_plain:
            raise RowError("not alike")
        try:
            wide_values = np.array(list(map(read, values)), wide)
        except (ValueError, OverflowError):
            raise RowError("not alike") from None
        rows = wide_values.reshape(len(columns), -1).T if len(columns) > 1 else wide_values
        with np.errstate(over="ignore"):  # becomes infinite, which is refused as such
            return np.ascontiguousarray(rows, self._dtype)

    def label(self, values: Sequence[Any]) -> Any:
        """Returns what stands in the label's column: of a row, or of all rows where columns are given."""
        return values[len(self.columns)] if self._label else None

    def key(self, values: Sequence[Any]) -> str | None:
        """Returns what stands in the key's column; `None` without one.

        Raises:
            RowError: If the row has no key.
        """
        return _key_text(values[len(self.columns) + self._label]) if self._key else None

    def keys(self, columns: Sequence[Sequence[Any]]) -> list[str] | None:
        """Returns what rows have in the key's column, as `key` does of one.

        Raises:
            RowError: If a row has no key.
        """
        if not self._key:
            return None
        column = columns[len(self.columns) + self._label]
        return list(column if set(map(type, column)) == {str} and all(column) else map(_key_text, column))

    def _one_text(self, value: Any, column: str) -> str:
        if value is None or value == "":
            raise RowError("missing input", f"column {seen(column)}")
        if not isinstance(value, str):
            raise RowError("not a text", f"column {seen(column)} holds {type(value).__name__} {seen(value)}")
        return value

    def _numbers(self, values: Sequence[Any]) -> np.ndarray:
        if len(values) == 1:
            return self._one(values[0], self.columns[0])
        if self._code is not None and _are_plain(values):
            with contextlib.suppress(ValueError, OverflowError):
                # array, because it rounds to float32 without a word where numpy warns; infinity is refused as such
                return np.frombuffer(array(self._code, map(float, values)), self._dtype)
        return self._slowly(values)  # which says in which column a fault is

    def _slowly(self, values: Sequence[Any]) -> np.ndarray:
        parts = [self._one(value, column) for value, column in zip(values, self.columns, strict=True)]
        for part, column in zip(parts, self.columns, strict=True):
            if part.ndim:
                raise RowError("not a number", f"column {seen(column)} holds a list beside other columns")
        return np.array(parts)

    def _one(self, value: Any, column: str) -> np.ndarray:
        if value is None or (isinstance(value, str) and not value.strip()):
            raise RowError("missing input", f"column {seen(column)}")
        if self._dtype.kind == "f":
            return to_floats(value, f"column {seen(column)}", self._dtype)
        return _whole(value, column)


def _key_text(value: Any) -> str:
    if value is None or value == "" or isinstance(value, list | dict):
        raise RowError("missing key", seen(value) if value else "")
    return str(value)


def _are_plain(values: Sequence[Any]) -> bool:
    """Whether values are numbers, or texts that Python reads as a table means them: 1_000 is no number."""
    kinds = set(map(type, values))
    return "_" not in "".join(values) if kinds == {str} else kinds <= {int, float}


def _whole(value: Any, column: str) -> np.ndarray:
    try:
        whole = np.asarray(int(value) if isinstance(value, str) and "_" not in value else value)
    except (ValueError, OverflowError, RecursionError):
        raise RowError("no whole number", f"column {seen(column)} {seen(value)}") from None
    if whole.dtype.kind not in "iub" or (whole.dtype.kind == "u" and (whole > np.iinfo(np.int64).max).any()):
        raise RowError("no whole number", f"column {seen(column)} {seen(value)}")
    return whole.astype(np.int64)
