import copy
import doctest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerua.errors import CheckpointError
from minerua.merge.layout import configuration
from minerua.merge.layout.configuration import find_layer_key, merged_config, translate_ids


def test_the_examples_run() -> None:
    assert doctest.testmod(configuration).failed == 0


def test_nothing_changes_unless_it_is_asked_for() -> None:
    config = {"num_hidden_layers": 2, "vocab_size": 8, "torch_dtype": "float16", "eos_token_id": 2}
    assert merged_config(config) == (config, ())


def test_the_donors_configuration_is_left_alone() -> None:
    config: dict[str, Any] = {"text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"], "vocab_size": 5}}
    before = copy.deepcopy(config)
    merged_config(config, dtype="bfloat16", layers={"text_config.num_hidden_layers": [1]}, vocabulary=8, new_ids={})
    assert config == before


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        (
            {"dtype": "x", "text_config": {"torch_dtype": "x", "n": 1}, "quantization_config": {"dtype": "x"}},
            {
                "dtype": "bfloat16",
                "text_config": {"torch_dtype": "bfloat16", "n": 1},
                "quantization_config": {"dtype": "x"},
            },
        ),
    ],
)
def test_the_dtype_is_said_wherever_it_was_said(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merged_config(config, dtype="bfloat16").content == expected


def test_the_vocabulary_is_set_in_the_text_model_only() -> None:
    config = {"vocab_size": 5, "text_config": {"vocab_size": 5}, "vision_config": {"vocab_size": 5}}
    assert merged_config(config, vocabulary=8).content == {
        "vocab_size": 8,
        "text_config": {"vocab_size": 8},
        "vision_config": {"vocab_size": 5},
    }


def test_lists_with_an_entry_per_layer_follow_the_layers() -> None:
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "full", "linear"],
        "no_rope_layers": [1, 0, 1, 0],
        "block_configs": [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}],
        "mlp_only_layers": [0, 3],
        "eos_token_id": [1, 2, 3, 4],
        "rope_dims": [9, 9, 9, 9],
    }
    merged = merged_config(config, layers={"num_hidden_layers": [0, 3, 3, 1, 2]}).content
    assert merged == {
        "num_hidden_layers": 5,
        "layer_types": ["full", "linear", "linear", "sliding", "full"],
        "no_rope_layers": [1, 0, 0, 0, 1],
        "block_configs": [{"n": 0}, {"n": 3}, {"n": 3}, {"n": 1}, {"n": 2}],
        "mlp_only_layers": [0, 1, 2],
        "eos_token_id": [1, 2, 3, 4],
        "rope_dims": [9, 9, 9, 9],
    }
    assert merged["block_configs"][1] is not merged["block_configs"][2]


def test_layers_in_their_places_change_nothing() -> None:
    config = {"num_hidden_layers": 2, "layer_types": ["a", "b"], "first_k_dense_replace": 1}
    assert merged_config(config, layers={"num_hidden_layers": [0, 1]}) == (config, ())


def test_kinds_of_layers_that_go_by_number_are_pointed_at() -> None:
    config = {"num_hidden_layers": 2, "first_k_dense_replace": 1, "attn_layer_period": 2, "decoder_sparse_step": 0}
    (note,) = merged_config(config, layers={"num_hidden_layers": [1, 0]}).notes
    assert note == (
        "config.json tells kinds of layers apart by attn_layer_period, first_k_dense_replace: "
        "look whether moved layers fit"
    )


def test_code_that_a_configuration_runs_is_pointed_at() -> None:
    (note,) = merged_config({"auto_map": {"AutoModel": "modeling_x.X"}}).notes
    assert note == "config.json runs code of its own, which is not copied: auto_map {'AutoModel': 'modeling_x.X'}"


def test_ids_of_tokens_follow_the_tokenizer() -> None:
    config = {"eos_token_id": 1, "image_token_index": 3, "pad_token_id": -1, "text_config": {"bos_token_id": 9}}
    merged, notes = merged_config(config, new_ids={1: 4, 3: 0})
    assert merged == {"eos_token_id": 4, "image_token_index": 0, "pad_token_id": -1, "text_config": {"bos_token_id": 9}}
    assert notes == ("config.json: bos_token_id 9 is no token of the merged tokenizer",)


