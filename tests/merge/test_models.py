import doctest
import json
import os
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
import torch

from minerua.errors import CheckpointError
from minerua.kernels import passes
from minerua.merge import models as module
from minerua.merge.models import in_memory, locate, open_model, promised_model
from minerua.values import TensorSpec
from minerua.weights import Factors, write_adapter, write_checkpoint

from .folders import CONFIG, merged, recipe, tensors, write


def test_examples_run():
    assert doctest.testmod(module).failed == 0


def faults(text, path, **options):
    with pytest.raises(CheckpointError, match=r"^\S+ cannot be opened") as caught:
        open_model(text, str(path), **options)
    return caught.value.faults


def values(model):
    return {name: np.asarray(model.tensor(name), np.float32) for name in model.specs}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], np.asarray(array, np.float32), err_msg=name)


# ── safetensors ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_safetensors_is_opened_with_its_configuration(tmp_path, shards):
    write(tmp_path / "a", tensors(), shards=shards)
    model = open_model("coder", str(tmp_path / "a"))
    assert_same(values(model), tensors())
    assert (model.text, model.path, model.folder, model.config) == ("coder", tmp_path / "a", tmp_path / "a", CONFIG)
    assert not model.tensor("lm_head.weight").flags.writeable


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_single_file_is_a_model_whose_folder_is_its_own(tmp_path, name):
    write(tmp_path / "a", tensors(), shards=1 if name.endswith("s") else 2)
    model = open_model("coder", str(tmp_path / "a" / name))
    assert_same(values(model), tensors())
    assert (model.folder, model.config["model_type"]) == (tmp_path / "a", "llama")


def test_weights_without_a_configuration_are_as_good(tmp_path):
    write(tmp_path / "a", tensors(), config=None)
    assert open_model("coder", str(tmp_path / "a")).config == {}


def test_safetensors_are_preferred_where_both_lie_side_by_side(tmp_path):
    write(tmp_path / "a", tensors(1))
    torch.save({"other": torch.zeros(2)}, tmp_path / "a" / "pytorch_model.bin")
    assert_same(values(open_model("coder", str(tmp_path / "a"))), tensors(1))


def test_tensors_are_placed_and_asked_for_as_they_lie_on_the_disk(tmp_path):
    write(tmp_path / "a", tensors(), shards=2)
    model = open_model("coder", str(tmp_path / "a"))
    assert {model.place(name)[0] for name in model.specs} == {0, 1}
    assert len({model.place(name) for name in model.specs}) == len(model.specs)
    for name in model.specs:
        model.read_ahead(name)
    memory = in_memory("coder", tensors())
    memory.read_ahead("lm_head.weight")
    assert memory.place("lm_head.weight") == (0, 0)


def test_float64_is_rounded_to_float32_where_it_is_read(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", {"w": np.array([1 / 3, 2.0])})
    source = open_model("coder", str(tmp_path / "a.safetensors")).source("w")
    assert source.array.tolist() == np.float32([1 / 3, 2.0]).tolist()


# ── torch's own files ────────────────────────────────────────────────────────────────────────────────────────────────


def in_torch(arrays):
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def write_bin(folder, state, *, name="pytorch_model.bin", **options):
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name, **options)
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt"])
def test_a_bin_file_is_a_model(tmp_path, name):
    write_bin(tmp_path / "a", in_torch(tensors()), name=name)
    torch.save({"lr": 1}, tmp_path / "a" / "training_args.bin")
    for path in (tmp_path / "a", tmp_path / "a" / name):
        model = open_model("coder", str(path))
        assert_same(values(model), tensors())
        assert model.folder == tmp_path / "a"


def test_a_bin_file_from_before_torch_1_6_is_a_model(tmp_path):
    write_bin(tmp_path / "a", in_torch(tensors()), _use_new_zipfile_serialization=False)
    assert_same(values(open_model("coder", str(tmp_path / "a"))), tensors())


def sharded_bin(folder, weight_map=None):
    parts = list(tensors().items())
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for name, part in zip(names, (parts[:3], parts[3:]), strict=True):
        write_bin(folder, in_torch(dict(part)), name=name)
    where = {tensor: names[0] for tensor, _ in parts[:3]} | {tensor: names[1] for tensor, _ in parts[3:]}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where | (weight_map or {})}))
    return index


