"""Finds plugins, admits them one by one, and says why one cannot be used."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType, ModuleType, TracebackType
from typing import Any, NamedTuple

import pluggy

from minerua import hookspecs
from minerua.errors import BrokenPlugin
from minerua.registry.catalog import DISABLED_VARIABLE, Catalog, Plugin
from minerua.registry.specs import KINDS, Kind, spec_faults, with_article
from minerua.values import EvaluatorSpec, LossSpec, MergeMethodSpec, ModelSpec, OptimizerSpec, Skill

OWN_DISTRIBUTION = "minerua"
UNKNOWN = "unknown"
MACHINERY = ("importlib", "_frozen_importlib", "_frozen_importlib_external", "pluggy", __name__)
"""Modules whose frames say nothing about where a plugin failed."""


@dataclass(frozen=True)
class Registry:
    """Everything that the installed plugins provide, and the state of every plugin.

    Rules, the same on every machine and in every order of installation:

    - A plugin is used whole or not at all. It is quarantined if its import raises, if it implements a hook that does
      not exist (or forgets the marker on one that does), if a hook raises, or if any of its specs is not valid.
    - Two plugins that provide one name for the same kind both lose *that name*, minerua's own included: looking it up
      raises `DuplicateName`. Everything else of both stays usable. The same name for two kinds is no conflict.
    - Each plugin has a pluggy manager of its own, so that no plugin sees, reorders or wraps what another one returns.

    Args:
        plugins: Every plugin that was found, in the order of names, then distributions.
        skills: Skill name → `Skill`.
        optimizers: Optimizer name → `OptimizerSpec`.
        losses: Loss name → `LossSpec`.
        evaluators: Evaluator name → `EvaluatorSpec`.
        models: Model name → `ModelSpec`.
        merge_methods: Merge method name → `MergeMethodSpec`.

    Example:
        >>> from minerua import LossSpec, hookimpl
        >>> class Losses:
        ...     @hookimpl
        ...     def minerua_losses(self):
        ...         return [LossSpec("absolute-error", lambda p, t: (p - t).abs().mean())]
        >>> registry = Registry.of(Losses())
        >>> list(registry.losses), registry.losses.provider("absolute-error").status
        (['absolute-error'], 'ok')
    """

    plugins: tuple[Plugin, ...]
    skills: Catalog[Skill]
    optimizers: Catalog[OptimizerSpec]
    losses: Catalog[LossSpec]
    evaluators: Catalog[EvaluatorSpec]
    models: Catalog[ModelSpec]
    merge_methods: Catalog[MergeMethodSpec]

    @classmethod
    def load(
        cls, group: str = "minerua", *, distributions: Iterable[importlib.metadata.Distribution] | None = None
    ) -> Registry:
        """Loads every plugin that an installed distribution declares.

        Whatever a plugin raises ends in its `reason`, `SystemExit` included; only what is meant for the whole program
        (`KeyboardInterrupt` and the like) passes. Plugins named in the environment variable `MINERUA_PLUGINS_DISABLED`
        are listed but not imported.

        Args:
            group: The group of entry points.
            distributions: Where to look; default: everything installed, as `importlib.metadata` finds it. Of two
                distributions with one name the first counts, as for Python's import.
        """
        found = importlib.metadata.distributions() if distributions is None else distributions
        return _assemble(_candidates(found, group))

    @classmethod
    def of(cls, *plugins: object) -> Registry:
        """Registers the given modules or objects under the same rules as installed plugins.

        Args:
            plugins: Anything with functions marked `@minerua.hookimpl`.
        """
        return _assemble([_given(plugin) for plugin in plugins])

    @property
    def problems(self) -> tuple[str, ...]:
        """Every quarantined plugin with its reason, and every contested name; empty when all is well."""
        quarantined = [f"{plugin}: {plugin.reason}" for plugin in self.plugins if plugin.status == "quarantined"]
        catalogs: list[Catalog[Any]] = [getattr(self, kind.attribute) for kind in KINDS]
        return (*quarantined, *(catalog.quarrel(name) for catalog in catalogs for name in catalog.contested))


# ── finding ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Candidate(NamedTuple):
    """A plugin that is not yet imported; `origin` is told where an error has no place of its own."""

    plugin: Plugin
    load: Callable[[], object]
    origin: str | None = None


def _given(plugin: object) -> _Candidate:
    name = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__qualname__
    return _Candidate(Plugin(name, "given", ""), lambda: plugin)


def _candidates(distributions: Iterable[importlib.metadata.Distribution], group: str) -> list[_Candidate]:
    every: list[_Candidate] = []
    seen = set[str]()
    for distribution in distributions:
        candidates = _declared_by(distribution, group)
        name = _normalized(candidates[0].plugin.distribution) if candidates else UNKNOWN
        if name == UNKNOWN or name not in seen:  # two that lost their names are not thereby the same
            every += candidates
        seen.add(name)
    every.sort(key=lambda candidate: (candidate.plugin.name, candidate.plugin.distribution))
    return [_disabled_or_same(candidate) for candidate in every]


def _declared_by(distribution: importlib.metadata.Distribution, group: str) -> list[_Candidate]:
    """Reads one distribution; a malformed one must not hide the others."""
    try:
        if f"[{group}]" not in (distribution.read_text("entry_points.txt") or ""):
            return []
        entries = [entry for entry in distribution.entry_points if entry.group == group]
    except Exception as error:  # noqa: BLE001 - quarantined with its reason
        reason = _reason(error, "while reading entry_points.txt")
        plugin = Plugin("entry_points.txt", *_name_and_version(distribution), "quarantined", reason)
        return [_Candidate(plugin, lambda: None)]
    name, version = _name_and_version(distribution) if entries else ("", "")
    return [
        _Candidate(Plugin(entry.name, name, version), entry.load, f"entry point {entry.name} = {entry.value}")
        for entry in entries
    ]


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Metadata can be missing or unreadable, and a plugin of unknown origin still has to be accounted for."""
    try:
        metadata = distribution.metadata
        present = [key in metadata for key in ("Name", "Version")]
        return metadata["Name"] if present[0] else UNKNOWN, metadata["Version"] if present[1] else UNKNOWN
    except Exception:  # noqa: BLE001 - the word "unknown" says so wherever the plugin is named
        return UNKNOWN, UNKNOWN


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _disabled_or_same(candidate: _Candidate) -> _Candidate:
    value = os.environ.get(DISABLED_VARIABLE, "")
    names = {name.strip() for name in value.split(",")}
    own = _normalized(candidate.plugin.distribution) == OWN_DISTRIBUTION
    if candidate.plugin.name in names or ("all" in names and not own):
        reason = f"the environment variable {DISABLED_VARIABLE} is {value!r}"
        return candidate._replace(plugin=replace(candidate.plugin, status="disabled", reason=reason))
    return candidate


