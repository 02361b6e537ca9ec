"""What names and shapes tell of layers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from minerua.values import TensorSpec
from minerua.weights.layers import is_linear, transposed


def base_of(**shapes):
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return SimpleNamespace(path=Path("base"), specs={n: TensorSpec(n, shape, "float32") for n, shape in names.items()})


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "embed_in.weight",
        "shared.weight",
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "bert.embeddings.word_embeddings.weight",
        "layer.relative_attention_bias_embedding.weight",
    ],
)
def test_embeddings_are_no_linear_layers(name):
    assert not is_linear(base_of(**{name: (10, 4)}), name)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "embed_out.weight", "patch_embeddings.projection.weight", "model.layers.0.q_proj.weight"]
)
def test_other_matrices_named_weight_are(name):
    assert is_linear(base_of(**{name: (10, 4)}), name)


@pytest.mark.parametrize(
    ("name", "shape"), [("norm.weight", (4,)), ("conv.weight", (4, 4, 1)), ("q.projection", (4, 4))]
)
def test_what_is_no_matrix_or_has_another_name_is_not(name, shape):
    assert not is_linear(base_of(**{name: shape}), name)


def test_the_length_of_a_bias_tells_which_way_a_weight_lies():
    base = base_of(a__weight=(4, 12), a__bias=(12,), b__weight=(12, 4), b__bias=(12,), c__weight=(4, 12))
    assert transposed(base, ["a.weight", "b.weight", "c.weight"]) == {"a.weight"}


@pytest.mark.parametrize(("others", "expected"), [((4, 12), {"a.weight", "s.weight"}), ((12, 4), set())])
def test_a_square_weight_lies_as_the_others_do(others, expected):
    base = base_of(a__weight=others, a__bias=(12,), s__weight=(4, 4), s__bias=(4,))
    assert transposed(base, ["a.weight", "s.weight"]) == expected


def test_square_weights_alone_lie_as_torch_s_linear_layers_do():
    assert transposed(base_of(s__weight=(4, 4), s__bias=(4,)), ["s.weight"]) == set()
