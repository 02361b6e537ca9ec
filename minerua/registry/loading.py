"""Loads plugins behind a guard, one by one, and accounts for each of them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from minerua.registry.asking import ask, timed
from minerua.registry.catalog import Catalog, Plugin
from minerua.registry.finding import Candidate, candidates, given, switch_faults
from minerua.registry.reasons import reason
from minerua.registry.specs import KINDS
from minerua.registry.tracing import IMPORT, Observer, tracing
from minerua.registry.watching import SLOW_SECONDS, watched
from minerua.values import EvaluatorSpec, LossSpec, MergeMethodSpec, ModelSpec, OptimizerSpec, Skill


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
        remarks: What was noticed of no plugin, such as a switch that names none.

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
    remarks: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        group: str = "minerua",
        *,
        distributions: Iterable[importlib.metadata.Distribution] | None = None,
        observe: Observer | None = None,
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> Registry:
        """Loads every plugin that an installed distribution declares.

        Whatever a plugin raises ends in its `reason`, `SystemExit` included; only Ctrl-C, `KeyboardInterrupt`, passes,
        and says which plugin was being loaded. The environment variables `MINERUA_PLUGINS_ALLOWED` and
        `MINERUA_PLUGINS_DISABLED` say which plugins are listed but not imported, `MINERUA_TRACE_HOOKS` whether every
        call is written down.

        Args:
            group: The group of entry points.
            distributions: Where to look; default: everything installed, as `importlib.metadata` finds it. Of two
                distributions with one name the first counts, as for Python's import.
            observe: Told of every import and every call of a hook, when it begins and when it is done.
            refused: Plugins that are not imported, as `str(plugin)` names them → why not.

        Raises:
            StorageError: The trace cannot be written to the file that the environment names.
        """
        found = candidates(importlib.metadata.distributions() if distributions is None else distributions, group)
        remarks = list(switch_faults(candidate.plugin for candidate in found))
        return _assemble([_unless_refused(candidate, refused) for candidate in found], observe, remarks)

    @classmethod
    def of(cls, *plugins: object) -> Registry:
        """Registers the given modules or objects under the same rules as installed plugins.

        Args:
            plugins: Anything with functions marked `@minerua.hookimpl`.
        """
        return _assemble([given(plugin) for plugin in plugins])

    @property
    def problems(self) -> tuple[str, ...]:
        """Every quarantined plugin with its reason, and every contested name; empty when all is well."""
        quarantined = [f"{plugin}: {plugin.reason}" for plugin in self.plugins if plugin.status == "quarantined"]
        catalogs: list[Catalog[Any]] = [getattr(self, kind.attribute) for kind in KINDS]
        return (*quarantined, *(catalog.quarrel(name) for catalog in catalogs for name in catalog.contested))

    @property
    def notices(self) -> tuple[str, ...]:
        """What is no problem for anybody else and yet should be known: slow imports, prints, changes of the process."""
        return (*self.remarks, *(f"{plugin} {notice}" for plugin in self.plugins for notice in plugin.notices))


# ── admitting ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _assemble(found: Sequence[Candidate], observe: Observer | None = None, remarks: Sequence[str] = ()) -> Registry:
    with tracing(observe) as told:
        admitted = [_admit(candidate, told) for candidate in found]
    absent = [plugin for plugin, _ in admitted if plugin.status != "ok"]
    catalogs: dict[str, Catalog[Any]] = {}
    for kind in KINDS:
        provided: dict[str, list[tuple[Plugin, Any]]] = {}
        for plugin, specs in admitted:
            for spec in specs.get(kind.hook, ()):
                provided.setdefault(spec.name, []).append((plugin, spec))
        catalogs[kind.attribute] = Catalog(kind.singular, provided, absent=absent)
    return Registry(tuple(plugin for plugin, _ in admitted), **catalogs, remarks=tuple(remarks))


def _unless_refused(candidate: Candidate, refused: Mapping[str, str]) -> Candidate:
    why = refused.get(str(candidate.plugin)) if candidate.plugin.status == "ok" else None
    return (
        candidate
        if why is None
        else candidate._replace(plugin=replace(candidate.plugin, status="quarantined", reason=why))
    )


def _admit(candidate: Candidate, observe: Observer | None) -> tuple[Plugin, Mapping[str, list[Any]]]:
    """Loads one plugin; returns what became of it and its specs by hook (none unless it is ok)."""
    plugin, specs, remarks = candidate.plugin, dict[str, list[Any]](), list[str]()
    if plugin.status != "ok":
        return plugin, specs
    started = time.perf_counter()
    with contextlib.nullcontext(list[str]()) if candidate.is_given else watched() as notices:
        try:
            specs, remarks = ask(timed(observe, plugin, IMPORT, candidate.load), plugin, observe)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"while {plugin} was loaded") from error
        except BaseException as error:  # noqa: BLE001 - strangers may raise anything
            plugin = replace(plugin, status="quarantined", reason=reason(error, candidate.origin))
    seconds = time.perf_counter() - started
    slow = f"takes {seconds:.1f} s to load; import what is slow inside the functions that need it"
    told = (*([slow] if seconds > SLOW_SECONDS else []), *remarks, *notices)
    provides = {hook: tuple(sorted(spec.name for spec in returned)) for hook, returned in specs.items() if returned}
    return replace(plugin, provides=MappingProxyType(provides), load_seconds=seconds, notices=told), specs
