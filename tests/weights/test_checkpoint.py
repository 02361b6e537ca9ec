import json
import os
import pickle
import threading
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from minerua.errors import CheckpointError, UnknownName
from minerua.values import TensorSpec
from minerua.weights.checkpoint import compare, find_non_finite, open_checkpoint
from minerua.weights.header import DTYPES
from minerua.weights.writer import write_checkpoint

TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1, 2, 3], dtype=ml_dtypes.bfloat16),
    "mask": np.array([True, False]),
    "steps": np.array(7, dtype=np.int64),
}


def _file(header: object, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def _faults(path: Path) -> tuple[str, ...]:
    with pytest.raises(CheckpointError, match="cannot be opened as a checkpoint") as caught:
        open_checkpoint(path)
    assert caught.value.faults
    return caught.value.faults


def _fault(path: Path) -> str:
    (fault,) = _faults(path)
    return fault


def _sharded(folder: Path, shards: dict[str, dict[str, np.ndarray]], **weight_map: str) -> Path:
    """Writes shards and an index; entries of `weight_map` are added to the true ones."""
    folder.mkdir(exist_ok=True)
    for name, tensors in shards.items():
        write_checkpoint(folder / name, tensors)
    named = {tensor: shard for shard, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": {**named, **weight_map}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_specs_are_sorted_and_tensors_have_their_values(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", TENSORS, metadata={"made": "here"})
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert list(checkpoint.specs) == sorted(TENSORS)
    assert checkpoint.specs["a.bias"] == TensorSpec("a.bias", (3,), "bfloat16")
    assert checkpoint.metadata == {"format": "pt", "made": "here"}
    assert checkpoint.nbytes == sum(array.nbytes for array in TENSORS.values())
    for name, array in TENSORS.items():
        read = checkpoint.tensor(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)


def test_what_torch_wrote_is_read_with_the_same_bits(tmp_path):
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
    generator = torch.Generator().manual_seed(1)
    written = {str(kind): torch.randn(5, 3, generator=generator).to(kind) for kind in kinds}
    written |= {"int": torch.arange(4), "bool": torch.tensor([True, False]), "empty": torch.zeros(0, 2)}
    save_file(written, tmp_path / "model.safetensors", metadata={"by": "torch"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.specs.keys() == written.keys()
    assert checkpoint.metadata == {"by": "torch"}
    for name, tensor in written.items():
        assert checkpoint.tensor(name).shape == tuple(tensor.shape)
        assert checkpoint.tensor(name).tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype_comes_back_with_its_bits(tmp_path, code):
    bits = np.arange(48, dtype=np.uint8) % (2 if code == "BOOL" else 255)
    array = bits.view(DTYPES[code]).reshape(2, -1)
    write_checkpoint(tmp_path / "m.safetensors", {"w": array})
    read = open_checkpoint(tmp_path / "m.safetensors").tensor("w")
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()


def test_tensors_are_read_only_views_that_outlive_the_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", TENSORS)
    array = open_checkpoint(tmp_path / "m.safetensors").tensor("b.weight")
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    np.testing.assert_array_equal(array, TENSORS["b.weight"])


def test_a_checkpoint_goes_on_seeing_the_file_that_it_opened(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", {"w": np.zeros(3)})
    before = open_checkpoint(tmp_path / "m.safetensors")
    write_checkpoint(tmp_path / "m.safetensors", {"w": np.ones(3)})
    assert before.tensor("w").sum() == 0
    assert open_checkpoint(tmp_path / "m.safetensors").tensor("w").sum() == 3


def test_a_tensor_at_an_odd_address_is_copied_to_an_even_one(tmp_path):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F64", "shape": [2], "data_offsets": [1, 17]},
    }
    (tmp_path / "m.safetensors").write_bytes(_file(header, b"\x01" + np.array([1.5, -2]).tobytes()))
    array = open_checkpoint(tmp_path / "m.safetensors").tensor("b")
    assert array.flags.aligned
    assert not array.flags.writeable
    assert array.tolist() == [1.5, -2]


def test_a_file_that_ends_with_an_empty_tensor_is_read(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", {"a": np.zeros(2), "none": np.zeros((3, 0), np.int8)})
    assert open_checkpoint(tmp_path / "m.safetensors").tensor("none").shape == (3, 0)


def test_a_checkpoint_without_tensors_is_one(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(_file(b"{}"))
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert (len(checkpoint.specs), checkpoint.nbytes) == (0, 0)


def test_an_unknown_tensor_is_answered_with_the_nearest_name(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", TENSORS)
    with pytest.raises(UnknownName, match=r"m\.safetensors: no tensor is named 'b\.wieght'; did you mean 'b\.weight'"):
        open_checkpoint(tmp_path / "m.safetensors").tensor("b.wieght")


def test_a_checkpoint_and_its_mappings_cannot_be_changed(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", TENSORS)
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(AttributeError):
        checkpoint.path = Path("elsewhere")
    with pytest.raises(TypeError):
        checkpoint.specs["new"] = TensorSpec("new", (), "int8")
    with pytest.raises(TypeError):
        checkpoint.metadata["new"] = ""


def test_a_pickled_checkpoint_is_opened_again(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", TENSORS)
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert pickle.loads(pickle.dumps(checkpoint)).digest == checkpoint.digest


def test_opening_reads_the_header_only(tmp_path):
    path = tmp_path / "m.safetensors"
    size = 1 << 36  # a sparse file: 64 GiB that could not be read in the time of a test
    header = {"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    path.write_bytes(_file(header))
    os.truncate(path, path.stat().st_size + size)
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(path)
        last = checkpoint.tensor("w")[-1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (checkpoint.nbytes, float(last)) == (size, 0.0)
    assert peak < 1_000_000


def test_many_threads_read_the_same_values(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", TENSORS)
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(checkpoint.digest)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 8
    assert len(set(digests)) == 1


# ── which file ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_stands_for_its_model_file_before_its_index(tmp_path):
    write_checkpoint(tmp_path / "model.safetensors", {"whole": np.zeros(1)})
    _sharded(tmp_path, {"s1.safetensors": {"a": np.zeros(1)}})
    assert list(open_checkpoint(tmp_path).specs) == ["whole"]


def test_a_folder_stands_for_its_only_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "unet.safetensors", {"w": np.zeros(1)})
    (tmp_path / "README.md").write_text("")
    assert list(open_checkpoint(str(tmp_path)).specs) == ["w"]


def test_a_folder_with_two_candidates_lists_them(tmp_path):
    write_checkpoint(tmp_path / "x.safetensors", {"w": np.zeros(1)})
    write_checkpoint(tmp_path / "y.safetensors", {"w": np.zeros(1)})
    assert "the folder holds 'x.safetensors', 'y.safetensors'" in _fault(tmp_path)


def test_a_folder_with_torch_files_only_says_how_to_convert_them(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "convert torch's files with safetensors.torch.save_file" in _fault(tmp_path)


def test_an_empty_folder_says_that_it_holds_nothing(tmp_path):
    assert "the folder holds nothing" in _fault(tmp_path)


def test_an_adapter_is_not_a_whole_model(tmp_path):
    write_checkpoint(tmp_path / "adapter_model.safetensors", {"w": np.zeros(1)})
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "open it with open_adapter and its base" in _fault(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    assert _fault(tmp_path / "gone.safetensors") == f"{tmp_path}/gone.safetensors: No such file or directory"


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.safetensors")
    assert "not a regular file" in _fault(tmp_path / "m.safetensors")


def test_a_path_with_a_null_byte_is_refused():
    assert "not a possible path" in _fault(Path("a\0.safetensors"))


def test_another_ending_is_refused_with_a_hint(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    assert "can be converted with safetensors.torch.save_file" in _fault(tmp_path / "model.pt")
    assert "model.pt ends neither in .safetensors nor in .safetensors.index.json; " in _fault(tmp_path / "model.pt")


# ── malformed files ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too short: 0 bytes, a header's length takes 8"),
        (b"1234567", "too short: 7 bytes"),
        ((1000).to_bytes(8, "little") + b"{}", "the header claims 1000 bytes, but only 2 follow its length"),
        (b"\xff" * 8 + b"{}", "the header claims 18446744073709551615 bytes, the limit is 100000000"),
        (_file(b"\xff\xfe"), "the header is not UTF-8"),
        (_file(b"nonsense"), "the header is not JSON"),
        (
            _file({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"12345"),
            "the tensors need 16 bytes, the file holds 5 of them; 11 bytes are missing",
        ),
    ],
)
def test_a_malformed_file_is_refused_with_its_numbers(tmp_path, content, words):
    (tmp_path / "m.safetensors").write_bytes(content)
    fault = _fault(tmp_path / "m.safetensors")
    assert fault.startswith("m.safetensors: ")
    assert words in fault


def test_a_header_longer_than_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((200_000_000).to_bytes(8, "little"))
    os.truncate(path, 300_000_000)
    assert "the header claims 200000000 bytes, the limit is 100000000" in _fault(path)


def test_a_million_faults_are_counted_and_a_hundred_listed(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(_file({str(number): 0 for number in range(10_000)}))
    faults = _faults(tmp_path / "m.safetensors")
    assert len(faults) == 101
    assert faults[-1] == "and 9900 more of this kind"


def test_what_the_safetensors_library_refuses_is_refused_too(tmp_path):
    whole = bytearray(safetensors.numpy.save({"a": np.arange(4, dtype=np.float32), "b": np.zeros((2, 2))}))
    accepted = 0
    for position in range(len(whole)):
        mutated = bytearray(whole)
        mutated[position] ^= 0x15
        (tmp_path / "m.safetensors").write_bytes(mutated)
        try:
            safetensors.deserialize(bytes(mutated))
        except safetensors.SafetensorError:
            _faults(tmp_path / "m.safetensors")
        else:
            accepted += 1
    assert accepted > 0


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_read(tmp_path, content):
    _open_and_read(tmp_path / "m.safetensors", content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_file_is_refused_or_read(tmp_path, data):
    whole = bytearray(_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {}}, b"12345678"))
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(whole)))
        end = min(len(whole), begin + data.draw(st.integers(0, 6)))
        whole[begin:end] = data.draw(st.binary(max_size=6) | st.sampled_from([b"[", b'"', b"9" * 30, b"{}", b"-1"]))
    _open_and_read(tmp_path / "m.safetensors", bytes(whole))


def _open_and_read(path: Path, content: bytes) -> None:
    """Opens what may be anything: either a fault is reported, or every tensor can be read to its end."""
    path.unlink(missing_ok=True)  # never shorten a file that an earlier example still maps
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return
    read = [checkpoint.tensor(name).tobytes() for name in checkpoint.specs]
    assert sum(map(len, read)) == checkpoint.nbytes <= len(content)


# ── shards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_shards_are_joined_by_their_index(tmp_path):
    first = {"c": np.zeros(2), "a": np.ones(1)}
    _sharded(tmp_path, {"m-1.safetensors": first, "m-2.safetensors": {"b": np.arange(3)}})
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        checkpoint = open_checkpoint(path)
        assert list(checkpoint.specs) == ["a", "b", "c"]
        assert checkpoint.tensor("b").tolist() == [0, 1, 2]


def test_metadata_of_shards_is_merged_and_the_first_shard_counts(tmp_path):
    _sharded(tmp_path, {"m-1.safetensors": {"a": np.zeros(1)}, "m-2.safetensors": {"b": np.zeros(1)}})
    write_checkpoint(tmp_path / "m-1.safetensors", {"a": np.zeros(1)}, metadata={"both": "1", "one": "x"})
    write_checkpoint(tmp_path / "m-2.safetensors", {"b": np.zeros(1)}, metadata={"both": "2", "two": "y"})
    assert open_checkpoint(tmp_path).metadata == {"format": "pt", "both": "1", "one": "x", "two": "y"}


def test_all_faults_of_index_and_shards_are_reported_at_once(tmp_path):
    shards = {"m-1.safetensors": {"a": np.zeros(1), "b": np.zeros(1)}, "m-2.safetensors": {"b": np.zeros(1)}}
    _sharded(tmp_path, shards, gone="m-3.safetensors", absent="m-1.safetensors", out="../x.safetensors")
    write_checkpoint(tmp_path / "m-2.safetensors", {"b": np.zeros(1), "unlisted": np.zeros(1)})
    text = "\n".join(_faults(tmp_path))
    assert "m-3.safetensors: No such file or directory" in text
    assert "m-1.safetensors: lacks tensor 'absent', which the index places there" in text
    assert "m-2.safetensors: holds tensor 'unlisted', which the index does not name" in text
    assert "tensor 'b' is in two shards: m-1.safetensors and m-2.safetensors" in text
    assert "tensor 'out': '../x.safetensors' is not the name of a .safetensors file in the index's folder" in text


def test_a_tensor_listed_twice_in_the_index_is_a_fault(tmp_path):
    _sharded(tmp_path, {"m-1.safetensors": {"a": np.zeros(1)}})
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "m-1.safetensors", "a": "m-1.safetensors"}}'
    )
    assert _fault(tmp_path) == "model.safetensors.index.json: the index has the key 'a' more than once"


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', "[]", "x", '{"weight_map": {"a": 1}}'])
def test_a_malformed_index_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    faults = _faults(tmp_path)
    assert all(fault.startswith("model.safetensors.index.json: ") for fault in faults)
    assert ("the index has no object weight_map" in faults[-1]) == ('"a"' not in index)


@pytest.mark.parametrize(
    "shard", ["/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x\0.safetensors", "x"]
)
def test_an_index_cannot_name_files_elsewhere(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert "is not the name of a .safetensors file in the index's folder" in _fault(tmp_path)


# ── the digest ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_digest_knows_nothing_of_shards_and_metadata(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", TENSORS, metadata={"x": "y"})
    halves = [dict(list(TENSORS.items())[:2]), dict(list(TENSORS.items())[2:])]
    folder = _sharded(tmp_path / "sharded", {"2.safetensors": halves[0], "1.safetensors": halves[1]})
    digest = open_checkpoint(tmp_path / "m.safetensors").digest
    assert digest == open_checkpoint(folder).digest
    assert len(bytes.fromhex(digest)) == 16


def test_the_digest_sees_every_change(tmp_path):
    base = {"a": np.zeros(4, np.float32)}
    variants = [
        base,
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.array([0, 0, 0, -0.0], np.float32)},
        {"a": np.zeros(4, np.float32), "b": np.zeros(0)},
    ]
    digests = set()
    for number, tensors in enumerate(variants):
        write_checkpoint(tmp_path / f"{number}.safetensors", tensors)
        digests.add(open_checkpoint(tmp_path / f"{number}.safetensors").digest)
    assert len(digests) == len(variants)


def test_the_digest_of_a_tensor_of_many_blocks_is_stable(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "m.safetensors", {"w": np.arange(100_003, dtype=np.int32)})
    whole = open_checkpoint(tmp_path / "m.safetensors").digest
    monkeypatch.setattr("minerua.weights.checkpoint._BLOCK_BYTES", 1000)
    assert open_checkpoint(tmp_path / "m.safetensors").digest == whole


# ── faults of the numbers, and of the fit ────────────────────────────────────────────────────────────────────────────


def test_non_finite_numbers_are_counted_and_the_first_is_located(tmp_path, monkeypatch):
    monkeypatch.setattr("minerua.weights.checkpoint._BLOCK_BYTES", 16)
    sick = np.zeros((3, 5), ml_dtypes.bfloat16)
    sick[1, 3], sick[2, 0] = np.nan, np.inf
    complex_sick = np.array([1, complex(0, np.inf)], np.complex64)
    tensors = {"sick": sick, "z": complex_sick, "fine": np.ones(100), "ints": np.arange(9), "none": np.zeros((0, 3))}
    write_checkpoint(tmp_path / "m.safetensors", tensors)
    assert find_non_finite(open_checkpoint(tmp_path / "m.safetensors")) == [
        "tensor 'sick': 2 of 15 numbers are NaN or infinite, first at [1, 3]",
        "tensor 'z': 1 of 2 numbers are NaN or infinite, first at [1]",
    ]


@pytest.mark.parametrize("code", [code for code in DTYPES if code[0] in "FBC" and code != "BOOL"])
def test_nan_is_found_in_every_floating_dtype(tmp_path, code):
    array = np.ones(5, np.float32).astype(DTYPES[code])
    write_checkpoint(tmp_path / "well.safetensors", {"w": array})
    array[2] = np.array(np.nan, np.float32).astype(DTYPES[code])
    write_checkpoint(tmp_path / "sick.safetensors", {"w": array})
    assert find_non_finite(open_checkpoint(tmp_path / "well.safetensors")) == []
    assert find_non_finite(open_checkpoint(tmp_path / "sick.safetensors")) == [
        "tensor 'w': 1 of 5 numbers are NaN or infinite, first at [2]"
    ]


def test_a_scalar_nan_is_at_no_index(tmp_path):
    write_checkpoint(tmp_path / "m.safetensors", {"w": np.array(np.nan)})
    (fault,) = find_non_finite(open_checkpoint(tmp_path / "m.safetensors"))
    assert fault.endswith("first at []")


def test_checkpoints_of_other_dtypes_fit(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", {"w": np.zeros((2, 3), np.float32)})
    write_checkpoint(tmp_path / "b.safetensors", {"w": np.zeros((2, 3), ml_dtypes.bfloat16)})
    a, b = open_checkpoint(tmp_path / "a.safetensors"), open_checkpoint(tmp_path / "b.safetensors")
    assert compare(a, b, name="b") == []
    assert compare(a, a, name="a") == []


def test_every_difference_of_names_and_shapes_is_said_with_both_shapes(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", {"same": np.zeros(1), "w": np.zeros((2, 3)), "only": np.zeros(4)})
    write_checkpoint(tmp_path / "b.safetensors", {"same": np.zeros(1), "w": np.zeros((3, 2)), "more": np.zeros(())})
    faults = compare(
        open_checkpoint(tmp_path / "a.safetensors"), open_checkpoint(tmp_path / "b.safetensors"), name="expert 'b'"
    )
    assert faults == [
        "expert 'b' lacks tensor 'only', which the base holds with shape [4]",
        "expert 'b' has tensor 'more' of shape [], which the base lacks",
        "expert 'b' has tensor 'w' with shape [3, 2], the base [2, 3]",
    ]


def test_many_differences_of_a_kind_are_counted(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", {f"w{number:02}": np.zeros(1) for number in range(20)})
    write_checkpoint(tmp_path / "b.safetensors", {"x": np.zeros(1)})
    faults = compare(open_checkpoint(tmp_path / "a.safetensors"), open_checkpoint(tmp_path / "b.safetensors"), name="b")
    assert len(faults) == 8 + 1 + 1
    assert faults[8] == "and 12 more of this kind"
