"""Asks one plugin for its specs, by its hooks, and refuses what is not of the contract."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import pluggy

from minerua import hookspecs
from minerua.errors import BrokenPlugin
from minerua.registry.catalog import Plugin
from minerua.registry.reasons import definition, reason
from minerua.registry.specs import KINDS, Kind, spec_faults, with_article
from minerua.registry.tracing import Call, Observer

OFFERED: Mapping[str, object] = MappingProxyType({})
"""Argument name → what a hook may ask for. Nothing so far; what comes later is asked for by name, so that a plugin
written before it, whose hooks take fewer arguments, works as it stands."""

MOST_SPECS = 10_000
"""How many specs one hook may return: whoever returns more has returned something else, such as a dataset."""

_LISTS = (list, tuple)
T = TypeVar("T")


def timed(observe: Observer | None, plugin: Plugin, what: str, act: Callable[[], T]) -> T:
    """Does something of a plugin's, and tells the observer before and after; `BaseException`s are told and go on."""
    if observe is None:
        return act()
    observe(Call(plugin, what))
    started = time.perf_counter()
    try:
        result = act()
    except BaseException as error:
        observe(Call(plugin, what, time.perf_counter() - started, error=reason(error, None)))
        raise
    count = len(result[0]) if isinstance(result, tuple) else 0
    observe(Call(plugin, what, time.perf_counter() - started, count))
    return result


def ask(plugin: object, whose: Plugin, observe: Observer | None = None) -> tuple[dict[str, list[Any]], list[str]]:
    """Calls every hook of one plugin.

    Args:
        plugin: The module or object with the hooks.
        whose: What is known of it.
        observe: Told of every call.

    Returns:
        Hook name → its specs, all of them valid; and what the author should know although nothing is refused.

    Raises:
        BrokenPlugin: It cannot be a plugin, its hooks are not those of minerua, or its specs are not valid; all faults.
    """
    manager = _registered(plugin, whose)
    _refuse("its hooks are not those of minerua", _hook_faults(manager, plugin))
    implemented = {hook.name for hook in manager.get_hookcallers(plugin) or []}
    specs, faults = dict[str, list[Any]](), list[str]()
    for kind in KINDS:
        if kind.hook in implemented:
            specs[kind.hook], wrong = timed(observe, whose, kind.hook, partial(call, manager, kind))
            faults += wrong
    _refuse("its specs are not valid", faults)
    return specs, [*_strays(plugin), *([] if implemented else [_nothing_in(plugin)])]


def _registered(plugin: object, whose: Plugin) -> pluggy.PluginManager:
    """Returns a manager of the plugin's own; README.md says why every plugin has one."""
    if plugin is None or isinstance(plugin, type):
        raise BrokenPlugin(f"the entry point leads to {plugin!r}; name a module, or an instance of the class")
    manager = pluggy.PluginManager("minerua")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name=whose.name)
    except pluggy.PluginValidationError as error:
        raise BrokenPlugin(f"a hook has the wrong signature: {error}") from error
    return manager


def _refuse(message: str, faults: Sequence[str]) -> None:
    if faults:
        raise BrokenPlugin(message, faults)


# ── hooks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _hook_faults(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    """What pluggy would pass over in silence: unknown names, forgotten markers, wrappers, coroutines."""
    faults = [fault for kind in KINDS for fault in _marker_faults(manager, plugin, kind.hook)]
    for hook in manager.get_hookcallers(plugin) or []:
        for implementation in hook.get_hookimpls():
            where = f"{hook.name} ({definition(implementation.function)})"
            if not hook.has_spec():
                if not implementation.optionalhook:
                    faults.append(f"{where} is not a hook{_nearest(hook.name)}")
            elif implementation.wrapper or implementation.hookwrapper:
                faults.append(f"{where} is a wrapper; a plugin provides its own specs and sees no others")
            elif inspect.iscoroutinefunction(implementation.function):
                faults.append(f"{where} is async; hooks are plain functions")
    return faults


def _marker_faults(manager: pluggy.PluginManager, plugin: object, hook: str) -> list[str]:
    found = getattr(plugin, hook, None)
    if found is None or hasattr(found, "minerua_spec") or manager.parse_hookimpl_opts(plugin, hook) is not None:
        return []
    if not inspect.isroutine(found):
        return [f"{hook} is {with_article(found)}; a hook is a function with @minerua.hookimpl above it"]
    return [f"{hook} is not marked; write @minerua.hookimpl above it"]


def _nearest(name: str) -> str:
    import difflib

    hooks = [kind.hook for kind in KINDS]
    nearest = difflib.get_close_matches(name, hooks, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; the hooks are {', '.join(hooks)}"


def _strays(plugin: object) -> list[str]:
    """Functions without a marker that are named like hooks: helpers, or hooks that nobody will ever call."""
    hooks = {kind.hook for kind in KINDS}
    return (
        [
            f"{name} ({definition(function)}) is not a hook and is never called{_nearest(name)}"
            for name, function in vars(plugin).items()
            if name.startswith("minerua_") and name not in hooks and inspect.isfunction(function)
            if not hasattr(function, "minerua_impl") and not hasattr(function, "minerua_spec")
        ]
        if hasattr(plugin, "__dict__")
        else []
    )


def _nothing_in(plugin: object) -> str:
    where = getattr(plugin, "__file__", None) or repr(plugin)
    return f"provides nothing: {where} has no function with @minerua.hookimpl above it; is that the module you meant?"


# ── specs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def call(manager: pluggy.PluginManager, kind: Kind) -> tuple[list[Any], list[str]]:
    """Calls one hook; returns its valid specs, and the faults of the others."""
    hook = getattr(manager.hook, kind.hook)
    results = hook(**{name: OFFERED[name] for name in hook.spec.argnames}) if OFFERED else hook()
    specs: list[Any] = []
    faults: list[str] = []
    if len(results) < len(hook.get_hookimpls()):  # pluggy drops a None
        faults.append(f"{kind.hook} returned None; return a list of {kind.spec.__name__}, empty if there are none")
    for result in results:
        if not isinstance(result, _LISTS):
            faults.append(f"{kind.hook} returned {with_article(result)}; return a list of {kind.spec.__name__}")
        elif len(result) > MOST_SPECS:
            faults.append(f"{kind.hook} returned {len(result)} specs; the most that one hook may is {MOST_SPECS}")
        else:
            _sort_out(kind, result, specs, faults)
    if len(specs) > 1 and len({spec.name for spec in specs}) < len(specs):
        counts = Counter(spec.name for spec in specs)
        faults += [f"{kind.hook} returns the name {name!r} twice" for name in sorted(counts) if counts[name] > 1]
    return specs, faults


def _sort_out(kind: Kind, result: Sequence[Any], specs: list[Any], faults: list[str]) -> None:
    """Adds the valid specs of a result to the ones, and what is wrong with the others to the other."""
    for index, spec in enumerate(result):
        if wrong := spec_faults(kind, spec):
            faults += [f"{kind.hook}[{index}]: {fault}" for fault in wrong]
        else:
            specs.append(spec)
