"""Coding tasks: a model writes a function, tests are executed, in the fields of MBPP, HumanEval and EvalPlus.

Source: MBPP, Austin et al. 2021, arXiv 2108.07732; HumanEval and pass@k, Chen et al. 2021, arXiv 2107.03374; EvalPlus,
Liu et al. 2023, arXiv 2305.01210.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from minerua.errors import ConfigError
from minerua.settings import Settings
from minerua.values import EvaluatorSpec, Exhibit, RunContext

from .asking import UNANSWERED, Conversation, answers
from .fields import CodingItem, read_items
from .remembering import Memory
from .sandbox import Limits, Outcome, Sandbox
from .settings import read_limits, read_report, read_sandbox
from .showing import shown
from .verdict import Verdict

__all__ = [
    "LIMITS",
    "CodingItem",
    "Verdict",
    "code_in",
    "coding_evaluator",
    "configure_coding",
    "judge",
    "judge_many",
    "question",
    "read_items",
    "template",
]

_SCORINGS = ("all", "share")
_VERSION = "2"
LIMITS = Limits(seconds=10.0, cpu_seconds=20.0, output_bytes=16 << 20)
"""Of an item, if nothing else is said: all its tests together."""

_MOST_TOGETHER, _MOST_TOGETHER_BYTES = 64, 1 << 20
"""How many items share a run, and how long what the judge is told of them may be."""

_TOGETHER_SECONDS = 1.0
"""How long an item may take in a shared run; one that needs longer is judged alone, with all the time that it has."""


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
    """Executes the tests of an item against an answer, in a run of a sandbox of its own.

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
    return judge_many([(item, answer)], sandbox, scoring=scoring, paths=paths, limits=limits)[0]


def judge_many(
    pairs: Sequence[tuple[CodingItem, Any]],
    sandbox: Sandbox,
    *,
    scoring: str = "all",
    paths: Sequence[str] = (),
    limits: Limits = LIMITS,
    workers: int = 1,
) -> list[Verdict]:
    """Judges many answers, up to 64 in one run of a sandbox, each as if it were alone.

    An item that is not done within a second, whose judge does not come to its end, or that leaves a process or a file,
    is judged once more, alone and with all its limits; those after it go on in a fresh room. See the README for why
    none can disturb another.

    Args:
        pairs: Items and what the model said to each.
        sandbox: Where.
        scoring: See `judge`.
        paths: See `judge`.
        limits: Of each item, and of each shared run.
        workers: How many runs at the same time; no verdict depends on it.

    Returns:
        One verdict per pair, in order.

    Raises:
        ConfigError: An unknown scoring.
        minerua_agent_tasks.sandbox.SandboxError: As `judge`.
    """
    if scoring not in _SCORINGS:
        raise ConfigError(f"the scoring is {scoring!r}; it is one of {', '.join(_SCORINGS)}")
    verdicts: dict[int, Verdict] = {}
    told: list[dict[str, Any]] = []
    for number, (item, answer) in enumerate(pairs):
        if isinstance(answer, str):
            told.append({**item.told(), "codes": code_in(answer), "paths": list(paths), "number": number})
        else:
            verdicts[number] = Verdict(0.0, f"the answer is of type {type(answer).__name__}, not a text")
    room = _Room(sandbox, limits, scoring)
    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(room.judged, _batches(told, workers)):
            verdicts |= found
    return [verdicts[number] for number in range(len(pairs))]


