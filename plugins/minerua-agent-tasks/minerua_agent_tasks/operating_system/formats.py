"""How models write what they want to do: AgentBench's way, and a short plain one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FORMATS", "Act", "Format", "shown"]

_MOST_SHOWN, _KEPT = 800, 780  # as in AgentBench's operating-system task
_CUT = "\n[truncated because the output is too long]"


@dataclass(frozen=True)
class Act:
    """What a model wants to do in a turn.

    Args:
        kind: `"command"`, `"end"`, or `"none"` where it wrote neither.
        text: The command; the answer; empty if there is none.
        has_answer: It ends with an answer, not only because it is done.
    """

    kind: str
    text: str = ""
    has_answer: bool = False


@dataclass(frozen=True)
class Format:
    """A way to write commands and answers.

    Args:
        name: What settings call it.
        instructions: What a model is told before the task, with `{prompt}` where the task's own text is put.
        hint: What it is told when it wrote nothing that can be carried out.
        read: A model's text → what it wants to do.
        reply: What a model is told of the output of a command.
        last_output_answers: If the turns are used up, what the last command printed is the answer; else there is none,
            and the item is lost.
    """

    name: str
    instructions: str
    hint: str
    read: Callable[[str], Act]
    reply: Callable[[str], str]
    last_output_answers: bool


def shown(output: bytes) -> str:
    r"""Returns what a model sees of an output: text, at most 800 letters, as in AgentBench.

    Example:
        >>> shown(b"a\xff\x00\n"), len(shown(b"x" * 5000))
        ('a��', 823)
    """
    text = _UNPRINTABLE.sub("�", output.decode(errors="replace").replace("\r\n", "\n")).rstrip("\n")
    return text if len(text) <= _MOST_SHOWN else text[:_KEPT] + _CUT


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


# ── AgentBench's ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_agent_bench(text: str) -> Act:
    """The last line that begins an act counts; an answer without its brackets is none."""
    for line in reversed(_ACT.findall(text)):
        word = line.lower()
        if word.startswith("bash"):
            blocks = _BASH.findall(text)
            return Act("command", "\n\n".join(blocks)) if blocks else Act("none")
        if word.startswith("finish"):
            return Act("end")
        if word.startswith("answer") and "(" in line and ")" in line:
            return Act("end", line[line.index("(") + 1 : line.rindex(")")], has_answer=True)
    return Act("none")


_ACT = re.compile(r"Act:\s*(.+)")
_BASH = re.compile(r"```(?:bash|sh)\n(.*?)\n```", re.DOTALL)

_AGENT_BENCH = Format(
    name="agentbench",
    instructions=(
        "You work at the shell of a Linux system, on a task that I give you. In each turn, think first, then do "
        "exactly one of three things.\n\n"
        "To run bash code, write:\n\nThink: why you do it\n\nAct: bash\n\n```bash\n# your code\n```\n\n"
        "When the task is done, write:\n\nThink: why it is done\n\nAct: finish\n\n"
        "When you know the answer to the question, write:\n\nThink: why it is the answer\n\nAct: answer(the answer)\n\n"
        "I reply with the output of your code; a long one is truncated. Your code cannot ask for input.\n\n"
        "The task: {prompt}"
    ),
    hint=(
        "There is nothing in your reply that can be done. Write exactly one of: `Act: bash` with the code in a block "
        "that begins with ```bash, `Act: finish`, or `Act: answer(...)`."
    ),
    read=_read_agent_bench,
    reply=lambda output: f"The output of the OS:\n\n{output}" if output else "The output of the OS is empty.",
    last_output_answers=False,
)


# ── the plain one ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_plain(text: str) -> Act:
    """What comes first counts: an answer, a fenced block, or bare lines up to one of these."""
    stripped = text.strip()
    if stripped.lower() in ("done", "done."):
        return Act("end")
    ends = [found for found in (_ANSWER.search(stripped), _FENCE.search(stripped)) if found]
    if not ends:
        return Act("command", stripped) if stripped else Act("none")
    first = min(ends, key=lambda found: found.start())
    if first.re is _FENCE:
        return Act("command", first[1]) if first[1].strip() else Act("none")
    before = stripped[: first.start()].strip()
    return Act("command", before) if before else Act("end", first[1].strip(), has_answer=True)


_ANSWER = re.compile(r"^[ \t]*answer:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)

_PLAIN = Format(
    name="plain",
    instructions=(
        "You work at a Linux shell. Reply with one command, and I tell you what it prints. When you know the answer, "
        "reply with `answer: ` and the answer; when there is nothing left to do, with `done`.\n\n{prompt}"
    ),
    hint="Reply with a command, with `answer: ` and the answer, or with `done`.",
    read=_read_plain,
    reply=lambda output: output or "(no output)",
    last_output_answers=True,
)

FORMATS = {one.name: one for one in (_AGENT_BENCH, _PLAIN)}
"""The ways to write that there are, by name."""
