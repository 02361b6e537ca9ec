"""Executes SQL that nobody has read on fresh SQLite databases in memory, each in a process of its own.

A database is gone with its process, and SQL can start none: no job reaches another one. What SQL may do is said by an
authorizer: no files, no settings, no extensions. Time is kept twice: by SQLite's progress handler, and by the parent
process for what calls no handler.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import Any

from tables import agentbench_digest, creation, insertion, plain, state_digest  # type: ignore[import-not-found] # copied here

_STEPS = 1000
"""How many instructions of SQLite's machine lie between two looks at the clock."""

_GRACE_SECONDS = 0.5
_IN_MEMORY = 2
_READ_ONLY_PRAGMAS = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "foreign_key_list"}
_LIMITS = {  # by number, because Python 3.10 has no names for them; it cannot set them either
    0: 16 << 20,  # bytes of a text or row
    1: 1 << 20,  # bytes of a statement
    3: 200,  # depth of an expression
    4: 100,  # parts of a compound SELECT
    7: 0,  # attached databases
    8: 1000,  # bytes of a pattern of LIKE
    10: 50,  # depth of triggers
}


class Database:
    """One fresh database, and what a job does with it.

    Args:
        most: Limits: `rows` and `bytes` of a result, `seconds` of all statements, `heap` in bytes.
    """

    def __init__(self, most: dict[str, Any]) -> None:
        self.most = most
        self.connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
        self.connection.text_factory = lambda content: content.decode(errors="replace")
        for name, number in (("temp_store", _IN_MEMORY), ("hard_heap_limit", most["heap"])):
            self.connection.execute(f"PRAGMA {name} = {number}")
        for kind, value in _LIMITS.items():
            if hasattr(self.connection, "setlimit"):
                self.connection.setlimit(kind, value)
        chance = random.Random(0)  # the same statements, the same results
        self.connection.create_function("random", 0, lambda: chance.getrandbits(64) - (1 << 63))
        self.connection.create_function("randomblob", 1, lambda size: chance.randbytes(max(1, min(size, 1 << 20))))

    def furnish(self, tables: list[dict[str, Any]], script: str) -> None:
        """Makes what an item says that is there; from then on only what is allowed."""
        for table in tables:
            self.connection.execute(creation(table, quoted))
            if table["columns"]:
                marks = ["?"] * len(table["columns"])
                self.connection.executemany(insertion(quoted(table["name"]), marks), table["rows"])
        self.watch()
        self.connection.set_authorizer(_allowed)
        for statement in statements(script):
            self.connection.execute(statement)

    def watch(self) -> None:
        """Starts the clock."""
        deadline = time.monotonic() + self.most["seconds"]
        self.connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)

    def said(self, sql: str) -> dict[str, Any]:
        """Returns the rows of the last statement that has some, and what went wrong."""
        result: dict[str, Any] = {"rows": None, "changed": -1, "error": None, "is_cut": False, "is_certain": True}
        try:
            parts = list(statements(sql))
            if not parts:
                return {**result, "error": "there is no statement in it"}
            for part in parts:
                cursor = self.connection.execute(part)
                if cursor.description is not None:
                    result |= self._rows(cursor)
                else:
                    result["changed"] = cursor.rowcount
        except (sqlite3.Error, sqlite3.Warning, MemoryError, OverflowError, ValueError) as error:
            return {**result, "rows": None, "error": _told(error), "is_certain": _is_certain(error)}
        return result

    def _rows(self, cursor: sqlite3.Cursor) -> dict[str, Any]:
        kept: list[list[Any]] = []
        size = 0
        for row in cursor:
            size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
            if len(kept) == self.most["rows"] or size > self.most["bytes"]:
                return {"rows": kept, "is_cut": True}
            kept.append([plain(value) for value in row])
        return {"rows": kept, "is_cut": False}

    def state(self, digests: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the digest of all tables, and AgentBench's of those that are named; what is open is taken back."""
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            names = [row[0] for row in self.connection.execute(_TABLES)]
            every = [(name, *self._table(f"SELECT * FROM {quoted(name)}")) for name in names]
            named = [self._table(_selection(one))[1] for one in digests]
            return {"all": state_digest(every), "agentbench": [agentbench_digest(rows) for rows in named]}
        except (sqlite3.Error, MemoryError) as error:
            return {"error": _told(error)}

    def _table(self, sql: str) -> tuple[list[str], list[list[Any]]]:
        cursor = self.connection.execute(sql)
        return [column[0] for column in cursor.description], [[plain(value) for value in row] for row in cursor]


_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"


def _selection(one: dict[str, Any]) -> str:
    return f"SELECT {', '.join(map(quoted, one['columns']))} FROM {quoted(one['name'])}"


def quoted(name: str) -> str:
    """Returns a name as SQLite wants it."""
    return '"' + name.replace('"', '""') + '"'


def statements(sql: str) -> Iterator[str]:
    """Yields the statements of a text, one by one; the last may lack its semicolon."""
    start = end = 0
    while (end := sql.find(";", end) + 1) > 0:
        if sqlite3.complete_statement(sql[start:end]):
            if sql[start : end - 1].strip():
                yield sql[start:end]
            start = end
    if sql[start:].strip():
        yield sql[start:]


def _allowed(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and first not in _READ_ONLY_PRAGMAS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and second in ("load_extension", "fts3_tokenizer"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _told(error: BaseException) -> str:
    if "interrupted" in str(error):
        return "the statement was ended, because it took too long"
    return str(error) or f"out of memory ({type(error).__name__})"


def _is_certain(error: BaseException) -> bool:
    """Tells whether the same SQL would fail again elsewhere; Python 3.10 does not say which error it was."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_SQL


_OF_THE_SQL = {1, 18, 19, 20, 23, 25}
"""SQLITE_ERROR, _TOOBIG, _CONSTRAINT, _MISMATCH, _AUTH, _RANGE; what is not among them may be time, memory or space."""


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def done(job: dict[str, Any], most: dict[str, Any]) -> dict[str, Any]:
    """Does a job and returns what came of it."""
    try:
        database = Database(most)
        database.furnish(job["tables"], job["script"])
    except (sqlite3.Error, sqlite3.Warning, MemoryError, OverflowError, ValueError) as error:
        return {"fault": _told(error)}
    database.watch()
    outputs = [database.said(sql) for sql in job["statements"]]
    database.watch()
    checks = [database.said(sql) for sql in job["checks"]]
    return {"outputs": outputs, "checks": checks, "state": database.state(job["digests"]) if job["state"] else None}


def _child(job: dict[str, Any], most: dict[str, Any], writing: int) -> None:
    try:
        content = json.dumps(done(job, most)).encode()
        while content:
            content = content[os.write(writing, content) :]
        os._exit(0)
    finally:
        os._exit(1)


def apart(job: dict[str, Any], most: dict[str, Any]) -> dict[str, Any]:
    """Does a job in a process of its own, which is killed if it does not end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(job, most, writing)
    os.close(writing)
    deadline = time.monotonic() + 3 * most["seconds"] + _GRACE_SECONDS
    parts: list[bytes] = []
    while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reading, 1 << 20)
        if not part:
            break
        parts.append(part)
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(reading)
    code = os.waitpid(pid, 0)[1]
    if code:
        return {"ended": "it took too long" if code == signal.SIGKILL else f"its process ended with status {code}"}
    return dict(json.loads(b"".join(parts)))


def main() -> None:
    """Reads jobs from standard input; writes a line for each."""
    told = json.loads(sys.stdin.buffer.read())
    gc.freeze()  # a collection would touch, and so copy, all pages that a fork shares
    for job in told["jobs"]:
        line = {"number": job["number"], **apart(job, told["most"])}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
