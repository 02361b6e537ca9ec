"""One item and one model: turn by turn, until there is a verdict."""

from __future__ import annotations

from dataclasses import dataclass

from ..asking import UNANSWERED, Conversation, continued
from ..sandbox import COMMAND_BYTES, Outcome
from ..verdict import Verdict
from .formats import Act, Format, shown
from .items import OperatingItem
from .room import Conditions, Room

__all__ = ["Dialogue", "Rules"]


@dataclass(frozen=True)
class Rules:
    """How models are talked to.

    Args:
        format: How they write.
        turns: How often a model may say something.
        prompt: The first thing that it is told, with `{prompt}` where the task's own text is put.
        system: What it is told before, as a message of its own.
    """

    format: Format
    turns: int
    prompt: str
    system: str | None = None

    def first(self, item: OperatingItem) -> Conversation:
        """Returns the conversation with which an item begins."""
        said = self.prompt.replace("{prompt}", item.prompt)
        if self.system is None:
            return said
        return [{"role": "system", "content": self.system}, {"role": "user", "content": said}]


class Dialogue:
    """What is said about one item.

    Args:
        item: The item.
        rules: How the model is talked to.
        conditions: What holds for its room.
    """

    def __init__(self, item: OperatingItem, rules: Rules, conditions: Conditions) -> None:
        self.item, self._rules = item, rules
        self.conversation: Conversation = rules.first(item)
        self.verdict: Verdict | None = None
        self._room = Room(item, conditions)
        self._turn = 0
        self._last: Outcome | None = None

    def hear(self, text: str | None) -> None:
        """Takes what the model said, does it, and prepares the next turn or comes to a verdict.

        Raises:
            minerua_agent_tasks.sandbox.SandboxError: The sandbox failed: nothing is known about the answer.
        """
        self._turn += 1
        if text is None:
            self._end(Verdict(0.0, UNANSWERED))
            return
        act = self._rules.format.read(text)
        if act.kind == "end":
            self._end(self._room.verdict(act.text if act.has_answer else None))
            return
        reply = self._carry_out(act)
        if self.verdict is not None:
            return
        if self._turn < self._rules.turns:
            self.conversation = continued(self.conversation, text, reply)
        else:
            self._end(self._after_last())

    def _carry_out(self, act: Act) -> str:
        """Returns what the model is told of its command, or of what is no command."""
        fault = "" if act.kind == "none" else _fault(act.text)
        if act.kind == "none" or fault:
            self._last = None
            return f"{fault} {self._rules.format.hint}".strip()
        self._room.session()
        if self._room.fault:
            self._end(Verdict(0.0, self._room.fault))
            return ""
        self._last = self._room.command(act.text)
        note = _note(self._last)
        return self._rules.format.reply("\n".join(part for part in (shown(self._last.stdout), note) if part))

    def _after_last(self) -> Verdict:
        """Returns the verdict when all turns are used up."""
        if not self._rules.format.last_output_answers:
            return Verdict(0.0, f"neither an answer nor the end was said in {self._rules.turns} turns")
        if self._last is None:
            return Verdict(0.0, "the last turn had nothing in it that can be carried out")
        if self._last.limit:
            return Verdict(0.0, f"the last command was {self._last}")
        return self._room.verdict(self._last.stdout.decode(errors="replace"))

    def _end(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.close()

    def close(self) -> None:
        """Ends the room."""
        self._room.close()


def _fault(command: str) -> str:
    """Returns why a text cannot be a command; empty if it can."""
    if "\0" in command:
        return "The command has a zero byte in it."
    size = len(command.encode(errors="replace"))
    if size > COMMAND_BYTES:
        return f"The command has {size} bytes; {COMMAND_BYTES} are the most."
    return "" if _is_writable(command) else "The command has letters in it that cannot be written."


def _is_writable(command: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in command)  # half a letter, as a model may write


def _note(outcome: Outcome) -> str:
    """Returns what a model is told beside the output."""
    if outcome.limit:
        return f"[the command was ended by the limit {outcome.limit}; a fresh shell begins in the home folder]"
    return "[the shell has ended; a fresh one begins in the home folder]" if outcome.shell_ended else ""
