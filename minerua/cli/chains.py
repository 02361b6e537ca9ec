"""The commands around chains: `chain run`, `chain explain` and `chain check`."""

# No `from __future__ import annotations`: README.md says why.

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minerua.cli.shared import PLAIN, AsJson, load_registry, print_json
from minerua.errors import ConfigError

if TYPE_CHECKING:
    from minerua.chain.manager import SkillChainManager
    from minerua.chain.running.executor import Result

chain = typer.Typer(help="Run chains of skills, see how they are planned, check how they are written.", **PLAIN)

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
    from minerua.chain.requests import check_timeout, check_trace, read_inputs, requested_outputs, write_trace

    check_timeout(timeout)
    if trace is not None:
        check_trace(trace)
    with _open_chain(path, settings) as (manager, name):
        graph = manager.graph(name)
        wanted = requested_outputs(graph, outputs)
        given = read_inputs(graph, inputs or ())
        if tune:
            _tune(manager, name, given, path)
        result = manager.run(name, given, outputs=wanted, timeout_seconds=timeout)
        _print_result(result, as_json=as_json)
        if trace is not None:
            write_trace(result.trace, trace)


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

    if mermaid and as_json:
        raise ConfigError("--json and --mermaid are two forms of the same; leave one out")
    with _open_chain(path, settings) as (manager, name):
        graph = manager.graph(name)
        given = read_inputs(graph, inputs or ()) if inputs or tune else None
        if tune and given is not None:
            _tune(manager, name, given, path)
        plan = manager.plan(name, example=given)
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


def _tune(manager: "SkillChainManager", name: str, given: Mapping[str, Any], path: Path) -> None:
    """Measures a chain on one example, once it is sure that what is measured can be kept."""
    from minerua.chain.manager import profile_path
    from minerua.chain.requests import check_place

    check_place(profile_path(path), "profile")
    manager.tune(name, [given])


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