def _batches(told: list[dict[str, Any]], workers: int) -> Iterator[list[dict[str, Any]]]:
    """Yields the items in groups that fit into one run, and so that every worker has one."""
    most = min(_MOST_TOGETHER, -(-len(told) // workers))
    batch: list[dict[str, Any]] = []
    size = 0
    for item in told:
        length = len(json.dumps(item))
        if batch and (len(batch) == most or size + length > _MOST_TOGETHER_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


class _Room:
    """Judges items in runs of a sandbox."""

    def __init__(self, sandbox: Sandbox, limits: Limits, scoring: str) -> None:
        self.sandbox, self.limits, self.scoring = sandbox, limits, scoring

    def judged(self, items: list[dict[str, Any]]) -> dict[int, Verdict]:
        """Returns number → verdict, whatever any of the items does."""
        verdicts: dict[int, Verdict] = {}
        while items:
            if len(items) > 1:
                outcome, lines = self._run(items, min(_TOGETHER_SECONDS, self.limits.seconds))
                done = {line["done"] for line in lines if "done" in line}
                verdicts |= {number: _verdict(outcome, _of(lines, number), self.scoring) for number in done}
                items = [item for item in items if item["number"] not in done]
            if items:  # the first one did not come to its end beside others
                outcome, lines = self._run(items[:1], None)
                verdicts[items[0]["number"]] = _verdict(outcome, lines, self.scoring)
                items = items[1:]
        return verdicts

    def _run(self, items: list[dict[str, Any]], seconds: float | None) -> tuple[Outcome, list[dict[str, Any]]]:
        command = [self.sandbox.python, "-s", "-S", "-B", "foreman.py"]
        told = json.dumps({"items": items, "seconds": seconds})
        outcome = self.sandbox.run(command, files=_files(), stdin=told, limits=self.limits)
        written = outcome.stdout.splitlines(keepends=True)
        return outcome, [json.loads(line) for line in written if line.endswith(b"\n")]


def _of(lines: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [line for line in lines if number in (line.get("item"), line.get("done"))]


@lru_cache(maxsize=1)
def _files() -> dict[str, bytes]:
    folder = Path(__file__).parent / "judging"
    return {name: (folder / name).read_bytes() for name in ("foreman.py", "judge.py", "candidate.py", "wire.py")}


def _verdict(outcome: Outcome, lines: list[dict[str, Any]], scoring: str) -> Verdict:
    """Reads the lines that the judge wrote; its exit code says nothing, the program could have killed it."""
    total = next((line["total"] for line in lines if "total" in line), 0)
    passed = sum(line.get("passed", False) for line in lines)
    share = passed / total if total else 0.0
    worth = share if scoring == "share" else float(passed == total > 0)
    is_done = any("done" in line for line in lines)
    return Verdict(worth, _reason(outcome, lines, passed, total), passed, total, is_certain=is_done)


def _reason(outcome: Outcome, lines: list[dict[str, Any]], passed: int, total: int) -> str:
    faults = [str(line[key]) for line in lines for key in ("fault", "unloaded", "why") if key in line]
    is_done = any("done" in line for line in lines)
    so_far = f"{passed} of {total} tests passed"
    if is_done:
        return f"{so_far}; the first fault: {faults[0]}" if faults else f"all {total} tests passed"
    if outcome.limit:
        return f"{so_far}, then the run was {outcome}"
    said = outcome.stderr.decode(errors="replace").strip()[-200:]
    return f"{so_far}, then the judge was gone ({outcome}): {said}".rstrip(": ")


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


def template(text: str, system: str | None = None) -> Callable[[CodingItem], Conversation]:
    """Returns what makes a conversation of an item.

    Args:
        text: `{prompt}` in it stands for what is asked, `{test}` for the first test, `{tests}` for all of them.
        system: What the model is told before, as a message of its own.

    Raises:
        ConfigError: There is no `{prompt}` in it.

    Example:
        >>> template("Write Python. {prompt}")(CodingItem("1", "Add two numbers."))
        'Write Python. Add two numbers.'
    """
    if "{prompt}" not in text:
        raise ConfigError(f"the prompt {text!r:.60} has no {{prompt}} in it, where the item's own is put")

    def ask(item: CodingItem) -> Conversation:
        parts = {"prompt": item.prompt, "test": (*item.tests, "")[0], "tests": "\n".join(item.tests)}
        said = re.sub(r"\{(prompt|test|tests)\}", lambda found: parts[found[1]], text)
        return _after(system, said)

    return ask


def _after(system: str | None, said: str) -> Conversation:
    if system is None:
        return said
    return [{"role": "system", "content": system}, {"role": "user", "content": said}]


# ── the evaluator ────────────────────────────────────────────────────────────────────────────────────────────────────


def coding_evaluator(
    path: str | Path,
    *,
    name: str = "coding",
    sandbox: Sandbox | None = None,
    scoring: str = "all",
    limits: Limits = LIMITS,
    paths: Sequence[str] = (),
    ask: Callable[[CodingItem], Conversation] = question,
    workers: int = 1,
    report: Callable[[str, Verdict], None] | None = None,
) -> EvaluatorSpec:
    """Returns an evaluator whose items are the lines of a JSONL file.

    Models are callables: conversations → answers, see `minerua_agent_tasks.asking`. All items of all models are asked
    in one call. An answer that was judged before is not executed again, unless a limit had a part in its verdict:
    children of a population mostly write what others wrote. What a model raises is not caught here.

    Args:
        path: The items, see `read_items`.
        name: The evaluator's name.
        sandbox: Where programs run; by default `Sandbox()`, the strongest that this machine offers.
        scoring: `"all"` or `"share"`, see `judge`.
        limits: Of each item.
        paths: Folders to import from, see `judge`.
        ask: Item → conversation; it is part of the version by what it makes of the items.
        workers: How many runs of the sandbox at the same time.
        report: Called with the item's id and its verdict, from this thread, in the order of models and ids.

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
    known = Memory[Verdict]()

    def inputs(ids: Sequence[str]) -> list[Conversation]:
        return [ask(items[id]) for id in ids]

    def judged(
        models: Sequence[Any], ids: Sequence[Sequence[str]]
    ) -> tuple[list[tuple[str, str | None]], dict[tuple[str, str | None], Verdict]]:
        given = answers(models, [inputs(some) for some in ids])
        pairs = [
            (id, said) for some, texts in zip(ids, given, strict=True) for id, said in zip(some, texts, strict=True)
        ]
        verdicts = dict.fromkeys((pair for pair in pairs if pair[1] is None), Verdict(0.0, UNANSWERED))
        verdicts |= {pair: verdict for pair in pairs if (verdict := known.find(pair)) is not None}
        new = [pair for pair in dict.fromkeys(pairs) if pair not in verdicts]
        asked = [(items[id], said) for id, said in new]
        found = judge_many(asked, where, scoring=scoring, paths=paths, limits=limits, workers=workers)
        for pair, verdict in zip(new, found, strict=True):
            verdicts[pair] = verdict
            if verdict.is_certain:
                known.keep(pair, verdict)
        return pairs, verdicts

    def evaluate_many(models: Sequence[Any], ids: Sequence[Sequence[str]], seed: int) -> list[list[float]]:
        del seed  # programs see the same hash seed and no other chance
        pairs, verdicts = judged(models, ids)
        for pair in pairs:
            if report is not None:
                report(pair[0], verdicts[pair])
        left = (verdicts[pair] for pair in pairs)
        return [[next(left).outcome for _ in some] for some in ids]

    def exhibit(model: Any, ids: Sequence[str]) -> list[Exhibit]:
        pairs, verdicts = judged([model], [ids])
        return [shown(id, ask(items[id]), said, verdicts[id, said]) for id, said in pairs]

    told = [_VERSION, scoring, asdict(limits), list(paths)]
    asked = [[ask(item), asdict(item)] for item in items.values()]
    return EvaluatorSpec(
        name=name,
        items=lambda: list(items),
        evaluate=lambda model, ids, seed: evaluate_many([model], [ids], seed)[0],
        evaluate_many=evaluate_many,
        inputs=inputs,
        version=hashlib.sha256(json.dumps([told, asked]).encode()).hexdigest()[:16],
        exhibit=exhibit,
    )


def configure_coding(settings: Mapping[str, Any], context: RunContext) -> EvaluatorSpec:
    """Returns the coding evaluator that the settings of a task describe.

    `path` (required), `scoring`, `prompt`, `system`, `limits`, `paths`, `sandbox`, `report`: see the README.

    Raises:
        ConfigError: Settings, items or the machine are not as they should be; all faults.
    """
    told = Settings("the evaluator 'coding'", settings, context.folder)
    path, scoring = told.path("path", what="a file"), told.choice("scoring", _SCORINGS, "all")
    system, prompt = told.text("system", None), told.text("prompt", None)
    limits, report = read_limits(told, LIMITS), read_report(told)
    paths = [str(folder) for folder in told.paths("paths", ())]
    sandbox = read_sandbox(told, readable=paths)
    ask = told.made(lambda: _asking(prompt, system), question)
    if told.has("path"):
        told.made(lambda: read_items(path), None)
    told.done()
    return coding_evaluator(
        path,
        sandbox=sandbox,
        scoring=scoring,
        limits=limits,
        paths=paths,
        ask=ask,
        workers=max(1, context.workers),
        report=report,
    )


def _asking(prompt: str | None, system: str | None) -> Callable[[CodingItem], Conversation]:
    if prompt is not None:
        return template(prompt, system)
    return lambda item: _after(system, question(item))
