"""From a chain as it is written to the plan that carries it out: passes, measured costs, whole plans timed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, final

from minerua.chain.graph import Graph, Step
from minerua.chain.plan import ExecutionPlan, PassReport, PlannedStep
from minerua.chain.planning.measuring import OpenPlan, Runner, all_setups, measure_machine, measure_steps
from minerua.chain.planning.passes import Rewrite, drop_dead, merge_equal, needed_for
from minerua.chain.planning.profile import Profile, StepCost, graph_key, processors, signature
from minerua.chain.planning.scheduling import Choices, Estimates, arrange, loading_order, makespan
from minerua.chain.planning.servant import Servant, can_fork
from minerua.chain.planning.tuning import TIE, Candidate, Time, contest, timer
from minerua.chain.planning.variants import Variant, described, variants
from minerua.errors import ChainError
from minerua.values import Setup, Skill

MOST_ROWS = 32
"""How many rows the calls of concurrent runs may have together when they are made one."""

PASS = "pass: "
"""How entries of the profile begin that are no plans to choose from: a plan after some of the passes."""

UNTIMED = ("cache", "batching", "loading order")
"""Passes whose gain depends on what is asked for, by how many, and for the first time or again."""


class _Stage(NamedTuple):
    """A plan after one more pass."""

    name: str
    plan: ExecutionPlan
    changes: tuple[str, ...] = ()


@final
@dataclass(frozen=True, eq=False)
class _Lean:
    """A chain without what nobody needs, and how it came to be."""

    origin: Graph
    dead: Rewrite
    equal: Rewrite
    key: str
    estimates: Estimates


@final
class ChainOptimizer:
    """Makes execution plans.

    With nothing measured every choice is the safe one, and the plan's reasons say so. `tune` measures.

    Args:
        profile: What is known of costs, and where it is kept; `None` begins an empty one in memory.
        most_threads: How many processors a plan may use; default: all that this process may use.
        concurrency: How many runs are under way at a time; above 1 their calls are made one where that is faster, and
            plans are compared by runs per second.
        cache: Whether results are kept by their content; the executor needs a `ContentCache` then.
        most_rows: How many rows the calls of concurrent runs may have together.
        open_plan: How plans are run while they are timed; default: by a `ChainExecutor` with models of its own.
    """

    def __init__(
        self,
        profile: Profile | None = None,
        *,
        most_threads: int | None = None,
        concurrency: int = 1,
        cache: bool = False,
        most_rows: int = MOST_ROWS,
        open_plan: OpenPlan | None = None,
    ) -> None:
        self.profile = Profile() if profile is None else profile
        self._processors = min(most_threads or processors(), processors())
        self._concurrency, self._cache, self._most_rows = concurrency, cache, most_rows
        self._open_plan = open_plan or open_executor

    def optimize(
        self, graph: Graph, outputs: Iterable[str] | None = None, *, example: Mapping[str, Any] | None = None
    ) -> ExecutionPlan:
        """Returns the best plan by what the profile knows; nothing is run.

        Args:
            graph: The chain as it is written.
            outputs: Names of the requested outputs; `None` requests all.
            example: Inputs like those to come; default: those that were measured last.

        Raises:
            ChainError: If the chain has no output of such a name.
        """
        lean = self._lean(graph, outputs, None if example is None else signature(example))
        choice = self._chosen(lean, None if example is None else signature(example))
        return self._plan(lean, choice, None if example is None else signature(example))

    def tune(
        self,
        graph: Graph,
        examples: Sequence[Mapping[str, Any]],
        outputs: Iterable[str] | None = None,
        *,
        seconds: float = 20.0,
        repeat_effects: bool = False,
    ) -> ExecutionPlan:
        """Measures on examples, keeps that in the profile, and returns the plan that was the fastest.

        First every step by itself, then whole plans against one another, and last the chain before and after each pass.

        Args:
            graph: The chain as it is written.
            examples: The inputs of one run each; as large as those to come.
            outputs: Names of the requested outputs; `None` requests all.
            seconds: How long whole plans may be timed, about; loading large models can make it longer.
            repeat_effects: Whether steps that are not pure may be run again and again. If not, a chain that has any
                runs once per example, and whole plans are not timed.

        Raises:
            ChainError: If there is no example, or no output of such a name.
            StorageError: If the profile cannot be written.
        """
        if not examples:
            raise ChainError(f"chain {graph.name!r} cannot be measured without an example; give the inputs of a run")
        inputs = signature(examples[0])
        lean = self._lean(graph, outputs, inputs)
        repeatable = repeat_effects or all(step.skill.pure for step in lean.equal.graph.steps)
        self._measure(lean, examples, repeatable=repeatable)
        if repeatable:
            self._time(lean, inputs, examples, seconds)
        self.profile.save()
        return self._plan(lean, self._chosen(lean, inputs), inputs)

    # ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _lean(self, graph: Graph, outputs: Iterable[str] | None, inputs: str | None) -> _Lean:
        dead = drop_dead(graph, outputs)
        key = graph_key(dead.graph)

        def find(step: Step, setup: Setup) -> StepCost | None:
            return self.profile.find(step.skill, setup, self.profile.step_inputs(key, inputs).get(step.name))

        share = max(1, self._processors // self._concurrency)
        estimates = Estimates(find, self.profile.costs, share, most_threads=self._processors)
        return _Lean(graph, dead, merge_equal(dead.graph), key, estimates)

    def _variants(self, lean: _Lean) -> list[Variant]:
        return list(variants(lean.equal.graph, lean.estimates, concurrent=self._concurrency > 1))

    def _chosen(self, lean: _Lean, inputs: str | None) -> Variant:
        """Returns the variant that was timed fastest; without any, the one that should be; else the safest."""
        several = self._variants(lean)
        timed = self._timed(lean, inputs)
        known = [(timed[one.key], one) for one in several if one.key in timed]
        tie = TIE if known else 0.0
        if not known:
            known = [(seconds, one) for one in several if (seconds := self._predicted(lean, one)) is not None]
        least = min((seconds for seconds, _ in known), default=0.0)
        return next((one for seconds, one in known if seconds <= least * (1 + tie)), several[0])

    def _timed(self, lean: _Lean, inputs: str | None) -> dict[str, float]:
        return {k: s for k, s in self.profile.plans(self._plan_key(lean), inputs).items() if not k.startswith(PASS)}

    def _plan_key(self, lean: _Lean) -> str:
        """Returns the chain's name in the profile; what was timed with other limits is another matter."""
        return f"{lean.key}/{self._processors}/{self._concurrency}"

    def _predicted(self, lean: _Lean, variant: Variant) -> float | None:
        return makespan(self._stages(lean, variant)[-1].plan, self._with_parts(lean, variant))

    # ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _measure(self, lean: _Lean, examples: Sequence[Mapping[str, Any]], *, repeatable: bool) -> None:
        """Measures the steps of the chain, and those that they can be joined to; with effects only the chain itself."""
        if not self.profile.costs.measured:
            self.profile.costs = measure_machine()
        graphs = [lean.equal.graph]
        if repeatable:
            graphs += {one.joined: one.rewrite.graph for one in self._variants(lean) if one.joined != "apart"}.values()

        def measure(shared: bool) -> Profile:
            found = Profile()
            for graph in graphs:
                measure_steps(
                    graph,
                    examples,
                    found,
                    open_plan=self._open_plan,
                    chain=lean.key,
                    choose=partial(_setups_of_a_kind, shared=shared) if _is_apart(graphs) else all_setups,
                )
            return found

        if not _is_apart(graphs):
            self.profile.take(measure(False))
            return
        for shared in (True, False) if repeatable else (False,):
            with Servant(measure) as servant:
                self.profile.take(servant.ask(shared))

    def _time(self, lean: _Lean, inputs: str, examples: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Times the variants, and then the chain before and after each pass of the fastest."""
        lean = replace(lean, estimates=replace(lean.estimates, costs=self.profile.costs))
        several = {one.key: one for one in self._variants(lean)}
        plans = {key: _uncached(self._stages(lean, one)[-1].plan) for key, one in several.items()}
        # Of many runs at a time each may take longer than its critical path, and still more are done.
        field = [Candidate(key, _least(plan) if self._concurrency == 1 else 0.0) for key, plan in plans.items()]
        with self._timer(plans, examples) as time_one:
            best = contest(field, time_one, seconds=0.8 * seconds)
        key = self._plan_key(lean)
        self.profile.forget_plans(key, inputs)
        for one in field:
            if one.blocks:
                self.profile.record_plan(key, inputs, one.key, one.seconds)
        for name, value in self._time_stages(self._stages(lean, several[best.key]), examples).items():
            self.profile.record_plan(key, inputs, PASS + name, value)

    def _time_stages(self, stages: Sequence[_Stage], examples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Returns seconds per run after each pass that changed something, in turns of all of them."""
        several = [stage for stage in stages if stage.changes or stage is stages[0]]
        plans = {stage.name: _uncached(stage.plan) for stage in several if stage.name not in UNTIMED}
        times: dict[str, list[float]] = {name: [] for name in plans}
        with self._timer(plans, examples) as time_one:
            for _ in range(3 if len(plans) > 1 else 0):
                for name in plans:
                    times[name].append(time_one(name))
        return {name: min(found) for name, found in times.items() if found}

    def _timer(
        self, plans: Mapping[str, ExecutionPlan], examples: Sequence[Mapping[str, Any]]
    ) -> AbstractContextManager[Time]:
        apart = _is_apart([plan.graph for plan in plans.values()])
        return timer(plans, examples, self._open_plan, clients=self._concurrency, apart=apart)

    # ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, lean: _Lean, variant: Variant, inputs: str | None) -> ExecutionPlan:
        stages = self._stages(lean, variant)
        plan = stages[-1].plan
        timed = self.profile.plans(self._plan_key(lean), inputs)
        expected = timed.get(variant.key) or makespan(plan, self._with_parts(lean, variant))
        reports = _reports(stages, self._with_parts(lean, variant), timed)
        reasons = {name: self._reason(name, plan, lean, variant, variant.key in timed) for name in plan.graph.by_name}
        return replace(plan, origin=lean.origin, passes=reports, expected_seconds=expected, reasons=reasons)

    def _with_parts(self, lean: _Lean, variant: Variant) -> Estimates:
        """Returns estimates that take a joined step that was not measured for as long as its parts."""
        known = lean.estimates.find

        def find(step: Step, setup: Setup) -> StepCost | None:
            cost = known(step, setup)
            if cost is not None or step.name not in variant.rewrite.parts:
                return cost
            members = [lean.equal.graph.by_name[name] for name in variant.rewrite.parts[step.name]]
            costs = [known(m, setup) or known(m, m.skill.setups[0]) for m in members]
            there = [c for c in costs if c is not None]
            return StepCost(sum(c.seconds for c in there)) if len(there) == len(members) else None

        return replace(lean.estimates, find=find)

    def _stages(self, lean: _Lean, variant: Variant) -> list[_Stage]:
        """Returns the plans after each pass, the chain as it is written first."""
        estimates = self._with_parts(lean, variant)
        graph, parts = variant.rewrite.graph, _parts(lean, variant)
        stages = [
            _Stage("as written", _plain(lean.origin, {}, estimates)),
            _Stage("dead steps", _plain(lean.dead.graph, {}, estimates), lean.dead.changes),
            _Stage("equal steps", _plain(lean.equal.graph, {}, estimates), lean.equal.changes),
            _Stage("joined neighbours", _plain(graph, {}, estimates), variant.rewrite.changes),
        ]
        setups = [f"step {name!r} is loaded with {described(s)}" for name, s in variant.setups.items()]
        stages.append(_Stage("setups", _plain(graph, variant.setups, estimates), tuple(setups)))
        choices = Choices(variant.setups, variant.parallel, fused=False)
        placed = arrange(graph, choices, estimates, parts=parts)
        stages.append(_Stage("places", placed, tuple(_moves(stages[-1].plan, placed))))
        choices = replace(choices, fused=True)
        fused = arrange(graph, choices, estimates, parts=parts)
        stages.append(_Stage("fusion", fused, tuple(_fusions(fused))))
        if self._cache:
            choices = replace(choices, cached=frozenset(_worth_keeping(fused, estimates)))
            stages.append(_Stage("cache", arrange(graph, choices, estimates, parts=parts), tuple(_kept(choices))))
        if variant.batched:
            choices = replace(choices, batched=dict(_worth_batching(fused, estimates, self._most_rows)))
            plan = arrange(graph, choices, estimates, parts=parts)
            stages.append(_Stage("batching", plan, tuple(_batches(choices))))
        order = tuple(_loads(stages[-1].plan))
        return [*stages, _Stage("loading order", stages[-1].plan, order)]

    def _reason(self, name: str, plan: ExecutionPlan, lean: _Lean, variant: Variant, timed: bool) -> str:
        step = plan.graph.by_name[name]
        clauses = [plan.reasons[name]]
        if not step.skill.pure and name not in needed_for(plan.graph, plan.graph.outputs):
            clauses.append("kept for its effects")
        if len(step.skill.setups) > 1:
            why = "fastest of the plans that were timed" if timed else "not timed in a whole plan"
            clauses.append(f"{described(variant.setups.get(name, step.skill.setups[0]))}: {why}")
        elif lean.estimates.find(step, step.skill.setups[0]) is None and "not measured" not in clauses[0]:
            clauses.append("not measured")
        return "; ".join(clauses)


@contextmanager
def open_executor(plan: ExecutionPlan) -> Iterator[Runner]:
    """Yields what runs a plan, with models that nobody else uses; they are given back afterwards."""
    from minerua.chain.keeping.residency import ModelResidency
    from minerua.chain.running.executor import ChainExecutor

    residency = ModelResidency()
    try:
        with ChainExecutor(plan, residency=residency) as executor:
            yield executor
    finally:
        residency.close()


def _is_apart(graphs: Iterable[Graph]) -> bool:
    """Whether to measure in other processes: a process chooses once whether its models share threads."""
    setups = {setup for graph in graphs for step in graph.steps for setup in step.skill.setups}
    return can_fork() and {s.shared_threads for s in setups} == {True, False} and {s.device for s in setups} == {"cpu"}


def _setups_of_a_kind(skill: Skill, *, shared: bool) -> Sequence[Setup]:
    """Returns the setups that share threads, or those that do not; all where a skill has none of them."""
    return [setup for setup in skill.setups if setup.shared_threads is shared] or skill.setups


# ── what the passes did ──────────────────────────────────────────────────────────────────────────────────────────────


def _plain(graph: Graph, setups: Mapping[str, Setup], estimates: Estimates) -> ExecutionPlan:
    """Returns the plan that changes nothing, with setups and with the seconds that are known."""

    def planned(one: PlannedStep) -> PlannedStep:
        setup = setups.get(one.step.name, one.setup)
        return replace(one, setup=setup, seconds=estimates.seconds(one.step, setup))

    plan = ExecutionPlan.plain(graph)
    return replace(plan, units=tuple(replace(u, steps=tuple(map(planned, u.steps))) for u in plan.units))


def _parts(lean: _Lean, variant: Variant) -> dict[str, tuple[str, ...]]:
    """Returns the steps of the chain as it was written that each step of the final one stands for."""

    def written(name: str) -> tuple[str, ...]:
        return lean.equal.parts.get(name, (name,))

    names = {step.name: variant.rewrite.parts.get(step.name, (step.name,)) for step in variant.rewrite.graph.steps}
    return {name: tuple(w for member in members for w in written(member)) for name, members in names.items()}


def _reports(stages: Sequence[_Stage], estimates: Estimates, timed: Mapping[str, float]) -> tuple[PassReport, ...]:
    """Returns what each pass did, what that should save and what it saved."""
    predicted = [makespan(stage.plan, estimates) for stage in stages]
    measured = timed.get(PASS + stages[0].name)
    reports = []
    for index, stage in enumerate(stages[1:], 1):
        before, after = predicted[index - 1], predicted[index]
        hoped = None if before is None or after is None else before - after
        saved, now = None, timed.get(PASS + stage.name)
        if stage.changes and measured is not None and now is not None:
            saved, measured = measured - now, now
        if stage.name in UNTIMED:
            hoped = None
        reports.append(PassReport(stage.name, stage.changes, hoped if stage.changes else None, saved))
    return tuple(reports)


def _moves(before: ExecutionPlan, after: ExecutionPlan) -> Iterator[str]:
    old = {planned.step.name: unit.place for unit in before.units for planned in unit.steps}
    new = {planned.step.name: unit.place for unit in after.units for planned in unit.steps}
    words = {"caller": "where the caller is", "thread": "in a thread", "process": "in a process", "loop": "in a loop"}
    for name, place in new.items():
        if place != old[name]:
            yield f"step {name!r} runs {words[place]} instead of {words[old[name]]}"
    if "thread" in new.values():
        seconds = {p.step.name: p.seconds if p.seconds is not None else 1.0 for u in after.units for p in u.steps}
        path = after.graph.critical_path(seconds)
        yield f"what lies on the critical path starts first: {' → '.join(path)}"


def _fusions(plan: ExecutionPlan) -> Iterator[str]:
    for unit in plan.units:
        if len(unit.steps) > 1:
            yield f"steps {', '.join(repr(planned.step.name) for planned in unit.steps)} are scheduled as one"


def _worth_keeping(plan: ExecutionPlan, estimates: Estimates) -> Iterator[str]:
    """Yields the pure steps that cost more than looking them up; unmeasured, those that load a model."""
    for unit in plan.units:
        for planned in unit.steps:
            cost = estimates.find(planned.step, planned.setup)
            if not planned.step.skill.pure or (cost is None and planned.step.skill.load is None):
                continue
            if cost is None or cost.seconds > 2 * estimates.costs.look_up_seconds(cost.input_bytes):
                yield planned.step.name


def _kept(choices: Choices) -> Iterator[str]:
    for name in sorted(choices.cached):
        yield f"results of step {name!r} are kept by their inputs: it costs more than a look-up"


def _worth_batching(plan: ExecutionPlan, estimates: Estimates, rows: int) -> Iterator[tuple[str, int]]:
    """Yields the steps whose calls are worth waiting for one another, with how many rows they may have together."""
    for unit in plan.units:
        for planned in unit.steps:
            step, seconds = planned.step, planned.seconds
            can = step.skill.batchable and not step.isolated and step.timeout_seconds is None
            if can and (seconds is None or seconds > estimates.costs.hand_over_seconds / 2):
                yield step.name, rows


def _batches(choices: Choices) -> Iterator[str]:
    for name, rows in choices.batched.items():
        yield f"calls of step {name!r} from concurrent runs become one, up to {rows} rows"


def _loads(plan: ExecutionPlan) -> Iterator[str]:
    names = [skill.name for skill, _ in loading_order(plan)]
    if len(names) > 1:
        yield f"models are loaded in the order in which they are needed: {', '.join(names)}"


def _uncached(plan: ExecutionPlan) -> ExecutionPlan:
    """Returns the plan without look-ups: what was asked for twice would be timed as if it were free."""
    units = (replace(u, steps=tuple(replace(planned, cached=False) for planned in u.steps)) for u in plan.units)
    return replace(plan, units=tuple(units))


def _least(plan: ExecutionPlan) -> float:
    """Returns the seconds below which the plan cannot get: the critical path, by what its steps cost alone."""
    seconds = {p.step.name: p.seconds or 0.0 for unit in plan.units for p in unit.steps}
    return max(plan.graph.seconds_to_end(seconds).values(), default=0.0)
