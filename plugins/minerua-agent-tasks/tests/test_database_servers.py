"""Databases on servers: PostgreSQL for real where it is installed, and clear words where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from minerua_agent_tasks.database import DatabaseItem, Table
from minerua_agent_tasks.database.engines import Job
from minerua_agent_tasks.database.inside.tables import insertion
from minerua_agent_tasks.database.servers import _DIALECTS, ServerEngine

from minerua.errors import ConfigError, StorageError

TABLE = Table("t", (("x", ""), ("a:b%", "")), ((1, "a"), (2, None)))
ITEM = DatabaseItem("1", "x", tables=(TABLE,), agentbench_md5="x")


def test_a_missing_library_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(
        ConfigError, match=r"url needs SQLAlchemy: pip install 'minerua-agent-tasks\[sql\]', and a driver"
    ):
        ServerEngine("postgresql://user@host/name", seconds=1)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("nonsense", "url is no SQLAlchemy URL, such as postgresql"),
        ("postgresql+nothing://u:secret@h/d", "url is no SQLAlchemy URL, such as postgresql"),
        (
            "sqlite://",
            "no way is known to keep items apart in 'sqlite'; use one of postgresql, mysql, mariadb, or SQLite",
        ),
        ("mysql+mysqldb://u:secret@h/d", "the driver of mysql+mysqldb://u:***@h/d is not installed: "),
    ],
)
def test_urls_that_cannot_be_used_are_told_without_their_password(url, fault, monkeypatch):
    pytest.importorskip("sqlalchemy")
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with pytest.raises(ConfigError) as caught:
        ServerEngine(url, seconds=1)
    assert fault in str(caught.value)
    assert "secret" not in str(caught.value)


def test_every_kind_of_server_has_its_statements():
    every = {name: [*kind.begin, kind.end, kind.session, kind.cancel, kind.rights] for name, kind in _DIALECTS.items()}
    assert every == {
        "postgresql": [
            'CREATE SCHEMA "{schema}"',
            'SET search_path TO "{schema}"',
            "SET statement_timeout = {milliseconds}",
            'DROP SCHEMA IF EXISTS "{schema}" CASCADE',
            "SELECT pg_backend_pid()",
            "SELECT pg_terminate_backend({session})",
            "SELECT current_setting('is_superuser') = 'on'",
        ],
        "mysql": [
            "CREATE DATABASE `{schema}`",
            "USE `{schema}`",
            "SET max_execution_time = {milliseconds}",
            "DROP DATABASE IF EXISTS `{schema}`",
            "SELECT connection_id()",
            "KILL {session}",
            "",
        ],
        "mariadb": [
            "CREATE DATABASE `{schema}`",
            "USE `{schema}`",
            "SET max_statement_time = {seconds}",
            "DROP DATABASE IF EXISTS `{schema}`",
            "SELECT connection_id()",
            "KILL {session}",
            "",
        ],
    }
    assert insertion("t", [":v0", ":v1"]) == "INSERT INTO t VALUES (:v0, :v1)"


@pytest.fixture(scope="module")
def server():
    """Starts a PostgreSQL of its own; yields the beginning of its URLs, and their end."""
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("psycopg")
    if not all(map(shutil.which, ("initdb", "pg_ctl", "psql"))) or sys.platform != "linux":
        pytest.skip("PostgreSQL is not installed")
    folder = tempfile.mkdtemp(prefix="minerua-pg-")  # pytest's own folders are closed to other users
    user = "nobody" if os.getuid() == 0 else None  # PostgreSQL refuses root
    if user:
        shutil.chown(folder, user)

    def command(*words, user=user):
        subprocess.run(words, check=True, capture_output=True, user=user, cwd="/", timeout=60)

    command("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "postgres", "-N")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off"
    command("pg_ctl", "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
    try:
        for sql in ("CREATE ROLE tasks LOGIN", "CREATE DATABASE tasks OWNER tasks"):
            command("psql", "-h", folder, "-U", "postgres", "-c", sql, user=None)
        yield "postgresql+psycopg://", f"@/tasks?host={folder}"
    finally:
        command("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def engine(server):
    return ServerEngine("tasks".join(server), seconds=0.4)


def test_jobs_run_in_schemas_of_their_own_that_are_gone_afterwards(engine):
    said = (
        "DELETE FROM t WHERE x = 1",
        'SELECT x, "a:b%", 5 % 2, 1.5::numeric FROM t',
        "SELECT nspname FROM pg_namespace",
    )
    first, second = engine.run([Job(ITEM, said, state=True), Job(ITEM, ("SELECT count(*) FROM t",), state=True)], 2)
    assert first.outputs[0].changed == 1
    assert first.outputs[1].rows == ((2, None, 1, "1.5"),)
    assert second.outputs[0].rows == ((2,),)
    assert first.digest != second.digest
    assert first.agentbench != second.agentbench
    (left,) = engine.run([Job(ITEM, ("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'minerua%'",))], 1)
    assert left.outputs[0].rows == ((1,),)
    assert engine.kind == "PostgreSQL"


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("nonsense", 'syntax error at or near "nonsense"'),
        ("SELECT pg_sleep(9)", "canceling statement due to statement timeout"),
        ("COPY t TO PROGRAM 'id'", "must be superuser or have privileges"),
    ],
)
def test_what_the_server_says_is_an_outcome(sql, error, engine):
    (result,) = engine.run([Job(ITEM, (sql,))], 1)
    assert error in result.outputs[0].error


def test_statements_that_take_the_limit_away_are_ended_all_the_same(engine):
    (result,) = engine.run([Job(ITEM, ("SET statement_timeout = 0", "SELECT pg_sleep(9)"))], 1)
    assert result.ended == "they took too long"


def test_more_rows_than_are_kept_are_cut_and_open_changes_taken_back(engine):
    (result,) = engine.run([Job(ITEM, ("SELECT generate_series(1, 2000)",))], 1)
    assert (len(result.outputs[0].rows), result.outputs[0].is_cut) == (1000, True)
    open_, plain = engine.run([Job(ITEM, ("BEGIN", "DELETE FROM t"), state=True), Job(ITEM, (), state=True)], 1)
    assert open_.digest == plain.digest


def test_setups_that_fail_are_faults_of_the_item(engine):
    (result,) = engine.run([Job(DatabaseItem("1", "x", setup="nonsense"))], 1)
    assert result.fault == 'syntax error at or near "nonsense"'


def test_superusers_and_servers_that_cannot_be_reached_are_refused(server, tmp_path):
    with pytest.raises(ConfigError, match="is a superuser, so SQL that a model wrote could do anything on"):
        ServerEngine("postgres".join(server), seconds=1)
    with pytest.raises(ConfigError, match=r"cannot be used: .*It must be reachable, and its user must be"):
        ServerEngine(f"postgresql+psycopg://x@/x?host={tmp_path}", seconds=1)


def test_a_server_that_is_lost_is_told(server, monkeypatch):
    engine = ServerEngine("tasks".join(server), seconds=1)
    monkeypatch.setattr(engine, "_engine", _gone(server))
    with pytest.raises(StorageError, match=r"the database postgresql.* was lost: "):
        engine.run([Job(ITEM)], 1)


def _gone(server):
    import sqlalchemy

    return sqlalchemy.create_engine(f"{server[0]}tasks@/tasks?host=/nowhere", poolclass=sqlalchemy.NullPool)


def test_variables_of_the_environment_are_put_into_urls(server, monkeypatch):
    monkeypatch.setenv("MINERUA_TEST_USER", "tasks")
    assert ServerEngine("$MINERUA_TEST_USER".join(server), seconds=1).shown.startswith("postgresql+psycopg://tasks@")
