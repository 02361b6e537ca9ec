"""Values by their content: a digest that names them, a form that nobody can change, bytes that a file can hold.

What content is: numpy arrays and scalars of numbers, texts and times; torch tensors on the CPU; `None`, `bool`, `int`,
`float`, `complex`, `str` and `bytes`; lists, tuples and dicts with `str` keys of these. Anything else is opaque, and so
is what derives from these types, because it may mean more than its bytes.
"""

from __future__ import annotations

import json
import struct
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

if TYPE_CHECKING:
    import torch

Update = Callable[[Any], Any]

_MAGIC = b"mnrcnt1\0"
_PREFIX = struct.Struct("<8s16sQ")  # magic, digest of the rest, how long the header is
_ALIGNMENT = 64
_LENGTH = struct.Struct("<Q")
_FLOAT = struct.Struct("<d")
_COMPLEX = struct.Struct("<dd")
_CHUNK = 1 << 16  # elements of a strided array that are gathered at a time
_PLAIN_KINDS = frozenset("biufcmMSU")
_BOOKKEEPING_BYTES = 64  # of a Python value and its place in a container; measured with tracemalloc, rounded up


class Opaque(Exception):
    """A value without content: it cannot be named, kept or stored."""


# ── names: a digest of the content ───────────────────────────────────────────────────────────────────────────────────


def digest(name: str, version: str, inputs: Mapping[str, Any]) -> bytes | None:
    """Returns the 16 bytes that name a call by what goes into it, or `None` if an input is opaque.

    Equal inputs have equal digests in every process, whatever the order of the mapping and the layout of the arrays.
    Types count: 1, 1.0 and `True` differ, and so do 0.0 and -0.0. The digest is xxh3-128: fast, and as good as random
    against accidents, but no defence against somebody who makes two inputs with the same one on purpose.

    Args:
        name: The skill's name.
        version: The skill's version.
        inputs: Input name → value.

    Example:
        >>> digest("see", "1", {"a": 1, "b": 2.0}) == digest("see", "1", {"b": 2.0, "a": 1})
        True
        >>> digest("see", "1", {"a": object()}) is None
        True
    """
    hasher = xxhash.xxh3_128(_head(name, version))
    update = hasher.update
    try:
        for key in sorted(inputs):
            update(_text(key))
            _feed(update, inputs[key])
    except (Opaque, RecursionError):
        return None
    return hasher.digest()


def value_digest(value: Any) -> bytes | None:
    """Returns the 16 bytes that name one value by its content, or `None` if it is opaque."""
    hasher = xxhash.xxh3_128()
    try:
        _feed(hasher.update, value)
    except (Opaque, RecursionError):
        return None
    return hasher.digest()


@lru_cache(maxsize=1024)
def _head(name: str, version: str) -> bytes:
    return _text(name) + _text(version)


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return b"s" + _LENGTH.pack(len(content)) + content


def _feed(update: Update, value: Any) -> None:
    """Feeds a value in a form that no other value has: every part says its type and its length first."""
    feed = _FEEDERS.get(type(value))
    if feed is not None:
        feed(update, value)
    elif isinstance(value, np.generic):
        update(b"n")
        _feed_array(update, np.asarray(value))
    elif is_tensor(value):
        _feed_tensor(update, value)
    else:
        raise Opaque


def _feed_array(update: Update, array: np.ndarray) -> None:
    update(_array_head(array.dtype, array.shape))
    if not array.size:
        return
    if array.flags.c_contiguous:
        update(as_bytes(array))
        return
    with np.nditer(array, ["external_loop", "buffered", "grow_inner"], order="C", buffersize=_CHUNK) as chunks:
        for chunk in chunks:
            update(as_bytes(np.ascontiguousarray(chunk)))


