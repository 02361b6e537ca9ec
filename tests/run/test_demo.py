"""The demo: recipes become files that `minerua train` and `minerua evolve` carry out; the first are learned from."""

import json
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from minerua import hookimpl
from minerua.config import read_yaml, validate
from minerua.errors import CheckpointError, ConfigError, LearningStopped, StorageError
from minerua.learning import plugin as learning
from minerua.merge import methods
from minerua.registry import Registry
from minerua.run import demo as demo_module
from minerua.run import execute
from minerua.run.demo import (
    RECIPES,
    Need,
    Recipe,
    Training,
    copy_recipe,
    make_ready,
    recipe_named,
    write_demo,
)
from minerua.run.train import execute_training, read_training
from minerua.values import Skill
from minerua.weights import open_checkpoint

VIEWS = ("rotated", "inverted", "mirrored")
MODELS = ("base/model.safetensors", *(f"views/experts/{view}/model.safetensors" for view in VIEWS))


class Demo(NamedTuple):
    """A demo that was written.

    Args:
        folder: Where.
        registry: What it was learned with.
        said: What it told who waits.
    """

    folder: Path
    registry: Registry
    said: list[str]

    def again(self, **changes):
        settings = {"registry": self.registry, "seed": 7, "evaluations": 4, "variant": "minerua"} | changes
        return write_demo(self.folder, **settings)


@pytest.fixture(scope="module")
def registry():
    digits = pytest.importorskip("minerua_digits", reason="the plugin minerua-digits is not installed")
    return Registry.of(digits, methods, learning)


