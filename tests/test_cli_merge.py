"""`minerua merge` as its users meet it: exit codes, both outputs, plugins, and what is never imported."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from minerua.errors import StorageError
from minerua.weights import open_checkpoint

from .conftest import run_python
from .merge.folders import contents, put, recipe, run_cli, tensors, write, write_models
from .merge.test_models import write_bin, write_lora
from .run.conftest import make_world


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(*arguments):
    """Runs the command line; asserts that it refuses in the agreed way and returns the lines of its message."""
    code, out, err = run_cli("merge", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("minerua: ")
    assert "Traceback" not in err
    return err.splitlines()


# ── what it says ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_merges_and_says_what_it_did(tmp_path):
    write_models(tmp_path)
    code, out, err = run_cli("merge", put(tmp_path, recipe()), "out")
    assert (code, err) == (0, "")
    rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines() if re.search(r"\s{2,}", line))
    assert (rows["method"], rows["tensors"], rows["layers"]) == ("linear", "7", "2 model.layers")
    assert out.endswith("The merged model: out\n")
    assert open_checkpoint(tmp_path / "out").specs.keys() == tensors().keys()


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    write_models(tmp_path)
    path = put(tmp_path, recipe())
    before = contents(tmp_path)
    code, out, _ = run_cli("merge", path, "out", "--dry-run")
    assert code == 0
    assert out.endswith("nothing was written\n")
    code, out, _ = run_cli("merge", path, "out", "--dry-run", "--json")
    assert json.loads(out)["models"] == ["a", "b"]
    assert contents(tmp_path) == before


def test_json_is_all_that_a_program_has_to_read(tmp_path):
    write_models(tmp_path)
    code, out, _ = run_cli("merge", put(tmp_path, recipe()), "out", "--json", "--seed", "7", "--shard-size", "300")
    summary = json.loads(out)
    assert (code, summary["seed"], summary["semantics"]) == (0, 7, "mergekit")
    assert len([name for name in summary["files"] if name.endswith(".safetensors")]) > 1
    assert sorted(contents(tmp_path / "out")) == sorted([*summary["files"], "README.md"])
    assert summary["notes"] == ["a has no tokenizer, so the merged model has none"]


def test_notes_are_told(tmp_path):
    write_models(tmp_path)
    code, out, _ = run_cli("merge", put(tmp_path, recipe()), "out", "--semantics", "paper", "--sync")
    assert code == 0
    assert "note: a has no tokenizer, so the merged model has none" in out.splitlines()
    assert re.search(r"semantics +paper", out)


# ── what it refuses ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_written(tmp_path):
    write_models(tmp_path)
    missing = tensors(3)
    del missing["model.norm.weight"]
    write(tmp_path / "short", missing)
    write(tmp_path / "wide", tensors(4, vocabulary=9))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"\0" * 4)
    opened = put(tmp_path, recipe("ties", ["a", "short", "wide"], base_model="b", parameters={"density": 2}), "1.yml")
    closed = put(tmp_path, recipe("tise", ["a", "torn", "gone"]), "2.yml")
    before = contents(tmp_path)
    lines = refused(opened, "out")
    assert lines[0] == f"minerua: {opened} cannot be merged"
    for part in ("density: must be at most 1, found 2", "short lacks model.norm.weight", "wide [9, 4]"):
        assert any(line.startswith("  - ") and part in line for line in lines), part
    lines = refused(closed, "out")
    for part in ("did you mean 'ties'", "torn cannot be opened", "gone is neither a file nor a folder"):
        assert any(part in line for line in lines), part
    assert contents(tmp_path) == before


def test_a_folder_that_is_not_empty_and_one_without_a_parent_are_refused(tmp_path):
    write_models(tmp_path)
    path = put(tmp_path, recipe())
    (line,) = refused(path, "a")
    assert line.endswith("the folder exists and is not empty: remove it, or choose another name")
    (line,) = refused(path, "gone/out")
    assert line.endswith("create the folder first, or correct its name")
    (line,) = refused(path, ".")
    assert f". is no name of a folder to make; write {tmp_path}, or choose another one" in line
    (line,) = refused(path, "recipe.yml")
    assert line == "minerua: recipe.yml is a file, where a folder is to be made: choose another name"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--shard-size", "big"], "is not a size in bytes"),
        (["--seed", str(1 << 64)], "is not a whole number from 0 to 2^64 - 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, part):
    write_models(tmp_path)
    assert any(part in line for line in refused(put(tmp_path, recipe()), "out", *options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [("", ""), ("- a", ""), ("merge_method: [", ""), ("merge_method: linear\nmodels: 3", "models"), ("\0", "")],
)
def test_recipes_that_are_none_are_refused(tmp_path, text, part):
    (tmp_path / "recipe.yml").write_text(text)
    assert part in "\n".join(refused("recipe.yml", "out"))
    assert "the recipe gone.yml cannot be read: " in refused("gone.yml", "out")[0]


def test_numbers_that_are_not_finite_are_found_while_reading_and_nothing_stays(tmp_path):
    a, _ = write_models(tmp_path)
    a["lm_head.weight"][2, 2] = np.nan
    write(tmp_path / "a", a)
    path = put(tmp_path, recipe())
    lines = refused(path, "out")
    assert lines == [
        "minerua: the models cannot be merged",
        "  - a: 1 numbers of tensor 'lm_head.weight' are NaN or infinite",
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "recipe.yml"]


def test_a_pickle_with_code_is_refused_like_any_other_fault(tmp_path):
    from .merge.test_models import Trap

    write_models(tmp_path)
    write_bin(tmp_path / "trap", {"w": torch.zeros(2), "x": Trap(str(tmp_path / "sprung"))})
    lines = refused(put(tmp_path, recipe(names=["a", "trap"])), "out")
    assert any("trap cannot be opened: pytorch_model.bin cannot be loaded by torch's weights-only" in x for x in lines)
    assert not (tmp_path / "sprung").exists()


# ── in a process of its own ──────────────────────────────────────────────────────────────────────────────────────────

HEAVY = ("torch", "transformers", "pydantic", "safetensors", "huggingface_hub", "rich", "minerua.run")


def imported(*arguments):
    """Returns the modules that a process of the command line imports."""
    done = run_python("-X", "importtime", "-m", "minerua", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_a_merge_of_safetensors_never_imports_torch_or_anything_else_that_is_slow(tmp_path):
    write_models(tmp_path)
    write_lora(tmp_path / "lora", name="model.layers.0.mlp.up.weight")
    names = ["a+lora", "b"]
    modules = imported("merge", str(put(tmp_path, recipe("ties", names, base_model="a"))), "out")
    assert "numpy" in modules
    assert not modules & set(HEAVY)


def test_a_recipe_in_any_language_is_written_as_it_was_read(tmp_path):
    write_models(tmp_path)
    text = "# Schöne Grüße, 合併\n" + json.dumps(recipe())
    done = run_python("-m", "minerua", "merge", str(put(tmp_path, text)), "out", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "minerua_recipe.yml").read_text("utf-8") == text


PLUGIN = """
    from minerua import MergeMethodSpec, MergeParameter, hookimpl

    def tiles(tile):
        return sum(tile.experts) * tile.parameters["factor"]

    @hookimpl
    def minerua_merge_methods():
        factor = MergeParameter("factor", default=1.0)
        return [MergeMethodSpec("acme-sum", tiles, uses="tiles", parameters=(factor,), base="ignored")]
