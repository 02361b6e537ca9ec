"""Which layer a tensor belongs to, told by its name alone: no table of architectures.

A name is split at its dots. The first part that is a number is the layer's; what stands before it is the layer's
*family*: `model.layers.7.mlp.up_proj.weight` is layer 7 of `model.layers`. Later numbers, such as those of a mixture's
experts, are part of what is left. A family has the numbers 0 to n - 1; names with holes in their numbers, as those of a
`Sequential` with activations in between, are no layers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

AFTER = frozenset(
    {
        *("norm", "norm_f", "final_norm", "final_layernorm", "final_layer_norm", "ln_f", "ln_out", "layer_norm"),
        *("post_layernorm", "layernorm_post", "lm_head", "embed_out", "output", "output_layer"),
        *("score", "classifier", "pre_classifier", "head", "heads", "pooler", "cls", "qa_outputs", "vision_adapter"),
        *("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    }
)
"""A tensor outside the layers comes after them if a part of its name is one of these; all others come before."""

NO_LAYERS = AFTER | {"mlp", "projector", "multi_modal_projector", "mm_projector", "connector", "merger", "adapter"}
"""Numbers right below these count the steps of a small network, not layers."""

VOCABULARY = frozenset(
    {
        *("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embeddings", "shared"),
        *("lm_head", "embed_out", "output", "output_layer", "vocab_projector", "predictions"),
    }
)
"""A tensor outside the layers may have one row per token if a part of its name is one of these."""

_VISION = ("vision_tower", "vision_model", "vision_encoder", "visual")
_TEXT = ("text_decoder", "language_model", "text_model")
_BRIDGE = ("multi_modal_projector", "mm_projector", "projector", "connector", "merger", "deepstack_merger_list")
MODULES: Mapping[str, tuple[str, ...]] = {name: words for words in (_VISION, _TEXT, _BRIDGE) for name in words}
"""A module's name in a recipe → the parts of tensors' names that tell it; other modules are told by their own name."""

REST = (*_TEXT, "shared", "default")
"""Modules that take the tensors no module's name tells, such as the `lm_head` beside a `language_model`; `default` is
mergekit's name for the only module of a model that has no other."""

_NUMBER = re.compile(r"(?:(?<=\.)|\A)(0|[1-9][0-9]{0,5})(?=\.|\Z)")
"""A part of a name that counts something: digits without a zero in front, and not absurdly many."""


class Position(NamedTuple):
    """Where a tensor stands among layers.

    Args:
        family: What stands before the layer's number, such as `"model.layers"`; may be empty.
        layer: The number.
        rest: What stands behind it.
    """

    family: str
    layer: int
    rest: str

    def at(self, layer: int) -> str:
        """Returns the name of the same tensor in another layer."""
        return ".".join(part for part in (self.family, str(layer), self.rest) if part)


@functools.lru_cache(maxsize=1 << 16)  # a plan asks several times, for every model that holds the name
def position(name: str) -> Position | None:
    """Returns where a tensor stands among layers, or `None` if there is no number in its name.

    Example:
        >>> position("model.layers.7.mlp.experts.3.w1.weight")
        Position(family='model.layers', layer=7, rest='mlp.experts.3.w1.weight')
    """
    found = _NUMBER.search(name)
    if found is None:
        return None
    family, rest = name[: found.start()], name[found.end() :]
    return Position(family.removesuffix("."), int(found.group()), rest.removeprefix("."))


def families(names: Iterable[str]) -> dict[str, int]:
    """Returns the families of layers among tensors: what stands before the number → how many layers.

    Args:
        names: Of all tensors of a model, or of a module of it.

    Example:
        >>> families(["h.0.w", "h.1.w", "mlp.0.w", "features.0.w", "features.2.w", "wte.weight"])
        {'h': 2}
    """
    numbers: dict[str, set[int]] = {}
    for place in map(position, names):
        if place is not None and place.family.rpartition(".")[2] not in NO_LAYERS:
            numbers.setdefault(place.family, set()).add(place.layer)
    return {family: len(found) for family, found in numbers.items() if max(found) == len(found) - 1}


def in_layer(name: str, known: Mapping[str, int]) -> Position | None:
    """Returns where a tensor stands in one of these families, or `None` if it is outside of them."""
    place = position(name)
    return place if place is not None and place.family in known else None


def is_after(name: str) -> bool:
    """Whether a tensor outside the layers comes after the last of them.

    Example:
        >>> [is_after(name) for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")]
        [False, True, True]
    """
    parts = name.split(".")
    is_embedding = any(part.startswith("embed") and part not in AFTER for part in parts)
    return not is_embedding and not AFTER.isdisjoint(parts)


def may_count_tokens(name: str) -> bool:
    """Whether a tensor's first extent may be the vocabulary's size, by its name: embeddings and what reads them out."""
    return position(name) is None and not VOCABULARY.isdisjoint(name.split("."))


def gradient_position(layer: int, count: int) -> float:
    """Returns where a layer lies between the first, 0, and the last, 1; a single layer is the last.

    Example:
        >>> [gradient_position(layer, 3) for layer in range(3)], gradient_position(0, 1)
        ([0.0, 0.5, 1.0], 1.0)
    """
    return layer / (count - 1) if count > 1 else 1.0


def module_of(name: str, modules: Sequence[str]) -> str | None:
    """Returns which module of a recipe a tensor belongs to, or `None`.

    A module is told by its own name, or one of those that `MODULES` has for it, among the parts of the tensor's name
    before a layer's number; of several that of the innermost part. What nothing tells belongs to the first module that
    is in `REST`.

    Args:
        name: The tensor's.
        modules: The recipe's modules, in its order.

    Example:
        >>> modules = ["text_decoder", "vision_tower", "multi_modal_projector"]
        >>> module_of("model.visual.blocks.0.attn.weight", modules), module_of("lm_head.weight", modules)
        ('vision_tower', 'text_decoder')
    """
    place = position(name)
    parts = (name if place is None else place.family).split(".")
    for part in reversed(parts):
        for module in modules:
            if part == module or part in MODULES.get(module, ()):
                return module
    return next((module for module in modules if module in REST), None)


def natural_order(names: Collection[str]) -> list[str]:
    """Returns names sorted with numbers as numbers: layer 2 before layer 10, whatever files they lie in.

    Example:
        >>> natural_order(["h.10.w", "h.2.w"])
        ['h.2.w', 'h.10.w']
    """
    return sorted(names, key=_sort_key)


def _sort_key(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if index % 2 else part for index, part in enumerate(_NUMBER.split(name)))
