"""The evaluator of database tasks: models write SQL, which is executed; in one turn, or in several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minerua.errors import ConfigError
from minerua.settings import Settings
from minerua.values import EvaluatorSpec, Exhibit, RunContext

from ..asking import UNANSWERED, Conversation, answers, continued
from ..sandbox import Limits, Sandbox
from ..settings import read_limits, read_report, read_sandbox
from ..showing import shown
from ..verdict import Verdict
from .comparing import is_agentbench_answer, is_same_rows
from .dialogue import Move, move_in, opening, reply, sql_in, template
from .engines import MOST_ROWS, Engine, Job, Output, RememberingEngine, Result, SqliteEngine
from .items import DatabaseItem, read_database_items

__all__ = ["LIMITS", "configure_database", "database_evaluator"]

_VERSION = "1"
LIMITS = Limits(seconds=2.0, memory_bytes=512 << 20)
"""Of an item's statements, if nothing else is said; of a run, everything but the seconds."""

_Rows = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class _Expected:
    """What an item wants: rows, or else tables with a digest."""

    rows: _Rows | None = None
    digest: str | None = None


@dataclass
class _Dialogue:
    """One model at one item, as far as they have come."""

    item: DatabaseItem
    conversation: Conversation
    statements: list[str] = field(default_factory=list)
    last: str | None = None  # what the model said last, as long as it was not answered
    answer: _Rows | None = None
    end: str = ""  # why it is over; "" as long as it is not


def database_evaluator(
    path: str | Path,
    *,
    name: str = "database",
    engine: Engine | None = None,
    limits: Limits = LIMITS,
    turns: int = 1,
    prompt: str | None = None,
    system: str | None = None,
    kind: str = "SQLite",
    workers: int = 1,
    report: Callable[[str, Verdict], None] | None = None,
) -> EvaluatorSpec:
    """Returns an evaluator whose items are the lines of a JSONL file.

    All items of all models are asked in one call per turn, and what they wrote is executed together. Each turn begins
    with a fresh database on which everything that the model has said so far is executed again. What was executed
    without an error is remembered: children of a population mostly write what others wrote.

    Args:
        path: The items, see `read_database_items`.
        name: The evaluator's name.
        engine: Where SQL is executed; by default SQLite in `Sandbox()`, the strongest that this machine offers.
        limits: For the engine that is made by default.
        turns: How often a model may write. In one turn, the rows that its SQL gives are its answer; in several, it
            operates and answers as in AgentBench.
        prompt: A template, see `dialogue.template`.
        system: What models are told before everything else.
        kind: How the database is called in the rules of several turns.
        workers: How many runs at the same time; no outcome depends on it.
        report: Called with the item's id and its verdict, from this thread, in the order of models and ids.

    Raises:
        ConfigError: The items, or a setting, are not as they should be; items are tried, with their solutions.
        minerua_agent_tasks.sandbox.SandboxUnavailable: There is no strong mode, and no engine was given.
    """
    if turns < 1 or workers < 1:
        raise ConfigError(f"evaluator {name!r}: turns is {turns} and workers is {workers}; both are at least 1")
    items = {item.id: item for item in read_database_items(path)}
    made = RememberingEngine(SqliteEngine(Sandbox(), limits) if engine is None else engine)
    asked = template(prompt)
    begun = {id: opening(asked(item), system, turns=turns, kind=kind) for id, item in items.items()}
    expected = _all_expected(list(items.values()), made, workers, path)

    def judged(models: Sequence[Any], ids: Sequence[Sequence[str]]) -> list[tuple[_Dialogue, Verdict]]:
        dialogues = [[_Dialogue(items[id], begun[id]) for id in some] for some in ids]
        every = [dialogue for some in dialogues for dialogue in some]
        _take_turns(models, dialogues, made, turns=turns, workers=workers)
        return list(zip(every, _verdicts(every, expected, made, workers, is_only=turns == 1), strict=True))

    def evaluate_many(models: Sequence[Any], ids: Sequence[Sequence[str]], seed: int) -> list[list[float]]:
        del seed  # nothing here is left to chance
        found = judged(models, ids)
        for dialogue, verdict in found:
            if report is not None:
                report(dialogue.item.id, verdict)
        left = iter(found)
        return [[next(left)[1].outcome for _ in some] for some in ids]

    def exhibit(model: Any, ids: Sequence[str]) -> list[Exhibit]:
        return [shown(one.item.id, one.conversation, one.last, verdict) for one, verdict in judged([model], [ids])]

    told = [_VERSION, asdict(limits), turns, kind, list(begun.values()), [asdict(item) for item in items.values()]]
    return EvaluatorSpec(
        name=name,
        items=lambda: list(items),
        evaluate=lambda model, ids, seed: evaluate_many([model], [ids], seed)[0],
        evaluate_many=evaluate_many,
        inputs=lambda ids: [begun[id] for id in ids],
        version=hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16],
        exhibit=exhibit,
    )


