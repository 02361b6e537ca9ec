"""Models to merge: a base and three fine-tunes with the layout of Llama, as `minerua merge` and mergekit read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

from minerua.values import TensorSpec
from minerua.weights import open_checkpoint, write_checkpoint

EXPERTS = ("first", "second", "third")

CHANGES = (0.08, 0.10, 0.12)
"""How far each expert is from the base, as a share of the base's scale: fine-tunes differ, so masks and norms must."""

BASE_SCALE = 0.02

DRAWS = (1 << 22) - 3
"""How many normal numbers a model is made of, read in a circle: drawing one for every weight takes half a minute. A
prime, so that no row of a matrix repeats another."""


@dataclass(frozen=True)
class Size:
    """The extents of a Llama; `heads` divides `hidden`."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int


FULL = Size(vocabulary=32_000, hidden=1024, intermediate=2816, layers=24, heads=16)
"""373.9 million parameters."""

SMALL = Size(vocabulary=256, hidden=64, intermediate=176, layers=2, heads=4)


def shapes_of(size: Size) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of a Llama whose output layer is its own, in the order of the model."""
    square, wide = (size.hidden, size.hidden), (size.intermediate, size.hidden)
    layer = {
        **{f"self_attn.{name}_proj.weight": square for name in "qkvo"},
        "mlp.gate_proj.weight": wide,
        "mlp.up_proj.weight": wide,
        "mlp.down_proj.weight": wide[::-1],
        "input_layernorm.weight": (size.hidden,),
        "post_attention_layernorm.weight": (size.hidden,),
    }
    layers = {f"model.layers.{i}.{name}": shape for i in range(size.layers) for name, shape in layer.items()}
    vocabulary = (size.vocabulary, size.hidden)
    return {
        "model.embed_tokens.weight": vocabulary,
        **layers,
        "model.norm.weight": (size.hidden,),
        "lm_head.weight": vocabulary,
    }


def parameters_of(size: Size) -> int:
    """Returns how many weights a model of this size has."""
    return sum(prod(shape) for shape in shapes_of(size).values())


def write_world(folder: Path, size: Size) -> Path:
    """Writes a base and the experts, bfloat16, each a folder with one safetensors file; the same bytes every time.

    Args:
        folder: Where `base`, `first`, `second` and `third` go; it exists.
        size: How large they are.

    Returns:
        The folder.
    """
    _write_model(folder / "base", size, _normal(0), lambda name: 0.0)
    base = open_checkpoint(folder / "base")

    def of_base(name: str) -> np.ndarray:
        return base.tensor(name).astype(np.float32)

    for number, (expert, change) in enumerate(zip(EXPERTS, CHANGES, strict=True), start=1):
        _write_model(folder / expert, size, _normal(number, scale=change), of_base)
    return folder


def _normal(number: int, scale: float = 1.0) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Returns what draws model `number`'s tensors, float32, normal with `scale` times the base's scale."""
    generator = np.random.default_rng(number)
    circle = np.tile(generator.standard_normal(DRAWS, np.float32) * np.float32(BASE_SCALE * scale), 2)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        start = int(generator.integers(DRAWS))
        return np.resize(circle[start : start + min(prod(shape), DRAWS)], shape)

    return draw


def _write_model(
    folder: Path, size: Size, draw: Callable[[tuple[int, ...]], np.ndarray], start: Callable[[str], np.ndarray | float]
) -> None:
    folder.mkdir()

    def tensors() -> Iterator[tuple[TensorSpec, Callable[[], np.ndarray]]]:
        for name, shape in shapes_of(size).items():
            yield (
                TensorSpec(name, shape, "bfloat16"),
                lambda name=name, shape=shape: (start(name) + draw(shape)).astype(ml_dtypes.bfloat16),
            )

    write_checkpoint(folder / "model.safetensors", tensors())
    for name, content in _documents(size).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _documents(size: Size) -> dict[str, object]:
    """Returns what stands beside the weights: the configuration and a tokenizer of whole words."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words = special | {f"word{number}": number for number in range(len(special), size.vocabulary)}
    added = [{"id": i, "content": token, "special": True, **_PLAIN_TOKEN} for token, i in special.items()]
    tokenizer = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}}
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            **ends,
        },
        "generation_config.json": ends,
        "tokenizer.json": tokenizer | {"model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **names},
        "special_tokens_map.json": names,
    }


_PLAIN_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
