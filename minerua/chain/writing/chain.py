"""Chains as they are written: steps that name skills, stage after stage, and the connections between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from minerua.chain.graph import Graph, Missing, PortType, Retry
from minerua.chain.writing.checking import checked
from minerua.errors import ChainError
from minerua.values import Skill, SkillContext, TensorSpec


@final
@dataclass(frozen=True)
class SkillTask:
    """A step as it is written: which skill, under which name, with what.

    References are texts: `"image"` is an input of the chain, `"see.embedding"` an output of a step.

    Args:
        skill: A skill's name, or the skill itself.
        name: The step's name, a Python identifier, unique in its chain; by default the skill's, `_` for `-`, with a
            number where that is taken.
        inputs: Input name → a reference, or several: of those the first that is there counts. What is not named here
            is wired by name.
        constants: Input name → a value that never changes.
        settings: What a skill with `configure` is made from.
        when: Conditions that must all hold: `"see.is_cat"` or `"not see.is_cat"`.
        missing: Input name → `"skip"`, `"omit"`, `"zeros"` or `"fail"`: what to do where it is absent.
        defaults: Input name → what to take where it is absent.
        timeout_seconds: How long one attempt may take; `None` for ever.
        retry: What happens when it raises.
        isolated: Whether it runs in a process of its own, which can be stopped at any time.
    """

    skill: str | Skill
    name: str | None = None
    inputs: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    when: str | Sequence[str] = ()
    missing: Mapping[str, Missing] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float | None = None
    retry: Retry = field(default_factory=Retry)
    isolated: bool = False

    def __post_init__(self) -> None:
        """One form for each meaning, so that equal steps compare equal: sequences are tuples, mappings are copies."""
        for name in ("constants", "settings", "missing", "defaults"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        object.__setattr__(self, "inputs", {port: _several(given) for port, given in self.inputs.items()})
        object.__setattr__(self, "when", _several(self.when))

    @property
    def title(self) -> str:
        """The step's name; before it is in a chain, the one that its skill suggests."""
        return self.name or (self.skill if isinstance(self.skill, str) else self.skill.name).replace("-", "_")


def _several(given: str | Sequence[str]) -> tuple[str, ...]:
    """Returns one or several references; whatever else was given stays as it is, for the check to complain about."""
    return tuple(given) if isinstance(given, list | tuple) else (given,)  # type: ignore[return-value]