# ── what is expected ─────────────────────────────────────────────────────────────────────────────────────────────────


def _all_expected(items: list[DatabaseItem], engine: Engine, workers: int, path: str | Path) -> dict[str, _Expected]:
    """Makes every item's database once, and executes its solution, so that faults are told before anything begins."""
    jobs = [_solution(item) for item in items]
    expected, faults = {}, []
    for job, result in zip(jobs, engine.run(jobs, workers), strict=True):
        fault = _fault(job, result)
        if fault:
            faults.append(f"item {job.item.id!r}: {fault}")
        else:
            expected[job.item.id] = _wanted(job.item, result)
    if faults:
        raise ConfigError(f"{len(faults)} of the {len(items)} items in {path} cannot be used", faults[:50])
    return expected


def _solution(item: DatabaseItem) -> Job:
    statements = (item.solution,) if item.solution else ()
    checks = (item.check,) if item.check and item.solution else ()
    return Job(item, statements, checks, state=bool(item.solution and not item.check))


def _fault(job: Job, result: Result) -> str | None:
    if result.fault or result.ended:
        return f"its database cannot be made: {result.fault or result.ended}"
    for output in (*result.outputs, *result.checks):
        if output.error:
            return f"its own solution failed: {output.error}"
        if output.is_cut:
            return f"its own solution gives more than {MOST_ROWS} rows, or very large ones"
    if any(output.rows is None for output in result.checks):
        return "its check returns no rows; it is a query"
    return None


def _wanted(item: DatabaseItem, result: Result) -> _Expected:
    if item.answer is not None:
        return _Expected(rows=item.answer)
    if result.checks:
        return _Expected(rows=result.checks[0].rows)
    if result.outputs and result.outputs[0].rows is not None:
        return _Expected(rows=result.outputs[0].rows)
    return _Expected(digest=item.agentbench_md5 or item.digest or result.digest)


# ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _take_turns(
    models: Sequence[Any], dialogues: list[list[_Dialogue]], engine: Engine, *, turns: int, workers: int
) -> None:
    """Asks all that are not over, and tells those that operate what came of it, turn after turn."""
    for turn in range(1, turns + 1):
        going = [[one for one in some if not one.end] for some in dialogues]
        if not any(going):
            return
        given = answers(models, [[one.conversation for one in some] for some in going])
        said = [pair for some, texts in zip(going, given, strict=True) for pair in zip(some, texts, strict=True)]
        for dialogue, text in said:
            _read(dialogue, text, is_last=turn == turns, is_only=turns == 1)
        operating = [(dialogue, text) for dialogue, text in said if not dialogue.end and text is not None]
        results = engine.run([Job(one.item, tuple(one.statements)) for one, _ in operating], workers)
        for (dialogue, text), result in zip(operating, results, strict=True):
            output = result.outputs[-1] if result.outputs else Output(error=result.ended or result.fault)
            dialogue.conversation, dialogue.last = continued(dialogue.conversation, text, reply(output)), None


