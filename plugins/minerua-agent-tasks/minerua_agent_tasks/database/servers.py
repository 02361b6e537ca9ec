"""Executing SQL on a server that the user names by a SQLAlchemy URL: a schema for every job, dropped after it.

Nothing here keeps SQL from doing what the user of the URL may do. The README says which rights that should be.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minerua.errors import ConfigError, StorageError

from .engines import MOST_RESULT_BYTES, MOST_ROWS, Job, Output, Result
from .inside.tables import agentbench_digest, creation, insertion, plain, state_digest
from .items import Table

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["ServerEngine"]


_GRACE_SECONDS = 0.25
"""How much later than the server a job's statements are ended from here."""


@dataclass(frozen=True)
class _Dialect:
    """What differs between servers; `{schema}`, `{seconds}`, `{milliseconds}` and `{session}` are filled in."""

    title: str
    begin: tuple[str, ...]
    end: str
    session: str
    cancel: str
    rights: str = ""


_DIALECTS = {
    "postgresql": _Dialect(
        "PostgreSQL",
        ('CREATE SCHEMA "{schema}"', 'SET search_path TO "{schema}"', "SET statement_timeout = {milliseconds}"),
        'DROP SCHEMA IF EXISTS "{schema}" CASCADE',
        "SELECT pg_backend_pid()",
        "SELECT pg_terminate_backend({session})",
        "SELECT current_setting('is_superuser') = 'on'",
    ),
    "mysql": _Dialect(
        "MySQL",
        ("CREATE DATABASE `{schema}`", "USE `{schema}`", "SET max_execution_time = {milliseconds}"),
        "DROP DATABASE IF EXISTS `{schema}`",
        "SELECT connection_id()",
        "KILL {session}",
    ),
    "mariadb": _Dialect(
        "MariaDB",
        ("CREATE DATABASE `{schema}`", "USE `{schema}`", "SET max_statement_time = {seconds}"),
        "DROP DATABASE IF EXISTS `{schema}`",
        "SELECT connection_id()",
        "KILL {session}",
    ),
}


class ServerEngine:
    """Executes jobs on a server.

    A job has a connection of its own, which is ended if its statements take longer than they may: the server's limit
    for statements is set too, but SQL can take that away.

    Args:
        url: A SQLAlchemy URL; `$NAME` in it stands for a variable of the environment.
        seconds: How long all statements of a job may take.

    Raises:
        ConfigError: SQLAlchemy or a driver is missing, the URL is none, the kind of database is not known, it cannot be
            reached, or its user may do everything.
    """

    def __init__(self, url: str, *, seconds: float) -> None:
        self._engine, self.shown = _engine(os.path.expandvars(url))
        self._dialect = _DIALECTS[self._engine.dialect.name]
        self.kind, self._seconds = self._dialect.title, seconds
        self._check()

    def _check(self) -> None:
        """Connects, makes a schema and drops it."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._engine.connect() as connection:
                is_superuser = self._dialect.rights and _scalar(connection, self._dialect.rights)
            if not is_superuser:
                with self._schema():
                    pass
        except (SQLAlchemyError, OSError) as error:
            raise ConfigError(
                f"the database {self.shown} cannot be used: {_told(error)}. It must be reachable, and its user must be "
                "allowed to create schemas"
            ) from error
        if is_superuser:
            raise ConfigError(
                f"the user of {self.shown} is a superuser, so SQL that a model wrote could do anything on that "
                "machine; give a user that may do nothing but create schemas in a database of its own"
            )

    def run(self, jobs: Sequence[Job], workers: int) -> list[Result]:
        """Returns one result per job, in order.

        Raises:
            StorageError: The server cannot be reached any more.
        """
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self._result, jobs))

    @contextmanager
    def _schema(self) -> Iterator[tuple[Connection, str]]:
        """Opens a connection in a fresh schema; drops it by another one, whatever became of the first."""
        names = {
            "schema": f"minerua_{uuid.uuid4().hex}",
            "seconds": self._seconds,
            "milliseconds": max(1, int(self._seconds * 1000)),
        }
        connection = self._engine.connect()
        try:
            for statement in self._dialect.begin:
                connection.exec_driver_sql(statement.format(**names))
            yield connection, str(names["schema"])
        finally:
            connection.invalidate()  # SQL may have changed settings of the session
            connection.close()
            self._alone(self._dialect.end.format(**names))

    def _alone(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def _result(self, job: Job) -> Result:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._schema() as (connection, schema):
                return self._done(connection, job, schema)
        except (SQLAlchemyError, OSError) as error:
            raise StorageError(f"the database {self.shown} was lost: {_told(error)}") from error

    def _done(self, connection: Connection, job: Job, schema: str) -> Result:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            _furnish(connection, job)
        except SQLAlchemyError as error:
            return Result(fault=_told(error))
        is_late = threading.Event()
        session = _scalar(connection, self._dialect.session)
        timer = threading.Timer(self._seconds + _GRACE_SECONDS, self._cancel, (session, is_late))
        timer.start()
        try:
            outputs = tuple(_said(connection, sql) for sql in job.statements)
            checks = tuple(_said(connection, sql) for sql in job.checks)
            result = Result(outputs, checks, *(_state(connection, job, schema) if job.state else ()))
        except SQLAlchemyError as error:
            result = Result(outputs=(Output(error=_told(error)),), ended=_told(error))
        finally:
            timer.cancel()
            timer.join()
        return Result(ended="they took too long") if is_late.is_set() else result

    def _cancel(self, session: Any, is_late: threading.Event) -> None:
        is_late.set()
        self._alone(self._dialect.cancel.format(session=session))


def _engine(url: str) -> tuple[Any, str]:
    try:
        import sqlalchemy
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError
        from sqlalchemy.pool import NullPool
    except ImportError as error:
        raise ConfigError("url needs SQLAlchemy: pip install 'minerua-agent-tasks[sql]', and a driver") from error
    try:
        made = sqlalchemy.make_url(url)
        shown = made.render_as_string(hide_password=True)
        if made.get_backend_name() not in _DIALECTS:
            raise ConfigError(
                f"no way is known to keep items apart in {made.get_backend_name()!r}; use one of "
                f"{', '.join(_DIALECTS)}, or SQLite, which needs no url"
            )
        return sqlalchemy.create_engine(made, poolclass=NullPool, isolation_level="AUTOCOMMIT"), shown
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError("url is no SQLAlchemy URL, such as postgresql+psycopg://user:$PASSWORD@host/name") from error
    except ImportError as error:
        raise ConfigError(f"the driver of {shown} is not installed: {error}; install it with pip") from error


def _scalar(connection: Connection, sql: str) -> Any:
    return connection.exec_driver_sql(sql).scalar()


def _told(error: BaseException) -> str:
    """Returns what the driver said, without the statement and its parameters."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


