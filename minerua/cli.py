"""The command line: one short function per command, each importing what it needs when it runs.

Exit codes: 0 done; 2 a user's mistake, with one message on stderr and no traceback; 130 stopped by Ctrl-C.
A command raises a `MineruaError` for a user's mistake and returns for success; `main` does the rest.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minerua import __version__
from minerua.errors import MineruaError, PluginError

if TYPE_CHECKING:
    from minerua.registry import Plugin, Registry

# Plain help and plain errors: rich would add its import to every call, and pretty exceptions hide the cause.
PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False}

app = typer.Typer(name="minerua", help="Learn skills, merge the models that have them, evolve the merges.", **PLAIN)
plugins = typer.Typer(help="See which plugins are installed and what they provide.", **PLAIN)
app.add_typer(plugins, name="plugins")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text for a person.")]


def main() -> None:
    """Runs the command line and leaves with its exit code; the entry point of `minerua`."""
    try:
        app()
    except MineruaError as error:
        typer.echo(f"minerua: {error}", err=True)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"minerua {__version__}")
        raise typer.Exit


@app.callback()
def frame(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Learn skills, merge the models that have them, evolve the merges, chain the results."""


# ── plugins ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@plugins.command("list")
def list_plugins(*, as_json: AsJson = False) -> None:
    """Lists every plugin: whose it is, whether it is used, what it provides, how long it took to load."""
    registry = load_registry()
    if as_json:
        print_json({"plugins": [_as_json(plugin) for plugin in registry.plugins], "problems": registry.problems})
        return
    header = ("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "LOAD", "PROVIDES")
    print_table([header, *(_row(plugin) for plugin in registry.plugins)])
    for problem in registry.problems:
        typer.echo(f"\nproblem: {problem}")


@plugins.command("check")
def check_plugins() -> None:
    """Fails, naming every problem, if a plugin is quarantined or a name is provided twice."""
    registry = load_registry()
    if registry.problems:
        raise PluginError(f"problems with plugins: {len(registry.problems)}", registry.problems)
    disabled = sum(plugin.status == "disabled" for plugin in registry.plugins)
    typer.echo(f"no problem: {len(registry.plugins) - disabled} plugins in use, {disabled} disabled")


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Says what this installation can use, what it cannot, and what to do about it."""
    from dataclasses import asdict

    from minerua.kernels.diagnosis import diagnose

    registry = load_registry()
    findings = [{key: str(value) for key, value in asdict(finding).items()} for finding in diagnose()]
    findings += [_finding(plugin) for plugin in registry.plugins]
    if as_json:
        print_json({"findings": findings, "problems": registry.problems})
        return
    for finding in findings:
        typer.echo(f"{finding['status']:<12} {finding['what']}: {finding['detail']}")
        if finding["remedy"] not in ("", "None"):
            typer.echo(f"{'':<12} → {finding['remedy']}")


def _finding(plugin: Plugin) -> dict[str, str]:
    return {
        "what": str(plugin),
        "status": plugin.status,
        "detail": plugin.reason or _provided(plugin),
        "remedy": "" if plugin.status == "ok" else "`minerua plugins check` lists all problems with plugins",
    }


def _row(plugin: Plugin) -> tuple[str, ...]:
    load = f"{plugin.load_seconds * 1000:.1f} ms"
    return plugin.name, plugin.distribution, plugin.version, plugin.status, load, _provided(plugin)


def _provided(plugin: Plugin) -> str:
    """Returns, for example, `losses: huber, l1; merge methods: ties`."""
    kinds = ((hook.removeprefix("minerua_").replace("_", " "), names) for hook, names in plugin.provides.items())
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds) or "nothing"


def _as_json(plugin: Plugin) -> dict[str, Any]:
    return {**vars(plugin), "provides": dict(plugin.provides)}


# ── shared by the commands ───────────────────────────────────────────────────────────────────────────────────────────


def load_registry() -> Registry:
    """Loads all plugins; what they print while they are imported goes to stderr, so that `--json` stays JSON."""
    from minerua.registry import Registry

    with contextlib.redirect_stdout(sys.stderr):
        return Registry.load()


def print_json(value: Mapping[str, Any]) -> None:
    """Prints a value as indented JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of equal length in aligned columns; plain text, so that `grep` and `cut` can read it."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
