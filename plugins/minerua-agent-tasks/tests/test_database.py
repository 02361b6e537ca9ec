"""Database items: read with all faults, SQL executed for real, judged by rows or by tables, in one turn or several."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest
from minerua_agent_tasks.database import DatabaseItem, Table, configure_database, database_evaluator
from minerua_agent_tasks.database.comparing import is_agentbench_answer, is_same_rows
from minerua_agent_tasks.database.dialogue import Move, move_in, reply, schema, sql_in
from minerua_agent_tasks.database.engines import Job, Output, Result, SqliteEngine, _plain
from minerua_agent_tasks.database.items import read_database_items
from minerua_agent_tasks.sandbox import Limits, Sandbox

from minerua.errors import ConfigError
from minerua.registry.specs import KINDS, spec_faults
from minerua.values import RunContext

PEOPLE = {"people": {"columns": ["name", {"name": "age", "type": "INTEGER"}], "rows": [["Ann", 30], ["Bo", 41]]}}
OLDEST = {"id": "oldest", "prompt": "Who is the oldest?", "tables": PEOPLE, "answer": ["Bo"]}
BIRTHDAY = {
    "id": "birthday",
    "prompt": "Ann has her birthday.",
    "tables": PEOPLE,
    "solution": "UPDATE people SET age = 31 WHERE name = 'Ann'",
}
RIGHT = {"oldest": "SELECT name FROM people ORDER BY age DESC LIMIT 1", "birthday": BIRTHDAY["solution"]}
ITEM = DatabaseItem("1", "x", tables=(Table("t", (("x", ""), ("y", "")), ((1, "a"), (2, "b"))),))


@pytest.fixture(scope="module")
def sandbox():
    offered = [offer.mode for offer in Sandbox.check() if offer.fault is None]
    with Sandbox(offered[0]) as one:
        yield one


@pytest.fixture(scope="module")
def engine(sandbox):
    return SqliteEngine(sandbox, Limits(seconds=0.5, memory_bytes=256 << 20))


def written(folder, *lines):
    path = folder / "items.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def answering(answers):
    """Returns a model that answers by the end of each conversation, and the list of what it was asked."""
    asked = []

    def model(conversations):
        asked.append([text if isinstance(text, str) else text[-1]["content"] for text in conversations])
        return [next(said for end, said in answers.items() if text.endswith(end)) for text in asked[-1]]

    return model, asked


def verdicts(path, engine, model, **settings):
    said = []
    spec = database_evaluator(path, engine=engine, report=lambda *a: said.append(a), **settings)
    outcomes = spec.evaluate(model, spec.items(), 0)
    assert outcomes == [verdict.outcome for _, verdict in said]
    return {id: (verdict.outcome, verdict.reason) for id, verdict in said}


# ── one turn ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_queries_are_judged_by_rows_and_changes_by_the_tables_that_they_leave(tmp_path, engine):
    path = written(tmp_path, OLDEST, BIRTHDAY)
    model, asked = answering({"oldest?": f"```sql\n{RIGHT['oldest']}\n```", "birthday.": RIGHT["birthday"]})
    assert verdicts(path, engine, model) == {
        "oldest": (1.0, "the rows are as they should be"),
        "birthday": (1.0, "the tables are as they should be"),
    }
    assert asked == [["Who is the oldest?", "Ann has her birthday."]]
    wrong, _ = answering({"oldest?": "SELECT name FROM people", "birthday.": "UPDATE people SET age = 31"})
    assert verdicts(path, engine, wrong) == {
        "oldest": (0.0, "[('Ann',), ('Bo',)] was found, not [('Bo',)]"),
        "birthday": (0.0, "the tables are not as they should be"),
    }


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (None, "the model gave no answer; the conversation may be longer than it can read"),
        ("", "the database said: there is no statement in it"),
        ("I do not know", 'the database said: near "I": syntax error'),
        ("UPDATE people SET age = 1", "the statements return no rows"),
        (
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
            "the database said: the statement was ended, because it took too long",
        ),
        (
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 2000) SELECT x FROM c",
            "the result has more than 1000 rows, or very large ones",
        ),
        ("SELECT hex(zeroblob(1000000))", "the result has more than 1000 rows, or very large ones"),
        ("SELECT hex(zeroblob(900000000))", "the database said: string or blob too big"),
        ("ATTACH '/tmp/room/x' AS other", "the database said: not authorized"),
        ("VACUUM INTO '/tmp/room/x'", "the database said: authorization denied"),
        ("PRAGMA writable_schema = 1", "the database said: not authorized"),
        ("PRAGMA hard_heap_limit = 0", "the database said: not authorized"),
        ("SELECT load_extension('x')", "the database said: not authorized to use function: load_extension"),
        ("DROP TABLE people; SELECT name FROM people", "the database said: no such table: people"),
        ("SELECT '\ud800'", "the database said: 'utf-8' codec can't encode character"),
    ],
)
def test_what_models_write_instead_is_worth_nothing_and_says_why(said, reason, tmp_path, engine):
    outcome, found = verdicts(written(tmp_path, OLDEST), engine, lambda asked: [said])["oldest"]
    assert outcome == 0.0
    assert found.startswith(reason)


def test_the_last_rows_of_several_statements_count_and_what_is_not_committed_does_not(tmp_path, engine):
    path = written(tmp_path, OLDEST, BIRTHDAY)
    change = RIGHT["birthday"]
    model, _ = answering({"oldest?": f"SELECT 1; {RIGHT['oldest']}; -- done", "birthday.": f"BEGIN; {change}"})
    assert [outcome for outcome, _ in verdicts(path, engine, model).values()] == [1.0, 0.0]
    model, _ = answering({"oldest?": "SELECT ';' || name FROM people", "birthday.": f"BEGIN; {change}; COMMIT; x"})
    found = verdicts(path, engine, model)
    assert found["oldest"][0] == 0.0
    assert found["birthday"][0] == 1.0


def test_no_item_sees_what_another_did(engine):
    jobs = [Job(ITEM, ("DELETE FROM t; CREATE TABLE other (x)",), state=True)] * 2
    jobs += [Job(ITEM, ("SELECT count(*), (SELECT count(*) FROM sqlite_master) FROM t",), state=True)] * 2
    results = engine.run(jobs, 1)
    assert [result.outputs[0].rows for result in results[2:]] == [((2, 1),)] * 2
    assert len({result.digest for result in results}) == 2
    assert engine.run(jobs, 3) == results


def test_chance_is_the_same_every_time(engine):
    job = Job(ITEM, ("SELECT random(), hex(randomblob(4)), x FROM t ORDER BY random()",))
    first, second = engine.run([job], 1), engine.run([job], 1)
    assert first == second
    assert first[0].outputs[0].error is None


def test_an_error_of_the_sql_is_told_from_one_that_time_may_have_made(engine):
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    jobs = [Job(ITEM, (sql,)) for sql in ("SELECT nothing FROM t", "SELEC", endless)]
    is_told = sys.version_info >= (3, 11)  # before, Python does not say which error it was
    assert [result.outputs[0].is_certain for result in engine.run(jobs, 1)] == [is_told, is_told, False]


def test_memory_of_one_item_is_not_that_of_others(sandbox):
    engine = SqliteEngine(sandbox, Limits(seconds=5, memory_bytes=64 << 20))
    greedy = Job(ITEM, ("CREATE TABLE big AS SELECT zeroblob(1000000) FROM t a, t b, t c, t d, t e, t f, t g, t h",))
    results = engine.run([Job(ITEM, ("SELECT 1",)), greedy, Job(ITEM, ("SELECT 2",))], 1)
    assert [result.outputs[0].rows for result in results[::2]] == [((1,),), ((2,),)]
    assert results[1].outputs[0].error == "out of memory (MemoryError)"


def test_a_run_that_ends_early_tells_the_job_that_ended_it(monkeypatch, engine):
    code = b"import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr("minerua_agent_tasks.database.engines._files", lambda: {"sqlite_room.py": code})
    (result,) = engine.run([Job(ITEM, ("SELECT 1",))], 1)
    assert result.ended is not None
    assert result.ended.startswith("its run ended (ended by the signal SIGKILL")


def test_a_run_that_passes_a_limit_tells_it(monkeypatch, engine):
    code = b"import os\nos.fork()\nheld = bytearray(200 << 20)\nwhile True: pass"
    monkeypatch.setattr("minerua_agent_tasks.database.engines._files", lambda: {"sqlite_room.py": code})
    (result,) = engine.run([Job(ITEM, ("SELECT 1",))], 1)
    assert (result.ended or "").startswith("its run was ended by the limit memory_bytes")


def test_statements_that_end_their_process_are_worth_nothing(tmp_path):
    class Ending:
        def run(self, jobs, workers):
            return [Result(ended="it took too long") if job.statements else Result() for job in jobs]

    found = verdicts(written(tmp_path, OLDEST), Ending(), lambda asked: ["SELECT 1"])["oldest"]
    assert found == (0.0, "the statements were stopped: it took too long")


def test_a_process_that_calls_no_handler_is_killed(monkeypatch, engine):
    from minerua_agent_tasks.database import engines

    files = dict(engines._files())
    room = files["sqlite_room.py"].replace(b"    outputs = [", b"    time.sleep(60)\n    outputs = [")
    monkeypatch.setattr(engines, "_files", lambda: {**files, "sqlite_room.py": room})
    assert engine.run([Job(ITEM, ("SELECT 1",))], 1)[0].ended == "it took too long"
    room = files["sqlite_room.py"].replace(b"    outputs = [", b"    os.abort()\n    outputs = [")
    monkeypatch.setattr(engines, "_files", lambda: {**files, "sqlite_room.py": room})
    assert engine.run([Job(ITEM, ("SELECT 1",))], 1)[0].ended == "its process ended with status 6"


# ── several turns ────────────────────────────────────────────────────────────────────────────────────────────────────


def operation(sql):
    return f"Let me look.\nAction: Operation\n```sql\n{sql}\n```"


def final(values):
    return f"I am sure.\nAction: Answer\nFinal Answer: {json.dumps(values)}"


def test_models_operate_see_what_came_of_it_and_answer(tmp_path, engine):
    path = written(tmp_path, OLDEST, BIRTHDAY)
    answers = {
        "oldest?": operation("SELECT nam FROM people"),
        "no such column: nam": operation("SELECT name, age FROM people"),
        "[('Ann', 30), ('Bo', 41)]": final(["Bo"]),
        "birthday.": operation(RIGHT["birthday"]),
        "Rows changed: 1": operation("SELECT age FROM people"),
        "[(31,), (41,)]": final(["done"]),
    }
    model, asked = answering(answers)
    assert verdicts(path, engine, model, turns=5) == {
        "oldest": (1.0, "the rows are as they should be"),
        "birthday": (1.0, "the tables are as they should be"),
    }
    assert [len(turn) for turn in asked] == [2, 2, 2]
    spec = database_evaluator(path, engine=engine, turns=5, system="Be brief.")
    first = spec.inputs(["oldest"])[0]
    assert [message["role"] for message in first] == ["system", "user", "assistant", "user"]
    assert "There are 5 turns" in first[1]["content"]
    assert "a SQLite database by SQL" in first[1]["content"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Bo", "an answer was neither an operation with a block of SQL nor a final answer"),
        ("Action: Operation\nSELECT 1", "an answer was neither an operation with a block of SQL"),
        ("Action: Answer\nBo", "an answer was neither an operation"),
        (operation("SELECT 1"), "the turns were used up without a final answer"),
        (final(["Ann"]), "[('Ann',)] was found, not [('Bo',)]"),
        (None, "the model gave no answer"),
    ],
)
def test_dialogues_that_lead_nowhere_say_why(said, reason, tmp_path, engine):
    outcome, found = verdicts(written(tmp_path, OLDEST), engine, lambda asked: [said] * len(asked), turns=2)["oldest"]
    assert outcome == 0.0
    assert found.startswith(reason)


def test_a_change_counts_however_the_dialogue_ends_and_none_without_an_operation(tmp_path, engine):
    path = written(tmp_path, BIRTHDAY)
    change = operation(RIGHT["birthday"])
    assert verdicts(path, engine, lambda asked: [change], turns=1)["birthday"][0] == 1.0
    assert verdicts(path, engine, lambda asked: [change], turns=3)["birthday"][0] == 1.0
    answered = verdicts(path, engine, lambda asked: [final(["done"])], turns=3)["birthday"]
    assert answered == (0.0, "it answered without any operation")
    wrong = verdicts(path, engine, lambda asked: [operation("DELETE FROM elsewhere")], turns=2)["birthday"]
    assert wrong == (
        0.0,
        "the tables are not as they should be; before that the database said: no such table: elsewhere",
    )


@pytest.mark.parametrize(
    ("answer", "move"),
    [
        ("Action: Operation\n```sql\nSELECT 1;\n```\nmore\n```sql\nSELECT 2\n```", Move(sql="SELECT 1;")),
        ("thinking Action: operation ```SELECT 1```", Move(sql="SELECT 1")),
        ("Action: Operation ```sql SELECT 1```", Move(sql="SELECT 1")),
        ("Action: Answer\nFinal Answer: [\"a\", 2]\nbye", Move(answer=(("a",), (2,)))),
        ("Action: Answer\nFinal Answer: ['a b', \"it's\", 3.5]", Move(answer=(("a b",), ("it's",), ("3.5",)))),
        ("Action: Answer\nFinal Answer: Bo", Move(answer=(("Bo",),))),
        ("Action: Answer\nFinal Answer: [[1, 2]]", Move(answer=((1, 2),))),
        ("Action: Answer\nFinal Answer: " + "[" * 60000, Move(answer=(("[" * 60000,),))),
        ("Final Answer: 3", None),
    ],
)  # fmt: skip
def test_moves_are_read_as_agentbench_writes_them(answer, move):
    assert move_in(answer) == move


def test_results_are_shown_cut():
    assert reply(Output(rows=(("x" * 2000,),))) == f"[('{'x' * 797}[TRUNCATED]"
    assert reply(Output(rows=((1,),), is_cut=True)) == "[(1,)][TRUNCATED]"
    assert reply(Output()) == "Done."
    assert reply(Output(changed=3)) == "Done. Rows changed: 3"
    assert reply(Output(error="no")) == "Error: no"
    assert sql_in("```\na\n```\n```sqlite\nb\n```") == "b"
    assert sql_in(" plain ") == "plain"


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("found", "wanted", "ordered", "is_same"),
    [
        ([[1], [2]], [[2], [1]], False, True),
        ([[1], [2]], [[2], [1]], True, False),
        ([[1], [1]], [[1]], False, False),
        ([[1], [1], [2]], [[1], [2], [2]], False, False),
        ([["1.0"]], [[1]], False, True),
        ([[0.1 + 0.2]], [[0.3]], False, True),
        ([[1.01]], [[1.0]], False, False),
        ([["a"]], [["A"]], False, False),
        ([[None]], [[None]], False, True),
        ([[None]], [[0]], False, False),
        ([[1, 2]], [[2, 1]], False, False),
        ([], [], False, True),
        ([["1" * 400]], [[1]], False, False),
    ],
)
def test_rows_are_compared_without_their_order_unless_it_counts(found, wanted, ordered, is_same):
    assert is_same_rows(found, wanted, ordered=ordered) is is_same


@pytest.mark.parametrize(
    ("found", "wanted", "is_same"),
    [
        ([["3.004"]], [["3"]], True),
        ([["3.1"]], [["3"]], False),
        ([["45%"]], [["45"]], True),
        ([["1,000"]], [[1000]], True),
        ([[None]], [["0"]], True),
        ([], [["none"]], True),
        ([["a"], ["b"], ["b"]], [["b"], ["a"]], True),
        ([["1"], ["1"]], [["1"]], False),
        ([["'Bo'"]], [["Bo"]], True),
        ([["bo"]], [["Bo"]], False),
    ],
)
def test_agentbench_answers_are_compared_as_there(found, wanted, is_same):
    assert is_agentbench_answer(found, wanted) is is_same


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────

RACE = {
    "table_name": "the races",
    "table_info": {
        "columns": [{"name": "No", "type": "INT"}, {"name": "weeks at No. 1", "type": "TEXT"}],
        "rows": [["9", "7"], ["10", "x"]],
    },
}
SELECT = {
    "description": "Which number is the highest?",
    "add_description": "The headers are No, weeks at No. 1.",
    "type": ["ranking"],
    "table": RACE,
    "label": ["10"],
    "sql": {"query": "SELECT MAX(No) FROM nothing"},
    "source": "wikitq",
}
MD5S = sorted(hashlib.md5(row.encode()).hexdigest()[:5] for row in ("9,7", "10,x", "11,y"))
INSERT = {
    **SELECT,
    "description": "Add 11 with y.",
    "type": ["INSERT"],
    "answer_md5": f"[('{hashlib.md5(','.join(MD5S).encode()).hexdigest()}',)]",
}


def test_agentbench_items_are_read_and_judged_as_there(tmp_path, engine):
    delete = {**INSERT, "description": "Delete 9.", "type": ["DELETE"], "answer_md5": ""}
    delete["sql"] = {"query": "DELETE FROM `the races` WHERE `No` < 10"}
    path = written(tmp_path, SELECT, INSERT, delete)
    items = read_database_items(path)
    assert all(item.id.startswith("agentbench-") and item.is_agentbench for item in items)
    end = "\nThe headers are No, weeks at No. 1.\nAnswer with one SQL statement that does this."
    answers = {
        f"highest?{end}": "SELECT `No` FROM `the races` WHERE `weeks at No. 1` = 'X' AND `No` > 9",
        f"with y.{end}": "INSERT INTO `the races` VALUES ('11', 'y')",
        f"Delete 9.{end}": "DELETE FROM `the races` WHERE `No` = '9'",
    }
    model, _ = answering(answers)
    assert [outcome for outcome, _ in verdicts(path, engine, model).values()] == [1.0, 1.0, 1.0]


def test_columns_of_agentbench_are_texts_unless_all_are_whole_numbers():
    columns = (("a", "INT"), ("b", "INT"), ("c", "TEXT"), ("d", "REAL"))
    told = _plain(Table("t", columns, (("1", "007", "1", "1.50"), (-20, None, "x", None))), is_agentbench=True)
    assert told["columns"] == [
        ["a", "INTEGER"], ["b", "TEXT COLLATE NOCASE"], ["c", "TEXT COLLATE NOCASE"], ["d", "TEXT COLLATE NOCASE"]
    ]  # fmt: skip
    assert told["rows"] == [["1", "007", "1", "1.50"], ["-20", None, "x", None]]


def test_checks_hashes_and_setups_are_what_items_can_expect(tmp_path, engine):
    setup = "CREATE TABLE t (x); INSERT INTO t VALUES (1), (2);"
    job = Job(DatabaseItem("h", "x", setup=setup), ("DELETE FROM t WHERE x = 1",), state=True)
    digest = engine.run([job], 1)[0].digest
    base = {"prompt": "Delete 1.", "setup": setup}
    path = written(
        tmp_path,
        {**base, "id": "check", "answer": [[1, 2]], "check": "SELECT count(*), max(x) FROM t"},
        {**base, "id": "both", "solution": "DELETE FROM t WHERE x < 2", "check": "SELECT x FROM t"},
        {**base, "id": "hash", "hash": digest},
        {**base, "id": "query", "solution": "SELECT 5"},
    )
    found = verdicts(path, engine, lambda asked: ["DELETE FROM t WHERE x = 1 RETURNING 5"] * len(asked))
    assert {id: outcome for id, (outcome, _) in found.items()} == {"check": 1.0, "both": 1.0, "hash": 1.0, "query": 1.0}


def test_every_fault_of_a_file_is_told_with_its_line(tmp_path):
    lines = [
        OLDEST,
        "{broken",
        OLDEST,
        {},
        {"id": "a", "prompt": 3, "setup": "x", "answer": [1], "solution": "y"},
        {"id": "b", "prompt": "x", "setup": "x", "hash": "00", "check": "SELECT 1"},
        {"id": "c", "prompt": "x", "answer": [1], "tables": {"t": []}},
        {"id": "d", "prompt": "x", "answer": [1], "tables": {"t": {"columns": [1]}}},
        {"id": "e", "prompt": "x", "answer": [1], "tables": {"t": {"columns": ["x"], "rows": [[1], [1, 2]]}}},
        {"id": "f", "prompt": "x", "answer": [1], "tables": {"t": {"columns": ["x"], "rows": [[[1]]]}}},
        {"description": ""},
        {"description": "x", "type": ["INSERT"], "table": [{"table_info": {}}]},
        {"description": "x", "type": "other", "table": {"table_name": "t", "table_info": 3}},
    ]
    with pytest.raises(ConfigError, match=r"items\.jsonl are not as they should be") as caught:
        read_database_items(written(tmp_path, *lines))
    told = [fault.partition(" (char")[0].partition(" in double quotes")[0] for fault in caught.value.faults]
    assert told == [
        "line 2: is not JSON: Expecting property name enclosed",
        "line 3: the id 'oldest' was there before; each item needs its own",
        "line 4: id is missing; it names the item",
        "line 4: prompt is missing; it is what the model is asked (AgentBench: description)",
        "line 4: there is no database; an item has tables, or setup, or both",
        "line 4: nothing is expected; give one of answer, solution and hash",
        "line 5: prompt is of type int, not str",
        "line 5: answer and solution is expected; give one of answer, solution and hash",
        "line 6: check has rows and hash is of tables; give answer or solution with check",
        "line 7: the table 't' is not as it should be; it has columns, a list, and rows",
        "line 8: the columns of the table 't' are not as they should be; each is a name, or has name and type",
        "line 9: row 2 of the table 't' does not have 1 values, as there are columns",
        "line 10: a value of the table 't' is a list or an object; values are numbers, texts or null",
        "line 11: description is empty; it is what the model is asked",
        "line 11: type is missing; it says whether an answer or a change is expected, such as ['INSERT']",
        "line 11: label is missing; it is the answer",
        "line 11: table is missing; it has table_name and table_info",
        "line 12: answer_md5 is missing, and so is sql with a query; one says what the change is",
        "line 12: a table has no table_name, which is a text",
        "line 13: label is missing; it is the answer",
        "line 13: the table 't' is not as it should be; it has columns, a list, and rows",
    ]


def test_items_that_cannot_be_used_are_told_before_anything_begins(tmp_path, engine):
    base = {"prompt": "x", "tables": PEOPLE}
    path = written(
        tmp_path,
        {**base, "id": "setup", "setup": "nonsense", "answer": [1]},
        {**base, "id": "solution", "solution": "SELECT size FROM people"},
        {**base, "id": "check", "solution": "SELECT 1", "check": "DELETE FROM people"},
        {**base, "id": "large", "solution": "SELECT hex(zeroblob(1000000))"},
        {**base, "id": "good", "solution": "SELECT 1"},
    )
    with pytest.raises(ConfigError, match=r"4 of the 5 items in .* cannot be used") as caught:
        database_evaluator(path, engine=engine)
    assert caught.value.faults == (
        "item 'setup': its database cannot be made: near \"nonsense\": syntax error",
        "item 'solution': its own solution failed: no such column: size",
        "item 'check': its check returns no rows; it is a query",
        "item 'large': its own solution gives more than 1000 rows, or very large ones",
    )


# ── the evaluator ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_evaluator_is_made_from_settings(tmp_path):
    written(tmp_path, OLDEST, BIRTHDAY)
    settings = {"path": "items.jsonl", "sandbox": "weak", "report": "verdicts.jsonl", "prompt": "{schema} {prompt}"}
    spec = configure_database({**settings, "limits": {"seconds": 1}}, RunContext(tmp_path, workers=2))
    assert spec_faults(next(kind for kind in KINDS if kind.hook == "minerua_evaluators"), spec) == []
    assert spec.inputs(["oldest"]) == ['CREATE TABLE "people" ("name", "age" INTEGER); Who is the oldest?']
    model, _ = answering({"oldest?": RIGHT["oldest"], "birthday.": "nonsense"})
    assert spec.evaluate_many([model, model], [["oldest"], ["birthday", "oldest"]], 0) == [[1.0], [0.0, 1.0]]
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [(line["id"], line["outcome"]) for line in lines] == [("oldest", 1.0), ("birthday", 0.0), ("oldest", 1.0)]
    several = configure_database({**settings, "turns": 2}, RunContext(tmp_path))
    assert several.version != spec.version
    assert schema(DatabaseItem("1", "x", setup="CREATE TABLE t (x);")) == "CREATE TABLE t (x);"


def test_settings_are_refused_with_all_faults_at_once(tmp_path):
    settings = {"turns": 0, "prompt": "x", "sandbox": "weak", "url": "nonsense", "pth": 1}
    with pytest.raises(ConfigError, match="the settings of the evaluator 'database' cannot be used") as caught:
        configure_database(settings, RunContext(tmp_path))
    assert caught.value.faults == (
        f"path is missing; expected a file, absolute or relative to {tmp_path}",
        "turns is 0; expected a whole number from 1 on",
        "the prompt 'x' does not say where the item's own is put; write {prompt} there",
        "sandbox is for SQLite, which runs without url; on a server SQL has the rights of its user",
        *caught.value.faults[4:5],  # SQLAlchemy is missing, or the URL is none
        caught.value.faults[-1],
    )
    assert caught.value.faults[-1].startswith("no setting is named 'pth'; did you mean 'path'")
    with pytest.raises(ConfigError, match="evaluator 'database': turns is 0 and workers is 1; both are at least 1"):
        database_evaluator(tmp_path / "items.jsonl", turns=0)
