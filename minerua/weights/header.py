"""The header of a safetensors file: what its bytes say, whether they can be true, and how to write one.

A file is eight bytes (the header's length, little-endian), the header (JSON: tensor name → dtype, shape and place), and
the tensors' bytes, end to end, without holes. Nothing here touches a tensor's bytes, so that a header is judged before
anything as large as the file is done.

Source: the format's description, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from minerua.values import TensorSpec

DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "U8": np.dtype("<u1"),
        "I8": np.dtype("<i1"),
        "U16": np.dtype("<u2"),
        "I16": np.dtype("<i2"),
        "U32": np.dtype("<u4"),
        "I32": np.dtype("<i4"),
        "U64": np.dtype("<u8"),
        "I64": np.dtype("<i8"),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
        "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F32": np.dtype("<f4"),
        "F64": np.dtype("<f8"),
        "C64": np.dtype("<c8"),
    }
)
"""The format's dtype code → numpy's element type. Types below one byte (F4, F6) have no numpy twin and are refused."""

CODES: Mapping[str, str] = MappingProxyType({dtype.name: code for code, dtype in DTYPES.items()})
"""numpy's name of an element type → the format's dtype code."""

_NAMES = {code: name for name, code in CODES.items()}  # numpy makes a dtype's name anew whenever it is asked

ITEM_BYTES: Mapping[str, int] = MappingProxyType({name: DTYPES[code].itemsize for name, code in CODES.items()})
"""numpy's name of an element type → bytes of one element."""

MAX_HEADER_BYTES = 100_000_000
"""The longest header that is read: the limit of the safetensors library."""

MAX_DIMENSIONS = 64
"""The most dimensions that an array of numpy 2 can have."""

_METADATA = "__metadata__"
_ALIGNMENT_BYTES = 8


class Place(NamedTuple):
    """Where a tensor lies in the part of the file behind the header.

    Args:
        spec: Its name, shape and dtype.
        begin: Its first byte, counted from the end of the header.
        end: One past its last byte.
    """

    spec: TensorSpec
    begin: int
    end: int


class Header(NamedTuple):
    """What a header says.

    Args:
        places: One per tensor, in the order of the header; only those without faults.
        metadata: The header's free texts.
        faults: Everything that is wrong, with its place; a header without faults describes the file completely.
    """

    places: tuple[Place, ...]
    metadata: Mapping[str, str]
    faults: tuple[str, ...]


def parse_header(text: bytes, *, data_bytes: int) -> Header:
    """Reads a header and checks every claim that it makes.

    Args:
        text: The header's bytes, without the eight bytes of its length; from anybody, trusted in nothing.
        data_bytes: How many bytes follow the header in the file.

    Returns:
        What the header says, and all its faults; never raises, whatever the bytes are.

    Example:
        >>> parse_header(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', data_bytes=4).faults
        ('truncated: the tensors need 8 bytes, the file holds 4 of them; 4 bytes are missing',)
    """
    content, faults = parse_object(text, what="the header")
    metadata = content.pop(_METADATA, {})
    faults.extend(_metadata_faults(metadata))
    places = []
    for name, entry in content.items():
        wrong, place = _parse_entry(name, entry)
        faults.extend(f"tensor {shown(name)}: {fault}" for fault in wrong)
        if place is not None:
            places.append(place)
    if not faults:  # a wrong entry would make its neighbours look wrong too
        faults.extend(_layout_faults(places, data_bytes))
    return Header(tuple(places), metadata if isinstance(metadata, dict) else {}, tuple(faults))


