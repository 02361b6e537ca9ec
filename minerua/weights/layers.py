"""What a checkpoint's names and shapes tell of the layers that its tensors belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable

from minerua.weights.adapter import Weights, module_of

_EMBEDDING = re.compile(r"(?:.*\.)?(?:embed(?!_out)\w*|\w*embeddings?|wte|wpe|shared)\.weight")
"""How language models in Hugging Face's layout call their embeddings: `embed_tokens`, `word_embeddings`, `wte`, …

`embed_out` is GPT-NeoX's output layer.
"""


def is_linear(base: Weights, name: str) -> bool:
    """Tells whether a tensor is the weight of a linear layer, as far as name and shape tell.

    Args:
        base: What holds it.
        name: Its name.
    """
    return name.endswith(".weight") and len(base.specs[name].shape) == 2 and _EMBEDDING.fullmatch(name) is None


def transposed(base: Weights, names: Iterable[str]) -> set[str]:
    """Returns the weights that lie as (inputs, outputs), as in GPT-2's `Conv1D`, by the lengths of their biases.

    A square weight lies as most others with a bias do that are not square.

    Args:
        base: What holds them.
        names: Weights of linear layers.
    """
    told: dict[str, bool] = {}
    square: list[str] = []
    for name in names:
        bias, (first, second) = base.specs.get(f"{module_of(name)}.bias"), base.specs[name].shape
        if bias is not None and first == second:
            square.append(name)
        elif bias is not None:
            told[name] = bias.shape == (second,)
    if 2 * sum(told.values()) > len(told):
        told |= dict.fromkeys(square, True)
    return {name for name, is_so in told.items() if is_so}
