"""Operating-system tasks: items, what models write, what is right, and all dialogues turn by turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from minerua_agent_tasks.asking import UNANSWERED, AnswersError
from minerua_agent_tasks.operating_system import (
    FORMATS,
    LIMITS,
    Conditions,
    Rules,
    configure_operating_system,
    operating_system_evaluator,
    read_items,
)
from minerua_agent_tasks.operating_system import evaluator as evaluator_module
from minerua_agent_tasks.sandbox import COMMAND_BYTES, Limits, Sandbox, SandboxError

from minerua.errors import ConfigError
from minerua.values import RunContext

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="strong modes need Linux")

MODE = next(offer.mode for offer in Sandbox.check() if offer.fault is None and offer.mode != "bubblewrap")
PLAIN, BENCH = FORMATS["plain"], FORMATS["agentbench"]

COUNT = {"id": "count", "prompt": "How many texts?", "files": {"a.txt": "1", "b/c.txt": ""}, "answer": 2}
WRITE = {"id": "write", "prompt": "Write hi.", "check": '[ "$(cat out)" = hi ]', "example": "echo hi > out"}
COMPARED = "import sys; sys.exit(sys.argv[1].strip() != sys.argv[2].strip())"
NEWEST = {
    "description": "Name the only file in /home/user/e.",
    "create": {"local": "default", "init": {"code": "mkdir -p /tmp/e; touch /tmp/e/here"}},
    "start": "export DIR=/tmp/e",
    "evaluation": {"check": [None, {"language": "python", "code": COMPARED}], "example": "ls /tmp/e"},
    "labels": ["file"],
}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(MODE) as one:
        yield one


def written(folder, *items, name="items.jsonl"):
    path = Path(folder, name)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def read(folder, *items):
    return read_items(written(folder, *items))


def made(folder, sandbox, *items, format=PLAIN, turns=3, prompt="{prompt}", limits=LIMITS, seconds=2.0, **settings):
    rules = Rules(format, turns, prompt, settings.pop("system", None))
    conditions = Conditions(sandbox, "bash", limits, seconds)
    return operating_system_evaluator(read(folder, *items), rules, conditions, **settings)


class Scripted:
    """A model that says, for each task, one prepared text after the other; it keeps what it was asked."""

    def __init__(self, **texts):
        self.texts, self.asked = texts, []

    def __call__(self, conversations):
        self.asked.append(list(conversations))
        return [self.answer(one) for one in conversations]

    def answer(self, conversation):
        said = [{"role": "user", "content": conversation}] if isinstance(conversation, str) else conversation
        texts = next(texts for word, texts in self.texts.items() if word in said[0]["content"])
        return texts[sum(message["role"] == "assistant" for message in said)]


def judged(spec, model, ids):
    """Returns outcomes and reasons."""
    return spec.evaluate(model, ids, 0)


# ── dialogues ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_turns_go_on_until_an_answer_is_given(tmp_path, sandbox):
    model = Scripted(How=["ls", "find . -name '*.txt' | wc -l", "answer: 2"])
    found = []
    spec = made(
        tmp_path, sandbox, COUNT, report=lambda id, verdict: found.append((id, verdict.outcome, verdict.reason))
    )
    assert spec.evaluate(model, ["count"], 0) == [1.0]
    assert found == [("count", 1.0, "the answer is right")]
    contents = [message["content"] for message in model.asked[2][0]]
    assert contents == ["How many texts?", "ls", "a.txt\nb", "find . -name '*.txt' | wc -l", "2"]
    assert [message["role"] for message in model.asked[2][0]] == ["user", "assistant"] * 2 + ["user"]


def test_agent_bench_s_items_and_words_work_too(tmp_path, sandbox):
    bash = "Think: look\n\nAct: bash\n\n```bash\nls $DIR\n```"
    model = Scripted(Name=[bash, "Think: it is here.\n\nAct: answer(here)"])
    spec = made(tmp_path, sandbox, NEWEST, format=BENCH, system="You are careful.", prompt="Do: {prompt}")
    model.texts = {"careful": model.texts["Name"]}
    assert spec.evaluate(model, ["00000"], 0) == [1.0]
    assert model.asked[0][0] == [
        {"role": "system", "content": "You are careful."},
        {"role": "user", "content": "Do: Name the only file in /home/user/e."},
    ]
    assert model.asked[1][0][-1]["content"] == "The output of the OS:\n\nhere"
    wrong = Scripted(careful=["Act: answer(there)"])
    assert spec.evaluate(wrong, ["00000"], 0) == [0.0]


def reason(folder, sandbox, item, *texts, **settings):
    found = []
    spec = made(folder, sandbox, item, report=lambda id, verdict: found.append(verdict), **settings)
    name = item.get("id", "00000")
    model = Scripted(**{(item.get("prompt") or item["description"])[:3]: texts})
    assert spec.evaluate(model, [name], 0) == [found[0].outcome]
    return found[0].outcome, found[0].reason


def test_one_turn_is_a_command_whose_output_or_effect_counts(tmp_path, sandbox):
    assert reason(tmp_path, sandbox, COUNT, "find . -name '*.txt' | wc -l", turns=1) == (1.0, "the answer is right")
    assert reason(tmp_path, sandbox, COUNT, "ls", turns=1) == (0.0, "the answer is 'a.txt\\nb'; '2' is right")
    assert reason(tmp_path, sandbox, WRITE, "echo hi > out", turns=1) == (1.0, "every check holds")
    assert reason(tmp_path, sandbox, WRITE, "echo ho > out", turns=1)[1].startswith("check 1 of 1: exit code 1 after")
    assert reason(tmp_path, sandbox, WRITE, "```\n```", turns=1)[1] == (
        "the last turn had nothing in it that can be carried out"
    )


def test_the_end_has_to_be_said_in_agent_bench_s_words(tmp_path, sandbox):
    bash = "Act: bash\n```bash\necho hi > out\n```"
    assert reason(tmp_path, sandbox, WRITE, bash, "Act: finish", format=BENCH) == (1.0, "every check holds")
    assert reason(tmp_path, sandbox, WRITE, bash, bash, format=BENCH, turns=2) == (
        0.0,
        "neither an answer nor the end was said in 2 turns",
    )
    assert reason(tmp_path, sandbox, COUNT, "Act: finish", format=BENCH) == (
        0.0,
        "there is no answer, and one is asked for",
    )


def test_what_is_no_command_costs_a_turn_and_gets_a_hint(tmp_path, sandbox):
    model = Scripted(How=["", "a\0b", "x" * (COMMAND_BYTES + 1), "\ud800", "answer: 2"])
    assert made(tmp_path, sandbox, COUNT, turns=5).evaluate(model, ["count"], 0) == [1.0]
    told = [message["content"] for message in model.asked[-1][0] if message["role"] == "user"][1:]
    assert told == [
        PLAIN.hint,
        f"The command has a zero byte in it. {PLAIN.hint}",
        f"The command has {COMMAND_BYTES + 1} bytes; {COMMAND_BYTES} are the most. {PLAIN.hint}",
        f"The command has letters in it that cannot be written. {PLAIN.hint}",
    ]


def test_a_command_that_hangs_or_ends_the_shell_is_told_to_the_model(tmp_path, sandbox):
    model = Scripted(How=["echo a; sleep 50", "exit 1", "answer: 2"])
    assert made(tmp_path, sandbox, COUNT, seconds=0.6).evaluate(model, ["count"], 0) == [1.0]
    told = [message["content"] for message in model.asked[-1][0] if message["role"] == "user"][1:]
    assert told[0] == "a\n[the command was ended by the limit seconds; a fresh shell begins in the home folder]"
    assert told[1] == "[the shell has ended; a fresh one begins in the home folder]"
    assert reason(tmp_path, sandbox, COUNT, "sleep 50", turns=1, seconds=0.2)[1].startswith(
        "the last command was ended by the limit seconds"
    )


def test_all_of_an_item_has_its_seconds(tmp_path, sandbox):
    outcome, why = reason(tmp_path, sandbox, WRITE, "echo hi > out; sleep 9", "done", limits=Limits(seconds=0.4))
    assert (outcome, why.partition(" after")[0]) == (0.0, "check 1 of 1: ended by the limit seconds")


def test_answers_that_no_check_can_be_given_are_worth_nothing(tmp_path, sandbox):
    asked = {"id": "x", "prompt": "Say.", "check": "true"}
    assert reason(tmp_path, sandbox, asked, "answer: a\0b")[1] == (
        "check 1 of 1: what it would be given has a zero byte in it"
    )
    assert reason(tmp_path, sandbox, asked, "answer: " + "x" * 200_000)[1].endswith("has 200000 bytes, too many")
    assert reason(tmp_path, sandbox, asked, "answer: \ud800")[1] == (
        "check 1 of 1: what it would be given has letters in it that cannot be written"
    )
    chained = asked | {"check": ["cat big", "true"]}
    assert reason(tmp_path, sandbox, chained, "head -c 300000 /dev/zero | tr '\\0' x > big", "done")[1] == (
        "check 2 of 2: what it would be given has 300000 bytes, too many"
    )


def test_answer_and_check_of_a_plain_item_must_both_hold(tmp_path, sandbox):
    both = WRITE | {"regex": "^h.$"}
    assert reason(tmp_path, sandbox, both, "echo hi > out", "answer: ho")[0] == 1.0
    assert reason(tmp_path, sandbox, both, "echo hi > out", "answer: no")[1] == "the answer 'no' does not match '^h.$'"
    assert reason(tmp_path, sandbox, both, "answer: hi")[0] == 0.0


def test_a_check_gets_the_answer_and_what_the_checks_before_printed(tmp_path, sandbox):
    item = {
        "id": "x",
        "prompt": "Say.",
        "check": ["echo one", "echo $1 $2", '[ "$(echo $3)" = "a one" ] && [ $1 = a ]'],
    }
    assert reason(tmp_path, sandbox, item, "answer: a") == (1.0, "every check holds")


def test_a_setup_that_fails_says_so(tmp_path, sandbox):
    assert reason(tmp_path, sandbox, WRITE | {"setup": "echo oh; exit 3"}, "ls")[1].startswith(
        "setup 1 failed: exit code 3 after"
    )
    stuck = WRITE | {"setup": ["true", "sleep 9"]}
    assert reason(tmp_path, sandbox, stuck, "done", limits=Limits(seconds=1.0))[1].startswith(
        "setup 2 was ended by the"
    )
    ended = {"description": "Write.", "start": "exit 1", "evaluation": {"check": "true"}}
    assert reason(tmp_path, sandbox, ended, "ls")[1].startswith("start ended its shell: exit code 1")


@pytest.mark.skipif(MODE != "namespaces", reason="this machine offers no namespaces")
def test_a_command_cannot_make_the_check_lie(tmp_path, sandbox):
    for command in (
        "mkdir -p bin; printf '#!/bin/sh\\nexit 0\\n' > bin/cat; chmod +x bin/cat; export PATH=~/bin:$PATH",
        "cat() { echo hi; }; export -f cat; test() { return 0; }; export BASH_ENV=~/x; echo 'exit 0' > x",
        "(sleep 4; while :; do echo hi > out; kill -9 -1; done) & disown -a",
        "rm -rf ~; chmod 000 /tmp",
    ):
        assert reason(tmp_path, sandbox, WRITE, command, "done")[0] == 0.0
    python = WRITE | {"check": {"language": "python", "code": "import json; raise SystemExit(1)"}}
    assert reason(tmp_path, sandbox, python, "echo 'import os; os._exit(0)' > json.py", "done")[0] == 0.0


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


def numbered(count):
    return [{"id": f"i{n}", "prompt": f"Item {n}.", "files": {"n": str(n)}, "answer": str(n)} for n in range(count)]


class Reader:
    """Reads the file n, and gives its number as the answer; gives up on some."""

    def __init__(self, gives_up=()):
        self.gives_up, self.batches = gives_up, []

    def __call__(self, conversations):
        self.batches.append(len(conversations))
        return [self.answer(one) for one in conversations]

    def answer(self, conversation):
        if not isinstance(conversation, str):
            return f"answer: {conversation[-1]['content']}"
        return None if conversation in self.gives_up else "cat n"


def test_all_items_of_all_models_advance_together(tmp_path, sandbox, monkeypatch):
    calls = []

    class Joined(Reader):
        @staticmethod
        def together(models, conversations):
            calls.append([len(some) for some in conversations])
            return [[model.answer(one) for one in some] for model, some in zip(models, conversations, strict=True)]

    ids = [[f"i{n}" for n in range(5)], [], ["i3", "i1"]]
    models = [Joined(["Item 2."]), Joined(), Joined(["Item 1."])]
    spec = made(tmp_path, sandbox, *numbered(5), workers=2)
    assert spec.evaluate_many(models, ids, 0) == [[1.0, 1.0, 0.0, 1.0, 1.0], [], [1.0, 0.0]]
    assert calls == [[5, 2], [4, 1]]
    assert [spec.evaluate(model, some, 0) for model, some in zip(models, ids, strict=True)] == [
        [1.0, 1.0, 0.0, 1.0, 1.0],
        [],
        [1.0, 0.0],
    ]
    calls.clear()
    monkeypatch.setattr(evaluator_module, "_MOST_DIALOGUES", 2)
    assert spec.evaluate_many(models, ids, 0) == [[1.0, 1.0, 0.0, 1.0, 1.0], [], [1.0, 0.0]]
    assert max(sum(sizes) for sizes in calls) == 2


def test_what_a_model_does_not_answer_is_worth_nothing_and_says_why(tmp_path, sandbox):
    found = []
    spec = made(tmp_path, sandbox, *numbered(1), report=lambda id, verdict: found.append(verdict.reason))
    assert spec.evaluate(Reader(["Item 0."]), ["i0"], 0) == [0.0]
    assert found == [UNANSWERED]
    with pytest.raises(AnswersError, match="returned 0 answers"):
        spec.evaluate(lambda conversations: [], ["i0"], 0)


def test_sessions_are_closed_when_a_model_raises(tmp_path):
    with Sandbox(MODE) as own:
        spec = made(tmp_path, own, *numbered(3))

        def model(conversations):
            if not isinstance(conversations[0], str):
                raise ZeroDivisionError
            return ["cat n"] * len(conversations)

        with pytest.raises(ZeroDivisionError):
            spec.evaluate(model, ["i0", "i1", "i2"], 0)
        assert own._sessions == set()


def test_inputs_are_the_first_conversations(tmp_path, sandbox):
    spec = made(tmp_path, sandbox, *numbered(2), prompt="Do: {prompt}")
    assert spec.inputs(["i1", "i0"]) == ["Do: Item 1.", "Do: Item 0."]
    assert spec.items() == ["i0", "i1"]


def test_the_version_changes_with_what_can_change_an_outcome(tmp_path, sandbox):
    versions = [
        made(tmp_path, sandbox, COUNT),
        made(tmp_path, sandbox, COUNT | {"answer": "3"}),
        made(tmp_path, sandbox, COUNT, turns=2),
        made(tmp_path, sandbox, COUNT, prompt="- {prompt}"),
        made(tmp_path, sandbox, COUNT, system="x"),
        made(tmp_path, sandbox, COUNT, limits=Limits(seconds=3)),
        made(tmp_path, sandbox, COUNT, seconds=1.0),
        made(tmp_path, sandbox, COUNT, format=BENCH),
    ]
    assert len({spec.version for spec in versions}) == len(versions)
    assert made(tmp_path, sandbox, COUNT, workers=2).version == versions[0].version


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def configured(folder, **settings):
    return configure_operating_system({"sandbox": MODE, **settings}, RunContext(Path(folder), None, 2))


def refused(folder, **settings):
    with pytest.raises(ConfigError, match="the settings of the evaluator 'operating-system' cannot be used") as caught:
        configured(folder, **settings)
    return caught.value.faults


def test_settings_make_an_evaluator(tmp_path):
    written(tmp_path, COUNT, WRITE, NEWEST)
    spec = configured(tmp_path, path="items.jsonl", turns=2, prompt="{prompt}", report="verdicts.jsonl")
    model = Scripted(How=["answer: 2"], Write=["echo hi > out", "done"], Name=["ls $DIR", "answer: here"])
    assert spec.evaluate(model, spec.items(), 0) == [1.0, 1.0, 1.0]
    lines = Path(tmp_path, "verdicts.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["count", "write", "00002"]


def test_models_are_told_how_to_write():
    assert FORMATS["agentbench"].hint.startswith(
        "There is nothing in your reply that can be done. Write exactly one of"
    )
    assert PLAIN.hint == "Reply with a command, with `answer: ` and the answer, or with `done`."
    assert PLAIN.instructions.startswith("You work at a Linux shell. Reply with one command, and I tell you what")


def test_settings_that_cannot_be_are_told_all_at_once(tmp_path):
    written(tmp_path, COUNT)
    told = refused(
        tmp_path, turns=0, prompt="x", command_seconds=0, format="bash", pahts="x", limits={"secnds": 1}, shell=7
    )
    assert {
        "turns is 0; expected a whole number from 1 on",
        "the prompt 'x' has no {prompt} in it, where the task's own is put",
        "command_seconds is 0; expected a number above 0",
    } <= set(told)
    text = "\n".join(told)
    for part in (
        "path is missing",
        "format is 'bash'; expected one of agentbench, plain",
        "'pahts'",
        "no setting of limits is named 'secnds'; did you mean 'seconds'",
        "shell is 7; expected a text",
    ):
        assert part in text
    assert "line 1: prompt is missing" in "\n".join(
        refused(written(tmp_path, {"answer": "1"}).parent, path="items.jsonl")
    )


def test_a_shell_that_is_not_there_or_no_bash_is_told_before_the_run(tmp_path):
    written(tmp_path, COUNT)
    (told,) = refused(tmp_path, path="items.jsonl", shell="nosuchshell")
    assert told.startswith("the shell 'nosuchshell' cannot be started in the sandbox: ")
    (told,) = refused(tmp_path, path="items.jsonl", shell="/bin/true")
    assert told.startswith("the shell '/bin/true' is no bash: ")


def test_an_item_whose_own_solution_does_not_pass_is_told_before_the_run(tmp_path):
    written(
        tmp_path,
        WRITE,
        WRITE | {"id": "false", "check": "exit 1"},
        WRITE | {"id": "breaks", "example": "exit 2"},
        COUNT | {"id": "other", "example": "echo 3"},
        WRITE | {"id": "setup", "setup": "exit 5"},
    )
    told = refused(tmp_path, path="items.jsonl")
    assert [fault.partition(" after")[0] for fault in told] == [
        "item 'false': its example does not pass: check 1 of 1: exit code 1",
        "item 'breaks': its example itself fails: exit code 2",
        "item 'other': its example does not pass: the answer is '3'; '2' is right",
        "item 'setup': setup 1 failed: exit code 5",
    ]
    assert configured(tmp_path, path="items.jsonl", verify=False).items() == [
        "write",
        "false",
        "breaks",
        "other",
        "setup",
    ]


def test_scripts_are_looked_for_where_settings_say(tmp_path):
    Path(tmp_path, "own").mkdir()
    Path(tmp_path, "own/check.sh").write_text("exit 0")
    written(tmp_path, {"prompt": "x", "check": {"file": "check.sh"}})
    assert configured(tmp_path, path="items.jsonl", scripts="own").items() == ["00000"]
    assert "line 1: check names" in refused(tmp_path, path="items.jsonl")[1]


def test_a_sandbox_that_fails_is_an_error_and_no_outcome(tmp_path, sandbox, monkeypatch):
    spec = made(tmp_path, sandbox, *numbered(1))

    def failing(**_):
        raise SandboxError("it has failed")

    monkeypatch.setattr(sandbox, "open", failing)
    with pytest.raises(SandboxError, match="it has failed"):
        spec.evaluate(Reader(), ["i0"], 0)
