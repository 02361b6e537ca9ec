"""The state of all plugins, told even if one of them ends the process or never returns: a child does the loading."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, NamedTuple

from minerua.registry.catalog import Plugin
from minerua.registry.loading import Registry

PATIENCE_SECONDS = 60.0
"""How long one plugin may take to be imported, or one hook to answer, before it counts as one that never returns."""


class Survey(NamedTuple):
    """What is known of all plugins, without what they provide.

    Args:
        plugins: Every plugin, as in `Registry.plugins`.
        problems: As in `Registry.problems`.
        notices: As in `Registry.notices`.
    """

    plugins: tuple[Plugin, ...]
    problems: tuple[str, ...]
    notices: tuple[str, ...]


def survey(load: Callable[..., Registry] = Registry.load, *, patience_seconds: float = PATIENCE_SECONDS) -> Survey:
    """Loads all plugins in a child of this process and returns their state.

    A plugin that ends the child, by `os._exit` or a crash, or that is silent for too long, is quarantined with what
    happened to it, and the others are loaded again without it. Where processes cannot be forked, and where loading
    fails for a reason of another kind, everything happens in this process.

    Args:
        load: `load(observe=..., refused=...)`, as `Registry.load`.
        patience_seconds: How long one import or one hook may take; above 0.

    Raises:
        Exception: Whatever `load` raises.
    """
    refused = dict[str, str]()
    while hasattr(os, "fork"):
        found, culprit, end = _in_a_child(load, refused, patience_seconds)
        if found is not None:
            return found
        if not culprit or culprit in refused:
            break  # nobody to blame: it will fail here too, in the open
        refused[culprit] = f"{end} while it is loaded"
    registry = load(refused=refused)
    return Survey(registry.plugins, registry.problems, registry.notices)


class _Try(NamedTuple):
    """What came of one child: a survey, or the plugin that it was busy with and how it ended."""

    found: Survey | None
    culprit: str = ""
    end: str = ""


def _in_a_child(load: Callable[..., Registry], refused: dict[str, str], patience: float) -> _Try:
    sys.stdout.flush(), sys.stderr.flush()  # what is still in a buffer would be written by both
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _tell_parent(writer, load, refused)
    os.close(writer)
    busy_with, silent = "", ""
    try:
        for message in _messages(reader, patience):
            if "plugins" in message:
                return _Try(_survey_of(message))
            busy_with = message.get("begins", "")
    except TimeoutError:
        silent = f"does not return within {patience:g} s"
    finally:
        os.close(reader)
        status = _ended(child, is_dying=not silent)
    return _Try(None, busy_with, silent or _end(status))


def _tell_parent(writer: int, load: Callable[..., Registry], refused: dict[str, str]) -> None:
    """What the child does; it never returns."""

    def tell(message: dict[str, Any]) -> None:
        os.write(writer, json.dumps(message).encode() + b"\n")

    try:
        registry = load(observe=lambda call: tell({"begins": str(call.plugin)}), refused=refused)
        plugins = [{**vars(plugin), "provides": dict(plugin.provides)} for plugin in registry.plugins]
        tell({"plugins": plugins, "problems": registry.problems, "notices": registry.notices})
    except BaseException:  # noqa: BLE001 - it comes up again in the parent, which loads everything itself then
        tell({"begins": ""})
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)


def _messages(reader: int, patience: float) -> Iterator[dict[str, Any]]:
    rest = b""
    while True:
        if not select.select([reader], [], [], patience)[0]:
            raise TimeoutError
        piece = os.read(reader, 1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, lines)


def _survey_of(message: dict[str, Any]) -> Survey:
    names = {field.name for field in fields(Plugin)}
    plugins = [{key: value for key, value in plugin.items() if key in names} for plugin in message["plugins"]]
    for plugin in plugins:
        plugin["provides"] = {hook: tuple(provided) for hook, provided in plugin["provides"].items()}
        plugin["notices"] = tuple(plugin["notices"])
    whole = tuple(Plugin(**plugin) for plugin in plugins)
    return Survey(whole, tuple(message["problems"]), tuple(message["notices"]))


def _ended(child: int, *, is_dying: bool) -> int:
    """Returns how the child ended; ends it if it does not do so itself."""
    if not is_dying:
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _end(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"ends the process by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ends the process with exit status {os.waitstatus_to_exitcode(status)}"
