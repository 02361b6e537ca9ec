"""Documents are tests: what a README says of commands, hooks, settings, events, files and code is what there is."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
import yaml

from minerua import hookspecs, values
from minerua.cli import app
from minerua.config import EvolutionConfig, ModelConfig, RunConfig, SplitsConfig, TaskConfig, validate
from minerua.evaluation import Evaluation, deal
from minerua.evolution import decode_outcome
from minerua.evolution.variants import VARIANTS
from minerua.merge.merging import merge_tensors
from minerua.merge.recipes.recipe import parse_recipes
from minerua.registry import KINDS, Registry
from minerua.values import Scores

from .run.conftest import make_world

if sys.version_info >= (3, 11):
    import tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "minerua"
GENERATED = {"build", "dist", "demo", "node_modules"}
PLUGINS = sorted(path.parent.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("plugins/*/pyproject.toml"))
DOCUMENTS = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not any(part.startswith(".") or part in GENERATED for part in path.relative_to(REPOSITORY).parts)
)
MADE_BY_USERS = {"run.yaml", "chain.yaml"}
"""Files that READMEs speak of and that a user writes."""


def document(path: str) -> str:
    return (REPOSITORY / path).read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Returns the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def rows(text: str, first: str) -> list[dict[str, str]]:
    """Returns the rows of every table whose first column has this title, each as title → cell."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        titles, _, *lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
        if titles[0].strip() == first:
            found += [dict(zip([title.strip("| ") for title in titles], line, strict=True)) for line in lines]
    return found


def quoted(cell: str) -> list[str]:
    """Returns the words of a cell that stand in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def named(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


# ── the front page ───────────────────────────────────────────────────────────────────────────────────────────────────


def shell_commands() -> list[str]:
    return [block.strip() for block in blocks(document("README.md"), "sh")]


def test_the_readme_has_two_commands_one_to_try_it_and_one_to_develop_it() -> None:
    try_it, develop = shell_commands()
    for command in (try_it, develop):
        assert "\n" not in command
        assert "pip install -c constraints.txt " in command
    assert try_it.endswith("&& minerua demo")
    assert develop.endswith("&& pytest")
    assert ' -e ".[test]"' in develop


@pytest.mark.parametrize("command", shell_commands())
def test_every_path_that_a_command_of_the_readme_names_exists(command: str) -> None:
    install = re.findall(r"pip install ([^&]+)", command)[0].split()
    paths = [word.strip('"').partition("[")[0] for word in install if not word.startswith("-")]
    plugins = ["plugins/minerua-digits"] if command == shell_commands()[0] else PLUGINS
    assert sorted(paths) == sorted(["constraints.txt", ".", *(f"./{plugin}" for plugin in plugins)])
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    projects = [REPOSITORY / path for path in paths if path != "constraints.txt"]
    assert all((project / "pyproject.toml").is_file() for project in projects)


def test_the_continuous_integration_runs_both_commands_as_they_stand() -> None:
    script = document(".ci/run")
    function = re.search(r"^readme_command\(\) \{.*?^\}", script, re.DOTALL | re.MULTILINE)
    assert function
    for number, command in enumerate(shell_commands(), 1):
        assert f'"$(readme_command {number})"' in script
        call = ["bash", "-c", f"{function[0]}\nreadme_command {number}"]
        printed = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == command


def test_the_recipe_of_the_readme_is_valid() -> None:
    (recipe,) = parse_recipes(blocks(document("README.md"), "yaml")[0], where="README.md")
    assert [reference.text for reference in recipe.references][1] == "models/base+adapters/chat"


def test_the_run_file_of_the_readme_is_valid() -> None:
    block = blocks(document("README.md"), "yaml")[1]
    config, faults = validate(yaml.safe_load(block))
    assert faults == []
    assert config is not None
    assert config.minerua == 1


def test_the_files_that_a_run_is_said_to_leave_are_those_that_it_leaves(finished_run: Path) -> None:
    said = {name for row in rows(document("README.md"), "file") for name in quoted(row["file"])}
    assert said == {path.name for path in finished_run.iterdir()} - {"run.yaml", "base.safetensors", "experts"}


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yields every command that does something, with its options."""
    command = typer.main.get_command(app) if command is None else command
    options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    children = getattr(command, "commands", {})
    if options or not children:
        yield " ".join(["minerua", *path]), options
    for name, child in children.items():
        yield from commands(child, (*path, name))