@lru_cache(maxsize=1024)
def _array_head(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    name = dtype_name(dtype).encode()
    return struct.pack(f"<cQ{len(name)}sQ{len(shape)}Q", b"a", len(name), name, len(shape), *shape)


def _feed_tensor(update: Update, tensor: torch.Tensor) -> None:
    update(b"h" + _text(str(tensor.dtype)))
    update(struct.pack(f"<Q{tensor.ndim}Q", tensor.ndim, *tensor.shape))
    if tensor.numel():
        import torch  # whoever has a tensor has it already

        update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _feed_int(update: Update, value: int) -> None:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    update(b"i" + _LENGTH.pack(len(content)) + content)


def _feed_bytes(update: Update, value: bytes) -> None:
    update(b"b" + _LENGTH.pack(len(value)))
    update(value)


def _feed_sequence(update: Update, values: list[Any] | tuple[Any, ...]) -> None:
    update((b"l" if type(values) is list else b"t") + _LENGTH.pack(len(values)))
    for value in values:
        _feed(update, value)


def _feed_dict(update: Update, values: dict[Any, Any]) -> None:
    if not all(type(key) is str for key in values):
        raise Opaque
    update(b"d" + _LENGTH.pack(len(values)))
    for key in sorted(values):
        update(_text(key))
        _feed(update, values[key])


_FEEDERS: dict[type, Callable[[Update, Any], Any]] = {
    type(None): lambda update, _: update(b"N"),
    bool: lambda update, value: update(b"T" if value else b"F"),
    int: _feed_int,
    float: lambda update, value: update(b"f" + _FLOAT.pack(value)),
    complex: lambda update, value: update(b"c" + _COMPLEX.pack(value.real, value.imag)),
    str: lambda update, value: update(_text(value)),
    bytes: _feed_bytes,
    np.ndarray: _feed_array,
    np.memmap: _feed_array,
    list: _feed_sequence,
    tuple: _feed_sequence,
    dict: _feed_dict,
}


# ── arrays and tensors ───────────────────────────────────────────────────────────────────────────────────────────────


def as_bytes(array: np.ndarray) -> memoryview:
    """Returns the bytes of a C-contiguous array, not copied; also of dtypes that Python's buffers do not know."""
    return array.reshape(-1).view(np.uint8).data


@lru_cache(maxsize=256)
def dtype_name(dtype: np.dtype) -> str:
    """Returns the text that names a dtype in digests and files, byte order included.

    Raises:
        Opaque: If its bytes are not its content: objects, records, texts of any length.
    """
    if dtype.kind in _PLAIN_KINDS:
        return dtype.str
    if dtype.isbuiltin == 2 and dtype.type.__module__ == "ml_dtypes":
        return dtype.name
    raise Opaque


def _dtype_named(name: str) -> np.dtype:
    if name[0] in "<>|=":
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype = np.dtype(getattr(ml_dtypes, name))
    return dtype


def is_tensor(value: Any) -> bool:
    """Whether this is a torch tensor whose content is its bytes in this machine's memory. Imports nothing."""
    torch = sys.modules.get("torch")
    return (
        torch is not None
        and type(value) is getattr(torch, "Tensor", None)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg())
    )


# ── keeping: a form that nobody can change ───────────────────────────────────────────────────────────────────────────


class Frozen:
    """Outputs that can be handed out any number of times.

    Arrays are read-only and nobody else can write into them: an array that owns its memory is made read-only where it
    is, a view of memory that somebody may still write to is copied. Lists, dicts and tensors are copied now, and again
    each time they are handed out.

    Args:
        outputs: Output name → value.

    Raises:
        Opaque: If a value cannot be kept.

    Attributes:
        nbytes: What is kept, Python's own bookkeeping included as an estimate.
    """

    __slots__ = ("_is_flat", "_outputs", "nbytes")

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        # first all of it, so that nothing is made read-only if some of it is opaque
        if not all(_can_be_kept(value) for value in outputs.values()):
            raise Opaque
        seen: dict[int, int] = {}
        self._outputs = {name: _freeze(value, seen) for name, value in outputs.items()}
        self._is_flat = not any(type(value) in (list, tuple, dict) or is_tensor(value) for value in outputs.values())
        self.nbytes = sum(seen.values()) + _BOOKKEEPING_BYTES * (2 + len(self._outputs))

    def outputs(self) -> dict[str, Any]:
        """Returns the outputs, for the caller to keep; the arrays are shared and read-only."""
        if self._is_flat:
            return self._outputs.copy()
        return {name: _thaw(value) for name, value in self._outputs.items()}


