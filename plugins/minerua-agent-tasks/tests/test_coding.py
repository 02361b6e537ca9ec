"""Coding items: read with all faults, judged for real, and no program can say of itself that it is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from textwrap import dedent

import pytest
from minerua_agent_tasks import CodingItem, code_in, coding_evaluator, judge, read_items
from minerua_agent_tasks.judging import wire
from minerua_agent_tasks.sandbox import Limits, Sandbox

from minerua.errors import ConfigError
from minerua.registry.specs import KINDS, spec_faults

PATIENT = Limits(seconds=10.0, cpu_seconds=10.0, memory_bytes=128 << 20)
QUICK = Limits(seconds=0.7, memory_bytes=128 << 20)

ADD = CodingItem(
    "add", "Write add.", tests=("assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add(2, 5) == 7")
)
PROMPT = 'from typing import List\n\n\ndef mean(values: List[float]) -> float:\n    """Mean of the values."""\n'
CHECK = """
def check(candidate):
    assert abs(candidate([1.0, 2.0]) - 1.5) < 1e-6
    assert candidate([4]) == 4
"""
MEAN = CodingItem("mean", PROMPT, entry="mean", tests=(f"{CHECK}\ncheck(mean)",))
PLUS = CodingItem(
    "mean",
    PROMPT,
    entry="mean",
    reference=f"{PROMPT}    return sum(values) / len(values)\n",
    inputs=(([1.0, 2.0],), ([0.1, 0.2, 0.3],), ([4],)),
)


@pytest.fixture(scope="module")
def sandbox():
    offered = [offer.mode for offer in Sandbox.check() if offer.fault is None]
    with Sandbox(offered[0]) as one:
        yield one


def judged(item, answer, sandbox, **settings):
    limits = QUICK if "while True" in answer or "sleep(60)" in answer else PATIENT
    answer = dedent(answer) if answer.startswith("\n") else answer
    return judge(item, answer, sandbox, limits=limits, **settings)


# ── right and wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("item", "answer"),
    [
        (ADD, "def add(a, b):\n    return a + b"),
        (ADD, "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."),
        (ADD, "```\nadd = lambda a, b: a + b\n```"),
        (ADD, "def add(a, b):\n    print('hello')\n    return a + b\n\nThis adds two numbers, as you asked."),
        (ADD, "```python\nbroken(\n```\nNo:\n```python\ndef add(a, b):\n    return a + b\n```"),
        (MEAN, "    return sum(values) / len(values)\n"),
        (MEAN, "def mean(values: List[float]) -> float:\n    return sum(values) / len(values)\n"),
        (MEAN, "return sum(values) / len(values)"),
        (PLUS, "    total = 0.0\n    for value in values:\n        total += value / len(values)\n    return total\n"),
    ],
)
def test_right_answers_pass_in_every_form_that_models_give_them(item, answer, sandbox):
    verdict = judged(item, answer, sandbox)
    assert (verdict.outcome, verdict.passed) == (1.0, verdict.total)
    assert verdict.reason == f"all {verdict.total} tests passed"


@pytest.mark.parametrize(
    ("item", "answer", "reason"),
    [
        (ADD, "def add(a, b):\n    return a - b", "0 of 3 tests passed; the first fault: AssertionError"),
        (
            ADD,
            "def plus(a, b):\n    return a + b",
            "0 of 3 tests passed; the first fault: NameError: the program does not define add",
        ),
        (ADD, "I cannot do that.", "the first fault: SyntaxError: invalid syntax"),
        (ADD, "", "the program does not define add"),
        (ADD, "```python\n```", "the program does not define add"),
        (ADD, "def add(a, b):\n    return a / 0", "ZeroDivisionError: division by zero"),
        (ADD, "import nothing_of_the_kind", "ModuleNotFoundError: No module named"),
        (ADD, "def add(a, b):\n    while True: pass", "0 of 3 tests passed, then the run was ended by the limit"),
        (ADD, "x = [bytearray(1 << 20) for _ in range(1000)]", "MemoryError"),
        (MEAN, "def average(values): return 1.5", "SyntaxError: the answer does not define mean"),
        (
            PLUS,
            "    return sum(values)",
            "1 of 3 tests passed; the first fault: AssertionError: [[1.0, 2.0]] gives 3.0, not 1.5",
        ),
    ],
)
def test_wrong_answers_are_worth_nothing_and_say_why(item, answer, reason, sandbox):
    verdict = judged(item, answer, sandbox)
    assert verdict.outcome == 0.0
    assert reason in verdict.reason


def test_a_share_counts_the_tests_that_passed_and_pass_at_one_wants_all(sandbox):
    answer = "def add(a, b):\n    return 3 if (a, b) == (1, 2) else 0"
    assert judged(ADD, answer, sandbox).outcome == 0.0
    assert judged(ADD, answer, sandbox, scoring="share").outcome == pytest.approx(2 / 3)
    slow = "import time\ndef add(a, b):\n    return 3 if a == 1 else time.sleep(60)"
    assert judged(ADD, slow, sandbox, scoring="share").outcome == pytest.approx(1 / 3)


def test_what_is_no_text_is_an_outcome(sandbox):
    verdict = judge(ADD, None, sandbox)
    assert (verdict.outcome, verdict.reason) == (0.0, "the answer is of type NoneType, not a text")


def test_objects_of_the_program_can_be_used_by_tests(sandbox):
    tests = (
        "p = Pair(1, 2)\nassert p.first == 1",
        "assert chain([Pair(1, 2), Pair(3, 4)]) == 2",
        "assert list(count(3)) == [0, 1, 2]",
    )
    item = CodingItem("pairs", "Pairs.", tests=tests)
    answer = """
        class Pair:
            def __init__(self, first, second):
                self.first, self.second = first, second

        def chain(pairs):
            return len([pair.first for pair in pairs])

        def count(most):
            yield from range(most)
    """
    assert judged(item, answer, sandbox).outcome == 1.0


def test_values_of_every_plain_type_come_back_as_they_are(sandbox):
    values = "(1, 'é', b'x', 2.5, 1 + 2j, None, True, [1, [2]], {1: (2,)}, {3}, frozenset({4}), 10**40, float('inf'))"
    item = CodingItem(
        "values", "Values.", tests=(f"assert f() == {values}", "assert type(f()) is tuple", "assert g(f()) == f()")
    )
    assert judged(item, f"def f(): return {values}\ndef g(x): return x", sandbox).outcome == 1.0


def test_exceptions_of_the_program_are_those_that_tests_expect(sandbox):
    test = "try:\n    f(-1)\n    raise AssertionError\nexcept ValueError as error:\n    assert 'negative' in str(error)"
    item = CodingItem("raises", "Raise.", tests=(test,))
    assert judged(item, "def f(x): raise ValueError('negative')", sandbox).outcome == 1.0
    assert judged(item, "def f(x): raise KeyError('negative')", sandbox).outcome == 0.0


def test_setup_and_imports_of_an_item_are_there_for_tests_and_programs(sandbox):
    item = CodingItem("sqrt", "Root.", setup="import math\nLIMIT = 2", tests=("assert math.isclose(root(4.0), LIMIT)",))
    assert judged(item, "def root(x): return math.sqrt(x)", sandbox).outcome == 1.0


def test_a_fault_of_the_item_is_told_as_such(sandbox):
    item = CodingItem("bad", PROMPT, entry="mean", reference=f"{PROMPT}    return 1 / 0", inputs=(([1],),))
    assert "the item's own solution failed: ZeroDivisionError" in judged(item, "    return 1", sandbox).reason
    unsendable = CodingItem("bad", "Map.", tests=("assert apply(lambda x: x, 1) == 1",))
    verdict = judged(unsendable, "def apply(f, x): return f(x)", sandbox)
    assert "a test hands over a function; only plain values reach the program" in verdict.reason


# ── cheats ───────────────────────────────────────────────────────────────────────────────────────────────────────────

CHEATS = {
    "prints the verdict": """
        import sys
        line = '{"total": 3}\\n' + '{"passed": true}\\n' * 3
        def add(a, b):
            for stream in (sys.stdout, sys.stderr, sys.__stdout__):
                stream.write(line)
                stream.flush()
    """,
    "writes the verdict to every open file": """
        import os
        def add(a, b):
            for number in range(256):
                try:
                    os.write(number, b'{"total": 3}\\n' + b'{"passed": true}\\n' * 3)
                except OSError:
                    pass
    """,
    "ends itself with success": "import os\nos._exit(0)",
    "ends itself with success when it is called": "import os\ndef add(a, b):\n    os._exit(0)",
    "leaves by SystemExit": "import sys\ndef add(a, b):\n    sys.exit(0)",
    "is equal to everything": """
        class Same(int):
            __eq__ = lambda self, other: True
            __ne__ = lambda self, other: False
            __hash__ = int.__hash__
            __repr__ = lambda self: "3"
        def add(a, b):
            return Same(99)
    """,
    "returns an object that is equal to everything": """
        class Same:
            __eq__ = __ge__ = __le__ = __bool__ = lambda *a: True
        def add(a, b):
            return Same()
    """,
    "changes the built-ins": """
        import builtins
        builtins.AssertionError = type("AssertionError", (Exception,), {"__init__": lambda *a: None})
        builtins.abs = builtins.all = builtins.any = lambda *a: True
        def add(a, b):
            return None
    """,
    "looks for the tests in its frames and its memory": """
        import gc, sys
        def add(a, b):
            frame, found = sys._getframe(), []
            while frame:
                found += [str(value) for value in frame.f_locals.values()]
                frame = frame.f_back
            found += [part for part in gc.get_objects() if isinstance(part, str)]
            if any("add(1, 2) ==" in text for text in found if "get_objects" not in text):
                return {(1, 2): 3, (-1, 1): 0, (2, 5): 7}[a, b]
    """,
    "writes modules for the judge to import": """
        for name in ("math", "json", "numbers", "fractions", "judge", "wire"):
            open(f"/tmp/room/{name}.py", "w").write("import os; os.write(1, b'{\\"passed\\": true}\\\\n' * 3)")
        def add(a, b):
            return None
    """,
    "kills the judge": """
        import os, signal
        def add(a, b):
            os.kill(os.getppid(), signal.SIGKILL)
    """,
    "signals and stops everybody": """
        import os, signal
        def add(a, b):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
                os.kill(-1, number)
    """,
    "debugs the judge": """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        def add(a, b):
            if libc.ptrace(16, os.getppid(), 0, 0) == 0:
                return {(1, 2): 3, (-1, 1): 0, (2, 5): 7}[a, b]
    """,
    "answers before it is asked, and nonsense": """
        import os
        for number in range(3, 20):
            try:
                os.write(number, b"\\0\\0\\0\\x0e" + b'{"value": true}'[:14] + b"\\xff\\xff\\xff\\xff")
            except OSError:
                pass
        def add(a, b):
            return None
    """,
    "ends loops by StopIteration": "def add(a, b):\n    raise StopIteration",
    "leaves a child that prints later": """
        import os, time
        if os.fork() == 0:
            time.sleep(0.05)
            for number in range(64):
                try:
                    os.write(number, b'{"passed": true}\\n' * 3)
                except OSError:
                    pass
            os._exit(0)
        def add(a, b):
            time.sleep(0.1)
    """,
}


@pytest.mark.parametrize("name", CHEATS)
def test_no_program_can_say_of_itself_that_it_is_right(name, sandbox):
    if sandbox.mode == "weak":
        pytest.skip("in mode weak a program may attack its judge")
    verdict = judged(ADD, CHEATS[name], sandbox, scoring="share")
    assert (verdict.outcome, verdict.passed) == (0.0, 0), verdict.reason


def test_a_loop_of_a_test_is_not_ended_by_what_the_program_raises(sandbox):
    item = CodingItem("all", "All.", tests=("assert all(map(even, [1, 2]))",))
    assert judged(item, "def even(x): raise StopIteration", sandbox).outcome == 0.0


def test_the_library_that_a_test_forgot_to_import_is_never_the_programs(sandbox):
    item = CodingItem("close", "Close.", tests=("assert math.isclose(f(), 2.0)",))
    cheat = "class math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(): return 7.0"
    assert judged(item, cheat, sandbox).outcome == 0.0


def test_a_test_that_hides_every_exception_does_not_hide_that_the_program_is_gone(sandbox):
    item = CodingItem("hides", "Hide.", tests=("try:\n    f()\nexcept:\n    pass",))
    assert judged(item, "def f(): return 1", sandbox).outcome == 1.0
    verdict = judged(item, "import os\ndef f(): os._exit(0)", sandbox)
    assert (verdict.outcome, verdict.reason) == (
        0.0,
        "0 of 1 tests passed; the first fault: the program ended itself during a test",
    )


def test_a_program_that_ends_itself_is_told(sandbox):
    assert "the first fault: the program ended itself" in judged(ADD, "import os\nos._exit(0)", sandbox).reason
    assert "then the judge was gone" in judged(ADD, CHEATS["kills the judge"], sandbox).reason


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("assert f() == 3", "TypeError: the program returned an object, which cannot be compared; a plain value"),
        ("assert f()", "TypeError: the program returned an object, which is neither true nor false; a plain value"),
        ("assert g() == 3", "the program's answer cannot be read: KeyError"),
        ("assert h() == 3", "the program's answer cannot be read: ValueError: an answer of 4294967295 bytes"),
    ],
)
def test_what_is_no_plain_value_says_nothing(test, reason, sandbox):
    answer = """
        import os
        def f():
            return object()
        def say(content):
            for number in range(3, 20):
                try:
                    os.write(number, content)
                except OSError:
                    pass
        def g():
            say(b'\\0\\0\\0\\x02{}')
        def h():
            say(b'\\xff' * 4)
    """
    assert reason in judged(CodingItem("no", "No.", tests=(test,)), answer, sandbox).reason


def test_what_crosses_the_pipe_is_plain_or_refused():
    reading, writing = os.pipe()
    wire.send(writing, {"value": [1, "é"]})
    assert wire.receive(reading) == {"value": [1, "é"]}
    os.write(writing, b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match=f"an answer of 4294967295 bytes; at most {wire.MOST_BYTES} are read"):
        wire.receive(reading)
    os.close(writing)
    with pytest.raises(EOFError):
        wire.receive(reading)
    os.close(reading)
    with pytest.raises(ValueError, match="an answer that is not packed as it should be"):
        wire.unpack({"tuple": [], "set": []}, int)
    for packed in ({"nothing": 1}, {"set": [[1]]}, {"int": "x"}, {"bytes": "x"}, {"dict": [1]}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            wire.unpack(packed, int)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def written(folder, *lines):
    path = folder / "items.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


MBPP = {
    "task_id": 2,
    "text": "Write add.",
    "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3"],
}
HUMAN = {
    "task_id": "HumanEval/0",
    "prompt": PROMPT,
    "entry_point": "mean",
    "canonical_solution": "    return sum(values) / len(values)\n",
    "test": CHECK,
}
EVALPLUS = {
    **HUMAN,
    "task_id": "HumanEval/1",
    "base_input": [[[1.0, 2.0]]],
    "plus_input": [[[0.1, 0.2]], [[3]]],
    "atol": 0,
    "contract": "",
}


def test_the_fields_of_the_public_data_sets_are_read(tmp_path, sandbox):
    sanitized = {
        "task_id": 3,
        "prompt": "Root.",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(root(4), 2)"],
    }
    items = read_items(written(tmp_path, MBPP, "", HUMAN, EVALPLUS, sanitized))
    assert [(item.id, len(item.tests), len(item.inputs)) for item in items] == [
        ("2", 1, 0), ("HumanEval/0", 1, 0), ("HumanEval/1", 1, 3), ("3", 1, 0)
    ]  # fmt: skip
    for item in items[:3]:
        assert judge(item, item.reference, sandbox).outcome == 1.0
    assert judge(items[3], "def root(x): return x ** 0.5", sandbox).outcome == 1.0


def test_every_fault_of_a_file_is_told_with_its_line(tmp_path):
    lines = [
        MBPP,
        "{broken",
        "[1]",
        {"task_id": 2, "text": "again", "test_list": ["assert True"]},
        {"text": 3, "test_list": ["assert True"]},
        {"task_id": 5, "text": "x"},
        {"task_id": 6, "text": "x", "base_input": [[1]]},
        {"task_id": 7, "text": "x", "test_list": [1], "plus_input": [2]},
        {"task_id": 8, "prompt": "x", "test": "def check(c): ...", "entry_point": "not a name"},
    ]
    with pytest.raises(ConfigError, match=r"items\.jsonl are not as they should be") as caught:
        read_items(written(tmp_path, *lines))
    told = [fault.partition(" (char")[0].partition(" in double quotes")[0] for fault in caught.value.faults]
    assert told == [
        "line 2: is not JSON: Expecting property name enclosed",
        "line 3: is a JSON list, not an object with named fields",
        "line 4: the task_id '2' was there before; each item needs its own",
        "line 5: text is of type int, not str",
        "line 5: task_id is missing; it names the item",
        "line 6: there are no tests; an item has test_list, or test and entry_point, or base_input",
        "line 7: inputs need canonical_solution and entry_point, which say what is expected of them",
        "line 8: inputs need canonical_solution and entry_point, which say what is expected of them",
        "line 8: not every entry of test_list is of type str",
        "line 8: not every entry of plus_input is of type list",
        "line 9: entry_point is 'not a name'; it is the name of a function",
    ]
    with pytest.raises(ConfigError) as caught:
        read_items(written(tmp_path, {"task_id": 1, "test_list": ["assert True"]}))
    assert "line 1: text or prompt is missing; it is what the model is asked" in caught.value.faults


def test_files_that_are_not_there_are_empty_or_all_wrong_say_so(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory; give a JSONL file"):
        read_items(tmp_path / "nothing.jsonl")
    with pytest.raises(ConfigError, match="are not as they should be") as caught:
        read_items(written(tmp_path, "", " "))
    assert caught.value.faults == ("there is no item in it; a line is one JSON object",)
    with pytest.raises(ConfigError) as caught:
        read_items(written(tmp_path, *["{"] * 70))
    assert (len(caught.value.faults), caught.value.faults[-1]) == (51, "and 20 more faults")


def test_code_is_found_in_answers():
    assert code_in("plain") == ["plain"]
    assert code_in("a\n```py\nx\n```\nb\n```js\ny\n```\n```\nz\n```") == ["x\n\nz\n", "z\n", "x\n"]
    assert code_in("```python\nnot closed") == ["not closed"]


# ── the evaluator ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_evaluator_scores_a_model_item_by_item(tmp_path, sandbox):
    path, said, asked = written(tmp_path, MBPP, HUMAN), [], []

    def model(conversations):
        asked.extend(conversations)
        return ["def add(a, b): return a + b"] * len(conversations)

    spec = coding_evaluator(path, name="my-coding", sandbox=sandbox, workers=2, report=lambda *a: said.append(a))
    assert spec_faults(next(kind for kind in KINDS if kind.hook == "minerua_evaluators"), spec) == []
    assert spec.items() == ["2", "HumanEval/0"]
    assert spec.evaluate(model, ["HumanEval/0", "2"], 0) == [0.0, 1.0]
    assert asked == [PROMPT, "Write add.\nYour code should pass this test:\n\nassert add(1, 2) == 3"]
    assert [(id, verdict.outcome) for id, verdict in said] == [("HumanEval/0", 0.0), ("2", 1.0)]
    assert spec.inputs(["HumanEval/0"]) == [PROMPT]


def test_the_version_of_the_evaluator_changes_with_what_outcomes_depend_on(tmp_path, sandbox):
    first = coding_evaluator(written(tmp_path, MBPP), sandbox=sandbox)
    again = coding_evaluator(written(tmp_path, MBPP), sandbox=sandbox)
    share = coding_evaluator(written(tmp_path, MBPP), sandbox=sandbox, scoring="share")
    other = coding_evaluator(written(tmp_path, MBPP, HUMAN), sandbox=sandbox)
    assert first.version == again.version
    assert len({first.version, share.version, other.version}) == 3


def test_settings_of_the_evaluator_are_checked(tmp_path, sandbox):
    path = written(tmp_path, MBPP)
    with pytest.raises(ConfigError, match="evaluator 'coding': the scoring is 'some', which is none of all, share"):
        coding_evaluator(path, sandbox=sandbox, scoring="some")
    with pytest.raises(ConfigError, match="evaluator 'coding': workers is 0; it is at least 1"):
        coding_evaluator(path, sandbox=sandbox, workers=0)
    with pytest.raises(ConfigError, match="the scoring is 'half'; it is one of all, share"):
        judge(ADD, "x", sandbox, scoring="half")


def test_importing_the_package_brings_no_torch():
    script = "import sys, minerua_agent_tasks; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "False\n"
