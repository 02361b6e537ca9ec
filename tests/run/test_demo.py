"""The demo: a skill's experts and the recipe become a run file that can be carried out."""

import json
from pathlib import Path

import pytest

from minerua import Skill, hookimpl
from minerua.config import read_yaml, validate
from minerua.errors import ConfigError
from minerua.registry import Registry
from minerua.run import execute
from minerua.run.demo import write_demo


class Learner:
    """A plugin whose skill learns nothing and says what a learner would."""

    @hookimpl
    def minerua_skills(self):
        def learn(out_dir, seed):
            (Path(out_dir) / "learned").write_text(str(seed))
            return {"base": "base.safetensors", "experts": {view: f"experts/{view}.safetensors" for view in "abc"}}

        return [Skill("digits-experts", learn)]


def written(folder, **changes):
    settings = {"registry": Registry.of(Learner()), "seed": 7, "evaluations": 33, "variant": "paper"} | changes
    return write_demo(folder, **settings)


def test_the_recipe_becomes_a_valid_run_file_with_the_experts_in_their_order(tmp_path):
    said = []
    run_file = written(tmp_path / "new" / "folder", say=said.append)
    config, faults = validate(read_yaml(run_file))
    assert faults == []
    assert (config.seed, config.evolution.evaluations, config.evolution.variant) == (7, 33, "paper")
    assert list(config.experts) == ["a", "b", "c"]
    assert len(config.tasks) == 3
    assert (run_file.parent / "learned").read_text() == "7"
    assert said == ["learning a base and three experts ..."]


@pytest.mark.parametrize("left", ["run.yaml", "journal.jsonl"])
def test_a_folder_with_a_run_is_left_alone(tmp_path, left):
    (tmp_path / left).write_text("mine")
    said = []
    with pytest.raises(
        ConfigError, match=r"already holds a run: continue it with `minerua evolve .*run\.yaml --resume`"
    ):
        written(tmp_path, say=said.append)
    assert [path.name for path in tmp_path.iterdir()] == [left]
    assert (tmp_path / left).read_text() == "mine"
    assert said == []


def test_without_the_skill_the_package_is_named(tmp_path):
    with pytest.raises(ConfigError, match="the demo needs the package minerua-digits: pip install") as caught:
        written(tmp_path, registry=Registry.of())
    assert caught.value.faults == ("no skill is named 'digits-experts'. Known: none",)
    assert list(tmp_path.iterdir()) == []


def test_a_skill_that_must_be_loaded_first_is_refused(tmp_path):
    class Loaded:
        @hookimpl
        def minerua_skills(self):
            return [Skill("digits-experts", load=lambda setup: dict)]

    with pytest.raises(ConfigError, match="the demo needs a skill 'digits-experts' with a call, found one"):
        written(tmp_path, registry=Registry.of(Loaded()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo_on_real_digits_runs_to_its_end(tmp_path):
    minerua_digits = pytest.importorskip("minerua_digits", reason="the plugin minerua-digits is not installed")
    from minerua.merge import methods

    registry = Registry.of(minerua_digits, methods)
    summary = execute(
        write_demo(tmp_path, registry=registry, seed=0, evaluations=4, variant="minerua"), registry=registry
    )
    assert not summary.unfinished
    table = json.loads((tmp_path / "table.json").read_text())
    assert "best" in json.dumps(table)
    assert {"best.safetensors", "report.html", "archives.json"} <= {path.name for path in tmp_path.iterdir()}
