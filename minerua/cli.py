"""The command line: one short function per command, each importing what it needs when it runs.

Exit codes: 0 done; 1 a step of a chain failed; 2 a user's mistake; each with one message on stderr and no traceback;
130 stopped by Ctrl-C.
A command raises a `MineruaError` for a user's mistake and returns for success; `main` does the rest.
"""

# No `from __future__ import annotations`: typer reads every command's annotations at every start, and texts, which it
# evaluates twice, take it three times as long.

import contextlib
import functools
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minerua import __version__
from minerua.errors import MineruaError, PluginError, PoolTimeout, RunCancelled, StepFailed
from minerua.learning.command import Doors, add_train

if TYPE_CHECKING:
    from minerua.chain.manager import SkillChainManager
    from minerua.chain.running.executor import Result
    from minerua.merge.engine import Activations
    from minerua.registry import Plugin, Registry
    from minerua.report import Preflight, Summary
    from minerua.run import Progress

# Plain help and plain errors: rich would add its import to every call, and pretty exceptions hide the cause.
PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False}

app = typer.Typer(name="minerua", help="Learn skills, merge the models that have them, evolve the merges.", **PLAIN)
plugins = typer.Typer(help="See which plugins are installed and what they provide.", **PLAIN)
app.add_typer(plugins, name="plugins")
chain = typer.Typer(help="Run chains of skills, see how they are planned, check how they are written.", **PLAIN)
app.add_typer(chain, name="chain")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program instead of text for a person.")]


def main() -> None:
    """Runs the command line and leaves with its exit code; the entry point of `minerua`."""
    _start_swiftly()
    try:
        app()
    except MineruaError as error:
        typer.echo(f"minerua: {error}", err=True)
        sys.exit(1 if isinstance(error, StepFailed | RunCancelled | PoolTimeout) else 2)
    finally:
        gc.freeze()  # the system takes everything back at once; a last search for garbage would only delay it


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


# ── evolution ────────────────────────────────────────────────────────────────────────────────────────────────────────


class VariantName(str, Enum):
    """The variants of CycleQD that `demo` offers."""

    minerua = "minerua"
    paper = "paper"
    repo = "repo"


@app.command()
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


@app.command()
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


@app.command()
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


# ── merging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class SemanticsName(str, Enum):
    """Whom `merge` follows where mergekit and a method's paper differ."""

    mergekit = "mergekit"
    paper = "paper"


@app.command()
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


def _open_activations(model: str, tasks: Sequence[str], *, registry: "Registry") -> "Activations":
    from minerua.run.activations import open_activations  # with it comes all that evolves, which few merges need

    return open_activations(model, tasks, registry=registry)


@app.command()
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


# ── chains ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ChainFile = Annotated[Path, typer.Argument(metavar="CHAIN.yaml", help="The chain.")]
Inputs = Annotated[list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="An input; of arrays a .npy.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="STEP.KEY=VALUE", help="Another setting.")]
Tune = Annotated[bool, typer.Option("--tune", help="First measure with these inputs, and keep what was measured.")]


@chain.command("run")
def run_chain(
    path: ChainFile,
    *,
    inputs: Inputs = None,
    outputs: Annotated[list[str] | None, typer.Option("--output", metavar="NAME", help="Only this output.")] = None,
    settings: Settings = None,
    tune: Tune = False,
    timeout: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="How long the run may take.")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Where to write what ran when.")] = None,
    as_json: AsJson = False,
) -> None:
    """Runs a chain once and prints its outputs."""
    from minerua.chain.requests import read_inputs, requested_outputs, write_trace

    with _open_chain(path, settings) as (manager, name):
        graph = manager.graph(name)
        wanted = requested_outputs(graph, outputs)
        given = read_inputs(graph, inputs or ())
        if tune:
            manager.tune(name, [given])
        result = manager.run(name, given, outputs=wanted, timeout_seconds=timeout)
        if trace is not None:
            write_trace(result.trace, trace)
        _print_result(result, as_json=as_json)


@chain.command("explain")
def explain_chain(
    path: ChainFile,
    *,
    inputs: Inputs = None,
    settings: Settings = None,
    tune: Tune = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prints how a chain would be run and why: before and after, every pass with its gain, the critical path."""
    from minerua.chain.planning.explain import plan_document
    from minerua.chain.requests import read_inputs

    with _open_chain(path, settings) as (manager, name):
        graph = manager.graph(name)
        given = read_inputs(graph, inputs or ()) if inputs or tune else None
        plan = manager.tune(name, [given]) if tune and given is not None else manager.plan(name, example=given)
        if as_json:
            print_json(plan_document(plan))
        else:
            typer.echo(manager.explain(name, as_mermaid=mermaid))


@chain.command("check")
def check_chain(path: ChainFile, *, settings: Settings = None) -> None:
    """Fails, naming every fault, if a chain cannot be run as it is written."""
    with _open_chain(path, settings) as (manager, name):
        typer.echo(f"no fault: chain {name!r} with {len(manager.graph(name).steps)} steps")


@contextlib.contextmanager
def _open_chain(path: Path, settings: Sequence[str] | None) -> "Iterator[tuple[SkillChainManager, str]]":
    """Yields what runs the chain of a file, and its name; says on stderr what there is to say about its profile."""
    from minerua.chain.manager import SkillChainManager
    from minerua.chain.requests import with_settings
    from minerua.chain.writing.chain import SkillChain

    registry = load_registry()
    manager = SkillChainManager(registry.skills, models=registry.models)
    try:
        name = manager.load(with_settings(SkillChain.load(path), settings or ()), path=path)
        for note in manager.notes(name):
            typer.echo(f"note: {note}", err=True)
        yield manager, name
    finally:
        manager.close(timeout_seconds=1.0)  # who waits at a terminal waits no longer for what does not stop


def _print_result(result: "Result", *, as_json: bool) -> None:
    from minerua.chain.requests import as_json as in_json
    from minerua.chain.requests import as_text

    if as_json:
        print_json({"outputs": in_json(result), "absent": list(result.absent)})
        return
    for name, value in result.items():
        typer.echo(f"{name}: {as_text(value)}")
    for name in result.absent:
        typer.echo(f"{name}: absent")


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


# ── shared by the commands ───────────────────────────────────────────────────────────────────────────────────────────


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


add_train(app, Doors(lambda: importlib.import_module("minerua.run.train"), load_registry, print_json))
