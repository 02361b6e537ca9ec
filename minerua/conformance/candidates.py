"""Who sits the exam: installed plugins by name, modules and objects with hooks, single specs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, final

from minerua.conformance.report import Check, Found, NotJudged
from minerua.conformance.subject import kind_of
from minerua.errors import UnknownName, unknown
from minerua.registry import KINDS, Registry

GROUP = "minerua"
EXEMPTIONS = "minerua_conformance_exemptions"
"""The name under which a plugin's module says which laws do not hold for it: check, or thing/check → why."""
_MOST_SECONDS = 1.0
_PATIENCE_SECONDS = 120.0


@final
class Candidate:
    """A plugin in an exam, or a single spec.

    Args:
        name: What it is called in the report.
        plugin: The module or object with hooks; `None` if it could not be imported, or for a single spec.
        label: The plugin with its distribution and version, for messages.
        entry: Its entry point and distribution, if it is installed.
        spec: The single spec.
    """

    def __init__(
        self, name: str, plugin: object = None, *, label: str = "", entry: _Entry | None = None, spec: object = None
    ) -> None:
        self.name, self.plugin, self.entry, self.spec = name, plugin, entry, spec
        self.label = label or f"{name!r}"
        self._probed: dict[str, Any] | NotJudged | None = None

    @cached_property
    def registry(self) -> Registry:
        """What it provides, by the rules of every registry."""
        return Registry.of() if self.plugin is None else Registry.of(self.plugin)

    @property
    def exemptions(self) -> Mapping[str, str]:
        """What its module says under `EXEMPTIONS`."""
        return dict(getattr(self.plugin, EXEMPTIONS, {}))

    def things(self) -> Iterator[Any]:
        """Yields every spec that it provides."""
        if self.spec is not None:
            yield self.spec
        for kind in KINDS:
            yield from getattr(self.registry, kind.attribute).values()

    def probed(self) -> dict[str, Any] | NotJudged:
        """Returns what loading it does to a fresh interpreter; once."""
        if self._probed is None:
            self._probed = self._probe()
        return self._probed

    def _probe(self) -> dict[str, Any] | NotJudged:
        if self.entry is not None:
            place = (self.entry.name, self.entry.value, self.entry.distribution)
        elif isinstance(self.plugin, ModuleType) and getattr(self.plugin.__spec__, "origin", None):
            place = ("module", self.plugin.__name__, "")
        else:
            return NotJudged("an object in memory has no import; examine its module, or the installed plugin")
        answer = _in_fresh_interpreter(*place)
        if "torch" in answer.get("heavy", ()):  # only where torch was there before can be seen what it changed in it
            again = _in_fresh_interpreter(*place, torch_first=True)
            answer["changed"] = sorted({*answer["changed"], *again.get("changed", ())})
        return answer


@dataclass(frozen=True)
class _Entry:
    """An entry point, and the distribution that declares it."""

    name: str
    value: str
    distribution: str
    version: str


