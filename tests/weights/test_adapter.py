import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minerua.errors import CheckpointError
from minerua.weights.adapter import is_adapter, module_of, open_adapter
from minerua.weights.checkpoint import Checkpoint, open_checkpoint
from minerua.weights.writer import write_checkpoint

A = np.array([[1, 2, 3], [4, 5, 6]], np.float32)  # (r, n) = (2, 3)
B = np.array([[1, 0], [0, 1], [2, -1], [0.5, 4]], np.float32)  # (m, r) = (4, 2)
PAIR = {"base_model.model.m.q.lora_A.weight": A, "base_model.model.m.q.lora_B.weight": B}


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    shapes = {"m.q": (4, 3), "m.k": (4, 3), "m.conv1d": (3, 4), "m.square": (3, 3)}
    tensors = {f"{module}.weight": np.zeros(shape, np.float32) for module, shape in shapes.items()}
    write_checkpoint(tmp_path / "base.safetensors", {**tensors, "m.q.bias": np.zeros(4)})
    return open_checkpoint(tmp_path / "base.safetensors")


def _adapter(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    folder = folder / "adapter"
    folder.mkdir(exist_ok=True)
    settings_ = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings_))
    write_checkpoint(folder / "adapter_model.safetensors", tensors)
    return folder


def _faults(folder: Path, base: Checkpoint) -> tuple[str, ...]:
    with pytest.raises(CheckpointError, match="cannot be used as a LoRA adapter") as caught:
        open_adapter(folder, base)
    return caught.value.faults


def _keys(prefix: str, suffix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}m.q.lora_A{suffix}.weight": A, f"{prefix}m.q.lora_B{suffix}.weight": B}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["", ".default", ".my-adapter"])
@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_factors_are_found_under_every_spelling_of_their_keys(tmp_path, base, prefix, suffix):
    adapter = open_adapter(_adapter(tmp_path, _keys(prefix, suffix)), base)
    assert list(adapter.factors) == ["m.q.weight"]
    np.testing.assert_array_equal(adapter.factors["m.q.weight"].left, B)
    np.testing.assert_array_equal(adapter.factors["m.q.weight"].right, A)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_factors_are_float32_and_read_only(tmp_path, base, dtype):
    tensors = {name: array.astype(dtype) for name, array in PAIR.items()}
    for factor in open_adapter(_adapter(tmp_path, tensors), base).factors["m.q.weight"]:
        assert factor.dtype == np.float32
        assert factor.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            factor[0, 0] = 1


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"lora_alpha": 16}, 8.0),
        ({"lora_alpha": 0.5}, 0.25),
        ({"lora_alpha": 16, "use_rslora": True}, 16 / math.sqrt(2)),
        ({"lora_alpha": 1, "alpha_pattern": {"q": 6}}, 3.0),
        ({"lora_alpha": 1, "alpha_pattern": {"m.q": 6}}, 3.0),
        ({"lora_alpha": 1, "alpha_pattern": {r"^m\.q": 6}}, 3.0),
        ({"lora_alpha": 1, "alpha_pattern": {"[qk]": 6}}, 3.0),
        ({"lora_alpha": 1, "alpha_pattern": {"k": 4, "q": 6, "m.q": 8}}, 3.0),
        ({"lora_alpha": 1, "alpha_pattern": {"m": 6, ".q": 6, "q.": 6, "Q": 6}}, 0.5),
        ({"r": 9, "rank_pattern": {"q": 2}, "lora_alpha": 4}, 2.0),
        ({"r": 9, "rank_pattern": {"q": 2}, "lora_alpha": 4, "use_rslora": True}, 4 / math.sqrt(2)),
        ({"rank_pattern": None, "alpha_pattern": {}, "lora_alpha": 2}, 1.0),
        ({"lora_alpha": 0}, 0.0),
        ({"use_rslora": None, "fan_in_fan_out": None, "modules_to_save": None, "init_lora_weights": True}, 1.0),
        ({"init_lora_weights": "gaussian", "use_dora": False, "layer_replication": [], "lora_dropout": 0.1}, 1.0),
    ],
)
def test_the_scaling_is_folded_into_the_left_factor(tmp_path, base, config, scaling):
    adapter = open_adapter(_adapter(tmp_path, PAIR, **config), base)
    np.testing.assert_array_equal(adapter.factors["m.q.weight"].left, B * np.float32(scaling))
    np.testing.assert_array_equal(adapter.factors["m.q.weight"].right, A)