# ── admitting ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _assemble(candidates: Sequence[_Candidate]) -> Registry:
    admitted = [_admit(candidate) for candidate in candidates]
    absent = [plugin for plugin, _ in admitted if plugin.status != "ok"]
    catalogs: dict[str, Catalog[Any]] = {}
    for kind in KINDS:
        provided: dict[str, list[tuple[Plugin, Any]]] = {}
        for plugin, specs in admitted:
            for spec in specs.get(kind.hook, ()):
                provided.setdefault(spec.name, []).append((plugin, spec))
        catalogs[kind.attribute] = Catalog(kind.singular, provided, absent=absent)
    return Registry(tuple(plugin for plugin, _ in admitted), **catalogs)


def _admit(candidate: _Candidate) -> tuple[Plugin, Mapping[str, list[Any]]]:
    """Loads one plugin; returns what became of it and its specs by hook (none unless it is ok)."""
    plugin, specs = candidate.plugin, dict[str, list[Any]]()
    if plugin.status != "ok":
        return plugin, specs
    started = time.perf_counter()
    try:
        specs = _specs_of(candidate.load(), plugin.name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - strangers may raise anything
        plugin = replace(plugin, status="quarantined", reason=_reason(error, candidate.origin))
    provides = {hook: tuple(sorted(spec.name for spec in returned)) for hook, returned in specs.items() if returned}
    return replace(plugin, provides=MappingProxyType(provides), load_seconds=time.perf_counter() - started), specs


def _specs_of(plugin: object, name: str) -> dict[str, list[Any]]:
    """Calls every hook of one plugin; returns hook name → its specs, all of them valid."""
    if plugin is None or isinstance(plugin, type):
        raise BrokenPlugin(f"the entry point leads to {plugin!r}; name a module, or an instance of the class")
    manager = pluggy.PluginManager("minerua")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name=name)
    except pluggy.PluginValidationError as error:
        raise BrokenPlugin(f"a hook has the wrong signature: {error}") from error
    _refuse("its hooks are not those of minerua", _hook_faults(manager, plugin))
    specs, faults = {}, list[str]()
    for kind in KINDS:
        specs[kind.hook], wrong = _call(manager, kind)
        faults += wrong
    _refuse("its specs are not valid", faults)
    return specs