def test_what_the_donor_lacks_is_reported_at_once() -> None:
    with pytest.raises(CheckpointError, match=r"the donor's config\.json does not fit the merged model") as caught:
        merged_config(
            {"num_hidden_layers": 2, "n_layer": True},
            layers={"num_hidden_layers": [0, 2], "n_layer": [0], "text_config.n_layer": [0]},
            vocabulary=8,
        )
    assert caught.value.faults == (
        "layer 2 is wanted, but num_hidden_layers is 2",
        "it has no number of layers at n_layer, which is to become 1",
        "it has no number of layers at text_config.n_layer, which is to become 1",
        "it has no vocab_size to set to the 8 rows of the merged embeddings",
    )


@pytest.mark.parametrize(
    ("config", "family", "count", "key"),
    [
        ({"num_hidden_layers": 4}, "model.layers", 4, "num_hidden_layers"),
        ({"n_layer": 4, "num_hidden_layers": 5}, "transformer.h", 4, "n_layer"),
        ({"num_hidden_layers": 4}, "model.layers", 5, None),
        ({"num_hidden_layers": True}, "model.layers", 1, None),
        ({"text_config": 3}, "model.layers", 3, None),
        ({"num_layers": 4, "num_decoder_layers": 4}, "encoder.block", 4, "num_layers"),
        ({"num_layers": 4, "num_decoder_layers": 4}, "decoder.block", 4, "num_decoder_layers"),
        ({"encoder_layers": 6, "decoder_layers": 6}, "model.decoder.layers", 6, "decoder_layers"),
        ({"num_hidden_layers": 12}, "bert.encoder.layer", 12, "num_hidden_layers"),
        (
            {"num_hidden_layers": 4, "vision_config": {"num_hidden_layers": 4}},
            "vision_tower.vision_model.encoder.layers",
            4,
            "vision_config.num_hidden_layers",
        ),
        ({"num_hidden_layers": 4, "vision_config": {"depth": 3}}, "visual.blocks", 3, "vision_config.depth"),
        ({"num_hidden_layers": 4, "vision_config": {}}, "vision_model.layers", 4, None),
        ({"text_config": {"num_hidden_layers": 4}}, "model.language_model.layers", 4, "text_config.num_hidden_layers"),
    ],
)
def test_the_number_of_layers_is_found(config: dict[str, Any], family: str, count: int, key: str | None) -> None:
    assert find_layer_key(config, family=family, count=count) == key


KEYS = ["num_hidden_layers", "vocab_size", "dtype", "text_config", "layer_types", "eos_token_id"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 4) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["num_hidden_layers", "vocab_size", "dtype", "text_config", "layer_types", "eos_token_id"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(config=st.dictionaries(st.sampled_from(["num_hidden_layers", "vocab_size", "text_config", "moe_layers"]), JSON))
def test_no_configuration_raises_anything_but_our_error(config: dict[str, Any]) -> None:
    key = find_layer_key(config, family="model.layers", count=2)
    assert key in (None, "num_hidden_layers", "text_config.num_hidden_layers")
    layers = {key: [1, 0, 1]} if key else {}
    try:
        merged = merged_config(config, dtype="float16", layers=layers, vocabulary=3, new_ids={1: 2}).content
    except CheckpointError as error:
        assert "has no vocab_size" in error.faults[0]  # noqa: PT017 - it may or may not be raised
        return
    assert {"float16"} == {merged[name] for name in ("dtype", "torch_dtype") if name in merged}


def test_only_ids_are_translated() -> None:
    content = {
        "suppress_tokens": [1, 2],
        "max_length": 1,
        "eos_token_id": None,
        "bad_token_id": [[1]],
        "pad_token_id": [],
    }
    assert translate_ids(content, {1: 7, 2: 8}) == ({**content, "suppress_tokens": [7, 8]}, [])
