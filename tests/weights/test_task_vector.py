import numpy as np
import pytest

from minerua.errors import CheckpointError
from minerua.weights import (
    Factors,
    Subspace,
    apply,
    dense,
    difference,
    is_floating,
    open_checkpoint,
    open_expert,
    save_adapter,
    task_vector,
    write_adapter,
    write_checkpoint,
)

from ..worlds import COUNTER, DTYPES, SHAPES, base_tensors, low_rank, tuned_tensors, write_lora, write_model


@pytest.fixture(params=sorted(DTYPES))
def dtype(request):
    return request.param


def _base(folder, dtype="float32"):
    return open_checkpoint(write_model(folder / "base", base_tensors(dtype=dtype)))


@pytest.mark.parametrize("shards", [1, 3])
def test_the_task_vector_of_a_full_fine_tune_is_its_difference_from_the_base(tmp_path, dtype, shards):
    base = base_tensors(dtype=dtype)
    tuned = tuned_tensors(base, seed=1)
    expert = open_expert("e", write_model(tmp_path / "e", tuned, shards=shards), _base(tmp_path, dtype))
    assert sorted(expert.task_vector) == sorted(SHAPES)
    assert len(expert.task_vector) == len(SHAPES)
    for name, change in expert.task_vector.items():
        assert isinstance(change, np.ndarray)
        assert (change.dtype, change.shape) == (np.float32, SHAPES[name])
        exact = tuned[name].astype(np.float64) - base[name].astype(np.float64)
        np.testing.assert_array_equal(change, exact.astype(np.float32))


def test_base_plus_task_vector_is_the_expert(tmp_path, dtype):
    base, tuned = _base(tmp_path, dtype), tuned_tensors(base_tensors(dtype=dtype), seed=1)
    expert = open_expert("e", write_model(tmp_path / "e", tuned), base)
    for name, array in apply(base, expert.task_vector).items():
        tolerance = np.abs(base.tensor(name).astype(np.float64)).max() * 2**-23
        np.testing.assert_allclose(array.astype(np.float64), tuned[name].astype(np.float64), rtol=0, atol=tolerance)


def test_a_task_vector_in_double_precision_is_rounded_after_the_difference(tmp_path):
    base = {"w": np.ones((2, 2))}
    tuned = {"w": base["w"] + 2.0**-40}
    opened = open_checkpoint(write_model(tmp_path / "base", base))
    change = open_expert("e", write_model(tmp_path / "e", tuned), opened).task_vector["w"]
    assert (change == np.float32(2.0**-40)).all()


def test_an_adapter_s_task_vector_holds_factors_of_the_tensors_that_it_changes(tmp_path):
    base = _base(tmp_path)
    expert = open_expert("e", write_lora(tmp_path / "e", {"body.weight": 2, "head.weight": 1}, seed=0), base)
    assert sorted(expert.task_vector) == ["body.weight", "head.weight"]
    assert all(isinstance(change, Factors) for change in expert.task_vector.values())
    left, right = expert.task_vector["body.weight"]
    np.testing.assert_array_equal(dense(expert.task_vector["body.weight"]), left @ right)


def test_an_expert_knows_its_name_path_and_digest(tmp_path):
    base, tuned = _base(tmp_path), tuned_tensors(base_tensors(), seed=1)
    one = open_expert("one", str(write_model(tmp_path / "one", tuned)), base)
    cut = open_expert("cut", write_model(tmp_path / "cut", tuned, shards=2), base)
    other = open_expert("other", write_model(tmp_path / "other", tuned_tensors(base_tensors(), seed=2)), base)
    assert (one.name, one.path) == ("one", tmp_path / "one")
    assert one.digest == one.task_vector.digest == cut.digest
    assert one.digest != other.digest


@pytest.mark.parametrize("name", [COUNTER, "nothing"])
def test_what_cannot_be_merged_is_not_in_a_task_vector(tmp_path, name):
    expert = open_expert("e", write_model(tmp_path / "e", tuned_tensors(base_tensors(), seed=1)), _base(tmp_path))
    assert name not in expert.task_vector
    with pytest.raises(KeyError, match=name):
        expert.task_vector[name]


def test_only_real_numbers_are_floating(tmp_path):
    tensors = {"f": np.zeros(1), "i": np.zeros(1, np.int8), "b": np.zeros(1, bool), "c": np.zeros(1, np.complex64)}
    opened = open_checkpoint(write_model(tmp_path / "base", tensors))
    assert [name for name in opened.specs if is_floating(opened, name)] == ["f"]