"""


def test_a_method_of_a_plugin_is_used_by_its_name(tmp_path, site_packages):
    a, b = write_models(tmp_path)
    site_packages.install("acme-merging", acme_merging=PLUGIN)
    path = put(tmp_path, recipe("acme_sum", weights=[], parameters={"factor": 0.25}))
    code, _, err = run_cli("merge", path, "out")
    assert (code, err) == (0, "")
    found = open_checkpoint(tmp_path / "out")
    for name in a:
        np.testing.assert_allclose(found.tensor(name), (a[name] + b[name]) * 0.25, rtol=1e-6)
    path = put(tmp_path, recipe("acme_sum", weights=[], parameters={"faktor": 0.25}))
    assert "did you mean 'factor'" in "\n".join(refused(path, "out-2"))


def test_activations_come_from_the_plugins_that_a_recipe_names(tmp_path):
    world = make_world(tmp_path / "world")
    names = [f"experts/{task}.safetensors" for task in range(3)]
    content = recipe("regmean", names, base_model="base.safetensors")
    asked = {"activations": {"model": "toy-linear", "tasks": ["toy-0", "toy-1", "toy-2"]}}
    put(world.folder, content | asked)
    done = subprocess.run(
        world.command("merge", "recipe.yml", "out"),
        env=world.environment(),
        cwd=world.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    merged = open_checkpoint(world.folder / "out").tensor("layer.weight")
    assert np.isfinite(merged).all()
    assert not np.array_equal(merged, open_checkpoint(world.folder / "base.safetensors").tensor("layer.weight"))
    put(world.folder, content | {"activations": {"model": "toy-linaer", "tasks": ["toy-0", "toy-1", "toy-9"]}})
    done = subprocess.run(
        world.command("merge", "recipe.yml", "out-2"),
        env=world.environment(),
        cwd=world.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "the activations that the recipe asks for cannot be had: no model is named 'toy-linaer'" in done.stderr
    assert "no evaluator is named 'toy-9'" in done.stderr


def test_a_bar_moves_only_where_somebody_watches(tmp_path):
    write_models(tmp_path)
    path = str(put(tmp_path, recipe()))
    leader, follower = os.openpty()
    script = "import sys; from minerua.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "merge", path, "out"], stderr=follower, stdout=subprocess.PIPE, check=False
    )
    os.close(follower)
    seen = os.read(leader, 65536).decode()
    os.close(leader)
    assert done.returncode == 0
    assert "merging" in seen
    assert "The merged model: out" in done.stdout.decode()
    assert isinstance(StorageError("x"), OSError)
