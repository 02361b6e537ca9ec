"""Ports: what may stand at an input or an output, how it is written, and whether a value fits.

A port has a Python type, or a `TensorSpec` for arrays. Both are written as one word or two: `text`, `number`,
`float32[batch, 64]`. The same name of an extent means the same count in all inputs and outputs of one call.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from minerua.chain.graph import PortType
from minerua.errors import ChainError, unknown
from minerua.values import TensorSpec

WORDS: Mapping[str, type] = {
    "text": str,
    "integer": int,
    "number": float,
    "flag": bool,
    "path": Path,
    "bytes": bytes,
    "list": list,
    "mapping": dict,
    "array": np.ndarray,
    "object": object,
}
"""How files and messages call the Python types of ports; `array` is one of any dtype and shape."""

_NAMES = {kind: word for word, kind in WORDS.items()}
_TENSOR = re.compile(r"\s*(\w+)\s*\[([^\[\]]*)\]\s*")
_ACCEPTED: Mapping[type, tuple[type, ...]] = {
    float: (float, int, np.floating, np.integer),
    int: (int, np.integer),
    bool: (bool, np.bool_),
    Path: (Path,),
}
"""What counts as a value of a type, where that is more than `isinstance` says: numpy's scalars, whole numbers."""


# ── writing and reading ──────────────────────────────────────────────────────────────────────────────────────────────


def described(port: PortType) -> str:
    """Returns a port as files and messages write it.

    Example:
        >>> described(str), described(TensorSpec("x", ("batch", 64), "float32"))
        ('text', 'float32[batch, 64]')
    """
    if isinstance(port, TensorSpec):
        return f"{port.dtype}[{', '.join(map(str, port.shape))}]"
    if port in _NAMES:
        return _NAMES[port]
    return port.__qualname__ if port.__module__ == "builtins" else f"{port.__module__}.{port.__qualname__}"


def parse_port(text: str, name: str = "") -> PortType:
    """Reads a port from the form that `described` writes.

    Args:
        text: One of `WORDS`, or a dtype with extents, such as `"float32[batch, 64]"`.
        name: What an array's `TensorSpec` is called.

    Raises:
        ChainError: If it is neither.

    Example:
        >>> parse_port("int64[batch]", "tokens")
        TensorSpec(name='tokens', shape=('batch',), dtype='int64')
    """
    word = text.strip()
    if word in WORDS:
        return WORDS[word]
    match = _TENSOR.fullmatch(text)
    if match is None:
        raise ChainError(f"{unknown('port type', text[:80], tuple(WORDS))}, and arrays such as float32[batch, 64]")
    if dtype_of(match[1]) is None:
        raise ChainError(f"{match[1]!r} in {text[:80]!r} is no dtype of numpy; write float32, int64, bool and so on")
    extents = [extent.strip() for extent in match[2].split(",")] if match[2].strip() else []
    wrong = [extent for extent in extents if not re.fullmatch(r"[0-9]{1,18}|[^\W\d]\w*", extent, re.ASCII)]
    if wrong:
        raise ChainError(f"the extent {wrong[0]!r} in {text[:80]!r} is neither a count nor a name such as batch")
    return TensorSpec(name, tuple(int(extent) if extent.isdigit() else extent for extent in extents), match[1])


def dtype_of(name: str) -> np.dtype[Any] | None:
    """Returns the dtype that a name stands for, those of `ml_dtypes` included; `None` if it is no dtype's name."""
    import ml_dtypes  # its types are known to numpy by name once it is imported

    try:
        return np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return np.dtype(getattr(ml_dtypes, name)) if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2") else None


# ── does an output fit an input ──────────────────────────────────────────────────────────────────────────────────────


