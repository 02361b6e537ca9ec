"""What was executed is not executed again, and comes out as if it were; what a busy machine may have spoiled is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from minerua_agent_tasks.coding import coding_evaluator
from minerua_agent_tasks.database import DatabaseItem
from minerua_agent_tasks.database.engines import Job, Output, RememberingEngine, Result
from minerua_agent_tasks.operating_system import (
    FORMATS,
    LIMITS,
    Conditions,
    Rules,
    operating_system_evaluator,
    read_items,
)
from minerua_agent_tasks.remembering import Memory
from minerua_agent_tasks.sandbox import Limits, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="strong modes need Linux")

MODE = next(offer.mode for offer in Sandbox.check() if offer.fault is None and offer.mode != "bubblewrap")


class Counting:
    """A sandbox that counts what it was asked to run."""

    def __init__(self, sandbox):
        self._sandbox, self.runs, self.opened = sandbox, 0, 0

    def __getattr__(self, name):
        return getattr(self._sandbox, name)

    def run(self, *arguments, **settings):
        self.runs += 1
        return self._sandbox.run(*arguments, **settings)

    def open(self, *arguments, **settings):
        self.opened += 1
        return self._sandbox.open(*arguments, **settings)


@pytest.fixture
def sandbox():
    with Sandbox(MODE) as one:
        yield Counting(one)


def written(folder, *items):
    path = Path(folder, "items.jsonl")
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_a_memory_forgets_what_was_not_asked_for_the_longest():
    memory = Memory(most=2)
    memory.keep("a", 1)
    memory.keep("b", 2)
    assert memory.find("a") == 1
    memory.keep("c", 3)
    assert [memory.find(key) for key in "abc"] == [1, None, 3]


# ── coding ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ADD = {"task_id": 1, "text": "Write add.", "code": "", "test_list": ["assert add(1, 2) == 3"]}
SUB = {"task_id": 2, "text": "Write sub.", "code": "", "test_list": ["assert sub(2, 1) == 1"]}


def saying(*answers):
    return lambda conversations: list(answers)


def test_equal_answers_to_an_item_are_judged_once(tmp_path, sandbox):
    said = []
    spec = coding_evaluator(written(tmp_path, ADD, SUB), sandbox=sandbox, report=lambda *told: said.append(told))
    right = saying("def add(a, b): return a + b", "def sub(a, b): return a + b")
    assert spec.evaluate_many([right, right], [["1", "2"], ["1", "2"]], 0) == [[1.0, 0.0]] * 2
    runs = sandbox.runs
    assert spec.evaluate(right, ["1", "2"], 0) == [1.0, 0.0]
    assert sandbox.runs == runs
    other = saying("def add(a, b): return a + b", "def sub(a, b): return a - b")
    assert spec.evaluate(other, ["1", "2"], 0) == [1.0, 1.0]
    assert sandbox.runs == runs + 1
    assert [(id, verdict.outcome) for id, verdict in said] == [("1", 1), ("2", 0)] * 3 + [("1", 1), ("2", 1)]


def test_the_same_answer_to_another_item_is_judged(tmp_path, sandbox):
    spec = coding_evaluator(written(tmp_path, ADD, SUB), sandbox=sandbox)
    both = saying(*["def add(a, b): return a + b"] * 2)
    assert spec.evaluate(both, ["1", "2"], 0) == [1.0, 0.0]


def test_an_answer_that_reached_a_limit_is_judged_again(tmp_path, sandbox):
    spec = coding_evaluator(written(tmp_path, ADD), sandbox=sandbox, limits=Limits(seconds=0.5))
    hanging = saying("while True: pass")
    assert spec.evaluate(hanging, ["1"], 0) == [0.0]
    runs = sandbox.runs
    assert spec.evaluate(hanging, ["1"], 0) == [0.0]
    assert sandbox.runs > runs


# ── SQL ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Engine:
    """Answers by the SQL, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def run(self, jobs, workers):
        self.asked.append([job.statements for job in jobs])
        return [self._result(job.statements[-1]) for job in jobs]

    @staticmethod
    def _result(sql):
        if sql == "stop":
            return Result(ended="its run was ended")
        errors = {"error": Output(error="it took too long"), "wrong": Output(error="syntax error", is_certain=True)}
        return Result(outputs=(errors.get(sql, Output(rows=((sql,),))),))