@pytest.fixture(scope="module")
def demo(registry, tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("demo") / "new" / "folder", []
    made = Demo(folder, registry, said)
    assert made.again(say=said.append) == folder / "run.yaml"
    return made


def files(folder):
    """Returns path → when and how often it was written, below a folder."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


# ── what it writes ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_recipes_become_valid_files_with_the_experts_in_the_order_of_the_tasks(demo):
    config, faults = validate(read_yaml(demo.folder / "run.yaml"))
    assert faults == []
    assert (config.seed, config.evolution.evaluations, config.evolution.variant) == (7, 4, "minerua")
    assert tuple(config.experts) == VIEWS
    assert list(config.task_names) == [f"digits-{view}" for view in VIEWS]
    assert read_training(demo.folder / "base.yaml").seed == 7
    views = read_training(demo.folder / "views.yaml")
    assert {view: views.of_expert(view).seed for view in VIEWS} == {"rotated": 7001, "inverted": 7002, "mirrored": 7003}
    assert demo.said == ["learning a base ...", "learning three experts ..."]


def test_the_base_takes_400_steps_and_each_expert_196_and_all_are_what_was_learned_last(demo):
    for model, steps in zip(MODELS, (400, 196, 196, 196), strict=True):
        out = (demo.folder / model).parent
        learned = json.loads((out / "learned.json").read_text())
        assert (learned["step"], learned["stopped"], learned["skipped_steps"]) == (steps, "all epochs are done", 0)
        (checkpoint,) = (out / "checkpoints").iterdir()
        assert checkpoint.name == f"step-{steps:010d}"
        assert (checkpoint / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_every_expert_records_the_base_that_it_was_learned_from(demo):
    base, *experts = (open_checkpoint(demo.folder / model) for model in MODELS)
    assert [expert.metadata["minerua.base"] for expert in experts] == [base.digest] * 3
    assert "minerua.base" not in base.metadata
    assert len({expert.digest for expert in experts} | {base.digest}) == 4


def test_training_its_files_again_leaves_the_same_bytes(demo, tmp_path):
    execute_training(demo.folder / "base.yaml", registry=demo.registry, out=tmp_path / "base")
    execute_training(demo.folder / "views.yaml", registry=demo.registry, out=tmp_path / "views")
    learned = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert {*map(Path, MODELS)} < {*learned}
    for path in learned:
        assert (tmp_path / path).read_bytes() == (demo.folder / path).read_bytes(), path


def test_an_expert_of_a_strange_base_is_refused(demo, tmp_path):
    content = yaml.safe_load((demo.folder / "run.yaml").read_text())
    content["base"] = str(demo.folder / MODELS[1])
    content["experts"] = {view: str(demo.folder / model) for view, model in zip(VIEWS, MODELS[1:], strict=True)}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        execute(tmp_path / "run.yaml", registry=demo.registry)
    assert open_checkpoint(demo.folder / MODELS[0]).digest in str(caught.value)


@pytest.mark.slow
def test_the_demo_on_real_digits_runs_to_its_end(demo, tmp_path):
    summary = execute(demo.folder / "run.yaml", registry=demo.registry, out=tmp_path)
    assert not summary.unfinished
    table = json.loads((tmp_path / "table.json").read_text())
    assert "best" in json.dumps(table)
    assert {"best.safetensors", "report.html", "archives.json"} <= {path.name for path in tmp_path.iterdir()}


# ── a second time ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_demo_that_was_stopped_before_its_run_file_goes_on_with_what_was_learned(demo):
    before = files(demo.folder / "base")
    (demo.folder / "run.yaml").unlink()
    demo.again(evaluations=5)
    assert files(demo.folder / "base") == before
    config, _ = validate(read_yaml(demo.folder / "run.yaml"))
    assert config.evolution.evaluations == 5


def test_what_was_learned_with_another_seed_is_not_taken_for_this_one_s(registry, tmp_path):
    demo = Demo(tmp_path, registry, [])
    demo_module._fill(tmp_path / "base.yaml", "digits-base", seed=1)
    execute_training(tmp_path / "base.yaml", registry=registry, settings=["epochs=1"])
    with pytest.raises(CheckpointError, match="holds the finished run of another configuration") as caught:
        demo.again(seed=2)
    assert "seed: the checkpoint has 1, this run has 2" in caught.value.faults
    assert not (tmp_path / "run.yaml").exists()


def test_a_signal_while_it_learns_says_how_to_go_on(registry, tmp_path, monkeypatch):
    def stopped(path, **settings):
        raise LearningStopped("stopped by SIGINT after step 3; --resume goes on", signal=signal.SIGINT)

    monkeypatch.setattr(demo_module, "execute_training", stopped)
    with pytest.raises(
        LearningStopped, match=r"stopped while it learned what .*base\.yaml asks for; the same command goes on"
    ) as caught:
        Demo(tmp_path, registry, []).again()
    assert caught.value.signal == signal.SIGINT
    assert not (tmp_path / "run.yaml").exists()


@pytest.mark.parametrize("left", ["run.yaml", "journal.jsonl"])
def test_a_folder_with_a_run_is_left_alone(tmp_path, left):
    (tmp_path / left).write_text("mine")
    said = []
    with pytest.raises(
        ConfigError, match=r"already holds a run: continue it with `minerua evolve .*run\.yaml --resume`"
    ):
        Demo(tmp_path, Registry.of(), said).again(say=said.append)
    assert [path.name for path in tmp_path.iterdir()] == [left]
    assert (tmp_path / left).read_text() == "mine"
    assert said == []


def test_without_the_skill_the_package_is_named(tmp_path):
    with pytest.raises(ConfigError, match="the demo needs the package minerua-digits: pip install") as caught:
        Demo(tmp_path / "demo", Registry.of(methods, learning), []).again()
    assert caught.value.faults == ("no skill is named 'digits-images'. Known: none",)
    assert list(tmp_path.iterdir()) == []


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class World:
    """A plugin whose skill writes what is learned from, or fails as it is told."""

    def __init__(self, call):
        self.call = call

    @hookimpl
    def minerua_skills(self):
        return [Skill("toy-world", self.call) if self.call else Skill("toy-world", configure=lambda *_: None)]


def toy(**changes):
    """Returns a recipe that writes a world and learns nothing."""
    settings = {
        "name": "digits",
        "title": "the toy",
        "summary": "nothing",
        "needs": (Need("skills", "toy-world", "toy"),),
        "trainings": (),
        "evaluations": 3,
        "world": "toy-world",
    }
    return Recipe(**settings | changes)


def test_every_recipe_has_valid_files_for_its_own_experts(tmp_path):
    for name, recipe in RECIPES.items():
        files = copy_recipe(recipe, tmp_path / name, seed=4)
        assert [path.name for path in files] == [*(f"{one.file}.yaml" for one in recipe.trainings), "run.yaml"]
        config, faults = validate(read_yaml(tmp_path / name / "run.yaml"))
        assert faults == []
        assert (config.seed, config.evolution.evaluations) == (4, recipe.evaluations)
        assert len(config.tasks) == len(config.experts) == recipe.experts
        learned = [read_training(path) for path in files[:-1]]
        assert list(learned[-1].experts) == list(config.experts)
        assert [learned[-1].of_expert(one).seed for one in config.experts] == [4001 + k for k in range(recipe.experts)]
        for expert, path in config.experts.items():
            assert Path(path).parts[:3] == (recipe.trainings[-1].file, "experts", expert)


def test_the_experts_of_agent_skills_are_a_full_fine_tune_and_two_adapters(tmp_path):
    files = copy_recipe(RECIPES["agent-skills"], tmp_path)
    config, _ = validate(read_yaml(files[-1]))
    learned = read_training(files[1])
    adapters = {name for name in learned.experts if learned.of_expert(name).adapter is not None}
    assert {name for name, path in config.experts.items() if Path(path).name == "adapter"} == adapters
    assert len(adapters) == 2


def test_the_folder_s_name_may_have_anything_in_it(tmp_path):
    folder = tmp_path / 'a "b": {c} # d'
    base, *_ = copy_recipe(RECIPES["agent-skills"], folder)
    assert read_training(base).model.settings["path"] == str(folder / "base")


def test_files_that_are_there_are_not_written_over(tmp_path):
    (tmp_path / "run.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"already has run\.yaml, which would be lost: choose another --out"):
        copy_recipe(RECIPES["digits"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_recipe_that_nobody_knows_gets_the_nearest_names():
    with pytest.raises(ConfigError, match=r"no recipe is named 'digit'; did you mean 'digits'\?.*ends in \.yaml"):
        recipe_named("digit")
    assert recipe_named("agent-skills") is RECIPES["agent-skills"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "agent-skills",
            r"^the recipe agent-skills needs the packages minerua-transformers and minerua-agent-tasks: "
            r"pip install \./plugins/minerua-tr",
        ),
        ("segmentation", r"^the recipe segmentation needs the package minerua-segmentation: pip install \./plugins/mi"),
    ],
)
def test_all_packages_that_are_missing_are_named_at_once(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_ready(RECIPES[name], tmp_path / "new", registry=Registry.of(methods, learning))
    assert len(caught.value.faults) == len(RECIPES[name].needs)
    assert not (tmp_path / "new").exists()


def test_a_world_is_written_before_anything_is_learned_and_again_after_a_stop(tmp_path, monkeypatch):
    calls, said = [], []
    monkeypatch.setattr(demo_module, "execute_training", lambda path, **_: calls.append(path.name))
    registry = Registry.of(World(lambda folder, seed: calls.append((folder, seed)) or {}))
    recipe = toy(trainings=(Training("base", "digits-base", "a base"),))
    for _ in range(2):
        run = make_ready(recipe, tmp_path, registry=registry, seed=5, say=said.append)
        assert yaml.safe_load(run.read_text())["evolution"]["evaluations"] == 3
        run.unlink()
    assert calls == [(str(tmp_path), 5), "base.yaml"] * 2
    assert said == ["writing tasks and examples ...", "learning a base ..."] * 2


def test_a_world_that_cannot_be_written_is_said_with_its_cause(tmp_path):
    def full(folder, seed):
        raise StorageError("the disk is full")

    def broken(folder, seed):
        raise RuntimeError("no dice")

    with pytest.raises(StorageError, match="the disk is full"):
        make_ready(toy(), tmp_path, registry=Registry.of(World(full)))
    with pytest.raises(ConfigError, match=r"the skill 'toy-world' could not write into .*: no dice"):
        make_ready(toy(), tmp_path, registry=Registry.of(World(broken)))
    with pytest.raises(ConfigError, match="'toy-world' cannot be called with folder and seed; see `minerua plugins"):
        make_ready(toy(), tmp_path, registry=Registry.of(World(None)))
    assert not (tmp_path / "run.yaml").exists()
