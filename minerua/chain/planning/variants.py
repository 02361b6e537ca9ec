"""The plans that a chain could have: joined or not, how its skills are loaded, one after the other or in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from minerua.chain.graph import Graph, Step
from minerua.chain.planning.joining import join_neighbours
from minerua.chain.planning.passes import Rewrite
from minerua.chain.planning.scheduling import Estimates, beside
from minerua.values import Setup

DEFAULT = "default"


@final
@dataclass(frozen=True, eq=False)
class Variant:
    """What is chosen for a whole chain.

    Args:
        joined: Which neighbours became one: `"joined"`, `"siblings"` (those too that are not connected) or `"apart"`.
        rewrite: The chain with them joined.
        family: What the setups have in common.
        setups: Step name → its setup, where that is not its skill's default.
        parallel: Whether branches run beside one another.
        batched: Whether calls of concurrent runs are made one.
    """

    joined: str
    rewrite: Rewrite
    family: str
    setups: Mapping[str, Setup]
    parallel: bool
    batched: bool = False

    @property
    def key(self) -> str:
        """What distinguishes it from the other variants of its chain; stands in the profile."""
        places = "parallel" if self.parallel else "serial"
        return ", ".join([self.joined, self.family, places, *(["batched"] if self.batched else [])])


def variants(graph: Graph, estimates: Estimates, *, concurrent: bool = False) -> Iterator[Variant]:
    """Yields every different choice for a chain, the most ordinary ones first.

    Args:
        graph: The chain without dead and equal steps.
        estimates: What is known of the costs.
        concurrent: Whether several runs are under way at a time, so that their calls can be made one.
    """
    seen: set[frozenset[str]] = set()
    for joined, rewrite in _rewrites(graph):
        names = frozenset(step.name for step in rewrite.graph.steps)
        if names in seen:
            continue
        seen.add(names)
        branches = any(beside(rewrite.graph, name) for name in names)
        batchable = concurrent and any(step.skill.batchable for step in rewrite.graph.steps)
        for family, setups in families(rewrite.graph, estimates).items():
            for parallel in (True, False) if branches else (False,):
                for batched in (True, False) if batchable else (False,):
                    yield Variant(joined, rewrite, family, setups, parallel, batched)


def _rewrites(graph: Graph) -> Iterator[tuple[str, Rewrite]]:
    """Yields the chain as it is joined where nothing was measured, and then the other ways."""
    connected = join_neighbours(graph)
    if connected.parts:
        yield "joined", connected
    yield "apart", Rewrite(graph, tuple(change for change in connected.changes if not connected.parts))
    siblings = join_neighbours(graph, siblings=True)
    if siblings.parts:
        yield "siblings", siblings


def families(graph: Graph, estimates: Estimates) -> dict[str, dict[str, Setup]]:
    """Returns ways to load the skills of a chain: what they have in common → step name → setup; each way once."""
    found: dict[str, dict[str, Setup]] = {DEFAULT: {}}
    others = dict.fromkeys(setup for step in graph.steps for setup in allowed(step, estimates))
    for setup in others:
        found[described(setup)] = {s.name: setup for s in graph.steps if setup in allowed(s, estimates)}
    found["1 thread in branches"] = _by_width(graph, estimates)
    found["fastest alone"] = _fastest(graph, estimates)
    several: dict[str, dict[str, Setup]] = {}
    for family, setups in found.items():
        changed = {name: setup for name, setup in setups.items() if setup != graph.by_name[name].skill.setups[0]}
        if changed not in several.values():
            several[family] = changed
    return several


def allowed(step: Step, estimates: Estimates) -> list[Setup]:
    """Returns the setups of a step's skill that do not ask for more threads than there may be."""
    most = estimates.most_threads or estimates.processors
    return [setup for setup in step.skill.setups if (setup.threads or 1) <= most]


def _by_width(graph: Graph, estimates: Estimates) -> dict[str, Setup]:
    """Returns one thread for every step that something runs beside, and the default for those that are alone."""
    return {
        step.name: setup
        for step in graph.steps
        for setup in allowed(step, estimates)
        if setup.threads == 1 and beside(graph, step.name)
    }


def _fastest(graph: Graph, estimates: Estimates) -> dict[str, Setup]:
    """Returns for every step the setup with which it was measured fastest; nothing for what was not measured.

    Setups that share threads are left out: some libraries let a process have one of both kinds only.
    """
    found: dict[str, Setup] = {}
    for step in graph.steps:
        own = [setup for setup in allowed(step, estimates) if not setup.shared_threads]
        times = {setup: estimates.seconds(step, setup) for setup in own}
        known = {setup: seconds for setup, seconds in times.items() if seconds is not None}
        if len(known) > 1:
            found[step.name] = min(known, key=known.__getitem__)
    return found


def described(setup: Setup) -> str:
    """Returns a setup in a few words.

    Example:
        >>> described(Setup(threads=2)), described(Setup(shared_threads=True)), described(Setup(device="cuda:0"))
        ('2 threads', 'shared threads', 'default on cuda:0')
    """
    count = setup.threads
    threads = DEFAULT if count is None else "1 thread" if count == 1 else f"{count} threads"
    if setup.shared_threads:
        threads = "shared threads" if count is None else f"{threads} of a shared pool"
    return threads if setup.device == "cpu" else f"{threads} on {setup.device}"
