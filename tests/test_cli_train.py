"""`minerua train` as its users meet it: exit codes, both outputs, signals, and what is never imported."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.testing
import yaml

from minerua.cli import app
from minerua.errors import ConfigError, MineruaError
from minerua.registry import Registry
from minerua.run.train import execute_training, read_training
from minerua.weights import open_checkpoint

from .conftest import REPOSITORY, SitePackages

PLUGIN = """
    import time

    from minerua import LossSpec, ModelSpec, OptimizerSpec, hookimpl

    @hookimpl
    def minerua_models():
        def module(width=8, seconds=0.0):
            from torch import nn

            class Slow(nn.Sequential):
                def forward(self, x):
                    time.sleep(seconds)
                    return super().forward(x)

            return Slow(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))

        return [ModelSpec("toy-mlp", build=dict, module=module)]

    @hookimpl
    def minerua_losses():
        def call(predictions, targets):
            from torch import nn
            return nn.functional.cross_entropy(predictions, targets)

        return [LossSpec("toy-entropy", call)]

    @hookimpl
    def minerua_optimizers():
        def build(parameters, **settings):
            from torch import optim
            return optim.SGD(parameters, **settings)

        return [OptimizerSpec("toy-sgd", build)]
"""

PLAIN: dict[str, Any] = {
    "minerua": 1,
    "model": "toy-mlp",
    "loss": "toy-entropy",
    "optimizer": {"name": "toy-sgd", "rate": 0.1},
    "epochs": 2,
    "metrics": ["accuracy"],
    "data": {"table": {"path": "rows.csv", "inputs": ["a", "b", "c"], "label": "kind"}},
    "device": {"name": "cpu", "threads": 1},
}


@pytest.fixture
def world(site_packages: SitePackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table and a training file, and a plugin that is installed."""
    site_packages.install("toy", toy_learning=PLUGIN)
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).standard_normal((120, 3))
    lines = [",".join(f"{value:.4f}" for value in row) + f",{int(row.sum() > 0)}" for row in rows]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,kind", *lines]))
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(PLAIN))
    return tmp_path


