"""What is connected to what: references are resolved, and what is not written is wired by name."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, final

from minerua.chain.graph import Condition, Source
from minerua.chain.writing.ports import short
from minerua.errors import unknown
from minerua.values import Skill

if TYPE_CHECKING:
    from minerua.chain.writing.chain import SkillChain, SkillTask

_REFERENCE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)?")


class Placed(NamedTuple):
    """A step whose skill was looked up; `skill` is `None` where that failed."""

    task: SkillTask
    name: str
    stage: int
    skill: Skill | None
    provider: str


@final
@dataclass(frozen=True)
class Wiring:
    """Where everything comes from, as far as that could be found out.

    Args:
        inputs: Step name → input name → its sources.
        conditions: Step name → its conditions.
        outputs: The chain's outputs and their sources.
        faults: What could not be found out, one sentence each.
    """

    inputs: dict[str, dict[str, tuple[Source, ...]]] = field(default_factory=dict)
    conditions: dict[str, tuple[Condition, ...]] = field(default_factory=dict)
    outputs: dict[str, tuple[Source, ...]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def needs(self, step: str) -> tuple[str, ...]:
        """Returns the steps that a step takes something from, conditions included, each once, in order."""
        sources = [source for several in self.inputs[step].values() for source in several]
        sources += [condition.source for condition in self.conditions[step]]
        return tuple(dict.fromkeys(source.step for source in sources if source.step is not None))


def wired(chain: SkillChain, steps: Mapping[str, Placed]) -> Wiring:
    """Finds the sources of every input, condition and output.

    Args:
        chain: As it is written.
        steps: Step name → its skill.
    """
    wiring = Wiring()
    given, owners = _given(chain, steps, wiring.faults), _owners(steps)
    for step in steps.values():
        wiring.inputs[step.name] = dict(_inputs(chain, steps, owners, step, given[step.name], wiring.faults))
        wiring.conditions[step.name] = tuple(_conditions(chain, steps, step, wiring.faults))
    wiring.outputs.update(_outputs(chain, steps, wiring.faults))
    return wiring


# ── references ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _resolve(
    chain: SkillChain, steps: Mapping[str, Placed], reference: object, where: str, faults: list[str]
) -> Source | None:
    """Returns what a reference stands for; `None`, and a fault, if nothing has that name."""
    if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
        faults.append(
            f"{where}: {short(reference)} is no reference; write image for an input of the chain, see.embedding for an "
            "output of a step, and put values into constants"
        )
        return None
    first, dot, port = reference.partition(".")
    if not dot:
        if first in chain.inputs:
            return Source(None, first)
        hint = f"; {first!r} is a step, so write {first}.OUTPUT" if first in steps else ""
        faults.append(f"{where}: {unknown('input of the chain', first, tuple(chain.inputs))}{hint}")
    elif first not in steps:
        faults.append(f"{where}: {unknown('step', first, tuple(steps))}")
    else:
        skill = steps[first].skill
        if skill is None or port in skill.outputs:
            return Source(first, port)
        faults.append(f"{where}: {unknown(f'output of step {first!r}', port, tuple(skill.outputs))}")
    return None


class _Given(NamedTuple):
    """What was written for one input: the references, and how a message calls them."""

    references: tuple[str, ...]
    shown: str


def _given(chain: SkillChain, steps: Mapping[str, Placed], faults: list[str]) -> dict[str, dict[str, list[_Given]]]:
    """Returns step → input → everything that was written for it; all is well if that is one."""
    given: dict[str, dict[str, list[_Given]]] = {}
    for name, step in steps.items():
        written = {port: [_Given(tuple(refs), _listed(refs))] for port, refs in step.task.inputs.items()}
        for port, value in step.task.constants.items():
            written.setdefault(port, []).append(_Given((), f"the constant {short(value)}"))
        given[name] = written
    for source, target in chain.connections:
        where = f"connection {source} -> {target}"
        step_name, dot, port = target.partition(".") if isinstance(target, str) else ("", "", "")
        if not dot or not _REFERENCE.fullmatch(target):
            faults.append(f"{where}: its end must be an input of a step, such as fuse.vision")
        elif step_name not in steps:
            faults.append(f"{where}: {unknown('step', step_name, tuple(steps))}")
        else:
            given[step_name].setdefault(port, []).append(_Given((source,), short(source)))
    return given


def _listed(references: Sequence[object]) -> str:
    return ", else ".join(map(short, references)) or "nothing"


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _inputs(
    chain: SkillChain,
    steps: Mapping[str, Placed],
    owners: Mapping[str, Sequence[Placed]],
    step: Placed,
    given: Mapping[str, list[_Given]],
    faults: list[str],
) -> Iterator[tuple[str, tuple[Source, ...]]]:
    for port, several in given.items():
        where = f"step {step.name!r}, input {port!r}"
        if step.skill is not None and port not in step.skill.inputs:
            known = tuple(step.skill.inputs)
            faults.append(f"step {step.name!r}: {unknown(f'input of skill {step.skill.name!r}', port, known)}")
        if len(several) > 1:
            shown = " and to ".join(one.shown for one in several)
            faults.append(f"{where} is connected twice, to {shown}; of several sources write a list, the best first")
        references = [reference for one in several for reference in one.references]
        sources = [_resolve(chain, steps, reference, where, faults) for reference in references]
        if references and None not in sources:
            yield port, tuple(source for source in sources if source is not None)
        elif not references and not any(one.shown.startswith("the constant") for one in several):
            faults.append(f"{where}: its list of sources is empty; leave it out to have it wired by name")
    for port in () if step.skill is None else step.skill.inputs:
        if port not in given:
            yield from _by_name(chain, steps, owners, step, port, faults)


def _by_name(
    chain: SkillChain,
    steps: Mapping[str, Placed],
    owners: Mapping[str, Sequence[Placed]],
    step: Placed,
    port: str,
    faults: list[str],
) -> Iterator[tuple[str, tuple[Source, ...]]]:
    """Yields the input with the output of its name in the nearest stage before, else the chain's input of its name."""
    where = f"step {step.name!r}, input {port!r}"
    several = owners.get(port, ())
    end = bisect_left(several, step.stage, key=lambda owner: owner.stage)
    start = bisect_left(several, several[end - 1].stage, key=lambda owner: owner.stage) if end else 0
    nearest = [owner.name for owner in several[start:end]]
    if len(nearest) > 1:
        choices = ", ".join(f"{name}.{port}" for name in nearest)
        faults.append(f"{where} could be any of {choices}; write which one, or a list of them, the best first")
    elif nearest:
        yield port, (Source(nearest[0], port),)
    elif port in chain.inputs:
        yield port, (Source(None, port),)
    elif not _may_stay_open(step, port, before := [other for other in steps.values() if other.stage < step.stage]):
        faults.append(
            f"{where} is not connected: no earlier step has an output {port!r}, and the chain has no such input; "
            f"{_hint(chain, before)}"
        )


