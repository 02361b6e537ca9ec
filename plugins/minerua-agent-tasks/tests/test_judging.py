"""Many answers judged in one run: each as if it were alone, whatever the others do."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from minerua_agent_tasks import CodingItem, judge, judging
from minerua_agent_tasks.coding import judge_many
from minerua_agent_tasks.sandbox import Limits, Sandbox

PATIENT = Limits(seconds=10.0, cpu_seconds=10.0, memory_bytes=128 << 20)
QUICK = Limits(seconds=0.7, memory_bytes=128 << 20)

ADD = CodingItem("add", "Write add.", tests=("assert add(1, 2) == 3", "assert add(-1, 1) == 0"))
PROMPT = "def mean(values):\n"
MEAN = CodingItem("mean", PROMPT, entry="mean", reference=f"{PROMPT}    return 1.5\n", inputs=(([1.0, 2.0],),))


@pytest.fixture(scope="module")
def sandbox():
    offered = [offer.mode for offer in Sandbox.check() if offer.fault is None]
    with Sandbox(offered[0]) as one:
        yield one


RIGHT, WRONG = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b"


def test_many_answers_are_judged_as_each_would_be_alone(sandbox):
    answers = [RIGHT, WRONG, "no code", None, "def add(a, b):\n    return a / 0", RIGHT]
    pairs = [*((ADD, answer) for answer in answers), (MEAN, "    return sum(values) / len(values)")]
    alone = [judge(item, answer, sandbox, limits=PATIENT) for item, answer in pairs]
    for workers in (1, 3):
        assert judge_many(pairs, sandbox, limits=PATIENT, workers=workers) == alone
    assert [verdict.outcome for verdict in alone] == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]


DISTURBANCES = {
    "kills everybody": """
        import os, signal
        def add(a, b):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
                os.kill(-1, number)
    """,
    "kills who started it": "import os, signal\ndef add(a, b):\n    os.kill(os.getppid(), signal.SIGKILL)",
    "does not end": "def add(a, b):\n    while True: pass",
    "leaves a child": """
        import os, time
        if os.fork() == 0:
            time.sleep(60)
        def add(a, b):
            return a + b
    """,
    "leaves files": """
        import os
        os.makedirs("/tmp/room/deep/deeper")
        for name in ("/tmp/room/deep/deeper/math.py", "/tmp/room/json.py", "/tmp/home/x"):
            open(name, "w").write("raise SystemExit")
        os.symlink("/", "/tmp/room/link")
        def add(a, b):
            return a + b
    """,
    "changes the files of the judge": """
        for name in ("judge", "foreman", "candidate", "wire"):
            open(f"/tmp/room/{name}.py", "w").write("raise SystemExit")
        def add(a, b):
            return a + b
    """,
    "locks the room": "import os\nos.chmod('/tmp/room', 0)\ndef add(a, b):\n    return a + b\n",
    "stops who started it": "import os, signal\ndef add(a, b):\n    os.kill(os.getppid(), signal.SIGSTOP)",
    "lowers its limits": """
        import os, resource
        for pid in (0, os.getppid()):
            try:
                resource.prlimit(pid, resource.RLIMIT_AS, (1 << 24, 1 << 24))
            except OSError:
                pass
        def add(a, b):
            return a + b
    """,
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_no_answer_disturbs_those_that_share_its_run(name, sandbox):
    if sandbox.mode == "weak":
        pytest.skip("in mode weak a program may attack its judge")
    disturbance = dedent(DISTURBANCES[name])
    verdicts = judge_many([(ADD, a) for a in (RIGHT, disturbance, RIGHT, WRONG, RIGHT)], sandbox, limits=QUICK)
    assert [verdict.outcome for verdict in verdicts[:1] + verdicts[2:]] == [1.0, 1.0, 0.0, 1.0]
    assert verdicts[1].outcome == (1.0 if disturbance.endswith("return a + b\n") else 0.0), verdicts[1].reason


def test_a_solution_of_an_item_that_does_not_end_is_a_fault_of_the_item(sandbox):
    leaving = f"import os, time\nif os.fork() == 0: time.sleep(60)\n{PROMPT}    return 1.5\n"
    item = CodingItem("left", PROMPT, entry="mean", reference=leaving, inputs=(([1],),))
    reason = judge(item, "    return 1.5", sandbox, limits=PATIENT).reason
    assert "the item's own solution failed: it left a process that does not end" in reason


def test_a_program_that_cannot_be_started_is_told(sandbox):
    killing = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    item = CodingItem("gone", PROMPT, entry="mean", reference=f"{killing}\n{PROMPT}    return 1.5\n", inputs=(([1],),))
    assert "the process that starts programs is gone" in Path(judging.__file__).with_name("judge.py").read_text()
    assert judge(item, "    return 1.5", sandbox, limits=PATIENT).outcome == 0.0
