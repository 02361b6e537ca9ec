"""Checkpoints: whole or absent, rotated, verified."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from minerua.errors import CheckpointError, StorageError
from minerua.learning.checkpoints import CheckpointManager, compare_runs, damage
from minerua.learning.state import Progress
from minerua.weights import open_checkpoint

from .test_state import some_state
from .worlds import contents

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}


def save(manager: CheckpointManager, step: int, *, kind: str = "regular") -> Path:
    return manager.save(some_state(progress=Progress(step=step), kind=kind), WEIGHTS)


def names(manager: CheckpointManager) -> list[str]:
    return [path.name.removeprefix("step-0000000") for path in manager.found()]


def test_a_checkpoint_comes_back_with_its_weights_and_its_state(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, metadata={"minerua.base": "abc"})
    path = save(manager, 7)
    opened, notes = manager.newest()
    assert opened is not None
    assert (opened.path, opened.state.progress.step, notes) == (path, 7, [])
    assert all(torch.equal(opened.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert open_checkpoint(path / "model.safetensors").metadata["minerua.base"] == "abc"


def test_only_the_newest_stay(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        save(manager, step)
    assert names(manager) == ["004", "003"]


def test_one_that_was_written_on_a_signal_replaces_no_regular_one_and_goes_with_the_next(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep=2)
    for step in (1, 2):
        save(manager, step)
    save(manager, 3, kind="signal")
    assert names(manager) == ["003-stopped", "002", "001"]
    regular, _ = manager.newest(regular=True)
    assert regular is not None
    assert regular.state.progress.step == 2
    save(manager, 5, kind="exception")
    assert names(manager) == ["005-stopped", "002", "001"]
    save(manager, 6)
    assert names(manager) == ["006", "002"]


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "state.json", "digests.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_newest_is_put_aside_with_a_note_and_the_one_before_is_used(
    tmp_path: Path, file: str, harm: str
) -> None:
    manager = CheckpointManager(tmp_path)
    save(manager, 1)
    path = save(manager, 2) / file
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(flipped if harm == "flip" else content[:middle])
    opened, notes = manager.newest()
    assert opened is not None
    assert opened.state.progress.step == 1
    assert "step-0000000002 is damaged and was put aside as step-0000000002.damaged" in notes[0]
    assert names(manager) == ["001"]
    save(manager, 2)
    assert names(manager) == ["002", "001"]


def test_what_is_damaged_is_said(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    path = save(manager, 1)
    assert damage(path) == ""
    (path / "state.json").write_text("{}")
    assert "the digest of state.json is" in damage(path)
    assert ", it was written with " in damage(path)
    (path / "digests.json").write_text("{}")
    assert damage(path) == "digests.json does not name the files"
    (path / "digests.json").unlink()
    assert damage(path).startswith("digests.json cannot be read or a file is missing: ")


def test_without_any_there_is_none(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    assert manager.newest() == (None, [])
    assert manager.found() == []
    manager.clean()


def test_the_same_step_is_not_written_twice_unless_it_is_damaged(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    path = save(manager, 1)
    before = path.stat().st_ino
    assert save(manager, 1).stat().st_ino == before
    (path / "state.json").write_text("{}")
    save(manager, 1)
    assert damage(path) == ""


def test_a_full_disk_leaves_what_was_there_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = CheckpointManager(tmp_path, keep=1)
    save(manager, 1)
    manager.save_best(WEIGHTS, {})
    before = contents(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"No space left on device; free some space"):
        save(manager, 2)
    with pytest.raises(StorageError, match=r"best\.safetensors: .* cannot be written"):
        manager.save_best(WEIGHTS, {})
    assert contents(tmp_path) == before


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    save(manager, 1)
    left = manager.folder / ".step-0000000002.0123456789abcdef.partial"
    left.mkdir()
    manager.clean()
    assert not left.exists()


def test_best_weights_are_a_file_of_their_own_and_say_what_they_scored(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    path = manager.save_best(WEIGHTS, {"minerua.step": "3"})
    assert path == tmp_path / "best.safetensors"
    assert torch.equal(manager.open_best()["w"], WEIGHTS["w"])
    assert open_checkpoint(path).metadata["minerua.step"] == "3"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot create the folder .*checkpoints: File exists; choose another one"):
        save(CheckpointManager(tmp_path), 1)


def test_a_damaged_one_that_cannot_be_put_aside_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = CheckpointManager(tmp_path)
    (save(manager, 1) / "state.json").unlink()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match=r"is damaged and cannot be put aside: Permission denied"):
        manager.newest()


def test_two_runs_are_compared_with_both_sides() -> None:
    assert compare_runs({"seed": 1, "a": None}, {"seed": 2, "b": [1]}) == [
        "b: the checkpoint has null, this run has [1]",
        "seed: the checkpoint has 1, this run has 2",
    ]


def test_a_whole_checkpoint_of_another_version_is_refused_and_not_put_aside(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save(some_state(format=9), WEIGHTS)
    with pytest.raises(CheckpointError, match=r"has version 9 of the state's format"):
        manager.newest()
    assert len(manager.found()) == 1
