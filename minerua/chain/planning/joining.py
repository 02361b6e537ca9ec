"""Neighbouring steps that become one skill, such as three ONNX models that become one graph.

A joined step runs as a whole or not at all. So only steps are joined that are there in exactly the same runs, and only
if no step between them stays outside, which would have to run before and after them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple, final

from minerua.chain.graph import Graph, Source, Step
from minerua.chain.planning.passes import Rewrite, ordered, policy, renamed, rewired
from minerua.values import JoinedStep, Skill

Presence = frozenset[Hashable]
"""What must be given for a step to run in a run of the chain: all of these. Empty: it runs always."""

ALWAYS: Presence = frozenset()


def join_neighbours(graph: Graph, *, siblings: bool = False) -> Rewrite:
    """Joins neighbouring steps whose skills have the same `join`: the largest groups that it takes.

    Args:
        graph: The chain.
        siblings: Whether steps that only share a source or a dependant are neighbours as well.
    """
    changes: list[str] = []
    parts: dict[str, tuple[str, ...]] = {}
    refused: set[str] = set()
    while True:
        search = _Search(graph, siblings, refused | parts.keys())
        group = next(iter(search.groups()), None)
        if group is None:
            return Rewrite(graph, tuple(changes), parts)
        found = search.try_group(group) or search.try_smaller(group)
        changes += search.refusals
        if found is None:
            refused |= set(group)
            continue
        graph, step = _contracted(graph, found)
        parts[step.name] = tuple(member.name for member in found.members)
        changes.append(f"steps {', '.join(map(repr, parts[step.name]))} became one: {step.name!r}")


# ── who is there when ────────────────────────────────────────────────────────────────────────────────────────────────


def presences(graph: Graph) -> dict[str, Presence]:
    """Returns for every step what must be given for it to run."""
    found: dict[str, Presence] = {}
    for step in graph.steps:
        atoms: set[Hashable] = set()
        for source, wanted in step.when:
            atoms |= {*presence_of(source, graph, found), ("condition", source, wanted)}
        for port, sources in step.inputs.items():
            if policy(step, port) == "skip":
                atoms |= presence_of_any(sources, graph, found)
        found[step.name] = frozenset(atoms)
    return found


def presence_of(source: Source, graph: Graph, steps: Mapping[str, Presence]) -> Presence:
    """Returns what must be given for a source to be there."""
    if source.step is not None:
        return steps[source.step]
    return frozenset({("input", source.port)}) if source.port in graph.optional else ALWAYS


def presence_of_any(sources: Sequence[Source], graph: Graph, steps: Mapping[str, Presence]) -> Presence:
    """Returns what must be given for one of the sources to be there."""
    several = {presence_of(source, graph, steps) for source in sources}
    if ALWAYS in several or not several:
        return ALWAYS
    return next(iter(several)) if len(several) == 1 else frozenset({("any", frozenset(several))})


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Joined(NamedTuple):
    """A group that `join` took, with what its step will take in."""

    members: tuple[Step, ...]
    skill: Skill
    entries: Mapping[str, tuple[Step, str]]


@final
@dataclass(eq=False)
class _Search:
    """Looks for groups in one graph; `refusals` are sentences about those that could not be joined."""

    graph: Graph
    siblings: bool
    excluded: set[str]

    def __post_init__(self) -> None:
        self.refusals: list[str] = []
        self._presences = presences(self.graph)
        self._bit = {step.name: 1 << index for index, step in enumerate(self.graph.steps)}
        self._kinds = {step.name: self._kind(step) for step in self.graph.steps}

    def _kind(self, step: Step) -> Hashable | None:
        """Returns what steps must have in common to be joined; `None` for one that cannot be joined at all."""
        skill = step.skill
        if step.name in self.excluded or not skill.pure or skill.join is None:
            return None
        if step.timeout_seconds is not None or step.isolated:
            return None  # these hold for one step, and would hold for all of them
        if any(policy(step, port) == "omit" and self._may_lack(sources) for port, sources in step.inputs.items()):
            return None  # whether a joined skill can do without an input, only its `join` knows
        return skill.join, self._presences[step.name], step.retry

    def _may_lack(self, sources: Sequence[Source]) -> bool:
        return presence_of_any(sources, self.graph, self._presences) != ALWAYS

    @cached_property
    def _before(self) -> dict[str, int]:
        """Step name → bits of all steps that it needs, directly or not."""
        found: dict[str, int] = {}
        for step in self.graph.steps:
            found[step.name] = 0
            for name in step.needs:
                found[step.name] |= found[name] | self._bit[name]
        return found

    @cached_property
    def _after(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for step in reversed(self.graph.steps):
            found[step.name] = 0
            for name in self.graph.dependants[step.name]:
                found[step.name] |= found[name] | self._bit[name]
        return found

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        """Neighbours of one kind, connected ones first."""
        steps = self.graph.steps
        pairs = [(name, step.name) for step in steps for name in step.needs]
        if self.siblings:
            able = [step for step in steps if self._kinds[step.name] is not None]
            pairs += [(a.name, b.name) for a, b in combinations(able, 2) if self._are_siblings(a, b)]
        return [(a, b) for a, b in pairs if self._kinds[a] is not None and self._kinds[a] == self._kinds[b]]

    def _are_siblings(self, one: Step, other: Step) -> bool:
        sources = [{s for several in step.inputs.values() for s in several} for step in (one, other)]
        dependants = [set(self.graph.dependants[step.name]) for step in (one, other)]
        return bool(sources[0] & sources[1] or dependants[0] & dependants[1])

    def groups(self) -> list[tuple[str, ...]]:
        """Returns groups of two steps and more that can be one step, as large as they get, the largest first."""
        group_of = {name: frozenset({name}) for pair in self._pairs for name in pair}
        grown = True
        while grown:  # two groups that a third one keeps apart may be joined once it has grown
            grown = False
            for one, other in self._pairs:
                union = group_of[one] | group_of[other]
                if group_of[one] != group_of[other] and self.can_be_one(union):
                    group_of |= dict.fromkeys(union, union)
                    grown = True
        several = [self._in_order(group) for group in set(group_of.values()) if len(group) > 1]
        return sorted(several, key=lambda group: (-len(group), self._bit[group[0]]))

    def can_be_one(self, names: Iterable[str]) -> bool:
        """Whether no step outside comes between these, and each takes what is inside in the first place."""
        inside = before = after = 0
        for name in names:
            inside, before, after = inside | self._bit[name], before | self._before[name], after | self._after[name]
        if before & after & ~inside:
            return False
        members = set(names)
        inner = [source.step in members for name in members for source in self._later_sources(name)]
        return not any(inner)

    def _later_sources(self, name: str) -> Iterator[Source]:
        """Yields the sources that a step takes only where another one is absent."""
        for sources in self.graph.by_name[name].inputs.values():
            yield from sources[1:]

    def _in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(names, key=self._bit.__getitem__))

    def try_group(self, names: Sequence[str]) -> _Joined | None:
        """Returns the group joined, or `None` where its `join` does not take it."""
        members = tuple(self.graph.by_name[name] for name in names)
        entries = dict(_entries(members))
        exits = {member.name: self._exits(member, names) for member in members}
        called = [f"{name}_{port}" for name, ports in exits.items() for port in ports]
        if len(set(called)) < len(called):
            return None  # `a_b`.`c` beside `a`.`b_c`
        steps = [_described(member, entries, exits[member.name]) for member in members]
        skill = self._ask(steps, names)
        if skill is None or not self._is_complete(skill, called, entries, names):
            return None
        return _Joined(members, skill, entries)

    def _ask(self, steps: Sequence[JoinedStep], names: Sequence[str]) -> Skill | None:
        try:
            return _join_of(steps)(steps)
        except Exception as error:  # noqa: BLE001 - a stranger's function; the steps can do without it, and say so
            self._refuse(names, f"{type(error).__name__}: {error}")
            return None

    def _is_complete(
        self, skill: Skill, called: Sequence[str], entries: Mapping[str, Any], names: Sequence[str]
    ) -> bool:
        lacking = [name for name in called if name not in skill.outputs] + [n for n in entries if n not in skill.inputs]
        if lacking:
            self._refuse(names, f"the joined skill {skill.name!r} lacks {', '.join(lacking)}")
        return not lacking

    def _refuse(self, names: Sequence[str], reason: str) -> None:
        self.refusals.append(f"steps {', '.join(map(repr, names))} stay apart, joining them failed: {reason}")

    def _exits(self, member: Step, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the outputs of a member that somebody outside of the group takes."""
        inside = set(names)
        outside = [step for step in self.graph.steps if step.name not in inside]
        taken = {s for sources in self.graph.outputs.values() for s in sources}
        for step in outside:
            taken |= {s for sources in step.inputs.values() for s in sources} | {c.source for c in step.when}
        return tuple(port for port in member.skill.outputs if Source(member.name, port) in taken)

    def try_smaller(self, names: Sequence[str]) -> _Joined | None:
        """Returns the first group that is taken, grown from two neighbours as far as it goes."""
        if len(names) == 2:
            return None
        inside = set(names)
        pairs = [pair for pair in self._pairs if inside.issuperset(pair) and self.can_be_one(pair)]
        for pair in pairs:
            found = self.try_group(self._in_order(pair))
            if found is not None:
                return self._grown(found, pairs)
        return None

    def _grown(self, found: _Joined, pairs: Sequence[tuple[str, str]]) -> _Joined:
        tried: set[frozenset[str]] = set()
        while True:
            members = frozenset(step.name for step in found.members)
            larger = {members | {*pair} for pair in pairs if len(members & {*pair}) == 1} - tried
            steps = [self._in_order(group) for group in larger if self.can_be_one(group)]
            tried |= larger
            bigger = next((b for b in map(self.try_group, sorted(steps, key=self._positions)) if b is not None), None)
            if bigger is None:
                return found
            found = bigger

    def _positions(self, names: Sequence[str]) -> list[int]:
        return [self._bit[name] for name in names]


