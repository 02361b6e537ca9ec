"""What an exam says: checks, what they found, and all of it together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["passed", "failed", "exempt", "not judged"]


@dataclass(frozen=True, eq=False)
class Sample:
    """What an author hands over where the exam cannot know it: settings, inputs, a model to score.

    Args:
        settings: For families: the settings to configure with. For optimizers and losses: settings of every call. For
            merge methods: parameter name → value.
        folder: Where relative paths in the settings begin.
        base: The checkpoint that a family of models or evaluators is told of.
        inputs: A skill's inputs, name → value; what a model is called with.
        predictions: A loss's predictions, a floating tensor.
        targets: Its targets.
        model: The callable that an evaluator scores. Default: fresh weights in a model kind of the same plugin.
        tensors: A model's weights, name → array. Default: those of its `module`.

    Example:
        >>> Sample(inputs={"text": "a b"}).inputs
        {'text': 'a b'}
    """

    settings: Mapping[str, Any] | None = None
    folder: Path = Path()
    base: Path | None = None
    inputs: Any = None
    predictions: Any = None
    targets: Any = None
    model: Any = None
    tensors: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class NotJudged:
    """Said by a check that cannot tell right from wrong here.

    Args:
        reason: Why not, and what an author can hand over.
    """

    reason: str


Found = list[str] | NotJudged
"""What a check returns: one sentence per problem, none where all is well; or that it cannot judge."""


@dataclass(frozen=True)
class Check:
    """One law that things of a kind keep.

    Args:
        name: Lower case, words joined by `-`; unique within its kind. Exemptions name it.
        asked: The law, a sentence without a full stop.
        remedy: What to do where it is broken.
        run: `run(subject)` tells what breaks it; what it raises is a problem too. Checks of a whole plugin get the
            candidate.
        applies: `applies(subject)` tells whether the thing promises this at all; what it does not promise is not asked.
    """

    name: str
    asked: str
    remedy: str
    run: Callable[[Any], Found]
    applies: Callable[[Any], bool] = lambda _: True


@dataclass(frozen=True)
class Problem:
    """One law that one thing breaks.

    Args:
        kind: `"plugin"`, or what the thing is: `"loss"`, `"merge method"`.
        name: The thing's name.
        check: The check's name.
        asked: The law.
        found: What breaks it.
        where: File and line of the thing's function, or the plugin.
        remedy: What to do about it.
    """

    kind: str
    name: str
    check: str
    asked: str
    found: str
    where: str
    remedy: str

    def __str__(self) -> str:
        lines = (
            f"{self.kind} {self.name!r}, {self.check}: {self.found}",
            f"asked: {self.asked}",
            f"where: {self.where}",
            f"do:    {self.remedy}",
        )
        return "\n    ".join(lines)


@dataclass(frozen=True)
class Verdict:
    """What became of one check of one thing.

    Args:
        kind: As in `Problem`.
        name: The thing's name.
        check: The check's name.
        status: `"passed"`, `"failed"`, `"exempt"` (the author said why it does not hold), or `"not judged"`.
        problems: What was found, where it failed.
        reason: Why it is exempt or not judged.
    """

    kind: str
    name: str
    check: str
    status: Status
    problems: tuple[Problem, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.status:<10}  {self.kind} {self.name!r}, {self.check}" + (
            f": {self.reason}" if self.reason else ""
        )


@dataclass(frozen=True)
class Report:
    """All verdicts of an exam.

    Args:
        target: What was examined.
        verdicts: One per check, in the order in which they were made.

    Example:
        >>> report = Report("focal", (Verdict("loss", "focal", "finite", "passed"),))
        >>> print(report)
        exam of focal: 1 passed
        >>> report.problems
        ()
    """

    target: str
    verdicts: tuple[Verdict, ...] = field(default_factory=tuple)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong; empty when the exam is passed."""
        return tuple(problem for verdict in self.verdicts for problem in verdict.problems)

    def of(self, status: Status) -> tuple[Verdict, ...]:
        """Returns the verdicts with this status."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == status)

    @property
    def summary(self) -> str:
        """How many checks had which verdict, in one line."""
        statuses: Sequence[Status] = ("passed", "failed", "exempt", "not judged")
        counted = [f"{len(self.of(status))} {status}" for status in statuses if self.of(status)]
        return f"exam of {self.target}: {', '.join(counted) or 'nothing to examine'}"

    def __str__(self) -> str:
        told = [str(verdict) for verdict in (*self.of("exempt"), *self.of("not judged"))]
        return "\n".join([self.summary, *told, *map(str, self.problems)])

    def as_json(self) -> dict[str, Any]:
        """Returns the report as JSON takes it."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"passed": not self.problems, **value}
