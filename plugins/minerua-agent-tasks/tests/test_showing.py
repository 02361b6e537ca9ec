"""What a report shows of a task: the conversation, the answer and the verdict of the same executions."""

from __future__ import annotations

import json
import sys

import pytest
from minerua_agent_tasks import coding_evaluator
from minerua_agent_tasks.asking import UNANSWERED
from minerua_agent_tasks.database import database_evaluator
from minerua_agent_tasks.database.engines import SqliteEngine
from minerua_agent_tasks.operating_system import (
    FORMATS,
    LIMITS,
    Conditions,
    Rules,
    operating_system_evaluator,
    read_items,
)
from minerua_agent_tasks.sandbox import Limits, Sandbox
from minerua_agent_tasks.showing import MOST_LETTERS, shown
from minerua_agent_tasks.verdict import Verdict

from minerua.registry.specs import exhibit_faults

RIGHT = Verdict(1.0, "all 3 tests passed", 3, 3)


@pytest.fixture(scope="module")
def sandbox():
    offered = [offer.mode for offer in Sandbox.check() if offer.fault is None and offer.mode != "bubblewrap"]
    with Sandbox(offered[0]) as one:
        yield one


def written(folder, *items):
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def saying(**texts):
    """A model that says, for each task, one prepared text after the other."""

    def model(conversations):
        return [answer(one) for one in conversations]

    def answer(conversation):
        said = [{"role": "user", "content": conversation}] if isinstance(conversation, str) else conversation
        prepared = next(some for word, some in texts.items() if any(word in one["content"] for one in said))
        return prepared[sum(one["role"] == "assistant" and one["content"] != "Ok." for one in said)]

    return model


def checked(spec, model, reports):
    """Returns what is shown; it agrees with what is scored, and is not reported."""
    before = len(reports)
    exhibits = spec.exhibit(model, list(spec.items()))
    assert exhibit_faults(exhibits, list(spec.items())) == []
    assert len(reports) == before
    outcomes = spec.evaluate(model, spec.items(), 0)
    assert [float(one.title.partition(":")[0]) for one in exhibits] == pytest.approx(outcomes)
    assert [one.item for one in exhibits] == list(spec.items())
    assert spec.exhibit(model, list(spec.items())) == exhibits
    return [one.text for one in exhibits]


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_is_shown_with_its_roles_and_the_last_answer():
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    one = shown("7", conversation, "4", RIGHT)
    assert (one.item, one.title) == ("7", "1: all 3 tests passed")
    assert one.text == ("[system]\nBe brief.\n\n[user]\n2 + 2?\n\n[assistant]\n4\n\n[verdict]\n1: all 3 tests passed")
    assert "[assistant]" not in shown("7", "2 + 2?", None, Verdict(0.0, UNANSWERED)).text


def test_long_messages_and_long_conversations_are_cut_and_titles_have_one_line():
    turns = [{"role": "user", "content": f"turn {k}"} for k in range(40)]
    text = shown("7", turns, "x" * 5000, RIGHT).text
    assert f"x … {5000 - MOST_LETTERS:,} more letters" in text
    assert text.count("[user]") + text.count("[assistant]") == 16
    assert "turn 3\n\n[25 more messages]\n\n[user]\nturn 29" in text
    title = shown("7", "a", "b", Verdict(0.5, "one\ntwo\u2028three " + "y" * 300)).title
    assert title.startswith("0.5: one two three yyy")
    assert title.endswith("more letters")
    assert len(title) < 160


# ── the three evaluators ─────────────────────────────────────────────────────────────────────────────────────────────


def test_coding_shows_programs_with_what_their_tests_said(tmp_path, sandbox):
    tests = {"test_list": ["assert add(1, 2) == 3"]}
    path = written(tmp_path, {"task_id": 2, "text": "Write add.", **tests}, {"task_id": 3, "text": "None.", **tests})
    reports = []
    spec = coding_evaluator(path, sandbox=sandbox, report=lambda *told: reports.append(told))
    right, none = checked(spec, saying(**{"Write": ["def add(a, b):\n    return a + b"], "None": [None]}), reports)
    assert right.startswith("[user]\nWrite add.\nYour code should pass this test:")
    assert right.endswith("[assistant]\ndef add(a, b):\n    return a + b\n\n[verdict]\n1: all 1 tests passed")
    assert none.endswith(f"[verdict]\n0: {UNANSWERED}")


@pytest.mark.parametrize("turns", [1, 3])
def test_databases_show_the_sql_and_in_several_turns_what_it_gave(tmp_path, sandbox, turns):
    tables = {"people": {"columns": ["name"], "rows": [["Ann"], ["Bo"]]}}
    path = written(
        tmp_path,
        {"id": "who", "prompt": "Who is first?", "tables": tables, "answer": ["Ann"]},
        {"id": "lost", "prompt": "Say nothing.", "tables": tables, "answer": ["Ann"]},
    )
    reports = []
    engine = SqliteEngine(sandbox, Limits(seconds=2.0, memory_bytes=256 << 20))
    spec = database_evaluator(path, engine=engine, turns=turns, report=lambda *told: reports.append(told))
    query = "SELECT min(name) FROM people"
    dialogue = [f"Action: Operation\n```sql\n{query}\n```", 'Action: Answer\nFinal Answer: ["Ann"]']
    who, lost = checked(spec, saying(**{"first?": dialogue if turns > 1 else [query], "nothing.": [None]}), reports)
    assert who.endswith("[verdict]\n1: the rows are as they should be")
    assert who.count(query) == 1
    assert lost.endswith(f"[verdict]\n0: {UNANSWERED}")
    if turns > 1:
        reply, end = "\n\n[user]\n[('Ann',)]\n\n[assistant]\n", 'Final Answer: ["Ann"]\n\n[verdict]'
        assert who.index(query) < who.index(reply) < who.index(end)


@pytest.mark.skipif(sys.platform != "linux", reason="strong modes need Linux")
def test_operating_systems_show_every_command_and_what_it_printed(tmp_path, sandbox):
    path = written(
        tmp_path,
        {"id": "count", "prompt": "How many texts?", "files": {"a.txt": "1", "b.txt": ""}, "answer": 2},
        {"id": "mute", "prompt": "Be mute.", "files": {"a.txt": "1"}, "answer": 2},
    )
    reports = []
    spec = operating_system_evaluator(
        read_items(path),
        Rules(FORMATS["plain"], 3, "{prompt}"),
        Conditions(sandbox, "bash", LIMITS, 2.0),
        report=lambda *told: reports.append(told),
    )
    count, mute = checked(spec, saying(How=["ls", "answer: 2"], mute=["ls", None]), reports)
    assert count.startswith("[user]\nHow many texts?\n\n[assistant]\nls\n\n[user]\n")
    assert "a.txt\nb.txt" in count
    assert count.count("answer: 2") == 1
    assert "[assistant]\nanswer: 2\n\n[verdict]\n1: " in count
    assert mute.count("[assistant]") == 1
    assert mute.endswith(f"[verdict]\n0: {UNANSWERED}")
