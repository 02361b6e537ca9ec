"""The loop, seen by those who watch it; and its ways to end."""

from __future__ import annotations

import errno
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from minerua.errors import CheckpointError, LearningError, LearningStopped, OutOfMemory, StorageError
from minerua.learning.checkpoints import damage
from minerua.learning.devices import DeviceManager
from minerua.learning.reports import Observer, StepReport
from minerua.values import ModelSpec
from minerua.weights import open_checkpoint

from .worlds import CLASSES, INPUTS, MODELS, Diary, Points, contents, mlp, pipeline, splits


class At(Observer):
    """Does something after a step."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def step_finished(self, report: StepReport) -> None:
        if report.step == self.step:
            self.act()


def with_model(module: Any, **more: Any) -> dict[str, Any]:
    return {"models": {**MODELS, "mlp": ModelSpec("mlp", build=dict, module=lambda **_: module)}, **more}


class Fragile(nn.Module):
    """Fails, or answers NaN, in a given forward pass of its training."""

    def __init__(self, at: int, error: BaseException | None = None, *, norm: bool = False) -> None:
        super().__init__()
        self.inner, self.at, self.error, self.calls = mlp(norm=norm), at, error, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.training and self.calls == self.at:
            out: torch.Tensor = self.inner(x)
            if self.error is not None:
                raise self.error
            return out * math.nan
        return self.inner(x)


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_those_who_watch_are_told_everything_in_order(tmp_path: Path) -> None:
    diary = Diary()
    learned = pipeline({"schedule": "linear"}, observers=[diary]).run(tmp_path / "out")
    (start,) = diary.starts
    assert (start.step, start.steps, start.steps_per_epoch, start.examples, start.device) == (0, 24, 8, 60, "cpu")
    assert [one.step for one in diary.steps] == list(range(1, 25))
    assert [one.epoch for one in diary.steps] == [0] * 8 + [1] * 8 + [2] * 8
    assert [one.examples for one in diary.steps[:8]] == [8] * 7 + [4]
    assert diary.steps[12].rate == pytest.approx(0.005)
    assert [one.step for one in diary.evaluations] == [8, 16, 24]
    mean = np.mean([float(one.loss) for one in diary.steps[8:16]])
    assert diary.evaluations[1].training_loss == pytest.approx(mean)
    assert [path.name for path in diary.paths] == ["step-0000000008", "step-0000000016", "step-0000000024"]
    assert diary.ends == [learned]
    assert learned.history == tuple(diary.evaluations)
    assert learned.best_metrics["loss"] == min(one.loss for one in diary.evaluations)


def test_the_loop_is_the_plain_one(tmp_path: Path) -> None:
    data = splits(64, 0, 0)
    changes = {
        "model": {"settings": {"dropout": 0.0}},
        "shuffle": False,
        "epochs": 2,
        "stopping": {"restore_best": False},
    }
    torch.manual_seed(3)
    module = mlp()
    plain = mlp()
    plain.load_state_dict(module.state_dict())
    pipeline(changes, data=data, **with_model(module)).run(tmp_path / "out")
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(2):
        for inputs, targets in zip(data.train.inputs.split(8), data.train.targets.split(8), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(inputs), targets).backward()
            optimizer.step()
    found = open_checkpoint(tmp_path / "out" / "model.safetensors")
    for name, tensor in plain.state_dict().items():
        assert np.array_equal(found.tensor(name), tensor.numpy())


def test_accumulation_of_eight_is_the_large_batch(tmp_path: Path) -> None:
    for parts in (1, 8):
        changes = {"batch_size": 32, "accumulate": parts, "model": {"settings": {"dropout": 0.0}}}
        changes["optimizer"] = {"name": "sgd", "rate": 0.1}
        pipeline(changes, data=splits(100)).run(tmp_path / str(parts))
    one, eight = (open_checkpoint(tmp_path / str(parts) / "model.safetensors") for parts in (1, 8))
    for name in one.specs:
        assert np.abs(one.tensor(name) - eight.tensor(name)).max() < 1e-6


def test_without_a_validation_split_the_training_loss_decides(tmp_path: Path) -> None:
    learned = pipeline({"metrics": []}, data=splits(60, 0, 0)).run(tmp_path / "out")
    assert learned.history[0].split == "train"
    assert learned.test_metrics == {}


def test_the_best_is_restored_and_the_last_stays_in_the_checkpoint(tmp_path: Path) -> None:
    changes = {"optimizer": {"rate": 0.5}, "epochs": 6, "stopping": {"patience": 3}}
    learned = pipeline(changes).run(tmp_path / "out")
    best, final = (open_checkpoint(tmp_path / "out" / f"{name}.safetensors") for name in ("best", "model"))
    assert best.digest == final.digest
    assert learned.best_step < learned.step
    last = open_checkpoint(tmp_path / "out" / "checkpoints" / f"step-{learned.step:010d}" / "model.safetensors")
    assert last.digest != final.digest


# ── signals, exceptions, memory ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_exactly(tmp_path: Path, number: signal.Signals) -> None:
    pipeline().run(tmp_path / "whole")
    diary = Diary()
    stop = At(11, lambda: os.kill(os.getpid(), number))
    with pytest.raises(
        LearningStopped, match=rf"stopped by {number.name} after step \d+; everything is saved"
    ) as caught:
        pipeline(observers=[stop, diary]).run(tmp_path / "out")
    assert caught.value.signal == number
    assert diary.paths[-1].name.endswith("-stopped")
    assert diary.ends == [caught.value]
    pipeline().run(tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_exception_saves_the_last_whole_step_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline(**with_model(Fragile(-1))).run(tmp_path / "whole")
    torch.manual_seed(0)
    broken = pipeline(**with_model(Fragile(11, ValueError("a bug"))))
    with pytest.raises(LearningError, match=r"step 11 failed: ValueError: a bug"):
        broken.run(tmp_path / "out")
    assert (tmp_path / "out" / "checkpoints" / "step-0000000010-stopped").is_dir()
    torch.manual_seed(0)
    pipeline(**with_model(Fragile(-1))).run(tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_exception_that_leaves_buffers_changed_saves_nothing(tmp_path: Path) -> None:
    broken = pipeline(**with_model(Fragile(11, ValueError("a bug"), norm=True)))
    with pytest.raises(LearningError, match=r"step 11 failed"):
        broken.run(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-0000000008"]


def test_a_row_that_cannot_be_read_saves_the_last_whole_step(tmp_path: Path) -> None:
    class Broken(Points):
        mended = False

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            if index == self.bad and not self.mended:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    pipeline().run(tmp_path / "whole")
    data = splits()
    data.train = Broken(60)
    data.train.bad = 60  # none, so that the first batch can be tried
    mend = At(9, lambda: setattr(data.train, "bad", next(iter(range(60)))))
    with pytest.raises(OSError, match="the disk is gone"):
        pipeline(data=data, observers=[mend]).run(tmp_path / "out")
    (left,) = (tmp_path / "out" / "checkpoints").glob("*-stopped")
    assert "step-0000000008" < left.name < "step-0000000017"
    Broken.mended = True
    pipeline(data=data).run(tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_evaluation_that_fails_says_so(tmp_path: Path) -> None:
    data = splits()
    data.validation.targets += 40
    with pytest.raises(LearningError, match=r"the evaluation after step 8 failed: IndexError: Target 4"):
        pipeline(data=data).run(tmp_path / "out")


def test_memory_that_runs_out_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    broken = pipeline(**with_model(Fragile(11, torch.OutOfMemoryError("CUDA out of memory"))))
    with pytest.raises(OutOfMemory, match=r"memory ran out on cpu with 8 examples at a time"):
        broken.run(tmp_path / "out")
    assert not damage(tmp_path / "out" / "checkpoints" / "step-0000000008")


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "write", full)

    with pytest.raises(StorageError, match=r"free some space"):
        pipeline(observers=[At(12, fill)]).run(tmp_path / "out")
    monkeypatch.undo()
    pipeline().run(tmp_path / "whole")
    pipeline().run(tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_an_observer_raises_ends_the_run(tmp_path: Path) -> None:
    def refuse() -> None:
        raise KeyError("from an observer")

    diary = Diary()
    with pytest.raises(KeyError, match="from an observer"):
        pipeline(observers=[At(2, refuse), diary]).run(tmp_path / "out")
    assert isinstance(diary.ends[0], KeyError)


# ── the guard ────────────────────────────────────────────────────────────────────────────────────────────────────────


def guarded(policy: str, at: int, *, norm: bool = False, **settings: Any) -> tuple[Any, Diary]:
    diary = Diary()
    changes = {"guard": {"policy": policy, **settings}, "save_every_steps": 4}
    return pipeline(changes, observers=[diary], **with_model(Fragile(at, norm=norm))), diary


def test_a_nan_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    run, _ = guarded("stop", 11)
    with pytest.raises(
        LearningError, match=r"step 11: the loss is nan; the last good checkpoint is .*step-0000000008"
    ) as e:
        run.run(tmp_path / "out")
    assert "A smaller optimizer.rate, a clip_norm or a longer schedule.warmup_steps may help" in str(e.value)
    assert [path.name for path in sorted((tmp_path / "out" / "checkpoints").iterdir())][-1] == "step-0000000008"


def test_a_nan_before_the_first_checkpoint_says_so(tmp_path: Path) -> None:
    run, _ = guarded("stop", 2)
    with pytest.raises(LearningError, match=r"there is no checkpoint yet"):
        run.run(tmp_path / "out")


@pytest.mark.parametrize("norm", [False, True])
def test_a_nan_can_be_skipped_without_a_trace(tmp_path: Path, norm: bool) -> None:
    run, diary = guarded("skip", 11, norm=norm)
    learned = run.run(tmp_path / "out")
    assert learned.skipped_steps == 1
    assert [one.step for one in diary.steps if one.skipped] == [11]
    assert diary.steps[10].why == "the loss is nan"
    final = open_checkpoint(learned.model)
    assert all(np.isfinite(final.tensor(name)).all() for name in final.specs)


def test_a_nan_can_be_rolled_back(tmp_path: Path) -> None:
    run, diary = guarded("rollback", 11)
    assert run.run(tmp_path / "out").skipped_steps == 1
    assert diary.paths[0].name == "step-0000000000"
    assert len(diary.steps) == 24


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(tmp_path: Path) -> None:
    run, diary = guarded("rollback", 3)

    def remove() -> None:
        for path in (tmp_path / "out" / "checkpoints").iterdir():
            (path / "digests.json").unlink()

    run._observers = (At(2, remove), diary)
    with pytest.raises(LearningError, match=r"there is no checkpoint to roll back to; all of this run were damaged"):
        run.run(tmp_path / "out")


def test_too_many_skipped_steps_end_the_run(tmp_path: Path) -> None:
    class Hopeless(Fragile):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * (math.nan if self.training else 1.0)

    run = pipeline({"guard": {"policy": "skip", "limit": 3}}, **with_model(Hopeless(0)))
    with pytest.raises(LearningError, match=r"more than guard.limit = 3 steps were not let through"):
        run.run(tmp_path / "out")


def test_weights_that_are_broken_are_neither_evaluated_nor_saved(tmp_path: Path) -> None:
    module = mlp()

    def spoil() -> None:
        with torch.no_grad():
            module[0].weight[0, 0] = math.inf

    run = pipeline(observers=[At(8, spoil)], data=splits(60), **with_model(module))
    with pytest.raises(
        LearningError, match=r"step 8 or one shortly before: 0.weight holds NaN or infinity; there is no"
    ):
        run.run(tmp_path / "out")
    assert not (tmp_path / "out" / "best.safetensors").exists()


def test_a_fault_of_another_process_ends_this_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceManager, "totals", lambda self, numbers: [1.0] * len(numbers))
    with pytest.raises(LearningError, match=r"a weight of another process holds NaN or infinity"):
        pipeline().run(tmp_path / "out")


def test_without_a_guard_nobody_looks(tmp_path: Path) -> None:
    run, _ = guarded("off", 3)
    assert run.run(tmp_path / "out").skipped_steps == 0


# ── going on ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def interrupted(folder: Path, **changes: Any) -> None:
    with pytest.raises(LearningStopped):
        pipeline(changes, observers=[At(11, lambda: os.kill(os.getpid(), signal.SIGTERM))]).run(folder)


def test_another_configuration_is_refused_with_both_sides(tmp_path: Path) -> None:
    interrupted(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"belongs to another run; undo what was changed, or begin anew"
    ) as caught:
        pipeline({"optimizer": {"rate": 0.5}, "model": {"settings": {"width": 8}}}).run(tmp_path, resume=True)
    assert "optimizer.rate: the checkpoint has 0.01, this run has 0.5" in caught.value.faults
    assert "model.settings.width: the checkpoint has null, this run has 8" in caught.value.faults
    assert contents(tmp_path) == before


def test_other_data_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with pytest.raises(CheckpointError, match=r"examples.train: the checkpoint has 60, this run has 64"):
        pipeline(data=splits(64)).run(tmp_path, resume=True)


def test_another_model_under_the_same_name_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    other = nn.Sequential(nn.Linear(INPUTS, 5), nn.Linear(5, CLASSES), nn.Linear(CLASSES, CLASSES))
    with pytest.raises(CheckpointError, match=r"holds another model than the one that is trained") as caught:
        pipeline(**with_model(other)).run(tmp_path, resume=True)
    assert "3.weight: the checkpoint has it, the model does not" in caught.value.faults
    assert "1.weight: the model has it, the checkpoint does not" in caught.value.faults
    assert "0.weight: the model has the shape [5, 12], the checkpoint [16, 12]" in caught.value.faults


def test_a_damaged_newest_is_passed_over_with_a_note_and_the_end_is_the_same(tmp_path: Path) -> None:
    pipeline().run(tmp_path / "whole")
    interrupted(tmp_path / "out")
    newest = sorted((tmp_path / "out" / "checkpoints").iterdir())[-1]
    (newest / "state.json").write_bytes((newest / "state.json").read_bytes()[:-40])
    diary = Diary()
    pipeline(observers=[diary]).run(tmp_path / "out", resume=True)
    assert diary.starts[0].step == 8
    assert "is damaged and was put aside" in diary.starts[0].notes[-1]
    found, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert {name: found[name] for name in whole} == whole


def test_another_version_of_torch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path)
    monkeypatch.setattr(torch, "__version__", "9.9")
    diary = Diary()
    pipeline(observers=[diary]).run(tmp_path, resume=True)
    (note,) = diary.starts[0].notes
    assert note.startswith("not as it was, so the bits may differ: torch: the checkpoint has")
    assert note.endswith('this run has "9.9"')


def test_another_number_of_threads_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    before = torch.get_num_threads()
    diary = Diary()
    run = pipeline(observers=[diary])
    run.config = run.config.model_copy(update={"device": run.config.device.model_copy(update={"threads": None})})
    with pytest.raises(CheckpointError, match=r"device.threads: the checkpoint has 1, this run has null"):
        run.run(tmp_path, resume=True)
    assert torch.get_num_threads() == before


def test_more_epochs_can_be_asked_for_where_no_rate_depends_on_them(tmp_path: Path) -> None:
    pipeline({"epochs": 5}).run(tmp_path / "whole")
    interrupted(tmp_path / "out")
    pipeline({"epochs": 5}).run(tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_data_that_is_not_split_is_dealt_out(tmp_path: Path) -> None:
    points = Points(80)
    data = (points.inputs.numpy(), points.targets.numpy())
    assert pipeline(data=data).run(tmp_path / "out").test_metrics
    assert isinstance(splits(), SimpleNamespace)
