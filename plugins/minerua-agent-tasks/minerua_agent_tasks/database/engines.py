"""Executing SQL: jobs, what comes of them, and SQLite in the sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, final

from ..remembering import Memory
from ..sandbox import Limits, Outcome, Sandbox
from .items import DatabaseItem, Table

__all__ = ["Engine", "Job", "Output", "RememberingEngine", "Result", "SqliteEngine"]

_MOST_TOGETHER, _MOST_TOGETHER_BYTES = 128, 4 << 20
MOST_ROWS, MOST_RESULT_BYTES = 1000, 256 << 10
"""What is kept of a result; an answer with more is none."""


@dataclass(frozen=True)
class Job:
    """SQL to execute on the fresh database of an item.

    Args:
        item: The item.
        statements: What a model said, one text per turn; a text may hold several statements.
        checks: Queries that are executed afterwards.
        state: Whether digests of the tables are wanted.
    """

    item: DatabaseItem
    statements: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    state: bool = False


@dataclass(frozen=True)
class Output:
    """What a text with statements gave.

    Args:
        rows: The rows of the last statement that returns some; `None` if none does, or after an error.
        changed: How many rows the last other statement changed; -1 if that is not known.
        error: What the database said; later statements of the text were not executed.
        is_cut: There were more rows, or they were larger, than is kept.
        is_certain: The SQL itself is the reason of the error, and no lack of time, memory or anything else.
    """

    rows: tuple[tuple[Any, ...], ...] | None = None
    changed: int = -1
    error: str | None = None
    is_cut: bool = False
    is_certain: bool = False

    @property
    def is_lasting(self) -> bool:
        """Whether it would be the same at another time."""
        return self.error is None or self.is_certain


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Args:
        outputs: One per text of statements.
        checks: One per check.
        digest: Of all tables; `None` if it was not asked for, or cannot be had.
        agentbench: AgentBench's digests of the item's tables, in order.
        fault: The item's own database could not be made; nothing else is told then.
        ended: The statements ended more than themselves: why; nothing else is told then.
    """

    outputs: tuple[Output, ...] = ()
    checks: tuple[Output, ...] = ()
    digest: str | None = None
    agentbench: tuple[str, ...] = ()
    fault: str | None = None
    ended: str | None = None


class Engine(Protocol):
    """Something that executes jobs, each on a database of its own."""

    def run(self, jobs: Sequence[Job], workers: int) -> list[Result]:
        """Returns one result per job, in order; no result depends on `workers`."""