def test_sharded_bin_files_are_opened_by_their_index(tmp_path):
    index = sharded_bin(tmp_path / "a")
    write_bin(tmp_path / "a", {"old": torch.zeros(1)}, name="pytorch_model.bin.old.bin")
    for path in (tmp_path / "a", index):
        assert_same(values(open_model("coder", str(path))), tensors())


def test_a_tensor_in_two_bin_files_is_a_fault(tmp_path):
    sharded_bin(tmp_path / "a", {"extra": "third.bin"})
    write_bin(tmp_path / "a", {"extra": torch.zeros(2), "lm_head.weight": torch.zeros(2)}, name="third.bin")
    (fault,) = faults("coder", tmp_path / "a")
    assert fault.endswith(".bin: tensor 'lm_head.weight' is in two files")


def test_a_tensor_that_the_index_of_bin_files_promises_must_be_there(tmp_path):
    sharded_bin(tmp_path / "a", {"promised": "pytorch_model-00002-of-00002.bin"})
    (fault,) = faults("coder", tmp_path / "a")
    assert fault == "pytorch_model-00002-of-00002.bin lacks 'promised', which the index puts there"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "pytorch_model.bin.index.json is not JSON"),
        ("[]", "pytorch_model.bin.index.json is JSON, but not an object"),
        ('{"weight_map": 3}', "pytorch_model.bin.index.json has no weight_map, which says where tensors are"),
        ("[" * 100_000, "pytorch_model.bin.index.json is nested deeper"),
        ('{"weight_map": {"w": "../x.bin"}}', "puts 'w' into '../x.bin', which is not a file beside it"),
        ('{"weight_map": {"w": {}}}', "puts 'w' into {}, which is not a file beside it"),
        ('{"weight_map": {"w": "gone.bin"}}', "gone.bin cannot be loaded by torch's weights-only loader: FileNotFound"),
    ],
)
def test_an_index_of_bin_files_that_is_none_is_a_fault(tmp_path, content, fault):
    sharded_bin(tmp_path / "a").write_text(content)
    assert any(fault in found for found in faults("coder", tmp_path / "a"))


