"""Coding tasks: a model writes a function, tests are executed, in the fields of MBPP, HumanEval and EvalPlus.

Source: MBPP, Austin et al. 2021, arXiv 2108.07732; HumanEval and pass@k, Chen et al. 2021, arXiv 2107.03374; EvalPlus,
Liu et al. 2023, arXiv 2305.01210.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from minerua.errors import ConfigError
from minerua.values import EvaluatorSpec

from .fields import CodingItem, read_items
from .sandbox import Limits, Outcome, Sandbox

__all__ = ["LIMITS", "CodingItem", "Verdict", "code_in", "coding_evaluator", "judge", "question", "read_items"]

_SCORINGS = ("all", "share")
_VERSION = "1"
LIMITS = Limits(seconds=10.0, cpu_seconds=20.0, output_bytes=16 << 20)
"""Of an item, if nothing else is said: all its tests together."""


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth.

    Args:
        outcome: In [0, 1].
        reason: Why, in words; what a program raised is quoted, cut to 200 letters.
        passed: How many tests passed.
        total: How many tests there are.
    """

    outcome: float
    reason: str
    passed: int = 0
    total: int = 0


def code_in(answer: str) -> list[str]:
    r"""Returns what may be the code in a model's answer, the likeliest first.

    Fenced blocks together, each by itself from the last to the first, a block that was not closed; without a fence the
    whole answer. Which of them is a program is decided where programs are run: reading hostile code is a risk too.

    Example:
        >>> code_in("Sure!\n```python\ndef f(): ...\n```\nDone.")
        ['def f(): ...\n']
    """
    blocks = [block for kind, block in _FENCE.findall(answer) if kind.lower() in _PYTHON]
    if not blocks:
        return [answer]
    return list(dict.fromkeys(["\n".join(blocks), *reversed(blocks)]))


_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = {"", "python", "python3", "py"}


def judge(
    item: CodingItem,
    answer: Any,
    sandbox: Sandbox,
    *,
    scoring: str = "all",
    paths: Sequence[str] = (),
    limits: Limits = LIMITS,
) -> Verdict:
    """Executes the tests of an item against an answer, in one run of a sandbox.

    Args:
        item: The item.
        answer: What the model said; anything but a text is worth 0.
        sandbox: Where.
        scoring: `"all"`: 1 if every test passes, else 0, which makes the mean pass@1. `"share"`: passed ÷ all.
        paths: Folders to import from, for tests and programs; the sandbox must show them (`readable`).
        limits: Of the run, which is all tests of the item together.

    Returns:
        The verdict; whatever the program does is one.

    Raises:
        ConfigError: An unknown scoring.
        minerua_agent_tasks.sandbox.SandboxError: The sandbox failed: nothing is known about the answer.
    """
    if scoring not in _SCORINGS:
        raise ConfigError(f"the scoring is {scoring!r}; it is one of {', '.join(_SCORINGS)}")
    if not isinstance(answer, str):
        return Verdict(0.0, f"the answer is of type {type(answer).__name__}, not a text")
    told = {**item.told(), "codes": code_in(answer), "paths": list(paths)}
    command = [sandbox.python, "-s", "-S", "-B", "judge.py"]
    outcome = sandbox.run(command, files=_files(), stdin=json.dumps(told), limits=limits)
    return _verdict(outcome, scoring)


@lru_cache(maxsize=1)
def _files() -> dict[str, bytes]:
    folder = Path(__file__).parent / "judging"
    return {name: (folder / name).read_bytes() for name in ("judge.py", "candidate.py", "wire.py")}


def _verdict(outcome: Outcome, scoring: str) -> Verdict:
    """Reads the lines that the judge wrote; its exit code says nothing, the program could have killed it."""
    lines = [json.loads(line) for line in outcome.stdout.splitlines(keepends=True) if line.endswith(b"\n")]
    total = next((line["total"] for line in lines if "total" in line), 0)
    passed = sum(line.get("passed", False) for line in lines)
    share = passed / total if total else 0.0
    worth = share if scoring == "share" else float(passed == total > 0)
    return Verdict(worth, _reason(outcome, lines, passed, total), passed, total)