@pytest.mark.parametrize("said", [True, False])
def test_factors_of_a_transposed_weight_are_transposed(tmp_path, base, said):
    tensors = {"m.conv1d.lora_A.weight": A, "m.conv1d.lora_B.weight": B}
    adapter = open_adapter(_adapter(tmp_path, tensors, fan_in_fan_out=said, lora_alpha=6), base)
    left, right = adapter.factors["m.conv1d.weight"]
    np.testing.assert_array_equal(left @ right, 3 * (B @ A).T)
    assert (left @ right).shape == base.specs["m.conv1d.weight"].shape


@pytest.mark.parametrize("said", [True, False])
def test_a_square_weight_is_transposed_as_the_configuration_says(tmp_path, base, said):
    tensors = {"m.square.lora_A.weight": A, "m.square.lora_B.weight": B[:3]}
    left, right = open_adapter(_adapter(tmp_path, tensors, fan_in_fan_out=said), base).factors["m.square.weight"]
    np.testing.assert_array_equal(left @ right, (B[:3] @ A).T if said else B[:3] @ A)


@pytest.mark.parametrize("said", [True, False])
def test_a_square_weight_among_both_kinds_is_refused(tmp_path, base, said):
    module = "m.q" if said else "m.conv1d"  # the one that contradicts the configuration
    tensors = {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
    square = {"m.square.lora_A.weight": A, "m.square.lora_B.weight": B[:3]}
    open_adapter(_adapter(tmp_path, tensors, fan_in_fan_out=said), base)
    (fault,) = _faults(_adapter(tmp_path, {**tensors, **square}, fan_in_fan_out=said), base)
    assert fault.startswith("module 'm.square': square, and other modules contradict fan_in_fan_out")
    assert fault.endswith("; merge it into its base with PEFT and use the whole model")


def test_the_digest_names_what_the_adapter_adds(tmp_path, base):
    first = open_adapter(_adapter(tmp_path, _keys("base_model.model.", "")), base).digest
    spelled = open_adapter(_adapter(tmp_path, _keys("", ".default"), lora_alpha=2.0), base).digest
    scaled = open_adapter(_adapter(tmp_path, _keys("", ".default"), lora_alpha=4), base).digest
    assert first == spelled
    assert first != scaled
    assert len(bytes.fromhex(first)) == 16


def test_an_adapter_knows_its_path_and_cannot_be_changed(tmp_path, base):
    folder = _adapter(tmp_path, PAIR)
    adapter = open_adapter(str(folder), base)
    assert adapter.path == folder
    assert adapter.config["peft_type"] == "LORA"
    with pytest.raises(TypeError):
        adapter.config["r"] = 3
    with pytest.raises(TypeError):
        adapter.factors["x"] = adapter.factors["m.q.weight"]
    with pytest.raises(AttributeError):
        adapter.path = tmp_path


def test_a_folder_with_a_configuration_is_an_adapter(tmp_path):
    folder = _adapter(tmp_path, PAIR)
    assert is_adapter(folder)
    assert is_adapter(str(folder))
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "base.safetensors")
    assert not is_adapter(tmp_path / "gone")


