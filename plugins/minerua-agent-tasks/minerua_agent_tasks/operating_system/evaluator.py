"""The evaluator: all dialogues of all models advance together, turn by turn."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from minerua.errors import ConfigError
from minerua.settings import Settings
from minerua.values import EvaluatorSpec, Exhibit, RunContext

from ..asking import Conversation, answers
from ..remembering import Memory
from ..sandbox import Limits, SandboxError
from ..settings import read_limits, read_report, read_sandbox
from ..showing import shown
from ..verdict import Verdict
from .dialogue import Dialogue, Rules
from .formats import FORMATS
from .items import OperatingItem, read_items
from .room import Conditions, Room

__all__ = ["COMMAND_SECONDS", "LIMITS", "configure_operating_system", "operating_system_evaluator"]

LIMITS = Limits(seconds=30.0, cpu_seconds=20.0, memory_bytes=256 << 20, disk_bytes=32 << 20)
"""Of an item, if nothing else is said: its setup, all its commands and its checks together."""

COMMAND_SECONDS = 5.0
"""How long a command may take, as in AgentBench."""

_VERSION = "1"
_MOST_DIALOGUES = 64
"""How many are held at the same time: an open session holds 3 MB, and at worst what its limits allow."""


def configure_operating_system(settings: Mapping[str, Any], context: RunContext) -> EvaluatorSpec:
    """Returns the operating-system evaluator that the settings of a task describe.

    `path` (required), `turns`, `format`, `prompt`, `system`, `limits`, `command_seconds`, `sandbox`, `shell`,
    `scripts`, `verify`, `report`: see the README.

    Raises:
        ConfigError: Settings, items or the machine are not as they should be; all faults.
    """
    told = Settings("the evaluator 'operating-system'", settings, context.folder)
    path, scripts = told.path("path", what="a file"), told.path("scripts", None)
    format = FORMATS[told.choice("format", list(FORMATS), "plain")]
    turns, prompt = told.whole("turns", 5), told.text("prompt", format.instructions)
    rules = Rules(format, turns, prompt, told.text("system", None))
    limits, seconds = read_limits(told, LIMITS), told.number("command_seconds", COMMAND_SECONDS, above=0)
    shell, verify, report = told.text("shell", "bash"), told.flag("verify", True), read_report(told)
    if "{prompt}" not in prompt:
        told.fault(f"the prompt {prompt!r:.60} has no {{prompt}} in it, where the task's own is put")
    sandbox = read_sandbox(told)
    items = told.made(lambda: read_items(path, scripts=scripts), []) if told.has("path") else []
    if sandbox is not None and not told.faults:
        conditions = Conditions(sandbox, shell, limits, seconds)
        told.fault(*_verified(items if verify else [], conditions, context.workers))
    told.done()
    return operating_system_evaluator(items, rules, conditions, workers=max(1, context.workers), report=report)


def operating_system_evaluator(
    items: Sequence[OperatingItem],
    rules: Rules,
    conditions: Conditions,
    *,
    name: str = "operating-system",
    workers: int = 1,
    report: Callable[[str, Verdict], None] | None = None,
) -> EvaluatorSpec:
    """Returns an evaluator over items.

    In each turn all dialogues of all models that are under way are asked in one call, 64 at a time, then what they want
    is carried out. No outcome depends on how many there are. What was carried out before is remembered: children of a
    population mostly say what others said.

    Args:
        items: The items.
        rules: How models are talked to.
        conditions: What holds for the rooms.
        name: The evaluator's name.
        workers: How many commands are carried out at the same time.
        report: Called with the item's id and its verdict, in the order of models and ids.
    """
    by_id = {item.id: item for item in items}
    known = Memory[str | Verdict]()

    def evaluate_many(models: Sequence[Any], ids: Sequence[Sequence[str]], seed: int) -> list[list[float]]:
        del seed  # nothing is drawn
        dialogues = [[Dialogue(by_id[id], rules, conditions, known) for id in some] for some in ids]
        verdicts = _played(models, dialogues, workers)
        for some, found in zip(ids, verdicts, strict=True):
            for id, verdict in zip(some, found, strict=True):
                if report is not None:
                    report(id, verdict)
        return [[verdict.outcome for verdict in found] for found in verdicts]

    def exhibit(model: Any, ids: Sequence[str]) -> list[Exhibit]:
        dialogues = [Dialogue(by_id[id], rules, conditions, known) for id in ids]
        (verdicts,) = _played([model], [dialogues], workers)
        pairs = zip(dialogues, verdicts, strict=True)
        return [shown(one.item.id, one.conversation, one.last, verdict) for one, verdict in pairs]

    def inputs(ids: Sequence[str]) -> list[Conversation]:
        return [rules.first(by_id[id]) for id in ids]

    return EvaluatorSpec(
        name=name,
        items=lambda: list(by_id),
        evaluate=lambda model, ids, seed: evaluate_many([model], [ids], seed)[0],
        evaluate_many=evaluate_many,
        inputs=inputs,
        version=_version(items, rules, conditions),
        exhibit=exhibit,
    )


def _version(items: Sequence[OperatingItem], rules: Rules, conditions: Conditions) -> str:
    told = [_VERSION, rules.format.name, rules.format.hint, rules.turns, conditions.shell, conditions.command_seconds]
    read = [[rules.first(item), asdict(item)] for item in items]
    return hashlib.sha256(json.dumps([told, asdict(conditions.limits), read]).encode()).hexdigest()[:16]


# ── the turns ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _played(models: Sequence[Any], dialogues: Sequence[Sequence[Dialogue]], workers: int) -> list[list[Verdict]]:
    """Plays all dialogues to their ends."""
    waiting = [(number, dialogue) for number, some in enumerate(dialogues) for dialogue in some]
    waiting.reverse()  # taken from the end
    active: list[tuple[int, Dialogue]] = []
    try:
        with ThreadPoolExecutor(workers) as pool:
            while waiting or active:
                while waiting and len(active) < _MOST_DIALOGUES:
                    active.append(waiting.pop())
                said = _asked(models, active)
                for _ in pool.map(lambda pair: pair[0][1].hear(pair[1]), zip(active, said, strict=True)):
                    pass  # raises what a dialogue raised
                active = [one for one in active if one[1].verdict is None]
    finally:
        for _, dialogue in active:
            dialogue.close()
    return [[dialogue.verdict for dialogue in some if dialogue.verdict is not None] for some in dialogues]


def _asked(models: Sequence[Any], active: Sequence[tuple[int, Dialogue]]) -> list[str | None]:
    """Asks all models for their next turns, in one call; returns the answers in the order of the dialogues."""
    numbers = list(dict.fromkeys(number for number, _ in active))
    conversations = [[dialogue.conversation for number, dialogue in active if number == one] for one in numbers]
    given = answers([models[number] for number in numbers], conversations)
    left = {number: iter(said) for number, said in zip(numbers, given, strict=True)}
    return [next(left[number]) for number, _ in active]


# ── before the run ───────────────────────────────────────────────────────────────────────────────────────────────────


def _verified(items: Sequence[OperatingItem], conditions: Conditions, workers: int) -> list[str]:
    """Returns what is wrong with the shell, or with items whose own solution does not pass."""
    try:
        with conditions.sandbox.open(shell=conditions.shell) as session:
            outcome = session.run("[[ -n $BASH_VERSION ]]", seconds=5)
    except (SandboxError, ConfigError) as error:
        return [f"the shell {conditions.shell!r} cannot be started in the sandbox: {error.message}"]
    if outcome.shell_ended or not outcome.is_success:
        return [f"the shell {conditions.shell!r} is no bash: {outcome}"]
    solved = [item for item in items if item.example is not None]
    with ThreadPoolExecutor(max(1, min(workers, os.cpu_count() or 1))) as pool:
        return [fault for fault in pool.map(lambda item: _example_fault(item, conditions), solved) if fault]


def _example_fault(item: OperatingItem, conditions: Conditions) -> str | None:
    """Returns why the item's own solution is not worth 1."""
    room = Room(item, conditions)
    try:
        room.session()
        if item.example is None or room.fault:
            return f"item {item.id!r}: {room.fault}" if room.fault else None
        outcome = room.run(item.example)
        if not outcome.is_success:
            return f"item {item.id!r}: its example itself fails: {outcome}"
        verdict = room.verdict(outcome.stdout.decode(errors="replace"))
        return None if verdict.outcome == 1.0 else f"item {item.id!r}: its example does not pass: {verdict.reason}"
    finally:
        room.close()
