"""`minerua recipes`, and `minerua evolve` with a recipe's name in place of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer.testing
import yaml

from minerua.cli import app, evolving
from minerua.errors import ConfigError
from minerua.run import demo


class Run:
    """Calls the command line in this process; what a command carries out is recorded instead."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(evolving, "load_registry", lambda: "registry")
        monkeypatch.setattr(evolving, "_print_summary", lambda summary, folder, *, as_json: self.calls.append(folder))
        monkeypatch.setattr("minerua.run.execute", self.execute)
        monkeypatch.setattr(demo, "make_ready", self.make_ready)

    def execute(self, run_file, *, registry, out, resume, workers, progress, announce):
        self.calls.append((str(run_file), str(out), resume, workers))

    def make_ready(self, recipe, out, *, registry, seed, evaluations, say):
        self.calls.append((recipe.name, str(out), seed, evaluations))
        return Path(out) / "run.yaml"

    def __call__(self, *arguments):
        return typer.testing.CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture
def minerua(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Run(monkeypatch)


def test_all_recipes_are_listed_for_people_and_for_programs(minerua):
    done = minerua("recipes")
    assert [line.split()[0] for line in done.output.splitlines()] == list(demo.RECIPES)
    assert "three small networks, half a minute" in done.output
    assert "three small language models, whose answers are executed" in done.output
    assert "camouflage, polyps, lesions and leaves: four small U-Nets that outline what they see" in done.output
    listed = json.loads(minerua("recipes", "--json").output)["recipes"]
    assert [row["name"] for row in listed] == list(demo.RECIPES)
    assert all(row["summary"] for row in listed)


def test_a_recipe_is_copied_out_and_not_carried_out(minerua, tmp_path):
    done = minerua("recipes", "agent-skills")
    assert done.output.split() == [f"agent-skills/{name}.yaml" for name in ("base", "experts", "run")]
    assert minerua.calls == []
    done = minerua("recipes", "digits", "--out", "d", "--seed", "3", "--evaluations", "9", "--json")
    assert json.loads(done.output)["files"] == ["d/base.yaml", "d/views.yaml", "d/run.yaml"]
    content = yaml.safe_load((tmp_path / "d" / "run.yaml").read_text())
    assert (content["seed"], content["evolution"]["evaluations"]) == (3, 9)


def test_evolve_learns_a_recipe_by_its_name_and_then_carries_it_out(minerua):
    minerua("evolve", "agent-skills")
    minerua("evolve", "agent-skills", "--out", "x", "--seed", "2", "--evaluations", "7", "--evaluator-workers", "2")
    first, second = minerua.calls[:3], minerua.calls[3:]
    assert first[:2] == [("agent-skills", "agent-skills", 0, None), ("agent-skills/run.yaml", "agent-skills", False, 1)]
    assert second == [("agent-skills", "x", 2, 7), ("x/run.yaml", "x", False, 2), Path("x")]


def test_a_recipe_whose_run_file_is_there_goes_on_where_the_run_stopped(minerua, tmp_path):
    (tmp_path / "x").mkdir()
    minerua("evolve", "digits", "--out", "x", "--resume")
    (tmp_path / "x" / "run.yaml").write_text("")
    minerua("evolve", "digits", "--out", "x", "--resume")
    assert minerua.calls[:2] == [("digits", "x", 0, None), ("x/run.yaml", "x", True, 1)]
    assert minerua.calls[3:] == [("x/run.yaml", "x", True, 1), Path("x")]


def test_a_file_is_a_file_though_a_recipe_has_its_name(minerua, tmp_path):
    (tmp_path / "digits").write_text("")
    minerua("evolve", "digits")
    minerua("evolve", "there/digits")
    assert [call for call in minerua.calls if isinstance(call, tuple)] == [
        ("digits", "None", False, 1),
        ("there/digits", "None", False, 1),
    ]


def test_what_belongs_to_recipes_is_refused_with_a_file(minerua):
    for option in ("--seed", "--evaluations"):
        with pytest.raises(ConfigError, match=r"are of recipes; what run\.yaml asks for stands in it"):
            minerua("evolve", "run.yaml", option, "3")
    assert minerua.calls == []


def test_a_name_that_is_no_recipe_gets_the_nearest(minerua):
    for command in ("evolve", "recipes"):
        with pytest.raises(ConfigError, match="no recipe is named 'agent-skill'; did you mean 'agent-skills'"):
            minerua(command, "agent-skill")
    assert minerua.calls == []


def test_workers_below_one_are_refused(minerua):
    assert minerua("evolve", "run.yaml", "--evaluator-workers", "0").exit_code == 2
    assert minerua.calls == []
