"""Several senses brought together: an encoder for each, a fusion for all, and what happens where one is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, final

from minerua.chain.graph import Missing, PortType
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.executor import ChainExecutor, Result
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.errors import ChainError, unknown
from minerua.values import Skill, SkillContext


@final
@dataclass(frozen=True)
class Modality:
    """One sense.

    Args:
        kind: What a caller gives: a Python type, or a `TensorSpec`.
        stages: The steps from that to what the fusion takes, one after the other.
    """

    kind: PortType
    stages: tuple[SkillTask, ...]


@final
class MultiModalSystem:
    """A chain with a branch for each modality and a fusion, every modality optional; the branches run side by side.

    Where a modality is missing its branch is skipped. What the fusion does then is its policy: zeros of the port's
    shape, from which it can tell that nothing is there; or whatever its own `missing` and `defaults` say.

    Args:
        name: The chain's.
        modalities: Name of an input → its type and the steps that encode it. Steps after the first name their `inputs`;
            the first takes the modality's name, unless its `inputs` say otherwise.
        fusion: The steps that bring all together, one after the other; they name their `inputs`, the later ones only
            where they are to be skipped.
        outputs: Output name → reference; default: all outputs of the last step.
        missing: What the first step of the fusion does for each input that comes from a branch and that its own
            `missing` and `defaults` do not mention.

    Attributes:
        chain: The chain that it is: can be written to a file, checked, and given to a `SkillChainManager`.

    Raises:
        ChainError: If there is no modality or no fusion, a modality has no steps, or the fusion takes from no branch.

    Example:
        >>> hear = Skill("hear", lambda sound: {"loud": sound > 3}, {"sound": int}, {"loud": bool})
        >>> look = Skill("look", lambda light: {"bright": light > 3}, {"light": int}, {"bright": bool})
        >>> both = Skill("both", lambda loud, bright: {"storm": loud and bright}, {"loud": bool, "bright": bool},
        ...              {"storm": bool})
        >>> senses = {"sound": Modality(int, (SkillTask(hear),)), "light": Modality(int, (SkillTask(look),))}
        >>> fusion = SkillTask(both, inputs={"loud": "hear.loud", "bright": "look.bright"}, defaults={"loud": True,
        ...                    "bright": False})
        >>> with MultiModalSystem("weather", senses, (fusion,)).open({}) as system:
        ...     system.predict(sound=5, light=7), system.predict(sound=5)
        ({'storm': True}, {'storm': False})
    """

    def __init__(
        self,
        name: str,
        modalities: Mapping[str, Modality],
        fusion: Sequence[SkillTask],
        *,
        outputs: Mapping[str, str | Sequence[str]] | None = None,
        missing: Missing = "zeros",
    ) -> None:
        self.modalities, fusion = dict(modalities), tuple(fusion)
        _check(name, self.modalities, fusion)
        inputs = {modality: one.kind for modality, one in self.modalities.items()}
        self.chain = SkillChain(name, inputs=inputs, optional=inputs, outputs=outputs)
        for stage in range(max(len(one.stages) for one in self.modalities.values())):
            rows = [self._branch_stage(modality, stage) for modality in self.modalities]
            self.chain.add_parallel_stage(*(task for task in rows if task is not None))
        self.chain.add_parallel_stage(self._with_policy(fusion[0], missing))
        for before, task in pairwise(fusion):
            self.chain.add_parallel_stage(_skipped_after(before, task) if missing == "skip" else task)

    def _branch_stage(self, modality: str, stage: int) -> SkillTask | None:
        """Returns a step of a branch; the first one is skipped where the modality is missing, and with it the rest."""
        stages = self.modalities[modality].stages
        if stage >= len(stages):
            return None
        task = stages[stage]
        if stage:
            return _skipped_after(stages[stage - 1], task)
        wired = {port for port, sources in task.inputs.items() if modality in sources} or {modality}
        policies: dict[str, Missing] = dict.fromkeys(wired, "skip")
        return replace(task, missing={**_without(policies, task.defaults), **task.missing})

    def _with_policy(self, task: SkillTask, missing: Missing) -> SkillTask:
        lasts = {one.stages[-1].title for one in self.modalities.values()}
        policies: dict[str, Missing] = {p: missing for p, sources in task.inputs.items() if _is_from(sources, lasts)}
        return replace(task, missing={**_without(policies, task.defaults), **task.missing})

    # ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def open(
        self, skills: Mapping[str, Skill], *, folder: Path | None = None, plan: ExecutionPlan | None = None
    ) -> OpenSystem:
        """Returns the system ready to run; a context manager.

        Args:
            skills: Skill name → skill; a registry's catalog, or any mapping.
            folder: Where relative paths in settings begin; default: where the program runs.
            plan: From a `ChainOptimizer`; default: the plan that changes nothing.

        Raises:
            ChainError: If the chain cannot run; lists all faults.
        """
        if plan is None:
            plan = ExecutionPlan.plain(self.chain.graph(skills, SkillContext(folder or Path())))
        return OpenSystem(tuple(self.modalities), ChainExecutor(plan))


@final
class OpenSystem:
    """A multi-modal system that runs; made by `MultiModalSystem.open`, or around an executor of its chain.

    Args:
        modalities: The names of the inputs.
        executor: Closed when the context ends.
    """

    def __init__(self, modalities: Sequence[str], executor: ChainExecutor) -> None:
        self.modalities, self.executor = tuple(modalities), executor

    def predict(self, **given: Any) -> dict[str, Any]:
        """Returns the outputs for what is given; every modality that is not is missing.

        Raises:
            ChainError: If nothing is given, or something that is no modality, or that does not fit.
            StepFailed: If a step failed.
        """
        faults = [unknown("modality", name, self.modalities) for name in given if name not in self.modalities]
        if not given:
            faults = [f"nothing was given; give at least one of {', '.join(self.modalities)}"]
        if faults:
            raise ChainError(f"the system {self.executor.plan.graph.name!r} cannot predict", faults)
        result: Result = self.executor.run(given)
        return dict(result)

    def accuracy(
        self, examples: Iterable[tuple[Mapping[str, Any], Any]], *, output: str
    ) -> dict[tuple[str, ...], float]:
        """Returns how often an output is what was expected, for every choice of modalities that are there.

        Args:
            examples: Inputs, with all modalities, and what is expected.
            output: The output that is compared.

        Returns:
            Modalities that were given → share of right ones, from all of them down to each alone.

        Raises:
            ChainError: If there are no examples.
        """
        pairs = list(examples)
        if not pairs:
            raise ChainError("an accuracy needs at least one example, found none")
        counts = range(len(self.modalities), 0, -1)
        choices = [names for count in counts for names in combinations(self.modalities, count)]
        return {names: self._share_right(pairs, names, output) for names in choices}

    def _share_right(
        self, pairs: Sequence[tuple[Mapping[str, Any], Any]], names: tuple[str, ...], output: str
    ) -> float:
        right = [bool(self.predict(**{n: inputs[n] for n in names})[output] == told) for inputs, told in pairs]
        return sum(right) / len(right)

    def close(self) -> None:
        """Closes the executor."""
        self.executor.close()

    def __enter__(self) -> OpenSystem:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(name: str, modalities: Mapping[str, Modality], fusion: Sequence[SkillTask]) -> None:
    faults = [f"modality {modality!r} has no steps" for modality, one in modalities.items() if not one.stages]
    faults += [] if modalities else ["there is no modality; give at least one"]
    lasts = {one.stages[-1].title for one in modalities.values() if one.stages}
    if not fusion:
        faults.append("there is no fusion; give at least one step")
    elif not any(_is_from(sources, lasts) for sources in fusion[0].inputs.values()):
        faults.append(
            f"the fusion {fusion[0].title!r} takes nothing from a branch; name its inputs, such as "
            f"{{'vision': '{min(lasts, default='see')}.features'}}"
        )
    if faults:
        raise ChainError(f"the system {name!r} cannot be built", faults)


def _is_from(sources: str | Sequence[str], steps: set[str]) -> bool:
    """Whether one of the references is an output of one of the steps."""
    several = [sources] if isinstance(sources, str) else sources
    return any(source.partition(".")[0] in steps and "." in source for source in several)


def _skipped_after(before: SkillTask, task: SkillTask) -> SkillTask:
    """Returns a step that is skipped where the one before it, whose outputs it names, was skipped."""
    policies: dict[str, Missing] = {
        p: "skip" for p, sources in task.inputs.items() if _is_from(sources, {before.title})
    }
    return replace(task, missing={**_without(policies, task.defaults), **task.missing})


def _without(policies: Mapping[str, Missing], defaults: Mapping[str, Any]) -> dict[str, Missing]:
    """Leaves out the inputs that have a default: they need no policy."""
    return {port: policy for port, policy in policies.items() if port not in defaults}
