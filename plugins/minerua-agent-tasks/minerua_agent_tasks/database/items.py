"""Items of database tasks: in plain fields of their own, or in those of AgentBench's public files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..jsonl import read_lines

__all__ = ["DatabaseItem", "Table", "read_database_items", "rows_of"]

_CHANGES = ("INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True)
class Table:
    """A table that an item begins with.

    Args:
        name: Its name.
        columns: Names and declared types; `""` for none.
        rows: Its rows, values as JSON has them.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True)
class DatabaseItem:
    """One task: a database, what is asked, and what is expected.

    Expected are rows (`answer`), of the model's own query or of `check`; what `solution` gives, which is the same or,
    where it returns no rows, the tables that it leaves; or tables with a digest (`digest`, `agentbench_md5`).

    Args:
        id: Unique in its file.
        prompt: What is asked.
        tables: The tables that are there, made in this order.
        setup: SQL that is executed after them.
        answer: Expected rows; `None` if they are not given.
        check: A query that is executed after the model's statements; its rows count then.
        solution: SQL that solves the task.
        digest: The expected digest of all tables, see `state_digest`.
        agentbench_md5: The expected digest of `tables` as AgentBench computes it.
        is_ordered: Whether the order of rows counts.
        is_agentbench: Whether it came in AgentBench's fields, and is compared as there.
    """

    id: str
    prompt: str
    tables: tuple[Table, ...] = ()
    setup: str = ""
    answer: tuple[tuple[Any, ...], ...] | None = None
    check: str = ""
    solution: str = ""
    digest: str = ""
    agentbench_md5: str = ""
    is_ordered: bool = False
    is_agentbench: bool = False


def read_database_items(path: str | Path) -> list[DatabaseItem]:
    """Reads database items from a JSONL file.

    Own fields: `id`, `prompt`; `tables` (name → `columns`, `rows`) and `setup` (SQL), each optional; `answer` (rows, or
    single values), `solution` (SQL) or `hash`; optionally `check` (SQL) and `ordered`. AgentBench's: `description`,
    `type`, `table`, `label` or `answer_md5`, and optionally `add_description`, `evidence`, `sql`, `id`; without an id
    an item is named by a digest of its line. Other fields are passed over.

    Raises:
        ConfigError: The file cannot be read, or what is in it; all faults with their lines.

    Example:
        >>> import tempfile
        >>> line = {"id": "a", "prompt": "How many?", "tables": {"t": {"columns": ["x"], "rows": [[1]]}}, "answer": [1]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "items.jsonl")
        ...     _ = file.write_text(json.dumps(line))
        ...     read_database_items(file)[0].answer
        ((1,),)
    """
    seen: set[str] = set()

    def parse(fields: dict[str, Any]) -> tuple[DatabaseItem | None, list[str]]:
        is_agentbench = "description" in fields
        faults = _agentbench_faults(fields) if is_agentbench else _faults(fields)
        if faults:
            return None, faults
        item = _agentbench_item(fields) if is_agentbench else _item(fields)
        if item.id in seen:
            return None, [f"the id {item.id!r} was there before; each item needs its own"]
        seen.add(item.id)
        return item, []

    return read_lines(path, parse)


