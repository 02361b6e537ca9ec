"""Files written block by block: several side by side, and those that grow before their tensors are known."""

import numpy as np
import pytest

from minerua.errors import CheckpointError, StorageError
from minerua.values import TensorSpec
from minerua.weights import open_checkpoint, write_checkpoint, write_checkpoints
from minerua.weights.writer import GrowingCheckpoint


def test_files_written_side_by_side_are_those_written_alone(tmp_path):
    tensors = [{"a": np.arange(12.0).reshape(4, 3) * k, "b": np.full((), k, np.int8)} for k in (1, 2)]
    specs = [TensorSpec("b", (), "int8"), TensorSpec("a", (4, 3), "float64")]

    def blocks(spec):
        whole = [given[spec.name] for given in tensors]
        return [[array[rows] for array in whole] for rows in (slice(0, 3), slice(3, 4))] if spec.shape else [whole]

    paths = [tmp_path / f"{k}.safetensors" for k in range(2)]
    write_checkpoints(paths, specs, blocks, metadata=[{"k": "0"}, None])
    for k, path in enumerate(paths):
        write_checkpoint(tmp_path / "alone.safetensors", tensors[k], metadata=None if k else {"k": "0"})
        assert path.read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (np.zeros((3, 2), np.float32), r"float32 \[3, 2\]"),
        (np.zeros((4, 3), np.float32), r"float32 \[4, 3\]"),
        (np.zeros((4, 2)), r"float64 \[4, 2\]"),
        (np.zeros(4, np.float32), r"float32 \[4\]"),
    ],
)
def test_blocks_that_are_not_what_was_announced_are_refused(tmp_path, block, found):
    with pytest.raises(CheckpointError, match=rf"'a' was announced as float32 \[4, 2\], its function returned {found}"):
        write_checkpoints([tmp_path / "x.safetensors"], [TensorSpec("a", (4, 2), "float32")], lambda spec: [[block]])
    assert not list(tmp_path.iterdir())


def test_a_file_may_grow_before_its_tensors_are_known(tmp_path):
    with GrowingCheckpoint(tmp_path / "x.safetensors", header_bytes=300) as file:
        file.write(np.arange(3, dtype=np.float32))
        file.write(np.arange(3, 6, dtype=np.float32))
        file.write(np.eye(2))
        file.finish([TensorSpec("a", (6,), "float32"), TensorSpec("b", (2, 2), "float64")], {"k": "v"})
    opened = open_checkpoint(tmp_path / "x.safetensors")
    assert opened.tensor("a").tolist() == [0, 1, 2, 3, 4, 5]
    assert (opened.tensor("b") == np.eye(2)).all()
    assert opened.metadata == {"k": "v"}


def test_an_unfinished_file_is_no_checkpoint(tmp_path):
    with GrowingCheckpoint(tmp_path / "x.safetensors", header_bytes=300) as file:
        file.write(np.eye(2))
    with pytest.raises(CheckpointError, match="cannot be opened as a checkpoint"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_a_growing_file_says_what_does_not_fit(tmp_path):
    with GrowingCheckpoint(tmp_path / "x.safetensors", header_bytes=16) as file:
        file.write(np.eye(2))
        with pytest.raises(CheckpointError, match=r"x.safetensors cannot be finished") as caught:
            file.finish([TensorSpec("b", (2, 3), "float64")], {})
    assert caught.value.faults == (
        "the header takes 64 bytes, its room is 56",
        "the tensors take 48 bytes, 32 were written",
    )


def test_a_growing_file_says_after_how_many_bytes_the_disk_refused(tmp_path):
    with pytest.raises(StorageError, match=r"after 0 bytes: No such file or directory; free some space, or write to"):
        GrowingCheckpoint(tmp_path / "gone" / "x.safetensors", header_bytes=16)
