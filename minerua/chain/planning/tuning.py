"""Times whole plans against one another, and finds the fastest.

Every plan is timed with only its own models loaded: sessions that spin while they wait for work take processors from
whoever runs beside them. Plans take turns, so that a slow minute of the machine strikes all of them.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

from minerua.chain.plan import ExecutionPlan
from minerua.chain.planning.measuring import OpenPlan, Runner
from minerua.chain.planning.servant import Servant

Time = Callable[[str], float]
"""Times the plan with this key for one turn; returns seconds per run."""

BLOCK_SECONDS = 0.15
"""How long a plan runs in one turn."""

FEWEST_PASSES = 3
"""How often a plan at least goes over all examples in one turn, however long that takes."""

FINALISTS, MOST_TURNS = 4, 16
HOPELESS = 2.0
"""A plan whose steps alone take this many times the fastest plan's time is not timed; costs of steps are noisy too."""

TIE = 0.02
"""A plan must be faster by more than this share to be preferred to one that comes before it."""


@final
@dataclass(eq=False)
class Candidate:
    """A plan that may be the fastest.

    Args:
        key: What distinguishes it from the others.
        least_seconds: It cannot take less, by the costs of its steps.
        blocks: Seconds per run, one number per turn.
        fault: Why it could not be timed.
    """

    key: str
    least_seconds: float = 0.0
    blocks: list[float] = field(default_factory=list)
    fault: Exception | None = None

    @property
    def seconds(self) -> float:
        """Seconds per run, the middle of its three best turns: others make a turn longer, and one may be luck."""
        return statistics.median_low(sorted(self.blocks)[:3]) if self.blocks else float("inf")

    @property
    def best(self) -> float:
        """Seconds per run in its best turn: what it may yet show. A machine can be slow for most of the first turns."""
        return min(self.blocks, default=float("inf"))


def contest(candidates: Sequence[Candidate], time_one: Time, *, seconds: float) -> Candidate:
    """Times the candidates in turns, fewer and fewer of them; returns the fastest.

    Args:
        candidates: At least one, in the order of preference among equals; their `blocks` are filled. One that raises is
            out of the contest.
        time_one: Gives the candidate with this key one turn.
        seconds: How long it may take in all, about; every candidate that could win has one turn at least.

    Raises:
        Exception: What the first of them raised, if all did.
    """
    deadline = time.monotonic() + seconds
    _first_turns(candidates, time_one)
    left = [one for one in candidates if one.blocks and one.fault is None]
    if not left:
        raise next(one.fault for one in candidates if one.fault is not None)
    for most, margin in ((3 * FINALISTS, 2.0), (2 * FINALISTS, 1.5)):
        left = _best(left, most, margin)
        if len(left) > 1 and time.monotonic() < deadline:
            _turns(left, time_one)
    while len(left) > 1 and time.monotonic() < deadline and len(left[0].blocks) < MOST_TURNS:
        _turns(left, time_one)
        left = _best(left, FINALISTS, 1.25)
    return winner(left)


def winner(candidates: Sequence[Candidate]) -> Candidate:
    """Returns the first of those that are about as fast as the fastest."""
    least = min(candidate.seconds for candidate in candidates)
    return next(candidate for candidate in candidates if candidate.seconds <= least * (1 + TIE))


def _first_turns(candidates: Sequence[Candidate], time_one: Time) -> None:
    """Gives everybody one turn, except those whose steps alone take longer than what was already seen."""
    best = float("inf")
    for candidate in sorted(candidates, key=lambda one: one.least_seconds):
        if candidate.least_seconds < HOPELESS * best:
            _turn(candidate, time_one)
            best = min(best, candidate.seconds)


def _turns(candidates: Sequence[Candidate], time_one: Time) -> None:
    for candidate in candidates:
        _turn(candidate, time_one)


def _turn(candidate: Candidate, time_one: Time) -> None:
    try:
        candidate.blocks.append(time_one(candidate.key))
    except Exception as error:  # noqa: BLE001 - it may be the only plan that cannot be loaded or run
        candidate.fault = error
        candidate.blocks.clear()


def _best(candidates: Sequence[Candidate], most: int, margin: float) -> list[Candidate]:
    """Returns those that may be the fastest, by their best turns, in the order in which they came."""
    fast = sorted(candidates, key=lambda one: one.best)[:most]
    return [one for one in candidates if one in fast and one.best <= fast[0].best * margin]


@contextmanager
def timer(
    plans: Mapping[str, ExecutionPlan],
    examples: Sequence[Mapping[str, Any]],
    open_plan: OpenPlan,
    *,
    clients: int = 1,
    apart: bool = False,
) -> Iterator[Time]:
    """Yields what times these plans.

    Args:
        plans: Key → plan.
        examples: The inputs of one run each.
        open_plan: Runs a plan.
        clients: How many coroutines send requests at a time; what counts then is the time per run, not of a run.
        apart: Whether models are loaded in processes of their own: one for plans whose models share threads, and one
            for the others.
    """

    def time_here(key: str) -> float:
        return time_plan(plans[key], examples, open_plan, clients)

    if not apart:
        yield time_here
        return
    with ExitStack() as stack:
        servants: dict[bool, Servant] = {}

        def time_there(key: str) -> float:
            shared = shares_threads(plans[key])
            if shared not in servants:
                servants[shared] = stack.enter_context(Servant(time_here))
            return float(servants[shared].ask(key))

        yield time_there


def shares_threads(plan: ExecutionPlan) -> bool:
    """Whether models of a plan take their threads from a pool that all share."""
    return any(planned.setup.shared_threads for unit in plan.units for planned in unit.steps)


def time_plan(
    plan: ExecutionPlan, examples: Sequence[Mapping[str, Any]], open_plan: OpenPlan, clients: int = 1
) -> float:
    """Returns seconds per run of a plan in one turn: opened, warmed up, run, and closed again."""
    with open_plan(plan) as runner:
        for example in examples:
            runner.run(example)
        if clients > 1:
            with ThreadPoolExecutor(1) as aside:  # this thread may have an event loop already
                return aside.submit(asyncio.run, _throughput(runner, examples, clients)).result()
        return statistics.median(_passes(runner, examples))  # handing over is quick at times: that is no plan's merit


def _passes(runner: Runner, examples: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns seconds per run, one number per time that all examples were run."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < FEWEST_PASSES or time.perf_counter() - began < BLOCK_SECONDS:
        started = time.perf_counter()
        for example in examples:
            runner.run(example)
        times.append((time.perf_counter() - started) / len(examples))
    return times


async def _throughput(runner: Runner, examples: Sequence[Mapping[str, Any]], clients: int) -> float:
    """Returns seconds per run where many clients send requests, each the next when the last was answered."""
    counts = [0] * clients
    started = time.perf_counter()

    async def client(number: int) -> None:
        while time.perf_counter() - started < 2 * BLOCK_SECONDS or counts[number] == 0:
            await runner.arun(examples[(number + counts[number]) % len(examples)])
            counts[number] += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return (time.perf_counter() - started) / sum(counts)
