"""Keys and values with room behind them, so that a step writes its own alone; transformers copies all at every step."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 32
"""For how many tokens there is room whenever all is copied."""


def make_room(cache: Any) -> None:
    """Lets the layers of a cache grow in place, as far as they are transformers' plain ones.

    Args:
        cache: What a module has returned; it stays what it is where it is of another kind.
    """
    if type(cache) is DynamicCache:
        for k, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
                cache.layers[k] = RoomyLayer(layer.keys, layer.values)


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, (rows, heads, tokens, d) as always: the first tokens of memory that holds more.

    Args:
        keys: Those there are so far.
        values: The same.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._whole: dict[str, torch.Tensor] = {}
        self._seen: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends the keys and values of the tokens that come next, and returns all."""
        self.keys, self.values = self._grown("keys", key_states), self._grown("values", value_states)
        return self.keys, self.values

    def _grown(self, name: str, added: torch.Tensor) -> torch.Tensor:
        old: torch.Tensor = getattr(self, name)
        before, after = old.shape[2], old.shape[2] + added.shape[2]
        whole = self._whole.get(name)
        if whole is None or old is not self._seen[name] or after > whole.shape[2]:  # rows may have left
            whole = old.new_empty(*old.shape[:2], after + ROOM, old.shape[3])
            whole[:, :, :before] = old
            self._whole[name] = whole
        whole[:, :, before:after] = added
        self._seen[name] = whole[:, :, :after]
        return self._seen[name]