COMMANDS = dict(commands())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_on_the_front_page(command: str) -> None:
    text = document("README.md")
    assert re.search(rf"`{command}\b", text)
    lines = [line for line in text.splitlines() if f"`{command}" in line]
    spoken = {word for line in lines for word in quoted(line)} | {"--json"}
    missing = [option for option in COMMANDS[command] if option not in spoken and option not in words_of(spoken)]
    assert missing == []
    assert "`--json` where a program reads the answer" in text


def words_of(texts: set[str]) -> set[str]:
    return {word for text in texts for word in text.split()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_command_that_a_document_names_exists(path: Path) -> None:
    for code in re.findall(r"`(minerua [^`]+)`", path.read_text("utf-8")):
        names = re.findall(r"^minerua((?: [a-z]+)*)", code)[0].split()
        known = [command for command in COMMANDS if code.startswith(command)]
        longest = max(known, key=len)
        assert names == [] or longest != "minerua", f"{code}: no such command"
        assert [o for o in re.findall(r"--[a-z-]+", code) if o not in COMMANDS[longest]] == [], code


# ── plugins ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_manual_of_plugins_has_every_hook_with_its_arguments_and_its_spec_and_nothing_else() -> None:
    said = {quoted(row["hook"])[0]: quoted(row["returns"])[0] for row in rows(document("plugins/README.md"), "hook")}
    hooks = {n: f for n, f in vars(hookspecs).items() if n.startswith("minerua_") and inspect.isfunction(f)}
    signatures = {name: inspect.signature(hook) for name, hook in hooks.items()}
    there = {
        f"{name}({', '.join(signature.parameters)})": signature.return_annotation
        for name, signature in signatures.items()
    }
    assert said == there


def test_the_manual_of_plugins_has_every_function_of_every_spec_with_its_arguments() -> None:
    table = rows(document("plugins/README.md"), "spec")
    said = {(quoted(row["spec"])[0], quoted(row["field"])[0], "optional" in row["field"]) for row in table}
    there = {(kind.spec.__name__, field, False) for kind in KINDS for field in kind.callables}
    there |= {(kind.spec.__name__, field, True) for kind in KINDS for field in kind.optional}
    assert said == there
    for row in table:
        if row["spec"] != "`Skill`":  # called with whatever inputs it describes
            assert row["called as"] in str(getattr(values, quoted(row["spec"])[0]).__doc__)


def plugin_of_the_manual(hook: str) -> Registry:
    (source,) = [block for block in blocks(document("plugins/README.md"), "python") if f"def {hook}(" in block]
    plugin = types.ModuleType("my_plugin")
    exec(compile(source, "plugins/README.md", "exec"), vars(plugin))
    registry = Registry.of(plugin)
    assert not registry.problems
    return registry


def test_the_merge_method_of_the_manual_merges_by_recipe() -> None:
    recipe = "{merge_method: clip, base_model: base, models: [{model: a}], parameters: {limit: 0.25}}"
    models = {name: {"w": np.full(3, value, np.float32)} for name, value in (("base", 1.0), ("a", 2.0))}
    merged = merge_tensors(recipe, models, methods=plugin_of_the_manual("minerua_merge_methods").merge_methods)
    assert merged["w"].tolist() == [1.25] * 3


def test_the_plugin_of_the_manual_loads_and_scores_a_model() -> None:
    registry = plugin_of_the_manual("minerua_evaluators")
    tasks = deal([registry.evaluators["last-digit"]], SplitsConfig().fractions, seed=0)
    right = Evaluation(tasks).score("right", lambda: lambda number: number % 10)
    wrong = Evaluation(tasks).score("wrong", lambda: lambda number: -1)
    assert isinstance(right, Scores)
    assert isinstance(wrong, Scores)
    assert (right.mean, wrong.mean) == (1.0, 0.0)


def test_the_entry_point_of_the_manual_is_the_group_that_is_read() -> None:
    (block,) = blocks(document("plugins/README.md"), "toml")
    own = re.findall(r"^\[project\.entry-points\.\w+\]$", document("pyproject.toml"), re.MULTILINE)
    assert block.splitlines()[0] == own[0]


# ── the run file's keys ──────────────────────────────────────────────────────────────────────────────────────────────

SECTIONS = {"": RunConfig, "model.": ModelConfig, "tasks.": TaskConfig, " ": EvolutionConfig, "  ": SplitsConfig}
VARIES = set(VARIANTS["paper"].__dataclass_fields__)


def settings() -> dict[str, dict[str, str]]:
    return {quoted(row["key"])[0]: row for row in rows(document("minerua/run/README.md"), "key")}


def test_every_key_of_a_run_file_is_documented_and_no_other() -> None:
    keys = [prefix.strip() + key for prefix, section in SECTIONS.items() for key in section.model_fields]
    assert list(settings()) == keys
    assert all(row["meaning"] and row["type"] for row in settings().values())


@pytest.mark.parametrize("key", [*RunConfig.model_fields, *SplitsConfig.model_fields])
def test_the_documented_default_of_a_key_is_its_default(key: str) -> None:
    field = (RunConfig.model_fields | SplitsConfig.model_fields)[key]
    said = settings()[key]["default"]
    if field.is_required():
        assert said == "required"
    elif key in ("evolution", "splits"):
        assert said == "see below"
    else:
        assert yaml.safe_load(quoted(said)[0]) == field.default


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("key", EvolutionConfig.model_fields)
def test_the_documented_setting_of_a_variant_is_its_setting(key: str, variant: str) -> None:
    said = settings()[key][f"`{variant}`"]
    default = getattr(VARIANTS[variant], key) if key in VARIES else EvolutionConfig.model_fields[key].default
    if default is None:
        assert said == "none"
    else:
        found = yaml.safe_load(quoted(said)[0])
        assert (tuple(found) if isinstance(found, list) else found) == default


@pytest.mark.parametrize("key", EvolutionConfig.model_fields)
def test_the_documented_choices_of_a_key_are_those_that_are_taken(key: str) -> None:
    annotation = EvolutionConfig.model_fields[key].annotation
    parts = [annotation, *typing.get_args(annotation)]
    choices = [c for part in parts if typing.get_origin(part) is typing.Literal for c in typing.get_args(part)]
    if choices:
        assert quoted(settings()[key]["type"]) == choices
    if bool in parts:
        assert quoted(settings()[key]["type"]) == ["true", "false"]


# ── the journal ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run whose every third child fails."""
    world = make_world(tmp_path_factory.mktemp("documents"))
    plugin = world.site_packages / "toy_plugin.py"
    line = "        inputs, labels = _problem(task)\n"
    fault = "        if task == 1 and int(abs(model(inputs)).sum() * 1000) % 3 == 0:\n            raise ValueError\n"
    assert line in plugin.read_text()
    plugin.write_text(plugin.read_text().replace(line, line + fault))
    done = world.minerua("evolve", str(world.run_file))
    assert done.returncode == 0, done.stderr
    return world.folder


def test_the_events_and_fields_of_the_journal_are_those_that_a_run_writes(finished_run: Path) -> None:
    outcome = {"scores", "failed"}
    written: dict[str, set[str]] = {}
    for line in (finished_run / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        fields = set(event) - {"event"}
        written.setdefault(event["event"], set()).update({"an outcome"} if fields & outcome else {}, fields - outcome)
    table = rows(document("minerua/evolution/README.md"), "event")
    said = {quoted(row["event"])[0]: set(quoted(row["fields"])) for row in table}
    for row in table:
        said[quoted(row["event"])[0]] |= {"an outcome"} if "an outcome" in row["fields"] else set()
    assert said == written
    assert list(said) == list(written)  # in this order


def test_the_parts_of_an_event_are_as_the_journal_s_document_says(finished_run: Path) -> None:
    events = [json.loads(line) for line in (finished_run / "journal.jsonl").read_text().splitlines()]
    text = document("minerua/evolution/README.md")
    asked = next(event for event in events if event["event"] == "ask")
    (row,) = [row for row in rows(text, "event") if row["event"] == "`ask`"]
    assert set(asked["children"][0]) == set(quoted(row["what they hold"]))
    outcomes = [event for event in events if "scores" in event or "failed" in event]
    assert any("failed" in event for event in outcomes)
    for key in {key for event in outcomes for score in event.get("scores", {}).values() for key in score}:
        assert f"`{key}`" in text
    digest = re.compile("[0-9a-f]{32}")
    assert digest.fullmatch(events[0]["base"])
    assert all(map(digest.fullmatch, events[0]["experts"].values()))
    assert events[-1]["best"] in {event["digest"] for event in events if event["event"] == "candidate"}
    assert decode_outcome(outcomes[-1])


# ── rooms, files, links ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_room_has_a_document_at_its_door_and_the_map_leads_there() -> None:
    rooms = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__"))
    assert [room for room in rooms if not (PACKAGE / room / "README.md").is_file()] == []
    text = document("minerua/README.md")
    assert [room for room in rooms if f"]({room}/README.md)" not in text] == []


@pytest.mark.parametrize("room", sorted(path.parent for path in PACKAGE.glob("*/README.md")), ids=named)
def test_the_table_of_a_room_has_every_file_in_it(room: Path) -> None:
    table = rows((room / "README.md").read_text("utf-8"), "file")
    if room.name == "kernels":  # its table has functions, which is what its readers look for
        assert not table
        return
    said = [name for row in table for name in quoted(row["file"])]
    files = {path.relative_to(room).as_posix() for path in room.rglob("*") if path.is_file()}
    files = {name for name in files if "__" not in name}
    assert sorted(said) == sorted(files - {"README.md"})


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_inside_the_repository_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8"))
    inside = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in inside if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_file_that_a_document_names_exists(path: Path) -> None:
    files = set(re.findall(r"`([\w./-]+\.(?:py|pyi|md|yaml|toml|cpp|hpp|cu|h))`", path.read_text("utf-8")))
    homes = (path.parent, REPOSITORY, PACKAGE, path.parent / "core", path.parent / "cuda", path.parent / "isa")
    assert [f for f in sorted(files - MADE_BY_USERS) if not any((home / f).exists() for home in homes)] == []


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path.read_text("utf-8"), "python")], ids=named)
def test_the_python_of_a_document_runs(
    path: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for source in blocks(path.read_text("utf-8"), "python"):
        exec(compile(source, str(path), "exec"), {"__name__": "__main__"})


# ── examples and pins ────────────────────────────────────────────────────────────────────────────────────────────────

WITH_EXAMPLES = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text("utf-8") and "kernels" not in path.parts
]
"""Modules with examples, except those that change the number of threads: `tests/kernels/test_examples.py` has them."""


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_in_the_docstrings_are_right(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads TOML")
def test_every_dependency_is_pinned_and_every_pin_satisfies_its_requirement() -> None:
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)$", document("constraints.txt"), re.MULTILINE))
    assert pins["torch"] == "2.13.0"
    known = {re.sub("[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for path in ("pyproject.toml", *(f"{plugin}/pyproject.toml" for plugin in PLUGINS)):
        for name, least in requirements(tomllib.loads(document(path))):
            if name not in ("minerua", "hatchling"):
                assert name in known, f"{path}: {name} is not pinned in constraints.txt"
                assert version(known[name]) >= version(least), f"{path}: {name} {known[name]} is below {least}"


def requirements(project: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields normalised name and least version of everything that a project needs to be built, used and tested."""
    listed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"].get("optional-dependencies", {}).values():
        listed += extra
    for requirement in listed:
        name, least = re.fullmatch(r"([\w.-]+?)(?:\[\w+\])?(?:[>=]=([\d.]+))?", requirement).groups()  # type: ignore[union-attr]
        yield re.sub("[-_.]+", "-", name).lower(), least or "0"


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
