"""What learning takes from plugins: when it is valid, and minerua's own optimizers and losses among it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minerua import LossSpec, ModelSpec, hookimpl
from minerua.learning import plugin
from minerua.registry import Registry

REPOSITORY = Path(__file__).resolve().parent.parent

INVALID = [
    ("minerua_losses", LossSpec("huber", print, count=3), "count of 'huber' is an int, not callable"),  # type: ignore[arg-type]
    ("minerua_models", ModelSpec("m", print, module="x"), "module of 'm' is a str, not callable"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("hook", "spec", "reason"), INVALID)
def test_a_function_that_is_none_quarantines_its_plugin(hook: str, spec: Any, reason: str) -> None:
    broken = SimpleNamespace(**{hook: hookimpl(specname=hook)(lambda: [spec])})
    (outcome,) = Registry.of(broken).plugins
    assert outcome.status == "quarantined"
    assert reason in str(outcome.reason)


def test_both_functions_may_be_left_out() -> None:
    specs = {"minerua_losses": [LossSpec("l", print)], "minerua_models": [ModelSpec("m", print)]}
    hooks = {name: hookimpl(specname=name)(lambda found=found: found) for name, found in specs.items()}
    assert Registry.of(SimpleNamespace(**hooks)).problems == ()


def test_our_own_optimizers_and_losses_are_valid_and_have_the_usual_names() -> None:
    registry = Registry.of(plugin)
    assert registry.problems == ()
    assert {"sgd", "adam", "adamw", "adafactor", "muon", "rmsprop"} <= set(registry.optimizers)
    assert {"cross-entropy", "mse", "l1", "huber", "binary-cross-entropy", "kl-divergence"} <= set(registry.losses)


def test_they_reach_the_registry_through_the_packages_own_entry_point() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    entries = re.findall(r"^\[project\.entry-points\.minerua\]\n((?:.+\n)+)", text, re.MULTILINE)[0]
    assert f'minerua-learning = "{plugin.__name__}"' in entries


@pytest.mark.parametrize("name", ["lion", "focal-loss"])
def test_an_example_plugin_names_its_module_and_packs_it(name: str) -> None:
    folder = REPOSITORY / "plugins" / f"minerua-{name}"
    module = f"minerua_{name.replace('-', '_')}"
    text = (folder / "pyproject.toml").read_text("utf-8")
    assert f'{name} = "{module}"' in text
    assert f'include = ["{module}.py"]' in text
    assert (folder / f"{module}.py").is_file()


def test_naming_them_imports_no_torch(run_python: Any) -> None:
    script = "import sys, minerua.learning.plugin as p; p.minerua_optimizers(); p.minerua_losses()"
    done = run_python("-c", f"{script}; print('torch' in sys.modules)")
    assert (done.stdout.strip(), done.stderr) == ("False", "")