def test_all_faults_of_an_expert_are_told_at_once(tmp_path):
    tuned = tuned_tensors(base_tensors(), seed=1)
    tuned["body.bias"][3] = np.nan
    tuned["head.weight"] = np.zeros((5, 9), np.float32)
    tuned[COUNTER] = tuned[COUNTER] + 1
    tuned["extra"] = tuned.pop("norm.weight")
    with pytest.raises(CheckpointError, match=r"the expert 'coder' at .*e does not fit the base at .*base") as caught:
        open_expert("coder", write_model(tmp_path / "e", tuned), _base(tmp_path))
    assert sorted(caught.value.faults) == [
        "coder has tensor 'extra' of shape [6], which the base lacks",
        "coder has tensor 'head.weight' with shape [5, 9], the base [5, 8]",
        "coder lacks tensor 'norm.weight', which the base holds with shape [6]",
        "steps: int64 values differ from the base, and only floating-point tensors can be merged",
        "tensor 'body.bias': 1 of 8 numbers are NaN or infinite, first at [3]",
    ]


def test_a_counter_of_another_shape_is_told_once(tmp_path):
    tuned = tuned_tensors(base_tensors(), seed=1) | {COUNTER: np.arange(4)}
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        open_expert("e", write_model(tmp_path / "e", tuned), _base(tmp_path))
    assert caught.value.faults == ("e has tensor 'steps' with shape [4], the base [3]",)


@pytest.mark.parametrize("path", ["gone", "gone.safetensors"])
def test_an_expert_that_is_not_there_is_said_to_be_missing(tmp_path, path):
    with pytest.raises(CheckpointError, match="No such file or directory"):
        open_expert("e", tmp_path / path, _base(tmp_path))


def test_an_adapter_of_a_rank_that_its_matrix_cannot_have_is_refused(tmp_path):
    base = _base(tmp_path)
    path = write_lora(tmp_path / "e", {"body.weight": 7, "head.weight": 5}, seed=0)
    with pytest.raises(CheckpointError, match=r"the expert 'coder' at .*e does not fit the base at .*base") as caught:
        open_expert("coder", path, base)
    assert caught.value.faults == (
        "tensor 'body.weight': the adapter's rank is 7, the base's matrix [8, 6] has rank 6 at most; "
        "extract an adapter of a smaller rank, or name the whole model",
    )


def test_an_adapter_that_names_another_base_is_refused_with_both_digests(tmp_path):
    base = _base(tmp_path)
    expert = open_expert("e", write_lora(tmp_path / "e", {"body.weight": 2}, seed=0), base)
    subspace = Subspace(base, {"e": expert.task_vector})
    save_adapter(tmp_path / "child", subspace, subspace.founders["e"])
    assert open_expert("child", tmp_path / "child", base).task_vector.base is base
    other = open_checkpoint(write_model(tmp_path / "other", base_tensors(seed=1)))
    with pytest.raises(CheckpointError, match=f"made for the base {base.digest}, and .*other is {other.digest}; name"):
        open_expert("child", tmp_path / "child", other)


def test_a_full_fine_tune_that_names_another_base_is_refused_with_both_digests(tmp_path):
    base = _base(tmp_path)
    tensors = {name: base.tensor(name) for name in base.specs}
    write_checkpoint(tmp_path / "own.safetensors", tensors, metadata={"minerua.base": base.digest})
    write_checkpoint(tmp_path / "other.safetensors", tensors, metadata={"minerua.base": "0" * 32})
    assert open_expert("own", tmp_path / "own.safetensors", base).digest == base.digest
    with pytest.raises(CheckpointError) as caught:
        open_expert("other", tmp_path / "other.safetensors", base)
    (fault,) = caught.value.faults
    assert fault.startswith(f"it was made for the base {'0' * 32}, and ")
    assert f" is {base.digest}; name its own base" in fault


def test_an_adapter_for_other_modules_is_refused_with_what_the_base_lacks(tmp_path):
    write_adapter(tmp_path / "e", {"tail.weight": low_rank((8, 6), 1, seed=0)}, rank=1)
    with pytest.raises(CheckpointError, match=r"module 'tail': the base .*base has no tensor 'tail.weight'"):
        open_expert("e", tmp_path / "e", _base(tmp_path))


def test_a_difference_in_small_blocks_is_the_same_to_the_bit(tmp_path, dtype, monkeypatch):
    base = _base(tmp_path, dtype)
    tuned = open_checkpoint(write_model(tmp_path / "e", tuned_tensors(base_tensors(dtype=dtype), seed=1)))
    whole = dict(difference(tuned, base))
    monkeypatch.setattr(task_vector, "_BLOCK_VALUES", 5)
    for name, change in difference(tuned, base).items():
        np.testing.assert_array_equal(change, whole[name])
        assert change.shape == SHAPES[name]