def test_the_module_of_a_weight_is_its_path():
    assert module_of("a.b.weight") == "a.b"


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only 'LORA' adapters can be merged"),
        ({"peft_type": None}, "peft_type is None"),
        ({"bias": "lora_only"}, "bias is 'lora_only': biases of the base were trained"),
        (
            {"use_dora": True},
            "use_dora is True: DoRA also rescales each output by a trained magnitude; merge it into its base with PEFT",
        ),
        ({"lora_bias": True}, "lora_bias is True: the adapter's own biases were trained"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']: whole modules were trained"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is [1]: single embeddings were trained"),
        ({"layer_replication": [[0, 4]]}, "layer_replication is [[0, 4]]: layers of the base are repeated"),
        (
            {"target_parameters": ["experts"]},
            "target_parameters is ['experts']: factors of bare parameters have another layout",
        ),
        (
            {"alora_invocation_tokens": [1, 2]},
            "alora_invocation_tokens is [1, 2]: the adapter is active for a part of the tokens only",
        ),
        ({"use_qalora": True}, "use_qalora is True: the inputs are pooled before they reach the factors"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is {'nblocks': 2}: the factors are block-diagonal"),
        ({"arrow_config": {"k": 3}}, "arrow_config is {'k': 3}: a router chooses between several adapters"),
        ({"kasa_config": {"beta": 3}}, "kasa_config is {'beta': 3}: singular values of the base are changed"),
        ({"monteclora_config": {"x": 3}}, "monteclora_config is {'x': 3}: the factors are random variables"),
        ({"init_lora_weights": "pissa_niter_4"}, "PEFT changes the base when it loads this adapter; save it again"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights is 'OLoRA': PEFT changes the base"),
        ({"r": 0}, "r is 0, not an integer of at least 1"),
        ({"r": True}, "r is True, not an integer"),
        ({"r": "2"}, "r is '2', not an integer"),
        ({"lora_alpha": None}, "lora_alpha is None, not a finite number"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan, not a finite number"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes', neither true nor false"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out is 1, neither true nor false"),
        ({"rank_pattern": [1]}, "rank_pattern is [1], not an object"),
        ({"rank_pattern": {"q": 1.5}}, "rank_pattern: 1.5 for 'q' is not a usable rank"),
        ({"alpha_pattern": {"k": None}}, "alpha_pattern: None for 'k' is not a usable alpha"),
        ({"alpha_pattern": {"x(?i)q": 4}}, "alpha_pattern: 'x(?i)q' is not a regular expression"),
        ({"alpha_pattern": {"q(": 4}}, "alpha_pattern: 'q(' is not a regular expression"),
    ],
)
def test_a_configuration_that_is_not_plain_lora_is_refused(tmp_path, base, config, words):
    (fault,) = _faults(_adapter(tmp_path, PAIR, **config), base)
    assert fault.startswith("adapter_config.json: ")
    assert words in fault


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "adapter_model.safetensors: holds no tensors"),
        ({"m.q.lora_A.weight": A}, "module 'm.q' has lora_A without lora_B"),
        ({"m.q.lora_B.weight": B}, "module 'm.q' has lora_B without lora_A"),
        ({**PAIR, "m.q.bias": B}, "tensor 'm.q.bias': not a factor of a linear layer"),
        ({**PAIR, "m.lora_embedding_A": A}, "tensor 'm.lora_embedding_A': factors of an embedding are not supported"),
        ({**PAIR, "m.q.lora_magnitude_vector.weight": A}, "DoRA's magnitudes are not supported"),
        ({**PAIR, "head.modules_to_save.weight": A}, "whole saved modules are not supported"),
        ({**PAIR, "m.q.lora_A.default.weight": A}, "a second lora_A for module 'm.q'"),
        ({**PAIR, "m.k.lora_A.weight": A.astype(np.int32)}, "dtype int32 is not one of float32, float16, bfloat16"),
        ({"m.x.lora_A.weight": A, "m.x.lora_B.weight": B}, "has no tensor 'm.x.weight'"),
        ({"q.lora_A.weight": A, "q.lora_B.weight": B}, "has no tensor 'q.weight'; it has 'm.q.weight': open the base"),
        ({"t.m.q.lora_A.weight": A, "t.m.q.lora_B.weight": B}, "no tensor 't.m.q.weight'; it has 'm.q.weight'"),
        (
            {"m.q.lora_A.weight": A[:, :2], "m.q.lora_B.weight": B},
            "lora_A is [2, 2], lora_B is [4, 2]; their product does not fit the base's [4, 3]",
        ),
        ({"m.q.lora_A.weight": A, "m.q.lora_B.weight": B[:, :1]}, "expected (r, n) and (m, r)"),
        ({"m.q.lora_A.weight": A.reshape(2, 3, 1), "m.q.lora_B.weight": B}, "expected (r, n) and (m, r)"),
        (
            {"m.q.lora_A.weight": A[:1], "m.q.lora_B.weight": B[:, :1]},
            "of rank 1; the configuration says 2",
        ),
        (
            {"m.q.lora_A.weight": A * np.float32(np.nan), "m.q.lora_B.weight": B},
            "tensor 'm.q.lora_A.weight': 6 of 6 numbers are NaN or infinite, first at [0, 0]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, base, tensors, words):
    faults = _faults(_adapter(tmp_path, tensors), base)
    assert any(words in fault for fault in faults), faults


def test_factors_that_overflow_when_scaled_are_refused(tmp_path, base):
    (fault,) = _faults(_adapter(tmp_path, PAIR, lora_alpha=1e39), base)
    assert fault == "module 'm.q': its factors overflow float32 when scaled by 5e+38"


def test_a_rank_that_a_pattern_contradicts_is_refused(tmp_path, base):
    (fault,) = _faults(_adapter(tmp_path, PAIR, rank_pattern={"q": 4}), base)
    assert fault.endswith("of rank 2; the configuration says 4")


def test_all_faults_of_an_adapter_are_reported_at_once(tmp_path, base):
    tensors = {**PAIR, "m.k.lora_A.weight": A, "gone.lora_A.weight": A, "gone.lora_B.weight": B}
    faults = _faults(_adapter(tmp_path, tensors, use_dora=True, bias="all"), base)
    assert len(faults) == 4


def test_a_missing_file_of_factors_is_named(tmp_path, base):
    folder = _adapter(tmp_path, PAIR)
    (folder / "adapter_model.safetensors").unlink()
    (fault,) = _faults(folder, base)
    assert fault.endswith("adapter_model.safetensors: No such file or directory")
    (folder / "adapter_model.bin").write_bytes(b"")
    (fault,) = _faults(folder, base)
    assert fault == "adapter_model.safetensors: missing; convert adapter_model.bin with safetensors.torch.save_file"


@pytest.mark.parametrize(
    ("text", "words"),
    [("[]", "not an object"), ("x", "not JSON"), ('{"r": 1, "r": 2}', "has the key 'r' more than once")],
)
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path, base, text, words):
    folder = _adapter(tmp_path, PAIR)
    (folder / "adapter_config.json").write_text(text)
    assert any(fault.startswith("adapter_config.json: the file") and words in fault for fault in _faults(folder, base))


def test_a_folder_without_a_configuration_is_refused(tmp_path, base):
    assert "adapter_config.json: No such file or directory" in _faults(tmp_path / "gone", base)


_VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({"q": 2})
_SETTING = st.sampled_from(
    [
        "peft_type",
        "r",
        "lora_alpha",
        "bias",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "fan_in_fan_out",
        "use_dora",
    ]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_SETTING, _VALUE, max_size=4))