def _join_of(steps: Sequence[JoinedStep]) -> Callable[[Sequence[JoinedStep]], Skill | None]:
    join = steps[0].skill.join
    return join if join is not None else lambda _: None


def _entries(members: Sequence[Step]) -> Iterator[tuple[str, tuple[Step, str]]]:
    """Yields what the joined skill's inputs are called, and which input of which member each of them is."""
    inside = {member.name for member in members}
    used: set[str] = set()
    for member in members:
        for port in (*member.inputs, *(p for p in member.constants if p not in member.inputs)):
            sources = member.inputs.get(port, ())
            if not sources or sources[0].step not in inside:
                name = f"{member.name}_{port}"
                while name in used:
                    name += "_"
                used.add(name)
                yield name, (member, port)


def _described(member: Step, entries: Mapping[str, tuple[Step, str]], exits: tuple[str, ...]) -> JoinedStep:
    own = {port: (None, name) for name, (step, port) in entries.items() if step is member}
    inner = {port: (sources[0].step, sources[0].port) for port, sources in member.inputs.items() if port not in own}
    return JoinedStep(member.name, member.skill, {**own, **inner}, exits)


# ── the graph with a group as one step ───────────────────────────────────────────────────────────────────────────────


def _contracted(graph: Graph, joined: _Joined) -> tuple[Graph, Step]:
    """Returns the graph in which the members are one step, and that step."""
    inside = {member.name for member in joined.members}
    step = _joined_step(joined, _name(joined.members, {s.name for s in graph.steps if s.name not in inside}))

    def rename(source: Source) -> Source:
        return Source(step.name, f"{source.step}_{source.port}") if source.step in inside else source

    last = max(index for index, one in enumerate(graph.steps) if one.name in inside)
    steps = [rewired(one, rename) for one in graph.steps[: last + 1] if one.name not in inside]
    steps += [step, *(rewired(one, rename) for one in graph.steps[last + 1 :])]
    outputs = {name: renamed(sources, rename) for name, sources in graph.outputs.items()}
    return replace(graph, steps=ordered(steps), outputs=outputs), step


def _joined_step(joined: _Joined, name: str) -> Step:
    first, entries = joined.members[0], joined.entries
    return Step(
        name,
        joined.skill,
        inputs={n: step.inputs[port] for n, (step, port) in entries.items() if port in step.inputs},
        constants={n: step.constants[port] for n, (step, port) in entries.items() if port in step.constants},
        when=tuple(dict.fromkeys(condition for member in joined.members for condition in member.when)),
        missing={n: step.missing[port] for n, (step, port) in entries.items() if port in step.missing},
        defaults={n: step.defaults[port] for n, (step, port) in entries.items() if port in step.defaults},
        retry=first.retry,
        provider=first.provider,
    )


def _name(members: Sequence[Step], taken: set[str]) -> str:
    """Returns a name for the joined step, such as `see+read+fuse`, or `a+8+z` for ten of them."""
    names = [member.name for member in members]
    name = "+".join(names if len(names) <= 4 else [names[0], str(len(names) - 2), names[-1]])
    while name in taken:
        name += "+"
    return name
