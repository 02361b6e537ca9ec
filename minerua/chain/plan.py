"""What runs where: an execution plan, made by the optimizer, carried out by the executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

from minerua.chain.graph import Graph, Step
from minerua.values import Setup

Place = Literal["caller", "thread", "process", "loop"]
"""Where a unit runs: in the thread that schedules, in a worker thread, in a worker process, or as a coroutine."""


@final
@dataclass(frozen=True, eq=False)
class PlannedStep:
    """A step with the plan's choices.

    Args:
        step: Of the plan's graph.
        setup: How its skill is loaded.
        cached: Whether results are looked up by their inputs before it runs, and kept.
        batch_rows: How many rows the calls of concurrent runs may have together when they are made one; 0 for none.
        parts: The steps of the chain as it was written that this one stands for.
        seconds: How long it is expected to take; `None` where nothing was measured.
    """

    step: Step
    setup: Setup = field(default_factory=Setup)
    cached: bool = False
    batch_rows: int = 0
    parts: tuple[str, ...] = ()
    seconds: float | None = None


@final
@dataclass(frozen=True, eq=False)
class Unit:
    """Steps that are scheduled as one: they run one after the other, in one place.

    Args:
        steps: At least one; each needs nothing of what comes after it.
        place: Where.
        priority: Of the units that could start, the one with the largest starts first: seconds to the end of the chain.
    """

    steps: tuple[PlannedStep, ...]
    place: Place = "thread"
    priority: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class PassReport:
    """What one pass of the optimizer did.

    Args:
        name: Of the pass.
        changes: One sentence per change; empty if it found nothing to do.
        predicted_seconds: What it should save per run, from measured costs; `None` where nothing was measured.
        measured_seconds: What it saved, the chain timed before and after; `None` if it was not timed.
    """

    name: str
    changes: tuple[str, ...] = ()
    predicted_seconds: float | None = None
    measured_seconds: float | None = None


@final
@dataclass(frozen=True, eq=False)
class ExecutionPlan:
    """How a chain is carried out.

    Args:
        graph: The chain as it is carried out; its inputs and outputs are those of the chain as it was written.
        units: Every step of the graph once; a unit may need units before it only.
        passes: What the optimizer did, in order.
        expected_seconds: How long one run should take; `None` where nothing was measured.
        origin: The chain as it was written; the same as `graph` where nothing was changed.
        reasons: Step name → why it runs where and as it does, one clause.
    """

    graph: Graph
    units: tuple[Unit, ...]
    passes: tuple[PassReport, ...] = ()
    expected_seconds: float | None = None
    origin: Graph | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def plain(cls, graph: Graph) -> ExecutionPlan:
        """Returns the plan that changes nothing: every step by itself, as early as its inputs are there.

        Steps of a line run where the caller is; where the graph branches, in worker threads; coroutines in the loop;
        isolated steps in worker processes.
        """
        line = all(len(dependants) <= 1 for dependants in graph.dependants.values()) and (
            sum(not step.needs for step in graph.steps) <= 1
        )
        units = tuple(
            Unit(
                (PlannedStep(step, step.skill.setups[0], parts=(step.name,)),),
                place="process" if step.isolated else "caller" if line else "thread",
            )
            for step in graph.steps
        )
        return cls(graph, units, origin=graph)