def _reason(outcome: Outcome, lines: list[dict[str, Any]], passed: int, total: int) -> str:
    faults = [str(line[key]) for line in lines for key in ("fault", "unloaded", "why") if key in line]
    if outcome.limit:
        value = f"{passed} of {total} tests passed, then the run was {outcome}"
    elif faults:
        value = f"{passed} of {total} tests passed; the first fault: {faults[0]}"
    elif passed < total or not total:
        said = outcome.stderr.decode(errors="replace").strip()[-200:]
        value = f"{passed} of {total} tests passed, then the judge was gone ({outcome}): {said}".rstrip(": ")
    else:
        value = f"all {total} tests passed"
    return value


def question(item: CodingItem) -> str:
    """Returns what a model is asked by default: the prompt; where nothing names the function, one test too.

    Example:
        >>> print(question(CodingItem("1", "Add two numbers.", tests=("assert add(1, 2) == 3",))))
        Add two numbers.
        Your code should pass this test:
        <BLANKLINE>
        assert add(1, 2) == 3
    """
    if item.entry is not None or not item.tests:
        return item.prompt
    return f"{item.prompt}\nYour code should pass this test:\n\n{item.tests[0]}"


def coding_evaluator(
    path: str | Path,
    *,
    name: str = "coding",
    sandbox: Sandbox | None = None,
    scoring: str = "all",
    limits: Limits = LIMITS,
    paths: Sequence[str] = (),
    ask: Callable[[CodingItem], str] = question,
    workers: int = 1,
    report: Callable[[str, Verdict], None] | None = None,
) -> EvaluatorSpec:
    """Returns an evaluator whose items are the lines of a JSONL file, for a plugin's `minerua_evaluators`.

    The model is a callable: prompt → answer, both texts. It is asked one item after the other; what it raises is not
    caught here.

    Args:
        path: The items, see `read_items`.
        name: The evaluator's name.
        sandbox: Where programs run; by default `Sandbox()`, the strongest that this machine offers.
        scoring: `"all"` or `"share"`, see `judge`.
        limits: Of each item.
        paths: Folders to import from, see `judge`.
        ask: Item → prompt.
        workers: How many items are judged at the same time.
        report: Called with the item's id and its verdict, from this thread.

    Raises:
        ConfigError: The items, or a setting, are not as they should be.
        minerua_agent_tasks.sandbox.SandboxUnavailable: There is no strong mode, and no sandbox was given.
    """
    items = {item.id: item for item in read_items(path)}
    if scoring not in _SCORINGS:
        raise ConfigError(f"evaluator {name!r}: the scoring is {scoring!r}, which is none of {', '.join(_SCORINGS)}")
    if workers < 1:
        raise ConfigError(f"evaluator {name!r}: workers is {workers}; it is at least 1")
    where = Sandbox() if sandbox is None else sandbox

    def evaluate(model: Callable[[str], Any], ids: Sequence[str], seed: int) -> list[float]:
        del seed  # programs see the same hash seed and no other chance
        answers = [model(ask(items[id])) for id in ids]

        def one(id: str, answer: Any) -> Verdict:
            return judge(items[id], answer, where, scoring=scoring, paths=paths, limits=limits)

        with ThreadPoolExecutor(workers) as pool:
            verdicts = list(pool.map(one, ids, answers))
        for id, verdict in zip(ids, verdicts, strict=True):
            if report is not None:
                report(id, verdict)
        return [verdict.outcome for verdict in verdicts]

    version = hashlib.sha256(f"{_VERSION} {scoring} {limits} {Path(path).read_bytes()!r}".encode()).hexdigest()[:16]
    return EvaluatorSpec(name=name, items=lambda: list(items), evaluate=evaluate, version=version)
