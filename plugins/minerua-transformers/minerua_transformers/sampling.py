"""The next token: the likeliest, or drawn by a number that belongs to the row and not to its batch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from minerua_transformers.settings import Settings

if TYPE_CHECKING:
    import torch


def draws(rows: Sequence[Sequence[int]], seed: int, length: int) -> list[np.ndarray]:
    """Returns the numbers in [0, 1) by which each row's tokens are drawn, (length,) each.

    They depend on the seed, on the row's ids, and on how many equal rows come before it: not on other rows, and not on
    the model, so that two children that are asked the same are told apart by their weights alone.

    Args:
        rows: What one model is asked in one call.
        seed: Of all draws.
        length: How many tokens an answer can have.
    """
    seen: Counter[bytes] = Counter()
    numbers = []
    for row in rows:
        content = np.asarray(row, np.int64).tobytes()
        digest = hashlib.sha256(f"{seed} {seen[content]} ".encode() + content).digest()
        seen[content] += 1
        key = np.frombuffer(digest[:16], np.uint64)
        numbers.append(np.random.Generator(np.random.Philox(key=key)).random(length, np.float32))
    return numbers


def next_tokens(logits: torch.Tensor, settings: Settings, numbers: torch.Tensor | None) -> torch.Tensor:
    """Returns one token per row; of equally likely ones that with the smaller id.

    Args:
        logits: Shape (rows, vocabulary).
        settings: Temperature, top_k and top_p, applied in this order.
        numbers: Shape (rows,), float32, in [0, 1); `None` is greedy.
    """
    import torch

    if numbers is None:
        return logits.argmax(dim=-1)
    scores, order = torch.sort(logits.float() / settings.temperature, dim=-1, descending=True, stable=True)
    if settings.top_k:
        scores, order = scores[:, : settings.top_k], order[:, : settings.top_k]
    shares = scores.softmax(dim=-1)
    total = shares.cumsum(dim=-1)
    shares = shares.masked_fill(total - shares >= settings.top_p, 0.0)  # the first one stays whatever top_p is
    total = shares.cumsum(dim=-1)
    places = (total <= numbers[:, None] * total[:, -1:]).sum(dim=-1, keepdim=True)
    places = places.clamp(max=shares.shape[1] - 1)
    return order.gather(1, places)[:, 0]
