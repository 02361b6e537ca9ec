"""Where tensors lie on the disk, and reading ahead of those who look at them."""

import json

import numpy as np
import pytest

from minerua.errors import UnknownName
from minerua.weights.checkpoint import open_checkpoint
from minerua.weights.writer import write_checkpoint


def test_places_order_tensors_as_they_lie_on_the_disk(tmp_path):
    first = {"z": np.zeros(3, np.float32), "a": np.zeros(2, np.float32)}
    for file, tensors in (("1.safetensors", first), ("2.safetensors", {"b": np.zeros(1, np.float32)})):
        write_checkpoint(tmp_path / file, tensors)
    where = {"a": "1.safetensors", "z": "1.safetensors", "b": "2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    checkpoint = open_checkpoint(tmp_path)
    places = {name: checkpoint.place(name) for name in checkpoint.specs}
    assert sorted(places, key=places.__getitem__) == ["a", "z", "b"]
    assert [file for file, _ in (places["a"], places["z"], places["b"])] == [0, 0, 1]
    content = (tmp_path / "1.safetensors").read_bytes()
    assert places["a"][1] == len(content) - 20, "the first byte in the file"


def test_reading_ahead_changes_nothing_whatever_the_tensor(tmp_path):
    tensors = {"none": np.zeros((0, 3), np.float32), "one": np.ones(1, np.int8), "many": np.ones(9999, np.float16)}
    write_checkpoint(tmp_path / "m.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    for name, array in tensors.items():
        checkpoint.read_ahead(name)
        np.testing.assert_array_equal(checkpoint.tensor(name), array)


def test_an_unknown_tensor_has_no_place_and_cannot_be_read_ahead(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", {"weight": np.ones(1, np.float32)})
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    for ask in (checkpoint.place, checkpoint.read_ahead):
        with pytest.raises(UnknownName, match="did you mean 'weight'"):
            ask("wieght")