# ── one job ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _quoted(connection: Connection, name: str) -> str:
    mark = str(connection.dialect.identifier_preparer.initial_quote)
    return f"{mark}{name.replace(mark, mark + mark)}{mark}"


def _furnish(connection: Connection, job: Job) -> None:
    from sqlalchemy import text

    for table in job.item.tables:
        told = {"name": table.name, "columns": _columns(table, job.item.is_agentbench)}
        connection.exec_driver_sql(_escaped(creation(told, lambda name: _quoted(connection, name)), connection))
        if table.rows:
            name = _quoted(connection, table.name).replace(":", "\\:")  # what stands after a colon is a parameter
            insert = text(insertion(name, [f":v{k}" for k in range(len(table.columns))]))
            rows = [_values(row, job.item.is_agentbench) for row in table.rows]
            connection.execute(insert, [{f"v{k}": value for k, value in enumerate(row)} for row in rows])
    if job.item.setup:
        connection.exec_driver_sql(_escaped(job.item.setup, connection))


def _columns(table: Table, is_agentbench: bool) -> list[tuple[str, str]]:
    """Returns names and types: AgentBench makes every column TEXT; where no type is given, its values have one."""
    kinds = [kind or _kind([row[k] for row in table.rows]) for k, (_, kind) in enumerate(table.columns)]
    names = [name for name, _ in table.columns]
    return [(name, "TEXT" if is_agentbench else kind) for name, kind in zip(names, kinds, strict=True)]


def _kind(values: list[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {int}:
        return "BIGINT"
    return "DOUBLE PRECISION" if kinds and kinds <= {int, float} else "TEXT"


def _values(row: Sequence[Any], is_agentbench: bool) -> list[Any]:
    return [str(value) if is_agentbench and value is not None else value for value in row]


def _escaped(sql: str, connection: Connection) -> str:
    """Returns a statement for a driver that is given no parameters; some read a percent sign as one all the same."""
    return sql.replace("%", "%%") if connection.dialect.paramstyle in ("format", "pyformat") else sql


def _said(connection: Connection, sql: str) -> Output:
    from sqlalchemy.exc import DBAPIError

    try:
        cursor = connection.exec_driver_sql(_escaped(sql, connection))
        if not cursor.returns_rows:
            return Output(changed=cursor.rowcount)
        found = cursor.fetchmany(MOST_ROWS + 1)
        cursor.close()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return Output(error=_told(error))
    rows = tuple(tuple(map(plain, row)) for row in found[:MOST_ROWS])
    is_large = sum(len(str(value)) for row in rows for value in row) > MOST_RESULT_BYTES
    return Output(() if is_large else rows, is_cut=is_large or len(found) > MOST_ROWS)


def _state(connection: Connection, job: Job, schema: str) -> tuple[str, tuple[str, ...]]:
    """Returns the digest of all tables of the schema, and AgentBench's; what is open is taken back."""
    from sqlalchemy import inspect

    connection.exec_driver_sql("ROLLBACK")
    every = []
    for name in inspect(connection).get_table_names(schema):
        cursor = connection.exec_driver_sql(f"SELECT * FROM {_escaped(_quoted(connection, name), connection)}")
        every.append((name, list(cursor.keys()), [list(map(plain, row)) for row in cursor]))
    named = []
    for table in job.item.tables if job.item.agentbench_md5 else ():
        columns = ", ".join(_quoted(connection, name) for name, _ in table.columns)
        chosen = f"SELECT {columns} FROM {_quoted(connection, table.name)}"
        named.append(agentbench_digest(connection.exec_driver_sql(_escaped(chosen, connection)).fetchall()))
    return state_digest(every), tuple(named)