def type_fits(source: PortType, target: PortType) -> bool:
    """Tells whether what has the one type may go where the other is wanted; extents are not compared.

    A subclass fits its parents, everything fits `object`, whole numbers and flags fit `float`. An array fits another of
    the same dtype and as many axes; an array of any dtype fits all arrays until it is seen.
    """
    if isinstance(source, TensorSpec) and isinstance(target, TensorSpec):
        return dtype_of(source.dtype) == dtype_of(target.dtype) and len(source.shape) == len(target.shape)
    given = np.ndarray if isinstance(source, TensorSpec) else source
    wanted = np.ndarray if isinstance(target, TensorSpec) else target
    return issubclass(given, wanted) or (wanted is float and issubclass(given, int))


# ── does a value fit a port ──────────────────────────────────────────────────────────────────────────────────────────


def found(value: object) -> str:
    """Returns what a value is, in the words of ports: `float32[8, 64]` for an array, else its type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name}[{', '.join(map(str, value.shape))}]"
    return described(type(value))


def value_faults(
    port_types: Mapping[str, PortType],
    values: Any,
    *,
    where: str,
    optional: Container[str] = (),
    extents: dict[str, int] | None = None,
) -> list[str]:
    """Returns everything that is wrong with values at their ports, one sentence each.

    Args:
        port_types: Name → what is wanted there.
        values: Name → what is there; anything else than a mapping is a fault.
        where: What the names belong to, for the messages: `"an input of the chain 'look'"`.
        optional: Names that may be missing.
        extents: Name of an extent → its count, as far as it is known; what the arrays say is added.

    Example:
        >>> value_faults({"size": int}, {"size": "7"}, where="an input of resize")
        ["'size', an input of resize, must be integer, found text '7'"]
    """
    if not isinstance(values, Mapping):
        return [f"a mapping from names to values is wanted as {where}, found {found(values)}"]
    extents = {} if extents is None else extents
    faults: list[str] = []
    for name, port in port_types.items():
        if name in values:
            faults += [f"{name!r}, {where}, {fault}" for fault in _fault(port, values[name], extents)]
        elif name not in optional:
            faults.append(f"{name!r}, {where}, is missing; {described(port)} is wanted there")
    strangers = [name for name in values if name not in port_types]
    return faults + [f"{unknown('port', str(name), tuple(port_types))} ({where})" for name in strangers]


def _fault(port: PortType, value: object, extents: dict[str, int]) -> list[str]:
    if not isinstance(port, TensorSpec):
        return [] if isinstance(value, _ACCEPTED.get(port, port)) else [_sentence(port, value)]
    dtype = dtype_of(port.dtype)
    if not isinstance(value, np.ndarray) or value.ndim != len(port.shape) or not _same_dtype(value.dtype, dtype):
        return [_sentence(port, value)]
    faults = []
    for axis, (extent, count) in enumerate(zip(port.shape, value.shape, strict=True)):
        wanted = extents.setdefault(extent, count) if isinstance(extent, str) else extent
        if wanted != count:
            why = f", where {extent} is {wanted}" if isinstance(extent, str) else ""
            faults.append(f"{_sentence(port, value)}: axis {axis} has {count} instead of {wanted}{why}")
    return faults


def _sentence(port: PortType, value: object) -> str:
    shown = "" if isinstance(value, np.ndarray) else f" {short(value)}"
    return f"must be {described(port)}, found {found(value)}{shown}"


def short(value: object, *, longest: int = 60) -> str:
    """Returns a value's text cut to some length; never raises, whatever the value does."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a value whose text raises must not hide what is wrong with it
        text = f"(its text raises {type(error).__name__})"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _same_dtype(found: np.dtype[Any], wanted: np.dtype[Any] | None) -> bool:
    """Tells whether dtypes are equal; texts of all lengths count as one."""
    return wanted is not None and (found == wanted or (wanted.itemsize == 0 and found.kind == wanted.kind))


# ── the fast form ────────────────────────────────────────────────────────────────────────────────────────────────────


