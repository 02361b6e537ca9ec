"""The commands about what is installed: `plugins list`, `plugins check` and `doctor`; the door of all about plugins."""

# No `from __future__ import annotations`: README.md says why.

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import typer

from minerua.cli.authoring import exam_plugins, new_plugin
from minerua.cli.shared import PLAIN, AsJson, print_json, print_table
from minerua.errors import PluginError

if TYPE_CHECKING:
    from minerua.registry import Plugin
    from minerua.registry.survey import Survey

plugins = typer.Typer(help="See which plugins are installed and what they provide.", **PLAIN)
plugins.command("new")(new_plugin)
plugins.command("exam")(exam_plugins)


@plugins.command("list")
def list_plugins(*, as_json: AsJson = False) -> None:
    """Lists every plugin: whose it is, whether it is used, what it provides, how long it took to load."""
    found = _survey()
    if as_json:
        rows = [_as_json(plugin) for plugin in found.plugins]
        print_json({"plugins": rows, "problems": found.problems, "notices": found.notices})
        return
    header = ("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "LOAD", "PROVIDES")
    print_table([header, *(_row(plugin) for plugin in found.plugins)])
    for problem in found.problems:
        typer.echo(f"\nproblem: {problem}")
    for notice in found.notices:
        typer.echo(f"\nnotice: {notice}")


@plugins.command("check")
def check_plugins() -> None:
    """Fails, naming every problem, if a plugin is quarantined or a name is provided twice; notices are told besides."""
    found = _survey()
    if found.problems:
        raise PluginError(f"problems with plugins: {len(found.problems)}", found.problems)
    disabled = sum(plugin.status == "disabled" for plugin in found.plugins)
    typer.echo(f"no problem: {len(found.plugins) - disabled} plugins in use, {disabled} disabled")
    for notice in found.notices:
        typer.echo(f"notice: {notice}")


def doctor(*, as_json: AsJson = False) -> None:
    """Says what this installation can use, what it cannot, and what to do about it."""
    from dataclasses import asdict

    from minerua.kernels.diagnosis import diagnose

    found = _survey()
    findings = [{key: str(value) for key, value in asdict(finding).items()} for finding in diagnose()]
    findings += [_finding(plugin) for plugin in found.plugins]
    if as_json:
        print_json({"findings": findings, "problems": found.problems})
        return
    for finding in findings:
        typer.echo(f"{finding['status']:<12} {finding['what']}: {finding['detail']}")
        if finding["remedy"] not in ("", "None"):
            typer.echo(f"{'':<12} → {finding['remedy']}")


def _survey() -> "Survey":
    """Loads all plugins where one that ends its process does no harm; what they print goes to stderr."""
    from minerua.registry.survey import survey

    with contextlib.redirect_stdout(sys.stderr):
        return survey()


def _finding(plugin: "Plugin") -> dict[str, str]:
    return {
        "what": str(plugin),
        "status": plugin.status,
        "detail": plugin.reason or _provided(plugin),
        "remedy": "" if plugin.status == "ok" else "`minerua plugins check` lists all problems with plugins",
    }


def _row(plugin: "Plugin") -> tuple[str, ...]:
    load = f"{plugin.load_seconds * 1000:.1f} ms"
    return plugin.name, plugin.distribution, plugin.version, plugin.status, load, _provided(plugin)


def _provided(plugin: "Plugin") -> str:
    """Returns, for example, `losses: huber, l1; merge methods: ties`."""
    kinds = ((hook.removeprefix("minerua_").replace("_", " "), names) for hook, names in plugin.provides.items())
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds) or "nothing"


def _as_json(plugin: "Plugin") -> dict[str, Any]:
    return {**vars(plugin), "provides": dict(plugin.provides)}