def test_the_same_sql_is_executed_once_and_what_may_not_fail_again_every_time():
    engine, one, two = Engine(), DatabaseItem("1", "x"), DatabaseItem("2", "x")
    known = RememberingEngine(engine)
    jobs = [Job(item, (sql,)) for item in (one, two) for sql in ("a", "error", "stop", "a", "wrong")]
    first = known.run(jobs, 1)
    assert known.run(jobs, 1) == first
    assert [result.outputs[0].rows for result in (first[0], first[3])] == [(("a",),)] * 2
    assert first[4].outputs[0].error == "syntax error"
    assert engine.asked == [[("a",), ("error",), ("stop",), ("wrong",)] * 2, [("error",), ("stop",)] * 2]
    assert known.run([Job(one, ("a",), ("check",)), Job(one, ("a",), state=True)], 1)
    assert engine.asked[2] == [("a",), ("a",)]


# ── dialogues ────────────────────────────────────────────────────────────────────────────────────────────────────────

COUNT = {"id": "count", "prompt": "How many?", "files": {"a": "1", "b": "2"}, "answer": 3}
MARK = {"id": "mark", "prompt": "Mark it.", "check": '[ "$(cat out)" = yes ]'}


class Scripted:
    """A model that says one prepared text after the other."""

    def __init__(self, *texts):
        self.texts, self.told = texts, []

    def __call__(self, conversations):
        (conversation,) = conversations
        said = [] if isinstance(conversation, str) else conversation
        self.told = [message["content"] for message in said if message["role"] == "user"]
        return [self.texts[sum(message["role"] == "assistant" for message in said)]]


def made(folder, sandbox, *items, turns=4, seconds=2.0):
    conditions = Conditions(sandbox, "bash", LIMITS, seconds)
    rules = Rules(FORMATS["plain"], turns, "{prompt}")
    return operating_system_evaluator(read_items(written(folder, *items)), rules, conditions)


def test_a_dialogue_in_the_same_words_opens_no_room(tmp_path, sandbox):
    spec = made(tmp_path, sandbox, COUNT)
    texts = ("echo three > c", "ls | wc -l", "answer: 3")
    first, again = Scripted(*texts), Scripted(*texts)
    assert spec.evaluate(first, ["count"], 0) == [1.0]
    assert sandbox.opened == 1
    assert spec.evaluate(again, ["count"], 0) == [1.0]
    assert sandbox.opened == 1
    assert again.told == first.told


def test_a_dialogue_that_leaves_the_known_path_goes_on_where_it_should_be(tmp_path, sandbox):
    spec = made(tmp_path, sandbox, COUNT, MARK)
    assert spec.evaluate(Scripted("echo x > c; V=7", "ls", "answer: 9"), ["count"], 0) == [0.0]
    other = Scripted("echo x > c; V=7", "ls", "echo $V; ls | wc -l", "answer: 3")
    assert spec.evaluate(other, ["count"], 0) == [1.0]
    assert sandbox.opened == 2
    assert "7" in other.told[-1]  # the shell has the variable of a command that it was only told again
    assert spec.evaluate(Scripted("echo yes > out", "echo no", "answer: done"), ["mark"], 0) == [1.0]
    assert spec.evaluate(Scripted("echo yes > out", "echo no", "answer: other"), ["mark"], 0) == [1.0]
    assert sandbox.opened == 4  # the check looks into a room that was brought to where it should be


def test_a_dialogue_in_which_a_limit_was_reached_is_carried_out_again(tmp_path, sandbox):
    spec = made(tmp_path, sandbox, COUNT, seconds=0.3)
    texts = ("sleep 5", "answer: 3")
    assert spec.evaluate(Scripted(*texts), ["count"], 0) == [1.0]
    assert spec.evaluate(Scripted(*texts), ["count"], 0) == [1.0]
    assert sandbox.opened == 2
