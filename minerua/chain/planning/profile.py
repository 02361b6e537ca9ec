"""What steps and plans cost on this machine, measured, and kept beside the chain.

A profile is a hint and never a condition: a file that is damaged, from another machine or of another format is not
used, `notes` says why, and the next measurement writes it anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from minerua.chain.graph import Graph
from minerua.errors import StorageError
from minerua.values import Setup, Skill

FORMAT = 1
"""Of the file; a file of another format is not used."""


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────────────────


@final
@dataclass(frozen=True)
class StepCost:
    """What one call of a skill costs.

    Args:
        seconds: How long it takes: the shortest of several calls, for what disturbs one only makes it longer.
        input_bytes: Bytes of the arrays, texts and bytes that go in.
        output_bytes: Bytes of those that come out.
        overlap: How much of its time two calls in two threads save: 1 if they take as long as one, 0 if as long as one
            after the other; `None` where it was not measured.
    """

    seconds: float
    input_bytes: int = 0
    output_bytes: int = 0
    overlap: float | None = None


@final
@dataclass(frozen=True)
class MachineCosts:
    """What plans cost besides their steps.

    Args:
        hand_over_seconds: From one thread to another and back.
        hash_seconds: Of looking something up by its content, however small it is.
        hash_bytes_per_second: How fast content is read for that.
        measured: Whether these were measured; the defaults are those of an ordinary machine.
    """

    hand_over_seconds: float = 60e-6
    hash_seconds: float = 5e-6
    hash_bytes_per_second: float = 5e9
    measured: bool = False

    def look_up_seconds(self, input_bytes: int) -> float:
        """Returns what it costs to look up a result by inputs of so many bytes."""
        return self.hash_seconds + input_bytes / self.hash_bytes_per_second


def machine() -> dict[str, Any]:
    """Returns what measurements depend on: the processors that this process may use, and what they are called."""
    return {"processors": processors(), "processor": _processor_name()}


def processors() -> int:
    """Returns how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # elsewhere than on Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


# ── what inputs look like ────────────────────────────────────────────────────────────────────────────────────────────


def signature(values: Mapping[str, Any]) -> str:
    """Returns what the cost of a call depends on: types, and sizes rounded up to powers of two.

    Example:
        >>> import numpy
        >>> signature({"image": numpy.zeros((5, 64), "float32"), "text": "a cat"})
        'image:float32[8,64] text:str[8]'
    """
    return " ".join(f"{name}:{_kind(values[name])}" for name in sorted(values))


def _kind(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(str(_bucket(int(extent))) for extent in value.shape)}]"
    if isinstance(value, str | bytes | list | tuple | dict):
        return f"{type(value).__name__}[{_bucket(len(value))}]"
    return type(value).__name__


def _bucket(count: int) -> int:
    return 1 << (count - 1).bit_length() if count > 0 else 0


def size_bytes(values: Mapping[str, Any]) -> int:
    """Returns the bytes of the arrays, texts and bytes among some values; other objects count nothing."""
    return sum(_size(value) for value in values.values())


