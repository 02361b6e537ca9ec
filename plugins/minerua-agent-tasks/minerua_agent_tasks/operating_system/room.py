"""The room of one item: opened when it is needed, set up, worked in, and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..sandbox import Limits, Outcome, Sandbox, Session
from ..verdict import Verdict
from .items import OperatingItem, Script

__all__ = ["Conditions", "Room"]

_MOST_ARGUMENT_BYTES = 100_000
"""How long an argument of a check may be; Linux takes 128 KiB, its end included (execve(2))."""


@dataclass(frozen=True)
class Conditions:
    """What holds for the rooms of all items.

    Args:
        sandbox: Where.
        shell: A bash, by name or path.
        limits: Of an item: its setup, all commands of the model, and its checks together.
        command_seconds: How long one command of the model may take, in seconds.
    """

    sandbox: Sandbox
    shell: str
    limits: Limits
    command_seconds: float


class Room:
    """The room of one item.

    Args:
        item: The item.
        conditions: What holds for all.
    """

    def __init__(self, item: OperatingItem, conditions: Conditions) -> None:
        self.item, self._conditions = item, conditions
        self._session: Session | None = None
        self.fault: str | None = None
        self.is_certain = True
        """Whether everything would come out the same again: no limit was reached."""

    def session(self) -> Session:
        """Returns the session, opened and set up if it was not; `fault` says why the setup failed, if it did.

        Raises:
            minerua_agent_tasks.sandbox.SandboxError: The sandbox failed.
        """
        if self._session is None:
            self._session = self._conditions.sandbox.open(
                files=self.item.files, limits=self._conditions.limits, shell=self._conditions.shell, merged=True
            )
            self.fault = self._set_up(self._session)
        return self._session

    def _set_up(self, session: Session) -> str | None:
        for number, script in enumerate(self.item.setup, 1):
            outcome = self.run(script)
            if outcome.limit:
                return f"setup {number} was {outcome}"
            if not outcome.is_success:
                return f"setup {number} failed: {_failure(outcome)}"
        if self.item.start:
            outcome = self._noted(session.run(self.item.start, seconds=self._conditions.command_seconds))
            if outcome.shell_ended:
                return f"start ended its shell: {outcome}"
        return None

    def command(self, text: str) -> Outcome:
        """Carries out a command of the model's, in its shell."""
        return self._noted(self.session().run(text, seconds=self._conditions.command_seconds))

    def run(self, script: Script, *arguments: str) -> Outcome:
        """Runs a script beside the shell, which ends with everything that it has started."""
        words = {
            "bash": [self._conditions.shell, "-c", script.code, "--", *arguments],
            "python": [self._conditions.sandbox.python, "-I", "-c", script.code, *arguments],
        }[script.language]
        return self._noted(self.session().run_program(words))

    def _noted(self, outcome: Outcome) -> Outcome:
        self.is_certain = self.is_certain and not outcome.limit
        return outcome

    # ── what is right ────────────────────────────────────────────────────────────────────────────────────────────────

    def verdict(self, answer: str | None) -> Verdict:
        """Compares the answer and runs the checks; all must hold.

        Args:
            answer: The model's; `None` if it gave none.
        """
        if answer is not None and self.item.is_stripped:
            answer = answer.strip()
        if self.item.wants_answer:
            fault = _answer_fault(self.item, answer)
            if fault:
                return Verdict(0.0, fault, 0, len(self.item.checks) + 1)
        return self._checked(str(answer), int(self.item.wants_answer))

    def _checked(self, answer: str, passed: int) -> Verdict:
        arguments = [answer]
        total = passed + len(self.item.checks)
        for number, check in enumerate(self.item.checks, 1):
            script = check if check is not None else self.item.example
            fault = _argument_fault(arguments[-1])
            if fault is None and script is not None:
                self.session()
                outcome = self.run(script, *arguments)
                arguments.append(outcome.stdout.decode(errors="replace"))
                fault = None if outcome.is_success else _failure(outcome)
            if self.fault or fault:
                return Verdict(0.0, self.fault or f"check {number} of {len(self.item.checks)}: {fault}", passed, total)
            passed += 1
        return Verdict(1.0, "the answer is right" if not self.item.checks else "every check holds", passed, total)

    def close(self) -> None:
        """Ends the session, if there is one."""
        if self._session is not None:
            self._session.close()


def _answer_fault(item: OperatingItem, answer: str | None) -> str | None:
    if answer is None:
        return "there is no answer, and one is asked for"
    if item.regex is not None and re.search(item.regex, answer) is None:
        return f"the answer {answer!r:.100} does not match {item.regex!r}"
    expected = item.answer.strip() if item.answer is not None and item.is_stripped else item.answer
    if expected is not None and answer != expected:
        return f"the answer is {answer!r:.100}; {expected!r:.100} is right"
    return None


def _argument_fault(argument: str) -> str | None:
    if "\0" in argument:
        return "what it would be given has a zero byte in it"
    if any("\ud800" <= letter <= "\udfff" for letter in argument):  # half a letter, as a model may write
        return "what it would be given has letters in it that cannot be written"
    size = len(argument.encode())
    return f"what it would be given has {size} bytes, too many" if size > _MOST_ARGUMENT_BYTES else None


def _failure(outcome: Outcome) -> str:
    said = outcome.stdout.decode(errors="replace").strip()[-200:]
    return f"{outcome}: {said}" if said else str(outcome)
