"""What may be absent, why, and whether every step has a policy for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, final, get_args

from minerua.chain.graph import Missing, Source
from minerua.chain.writing.ports import described, short
from minerua.chain.writing.presence import TRUE, Atom, Presence, TooLarge
from minerua.chain.writing.wiring import Placed, Wiring
from minerua.errors import unknown
from minerua.values import Skill, TensorSpec

if TYPE_CHECKING:
    from minerua.chain.writing.chain import SkillChain

POLICIES: tuple[str, ...] = get_args(Missing)
Policies = dict[str, dict[str, Missing]]


def absence_faults(
    chain: SkillChain, steps: Mapping[str, Placed], wiring: Wiring, order: Iterable[str]
) -> tuple[Policies, list[str]]:
    """Finds every input that may be absent and what happens then.

    Args:
        chain: As it is written.
        steps: Step name → its skill.
        wiring: What is connected to what.
        order: The steps, each after all that it needs; those in circles are left out.

    Returns:
        Step name → input name → policy, that of optional inputs filled in; and the faults.
    """
    absence = _Absence(chain, wiring)
    policies: Policies = {name: {} for name in steps}
    faults: list[str] = []
    for name in order:
        step = steps[name]
        faults += _policy_faults(step)
        if step.skill is None:
            continue
        for port, sources in wiring.inputs[name].items():
            if port not in step.skill.inputs:
                continue
            reason = absence.reason(name, sources)
            policy = step.task.missing.get(port)
            if policy is None and port in step.skill.optional and port not in step.task.defaults:
                policy = "omit"
            if policy is not None and policy in POLICIES:
                policies[name][port] = policy
            elif reason and port not in step.task.defaults and port not in step.task.missing:
                faults.append(
                    f"step {name!r}, input {port!r} is absent {reason}, and nothing says what to do then: "
                    f"set missing to {', '.join(POLICIES[:-1])} or {POLICIES[-1]}, or give a default"
                )
            if policy == "zeros":
                faults += _zeros_faults(step, step.skill, port, wiring, absence)
        absence.add(name, policies[name])
    return policies, faults


def _policy_faults(step: Placed) -> Iterable[str]:
    where = f"step {step.name!r}, missing"
    for port, policy in step.task.missing.items():
        if step.skill is not None and port not in step.skill.inputs:
            known = tuple(step.skill.inputs)
            yield f"{where}: {unknown(f'input of skill {step.skill.name!r}', str(port), known)}"
        elif policy not in POLICIES:
            name = policy if isinstance(policy, str) else short(policy)
            yield f"{where}: {unknown('policy', name, POLICIES)}; or give a default"
        elif port in step.task.defaults:
            yield f"{where}: input {port!r} has the policy {policy!r} and a default; leave one out"
        elif policy == "omit" and step.skill is not None and port not in step.skill.optional:
            yield f"{where}: skill {step.skill.name!r} cannot do without its input {port!r}, so it cannot be omitted"


def _zeros_faults(step: Placed, skill: Skill, port: str, wiring: Wiring, absence: _Absence) -> Iterable[str]:
    """Yields why zeros of the port's shape cannot be made: only an array that is there tells what its names count."""
    kind = skill.inputs[port]
    where = f"step {step.name!r}, missing: input {port!r} is {described(kind)}"
    if not isinstance(kind, TensorSpec):
        yield f"{where}; zeros are for arrays, so give a default instead"
        return
    wired = {other: sources for other, sources in wiring.inputs[step.name].items() if other != port}
    sure = {other for other, sources in wired.items() if not absence.reason(step.name, sources)}
    told = {
        extent
        for other in (*sure, *step.task.constants)
        if isinstance(other_kind := skill.inputs.get(other), TensorSpec)
        for extent in other_kind.shape
    }
    open_names = [str(extent) for extent in kind.shape if isinstance(extent, str) and extent not in told]
    if open_names:
        yield (
            f"{where}, but how much {open_names[0]!r} is, no input tells that is always there; "
            "give a default, or skip the step"
        )


@final
class _Absence:
    """When each step runs, as formulas over what callers leave out and how conditions turn out."""

    def __init__(self, chain: SkillChain, wiring: Wiring) -> None:
        self._optional = set(chain.optional)
        self._wiring = wiring
        self._presence = Presence()
        self._runs: dict[str, int] = {}
        self._unknown: set[str | None] = set()
        self._owners: dict[str, str] = {}

    def reason(self, step: str, sources: Iterable[Source]) -> str:
        """Returns when none of the sources is there though the step's conditions hold; empty if that cannot be."""
        try:
            there = self._presence.any_of([self._there(source) for source in sources])
            if there == TRUE:
                return ""
            formula = self._presence.implies(self._presence.all_of(self._conditions(step)), there)
        except TooLarge:
            return "in more cases than can be listed"
        if formula == TRUE:
            return ""
        told = [self._told(atom, holds) for atom, holds in self._presence.counterexample(formula)]
        return " and ".join(told) or "in every run"

    def add(self, step: str, policies: Mapping[str, Missing]) -> None:
        """Takes up when a step runs; everything that it needs was added before."""
        presence = self._presence
        try:
            wants = list(self._conditions(step))
            for port, sources in self._wiring.inputs[step].items():
                if policies.get(port) == "skip":
                    wants.append(presence.any_of([self._there(source) for source in sources]))
            self._runs[step] = presence.all_of(wants)
        except TooLarge:
            self._unknown.add(step)

    def _conditions(self, step: str) -> Iterable[int]:
        for source, wanted in self._wiring.conditions[step]:
            self._owners.setdefault(str(source), step)
            yield self._there(source)
            yield self._presence.atom("true", str(source), holds=wanted)

    def _there(self, source: Source) -> int:
        if source.step in self._unknown:
            raise TooLarge
        if source.step is not None:
            return self._runs.get(source.step, TRUE)
        return self._presence.atom("given", source.port) if source.port in self._optional else TRUE

    def _told(self, atom: Atom, holds: bool) -> str:
        if atom.kind == "given":
            return f"where the optional input {atom.reference!r} of the chain is {'given' if holds else 'left out'}"
        return f"where {atom.reference} is {str(holds).lower()}, which step {self._owners[atom.reference]!r} depends on"
