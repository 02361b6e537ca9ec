"""The commands that evolve: `demo`, `evolve` and `report`."""

# No `from __future__ import annotations`: README.md says why.

import contextlib
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minerua.cli.shared import AsJson, load_registry, print_json

if TYPE_CHECKING:
    from minerua.report import Preflight, Summary
    from minerua.run import Progress


class VariantName(str, Enum):
    """The variants of CycleQD that `demo` offers."""

    minerua = "minerua"
    paper = "paper"
    repo = "repo"


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes; new or empty.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    evaluations: Annotated[int, typer.Option(min=1, help="How many children to evaluate.")] = 1200,
    variant: Annotated[VariantName, typer.Option(help="Which reading of CycleQD evolves them.")] = VariantName.minerua,
    as_json: AsJson = False,
) -> None:
    """Learns three experts on handwritten digits and evolves them into a population of merged models."""
    from minerua.run import execute
    from minerua.run.demo import write_demo

    registry = load_registry()
    run_file = write_demo(
        out,
        registry=registry,
        seed=seed,
        evaluations=evaluations,
        variant=variant.value,
        say=lambda text: typer.echo(text, err=True),
    )
    with _progress_bar() as progress:
        summary = execute(run_file, registry=registry, progress=progress, announce=_announcer(as_json=as_json))
    _print_summary(summary, out, as_json=as_json)


def evolve(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default: the run file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Evolves a population of merged models from the experts that a run file names."""
    from minerua.run import execute

    with _progress_bar() as progress:
        summary = execute(
            run_file,
            registry=load_registry(),
            out=out,
            resume=resume,
            progress=progress,
            announce=_announcer(as_json=as_json),
        )
    _print_summary(summary, out or run_file.parent, as_json=as_json)


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Writes a run's report.html anew from its journal, finished or not, and prints its table."""
    from minerua.evolution import read_journal
    from minerua.report import render, summarise
    from minerua.run import JOURNAL
    from minerua.weights import write_bytes

    events = read_journal(folder / JOURNAL)
    write_bytes(folder / "report.html", render(events).encode())
    _print_summary(summarise(events), folder, as_json=as_json)


def _announcer(*, as_json: bool) -> "Callable[[Preflight], None] | None":
    """Returns what prints on stderr how alike the experts are; `None` where it stands in the JSON that is printed."""
    from minerua.report import preflight_text

    return None if as_json else lambda found: typer.echo(preflight_text(found), err=True)


def _print_summary(summary: "Summary", folder: Path, *, as_json: bool) -> None:
    from minerua.report import table_json, table_text

    if as_json:
        print_json(table_json(summary))
        return
    typer.echo(table_text(summary))
    typer.echo(f"The whole report: {folder / 'report.html'}")


@contextlib.contextmanager
def _progress_bar() -> "Iterator[Progress | None]":
    """Yields what moves a progress bar on stderr; `None` where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("evolving"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    best = TextColumn("best mean on search {task.fields[best]:.1%}")
    with Progress(*columns, best, console=Console(stderr=True)) as bar:
        task = bar.add_task("evolving", total=None, best=0.0)
        yield lambda done, total, score: bar.update(task, completed=done, total=total, best=score)
