"""What several commands need: all plugins loaded, values as JSON, rows in columns."""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from minerua.registry import Registry

# Plain help and plain errors: rich would add its import to every call, and pretty exceptions hide the cause.
PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text for a person.")]


def load_registry() -> "Registry":
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