def _in_fresh_interpreter(place: str, value: str, distribution: str, *, torch_first: bool = False) -> dict[str, Any]:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "answer.json")
        order = [place, value, distribution, str(out), "torch-first" if torch_first else "plain"]
        command = [sys.executable, "-m", "minerua.conformance.probe", *order]
        try:
            done = subprocess.run(
                command, env=variables, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return {"died": f"the interpreter was still at it after {_PATIENCE_SECONDS:g} s"}
        printed = (done.stdout + done.stderr).strip()
        if not out.is_file():
            return {"died": f"the interpreter left with {done.returncode} before all was loaded: {printed[-300:]}"}
        return {**json.loads(out.read_text("utf-8")), "printed": printed}


# ── finding ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def find(target: object) -> list[Candidate]:
    """Returns the candidates that a target stands for.

    Args:
        target: The name of an installed distribution (all its plugins) or of an entry point; a module or an object with
            hooks; a spec.

    Raises:
        UnknownName: No installed plugin has the name; the message has the nearest.
    """
    if isinstance(target, str):
        return _installed(target)
    kind = kind_of(target)
    if kind is not None:
        return [Candidate(str(getattr(target, "name", "")), spec=target, label=f"the {kind.singular} given")]
    name = target.__name__ if isinstance(target, ModuleType) else type(target).__qualname__
    return [Candidate(name, target, label=f"the plugin {name!r} given")]


def _installed(name: str) -> list[Candidate]:
    entries = list(dict.fromkeys(_entries()))
    wanted = [entry for entry in entries if name == entry.name or _plain(name) == _plain(entry.distribution)]
    if not wanted:
        known = {*(entry.name for entry in entries), *(entry.distribution for entry in entries)}
        raise UnknownName(unknown("installed plugin", name, sorted(known)))
    return [_candidate(entry) for entry in wanted]


def _entries() -> Iterator[_Entry]:
    for distribution in importlib.metadata.distributions():
        for entry in distribution.entry_points:
            if entry.group == GROUP:
                yield _Entry(entry.name, entry.value, distribution.metadata["Name"], distribution.version)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _candidate(entry: _Entry) -> Candidate:
    label = f"plugin {entry.name!r} ({entry.distribution} {entry.version})"
    try:
        plugin = importlib.metadata.EntryPoint(entry.name, entry.value, GROUP).load()
    except (Exception, SystemExit):  # noqa: BLE001 - the check `loads` tells it, from a fresh interpreter
        plugin = None
    return Candidate(entry.name, plugin, label=label, entry=entry)


# ── the checks of a plugin as a whole ────────────────────────────────────────────────────────────────────────────────


def _loads(candidate: Candidate) -> Found:
    answer = candidate.probed()
    if isinstance(answer, NotJudged):
        reason = candidate.registry.plugins[0].reason
        return [reason] if reason else []
    reason = answer.get("died") or answer["reason"]
    return [reason] if reason else []


def _import_effects(candidate: Candidate) -> Found:
    answer = candidate.probed()
    if isinstance(answer, NotJudged) or "died" in answer:
        return answer if isinstance(answer, NotJudged) else NotJudged("it does not load")
    found = [f"loading it changed {what}" for what in answer["changed"]]
    found += [f"loading it did this outside: {act}" for act in answer["acts"][:5]]
    if answer["printed"]:
        found.append(f"loading it printed {answer['printed'][:200]!r}")
    return found


def _import_light(candidate: Candidate) -> Found:
    answer = candidate.probed()
    if isinstance(answer, NotJudged) or "died" in answer:
        return answer if isinstance(answer, NotJudged) else NotJudged("it does not load")
    found = [f"loading it imported {', '.join(answer['heavy'])}"] if answer["heavy"] else []
    if answer["seconds"] > _MOST_SECONDS:
        found.append(f"loading it took {answer['seconds']:.2f} s of the processor; {_MOST_SECONDS:g} s are allowed")
    return found


def _names(candidate: Candidate) -> Found:
    if candidate.entry is None:
        return NotJudged("it is not installed, so that there is nobody to quarrel with")
    registry = Registry.load()
    catalogs = [getattr(registry, kind.attribute) for kind in KINDS]
    return [
        catalog.quarrel(name)
        for catalog in catalogs
        for name, rivals in catalog.contested.items()
        if any(rival.name == candidate.entry.name for rival in rivals)
    ]


def _provides(candidate: Candidate) -> Found:
    return [] if next(candidate.things(), None) else ["no hook of it returns a spec"]


PLUGIN_CHECKS: tuple[Check, ...] = (
    Check(
        "loads",
        "a plugin loads through its entry point in a fresh interpreter, and its specs are valid",
        "repair what is named; `minerua plugins check` shows the same",
        _loads,
    ),
    Check(
        "import-effects",
        "loading a plugin prints nothing, writes nothing and changes nothing that belongs to the whole process",
        "move it into the function that needs it, and put back what it changes",
        _import_effects,
    ),
    Check(
        "import-light",
        "loading a plugin imports nothing heavy: every minerua command waits for it",
        "import it inside the functions that use it",
        _import_light,
    ),
    Check(
        "names",
        "no other installed plugin provides the same name for the same kind of thing",
        "choose names that say whose they are, such as the distribution's own",
        _names,
    ),
    Check(
        "provides",
        "a plugin provides at least one thing",
        "return a spec from a function that is marked @minerua.hookimpl and named like a hook",
        _provides,
    ),
)
