"""Plans for people: what became of a chain, why, and how long it takes; as text and as Mermaid, without a network.

The same plan gives the same text. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from minerua.chain.graph import Graph, Source, Step
from minerua.chain.plan import ExecutionPlan, PassReport, PlannedStep, Unit
from minerua.chain.planning.scheduling import loading_order, told
from minerua.chain.planning.variants import described

WHERE = {"caller": "caller", "thread": "thread", "process": "process", "loop": "event loop"}


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def explain(plan: ExecutionPlan) -> str:
    """Returns what a plan does and why, as text.

    The graph before and after, every pass with what it changed, should save and saved, the units in the order in which
    they start, the critical path, and what is cached, made one, and loaded.

    Args:
        plan: Of a `ChainOptimizer`, or any other.
    """
    origin = plan.origin or plan.graph
    sections = [
        (f"chain {origin.name}: {_count(origin.steps, 'step')} as written", _graph_lines(origin)),
        (f"as planned: {_count(plan.graph.steps, 'step')}, {_count(plan.units, 'unit')}", _graph_lines(plan.graph)),
        ("passes", list(_pass_lines(plan.passes))),
        ("units, the most urgent first", list(_unit_lines(plan))),
        (f"critical path: {_path_text(plan)}", []),
        (f"a run takes {_told(plan.expected_seconds)}", []),
        *_extras(plan),
    ]
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections)


def _count(things: Sequence[object], word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def _told(seconds: float | None) -> str:
    return "an unknown time: not measured" if seconds is None else told(seconds)


def _graph_lines(graph: Graph) -> list[str]:
    """Returns a line per step with its skill and where its inputs come from, and one per output."""
    width = max((len(step.name) for step in graph.steps), default=0)
    lines = [f"{step.name:<{width}}  {step.skill.name}({_inputs(step)}){_conditions(step)}" for step in graph.steps]
    lines += [f"→ {name} = {_alternatives(sources)}" for name, sources in graph.outputs.items()]
    return lines


def _inputs(step: Step) -> str:
    wires = [f"{port}={_alternatives(sources)}" for port, sources in step.inputs.items()]
    return ", ".join([*wires, *(f"{port}: constant" for port in step.constants)])


def _alternatives(sources: Iterable[Source]) -> str:
    return " or ".join(map(str, sources))


def _conditions(step: Step) -> str:
    texts = [("" if wanted else "not ") + str(source) for source, wanted in step.when]
    return f" if {' and '.join(texts)}" if texts else ""


def _pass_lines(passes: Iterable[PassReport]) -> Iterator[str]:
    for report in passes:
        if not report.changes:
            yield f"{report.name}: nothing to do"
            continue
        gains = f"predicted {_gain(report.predicted_seconds)}, measured {_gain(report.measured_seconds)}"
        yield f"{report.name}: gain {gains}"
        yield from (f"  {change}" for change in report.changes)


def _gain(seconds: float | None) -> str:
    return "unknown" if seconds is None else told(seconds)


def _unit_lines(plan: ExecutionPlan) -> Iterator[str]:
    known = all(planned.seconds is not None for unit in plan.units for planned in unit.steps)
    for unit in sorted(plan.units, key=lambda unit: -unit.priority):
        left = f", {told(unit.priority)} to the end" if known else ""
        yield f"{' → '.join(planned.step.name for planned in unit.steps)}: {WHERE[unit.place]}{left}"
        for planned in unit.steps:
            yield f"  {planned.step.name}: {_cost(planned)}; {_reason(planned, plan)}"


def _reason(planned: PlannedStep, plan: ExecutionPlan) -> str:
    setup, reason = described(planned.setup), plan.reasons.get(planned.step.name, "as the chain is written")
    return reason if setup in reason or planned.setup == planned.step.skill.setups[0] else f"{reason}; {setup}"


def _cost(planned: PlannedStep) -> str:
    return "not measured" if planned.seconds is None else told(planned.seconds)


def _path_text(plan: ExecutionPlan) -> str:
    seconds, path = _seconds(plan), critical_path(plan)
    unknown = any(planned.seconds is None for unit in plan.units for planned in unit.steps)
    cost = "every step counted alike: not measured" if unknown else told(sum(seconds[name] for name in path))
    return f"{' → '.join(path)}, {cost}"


def critical_path(plan: ExecutionPlan) -> tuple[str, ...]:
    """Returns the steps of the plan that together take longest; where costs are not known, all count alike."""
    return plan.graph.critical_path(_seconds(plan))


def _seconds(plan: ExecutionPlan) -> dict[str, float]:
    planned = [one for unit in plan.units for one in unit.steps]
    known = all(one.seconds is not None for one in planned)
    return {one.step.name: (one.seconds or 0.0) if known else 1.0 for one in planned}


def _extras(plan: ExecutionPlan) -> Iterator[tuple[str, list[str]]]:
    planned = [one for unit in plan.units for one in unit.steps]
    kept = [one.step.name for one in planned if one.cached]
    batched = [f"{one.step.name} (up to {one.batch_rows} rows)" for one in planned if one.batch_rows]
    models = [f"{skill.name} ({described(setup)})" for skill, setup in loading_order(plan)]
    for title, names in (
        ("cached", kept),
        ("made one for concurrent runs", batched),
        ("loaded, in this order", models),
    ):
        if names:
            yield f"{title}: {', '.join(names)}", []


# ── for programs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def plan_document(plan: ExecutionPlan) -> dict[str, Any]:
    """Returns what `explain` tells in values that JSON knows; seconds that are not known are `None`."""
    origin = plan.origin or plan.graph
    return {
        "chain": origin.name,
        "before": _graph_document(origin),
        "after": _graph_document(plan.graph),
        "passes": [asdict(report) for report in plan.passes],
        "units": [_unit_document(unit, plan) for unit in sorted(plan.units, key=lambda unit: -unit.priority)],
        "critical_path": list(critical_path(plan)),
        "expected_seconds": plan.expected_seconds,
        "loading_order": [{"skill": skill.name, **asdict(setup)} for skill, setup in loading_order(plan)],
    }


def _graph_document(graph: Graph) -> dict[str, Any]:
    steps = [
        {
            "name": step.name,
            "skill": step.skill.name,
            "inputs": {port: list(map(str, sources)) for port, sources in step.inputs.items()},
            "when": [("" if wanted else "not ") + str(source) for source, wanted in step.when],
        }
        for step in graph.steps
    ]
    return {"steps": steps, "outputs": {name: list(map(str, sources)) for name, sources in graph.outputs.items()}}


def _unit_document(unit: Unit, plan: ExecutionPlan) -> dict[str, Any]:
    steps = [
        {
            "name": planned.step.name,
            "parts": list(planned.parts),
            "setup": asdict(planned.setup),
            "cached": planned.cached,
            "batch_rows": planned.batch_rows,
            "seconds": planned.seconds,
            "reason": plan.reasons.get(planned.step.name),
        }
        for planned in unit.steps
    ]
    return {"place": unit.place, "priority": unit.priority, "steps": steps}


# ── Mermaid ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def mermaid(plan: ExecutionPlan) -> str:
    """Returns the chain before and after as a Mermaid flowchart; the critical path is highlighted in both.

    Args:
        plan: Of a `ChainOptimizer`, or any other.
    """
    origin = plan.origin or plan.graph
    before = origin.critical_path(_written_seconds(plan, origin))
    units = {planned.step.name: unit for unit in plan.units for planned in unit.steps}
    lines = [
        "flowchart LR",
        *_drawing("before", "as written", origin, before, {}),
        *_drawing("after", "as planned", plan.graph, critical_path(plan), units),
        "  classDef critical stroke-width:3px,stroke:#c00",
    ]
    return "\n".join(lines)


def _written_seconds(plan: ExecutionPlan, origin: Graph) -> dict[str, float]:
    """Returns what the steps as they were written take: of a joined step each part its share, of a dropped one 0."""
    seconds = dict.fromkeys(origin.by_name, 0.0)
    after = _seconds(plan)
    for unit in plan.units:
        for planned in unit.steps:
            for part in planned.parts:
                seconds[part] = after[planned.step.name] / len(planned.parts)
    return seconds


def _drawing(side: str, title: str, graph: Graph, path: Sequence[str], units: Mapping[str, Unit]) -> Iterator[str]:
    """Yields the lines of one half; the ids of nodes are numbers, so that no name can break them."""
    ids = {step.name: f"{side}{number}" for number, step in enumerate(graph.steps)}
    ports = {name: f"{side}_in{number}" for number, name in enumerate(graph.inputs)}
    yield f'  subgraph {side}["{title}"]'
    yield from (f'    {node}(["{_quoted(name)}"])' for name, node in ports.items())
    for step in graph.steps:
        yield f'    {ids[step.name]}["{_label(step, units)}"]{":::critical" if step.name in path else ""}'
    for step in graph.steps:
        yield from (f"    {edge}" for edge in _edges(step, ids, ports))
    for number, (name, sources) in enumerate(graph.outputs.items()):
        yield f'    {side}_out{number}(["{_quoted(name)}"])'
        ends = [ports[s.port] if s.step is None else ids[s.step] for s in sources]
        yield from (f"    {end} --> {side}_out{number}" for end in ends)
    yield "  end"


def _label(step: Step, units: Mapping[str, Unit]) -> str:
    lines = [step.name, step.skill.name]
    if step.name in units:
        planned = next(one for one in units[step.name].steps if one.step.name == step.name)
        cost = [] if planned.seconds is None else [told(planned.seconds)]
        lines.append(", ".join([WHERE[units[step.name].place], *cost]))
    return "<br/>".join(map(_quoted, lines))


def _edges(step: Step, ids: Mapping[str, str], ports: Mapping[str, str]) -> Iterator[str]:
    def node(source: Source) -> str:
        return ports[source.port] if source.step is None else ids[source.step]

    wires = [source for sources in step.inputs.values() for source in sources]
    yield from dict.fromkeys(f"{node(source)} --> {ids[step.name]}" for source in wires)
    for source, wanted in step.when:
        yield f'{node(source)} -. "{"if" if wanted else "if not"} {_quoted(source.port)}" .-> {ids[step.name]}'


def _quoted(text: str) -> str:
    """Returns a text that may stand between quotes in Mermaid."""
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
