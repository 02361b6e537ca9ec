"""The commands that merge, and take apart what was merged or tuned: `merge` and `extract`."""

# No `from __future__ import annotations`: README.md says why.

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minerua.cli.shared import AsJson, load_registry, print_json, print_table

if TYPE_CHECKING:
    from minerua.merge.engine import Activations
    from minerua.registry import Registry


class SemanticsName(str, Enum):
    """Whom `merge` follows where mergekit and a method's paper differ."""

    mergekit = "mergekit"
    paper = "paper"


def merge(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yml", help="What to merge and how, in mergekit's YAML.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder for the merged model; new or empty.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    shard_size: Annotated[str, typer.Option(help="Largest file of weights, such as 5GB or 500MB.")] = "5GB",
    seed: Annotated[int, typer.Option(min=0, help="Seed of random masks.")] = 0,
    semantics: Annotated[
        SemanticsName | None,
        typer.Option(help="Whom to follow where they differ; default: the recipe says."),
    ] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Wait until the disk itself holds every byte.")] = False,
    as_json: AsJson = False,
) -> None:
    """Merges models as a recipe says, tensor by tensor from disk to disk."""
    from minerua.merge.merging import merge_models, prepare_merge

    registry = load_registry()
    prepared = prepare_merge(
        recipe,
        methods=registry.merge_methods,
        shard_size=shard_size,
        seed=seed,
        semantics=None if semantics is None else semantics.value,
        open_activations=functools.partial(_open_activations, registry=registry),
    )
    if not dry_run:
        with _byte_bar("merging") as progress:
            merge_models(prepared, out, sync=sync, progress=progress)
    summary = prepared.summary()
    if as_json:
        print_json(summary)
        return
    print_table([(key.replace("_", " "), str(value)) for key, value in summary.items() if not isinstance(value, list)])
    for note in summary["notes"]:
        typer.echo(f"note: {note}")
    typer.echo("nothing was written" if dry_run else f"The merged model: {out}")


@contextlib.contextmanager
def _byte_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yields what moves a bar of bytes on stderr; `None` where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _open_activations(model: str, tasks: Sequence[str], *, registry: "Registry") -> "Activations":
    from minerua.run.activations import open_activations  # with it comes all that evolves, which few merges need

    return open_activations(model, tasks, registry=registry)


def extract(
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="The fine-tune: a file or a folder of safetensors.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder for the adapter; new or empty.")],
    *,
    base: Annotated[Path, typer.Option(help="The checkpoint that the fine-tune began with.")],
    rank: Annotated[int, typer.Option(min=1, help="The most that a matrix's factors may have.")] = 128,
    energy: Annotated[float | None, typer.Option(help="Share of the squared norm that is enough.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only modules in whose path this is found.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No modules in whose path this is found.")] = None,
    skip: Annotated[bool, typer.Option("--skip", help="Leave out changes that an adapter cannot hold.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the randomised decomposition.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Makes a LoRA adapter of what a fine-tune changed, by a randomised SVD of each matrix."""
    from minerua.merge.adapters.extract import extract as extract_adapter
    from minerua.weights import open_checkpoint

    found = extract_adapter(
        open_checkpoint(base),
        open_checkpoint(tuned),
        out,
        rank=rank,
        energy=energy,
        include=include or (),
        exclude=exclude or (),
        skip_undecomposable=skip,
        seed=seed,
        base_name=str(base),
    )
    if as_json:
        matrices = [vars(one) for one in found.matrices]
        left_out = dict(found.left_out)
        print_json({"lost_fraction": found.lost_fraction, "left_out": left_out, "matrices": matrices})
        return
    rows = [(one.name, str(one.rank), f"{one.lost_fraction:.4%}") for one in found.matrices]
    print_table([("MATRIX", "RANK", "LEFT OUT"), *rows])
    for name, reason in found.left_out.items():
        typer.echo(f"left out: {name}: {reason}")
    typer.echo(f"The adapter: {out}; {found.lost_fraction:.2%} of the change's squared norm is not in it")