@final
class RememberingEngine:
    """Executes a job once: the same SQL on a fresh database of the same item gives the same again.

    What was stopped, or ended in an error that may have been the machine's fault, is executed every time.

    Args:
        engine: What executes.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known = Memory[Result]()

    def run(self, jobs: Sequence[Job], workers: int) -> list[Result]:
        """Returns one result per job, in order."""
        keys = [(job.item.id, job.statements, job.checks, job.state) for job in jobs]
        found = {key: known for key in keys if (known := self._known.find(key)) is not None}
        new = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
        for key, result in zip(new, self._engine.run(list(new.values()), workers), strict=True):
            found[key] = result
            is_lasting = all(out.is_lasting for out in (*result.outputs, *result.checks))
            if is_lasting and not (result.ended or result.fault):
                self._known.keep(key, result)
        return [found[key] for key in keys]


class SqliteEngine:
    """SQLite, embedded, in the sandbox: a database in memory and a process of its own for each job.

    Args:
        sandbox: Where.
        limits: `seconds` holds for each job's statements, the others for a run, which up to 128 jobs share.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox, self._limits = sandbox, limits

    def run(self, jobs: Sequence[Job], workers: int) -> list[Result]:
        """Returns one result per job; the jobs of a run that ended early go on in another one."""
        told = [_told(number, job) for number, job in enumerate(jobs)]
        results: dict[int, Result] = {}
        with ThreadPoolExecutor(workers) as pool:
            for found in pool.map(self._results, _batches(told, workers)):
                results |= found
        return [results[number] for number in range(len(jobs))]

    def _results(self, told: list[dict[str, Any]]) -> dict[int, Result]:
        results: dict[int, Result] = {}
        while told:
            outcome, found = self._run(told)
            results |= found
            told = [job for job in told if job["number"] not in results]
            if told and not found:  # the first of a run, so it was alone
                results[told[0]["number"]] = Result(ended=f"its run was {outcome}" if outcome.limit else _gone(outcome))
                told = told[1:]
        return results

    def _run(self, told: list[dict[str, Any]]) -> tuple[Outcome, dict[int, Result]]:
        each = self._limits.seconds
        most = {"rows": MOST_ROWS, "bytes": MOST_RESULT_BYTES, "seconds": each, "heap": self._limits.memory_bytes // 4}
        whole = 5 * each * len(told) + 10
        limits = replace(self._limits, seconds=whole, cpu_seconds=whole, output_bytes=256 << 20)
        content = json.dumps({"jobs": told, "most": most})
        command = [self._sandbox.python, "-s", "-S", "-B", "sqlite_room.py"]
        outcome = self._sandbox.run(command, files=_files(), stdin=content, limits=limits)
        lines = [json.loads(line) for line in outcome.stdout.splitlines(keepends=True) if line.endswith(b"\n")]
        return outcome, {line["number"]: _result(line) for line in lines}


def _gone(outcome: Outcome) -> str:
    return f"its run ended ({outcome}): {outcome.stderr.decode(errors='replace').strip()[-200:]}"


@lru_cache(maxsize=1)
def _files() -> dict[str, bytes]:
    folder = Path(__file__).parent / "inside"
    return {name: (folder / name).read_bytes() for name in ("sqlite_room.py", "tables.py")}


def _batches(told: list[dict[str, Any]], workers: int) -> list[list[dict[str, Any]]]:
    """Returns the jobs in groups that fit into one run, and so that every worker has one."""
    most = min(_MOST_TOGETHER, -(-len(told) // workers))
    batches: list[list[dict[str, Any]]] = []
    left = 0
    for job in told:
        size = len(json.dumps(job))
        if not batches or len(batches[-1]) == most or size > left:
            batches.append([])
            left = _MOST_TOGETHER_BYTES
        batches[-1].append(job)
        left -= size
    return batches


def _told(number: int, job: Job) -> dict[str, Any]:
    tables = [_plain(table, job.item.is_agentbench) for table in job.item.tables]
    digests = [{"name": t.name, "columns": [name for name, _ in t.columns]} for t in job.item.tables]
    return {
        "number": number,
        "tables": tables,
        "script": job.item.setup,
        "statements": job.statements,
        "checks": job.checks,
        "state": job.state,
        "digests": digests if job.item.agentbench_md5 else [],
    }


def _plain(table: Table, is_agentbench: bool) -> dict[str, Any]:
    columns = [list(column) for column in table.columns]
    rows = [list(row) for row in table.rows]
    if is_agentbench:
        rows = [[None if value is None else str(value) for value in row] for row in rows]
        columns = [[name, _affinity(kind, [row[k] for row in rows])] for k, (name, kind) in enumerate(columns)]
    return {"name": table.name, "columns": columns, "rows": rows}


def _affinity(kind: str, values: list[str | None]) -> str:
    """Returns the type of a column that AgentBench's MySQL had as TEXT.

    MySQL compares texts without regard to case, and with numbers as numbers. SQLite does the second only for columns
    of numbers, so whole numbers become such where no digit is lost by it.
    """
    is_whole = all(value is None or str(int(value)) == value for value in values if _is_digits(value))
    if kind.upper().startswith("INT") and is_whole and all(map(_is_digits, values)):
        return "INTEGER"
    return "TEXT COLLATE NOCASE"


def _is_digits(value: str | None) -> bool:
    return value is None or re.fullmatch(r"-?[0-9]{1,18}", value) is not None


def _result(line: dict[str, Any]) -> Result:
    state = line.get("state") or {}
    return Result(
        outputs=tuple(map(_output, line.get("outputs", ()))),
        checks=tuple(map(_output, line.get("checks", ()))),
        digest=state.get("all"),
        agentbench=tuple(state.get("agentbench", ())),
        fault=line.get("fault"),
        ended=line.get("ended"),
    )


def _output(told: dict[str, Any]) -> Output:
    rows = told["rows"]
    return Output(
        rows=None if rows is None else tuple(map(tuple, rows)),
        changed=told["changed"],
        error=told["error"],
        is_cut=told["is_cut"],
        is_certain=told["is_certain"],
    )
