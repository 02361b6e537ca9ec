"""The commands that evolve: `demo`, `evolve`, `recipes` and `report`."""

# No `from __future__ import annotations`: README.md says why.

import contextlib
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minerua.cli.shared import AsJson, load_registry, print_json, print_table
from minerua.errors import ConfigError

if TYPE_CHECKING:
    from minerua.registry import Registry
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
        say=_said_on_stderr,
    )
    with _progress_bar() as progress:
        summary = execute(run_file, registry=registry, progress=progress, announce=_announcer(as_json=as_json))
    _print_summary(summary, out, as_json=as_json)


def evolve(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file; or a recipe's name.")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default: the run file's, or the recipe's name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    evaluator_workers: Annotated[
        int, typer.Option(min=1, help="How many items an evaluator may work on at the same time; changes no result.")
    ] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a recipe: seed of everything random; default: 0.")] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Of a recipe: how many children to evaluate; default: it says.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evolves a population of merged models from the experts that a run file names, or that a recipe learns first."""
    from minerua.run import execute

    registry = load_registry()
    if _is_recipe(run_file):
        out = Path(run_file) if out is None else out
        run_file = _ready(str(run_file), out, registry, resume=resume, seed=seed, evaluations=evaluations)
    elif seed is not None or evaluations is not None:
        raise ConfigError(f"--seed and --evaluations are of recipes; what {run_file} asks for stands in it")
    with _progress_bar() as progress:
        summary = execute(
            run_file,
            registry=registry,
            out=out,
            resume=resume,
            workers=evaluator_workers,
            progress=progress,
            announce=_announcer(as_json=as_json),
        )
    _print_summary(summary, out or run_file.parent, as_json=as_json)


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which to copy out; without it all are listed.")
    ] = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Folder for its files; default: its name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random, written into the files.")] = 0,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="How many children to evaluate; default: the recipe says.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Lists ready runs, or copies the files of one out without carrying them out."""
    from minerua.run.demo import RECIPES, copy_recipe, recipe_named

    if name is None:
        listed = [(recipe.name, recipe.summary) for recipe in RECIPES.values()]
        if as_json:
            print_json({"recipes": [dict(zip(("name", "summary"), row, strict=True)) for row in listed]})
        else:
            print_table(listed)
        return
    files = copy_recipe(recipe_named(name), name if out is None else out, seed=seed, evaluations=evaluations)
    if as_json:
        print_json({"files": [str(path) for path in files]})
        return
    for path in files:
        typer.echo(path)


def _is_recipe(run_file: Path) -> bool:
    """Whether what was named is no file, nor looks like one: a bare name."""
    return not run_file.exists() and not run_file.suffix and len(run_file.parts) == 1


def _ready(
    name: str, out: Path, registry: "Registry", *, resume: bool, seed: int | None, evaluations: int | None
) -> Path:
    """Returns the run file of a recipe, whose experts are learned first unless that was done."""
    from minerua.run.demo import RUN, make_ready, recipe_named

    recipe = recipe_named(name)
    if resume and (out / RUN).exists():
        return out / RUN
    say = _said_on_stderr
    return make_ready(recipe, out, registry=registry, seed=seed or 0, evaluations=evaluations, say=say)


def _said_on_stderr(text: str) -> None:
    typer.echo(text, err=True)


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Writes a run's report.html anew from its journal, finished or not, and prints its table."""
    from minerua.evolution import read_journal
    from minerua.report import render, summarise
    from minerua.run import JOURNAL, kept_exhibits
    from minerua.weights import write_bytes

    events = read_journal(folder / JOURNAL)
    write_bytes(folder / "report.html", render(events, kept_exhibits(folder)).encode())
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
