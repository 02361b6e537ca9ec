from pathlib import Path

import numpy as np
import pytest

from minerua.errors import CheckpointError
from minerua.weights.adapter import Factors, open_adapter
from minerua.weights.checkpoint import open_checkpoint
from minerua.weights.writer import write_adapter, write_checkpoint

LEFT = np.arange(8, dtype=np.float32).reshape(4, 2)
RIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def _base(folder: Path, **shapes: tuple[int, ...]) -> Path:
    path = folder / "base.safetensors"
    write_checkpoint(path, {f"{module}.weight": np.zeros(shape, np.float32) for module, shape in shapes.items()})
    return path


def test_an_adapter_comes_back_with_the_same_bits(tmp_path):
    base = open_checkpoint(_base(tmp_path, **{"m.q": (4, 3), "m.k": (4, 3)}))
    factors = {"m.q.weight": Factors(LEFT, RIGHT), "m.k.weight": Factors(LEFT + 1, RIGHT * 0.1)}
    write_adapter(tmp_path / "child", factors, rank=2, target_modules=["q", "k"], base_name="org/base")
    adapter = open_adapter(tmp_path / "child", base)
    assert list(adapter.factors) == ["m.k.weight", "m.q.weight"]
    for name, (left, right) in factors.items():
        np.testing.assert_array_equal(adapter.factors[name].left, left)
        np.testing.assert_array_equal(adapter.factors[name].right, right)
    assert adapter.config["base_model_name_or_path"] == "org/base"
    assert adapter.config["target_modules"] == ["q", "k"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["base.safetensors", "child"]


def test_alpha_is_taken_out_of_the_factors_and_put_back(tmp_path):
    base = open_checkpoint(_base(tmp_path, a=(4, 3)))
    write_adapter(tmp_path / "child", {"a.weight": Factors(LEFT, RIGHT)}, rank=2, alpha=32)
    stored = open_checkpoint(tmp_path / "child" / "adapter_model.safetensors")
    np.testing.assert_array_equal(stored.tensor("base_model.model.a.lora_B.weight"), LEFT / 16)
    np.testing.assert_array_equal(open_adapter(tmp_path / "child", base).factors["a.weight"].left, LEFT)


def test_ranks_may_differ_and_the_scaling_stays_one(tmp_path):
    base = open_checkpoint(_base(tmp_path, **{"x.a": (4, 3), "a": (4, 3)}))
    factors = {"a.weight": Factors(LEFT[:, :1], RIGHT[:1]), "x.a.weight": Factors(LEFT, RIGHT)}
    write_adapter(tmp_path / "child", factors, rank=2, alpha=8)
    adapter = open_adapter(tmp_path / "child", base)
    assert adapter.config["rank_pattern"] == {"^a": 1}
    assert adapter.config["alpha_pattern"] == {"^a": 4.0}
    for name, (left, right) in factors.items():
        np.testing.assert_array_equal(adapter.factors[name].left @ adapter.factors[name].right, left @ right)


def test_factors_of_transposed_weights_come_back(tmp_path):
    base = open_checkpoint(_base(tmp_path, a=(4, 3), square=(4, 4)))
    factors = {"a.weight": Factors(LEFT, RIGHT), "square.weight": Factors(LEFT, LEFT.T)}
    write_adapter(tmp_path / "child", factors, rank=2, fan_in_fan_out=True)
    adapter = open_adapter(tmp_path / "child", base)
    stored = open_checkpoint(tmp_path / "child" / "adapter_model.safetensors")
    assert stored.specs["base_model.model.a.lora_A.weight"].shape == (2, 4)
    for name, (left, right) in factors.items():
        np.testing.assert_array_equal(adapter.factors[name].left, left)
        np.testing.assert_array_equal(adapter.factors[name].right, right)


def test_an_empty_folder_is_taken_over(tmp_path):
    (tmp_path / "child").mkdir()
    write_adapter(tmp_path / "child", {"a.weight": Factors(LEFT, RIGHT)}, rank=2)
    names = sorted(path.name for path in (tmp_path / "child").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]


def test_all_that_is_wrong_with_an_adapter_is_said_at_once(tmp_path):
    factors = {
        "a.bias": Factors(LEFT, RIGHT),
        "b.weight": Factors(LEFT, LEFT),
        "c.weight": Factors(LEFT.astype(np.float64), RIGHT),
        "other.weight": Factors(LEFT, RIGHT),
    }
    with pytest.raises(CheckpointError, match="cannot be written as an adapter") as caught:
        write_adapter(tmp_path / "child", factors, rank=0, alpha=-1, target_modules=["b", "c"])
    assert caught.value.faults == (
        "rank 0 is not at least 1",
        "alpha -1.0 is not a positive number",
        "'a.bias' does not end in .weight; an adapter changes weight matrices only",
        "'b.weight': left [4, 2] and right [4, 2] are not an (m, r) and an (r, n) matrix",
        "'c.weight': left is float64, right is float32; both must be float32",
        "'other.weight': no entry of target_modules ['b', 'c'] names it; PEFT would leave it out",
    )
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_without_factors_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="there are no factors"):
        write_adapter(tmp_path / "child", {}, rank=1)