def run(*arguments: str) -> tuple[int, str, str]:
    """Runs the command line in this process, as `main` does."""
    done = typer.testing.CliRunner().invoke(app, ["train", *arguments])
    if isinstance(done.exception, MineruaError):
        return 2, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def environment(world: Path) -> dict[str, str]:
    path = os.pathsep.join([str(world / "site-packages"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def test_it_learns_and_says_what_it_learned(world: Path) -> None:
    code, out, err = run("train.yaml")
    assert code == 0, err
    assert "validation accuracy" in out
    assert "train/model.safetensors" in out
    assert "120 rows: 120 used, 0 bad" in err
    assert {"model.safetensors", "learned.json", "steps.csv", "evaluations.csv"} <= {
        p.name for p in (world / "train").iterdir()
    }


def test_its_help_says_what_everything_is() -> None:
    _, out, _ = run("--help")
    text = " ".join(out.split())
    assert "Learns a model, or several experts, as a file says." in text
    assert "What to learn and how." in text
    assert "Folder for the results; default: the file's name without its end." in text
    assert "Go on where the run stopped; begin if there is none." in text
    assert "Another value, as YAML." in text
    assert "Print JSON for a program instead of text for a person." in text


def test_json_is_all_that_a_program_has_to_read(world: Path) -> None:
    code, out, _ = run("train.yaml", "--out", "elsewhere", "--json", "--set", "epochs=1", "--set", "optimizer.rate=0.2")
    (learned,) = json.loads(out)["learned"]
    assert (code, learned["epoch"], learned["model"]) == (0, 1, "elsewhere/model.safetensors")
    assert set(learned["best_metrics"]) == {"loss", "accuracy"}


def test_a_finished_run_is_not_learned_again(world: Path) -> None:
    assert run("train.yaml")[0] == 0
    code, _, err = run("train.yaml")
    assert (code, "holds a training run already" in err) == (2, True)
    assert "(was finished already)" in run("train.yaml", "--resume")[1]


def test_a_finished_run_is_given_its_page_if_it_has_none(world: Path) -> None:
    assert run("train.yaml")[0] == 0
    page = world / "train" / "report.html"
    written = page.read_bytes()
    assert b"toy-mlp" in written
    page.write_text("the reader's own notes")
    assert run("train.yaml", "--resume")[0] == 0
    assert page.read_text() == "the reader's own notes"
    page.unlink()
    code, out, _ = run("train.yaml", "--resume")
    assert (code, "train/report.html" in out) == (0, True)
    assert page.read_bytes() == written


def test_a_page_is_made_of_the_tables_that_are_there(world: Path) -> None:
    assert run("train.yaml", "--out", "bare", "--set", "logs=[]")[0] == 0
    assert not (world / "bare" / "report.html").exists()
    assert run("train.yaml")[0] == 0
    (world / "train" / "report.html").unlink()
    (world / "train" / "evaluations.csv").unlink()
    assert run("train.yaml", "--resume")[0] == 0
    assert "Scores" not in (world / "train" / "report.html").read_text()
    (world / "train" / "report.html").unlink()
    (world / "train" / "steps.csv").write_bytes(b"\xff")
    code, _, err = run("train.yaml", "--resume")
    assert (code, "steps.csv cannot be read for report.html" in err) == (2, True)


def test_experts_are_learned_in_one_go(world: Path) -> None:
    (world / "train.yaml").write_text(yaml.safe_dump({**PLAIN, "experts": {"a": {"seed": 1}, "b": {"epochs": 1}}}))
    assert run("train.yaml")[0] == 0
    assert all((world / "train" / "experts" / name / "report.html").exists() for name in "ab")
    digests = {open_checkpoint(world / "train" / "experts" / name / "model.safetensors").digest for name in "ab"}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.yaml"], "cannot read nowhere.yaml"),
        (["train.yaml", "--set", "epochs"], "--set epochs: write KEY=VALUE, such as optimizer.rate=0.01"),
        (["train.yaml", "--set", "epochs=[1"], "--set epochs=[1: the value is no valid YAML"),
        (["train.yaml", "--set", "epochs=2026-13-45"], "--set epochs=2026-13-45: the value is no valid YAML: month"),
        (["train.yaml", "--set", "epoch=1"], "epoch: unknown key; did you mean 'epochs'?"),
        (["train.yaml", "--set", "loss=toy-entrpy"], "did you mean 'toy-entropy' or 'cross-entropy'?"),
        (["train.yaml", "--set", "data.table.path=no.csv"], "no.csv"),
        (["experts.yaml"], "experts.b.loss.name: no loss is named 'toy-entrpy'; did you mean 'toy-entropy'"),
        (["experts.yaml"], "the experts cannot be learned"),
        (["folder"], "cannot read folder: Is a directory"),
        (["folder/train.yaml"], "cannot read folder/train.yaml: No such file"),
        (["binary.yaml"], "binary.yaml is no valid YAML"),
        (["empty.yaml"], "empty.yaml must hold a mapping of keys, found NoneType"),
        (["train.yaml", "--out", "train.yaml"], "train.yaml cannot be the folder of a run: File exists"),
        (["train.yaml", "--out", "rows.csv"], "rows.csv cannot be the folder of a run: File exists"),
        (["train.yaml", "--out", "rows.csv/below"], "rows.csv/below cannot be the folder of a run: Not a directory"),
        (["plain"], "plain has no end such as .yaml, so its results need a folder of another name: give --out"),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(world: Path, arguments: list[str], expected: str) -> None:
    (world / "plain").write_text(yaml.safe_dump(PLAIN))
    experts = {"a": {"seed": 1}, "b": {"loss": "toy-entrpy"}}
    (world / "experts.yaml").write_text(yaml.safe_dump({**PLAIN, "experts": experts}))
    (world / "folder").mkdir()
    (world / "binary.yaml").write_bytes(bytes(range(256)))
    (world / "empty.yaml").touch()
    before = there(world)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert there(world) == before


def there(world: Path) -> dict[Path, bytes]:
    """Every file of the world with its bytes, and every folder; what Python compiles is left out."""
    found = [one for one in world.rglob("*") if "__pycache__" not in one.parts]
    return {one: one.read_bytes() if one.is_file() else b"" for one in found}


def test_a_file_that_may_not_be_read_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    before = there(world)
    monkeypatch.setattr(Path, "read_text", refused)  # whoever runs the tests may be allowed to read everything
    assert run("train.yaml")[::2] == (2, "cannot read train.yaml: Permission denied")
    monkeypatch.undo()
    assert there(world) == before


def test_a_folder_is_made_with_its_parents_and_a_run_that_is_not_there_begins(world: Path) -> None:
    assert run("train.yaml", "--out", "new/deep/run", "--resume", "--set", "epochs=1")[0] == 0
    assert (world / "new" / "deep" / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_of_another_configuration_is_left_as_it_is(world: Path, is_finished: bool) -> None:
    assert run("train.yaml")[0] == 0
    if not is_finished:
        (world / "train" / "learned.json").unlink()
    before = there(world)
    code, out, err = run("train.yaml", "--resume", "--set", "optimizer.rate=0.2", "--set", "seed=9")
    assert (code, out) == (2, "")
    assert "  - optimizer.rate: " in err
    assert "  - seed: " in err
    after = there(world)
    assert {path: after[path] for path in before} == before
    assert after.keys() - before.keys() <= {world / "train" / ".lock"}


def test_a_finished_run_goes_on_when_there_are_more_epochs(world: Path) -> None:
    assert run("train.yaml", "--set", "epochs=1")[0] == 0
    assert run("train.yaml", "--resume", "--set", "epochs=3")[0] == 0
    assert run("train.yaml", "--set", "epochs=3", "--out", "whole")[0] == 0
    there = {one.name for one in (world / "whole").iterdir()} - {"checkpoints"}
    assert "report.html" in there
    for name in there:
        assert (world / "train" / name).read_bytes() == (world / "whole" / name).read_bytes(), name
    before = (world / "train" / "learned.json").read_bytes()
    assert "(was finished already)" in run("train.yaml", "--resume", "--set", "epochs=2")[1]
    assert (world / "train" / "learned.json").read_bytes() == before


def test_a_file_can_be_carried_out_from_python(world: Path) -> None:
    config = read_training(world / "train.yaml", ["model.settings.width=4"])
    assert config.model.settings == {"width": 4}
    (learned,) = execute_training(world / "train.yaml", registry=Registry.load(), settings=["epochs=1"])
    assert learned.out == world / "train"
    with pytest.raises(ConfigError):
        read_training(world / "rows.csv")


@pytest.mark.slow
def test_a_signal_leaves_130_or_143_and_the_run_goes_on(world: Path) -> None:
    command = [sys.executable, "-m", "minerua", "train", "train.yaml", "--set", "model.settings.seconds=0.2"]
    going = subprocess.Popen(command, env=environment(world), stderr=subprocess.PIPE, text=True, cwd=world)
    deadline = time.monotonic() + 60
    while not list(world.glob("train/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    going.send_signal(signal.SIGTERM)
    _, err = going.communicate(timeout=60)
    assert going.returncode == 143
    assert "minerua: stopped by SIGTERM after step" in err
    assert "Traceback" not in err
    assert list(world.glob("train/checkpoints/step-*-stopped"))
    assert run("train.yaml", "--resume", "--set", "model.settings.seconds=0.2")[0] == 0
