"""Datasets that Python makes: anything with `len(d)` and `d[i]`, such as a map-style `torch.utils.data.Dataset`.

What they return is left as it is; minerua looks through it, and deals its rows out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from minerua.errors import ConfigError
from minerua.learning.data_config import LabelsConfig
from minerua.learning.rows import BadRows, RowError, seen
from minerua.learning.sources.source import Hashes, Scanned, check_inputs
from minerua.learning.splitting import content_hash, key_hash

TARGETS = ("target", "targets", "labels", "label")
"""Keys under which a row that is a mapping may hold its target."""


@final
class ObjectRows:
    """The rows of a dataset.

    Args:
        dataset: `len(dataset)` and `dataset[i]`; may have `key(i)`, a text that names the row for ever.
        name: What it is called in messages.
        labels: Which classes or numbers may stand as targets; nothing else of it applies.
        check: Whether every row is read; without it a dataset must have `key`.

    Raises:
        ConfigError: If it cannot be read by number.
    """

    def __init__(self, dataset: Any, name: str, labels: LabelsConfig, *, check: bool) -> None:
        self.dataset, self.name, self._labels = dataset, name, labels
        self._key = getattr(dataset, "key", None)
        self._check = check
        self._good: np.ndarray | None = None
        self._shape: tuple[int, ...] | None = None
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")) or isinstance(dataset, str | Mapping):
            raise ConfigError(
                f"{name} is a {type(dataset).__name__} without rows that have numbers (len(d) and d[i]); an iterable "
                "dataset can neither be shuffled exactly nor resumed in the middle: write its rows to a JSONL file, "
                "or give list(dataset) if they fit into memory"
            )
        if not check and self._key is None:
            raise ConfigError(f"check: false needs a dataset with key(i); {name} has none, so its rows must be read")

    def scan(self, bad: BadRows) -> Scanned:
        """Reads every row, unless that was asked not to be done."""
        self._refuse_drawn()
        found, self._shape = Hashes(), None
        good = [i for i in range(len(self.dataset)) if self._is_usable(i, found, bad)]
        self._good = np.array(good, np.int64)
        return found.scanned(self._labels.classes or (), checked=self._check)

    def _is_usable(self, i: int, found: Hashes, bad: BadRows) -> bool:
        try:
            inputs = self._checked(self._row(i)) if self._check else None
            found.add(content_hash(inputs) if self._key is None else key_hash(str(self._key(i))), None)
        except RowError as error:
            bad.add(self.place(i), error)
            return False
        return True

    def _refuse_drawn(self) -> None:
        """Refuses rows without a key whose content is random: they would change their split with every look."""
        if self._key is not None or not len(self.dataset):
            return
        try:
            first, second = content_hash(_inputs(self._row(0))), content_hash(_inputs(self._row(0)))
        except RowError:
            return  # it is counted with the others
        if first != second:
            raise ConfigError(
                f"{self.name}[0] is another row each time it is read, so that no split of it would last: give the "
                "dataset a key(i), and draw in example(i, generator)"
            )

    def _row(self, i: int) -> Any:
        try:
            return self.dataset[i]
        except Exception as error:  # a stranger's code may raise anything; it is a bad row
            raise RowError("cannot be read", f"{type(error).__name__}: {seen(str(error))}") from error

    def _checked(self, row: Any) -> Any:
        """Returns a row's inputs after a look at them and at the target."""
        inputs = _inputs(row)
        for value in inputs.values() if isinstance(inputs, Mapping) else (inputs,):
            array = _as_array(value)
            if array is not None:
                alone = not isinstance(inputs, Mapping)
                check_inputs(array, self._shape if alone else None)
                self._shape = array.shape if alone else None
        self._check_target(_target(row))
        return inputs

    def _check_target(self, target: Any) -> None:
        array = _as_array(target)
        if array is None and isinstance(target, int | float):
            array = np.asarray(target)
        if array is None or array.dtype.kind not in "iuf":
            return
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RowError("not finite", f"target {seen(target)}")
        low, high = self._limits()
        if (array < low).any() or (array > high).any():
            raise RowError("out of range", f"target {seen(target)} is not in [{low:g}, {high:g}]")

    def _limits(self) -> tuple[float, float]:
        if self._labels.classes is not None:
            return 0, len(self._labels.classes) - 1
        low, high = self._labels.fewest, self._labels.most
        return -np.inf if low is None else low, np.inf if high is None else high

    def number(self, i: int) -> int:
        """Returns the number in the dataset of usable row i."""
        return i if self._good is None else int(self._good[i])

    def read(self, i: int) -> Any:
        """Returns usable row i as the dataset has it."""
        return self.dataset[self.number(i)]

    def place(self, i: int) -> str:
        """Returns what row i is called in messages."""
        return f"{self.name}[{i}]"


def _as_array(value: Any) -> np.ndarray | None:
    """Returns an array or a tensor as an array; `None` for everything else."""
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a torch tensor; torch itself is not needed to ask
        tensor = value.detach().cpu()
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())
    return value if isinstance(value, np.ndarray) else None


def _inputs(row: Any) -> Any:
    if isinstance(row, tuple | list) and len(row) == 2:
        return row[0]
    if isinstance(row, Mapping) and any(key in row for key in TARGETS):
        return {key: value for key, value in row.items() if key not in TARGETS}
    found = f"{type(row).__name__} of {len(row)}" if isinstance(row, tuple | list | Mapping) else type(row).__name__
    raise RowError(
        "not a pair", f"a row is (inputs, target), or a mapping with one of {', '.join(TARGETS)}; found {found}"
    )


def _target(row: Any) -> Any:
    if isinstance(row, Mapping):
        return next(row[key] for key in TARGETS if key in row)
    return row[1]
