"""The inputs that reach the linear layers of a model, for merges that look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minerua_transformers.batches import batches, padded
from minerua_transformers.generation import accepted_arguments
from minerua_transformers.model import LanguageModel
from minerua_transformers.prompts import Conversation

if TYPE_CHECKING:
    import torch


def activations(model: LanguageModel, conversations: Sequence[Conversation]) -> dict[str, np.ndarray]:
    """Returns what reaches every linear layer when a model reads prompts.

    Args:
        model: One model.
        conversations: Its prompts; those that are longer than the context are left out.

    Returns:
        In forward order, the name of a layer's weight (m × n) → its inputs at every token of every prompt, shape
        (tokens, n), float32. Not among them: an output layer that shares the embedding's weight, since a merge would
        change both by what it sees of one; and layers that store their weights the other way round (GPT-2's), whose
        tensors are (n × m).
    """
    import torch
    from torch import nn

    model.check()
    desk = model.desk
    module, names = desk.resident.loaded.module, {id(p): name for name, p in desk.resident.loaded.places.items()}
    embedded = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    seen: dict[str, list[torch.Tensor]] = {}
    rows = [ids for ids in map(desk.prompts.ids, conversations) if 0 < len(ids) <= desk.context]
    accepted, mask = accepted_arguments(module), torch.empty(0)

    def look(layer: Any, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        kept = x[mask.reshape(-1)] if len(x) == mask.numel() else x
        seen.setdefault(names[id(layer.weight)], []).append(kept.float().cpu())

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    watched = [one for one in layers if id(one.weight) in names and id(one.weight) not in embedded]
    handles = [layer.register_forward_pre_hook(look) for layer in watched]
    try:
        with torch.inference_mode(), desk.resident.child(model.child):
            for chosen in batches([len(row) for row in rows], desk.batch_size):
                batch = padded([rows[k] for k in chosen], module.device)
                mask = batch.mask.bool()
                given = {"attention_mask": batch.mask, "position_ids": batch.positions, "use_cache": False}
                module(batch.ids, **{key: value for key, value in given.items() if key in accepted})
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts).numpy() for name, parts in seen.items()}
