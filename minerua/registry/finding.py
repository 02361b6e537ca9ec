"""Finds the plugins that installed distributions declare, and applies the user's switches; imports none of them."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

from minerua.errors import unknown
from minerua.registry.catalog import ALLOWED_VARIABLE, DISABLED_VARIABLE, Plugin
from minerua.registry.reasons import reason

OWN_DISTRIBUTION = "minerua"
UNKNOWN = "unknown"


class Candidate(NamedTuple):
    """A plugin that is not yet imported.

    Args:
        plugin: What is known of it.
        load: Imports it; returns the module or object with the hooks.
        origin: What is told where an error has no place of its own.
        is_given: Whether it is an object of the caller's own, so that nothing of a stranger's runs.
    """

    plugin: Plugin
    load: Callable[[], object]
    origin: str | None = None
    is_given: bool = False


def given(plugin: object) -> Candidate:
    """Returns the candidate for a module or an object that the caller has."""
    name = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__qualname__
    return Candidate(Plugin(name, "given", ""), lambda: plugin, is_given=True)


def candidates(distributions: Iterable[importlib.metadata.Distribution], group: str) -> list[Candidate]:
    """Returns every declared plugin, in the order of names, then distributions; those switched off are marked."""
    every: list[Candidate] = []
    seen = set[str]()
    for distribution in distributions:
        declared = _declared_by(distribution, group)
        name = _normalized(declared[0].plugin.distribution) if declared else UNKNOWN
        if name == UNKNOWN or name not in seen:  # two that lost their names are not thereby the same
            every += declared
        seen.add(name)
    every.sort(key=lambda candidate: (candidate.plugin.name, candidate.plugin.distribution))
    return [_switched(candidate) for candidate in every]


def _declared_by(distribution: importlib.metadata.Distribution, group: str) -> list[Candidate]:
    """Reads one distribution; a malformed one must not hide the others."""
    try:
        if f"[{group}]" not in (distribution.read_text("entry_points.txt") or ""):
            return []
        entries = [entry for entry in distribution.entry_points if entry.group == group]
    except Exception as error:  # noqa: BLE001 - quarantined with its reason
        why = reason(error, "while reading entry_points.txt")
        plugin = Plugin("entry_points.txt", *_name_and_version(distribution), "quarantined", why)
        return [Candidate(plugin, lambda: None)]
    name, version = _name_and_version(distribution) if entries else ("", "")
    return [
        Candidate(Plugin(entry.name, name, version), entry.load, f"entry point {entry.name} = {entry.value}")
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


# ── switches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def switch_faults(plugins: Iterable[Plugin]) -> Iterator[str]:
    """Yields a sentence for every name in the two environment variables that no plugin and no distribution has."""
    known = sorted({name for plugin in plugins for name in (plugin.name, plugin.distribution)})
    answering = {_normalized(name) for name in known}
    for variable in (ALLOWED_VARIABLE, DISABLED_VARIABLE):
        for name in sorted(_named_in(variable) - {"all"}):
            if _normalized(name) not in answering:
                yield f"the environment variable {variable} names a plugin in vain: {unknown('plugin', name, known)}"


def _named_in(variable: str) -> set[str]:
    return {name.strip() for name in os.environ.get(variable, "").split(",")} - {""}


def _switched(candidate: Candidate) -> Candidate:
    """Marks a plugin that the user has switched off. What is both allowed and disabled is disabled."""
    plugin = candidate.plugin
    names = {_normalized(plugin.name), _normalized(plugin.distribution)}
    is_own = _normalized(plugin.distribution) == OWN_DISTRIBUTION
    allowed, disabled = _named_in(ALLOWED_VARIABLE), _named_in(DISABLED_VARIABLE)
    if names & set(map(_normalized, disabled)) or ("all" in disabled and not is_own):
        why = f"the environment variable {DISABLED_VARIABLE} is {os.environ[DISABLED_VARIABLE]!r}"
    elif allowed and not is_own and not names & set(map(_normalized, allowed)):
        why = f"the environment variable {ALLOWED_VARIABLE} is {os.environ[ALLOWED_VARIABLE]!r} and does not name it"
    else:
        return candidate
    return candidate._replace(plugin=replace(plugin, status="disabled", reason=why))
