"""Checkpoints, adapters and evolved children as skills of a chain."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minerua import ModelSpec, TensorSpec, hookimpl, skills
from minerua.chain.writing.chain import SkillChain
from minerua.errors import ChainError, ConfigError
from minerua.registry import Registry
from minerua.run.skills import MODEL_SKILL, configure
from minerua.values import Setup, SkillContext
from minerua.weights import write_adapter, write_checkpoint

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


class Linear:
    """A model over `layer.weight` that doubles as its own class of callables, so that it can be sent elsewhere."""

    def __init__(self, tensors: Any) -> None:
        self.weight = tensors["layer.weight"]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return inputs @ self.weight.T


class Models:
    @hookimpl
    def minerua_models(self) -> list[ModelSpec]:
        return [ModelSpec("linear", Linear, version="3"), ModelSpec("heap", dict)]


@pytest.fixture
def context(tmp_path: Path) -> SkillContext:
    """A folder with a checkpoint, an adapter for it and a finished run; and the model kinds."""
    write_checkpoint(tmp_path / "w.safetensors", {"layer.weight": WEIGHT})
    factors = (np.ones((2, 1), np.float32), np.ones((1, 3), np.float32))
    write_adapter(tmp_path / "child", {"layer.weight": factors}, rank=1)
    (tmp_path / "run").mkdir()
    write_checkpoint(tmp_path / "run" / "best.safetensors", {"layer.weight": 2 * WEIGHT})
    journal = '{"event": "run", "format": 1, "config": {"model": "linear"}}\n'
    (tmp_path / "run" / "journal.jsonl").write_text(journal)
    return SkillContext(tmp_path, Registry.of(Models()).models)


def faults_of(settings: dict[str, Any], context: SkillContext) -> tuple[str, ...]:
    with pytest.raises(ConfigError, match="the settings of the skill 'minerua-model' cannot be used") as caught:
        configure(settings, context)
    return caught.value.faults


# ── what is loaded ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        ({"model": "linear", "checkpoint": "w.safetensors"}, WEIGHT),
        ({"model": "linear", "base": "w.safetensors", "adapter": "child"}, WEIGHT + 1),
        ({"run": "run"}, 2 * WEIGHT),
        ({"run": "run", "model": "linear"}, 2 * WEIGHT),
    ],
    ids=["checkpoint", "adapter", "run", "run and model"],
)
def test_weights_become_a_skill(settings: dict[str, Any], weight: np.ndarray, context: SkillContext) -> None:
    skill = configure(settings, context)
    assert skill.load is not None
    inputs = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(skill.load(Setup())(inputs=inputs)["outputs"], weight.T)
    assert (skill.inputs, skill.outputs) == ({"inputs": object}, {"outputs": object})
    assert (skill.loaded_bytes, skill.pure, skill.batchable, skill.thread_safe) == (24, True, False, False)


def test_the_version_is_that_of_model_and_weights(context: SkillContext, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "copy.safetensors", {"layer.weight": WEIGHT})
    write_checkpoint(tmp_path / "other.safetensors", {"layer.weight": WEIGHT + 1})
    settings = {"model": "linear", "base": "w.safetensors"}
    one, copy, other = (
        configure({"model": "linear", "checkpoint": f"{name}.safetensors"}, context).version
        for name in ("w", "copy", "other")
    )
    assert one == copy != other
    assert one.startswith("linear 3 ")
    assert configure({**settings, "adapter": "child"}, context).version not in (one, other)
    assert configure({"run": "run", "pure": False}, context).version == "linear 3 unread"


def test_ports_and_flags_can_be_told(context: SkillContext) -> None:
    settings = {"run": "run", "inputs": "float32[batch, 3]", "outputs": "float32[batch, 2]", "batchable": True}
    skill = configure(settings | {"thread_safe": True}, context)
    assert skill.inputs == {"inputs": TensorSpec("inputs", ("batch", 3), "float32")}
    assert skill.outputs == {"outputs": TensorSpec("outputs", ("batch", 2), "float32")}
    assert (skill.batchable, skill.thread_safe) == (True, True)


def test_the_loader_can_be_sent_to_another_process(context: SkillContext) -> None:
    load = configure({"run": "run"}, context).load
    call = pickle.loads(pickle.dumps(load))(Setup())
    assert call(inputs=np.ones((1, 3), np.float32))["outputs"].shape == (1, 2)


def test_a_chain_finds_the_skill_in_the_registry_and_weights_beside_its_file(
    context: SkillContext, tmp_path: Path
) -> None:
    (tmp_path / "chain.yaml").write_text(
        "minerua: 1\nname: c\ninputs: {inputs: 'float32[batch, 3]'}\n"
        "steps: [{step: see, skill: minerua-model, settings: {run: run, inputs: 'float32[batch, 3]'}}]\n"
    )
    chain = SkillChain.load(tmp_path / "chain.yaml")
    registry = Registry.of(skills, Models())
    graph = chain.graph(registry.skills, SkillContext(chain.folder, registry.models))
    assert graph.steps[0].provider == "plugin 'minerua.skills' (given)"
    faults = chain.check(registry.skills)
    assert faults == (
        "step 'see': its settings cannot be used: the settings of the skill 'minerua-model' cannot be used; "
        "no model is named 'linear'. Known: none",
    )


# ── what is not ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_wrong_with_settings_is_told_at_once(context: SkillContext) -> None:
    settings = {"modle": "x", "base": 3, "pure": "yes", "inputs": "txt", "zzz": 1}
    known = "Known: adapter, base, batchable, checkpoint, inputs, model, outputs, pure, run, thread_safe"
    assert faults_of(settings, context) == (
        f"base is 3; expected a path, absolute or relative to {context.folder}",
        "pure is 'yes'; expected true or false",
        "no port type is named 'txt'; did you mean 'text'? Known: array, bytes, flag, integer, list, mapping, number, "
        "object, path, text, and arrays such as float32[batch, 64]",
        "one of checkpoint, adapter and run is needed, found none of them",
        "model is missing; name a model kind",
        f"no setting is named 'modle'; did you mean 'model'? {known}",
        f"no setting is named 'zzz'. {known}",
    )
    assert faults_of({"model": "linear", "adapter": "child"}, context) == (
        "adapter and base belong together: a LoRA adapter changes the weights of its base",
    )
    (fault,) = faults_of({"run": "run", "checkpoint": "w.safetensors"}, context)
    assert fault.endswith("found checkpoint and run")


def test_weights_that_cannot_be_opened_and_models_that_nobody_provides(context: SkillContext) -> None:
    faults = faults_of({"model": "linaer", "checkpoint": "nowhere.safetensors"}, context)
    assert faults == ("no model is named 'linaer'; did you mean 'linear'? Known: heap, linear",)
    *_, fault = faults_of({"model": "linear", "checkpoint": "nowhere.safetensors"}, context)
    assert "nowhere.safetensors: No such file" in fault
    plain = SkillContext(context.folder, dict(context.models))
    assert faults_of({"model": "linaer", "run": "run"}, plain)[0].startswith("no model is named 'linaer'; did you mean")


def test_a_run_that_does_not_name_its_model(context: SkillContext) -> None:
    journal = context.folder / "run" / "journal.jsonl"
    journal.write_text('{"event": "run", "format": 1}\n')
    (fault,) = faults_of({"run": "run"}, context)
    assert fault.endswith("does not say which model kind was evolved; name it in model")
    journal.unlink()
    (fault,) = faults_of({"run": "run"}, context)
    assert "cannot read" in fault


def test_a_model_kind_whose_models_cannot_be_called_is_told_when_it_is_loaded(context: SkillContext) -> None:
    skill = configure({"model": "heap", "checkpoint": "w.safetensors"}, context)
    assert skill.load is not None
    with pytest.raises(
        ChainError, match=r"'heap' makes dict of .*w.safetensors, which cannot be called; a skill needs"
    ):
        skill.load(Setup())


def test_the_skill_is_provided_through_a_hook() -> None:
    registry = Registry.of(skills)
    assert registry.problems == ()
    assert list(registry.skills) == [MODEL_SKILL]
    made = registry.skills[MODEL_SKILL].configure
    assert made is not None
    with pytest.raises(ConfigError, match="the settings of the skill 'minerua-model' cannot be used"):
        made({}, SkillContext(Path()))
