"""A chain that was checked: steps with their skills, wired, in an order in which they can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, final

from minerua.values import Skill, TensorSpec

PortType = type | TensorSpec
"""What may stand at a port: a Python type, or an array's dtype and shape."""

Missing = Literal["skip", "omit", "zeros", "fail"]
"""What a step does where an input is absent: is skipped itself, is called without it, takes zeros of the port's shape,
or fails. An input is absent if the caller left out an optional input of the chain, or if the step it comes from was
skipped."""


class Source(NamedTuple):
    """Where a value comes from: an output of a step, or an input of the chain (`step` is `None`)."""

    step: str | None
    port: str

    def __str__(self) -> str:
        return self.port if self.step is None else f"{self.step}.{self.port}"


class Condition(NamedTuple):
    """A step runs only if the source is there and its truth is as wanted."""

    source: Source
    wanted: bool = True


@dataclass(frozen=True)
class Retry:
    """How often a step that raised is tried again.

    Args:
        attempts: How often in all.
        delay_seconds: How long to wait before the second attempt.
        factor: How much longer before each further one.
        most_seconds: The longest wait.
    """

    attempts: int = 1
    delay_seconds: float = 0.1
    factor: float = 2.0
    most_seconds: float = 30.0


@final
@dataclass(frozen=True, eq=False)
class Step:
    """A skill in its place.

    Args:
        name: Unique in its chain.
        skill: With `call` or `load`.
        inputs: Input name → its sources; of several, the first that is there counts.
        constants: Input name → a value that is written in the chain.
        when: Runs only if all of them hold.
        missing: Input name → what to do where it is absent.
        defaults: Input name → what to take where it is absent; none of these is in `missing`.
        timeout_seconds: How long one attempt may take; `None` for ever.
        retry: What happens when it raises.
        isolated: Whether it runs in a process of its own, which can be stopped at any time.
        provider: The plugin that provides the skill, for messages; empty for a skill that was given.
    """

    name: str
    skill: Skill
    inputs: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    when: tuple[Condition, ...] = ()
    missing: Mapping[str, Missing] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float | None = None
    retry: Retry = Retry()
    isolated: bool = False
    provider: str = ""

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The steps that must be done or skipped before this one can start, in order, each once."""
        sources = [source for several in self.inputs.values() for source in several]
        sources += [condition.source for condition in self.when]
        return tuple(dict.fromkeys(source.step for source in sources if source.step is not None))


@final
@dataclass(frozen=True, eq=False)
class Graph:
    """A chain that can run.

    Args:
        name: The chain's name.
        inputs: Input name → what the caller gives there.
        optional: The inputs that the caller may leave out.
        steps: In an order in which they can run: each after all that it needs.
        outputs: Output name → its sources; of several, the first that is there counts.
    """

    name: str
    inputs: Mapping[str, PortType]
    optional: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: Mapping[str, tuple[Source, ...]]

    @cached_property
    def by_name(self) -> Mapping[str, Step]:
        """Step name → step."""
        return {step.name: step for step in self.steps}

    @cached_property
    def dependants(self) -> Mapping[str, tuple[str, ...]]:
        """Step name → the steps that need it, in order."""
        found: dict[str, list[str]] = {step.name: [] for step in self.steps}
        for step in self.steps:
            for needed in step.needs:
                found[needed].append(step.name)
        return {name: tuple(names) for name, names in found.items()}

    def seconds_to_end(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Returns for every step how long it takes from its start to the end of the chain if nothing waits.

        Args:
            seconds: Step name → how long it takes.
        """
        found: dict[str, float] = {}
        for step in reversed(self.steps):
            after = max((found[name] for name in self.dependants[step.name]), default=0.0)
            found[step.name] = seconds[step.name] + after
        return found

    def critical_path(self, seconds: Mapping[str, float]) -> tuple[str, ...]:
        """Returns the steps that together take longest, first to last; of equals the one that comes first.

        Args:
            seconds: Step name → how long it takes.
        """
        left = self.seconds_to_end(seconds)
        path: list[str] = []
        nexts = tuple(step.name for step in self.steps if not step.needs)
        while nexts:
            path.append(max(nexts, key=left.__getitem__))
            nexts = self.dependants[path[-1]]
        return tuple(path)