@final
class SkillChain:
    """Skills joined into an application, as it is written; nothing is looked up until it is checked.

    Every input of a step that is not wired by hand takes the output of the same name of the nearest stage before it,
    else the chain's input of that name.

    Args:
        name: What messages call it.
        inputs: Input name → a Python type, or a `TensorSpec` for arrays.
        optional: The inputs that a caller may leave out.
        outputs: Output name → a reference, or several: of those the first that is there counts. Default: all outputs
            of the last stage, by their names.

    Attributes:
        folder: Where relative paths in settings begin: the folder of the file that the chain was loaded from.
        stages: The steps, stage after stage; those of one stage do not see each other by name.
        connections: The connections made with `connect`, `(output, input)` each.

    Example:
        >>> from minerua.values import Skill
        >>> twice = Skill("twice", lambda x: {"y": 2 * x}, inputs={"x": int}, outputs={"y": int})
        >>> chain = SkillChain("four-times", inputs={"x": int})
        >>> chain.add_stage(twice), chain.add_stage("twice", name="again", inputs={"x": "twice.y"})
        ('twice', 'again')
        >>> [str(source) for source in chain.graph({"twice": twice}).by_name["again"].inputs["x"]]
        ['twice.y']
        >>> chain.check({"triple": twice})
        ("step 'again': no skill is named 'twice'. Known: triple",)
    """

    def __init__(
        self,
        name: str,
        *,
        inputs: Mapping[str, PortType] | None = None,
        optional: Iterable[str] = (),
        outputs: Mapping[str, str | Sequence[str]] | None = None,
    ) -> None:
        self.name = name
        self.inputs: Mapping[str, PortType] = {port: _named(port, kind) for port, kind in (inputs or {}).items()}
        self.optional = tuple(dict.fromkeys(optional))
        self.outputs = None if outputs is None else {port: _several(given) for port, given in outputs.items()}
        self.stages: list[tuple[SkillTask, ...]] = []
        self.connections: list[tuple[str, str]] = []
        self.folder = Path()

    @property
    def tasks(self) -> tuple[SkillTask, ...]:
        """All steps, in the order in which they were added."""
        return tuple(task for stage in self.stages for task in stage)

    def __eq__(self, other: object) -> bool:
        """Two chains are equal if they are written alike, wherever they were loaded from."""
        if not isinstance(other, SkillChain):
            return NotImplemented
        return self._parts == other._parts

    __hash__ = None  # type: ignore[assignment]  # chains grow

    @property
    def _parts(self) -> tuple[object, ...]:
        return self.name, dict(self.inputs), set(self.optional), self.outputs, self.stages, self.connections

    def __repr__(self) -> str:
        return f"<SkillChain {self.name!r}: {', '.join(task.title for task in self.tasks) or 'empty'}>"

    # ── in Python ────────────────────────────────────────────────────────────────────────────────────────────────────

    def add_stage(
        self,
        skill: str | Skill | Callable[..., Any],
        *,
        name: str | None = None,
        inputs: Mapping[str, str | Sequence[str]] | None = None,
        constants: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        when: str | Sequence[str] | None = None,
        missing: Mapping[str, Missing] | None = None,
        defaults: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
        retry: Retry | None = None,
        isolated: bool = False,
    ) -> str:
        """Adds a stage of one step; returns the step's name.

        Args:
            skill: A skill's name, a skill, or an annotated function, which becomes one.
            name: As for `SkillTask`; so are all that follow.
            inputs: Input name → a reference, or several.
            constants: Input name → a value that never changes.
            settings: What a skill with `configure` is made from.
            when: Conditions that must all hold.
            missing: Input name → what to do where it is absent.
            defaults: Input name → what to take where it is absent.
            timeout_seconds: How long one attempt may take.
            retry: What happens when it raises.
            isolated: Whether it runs in a process of its own.

        Raises:
            ChainError: If a function has no annotations that ports can be read from.
        """
        task = SkillTask(
            _skill(skill),
            name,
            inputs or {},
            constants or {},
            settings or {},
            when or (),
            missing or {},
            defaults or {},
            timeout_seconds,
            retry or Retry(),
            isolated,
        )
        return self.add_parallel_stage(task)[0]

    def add_parallel_stage(self, *stages: str | Skill | SkillTask | Callable[..., Any]) -> tuple[str, ...]:
        """Adds a stage of several steps that do not see each other by name; returns their names.

        Args:
            stages: A skill's name, a skill, an annotated function or a `SkillTask` each.

        Raises:
            ChainError: If a function has no annotations that ports can be read from.
        """
        tasks: list[SkillTask] = []
        for stage in stages:
            task = stage if isinstance(stage, SkillTask) else SkillTask(_skill(stage))
            taken = {other.name for other in (*self.tasks, *tasks)}
            tasks.append(task if task.name else replace(task, name=_free(task.title, taken)))
        self.stages.append(tuple(tasks))
        return tuple(task.title for task in tasks)

    def connect(self, source: str, target: str) -> SkillChain:
        """Connects an output of a step, or an input of the chain, to an input of a step.

        Args:
            source: `"see.embedding"` or `"image"`.
            target: `"fuse.vision"`.

        Returns:
            The chain itself.
        """
        self.connections.append((source, target))
        return self

    # ── checking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, skills: Mapping[str, Skill], context: SkillContext | None = None) -> tuple[str, ...]:
        """Returns everything that is wrong with the chain, one fault each; empty when all is well.

        Args:
            skills: Skill name → skill; a registry's catalog, which also tells who provides it, or any mapping.
            context: What skills that are made from settings may look at; default: the folder of the chain's file.
        """
        return checked(self, skills, context or SkillContext(self.folder))[0]

    def graph(self, skills: Mapping[str, Skill], context: SkillContext | None = None) -> Graph:
        """Returns the chain with its skills, wired, in an order in which it can run.

        Args:
            skills: As for `check`.
            context: The same.

        Raises:
            ChainError: If anything is wrong; lists all faults.
        """
        faults, graph = checked(self, skills, context or SkillContext(self.folder))
        if graph is None:
            raise ChainError(f"the chain {self.name!r} cannot be run as it is written", faults)
        return graph

    # ── in YAML ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def parse(cls, text: str, *, where: str = "") -> SkillChain:
        """Reads a chain from YAML; nothing is imported, looked up or opened.

        Args:
            text: In the form that the README of this room describes.
            where: What messages call it, such as the file's name.

        Raises:
            ChainError: If it is no such form; lists all faults with their lines.
        """
        from minerua.chain.writing.document import read_chain  # pydantic takes longer to import than most chains to run

        return read_chain(text, where=where or "the chain")

    @classmethod
    def load(cls, path: str | Path) -> SkillChain:
        """Reads a chain from a YAML file; relative paths in its settings begin in the file's folder.

        Raises:
            ChainError: If the file cannot be read, or holds no chain; lists all faults with their lines.
        """
        from minerua.chain.writing.document import read_text

        chain = cls.parse(read_text(Path(path)), where=str(path))
        chain.folder = Path(path).parent
        return chain

    def dump(self) -> str:
        """Returns the chain as YAML, from which `parse` makes an equal one; the same chain gives the same text.

        Raises:
            ChainError: If it has what YAML cannot hold, such as a skill that was given as an object; lists all.
        """
        from minerua.chain.writing.document import write_chain

        return write_chain(self)


def _named(port: str, kind: PortType) -> PortType:
    """An input of a chain has one name, whatever the model calls it that its type was taken from."""
    return replace(kind, name=port) if isinstance(kind, TensorSpec) else kind


def _skill(given: str | Skill | Callable[..., Any]) -> str | Skill:
    if isinstance(given, str | Skill):
        return given
    from minerua.chain.writing.functions import skill

    return skill(given)


def _free(title: str, taken: set[str | None]) -> str:
    """Returns the title, or the first of `title_2`, `title_3` and so on that is free."""
    number, name = 1, title
    while name in taken:
        number += 1
        name = f"{title}_{number}"
    return name