def _refuse(message: str, faults: Sequence[str]) -> None:
    if faults:
        raise BrokenPlugin(message, faults)


def _hook_faults(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    """What pluggy would pass over in silence: unknown names, forgotten markers, wrappers, coroutines."""
    faults = [
        f"{kind.hook} is not marked; write @minerua.hookimpl above it"
        for kind in KINDS
        if inspect.isroutine(function := getattr(plugin, kind.hook, None))
        and manager.parse_hookimpl_opts(plugin, kind.hook) is None
        and not hasattr(function, "minerua_spec")
    ]
    for hook in manager.get_hookcallers(plugin) or []:
        for implementation in hook.get_hookimpls():
            where = f"{hook.name} ({_definition(implementation.function)})"
            if not hook.has_spec():
                if not implementation.optionalhook:
                    faults.append(f"{where} is not a hook{_nearest(hook.name)}")
            elif implementation.wrapper or implementation.hookwrapper:
                faults.append(f"{where} is a wrapper; a plugin provides its own specs and sees no others")
            elif inspect.iscoroutinefunction(implementation.function):
                faults.append(f"{where} is async; hooks are plain functions")
    return faults


def _nearest(name: str) -> str:
    import difflib

    hooks = [kind.hook for kind in KINDS]
    nearest = difflib.get_close_matches(name, hooks, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; the hooks are {', '.join(hooks)}"


def _call(manager: pluggy.PluginManager, kind: Kind) -> tuple[list[Any], list[str]]:
    """Calls one hook; returns its valid specs, and the faults of the others."""
    hook = getattr(manager.hook, kind.hook)
    results = hook()
    specs, faults = list[Any](), list[str]()
    if len(results) < len(hook.get_hookimpls()):  # pluggy drops a None
        faults.append(f"{kind.hook} returned None; return a list of {kind.spec.__name__}, empty if there are none")
    for result in results:
        if not isinstance(result, list | tuple):
            faults.append(f"{kind.hook} returned {with_article(result)}; return a list of {kind.spec.__name__}")
            continue
        for index, spec in enumerate(result):
            wrong = spec_faults(kind, spec)
            faults += [f"{kind.hook}[{index}]: {fault}" for fault in wrong]
            specs += [] if wrong else [spec]
    names = [spec.name for spec in specs]
    faults += [
        f"{kind.hook} returns the name {name!r} twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    return specs, faults


# ── telling why ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _reason(error: BaseException, origin: str | None) -> str:
    """Returns type, message and place of an error in one line; never raises, whatever the error does."""
    if isinstance(error, BrokenPlugin):
        return " ".join(f"{error.message}: {'; '.join(error.faults)}".rstrip(": ").split())
    try:
        message = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - a text that raises must not leave the quarantine
        message = "(its text cannot be read)"
    places = [place for place in (_place(error), origin) if place]
    return f"{type(error).__name__}: {message}".rstrip(": ") + (f" ({places[0]})" if places else "")


def _place(error: BaseException) -> str | None:
    """Returns file and line where the error arose, and where the plugin's own file led there if that is another one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = list(_telling_frames(error.__traceback__))
    if not frames:
        return None
    file, line = frames[-1]
    own_file, own_line = [frame for frame in frames if frame[0] == frames[0][0]][-1]
    return f"{file}:{line}" if file == own_file else f"{file}:{line}, reached from {own_file}:{own_line}"


def _telling_frames(step: TracebackType | None) -> Iterator[tuple[str, int]]:
    while step is not None:
        module = str(step.tb_frame.f_globals.get("__name__", ""))
        if not any(module == name or module.startswith(f"{name}.") for name in MACHINERY):
            yield step.tb_frame.f_code.co_filename, step.tb_lineno
        step = step.tb_next


def _definition(function: Callable[..., object]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
