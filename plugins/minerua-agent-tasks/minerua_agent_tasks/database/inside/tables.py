"""Tables of an item: how they are made, and digests of what is in them; the same inside the sandbox and on servers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_MOST_CONCATENATED = 1024
"""MySQL's `group_concat_max_len`, where AgentBench's digests were made: what is longer was cut."""


def creation(table: dict[str, Any], quote: Callable[[str], str]) -> str:
    """Returns the statement that creates a table.

    Args:
        table: `name`, `columns` as pairs of name and type, `rows`.
        quote: Writes a name as the database wants it.
    """
    columns = ", ".join(f"{quote(name)} {kind}".strip() for name, kind in table["columns"])
    return f"CREATE TABLE {quote(table['name'])} ({columns})"


def insertion(name: str, marks: Sequence[str]) -> str:
    """Returns the statement that adds a row to a table, whose name is quoted.

    Example:
        >>> insertion('"t"', ["?", "?"])
        'INSERT INTO "t" VALUES (?, ?)'
    """
    return f"INSERT INTO {name} VALUES ({', '.join(marks)})"


def plain(value: Any) -> Any:
    """Returns a value of a row as JSON can hold it: bytes as hexadecimal text, what is no number or text as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value)


def state_digest(tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[Any]]]]) -> str:
    """Returns the digest of all tables: SHA-256 of their names, columns and rows.

    Each of the three is sorted, rows by what they are as JSON, so that no order of making counts; the values' types do.

    Args:
        tables: Name, names of columns, rows of plain values.

    Example:
        >>> state_digest([("a", ["x"], [[1], [2]])]) == state_digest([("a", ["x"], [[2], [1]])])
        True
    """
    digest = hashlib.sha256()
    for name, columns, rows in sorted(tables, key=lambda table: table[0]):
        order = sorted(range(len(columns)), key=columns.__getitem__)
        lines = sorted(json.dumps([row[k] for k in order]) for row in rows)
        digest.update(json.dumps([name, [columns[k] for k in order], lines]).encode())
    return digest.hexdigest()


def agentbench_digest(rows: Iterable[Sequence[Any]]) -> str:
    """Returns what AgentBench's `answer_md5` holds: MySQL's MD5 over five digits of each row's MD5, in order.

    Source: Liu et al. 2023, arXiv 2308.03688, and its public task `dbbench`:
    `md5(group_concat(substring(md5(concat_ws(',', columns)), 1, 5) order by 1))`, cut by MySQL at 1024 bytes.

    Args:
        rows: The values of the columns that the item lists, in its order; a value that is missing is passed over.

    Example:
        >>> agentbench_digest([["a", "1"], ["b", None]])
        'ad86a49787fa7d873f4c976f7d8ed2a6'
    """
    texts = [",".join(str(value) for value in row if value is not None) for row in rows]
    short = sorted(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:5] for text in texts)
    joined = ",".join(short)[:_MOST_CONCATENATED]
    return hashlib.md5(joined.encode(), usedforsecurity=False).hexdigest()
