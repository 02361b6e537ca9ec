"""Asking models: one answer per conversation, jointly where they can, and a clear word where something else comes."""

from __future__ import annotations

import json

import pytest
from minerua_agent_tasks import coding_evaluator
from minerua_agent_tasks.asking import AnswersError, answers, continued, messages
from minerua_agent_tasks.sandbox import Sandbox


class Adder:
    """Models of one family: they answer together, and write down how they were asked."""

    calls: list[list[int]]

    def __init__(self, sign, calls):
        self.sign, self.calls = sign, calls

    def __call__(self, conversations):
        return [f"def add(a, b): return a {self.sign} b"] * len(conversations)

    def together(self, models, conversations):
        self.calls.append([len(asked) for asked in conversations])
        return [model(asked) for model, asked in zip(models, conversations, strict=True)]


def test_models_that_can_are_asked_together_others_one_by_one():
    calls = []
    models = [Adder("+", calls), Adder("-", calls)]
    given = answers(models, [["a"], ["b", "c"]])
    assert [[text[-5:] for text in texts] for texts in given] == [["a + b"], ["a - b"] * 2]
    assert calls == [[1, 2]]
    asked = []

    def alone(conversations):
        asked.append(list(conversations))
        return [None for _ in conversations]

    assert answers([alone, alone], [["a"], []]) == [[None], []]
    assert asked == [["a"]]
    assert answers([], []) == []


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("text", "model 0 was asked 2 conversations and returned a str; a model returns a list with one answer per"),
        (["a"], "model 0 was asked 2 conversations and returned 1 answers; a model returns a list"),
        (None, "model 0 was asked 2 conversations and returned a NoneType"),
        (["a", 3], "model 0 answered conversation 1 with a int; an answer is a text, or None where there is none"),
    ],
)
def test_what_is_no_answer_is_told(said, fault):
    with pytest.raises(AnswersError) as caught:
        answers([lambda conversations: said], [["a", "b"]])
    assert fault in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_what_is_no_joint_answer_is_told():
    model = Adder("+", [])
    model.together = lambda models, conversations: "text"
    with pytest.raises(AnswersError, match="1 models were asked together, and a str came back; `together` returns one"):
        answers([model], [["a"]])


def test_conversations_are_texts_or_messages():
    whole = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    assert messages(whole) == whole
    assert messages("How many?") == whole[1:]
    assert continued(whole, "Two.", "Sure?")[2:] == [
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Sure?"},
    ]
    assert len(whole) == 2
    with pytest.raises(AnswersError, match="a conversation is a text, or a list of messages with") as caught:
        messages([1, {"role": "agent", "content": "x"}, {"role": "user"}])
    assert caught.value.faults == (
        "message 0 is a int, not a mapping",
        "message 1 has the role 'agent'; it is one of system, user, assistant",
        "the content of message 2 is no text",
    )
    with pytest.raises(AnswersError):
        messages([])


# ── through an evaluator ─────────────────────────────────────────────────────────────────────────────────────────────

ITEMS = [
    {"task_id": 2, "text": "Write add.", "test_list": ["assert add(1, 2) == 3"]},
    {"task_id": 3, "text": "Write add.", "test_list": ["assert add(2, 0) == 2"]},
]


def evaluator(folder, **settings):
    path = folder / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, ITEMS)))
    return coding_evaluator(path, sandbox=Sandbox("weak"), **settings)


def test_all_items_of_all_models_are_asked_in_one_call_and_judged_as_one_by_one(tmp_path):
    calls = []
    models, ids = [Adder("+", calls), Adder("-", calls)], [["2"], ["3", "2"]]
    spec = evaluator(tmp_path)
    assert spec.evaluate_many(models, ids, 0) == [[1.0], [1.0, 0.0]]
    assert calls == [[1, 2]]
    assert [spec.evaluate(model, some, 0) for model, some in zip(models, ids, strict=True)] == [[1.0], [1.0, 0.0]]


def test_an_item_without_an_answer_is_worth_nothing_and_says_so(tmp_path):
    said = []
    spec = evaluator(tmp_path, report=lambda *a: said.append(a))
    assert spec.evaluate(lambda conversations: [None], ["2"], 0) == [0.0]
    assert said[0][1].reason == "the model gave no answer; the conversation may be longer than it can read"
