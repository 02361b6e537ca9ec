"""The authors' guide: a section per hook with its exact arguments, every field, switch and command; true examples."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from pathlib import Path

import pytest

from minerua import hookspecs, registry
from minerua.cli.installation import plugins as commands
from minerua.conformance import Sample, examine
from minerua.registry import KINDS, Registry

GUIDE = (Path(__file__).resolve().parent.parent.parent / "plugins" / "README.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^### `(.+?)`\n(.*?)(?=^##|\Z)", GUIDE, re.DOTALL | re.MULTILINE))
COMMON = {"name"}
"""Fields that the rules of the house describe for all specs."""


def signature(hook: str) -> str:
    return f"{hook}({', '.join(inspect.signature(getattr(hookspecs, hook)).parameters)})"


def example(hook: str) -> types.ModuleType:
    """The example of a hook's section, as a module."""
    (source,) = re.findall(r"^```python\n(.*?)^```$", SECTIONS[signature(hook)], re.DOTALL | re.MULTILINE)
    module = types.ModuleType("my_plugin")
    exec(compile(source, "plugins/README.md", "exec"), vars(module))
    return module


def test_every_hook_has_a_section_with_its_exact_arguments_and_there_is_no_other() -> None:
    assert list(SECTIONS) == [signature(kind.hook) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.hook)
def test_every_field_of_a_spec_is_spoken_of_in_the_section_of_its_hook(kind: registry.Kind) -> None:
    spoken = set(re.findall(r"`(\w+)(?:=[^`]*)?`", SECTIONS[signature(kind.hook)]))
    assert {field.name for field in dataclasses.fields(kind.spec)} - spoken - COMMON == set()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.hook)
def test_the_example_of_a_hook_is_a_plugin_that_passes_its_exam(kind: registry.Kind) -> None:
    module = example(kind.hook)
    loaded = Registry.of(module)
    assert (loaded.problems, loaded.notices) == ((), ())
    (name,) = getattr(loaded, kind.attribute)
    samples = {"last-digit": Sample(model=lambda number: number % 10)} if name == "last-digit" else {}
    report = examine(module, samples=samples)
    assert [str(problem) for problem in report.problems] == []


def test_every_switch_is_documented_and_no_other() -> None:
    switches = {getattr(registry, name) for name in registry.__all__ if name.endswith("_VARIABLE")}
    table = GUIDE[GUIDE.index("| variable |") :]
    assert set(re.findall(r"^\| `(MINERUA_\w+)` \|", table, re.MULTILINE)) == switches
    assert set(re.findall(r"`(MINERUA_\w+)`", GUIDE)) == switches


def test_every_command_about_plugins_is_documented_and_no_other() -> None:
    import minerua.cli  # what adds the commands for authors

    assert minerua.cli.app
    table = set(re.findall(r"^\| `minerua plugins (\w+)` \|", GUIDE, re.MULTILINE))
    assert table == {command.name for command in commands.registered_commands}


def test_the_way_from_an_empty_folder_is_of_commands_that_exist() -> None:
    (lines,) = re.findall(r"^## From an empty folder.*\n\n((?:    .*\n)+)", GUIDE, re.MULTILINE)
    spoken = re.findall(r"minerua plugins (\w+)", lines)
    assert spoken == ["new", "exam"]
    assert set(spoken) <= {command.name for command in commands.registered_commands}
