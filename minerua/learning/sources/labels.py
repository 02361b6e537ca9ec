"""Targets: labels become class numbers, numbers stay within their range, and what is neither is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, final

import numpy as np

from minerua.learning.data_config import LabelsConfig
from minerua.learning.rows import RowError, seen

Kind = Literal["class", "number", "text", "inputs"]

MOST_FOUND = 100_000
"""How many different labels are taken for classes; more of them are rather numbers or texts."""


@final
class Labels:
    """Reads targets, and numbers the labels of classes as they occur.

    Args:
        config: What targets are.
        kind: Where the config leaves it open.
    """

    def __init__(self, config: LabelsConfig, kind: Kind = "class") -> None:
        limits = config.fewest is not None or config.most is not None
        said: Kind = "class" if config.classes is not None else "number" if limits else kind
        self.kind: Kind = config.kind or said
        self._declared = config.classes is not None
        self._codes = {label: code for code, label in enumerate(config.classes or ())}
        self._fewest = -np.inf if config.fewest is None else config.fewest
        self._most = np.inf if config.most is None else config.most
        self._shape: tuple[int, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The labels by code."""
        return tuple(self._codes)

    def check(self, raw: Any) -> int | None:
        """Returns the code of a label, or `None` where targets are no classes.

        Raises:
            RowError: If it is missing, or not what it has to be.
        """
        if self.kind == "inputs":
            return None
        if self.kind == "class":
            return self._code(label_text(raw))
        value = self.target(raw)
        if isinstance(value, np.ndarray):
            if self._shape is not None and value.shape != self._shape:
                raise RowError("target's shape", f"{list(value.shape)}, the first row's is {list(self._shape)}")
            self._shape = value.shape
        return None

    def check_several(self, raw: Sequence[Any]) -> np.ndarray | None:
        """Returns the codes of labels, shape (n,), int32, or `None` where targets are no classes.

        The same as `check` of each in turn; where it raises, no label has been numbered.

        Raises:
            RowError: If one may be bad; which one, and why, `check` says.
        """
        if self.kind == "inputs":
            return None
        if self.kind == "class":
            return self._several_codes([label if type(label) is str else label_text(label) for label in raw])
        if self.kind == "text" or not self._several_numbers(raw):
            for one in raw:
                self.check(one)
        return None

    def _several_codes(self, labels: Sequence[str]) -> np.ndarray:
        new = [label for label in dict.fromkeys(labels) if label not in self._codes]
        if new and (self._declared or len(self._codes) + len(new) > MOST_FOUND or not all(map(str.strip, new))):
            raise RowError("not alike")
        self._codes.update(zip(new, range(len(self._codes), len(self._codes) + len(new)), strict=True))
        return np.array(list(map(self._codes.__getitem__, labels)), np.int32)

    def _several_numbers(self, raw: Sequence[Any]) -> bool:
        """Whether texts are numbers that stand where they have to; the others are looked at one by one."""
        if self._shape not in (None, ()) or set(map(type, raw)) != {str} or "_" in "".join(raw):
            return False
        try:
            values = _cast(np.array(list(map(float, raw))), np.float32)
        except (ValueError, OverflowError):
            return False
        sound = np.isfinite(values) & (values >= self._fewest) & (values <= self._most)
        if sound.all():
            self._shape = ()
        return bool(sound.all())

    def target(self, raw: Any) -> Any:
        """Returns a number (float32, any shape) or a text; classes are known by their codes alone.

        Raises:
            RowError: As in `check`.
        """
        if self.kind in ("inputs", "class"):
            return None
        if raw is None or (isinstance(raw, str) and not raw.strip()):
            raise RowError("missing label")
        return self._number(raw) if self.kind == "number" else _text(raw)

    def _code(self, label: str) -> int:
        code = self._codes.get(label)
        if code is not None:
            return code
        if self._declared:
            raise RowError("unknown class", f"{seen(label)} is none of the {len(self._codes)} declared classes")
        if len(self._codes) >= MOST_FOUND:
            raise RowError("too many classes", f"{seen(label)} is label number {MOST_FOUND + 1}; is labels.kind right?")
        return self._codes.setdefault(label, len(self._codes))

    def _number(self, raw: Any) -> np.ndarray:
        value = to_floats(raw, "target")
        if not np.isfinite(value).all():
            raise RowError("not finite", f"target {seen(raw)}")
        if (value < self._fewest).any() or (value > self._most).any():
            raise RowError("out of range", f"target {seen(raw)} is not in [{self._fewest:g}, {self._most:g}]")
        return value


def label_text(raw: Any) -> str:
    """Returns the text by which a class is known: 1, 1.0 and "1" are one class.

    Raises:
        RowError: If the label is missing, a fraction, or no single value.

    Example:
        >>> label_text(np.int64(3)), label_text("cat"), label_text(True)
        ('3', 'cat', 'true')
    """
    if isinstance(raw, str):
        if not raw.strip():
            raise RowError("missing label")
        return raw
    if isinstance(raw, bool | np.bool_):
        return str(bool(raw)).lower()
    if isinstance(raw, int | np.integer):
        return str(int(raw)) if abs(int(raw)) < 2**63 else _no_class(raw)
    if raw is None or (isinstance(raw, float | np.floating) and np.isnan(raw)):
        raise RowError("missing label")
    if isinstance(raw, float | np.floating) and float(raw).is_integer():
        return str(int(raw))
    return _no_class(raw)


def _no_class(raw: Any) -> str:
    raise RowError("no class", f"{type(raw).__name__} {seen(raw)} does not name a class; set labels.kind")


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the labels that were found, sorted: as numbers if all of them are whole numbers, else as texts.

    Example:
        >>> in_order(["10", "9"]), in_order(["b", "10", "a"])
        (('9', '10'), ('10', 'a', 'b'))
    """
    found = set(names)
    whole = all(_is_whole(label) for label in found)
    return tuple(sorted(found, key=(lambda label: (int(label), label)) if whole else None))


def _is_whole(label: str) -> bool:
    return len(label) <= 19 and label.removeprefix("-").isdecimal() and label.isascii()


def to_floats(raw: Any, what: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
    """Returns a number, a text that is one, or lists of numbers, as floats.

    Raises:
        RowError: If it is none of these, or ragged.
    """
    try:
        if isinstance(raw, str):
            if "_" in raw:  # Python reads 1_000 as a number, which no table means
                raise ValueError(raw)
            return _cast(np.array(float(raw)), dtype)
        value = np.asarray(raw)
    except (ValueError, OverflowError, RecursionError):
        raise RowError("not a number", f"{what} {seen(raw)}") from None
    if value.dtype.kind not in "iufb" and value.dtype.name != "bfloat16":
        raise RowError("not a number", f"{what} {seen(raw)}")
    return _cast(value, dtype)


def _cast(value: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which is refused as such
        return value.astype(dtype)


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise RowError("not a text", f"target {type(raw).__name__} {seen(raw)}")
    return raw


def remapped(codes: np.ndarray, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Returns the class numbers of rows whose codes count the labels in another order.

    Args:
        codes: Shape (n,): positions in `names`.
        names: The labels by code.
        classes: The labels by class number; holds every label that a code stands for.

    Returns:
        Shape (n,), int32.
    """
    numbers = {label: number for number, label in enumerate(classes)}
    table = np.array([numbers[name] for name in names], np.int32)
    return table[codes] if len(names) else np.empty(0, np.int32)
