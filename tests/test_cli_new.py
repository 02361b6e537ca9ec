"""`minerua plugins new` and `minerua plugins exam` as authors meet them: a process, its exit code, its outputs."""

from __future__ import annotations

import json
from typing import Any

import pytest

LOSS = """
    from minerua import LossSpec, hookimpl

    print("a plugin that talks while it is imported")

    def call(predictions, targets):
        return (predictions - targets).square().mean() * {factor}

    @hookimpl
    def minerua_losses():
        return [LossSpec("{name}", call, lambda targets: targets.numel())]
"""


@pytest.fixture
def minerua(run_python: Any, site_packages: Any) -> Any:
    """Runs `minerua` with arguments, with the plugins of `site_packages` installed."""

    def run(*arguments: str) -> Any:
        return run_python("-m", "minerua", *arguments, path=site_packages.folder, MINERUA_PLUGINS_DISABLED="")

    return run


def test_a_new_plugin_is_written_and_the_next_commands_are_told(minerua: Any, tmp_path: Any) -> None:
    done = minerua("plugins", "new", "acme-new", "--kind", "loss", "--out", str(tmp_path / "made"))
    assert (done.returncode, done.stderr) == (0, "")
    head, *commands = done.stdout.splitlines()
    assert head.startswith(
        f"wrote {tmp_path / 'made'} with .github/workflows/tests.yml, .gitignore, README.md, acme_new.py,"
    )
    assert commands == [f"  cd {tmp_path / 'made'}", '  pip install -e ".[test]"', "  pytest"]


def test_a_mistake_leaves_with_2_and_every_fault(minerua: Any, tmp_path: Any) -> None:
    done = minerua("plugins", "new", "Acme", "--kind", "los", "--out", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("minerua: the plugin cannot be written\n  - the name 'Acme' is not lower-case words")
    assert len(done.stderr.splitlines()) == 4


def test_an_exam_that_is_passed_leaves_with_0_and_one_that_is_not_with_1(minerua: Any, site_packages: Any) -> None:
    site_packages.install("acme-good", good=LOSS.format(name="good-loss", factor="1").replace("print", "str"))
    site_packages.install("acme-bad", bad=LOSS.format(name="bad-loss", factor="-1"))
    done = minerua("plugins", "exam", "acme-good", "--only", "loss/*")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "exam of acme-good: 7 passed\n"
    done = minerua("plugins", "exam", "good", "bad", "--only", "loss/*/finite", "--only", "plugin/*/import-effects")
    assert done.returncode == 1
    assert "exam of good: 2 passed\nexam of bad: 2 failed\n" in done.stdout
    assert "loading it printed 'a plugin that talks while it is imported'" in done.stdout
    assert "the loss of predictions that are partly wrong is -" in done.stdout


def test_an_exam_is_json_for_programs_even_if_a_plugin_prints(minerua: Any, site_packages: Any) -> None:
    site_packages.install("acme-bad", bad=LOSS.format(name="bad-loss", factor="-1"))
    done = minerua("plugins", "exam", "acme-bad", "--only", "loss/*/finite", "--json")
    assert done.returncode == 1
    value = json.loads(done.stdout)
    assert (value["passed"], value["exams"][0]["target"]) == (False, "acme-bad")
    assert value["exams"][0]["verdicts"][0]["status"] == "failed"


def test_an_exam_of_nobody_leaves_with_2_and_the_nearest_name(minerua: Any, site_packages: Any) -> None:
    site_packages.install("acme-good", good=LOSS.format(name="good-loss", factor="1"))
    done = minerua("plugins", "exam", "acme-god")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no installed plugin is named 'acme-god'; did you mean 'acme-good'" in done.stderr