@final
class PortCheck:
    """Checks the inputs and outputs of one skill's calls; made once, then quick, and safe in many threads.

    Args:
        inputs: Input name → what is wanted there.
        outputs: The same.
        optional: Inputs that a call can do without.

    Example:
        >>> image = TensorSpec("image", ("batch", 64), "float32")
        >>> check = PortCheck({"image": image}, {"label": TensorSpec("label", ("batch",), "int64")})
        >>> extents = {}
        >>> check.inputs({"image": np.zeros((8, 64), np.float32)}, extents), extents
        ((), {'batch': 8})
        >>> check.outputs({"label": np.zeros(7, np.int64)}, extents)
        ("'label', an output, must be int64[batch], found int64[7]: axis 0 has 7 instead of 8, where batch is 8",)
    """

    def __init__(
        self, inputs: Mapping[str, PortType], outputs: Mapping[str, PortType], optional: tuple[str, ...] = ()
    ) -> None:
        self._types = (dict(inputs), dict(outputs))
        self._optional = frozenset(optional)
        self._fast = (_Fast(inputs), _Fast(outputs))

    def inputs(self, values: Mapping[str, Any], extents: dict[str, int] | None = None) -> tuple[str, ...]:
        """Returns what is wrong with the inputs of a call; empty when all is well.

        Args:
            values: Input name → value.
            extents: Gets the counts of named extents; hand it on to `outputs`, so that both agree.
        """
        counted = self._fast[0].extents(values)
        if counted is not None:
            if extents is not None:
                extents.update(counted)
            return ()
        return tuple(value_faults(self._types[0], values, where="an input", optional=self._optional, extents=extents))

    def outputs(self, values: Mapping[str, Any], extents: Mapping[str, int] | None = None) -> tuple[str, ...]:
        """Returns what is wrong with the outputs of a call; empty when all is well.

        Args:
            values: Output name → value; whatever the skill returned.
            extents: What `inputs` counted in the same call.
        """
        counted = self._fast[1].extents(values)
        if counted is not None and (not extents or counted == extents or not _disagree(counted, extents)):
            return ()
        return tuple(value_faults(self._types[1], values, where="an output", extents=dict(extents or {})))


def _disagree(some: Mapping[str, int], others: Mapping[str, int]) -> bool:
    return any(others.get(extent, count) != count for extent, count in some.items())


_ndarray = np.ndarray
_MOST_SHAPES = 64
"""How many combinations of shapes a check remembers; servers see few, and a stranger's must not fill the memory."""


@final
class _Fast:
    """Ports made ready: types and dtypes to compare, and the shapes that were found right before."""

    def __init__(self, ports: Mapping[str, PortType]) -> None:
        self.count = len(ports)
        self.plain = tuple((name, port) for name, port in ports.items() if isinstance(port, type))
        self.arrays = [(name, port) for name, port in ports.items() if isinstance(port, TensorSpec)]
        self.dtypes = tuple((name, dtype_of(port.dtype)) for name, port in self.arrays)
        self.known: dict[tuple[tuple[int, ...], ...], dict[str, int]] = {}

    def extents(self, values: Mapping[str, Any]) -> dict[str, int] | None:
        """Returns the counts of named extents if every value is exactly of its type.

        `None` means that only the slow form can tell. The mapping belongs to the check.
        """
        if type(values) is not dict or len(values) != self.count:
            return None
        try:
            for name, kind in self.plain:
                if type(values[name]) is not kind and kind is not object:
                    return None
            shapes = []
            for name, dtype in self.dtypes:
                value = values[name]
                if type(value) is not _ndarray or value.dtype is not dtype:
                    return None
                shapes.append(value.shape)
        except KeyError:
            return None
        key = tuple(shapes)
        extents = self.known.get(key)
        return self._learn(key) if extents is None else extents

    def _learn(self, key: tuple[tuple[int, ...], ...]) -> dict[str, int] | None:
        """Looks at shapes that were not seen before, and remembers them if they fit."""
        extents: dict[str, int] = {}
        for shape, (_, port) in zip(key, self.arrays, strict=True):
            if len(shape) != len(port.shape):
                return None
            for extent, count in zip(port.shape, shape, strict=True):
                if (extents.setdefault(extent, count) if isinstance(extent, str) else extent) != count:
                    return None
        if len(self.known) >= _MOST_SHAPES:
            self.known.clear()
        self.known[key] = extents
        return extents
