"""The commands for authors of plugins: `plugins new` and `plugins exam`."""

# No `from __future__ import annotations`: README.md says why.

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from minerua.cli.shared import AsJson, print_json

__all__ = ["exam_plugins", "new_plugin"]


def new_plugin(
    name: Annotated[str, typer.Argument(help="Lower case, words joined by '-'; distribution, entry point and thing.")],
    *,
    kind: Annotated[str, typer.Option(help="skill, optimizer, loss, evaluator, model or merge-method.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; default: the name, here.")] = None,
) -> None:
    """Writes a small plugin that installs and passes its exam as it is."""
    from minerua.scaffold import write_plugin

    written = write_plugin(name, kind, out=out)
    typer.echo(f"wrote {written.folder} with {', '.join(written.files)}; next:")
    for command in written.commands:
        typer.echo(f"  {command}")


def exam_plugins(
    names: Annotated[
        list[str] | None, typer.Argument(help="Distributions or entry points; default: every plugin but minerua's own.")
    ] = None,
    *,
    only: Annotated[list[str] | None, typer.Option(help="Patterns over kind/name/check, such as '*/gradient'.")] = None,
    as_json: AsJson = False,
) -> None:
    """Holds plugins to the laws of what they provide; leaves with 1 if one is broken, and names every problem."""
    from minerua.conformance import examine

    with contextlib.redirect_stdout(sys.stderr):  # what plugins print must not stand between the JSON
        reports = [examine(name, only=only) for name in names or _installed()]
    if as_json:
        print_json({"passed": not any(report.problems for report in reports), "exams": [r.as_json() for r in reports]})
    else:
        typer.echo("\n".join(map(str, reports)) or "no plugins are installed but minerua's own")
    if any(report.problems for report in reports):
        raise typer.Exit(1)


def _installed() -> list[str]:
    """Returns the entry points of all distributions but minerua's own."""
    import importlib.metadata

    found = (one for one in importlib.metadata.distributions() if (one.metadata["Name"] or "").lower() != "minerua")
    return sorted({entry.name for one in found for entry in one.entry_points if entry.group == "minerua"})
