"""Items of operating-system tasks as files have them, and what models write, as it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from minerua_agent_tasks.operating_system import FORMATS, Act, OperatingItem, Script, read_items
from minerua_agent_tasks.operating_system.formats import shown

from minerua.errors import ConfigError

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


def written(folder, *items, name="items.jsonl"):
    path = Path(folder, name)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def read(folder, *items):
    return read_items(written(folder, *items))


def faults(folder, *items):
    with pytest.raises(ConfigError, match="are not as they should be") as caught:
        read(folder, *items)
    return caught.value.faults


# ── items ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_plain_fields_are_read(tmp_path):
    first, second = read(
        tmp_path, COUNT, WRITE | {"setup": ["true", {"language": "python", "code": "1"}], "regex": "x"}
    )
    assert first == OperatingItem("count", "How many texts?", files={"a.txt": "1", "b/c.txt": ""}, answer="2")
    assert second.setup == (Script("true"), Script("1", "python"))
    assert (second.checks, second.example, second.regex) == ((Script(WRITE["check"]),), Script("echo hi > out"), "x")


def test_agent_bench_s_fields_are_read(tmp_path):
    Path(tmp_path, "init").mkdir()
    Path(tmp_path, "init/made.sh").write_text("touch made")
    filed = {
        "description": "b",
        "create": {"init": [{"file": "init/made.sh"}, "true"]},
        "evaluation": {"match": {"regex": "^a+$", "strip": False}},
    }
    items = read(tmp_path, NEWEST, filed, {"description": "c", "evaluation": {"match": " 7 "}})
    assert items[0] == OperatingItem(
        "00000",
        "Name the only file in /home/user/e.",
        setup=(Script("mkdir -p /tmp/e; touch /tmp/e/here"),),
        start="export DIR=/tmp/e",
        checks=(None, Script(COMPARED, "python")),
        example=Script("ls /tmp/e"),
        labels=("file",),
    )
    assert items[1].setup == (Script("touch made"), Script("true"))
    assert (items[1].regex, items[1].is_stripped, items[1].id) == ("^a+$", False, "00001")
    assert (items[2].answer, items[2].is_stripped) == (" 7 ", True)


def test_a_json_list_is_read_as_agent_bench_has_it(tmp_path):
    path = Path(tmp_path, "items.json")
    path.write_text(json.dumps([NEWEST, COUNT]))
    assert [item.id for item in read_items(path)] == ["00000", "count"]
    path.write_text(json.dumps(NEWEST))
    assert len(read_items(path)) == 1
    path.write_text(json.dumps([NEWEST, 3, {"prompt": ""}]))
    with pytest.raises(ConfigError, match="are not as they should be") as caught:
        read_items(path)
    assert caught.value.faults[0] == "item 1: is a JSON int, not an object with named fields"
    assert caught.value.faults[1] == "item 2: prompt is missing; it is what the model is asked"
    path.write_text("[")
    with pytest.raises(ConfigError, match="it is not JSON: "):
        read_items(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="there is no item in it"):
        read_items(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory; give a JSON file"):
        read_items(Path(tmp_path, "nowhere.json"))


def test_a_script_that_is_not_there_is_told_with_its_place(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, {"description": "a", "create": {"init": {"file": "no.sh"}}, "evaluation": {"match": "1"}})
    (fault,) = caught.value.faults
    assert fault.endswith("no.sh'; see `scripts`")
    assert " names " in fault
    assert ", which cannot be read: [Errno 2]" in fault


WRONG = {
    "line 2: is not JSON": "{",
    "line 2: is a JSON list": "[]",
    "prompt is missing; it is what the model is asked": {"answer": "1"},
    "prompt is of type int, not str": {"prompt": 1, "answer": "1"},
    "description is missing": {"evaluation": {"match": "1"}},
    "nothing says what is right; an item has answer, regex or check": {"prompt": "x"},
    "nothing says what is right; evaluation has match or check": {"description": "x", "evaluation": {}},
    "evaluation is of type str, not dict": {"description": "x", "evaluation": "7"},
    "answer is of type list, not str": {"prompt": "x", "answer": ["1"]},
    "regex is '(', which is no regular expression": {"prompt": "x", "regex": "("},
    "evaluation.match is neither a text nor an object": {"description": "x", "evaluation": {"match": {}}},
    "evaluation.check has null in it, which stands for evaluation.example": {
        "description": "x",
        "evaluation": {"check": [None]},
    },
    "check is neither a text nor an object with code or file": {"prompt": "x", "check": 7},
    "check is in the language 'c++'; there are bash and python": {
        "prompt": "x",
        "check": {"language": "c++", "code": "int main() {}"},
    },
    "create.init names": {"description": "x", "create": {"init": {"file": "no.sh"}}, "evaluation": {"match": "1"}},
    "setup has a zero byte in it": {"prompt": "x", "answer": "1", "setup": "a\0b"},
    "start is in Python; the shell carries it out": {
        "description": "x",
        "start": {"language": "python", "code": "1"},
        "evaluation": {"match": "1"},
    },
    "files is no object of paths and texts": {"prompt": "x", "answer": "1", "files": ["a"]},
    "files has '/etc/x', which is not below the home folder": {"prompt": "x", "answer": "1", "files": {"/etc/x": ""}},
    "files has '../x', which is not below": {"prompt": "x", "answer": "1", "files": {"../x": ""}},
    "id is True; it is a text or a whole number": {"id": True, "prompt": "x", "answer": "1"},
    "the id 'count' was there before": COUNT,
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_with_an_item_is_told_with_its_line(tmp_path, fault):
    wrong = WRONG[fault] if isinstance(WRONG[fault], str) else json.dumps(WRONG[fault])
    Path(tmp_path, "items.jsonl").write_text(f"{json.dumps(COUNT)}\n{wrong}\n")
    with pytest.raises(ConfigError, match="are not as they should be") as caught:
        read_items(Path(tmp_path, "items.jsonl"))
    assert all(told.startswith("line 2: ") for told in caught.value.faults)
    assert any(fault.removeprefix("line 2: ") in told for told in caught.value.faults)


def test_all_faults_of_a_file_are_told_at_once(tmp_path):
    found = faults(tmp_path, {"prompt": ""}, COUNT, {"description": "x", "evaluation": {"check": [None, 7]}})
    assert [fault.partition(":")[0] for fault in found] == ["line 1", "line 1", "line 3", "line 3"]


# ── what models write ────────────────────────────────────────────────────────────────────────────────────────────────

COMMAND, NONE = lambda text: Act("command", text), Act("none")
WRITTEN = {
    PLAIN: {
        "ls -l": COMMAND("ls -l"),
        "  ls |\n wc -l \n": COMMAND("ls |\n wc -l"),
        "```bash\nls\npwd\n```": COMMAND("ls\npwd\n"),
        "Let me look:\n```\nls\n```\nanswer: 3": COMMAND("ls\n"),
        "```sh\nls": COMMAND("ls"),
        "```\n\n```": NONE,
        "answer: 3": Act("end", "3", has_answer=True),
        "Answer:   a b \nmore": Act("end", "a b", has_answer=True),
        "answer:": Act("end", "", has_answer=True),
        "ls\nanswer: 3": COMMAND("ls"),
        "done": Act("end"),
        "Done.": Act("end"),
        "for i in 1; do\necho\ndone": COMMAND("for i in 1; do\necho\ndone"),
        "": NONE,
        " \n": NONE,
    },
    BENCH: {
        "Think: x\n\nAct: bash\n\n```bash\nls\n```": COMMAND("ls"),
        "Act: Bash\n```bash\nls\n```\nand\n```bash\npwd\n```": COMMAND("ls\n\npwd"),
        "Act: bash\nls": NONE,
        "Think: done\n\nAct: finish": Act("end"),
        "Act: answer(220)": Act("end", "220", has_answer=True),
        "Act: answer(f(x) = (1))": Act("end", "f(x) = (1)", has_answer=True),
        "Act: answer(1)\nAct: answer(2)": Act("end", "2", has_answer=True),
        "Act: answer 3\nAct: finish\nAct: answer 4": Act("end"),
        "Act: answer": NONE,
        "ls": NONE,
        "": NONE,
    },
}


@pytest.mark.parametrize(("format", "text"), [(format, text) for format in WRITTEN for text in WRITTEN[format]])
def test_what_a_model_writes_is_read(format, text):
    assert format.read(text) == WRITTEN[format][text]


def test_outputs_are_cut_as_in_agent_bench():
    assert shown(b"x" * 800) == "x" * 800
    assert shown(b"x" * 801) == "x" * 780 + "\n[truncated because the output is too long]"
    assert shown(b"a\r\nb\x1b[1m\x00\xff\tc\n\n") == "a\nb�[1m��\tc"
    assert BENCH.reply("x") == "The output of the OS:\n\nx"
    assert BENCH.reply("") == "The output of the OS is empty."
    assert PLAIN.reply("") == "(no output)"