def _read(dialogue: _Dialogue, text: str | None, *, is_last: bool, is_only: bool) -> None:
    if text is None:
        dialogue.end = UNANSWERED
        return
    dialogue.last = text
    move = Move(sql=sql_in(text)) if is_only else move_in(text)
    if move is None:
        dialogue.end = "an answer was neither an operation with a block of SQL nor a final answer"
    elif move.sql is not None:
        dialogue.statements.append(move.sql)
        if is_last:
            dialogue.end = "executed" if is_only else "the turns were used up without a final answer"
    else:
        dialogue.answer, dialogue.end = move.answer, "answered"


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _verdicts(
    dialogues: list[_Dialogue], expected: Mapping[str, _Expected], engine: Engine, workers: int, *, is_only: bool
) -> list[Verdict]:
    verdicts: dict[int, Verdict] = {}
    jobs: list[tuple[int, Job]] = []
    for number, one in enumerate(dialogues):
        wants_rows = expected[one.item.id].rows is not None and not one.item.check
        if wants_rows and not is_only:
            verdicts[number] = _of_answer(one, expected[one.item.id])
        elif not one.statements:
            verdicts[number] = Verdict(0.0, one.end if one.end != "answered" else "it answered without any operation")
        else:
            checks = (one.item.check,) if one.item.check else ()
            jobs.append((number, Job(one.item, tuple(one.statements), checks, state=not wants_rows and not checks)))
    for (number, job), result in zip(jobs, engine.run([job for _, job in jobs], workers), strict=True):
        verdicts[number] = _of_result(job.item, expected[job.item.id], result)
    return [verdicts[number] for number in range(len(dialogues))]


def _of_answer(one: _Dialogue, expected: _Expected) -> Verdict:
    if one.answer is None:
        return Verdict(0.0, one.end)
    return _of_rows(one.item, expected, one.answer)


def _of_result(item: DatabaseItem, expected: _Expected, result: Result) -> Verdict:
    """Judges what the database says: of the check, of the model's own rows, or of the tables."""
    if result.ended or result.fault:
        return Verdict(0.0, f"the statements were stopped: {result.ended or result.fault}")
    error = next((output.error for output in reversed(result.outputs) if output.error), None)
    after = f"; before that the database said: {error:.200}" if error else ""
    if expected.rows is None:
        found = "_".join(sorted(result.agentbench)) if item.agentbench_md5 else result.digest
        if found == expected.digest:
            return Verdict(1.0, "the tables are as they should be")
        return Verdict(0.0, f"the tables are not as they should be{after}")
    output = result.checks[0] if result.checks else result.outputs[-1]
    if output.error is not None:
        return Verdict(0.0, f"the database said: {output.error:.200}")
    if output.rows is None:
        return Verdict(0.0, "the statements return no rows")
    if output.is_cut:
        return Verdict(0.0, f"the result has more than {MOST_ROWS} rows, or very large ones")
    return _of_rows(item, expected, output.rows)


def _of_rows(item: DatabaseItem, expected: _Expected, rows: _Rows) -> Verdict:
    wanted = expected.rows or ()
    if item.is_agentbench:
        is_right = is_agentbench_answer(rows, wanted)
    else:
        is_right = is_same_rows(rows, wanted, ordered=item.is_ordered)
    if is_right:
        return Verdict(1.0, "the rows are as they should be")
    return Verdict(0.0, f"{list(rows)!r:.80} was found, not {list(wanted)!r:.80}")


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def configure_database(settings: Mapping[str, Any], context: RunContext) -> EvaluatorSpec:
    """Returns the database evaluator that the settings of a task describe.

    `path` (required), `turns`, `prompt`, `system`, `limits`, `sandbox`, `url`, `report`: see the README.

    Raises:
        ConfigError: Settings, items, the machine or the server are not as they should be; all faults.
    """
    told = Settings("the evaluator 'database'", settings, context.folder)
    path, turns = told.path("path", what="a file"), told.whole("turns", 1)
    prompt, system = told.text("prompt", None), told.text("system", None)
    limits, report, url = read_limits(told, LIMITS), read_report(told), told.text("url", None)
    told.made(lambda: template(prompt), None)
    if told.has("path"):
        told.made(lambda: read_database_items(path), None)
    engine, kind = _engine(told, url, limits)
    told.done()
    return database_evaluator(
        path,
        engine=engine,
        limits=limits,
        turns=turns,
        prompt=prompt,
        system=system,
        kind=kind,
        workers=max(1, context.workers),
        report=report,
    )


def _engine(told: Settings, url: str | None, limits: Limits) -> tuple[Engine | None, str]:
    if url is None:
        sandbox = read_sandbox(told)
        return (SqliteEngine(sandbox, limits) if sandbox else None), "SQLite"
    from .servers import ServerEngine  # SQLAlchemy is looked for only here

    if told.value("sandbox", None) is not None:
        told.fault("sandbox is for SQLite, which runs without url; on a server SQL has the rights of its user")
    engine = told.made(lambda: ServerEngine(url, seconds=limits.seconds), None)
    return engine, engine.kind if engine else ""