def _can_be_kept(value: Any, depth: int = 0) -> bool:
    kind = type(value)
    if depth > 100:  # nothing that a skill means is as deep; a list that holds itself is
        return False
    if kind in (list, tuple):
        return all(_can_be_kept(one, depth + 1) for one in value)
    if kind is dict:
        return all(type(key) is str and _can_be_kept(one, depth + 1) for key, one in value.items())
    if isinstance(value, np.ndarray | np.generic):
        return (kind in _FEEDERS or isinstance(value, np.generic)) and _has_content(value.dtype)
    return kind in _FEEDERS or is_tensor(value)


def _has_content(dtype: np.dtype) -> bool:
    try:
        dtype_name(dtype)
    except Opaque:
        return False
    return True


def _freeze(value: Any, seen: dict[int, int]) -> Any:
    """Returns the value as it is kept; notes in `seen` what it keeps alive → its bytes, each once."""
    kind = type(value)
    if kind is np.ndarray or kind is np.memmap:
        kept = _read_only(value)
        root = _root(kept)
        seen[id(root)] = root.nbytes if isinstance(root, np.ndarray) else max(sys.getsizeof(root), kept.nbytes)
        return kept
    if kind in (list, tuple):
        seen[id(value)] = _BOOKKEEPING_BYTES * (1 + len(value))
        return kind(_freeze(one, seen) for one in value)
    if kind is dict:
        seen[id(value)] = 2 * _BOOKKEEPING_BYTES * (1 + len(value))
        return {key: _freeze(one, seen) for key, one in value.items()}
    if is_tensor(value):
        seen[id(value)] = value.numel() * value.element_size()
        return value.clone()
    seen[id(value)] = sys.getsizeof(value)
    return value


def _read_only(array: np.ndarray) -> np.ndarray:
    if type(array) is np.ndarray and array.flags.owndata:
        array.flags.writeable = False
        return array
    node: Any = array
    while type(node) is np.ndarray and not node.flags.writeable and node.base is not None:
        node = node.base
    if type(node) is bytes or (type(node) is np.ndarray and not node.flags.writeable and node.flags.owndata):
        return array  # nobody can write to what it is a view of
    copy = np.array(array, order="C", subok=False)
    copy.flags.writeable = False
    return copy


def _root(array: np.ndarray) -> Any:
    node: Any = array
    while isinstance(node, np.ndarray) and node.base is not None:
        node = node.base
    return node


def _thaw(value: Any) -> Any:
    kind = type(value)
    if kind in (list, tuple):
        return kind(_thaw(one) for one in value)
    if kind is dict:
        return {key: _thaw(one) for key, one in value.items()}
    return value.clone() if is_tensor(value) else value


# ── files: one that describes itself ─────────────────────────────────────────────────────────────────────────────────


def pack(key: bytes, outputs: Mapping[str, Any]) -> list[bytes | memoryview]:
    """Returns the parts of a file that holds outputs: prefix, a header in JSON, arrays at multiples of 64 bytes.

    | bytes | what |
    |---|---|
    | 0 to 7 | `mnrcnt1` and a zero byte |
    | 8 to 23 | the xxh3-128 digest of everything after it |
    | 24 to 31 | how long the header is |
    | 32 on | the header: `{"key": …, "outputs": …}`; then the arrays, offsets counted from its end, filled up to 64 |

    Args:
        key: What the outputs are stored under.
        outputs: Output name → value.

    Raises:
        Opaque: If a value has no form in a file; tensors have none.
    """
    arrays: list[np.ndarray] = []
    tree = [[name, _describe(value, arrays)] for name, value in outputs.items()]
    header = json.dumps({"key": key.hex(), "outputs": tree}, separators=(",", ":")).encode("ascii")
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGNMENT)
    parts: list[bytes | memoryview] = [header]
    for array in arrays:
        parts += [as_bytes(array), bytes(-array.nbytes % _ALIGNMENT)]
    hasher = xxhash.xxh3_128(_LENGTH.pack(len(header)))
    for part in parts:
        hasher.update(part)
    return [_PREFIX.pack(_MAGIC, hasher.digest(), len(header)), *parts]


