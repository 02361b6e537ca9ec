import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerua.merge.planning import layers
from minerua.merge.planning.layers import (
    Position,
    families,
    in_layer,
    is_after,
    may_count_tokens,
    module_of,
    natural_order,
    position,
)


def test_examples_run():
    assert doctest.testmod(layers).failed == 0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.layers.31.mlp.up_proj.weight", ("model.layers", 31, "mlp.up_proj.weight")),
        ("h.0.ln_1.bias", ("h", 0, "ln_1.bias")),
        ("0.weight", ("", 0, "weight")),
        ("encoder.block.2.layer.1.DenseReluDense.wi.weight", ("encoder.block", 2, "layer.1.DenseReluDense.wi.weight")),
        ("blocks.3", ("blocks", 3, "")),
    ],
)
def test_the_first_number_of_a_name_is_its_layer(name, wanted):
    assert position(name) == Position(*wanted)
    assert position(name).at(wanted[1]) == name


@pytest.mark.parametrize("name", ["lm_head.weight", "a.01.b", "a.١.b", "a.99999999.b", "layer1.w", ""])
def test_what_counts_no_layers_is_no_layer(name):
    assert position(name) is None


def test_families_have_all_numbers_from_zero():
    names = ["a.0.w", "a.1.w", "a.1.b", "b.1.w", "c.0.w", "c.2.w", "d.w"]
    assert families(names) == {"a": 2}
    assert in_layer("a.1.w", families(names)) == Position("a", 1, "w")
    assert in_layer("c.0.w", families(names)) is None
    assert in_layer("d.w", families(names)) is None


def test_numbers_of_experts_count_no_layers():
    names = [f"model.layers.{layer}.mlp.experts.{expert}.w1.weight" for layer in range(2) for expert in range(8)]
    assert families(names) == {"model.layers": 2}


def test_steps_of_a_small_network_count_no_layers():
    assert families(["visual.merger.mlp.0.weight", "visual.merger.mlp.1.weight", "classifier.0.weight"]) == {}


@pytest.mark.parametrize(
    "name", ["embeddings.LayerNorm.weight", "embeddings.layer_norm.bias", "wpe.weight", "shared.weight"]
)
def test_what_comes_before_the_layers_is_told_by_name(name):
    assert not is_after(name)


def test_embeddings_and_what_reads_them_out_may_count_tokens():
    assert may_count_tokens("model.embed_tokens.weight")
    assert may_count_tokens("lm_head.weight")
    assert not may_count_tokens("model.layers.0.attention.output.weight")
    assert not may_count_tokens("model.norm.weight")


QWEN_VL = ["text_decoder", "multi_modal_projector", "vision_tower"]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "text_decoder"),
        ("model.layers.0.mlp.up_proj.weight", "text_decoder"),
        ("lm_head.weight", "text_decoder"),
        ("model.visual.blocks.0.attn.qkv.weight", "vision_tower"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "vision_tower"),
        ("model.visual.merger.mlp.0.weight", "multi_modal_projector"),
        ("model.visual.deepstack_merger_list.0.norm.weight", "multi_modal_projector"),
        ("multi_modal_projector.linear_1.weight", "multi_modal_projector"),
    ],
)
def test_modules_are_told_by_the_innermost_part_that_names_one(name, module):
    assert module_of(name, QWEN_VL) == module


def test_modules_of_other_names_are_told_by_these():
    modules = ["decoder", "encoder", "shared"]
    names = ["decoder.block.0.layer.0.w", "encoder.embed_tokens.weight", "shared.weight", "lm_head.weight"]
    assert [module_of(name, modules) for name in names] == ["decoder", "encoder", "shared", "shared"]
    assert module_of("lm_head.weight", ["decoder", "encoder"]) is None


@given(st.lists(st.text("ab.019", max_size=8), unique=True))
def test_natural_order_does_not_depend_on_the_order_of_the_files(names):
    assert natural_order(names) == natural_order(names[::-1])
    assert sorted(natural_order(names)) == sorted(names)