class Trap:
    """Touches a file where its pickle is loaded by a loader that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_with_code_is_refused_and_the_code_never_runs(tmp_path, is_zip):
    sprung = tmp_path / "sprung"
    state = {"w": torch.zeros(2), "x": Trap(str(sprung))}
    write_bin(tmp_path / "a", state, _use_new_zipfile_serialization=is_zip)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "pytorch_model.bin").write_bytes(pickle.dumps(state["x"]))
    for name in "ab":
        (fault,) = faults("coder", tmp_path / name)
        assert fault.startswith("pytorch_model.bin cannot be loaded by torch's weights-only loader: ")
    assert not sprung.exists()
    pickle.loads((tmp_path / "b" / "pytorch_model.bin").read_bytes())
    assert sprung.exists(), "the trap works"


def test_a_state_dict_inside_a_checkpoint_is_found(tmp_path):
    write_bin(tmp_path / "a", {"state_dict": in_torch(tensors()), "epoch": 3})
    assert_same(values(open_model("coder", str(tmp_path / "a"))), tensors())


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({"w": torch.zeros(2), "step": 3}, "pytorch_model.bin: 'step' is a int, not a tensor"),
        ([torch.zeros(2)], "pytorch_model.bin holds a list, not named tensors"),
        ({3: torch.zeros(2), "w": torch.zeros(2)}, "pytorch_model.bin: 3 is no text that could name a tensor"),
        ({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, "tensor 'w' is torch.float8_e4m3fn, torch.strided"),
        ({"w": torch.eye(2).to_sparse()}, "tensor 'w' is torch.float32, torch.sparse_coo"),
        ({"w": torch.empty(2, device="meta")}, "tensor 'w' is torch.float32, torch.strided"),
    ],
)
def test_what_is_no_plain_tensor_in_a_bin_file_is_a_fault(tmp_path, state, fault):
    write_bin(tmp_path / "a", state)
    (found,) = faults("coder", tmp_path / "a")
    assert fault in found


def test_bin_tensors_of_every_layout_and_kind_are_read_as_they_are_meant(tmp_path):
    plain = torch.arange(6.0).reshape(2, 3)
    state = {
        "turned": plain.t(),
        "spread": torch.ones(1).expand(4),
        "part": plain[:, 1:],
        "half": plain.to(torch.bfloat16),
        "trained": torch.nn.Parameter(plain),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }
    model = open_model("coder", str(write_bin(tmp_path / "a", state)))
    assert_same(values(model), {name: tensor.detach().float().numpy() for name, tensor in state.items()})
    assert model.specs["half"].dtype == "bfloat16"
    assert (model.specs["count"].shape, model.specs["count"].dtype) == ((), "int64")
    source = model.source("turned")
    np.testing.assert_array_equal(passes.load(source, 0, 6), plain.t().reshape(-1))


def test_a_merge_of_bin_files_equals_that_of_safetensors(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write(tmp_path / name, tensors(seed))
        write_bin(tmp_path / f"{name}-bin", in_torch(tensors(seed)))
    found = merged(tmp_path, recipe(names=[str(tmp_path / "a-bin"), str(tmp_path / "b-bin")]))
    expected = merged(tmp_path, recipe(names=[str(tmp_path / "a"), str(tmp_path / "b")]), "out2")
    assert_same(values(found), values(expected))


# ── adapters on the fly ──────────────────────────────────────────────────────────────────────────────────────────────

UP = "model.layers.1.mlp.up.weight"


def write_lora(folder, *, seed=0, name=UP, shape=(6, 4), **options):
    generator = np.random.default_rng(seed)
    left, right = generator.normal(size=(shape[0], 2)), generator.normal(size=(2, shape[1]))
    pair = Factors(left.astype(np.float32), right.astype(np.float32))
    write_adapter(folder, {name: pair}, rank=2, **options)
    return pair


def test_an_adapter_is_applied_where_its_tensor_is_read(tmp_path):
    write(tmp_path / "a", tensors())
    pair = write_lora(tmp_path / "lora")
    model = open_model("a+lora", str(tmp_path / "a"), adapter=(str(tmp_path / "lora"), None))
    expected = tensors()[UP] + pair.left @ pair.right
    np.testing.assert_allclose(passes.load(model.source(UP), 0, 24).reshape(6, 4), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.tensor(UP), tensors()[UP])
    assert model.source("lm_head.weight").left is None


def test_a_merge_with_adapters_on_the_fly_equals_that_of_dense_products(tmp_path):
    write(tmp_path / "base", tensors())
    for k in range(2):
        pair = write_lora(tmp_path / f"lora-{k}", seed=k)
        write(tmp_path / f"dense-{k}", tensors() | {UP: tensors()[UP] + pair.left @ pair.right})
    base = str(tmp_path / "base")
    thin = recipe("task_arithmetic", [f"{base}+{tmp_path}/lora-{k}" for k in range(2)], base_model=base)
    thick = recipe("task_arithmetic", [f"{tmp_path}/dense-{k}" for k in range(2)], base_model=base)
    found, expected = merged(tmp_path, thin, "thin"), merged(tmp_path, thick, "thick")
    np.testing.assert_allclose(found.tensor(UP), expected.tensor(UP), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.tensor("lm_head.weight"), expected.tensor("lm_head.weight"))


def test_an_adapter_that_does_not_fit_names_model_and_tensor(tmp_path):
    write(tmp_path / "a", tensors())
    write_lora(tmp_path / "lora", name="model.layers.9.mlp.up.weight")
    (fault,) = faults("a+lora", tmp_path / "a", adapter=(str(tmp_path / "lora"), None))
    assert "has no tensor 'model.layers.9.mlp.up.weight'" in fault
    (fault,) = faults("a+gone", tmp_path / "a", adapter=("gone/adapter", "v2"))
    assert fault.endswith("if it is a repository: hf download gone/adapter --revision v2")


# ── where models are ─────────────────────────────────────────────────────────────────────────────────────────────────


def put_in_cache(cache, name, *, commit="c0ffee", ref="main", seed=0):
    folder = cache / f"models--{name.replace('/', '--')}"
    write(folder / "snapshots" / commit, tensors(seed))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / ref).write_text(commit)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_a_repository_is_found_in_the_local_cache(tmp_path, monkeypatch, variable):
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    cache = tmp_path if variable == "HF_HUB_CACHE" else tmp_path / "hub"
    put_in_cache(cache, "acme/coder")
    put_in_cache(cache, "acme/coder", commit="beef", ref="v2", seed=1)
    assert_same(values(open_model("coder", "acme/coder")), tensors(0))
    assert_same(values(open_model("coder", "acme/coder", revision="v2")), tensors(1))
    assert_same(values(open_model("coder", "acme/coder", revision="beef")), tensors(1))
    (fault,) = faults("coder", "acme/coder", revision="v3")
    assert fault == (
        "acme/coder is neither a file nor a folder, nor in the local cache; if it is a repository: "
        "hf download acme/coder --revision v3"
    )


@pytest.mark.parametrize("path", ["gone", "x" * 5000, "~nobody-here/model", "nul\0", "a/" * 3000, ""])
def test_what_is_nowhere_is_a_fault_whatever_its_name(path):
    with pytest.raises(CheckpointError, match=r"is neither a file nor a folder, nor in the local cache"):
        locate("coder", path)


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a", tensors())
    assert locate("coder", "~/a") == tmp_path / "a"


def test_a_folder_without_weights_and_a_file_of_another_kind_are_faults(tmp_path):
    (tmp_path / "a").mkdir()
    assert faults("coder", tmp_path / "a")
    (tmp_path / "a" / "weights.gguf").write_bytes(b"GGUF")
    assert faults("coder", tmp_path / "a")
    assert faults("coder", tmp_path / "a" / "weights.gguf")


# ── configurations ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_configuration_that_cannot_be_read_is_a_fault(tmp_path):
    folder = write(tmp_path / "a", tensors())
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        (folder / "config.json").write_bytes(content)
        assert any("config.json" in fault for fault in faults("coder", folder))
    with (folder / "config.json").open("wb") as file:
        file.truncate(10_000_001)
    (fault,) = faults("coder", folder)
    assert fault == f"{folder}/config.json has more than 10000000 bytes: no configuration is that large"


def test_a_configuration_that_the_system_refuses_is_a_fault(tmp_path, monkeypatch):
    folder = write(tmp_path / "a", tensors())
    read = type(folder).read_bytes

    def refuse(path):
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(type(folder), "read_bytes", refuse)
    (fault,) = faults("coder", folder)
    assert fault.endswith("config.json: Permission denied")


# ── in memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_arrays_of_numpy_and_torch_are_models():
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    given = {
        "numpy": plain,
        "turned": plain.T,
        "swapped": plain.astype(">f4"),
        "half": plain.astype(ml_dtypes.bfloat16),
        "torch": torch.from_numpy(plain),
        "torch-half": torch.from_numpy(plain).to(torch.bfloat16).requires_grad_(),
    }
    model = in_memory("coder", given)
    expected = dict.fromkeys(given, plain) | {"turned": plain.T}
    assert_same(values(model), expected)
    assert [model.specs[name].dtype for name in ("swapped", "torch-half")] == ["float32", "bfloat16"]
    for name in given:
        assert passes.load(model.source(name), 0, 6).tolist() == expected[name].reshape(-1).tolist()


def test_what_is_no_array_is_no_model():
    with pytest.raises(CheckpointError, match="coder holds what is neither a numpy array nor a torch tensor") as caught:
        in_memory("coder", {"w": [1.0], "v": 3, "u": np.zeros(1)})
    assert caught.value.faults == ("tensor 'w' is a list", "tensor 'v' is a int")


def test_a_model_in_memory_has_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert not any(in_memory("coder", {}).folder.glob("*"))


def test_a_model_that_is_only_promised_has_no_tensors_yet(tmp_path):
    model = promised_model("first", {"w": TensorSpec("w", (2,), "float32")}, {}, tmp_path)
    assert model.folder == tmp_path
    with pytest.raises(RuntimeError, match="tensor 'w' was looked at before it was merged"):
        model.tensor("w")


def test_one_model_can_be_read_from_several_threads(tmp_path):
    write(tmp_path / "a", tensors(), shards=2)
    model = open_model("coder", str(tmp_path / "a"))
    found = []
    threads = [threading.Thread(target=lambda: found.append(values(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        assert_same(one, tensors())