def _owners(steps: Mapping[str, Placed]) -> dict[str, list[Placed]]:
    """Returns output name → the steps that have it, stage after stage."""
    owners: dict[str, list[Placed]] = {}
    for step in steps.values():
        for port in () if step.skill is None else step.skill.outputs:
            owners.setdefault(port, []).append(step)
    return owners


def _may_stay_open(step: Placed, port: str, before: Sequence[Placed]) -> bool:
    """Tells whether an input needs no source, or a skill that was not found might have been one."""
    needless = step.skill is None or port in step.skill.optional or port in step.task.defaults
    return needless or any(other.skill is None for other in before)


def _hint(chain: SkillChain, before: Sequence[Placed]) -> str:
    there = [f"{step.name}.{port}" for step in before if step.skill is not None for port in step.skill.outputs]
    there = [*chain.inputs, *there]
    return f"there are {', '.join(there[:12])}{' and more' if len(there) > 12 else ''}" if there else "nothing is there"


# ── conditions and outputs ───────────────────────────────────────────────────────────────────────────────────────────


def _conditions(chain: SkillChain, steps: Mapping[str, Placed], step: Placed, faults: list[str]) -> Iterator[Condition]:
    for text in step.task.when:
        words = text.split() if isinstance(text, str) else [text]
        wanted = words[0] != "not" if words else True
        rest = words if wanted else words[1:]
        reference = rest[0] if len(rest) == 1 else text
        source = _resolve(chain, steps, reference, f"step {step.name!r}, when", faults)
        if source is not None:
            yield Condition(source, wanted)


def _outputs(
    chain: SkillChain, steps: Mapping[str, Placed], faults: list[str]
) -> Iterator[tuple[str, tuple[Source, ...]]]:
    if chain.outputs is None:
        yield from _last_outputs(steps, faults)
        return
    for name, references in chain.outputs.items():
        where = f"output {name!r} of the chain"
        if not references:
            faults.append(f"{where} has no source; name one, such as fuse.label")
        sources = [_resolve(chain, steps, reference, where, faults) for reference in references]
        yield name, tuple(source for source in sources if source is not None)


def _last_outputs(steps: Mapping[str, Placed], faults: list[str]) -> Iterator[tuple[str, tuple[Source, ...]]]:
    last = max((step.stage for step in steps.values()), default=0)
    owners: dict[str, list[str]] = {}
    for step in steps.values():
        for port in step.skill.outputs if step.skill is not None and step.stage == last else ():
            owners.setdefault(port, []).append(step.name)
    for port, names in owners.items():
        if len(names) > 1:
            choices = " and ".join(f"{name}.{port}" for name in names)
            faults.append(f"the output {port!r} of the chain could be {choices}; name the chain's outputs")
        yield port, (Source(names[0], port),)
