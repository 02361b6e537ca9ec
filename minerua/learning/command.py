"""`minerua train`, for the command line to take up; the command itself imports nothing until it runs."""

# No `from __future__ import annotations`: typer reads every command's annotations at every start, and texts, which it
# evaluates twice, take it three times as long.

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from minerua.learning.reports import Learned

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to learn and how.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; default: the file's name without its end.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run stopped; begin if there is none.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value, as YAML.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text for a person.")]


class Doors(NamedTuple):
    """What the command needs from outside this room.

    Args:
        training: Imports and returns the module whose `execute_training` carries out a file.
        load_registry: Loads all plugins.
        print_json: Prints a mapping as JSON.
    """

    training: Callable[[], Any]
    load_registry: Callable[[], Any]
    print_json: Callable[[Mapping[str, Any]], None]


def add_train(app: typer.Typer, doors: Doors) -> None:
    """Adds the command `train` to a command line."""

    @app.command()
    def train(
        config: ConfigFile,
        *,
        out: Out = None,
        resume: Resume = False,
        settings: Settings = None,
        as_json: AsJson = False,
    ) -> None:
        """Learns a model, or several experts, as a file says."""
        learned = doors.training().execute_training(
            config, registry=doors.load_registry(), out=out, resume=resume, settings=settings or ()
        )
        if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks for all
            _print(learned, doors, as_json=as_json)


def _print(learned: "Sequence[Learned]", doors: Doors, *, as_json: bool) -> None:
    if as_json:
        doors.print_json({"learned": [_plain(one) for one in learned]})
        return
    from minerua.learning.watching import outcome_text

    typer.echo(outcome_text(learned))


def _plain(one: "Learned") -> dict[str, Any]:
    return {
        "name": one.name,
        "model": str(one.model),
        "step": one.step,
        "epoch": one.epoch,
        "best_step": one.best_step,
        "best_metrics": dict(one.best_metrics),
        "test_metrics": dict(one.test_metrics),
        "stopped": one.stopped,
        "skipped_steps": one.skipped_steps,
        "already_done": one.already_done,
    }
