"""From a configuration to a model on disk."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minerua.errors import CheckpointError, LearningError, StorageError
from minerua.learning import TrainingConfig, learn
from minerua.values import LossSpec, ModelSpec
from minerua.weights import open_adapter, open_checkpoint, write_checkpoint

from .worlds import LOSSES, MODELS, OPTIMIZERS, PLAIN, Diary, contents, mlp, pipeline, splits

CATALOGS: dict[str, Any] = {"models": MODELS, "optimizers": OPTIMIZERS, "losses": LOSSES}


def write_base(folder: Path) -> str:
    torch.manual_seed(7)
    arrays = {name: tensor.numpy() for name, tensor in mlp().state_dict().items()}
    write_checkpoint(folder / "base.safetensors", arrays)
    return open_checkpoint(folder / "base.safetensors").digest


def test_two_runs_write_the_same_bytes_and_leave_the_generators_alone(tmp_path: Path) -> None:
    numpy: Any = np.random.get_state()
    before = torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist()
    pipeline().run(tmp_path / "a")
    random.random()
    pipeline().run(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    numpy = np.random.get_state()
    assert (torch.get_rng_state().tolist(), numpy[1].tolist()) == (before[0], before[2])


def test_what_is_drawn_while_a_run_is_prepared_changes_no_byte(tmp_path: Path) -> None:
    """Importing the rest of torch draws as well, in the first run of a process only."""
    for name, draws in (("first", 3), ("second", 0)):

        def module(draws: int = draws, **settings: Any) -> torch.nn.Module:
            module = mlp(**settings)
            for _ in range(draws):
                random.random(), np.random.rand(), torch.rand(1)
            return module

        pipeline(models={"mlp": ModelSpec("mlp", build=dict, module=module)}).run(tmp_path / name)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_a_folder_that_holds_a_run_is_only_entered_to_go_on(tmp_path: Path) -> None:
    learned = pipeline().run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(
        LearningError, match=r"holds a training run already \(there is learned.json\); --resume goes on"
    ):
        pipeline().run(tmp_path)
    again = pipeline().run(tmp_path, resume=True)
    assert again.already_done
    assert (again.best_metrics, again.history[0].loss) == (learned.best_metrics, learned.history[0].loss)
    assert contents(tmp_path) == before


def test_a_finished_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    pipeline().run(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds the finished run of another configuration") as caught:
        pipeline({"seed": 6}).run(tmp_path, resume=True)
    assert caught.value.faults == ("seed: the checkpoint has 5, this run has 6",)


def test_a_record_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "learned.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"learned.json cannot be read: .*; remove it to finish the run anew"):
        pipeline().run(tmp_path, resume=True)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys\n"
        f"file = os.open({str(tmp_path / '.lock')!r}, os.O_RDWR | os.O_CREAT)\n"
        "fcntl.lockf(file, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(LearningError, match=r"belongs to a run that is at work; wait for it, or choose another"):
            pipeline().run(tmp_path)
        other.communicate()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/out cannot be the folder of a run: Not a directory; choose another"):
        pipeline().run(tmp_path / "file" / "out")


def test_a_lock_that_the_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.raises(StorageError, match=r"\.lock cannot be locked: Input/output error"):
        pipeline().run(tmp_path)


# ── bases and adapters ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_learned_from_a_base_names_its_digest(tmp_path: Path) -> None:
    digest = write_base(tmp_path)
    learned = pipeline({"model": {"base": str(tmp_path / "base.safetensors")}}).run(tmp_path / "out")
    for name in ("model.safetensors", "best.safetensors", "checkpoints/step-0000000024/model.safetensors"):
        assert open_checkpoint(tmp_path / "out" / name).metadata["minerua.base"] == digest
    assert json.loads((tmp_path / "out" / "learned.json").read_text())["base"] == digest
    assert learned.model.name == "model.safetensors"


def test_another_base_is_another_run(tmp_path: Path) -> None:
    write_base(tmp_path)
    changes = {"model": {"base": str(tmp_path / "base.safetensors")}}
    pipeline(changes).run(tmp_path / "out")
    (tmp_path / "out" / "learned.json").unlink()
    arrays = {name: tensor.numpy() + 1 for name, tensor in mlp().state_dict().items()}
    write_checkpoint(tmp_path / "base.safetensors", arrays)
    with pytest.raises(CheckpointError, match=r"base: the checkpoint has "):
        pipeline(changes).run(tmp_path / "out", resume=True)


def test_an_adapter_is_learned_on_a_frozen_base_and_written_in_pefts_layout(tmp_path: Path) -> None:
    digest = write_base(tmp_path)
    changes = {
        "model": {"base": str(tmp_path / "base.safetensors"), "settings": {"dropout": 0.0}},
        "adapter": {"rank": 2, "targets": ["0", "3"], "rank_pattern": {"3": 1}, "alpha_pattern": {"0": 6}},
    }
    learned = pipeline(changes).run(tmp_path / "out")
    base = open_checkpoint(tmp_path / "base.safetensors")
    adapter = open_adapter(learned.model, base)
    assert {name: factors.right.shape[0] for name, factors in adapter.factors.items()} == {"0.weight": 2, "3.weight": 1}
    assert adapter.config["rank_pattern"] == {"^3": 1}
    metadata = open_checkpoint(learned.model / "adapter_model.safetensors").metadata
    assert metadata["minerua.base"] == digest
    saved = open_checkpoint(tmp_path / "out" / "best.safetensors")
    assert set(saved.specs) == {"0.lora.A", "0.lora.B", "3.lora.A", "3.lora.B"}  # and nothing of the base
    assert learned.history[-1].loss < learned.history[0].loss


# ── experts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_several_experts_come_from_one_file_and_those_that_are_done_are_left_alone(tmp_path: Path) -> None:
    config = TrainingConfig.read({**PLAIN, "experts": {"one": {"seed": 1}, "two": {"epochs": 1}}})
    diaries: dict[str, Diary] = {}

    def observers(name: str) -> list[Diary]:
        diaries[name] = Diary()
        return [diaries[name]]

    first = learn(config, tmp_path, data=splits(), observers=observers, **CATALOGS)
    assert [(one.name, one.step) for one in first] == [("one", 24), ("two", 8)]
    assert diaries["two"].starts[0].name == "two"
    assert (tmp_path / "experts" / "two" / "model.safetensors").is_file()
    (tmp_path / "experts" / "two" / "learned.json").unlink()
    again = learn(config, tmp_path, resume=True, data=splits(), **CATALOGS)
    assert [one.already_done for one in again] == [True, False]
    (only,) = learn(TrainingConfig.read(PLAIN), tmp_path / "only", data=splits(), **CATALOGS)
    assert only.name == ""


# ── before anything is written ───────────────────────────────────────────────────────────────────────────────────────


def refused(changes: dict[str, Any], tmp_path: Path, **more: Any) -> str:
    with pytest.raises(LearningError) as caught:
        pipeline(changes, **more).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_all_faults_are_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    changes = {"loss": "cross-entrpy", "optimizer": {"name": "adm"}, "metrics": ["acc"], "batch_size": 500}
    text = refused({**changes, "model": {"base": "nowhere.safetensors"}}, tmp_path)
    assert text.startswith("the run cannot begin")
    assert "loss.name: no loss is named 'cross-entrpy'; did you mean 'cross-entropy'?" in text
    assert "optimizer.name: no optimizer is named 'adm'" in text
    assert "metrics: no metric is named 'acc'" in text
    assert "batch_size: 500 is more than the 60 examples of the training split; set it to 60 or less" in text
    assert "model.base: nowhere.safetensors: No such file or directory" in text


@pytest.mark.parametrize(
    ("changes", "data", "expected"),
    [
        ({"model": {"name": "mpl"}}, None, "model.name: no model is named 'mpl'; did you mean 'mlp'?"),
        ({"model": {"name": "frozen"}}, None, "model.name: 'frozen' can be called but not learned: it has no module"),
        ({"model": {"settings": {"deep": 1}}}, None, "model.settings: 'mlp' cannot be made: TypeError"),
        ({"optimizer": {"settings": {"beta": 1}}}, None, "optimizer.settings: 'adamw' cannot be made: TypeError"),
        ({}, splits(0), "data: the training split is empty; there is nothing to learn from"),
        ({"loss": "mse"}, None, "inputs: [8, 12] float32"),
        ({"data": {"skill": "nowhere"}}, (), "data: "),
    ],
)
def test_what_cannot_begin_is_refused(changes: dict[str, Any], data: Any, expected: str, tmp_path: Path) -> None:
    if data == ():
        run = pipeline(changes)
        run._data = None
        with pytest.raises(LearningError, match=expected):
            run.run(tmp_path / "out")
    else:
        assert expected in refused(changes, tmp_path, data=data)


def test_an_empty_validation_split_is_refused(tmp_path: Path) -> None:
    data = splits()
    data.validation = data.train.__class__(0)
    assert "data: the validation split is empty; leave it out, or give it rows" in refused({}, tmp_path, data=data)


def test_a_metric_without_a_split_to_measure_it_on_is_refused(tmp_path: Path) -> None:
    text = refused({"stopping": {"metric": "accuracy"}}, tmp_path, data=splits(60, 0, 0))
    assert "stopping.metric: 'accuracy' is measured on the validation split, and there is none" in text


def test_labels_out_of_range_are_seen_before_the_run(tmp_path: Path) -> None:
    data = splits()
    data.train.targets += 40
    assert "targets: [8] int64 from 4" in refused({}, tmp_path, data=data)


def test_a_base_of_another_shape_is_refused_tensor_by_tensor(tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in mlp(width=8).state_dict().items()}
    arrays["more"] = arrays.pop("3.bias")
    write_checkpoint(tmp_path / "base.safetensors", arrays)
    text = refused({"model": {"base": str(tmp_path / "base.safetensors")}}, tmp_path)
    assert "lacks 3.bias, which the model has" in text
    assert "has more, which the model lacks" in text
    assert "0.weight has the shape [8, 12] in " in text
    assert "the model has [16, 12]" in text


def test_a_loss_must_be_a_tensor_without_dimensions(tmp_path: Path) -> None:
    odd = {"cross-entropy": LossSpec("cross-entropy", lambda predictions, targets: predictions)}
    text = refused({}, tmp_path, losses=odd)
    assert text == "loss 'cross-entropy' must return a tensor without dimensions, found shape [8, 4]"
    none = {"cross-entropy": LossSpec("cross-entropy", lambda predictions, targets: 1.0)}
    assert "found a float" in refused({}, tmp_path, losses=none)


def test_without_a_training_split_there_is_no_run(tmp_path: Path) -> None:
    data = splits()
    data.train = None
    assert "data: the training split is empty" in refused({}, tmp_path, data=data)


def test_weights_that_shall_not_decay_are_in_a_group_of_their_own(tmp_path: Path) -> None:
    pipeline({"optimizer": {"weight_decay": 0.1}, "epochs": 1}).run(tmp_path / "out")
    state = json.loads((tmp_path / "out" / "checkpoints" / "step-0000000008" / "state.json").read_text())
    groups = state["map"]["optimizer"]["map"]["groups"]
    decays = {tuple(one["map"]["names"]): one["map"]["weight_decay"] for one in groups}
    assert decays == {("0.weight", "3.weight"): 0.1, ("0.bias", "3.bias"): 0.0}


def test_the_room_can_be_imported_without_torch_and_says_what_it_has() -> None:
    code = "import sys, minerua.learning as room; print('torch' in sys.modules, 'learn' in room.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
    import minerua.learning as room

    with pytest.raises(AttributeError, match=r"minerua.learning has no 'Trainer'; it has CheckpointManager"):
        _ = room.Trainer
    assert all(getattr(room, name) is not None for name in room.__all__)
