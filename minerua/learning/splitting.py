"""Which rows a model learns from: parts that stay as they are when rows are added, removed or reordered.

A row's split is a function of its key and of the split's seed, and of nothing else. The key is what the row says it is
(a key column, a file's name) or, without one, the content of its inputs, so that copies of one row never lie on both
sides. Each key draws a number in [0, 1); fractions are therefore kept on average and not exactly: of n rows, a fraction
f gets f·n ± √(f·(1-f)·n).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minerua.learning.rows import RowError

SPLITS = ("train", "validation", "test")
"""The parts of a run's data: what is learned from, what chooses and stops, what only the report sees."""


def key_hash(key: str | bytes) -> int:
    """Returns 64 bits that stand for a key: BLAKE2b, so that they are the same on every machine and in every version.

    Example:
        >>> key_hash("image-7.png") == key_hash(b"image-7.png")
        True
    """
    key = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def content_hash(row: Any) -> int:
    """Returns 64 bits that stand for the content of a row.

    Args:
        row: Numbers, texts, bytes, `None`, numpy arrays and torch tensors, in tuples, lists and mappings.

    Raises:
        RowError: If it holds something else.

    Example:
        >>> content_hash((np.zeros(2), "a")) == content_hash((np.zeros(2), "a"))
        True
    """
    digest = hashlib.blake2b(digest_size=8)
    _feed(digest, row)
    return int.from_bytes(digest.digest(), "little")


def key_hashes(keys: Sequence[str]) -> np.ndarray:
    """Returns `key_hash` of each key: shape (n,), uint64."""
    texts = (key.encode("utf-8", "surrogatepass") for key in keys)
    return _numbers(b"".join([hashlib.blake2b(text, digest_size=8).digest() for text in texts]))


def _numbers(digests: bytes) -> np.ndarray:
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def content_hashes(rows: Any) -> np.ndarray:
    """Returns `content_hash` of each row: shape (n,), uint64.

    Args:
        rows: An array of numbers whose first axis counts the rows, or a sequence of rows.

    Raises:
        RowError: As `content_hash`.

    Example:
        >>> rows = np.arange(6.0).reshape(3, 2)
        >>> content_hashes(rows).tolist() == list(map(content_hash, rows))
        True
    """
    if not isinstance(rows, np.ndarray):
        return np.array(list(map(content_hash, rows)), np.uint64)
    first = np.ascontiguousarray(rows[0])
    start = hashlib.blake2b(f"a{first.dtype.str}{first.shape}".encode(), digest_size=8)
    content, width = np.ascontiguousarray(rows).tobytes(), first.nbytes
    digests = bytearray()
    for place in range(0, len(content), width):
        digest = start.copy()
        digest.update(content[place : place + width])
        digests += digest.digest()
    return _numbers(bytes(digests))


def _feed(digest: Any, value: Any) -> None:
    """Adds a value with its type and length, so that no two different rows are the same bytes."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            raise RowError("no content", "arrays of Python objects cannot be told apart by their bytes")
        digest.update(f"a{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes() if array.dtype.kind in "VUSMm" else array.reshape(-1).view(np.uint8).data)
    elif isinstance(value, str | bytes):
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        digest.update(f"{type(value).__name__}{len(content)}:".encode())
        digest.update(content)
    elif isinstance(value, Mapping):
        digest.update(f"m{len(value)}".encode())
        for key in sorted(value, key=str):
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif isinstance(value, tuple | list):
        digest.update(f"l{len(value)}".encode())
        for part in value:
            _feed(digest, part)
    else:
        _feed_other(digest, value)


def _feed_other(digest: Any, value: Any) -> None:
    """Adds a number, a tensor, or nothing; refuses the rest."""
    if value is None or isinstance(value, bool | int):
        digest.update(f"i{value};".encode())
    elif isinstance(value, float):
        digest.update(b"f" + struct.pack("<d", value))
    elif hasattr(value, "detach") and hasattr(value, "numpy"):  # a torch tensor; torch itself is not needed to ask
        tensor = value.detach().cpu()
        digest.update(str(tensor.dtype).encode())
        _feed(digest, tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy())
    else:
        raise RowError("no content", f"{type(value).__name__} has no content to go by; give the dataset a key(i)")


def draws(hashes: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns the number in [0, 1) that each key draws.

    Args:
        hashes: Shape (n,), uint64: `key_hash` or `content_hash` of every row.
        seed: Another seed draws anew; any integer.

    Returns:
        Shape (n,), float64.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", the finalizer of SplitMix64.
    """
    word = np.uint64(key_hash(f"split {seed}"))
    z = np.asarray(hashes, np.uint64) ^ word
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def deal(hashes: np.ndarray, fractions: Mapping[str, float], *, seed: int) -> dict[str, np.ndarray]:
    """Deals rows out.

    Args:
        hashes: Shape (n,), uint64: one per row.
        fractions: Split → its share; they sum to one.
        seed: Seed of the deal.

    Returns:
        Split → the positions of its rows, ascending, int64; every row once.

    Example:
        >>> parts = deal(np.arange(1000, dtype=np.uint64), {"train": 0.8, "test": 0.2}, seed=0)
        >>> sum(map(len, parts.values()))
        1000
    """
    drawn = draws(hashes, seed=seed)
    parts, low = {}, 0.0
    for split, share in fractions.items():
        high = np.inf if split == list(fractions)[-1] else low + share
        parts[split] = np.flatnonzero((drawn >= low) & (drawn < high))
        low = high
    return parts


def repeats(hashes: np.ndarray) -> int:
    """Returns how many rows have the key of another one before them."""
    return len(hashes) - len(np.unique(hashes))