def _size(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    if isinstance(value, str | bytes):
        return len(value)
    return int(getattr(value, "nbytes", 0))


def graph_key(graph: Graph) -> str:
    """Returns a name for a chain's structure: equal for chains of equal skills that are wired in the same way."""
    steps = [
        (step.name, step.skill.name, step.skill.version, sorted(step.inputs.items()), step.when, sorted(step.constants))
        for step in graph.steps
    ]
    text = repr((graph.name, steps, sorted(graph.outputs.items()), graph.optional))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ── the profile ──────────────────────────────────────────────────────────────────────────────────────────────────────


@final
class Profile:
    """Measured costs of skills and of whole plans.

    Args:
        path: Where it is kept; `None` keeps it in memory only. A file that exists is read.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.costs = MachineCosts()
        self.notes: tuple[str, ...] = ()
        self._steps: dict[tuple[str, str, Setup, str], StepCost] = {}
        self._plans: dict[tuple[str, str, str], float] = {}
        self._inputs: dict[tuple[str, str], dict[str, str]] = {}
        if self.path is not None:
            self._read(self.path)

    # steps

    def record(self, skill: Skill, setup: Setup, inputs: str, cost: StepCost) -> None:
        """Keeps what a call costs.

        Args:
            skill: The skill that was called.
            setup: How it was loaded.
            inputs: `signature` of what it was given.
            cost: What was measured.
        """
        key = (skill.name, skill.version, setup, inputs)
        self._steps.pop(key, None)  # the latest stands last
        self._steps[key] = cost

    def find(self, skill: Skill, setup: Setup, inputs: str | None = None) -> StepCost | None:
        """Returns what a call costs with such inputs, or, where these were not measured, with the latest that were."""
        if inputs is not None and (skill.name, skill.version, setup, inputs) in self._steps:
            return self._steps[skill.name, skill.version, setup, inputs]
        latest = (cost for key, cost in reversed(self._steps.items()) if key[:3] == (skill.name, skill.version, setup))
        return next(latest, None)

    def stale(self, graph: Graph) -> tuple[str, ...]:
        """Returns a sentence for every skill of a chain that was measured only in versions that it no longer has."""
        skills = {step.skill.name: step.skill for step in graph.steps}
        versions: dict[str, list[str]] = {}
        for name, version, _, _ in self._steps:
            if name in skills and version not in versions.setdefault(name, []):
                versions[name].append(version)
        return tuple(
            f"skill {name!r} was measured in version {', '.join(found)} and is {skills[name].version} now: "
            "these costs are not used"
            for name, found in versions.items()
            if skills[name].version not in found
        )

    # whole chains

    def record_inputs(self, chain: str, inputs: str, steps: Mapping[str, str]) -> None:
        """Keeps what the steps of a chain are given when the chain is given such inputs.

        Args:
            chain: `graph_key` of the chain as it was written.
            inputs: `signature` of the chain's inputs.
            steps: Step name → `signature` of its inputs.
        """
        self._inputs[chain, inputs] = {**self._inputs.pop((chain, inputs), {}), **steps}

    def step_inputs(self, chain: str, inputs: str | None = None) -> Mapping[str, str]:
        """Returns the signatures by step for such inputs of the chain; where these were not seen, for the latest."""
        if inputs is not None and (chain, inputs) in self._inputs:
            return self._inputs[chain, inputs]
        return next((steps for key, steps in reversed(self._inputs.items()) if key[0] == chain), {})

    def record_plan(self, chain: str, inputs: str, plan: str, seconds: float) -> None:
        """Keeps how long a run takes.

        Args:
            chain: `graph_key` of the chain as it was written.
            inputs: `signature` of the chain's inputs.
            plan: What distinguishes the plan from others of the same chain.
            seconds: How long a run took.
        """
        self._plans.pop((chain, inputs, plan), None)
        self._plans[chain, inputs, plan] = seconds

    def plans(self, chain: str, inputs: str | None = None) -> dict[str, float]:
        """Returns the seconds per plan of a chain, for such inputs or, where there are none, for the latest."""
        known = [key[1] for key in self._plans if key[0] == chain]
        if not known:
            return {}
        wanted = inputs if inputs in known else known[-1]
        return {plan: t for (c, found, plan), t in self._plans.items() if (c, found) == (chain, wanted)}

    def forget_plans(self, chain: str, inputs: str) -> None:
        """Drops what is known of a chain's plans with such inputs, before all of them are measured anew."""
        for key in [key for key in self._plans if key[:2] == (chain, inputs)]:
            del self._plans[key]

    def take(self, other: Profile) -> None:
        """Takes over what another profile knows of steps; what both know, from the other one."""
        for key, cost in other._steps.items():
            self._steps.pop(key, None)
            self._steps[key] = cost
        for (chain, inputs), steps in other._inputs.items():
            self.record_inputs(chain, inputs, steps)

    # the file

    def save(self, path: str | Path | None = None) -> None:
        """Writes the profile to a file, whole or not at all.

        Args:
            path: The file; `None` for the one that the profile was opened with. Without either nothing is written.

        Raises:
            StorageError: If the file cannot be written.
        """
        target = self.path if path is None else Path(path)
        if target is None:
            return
        try:
            _replace(target, json.dumps(self._document(), indent=1).encode())
        except OSError as error:
            raise StorageError(
                f"cannot write the profile {target}: {error.strerror or error}; choose another folder"
            ) from error

    def _document(self) -> dict[str, Any]:
        steps = [
            {"skill": name, "version": version, "setup": asdict(setup), "inputs": inputs, **asdict(cost)}
            for (name, version, setup, inputs), cost in self._steps.items()
        ]
        plans = [
            {"chain": chain, "inputs": inputs, "plan": plan, "seconds": seconds}
            for (chain, inputs, plan), seconds in self._plans.items()
        ]
        return {
            "minerua_profile": FORMAT,
            "machine": machine(),
            "costs": asdict(self.costs),
            "steps": steps,
            "plans": plans,
            "inputs": [{"chain": c, "inputs": i, "steps": steps} for (c, i), steps in self._inputs.items()],
        }

    def _read(self, path: Path) -> None:
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self.notes = (f"the profile {path} cannot be read and is not used: {error}",)
            return
        try:
            self.notes = tuple(_objections(found, path)) or self._take(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._steps, self._plans, self._inputs, self.costs = {}, {}, {}, MachineCosts()
            self.notes = (f"the profile {path} is damaged and not used: {type(error).__name__}: {error}",)

    def _take(self, found: Mapping[str, Any]) -> tuple[str, ...]:
        self.costs = MachineCosts(**found["costs"])
        for entry in found["steps"]:
            keys = {name: entry[name] for name in ("seconds", "input_bytes", "output_bytes", "overlap")}
            key = (str(entry["skill"]), str(entry["version"]), Setup(**entry["setup"]), str(entry["inputs"]))
            self._steps[key] = _checked(StepCost(**keys))
        for entry in found["plans"]:
            self._plans[str(entry["chain"]), str(entry["inputs"]), str(entry["plan"])] = float(entry["seconds"])
        for entry in found["inputs"]:
            steps = {str(name): str(inputs) for name, inputs in entry["steps"].items()}
            self._inputs[str(entry["chain"]), str(entry["inputs"])] = steps
        return ()


def _checked(cost: StepCost) -> StepCost:
    """Returns a cost with numbers for numbers.

    Raises:
        ValueError: If one of them is none.
    """
    overlap = None if cost.overlap is None else float(cost.overlap)
    return replace(cost, seconds=float(cost.seconds), input_bytes=int(cost.input_bytes), overlap=overlap)


def _objections(found: Any, path: Path) -> Iterable[str]:
    """Yields why a file that is valid JSON is not used."""
    if not isinstance(found, dict) or found.get("minerua_profile") != FORMAT:
        yield f"{path} is no profile of format {FORMAT} and is not used"
    elif found.get("machine") != machine():
        yield f"the profile {path} was measured on another machine ({_told(found.get('machine'))}) and is not used here"


def _told(found: Any) -> str:
    if not isinstance(found, dict):
        return "which it does not name"
    return f"{found.get('processors')} × {found.get('processor')}"


def _replace(path: Path, content: bytes) -> None:
    """Writes a file beside its place, flushes it, and moves it there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:  # an interrupt too must leave no partial file; raised again
        Path(name).unlink(missing_ok=True)
        raise