def test_any_configuration_is_read_or_refused(tmp_path, base, config):
    folder = _adapter(tmp_path, PAIR, **config)
    try:
        adapter = open_adapter(folder, base)
    except CheckpointError:
        return
    assert np.isfinite(adapter.factors["m.q.weight"].left).all()


# ── without a base ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("turned", [False, True])
def test_without_a_base_the_configuration_alone_says_how_weights_are_stored(tmp_path, turned):
    A, B = np.ones((1, 3), np.float32), np.float32([[1], [2]])
    tensors = {"anything.lora_A.weight": A, "anything.lora_B.weight": B}
    folder = _adapter(tmp_path, tensors, r=1, lora_alpha=2, fan_in_fan_out=turned)
    pair = open_adapter(folder, None).factors["anything.weight"]
    product = 2 * (B @ A)
    np.testing.assert_array_equal(pair.left @ pair.right, product.T if turned else product)


def test_without_a_base_square_weights_are_no_riddle_and_faults_are_still_found(tmp_path):
    square = {"q.lora_A.weight": np.ones((1, 3), np.float32), "q.lora_B.weight": np.ones((3, 1), np.float32)}
    assert open_adapter(_adapter(tmp_path, square, r=1, lora_alpha=1), None).factors.keys() == {"q.weight"}
    with pytest.raises(CheckpointError, match="of rank 1; the configuration says 2"):
        open_adapter(_adapter(tmp_path, square, r=2, lora_alpha=1), None)
    wrong = {"q.lora_A.weight": np.ones((1, 3), np.float32), "q.lora_B.weight": np.ones((3, 2), np.float32)}
    with pytest.raises(CheckpointError, match=r"module 'q': .*; expected \(r, n\)"):
        open_adapter(_adapter(tmp_path, wrong, r=1, lora_alpha=1), None)
