"""One item and one model: turn by turn, until there is a verdict."""

from __future__ import annotations

from dataclasses import dataclass

from ..asking import UNANSWERED, Conversation, continued
from ..remembering import Memory
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

    Whatever was said in the same words before is not carried out again, unless a limit was reached then: the room is
    only opened, and brought to where it should be, when something new is said.

    Args:
        item: The item.
        rules: How the model is talked to.
        conditions: What holds for its room.
        known: What the model was told, or what it was worth, after everything that was said so far; all dialogues
            share it.
    """

    def __init__(
        self, item: OperatingItem, rules: Rules, conditions: Conditions, known: Memory[str | Verdict] | None = None
    ) -> None:
        self.item, self._rules = item, rules
        self.conversation: Conversation = rules.first(item)
        self.verdict: Verdict | None = None
        self.last: str | None = None
        """What the model said last, once there is a verdict; what it said before stands in the conversation."""
        self._room = Room(item, conditions)
        self._known = Memory() if known is None else known
        self._said: list[str] = []
        self._behind: list[str] = []  # commands that were known, so that the room has not seen them
        self._last: Outcome | None = None

    def hear(self, text: str | None) -> None:
        """Takes what the model said, does it, and prepares the next turn or comes to a verdict.

        Raises:
            minerua_agent_tasks.sandbox.SandboxError: The sandbox failed: nothing is known about the answer.
        """
        if text is None:
            self._end(Verdict(0.0, UNANSWERED))
            return
        self._said.append(text)
        question = (self.item.id, *self._said)
        act = self._rules.format.read(text)
        result = self._known.find(question)
        if result is None:
            result = self._result(act)
            if self._room.is_certain:
                self._known.keep(question, result)
        elif act.kind == "command" and not _fault(act.text):
            self._behind.append(act.text)
        if isinstance(result, Verdict):
            self.last = text
            self._end(result)
        else:
            self.conversation = continued(self.conversation, text, result)

    def _result(self, act: Act) -> str | Verdict:
        """Returns what the model is told, or what all of it is worth."""
        if act.kind == "end":
            if self.item.checks:
                self._catch_up()
            return self._room.verdict(act.text if act.has_answer else None)
        reply = self._carry_out(act)
        if self._room.fault:
            return Verdict(0.0, self._room.fault)
        return reply if len(self._said) < self._rules.turns else self._after_last()

    def _carry_out(self, act: Act) -> str:
        """Returns what the model is told of its command, or of what is no command."""
        fault = "" if act.kind == "none" else _fault(act.text)
        if act.kind == "none" or fault:
            self._last = None
            return f"{fault} {self._rules.format.hint}".strip()
        self._catch_up()
        if self._room.fault:
            return ""
        self._last = self._room.command(act.text)
        note = _note(self._last)
        return self._rules.format.reply("\n".join(part for part in (shown(self._last.stdout), note) if part))

    def _catch_up(self) -> None:
        """Opens the room, if it is not, and carries out what was said while nobody had to look."""
        self._room.session()
        behind, self._behind = self._behind, []
        for command in behind:
            if not self._room.fault:
                self._room.command(command)

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