def encode_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Writes the first part of a file: the length and the header, padded with spaces to a multiple of eight bytes.

    Args:
        specs: The tensors in the order of their bytes in the file; dtypes are keys of `CODES`, shapes are integers.
        metadata: Free texts.

    Returns:
        The bytes; the same arguments give the same bytes. A first tensor that follows them is aligned to eight bytes.
    """
    content: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for spec in specs:
        begin, end = end, end + nbytes(spec)
        content[spec.name] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def parse_object(text: bytes, *, what: str) -> tuple[dict[str, Any], list[str]]:
    """Reads a JSON object from bytes that nobody vouches for.

    Args:
        text: UTF-8, JSON, at the top an object.
        what: What the bytes are, for the faults: `"the header"`.

    Returns:
        The object, empty if the bytes are not one, and the faults; repeated keys are faults at any depth.
    """
    repeated: dict[str, None] = {}

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                repeated[key] = None
            found[key] = value
        return found

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=collect, parse_int=_bounded_int)
    except UnicodeDecodeError as error:
        return {}, [f"{what} is not UTF-8: byte {error.start} of {len(text)} is {text[error.start]:#04x}"]
    except RecursionError:
        return {}, [f"{what} is nested deeper than any checkpoint's"]
    except ValueError as error:
        return {}, [f"{what} is not JSON: {error}"]
    if not isinstance(content, dict):
        return {}, [f"{what} is JSON, but not an object: found {type(content).__name__}"]
    return content, [f"{what} has the key {shown(key)} more than once" for key in repeated]


def nbytes(spec: TensorSpec) -> int:
    """Returns how many bytes a tensor with integer extents takes on disk."""
    return math.prod(map(int, spec.shape)) * ITEM_BYTES[spec.dtype]


def shown(value: object) -> str:
    """Returns a value from a file as it may stand in a message: escaped, and never longer than a line."""
    try:
        text = ascii(value[:100]) if isinstance(value, str) else ascii(value)
    except RecursionError:  # JSON may be nested just deep enough to be read, and not to be shown
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."


def capped(faults: Sequence[str], *, limit: int) -> list[str]:
    """Returns the first faults, and one line that counts the rest.

    Args:
        faults: All of them.
        limit: How many are listed at most; at least 1.
    """
    rest = len(faults) - limit
    return [*faults[:limit], f"and {rest} more of this kind"] if rest > 0 else list(faults)


def _bounded_int(digits: str) -> int | float:
    """Returns an integer, or infinity for one of absurd length: converting such digits takes quadratic time."""
    return int(digits) if len(digits) <= 20 else math.inf


def _metadata_faults(metadata: object) -> list[str]:
    if not isinstance(metadata, dict):
        return [f"{_METADATA} is not an object: found {shown(metadata)}"]
    return [
        f"{_METADATA} entry {shown(key)} is not a text: found {shown(value)}"
        for key, value in metadata.items()
        if not isinstance(value, str)
    ]


def _parse_entry(name: str, entry: object) -> tuple[list[str], Place | None]:
    """Returns the faults of one tensor's entry, or else its place."""
    if not isinstance(entry, dict):
        return [f"its entry is not an object: found {shown(entry)}"], None
    code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    faults = [*_name_faults(name), *_dtype_faults(code), *_shape_faults(shape), *_offsets_faults(offsets)]
    if faults or not (isinstance(code, str) and isinstance(shape, list) and isinstance(offsets, list)):
        return faults, None
    place = Place(TensorSpec(name, tuple(shape), _NAMES[code]), *offsets)
    need, found = nbytes(place.spec), place.end - place.begin
    if need != found:
        return [f"shape {shape} of {code} takes {need} bytes, but data_offsets {offsets} span {found}"], None
    return [], place


def _name_faults(name: str) -> list[str]:
    try:
        name.encode()
    except UnicodeEncodeError:
        return ["its name holds half of a surrogate pair, which is not a Unicode text"]
    return []


def _dtype_faults(code: object) -> list[str]:
    if isinstance(code, str) and code in DTYPES:
        return []
    return [f"dtype {shown(code)} is unknown; known are {', '.join(DTYPES)}"]


def _shape_faults(shape: object) -> list[str]:
    if not isinstance(shape, list) or not all(map(_is_extent, shape)):
        return [f"shape {shown(shape)} is not a list of non-negative integers"]
    if len(shape) > MAX_DIMENSIONS:
        return [f"shape has {len(shape)} dimensions, numpy's limit is {MAX_DIMENSIONS}"]
    # numpy refuses a shape whose non-zero extents overflow, even where another extent is zero
    if math.prod(filter(None, shape)) * 16 >= 2**63:
        return [f"shape {shown(shape)} is larger than any memory"]
    return []


def _offsets_faults(offsets: object) -> list[str]:
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_extent, offsets)):
        return [f"data_offsets {shown(offsets)} are not two non-negative integers"]
    if offsets[0] > offsets[1]:
        return [f"data_offsets {offsets} end before they begin"]
    return []


def _is_extent(number: object) -> bool:
    return type(number) is int and number >= 0  # a bool is none, though Python counts it among them


def _layout_faults(places: Iterable[Place], data_bytes: int) -> list[str]:
    """Returns the holes and overlaps between the tensors, and what the file has too few or too many bytes."""
    faults, reached, before = [], 0, "the header"
    for spec, begin, end in sorted(places, key=lambda place: (place.begin, place.end)):
        name = shown(spec.name)
        if begin > reached:
            faults.append(f"tensor {name}: a hole of {begin - reached} bytes lies between it and {before}")
        elif begin < reached:
            faults.append(
                f"tensor {name}: its bytes [{begin}, {end}] overlap those of {before}, which end at {reached}"
            )
        if end >= reached:
            reached, before = end, f"tensor {name}"
    if reached > data_bytes:
        missing = reached - data_bytes
        need = f"the tensors need {reached} bytes, the file holds {data_bytes} of them"
        faults.append(f"truncated: {need}; {missing} bytes are missing")
    elif reached < data_bytes:
        faults.append(f"{data_bytes - reached} bytes at the end of the file belong to no tensor")
    return faults