def unpack(key: bytes, content: bytes) -> dict[str, Any] | None:
    """Returns the outputs in a file's content, arrays as read-only views of it; `None` if it is not what was stored.

    Args:
        key: What they were stored under.
        content: All bytes of the file.
    """
    if len(content) < _PREFIX.size:
        return None
    magic, found, header_bytes = _PREFIX.unpack_from(content)
    view = memoryview(content)
    if magic != _MAGIC or xxhash.xxh3_128_digest(view[_PREFIX.size - _LENGTH.size :]) != found:
        return None
    start = _PREFIX.size + header_bytes
    header = json.loads(content[_PREFIX.size : start])
    if header["key"] != key.hex():
        return None
    return {name: _restore(node, content, start) for name, node in header["outputs"]}


def _describe(value: Any, arrays: list[np.ndarray]) -> Any:
    """Returns what stands in the header for a value; arrays are appended to `arrays`."""
    kind = type(value)
    if isinstance(value, np.ndarray):
        offset = sum(one.nbytes + -one.nbytes % _ALIGNMENT for one in arrays)
        arrays.append(np.ascontiguousarray(value))
        return ["a", dtype_name(value.dtype), list(value.shape), offset]
    if isinstance(value, np.generic):
        return ["n", dtype_name(value.dtype), value.tobytes().hex()]
    if kind in (list, tuple):
        return ["l" if kind is list else "t", [_describe(one, arrays) for one in value]]
    if kind is dict:
        return ["d", [[_describe(key, arrays), _describe(one, arrays)] for key, one in value.items()]]
    describe = _DESCRIBERS.get(kind)
    if describe is None:
        raise Opaque
    return describe(value)


def _text_node(text: str) -> list[str]:
    return ["s", b64encode(text.encode("utf-8", "surrogatepass")).decode()]  # JSON would join lone surrogates


_DESCRIBERS: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: None,
    bool: lambda value: value,
    int: lambda value: ["i", hex(value)],
    float: lambda value: ["f", _FLOAT.pack(value).hex()],
    complex: lambda value: ["c", _COMPLEX.pack(value.real, value.imag).hex()],
    str: _text_node,
    bytes: lambda value: ["b", b64encode(value).decode()],
}


def _restore(node: Any, content: bytes, start: int) -> Any:
    if not isinstance(node, list):
        return node
    if node[0] == "a":
        _, name, shape, offset = node
        dtype = _dtype_named(name)
        count = int(np.prod(shape, dtype=np.int64))
        if not count * dtype.itemsize:  # nothing to look at; a dtype of no bytes cannot be read from a buffer
            return _frozen_empty(shape, dtype)
        return np.frombuffer(content, np.uint8, count * dtype.itemsize, start + offset).view(dtype).reshape(shape)
    if node[0] == "n":
        return np.frombuffer(bytes.fromhex(node[2]), _dtype_named(node[1]))[0]
    return _RESTORERS[node[0]](node[1], content, start)


def _frozen_empty(shape: list[int], dtype: np.dtype) -> np.ndarray:
    array = np.zeros(shape, dtype)
    array.flags.writeable = False
    return array


_RESTORERS: dict[str, Callable[[Any, bytes, int], Any]] = {
    "i": lambda text, *_: int(text, 16),
    "f": lambda text, *_: _FLOAT.unpack(bytes.fromhex(text))[0],
    "c": lambda text, *_: complex(*_COMPLEX.unpack(bytes.fromhex(text))),
    "s": lambda text, *_: b64decode(text).decode("utf-8", "surrogatepass"),
    "b": lambda text, *_: b64decode(text),
    "l": lambda nodes, *place: [_restore(node, *place) for node in nodes],
    "t": lambda nodes, *place: tuple(_restore(node, *place) for node in nodes),
    "d": lambda nodes, *place: {_restore(key, *place): _restore(node, *place) for key, node in nodes},
}