def _type_faults(fields: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> list[str]:
    return [
        f"{name} is of type {type(fields[name]).__name__}, not {' or '.join(kind.__name__ for kind in accepted)}"
        for name, accepted in kinds.items()
        if fields.get(name) is not None and not isinstance(fields[name], accepted)
    ]


# ── own fields ───────────────────────────────────────────────────────────────────────────────────────────────────────

_KINDS: Mapping[str, tuple[type, ...]] = {
    "id": (str, int),
    "prompt": (str,),
    "tables": (dict,),
    "setup": (str,),
    "answer": (list,),
    "check": (str,),
    "solution": (str,),
    "hash": (str,),
    "ordered": (bool,),
}


def _faults(fields: dict[str, Any]) -> list[str]:
    found = _type_faults(fields, _KINDS)
    if fields.get("id") in (None, ""):
        found.append("id is missing; it names the item")
    if not fields.get("prompt"):
        found.append("prompt is missing; it is what the model is asked (AgentBench: description)")
    if not fields.get("tables") and not fields.get("setup"):
        found.append("there is no database; an item has tables, or setup, or both")
    given = [name for name in ("answer", "solution", "hash") if fields.get(name) is not None]
    if len(given) != 1:
        found.append(f"{' and '.join(given) or 'nothing'} is expected; give one of answer, solution and hash")
    if fields.get("hash") and fields.get("check"):
        found.append("check has rows and hash is of tables; give answer or solution with check")
    if isinstance(fields.get("tables"), dict):
        for name, table in fields["tables"].items():
            found += _table_faults(name, table)
    return found


def _table_faults(name: str, table: Any) -> list[str]:
    if not isinstance(table, dict) or not isinstance(table.get("columns"), list):
        return [f"the table {name!r} is not as it should be; it has columns, a list, and rows"]
    names = [column.get("name") if isinstance(column, dict) else column for column in table["columns"]]
    if not names or not all(isinstance(column, str) and column for column in names):
        return [f"the columns of the table {name!r} are not as they should be; each is a name, or has name and type"]
    rows = table.get("rows") or []
    wrong = [k for k, row in enumerate(rows, 1) if not isinstance(row, list) or len(row) != len(names)]
    if wrong:
        return [f"row {wrong[0]} of the table {name!r} does not have {len(names)} values, as there are columns"]
    if any(isinstance(value, list | dict) for row in rows for value in row):
        return [f"a value of the table {name!r} is a list or an object; values are numbers, texts or null"]
    return []


def _table(name: str, table: Mapping[str, Any]) -> Table:
    columns = [c if isinstance(c, dict) else {"name": c} for c in table["columns"]]
    return Table(
        name,
        tuple((column["name"], str(column.get("type") or "")) for column in columns),
        tuple(tuple(row) for row in table.get("rows") or []),
    )


def _item(fields: Mapping[str, Any]) -> DatabaseItem:
    answer = fields.get("answer")
    return DatabaseItem(
        id=str(fields["id"]),
        prompt=fields["prompt"],
        tables=tuple(_table(name, table) for name, table in (fields.get("tables") or {}).items()),
        setup=fields.get("setup") or "",
        answer=None if answer is None else rows_of(answer),
        check=fields.get("check") or "",
        solution=fields.get("solution") or "",
        digest=fields.get("hash") or "",
        is_ordered=bool(fields.get("ordered")),
    )


def rows_of(values: Sequence[Any]) -> tuple[tuple[Any, ...], ...]:
    """Returns a list of rows, or of single values, as rows."""
    return tuple(tuple(row) if isinstance(row, list | tuple) else (row,) for row in values)


# ── AgentBench's fields ──────────────────────────────────────────────────────────────────────────────────────────────

_AGENTBENCH_KINDS: Mapping[str, tuple[type, ...]] = {
    "id": (str, int),
    "description": (str,),
    "add_description": (str,),
    "evidence": (str,),
    "type": (list, str),
    "table": (dict, list),
    "label": (list, str, int, float),
    "answer_md5": (str,),
    "sql": (dict,),
}


def _agentbench_faults(fields: dict[str, Any]) -> list[str]:
    found = _type_faults(fields, _AGENTBENCH_KINDS)
    if not fields.get("description"):
        found.append("description is empty; it is what the model is asked")
    if not _type(fields):
        found.append("type is missing; it says whether an answer or a change is expected, such as ['INSERT']")
    if _type(fields) in _CHANGES:
        if not _md5(fields) and not _query(fields):
            found.append("answer_md5 is missing, and so is sql with a query; one says what the change is")
    elif fields.get("label") is None:
        found.append("label is missing; it is the answer")
    if not fields.get("table"):
        found.append("table is missing; it has table_name and table_info")
    for table in _tables(fields):
        if not isinstance(table, dict) or not isinstance(table.get("table_name"), str):
            found.append("a table has no table_name, which is a text")
        else:
            found += _table_faults(table["table_name"], table.get("table_info"))
    return found


def _type(fields: Mapping[str, Any]) -> str:
    kind = fields.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return kind if isinstance(kind, str) else ""


def _query(fields: Mapping[str, Any]) -> str:
    sql = fields.get("sql")
    query = sql.get("query") if isinstance(sql, dict) else ""
    return query if isinstance(query, str) else ""


def _md5(fields: Mapping[str, Any]) -> str:
    """Returns the digest, which is written as `[('…',)]`, or of several tables joined."""
    return "_".join(sorted(re.findall(r"[0-9a-f]{32}", str(fields.get("answer_md5")))))


def _tables(fields: Mapping[str, Any]) -> list[Any]:
    table = fields.get("table")
    return table if isinstance(table, list) else [table] if table else []


def _agentbench_item(fields: Mapping[str, Any]) -> DatabaseItem:
    is_change = _type(fields) in _CHANGES
    label = fields.get("label")
    words = [fields.get("evidence"), fields["description"], fields.get("add_description")]
    line = json.dumps(fields, sort_keys=True).encode()
    return DatabaseItem(
        id=str(fields.get("id") or f"agentbench-{hashlib.sha256(line).hexdigest()[:12]}"),
        prompt="\n".join(word for word in words if word),
        tables=tuple(_table(table["table_name"], table["table_info"]) for table in _tables(fields)),
        answer=None if is_change else rows_of(label if isinstance(label, list) else [label]),
        solution=_query(fields) if is_change and not _md5(fields) else "",
        agentbench_md5=_md5(fields) if is_change else "",
        is_agentbench=True,
    )
