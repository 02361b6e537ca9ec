"""The command line: one short function per command, each importing what it needs when it runs.

Exit codes: 0 done; 1 a step of a chain failed; 2 a user's mistake; each with one message on stderr and no traceback;
130 stopped by Ctrl-C.
A command raises a `MineruaError` for a user's mistake and returns for success; `main` does the rest.
"""

import gc
import importlib
import os
import sys
from typing import Annotated

import typer

from minerua import __version__
from minerua.cli.chains import chain
from minerua.cli.evolving import demo, evolve, recipes, report
from minerua.cli.installation import doctor, plugins
from minerua.cli.merging import extract, merge
from minerua.cli.shared import PLAIN, load_registry, print_json
from minerua.errors import LearningStopped, MineruaError, PoolTimeout, RunCancelled, StepFailed
from minerua.learning.command import Doors, add_train

__all__ = ["app", "frame", "main"]

app = typer.Typer(name="minerua", help="Learn skills, merge the models that have them, evolve the merges.", **PLAIN)


def main() -> None:
    """Runs the command line and leaves with its exit code; the entry point of `minerua`."""
    _start_swiftly()
    try:
        app()
    except MineruaError as error:
        typer.echo(f"minerua: {error}", err=True)
        sys.exit(_exit_code(error))
    finally:
        gc.freeze()  # the system takes everything back at once; a last search for garbage would only delay it


def _exit_code(error: MineruaError) -> int:
    """Returns 2 for a user's mistake, 1 for what went wrong on the way, and of a signal what shells make of it."""
    if isinstance(error, LearningStopped):
        return 128 + error.signal
    return 1 if isinstance(error, StepFailed | RunCancelled | PoolTimeout) else 2


def _start_swiftly() -> None:
    """Sets what only a process of minerua's own may set, before anything large is imported."""
    # A start makes 180000 objects and hardly any garbage: a collector that looks every 700 takes a tenth of it or more.
    # At 10000, what a long run leaves lying for it is still little.
    gc.set_threshold(10_000)
    # OpenBLAS starts its threads when numpy is imported, and each spins for 2^26 ticks before it sleeps: a processor's
    # time that the core's threads want. 2^4 is the least that it takes; no result depends on it.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")


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


for _command in (demo, evolve, recipes, report, merge, extract, doctor):  # in the order of the help
    app.command()(_command)
add_train(app, Doors(lambda: importlib.import_module("minerua.run.train"), load_registry, print_json))
app.add_typer(plugins, name="plugins")
app.add_typer(chain, name="chain")
