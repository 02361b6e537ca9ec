"""Plain values between the judge and a program, as JSON with a length before it: nothing that arrives is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

MOST_BYTES = 32 << 20
_PLAIN_INT = 1 << 53


def send(file: int, message: Any) -> None:
    """Writes one message."""
    content = json.dumps(message).encode()
    content = len(content).to_bytes(4, "big") + content
    while content:
        content = content[os.write(file, content) :]


def receive(file: int) -> Any:
    """Reads one message.

    Raises:
        EOFError: Nobody writes any more.
        ValueError: What came is no message, or too long a one.
    """
    size = int.from_bytes(_exactly(file, 4), "big")
    if size > MOST_BYTES:
        raise ValueError(f"an answer of {size} bytes; at most {MOST_BYTES} are read")
    return json.loads(_exactly(file, size))


def _exactly(file: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(file, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def pack(value: Any, name_of: Callable[[Any], int]) -> Any:
    """Returns a value as JSON can hold it; what is no plain value gets a number from `name_of`."""
    if value is None or isinstance(value, bool):
        return value
    for kind, packed in _SCALARS:
        if isinstance(value, kind):
            return packed(value)
    if isinstance(value, list):
        return [pack(part, name_of) for part in list.__iter__(value)]
    if isinstance(value, tuple | set | frozenset):
        name = next(name for name, kind in _SEQUENCES.items() if isinstance(value, kind))
        return {name: [pack(part, name_of) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, name_of), pack(part, name_of)] for key, part in value.items()]}
    return {"object": name_of(value)}


_SEQUENCES: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, lambda value: str.__str__(value)),
    (int, lambda value: int(value) if -_PLAIN_INT < value < _PLAIN_INT else {"int": hex(value)}),
    (float, lambda value: float(value)),
    (complex, lambda value: {"complex": [value.real, value.imag]}),
    (bytes, lambda value: {"bytes": bytes(value).hex()}),
    (bytearray, lambda value: {"bytearray": bytes(value).hex()}),
)


def unpack(packed: Any, object_of: Callable[[int], Any]) -> Any:
    """Returns the value that `pack` packed; each part is of exactly the type that it is said to be.

    Raises:
        ValueError: It was not packed by `pack`.
        TypeError: As ValueError; for example a list in a set.
    """
    if isinstance(packed, list):
        return [unpack(part, object_of) for part in packed]
    if not isinstance(packed, dict):
        return packed
    if len(packed) != 1:
        raise ValueError("an answer that is not packed as it should be")
    ((kind, content),) = packed.items()
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](unpack(part, object_of) for part in content)
    if kind == "dict":
        return {unpack(key, object_of): unpack(part, object_of) for key, part in content}
    return {"object": object_of, **_READERS}[kind](content)


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda content: int(content, 16),
    "complex": lambda content: complex(*content),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}
