"""Answers to many prompts at a time: one loop over the module, with a cache, from which rows leave that are done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minerua_transformers.batches import padded
from minerua_transformers.sampling import next_tokens
from minerua_transformers.settings import Settings

if TYPE_CHECKING:
    import torch

LEAVING_SHARE = 0.25
"""Rows that are done leave a batch when they are this share of it: all that the others have in the cache is moved."""


@dataclass(eq=False)
class Row:
    """One prompt of one child, and its answer as far as it has come.

    Args:
        child: Whose answer it is.
        ids: The prompt.
        budget: The most tokens of the answer.
        numbers: By which tokens are drawn; empty for the likeliest.
        answer: The tokens so far, without the one that ends them.
        is_done: Whether the answer is complete.
    """

    child: int
    ids: Sequence[int]
    budget: int
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    answer: list[int] = field(default_factory=list)
    is_done: bool = False

    def reset(self) -> None:
        """Forgets the answer."""
        self.answer, self.is_done = [], False


@dataclass(frozen=True, eq=False)
class Ending:
    """When an answer ends before its budget does.

    Args:
        tokens: Ids of which each ends it.
        texts: Texts of which each ends it.
        tokenizer: Makes text of ids.
    """

    tokens: frozenset[int]
    texts: tuple[str, ...]
    tokenizer: Any

    def is_reached(self, row: Row) -> bool:
        """Tells whether a stop text stands at the end of what a row has said; only its last tokens are looked at."""
        if not self.texts:
            return False
        longest = max(len(text.encode()) for text in self.texts)
        tail = self.tokenizer.decode(row.answer[-longest - 4 :], skip_special_tokens=True)
        return any(text in tail for text in self.texts)

    def text(self, row: Row) -> str:
        """Returns a row's answer, up to the first stop text."""
        said = str(self.tokenizer.decode(row.answer, skip_special_tokens=True))
        return said[: min((said.find(text) for text in self.texts if text in said), default=len(said))]


def generate(
    module: Any, rows: Sequence[Row], settings: Settings, ending: Ending, assign: Callable[[Sequence[int]], None]
) -> None:
    """Fills in the answers of the rows of one batch.

    Args:
        module: transformers' module.
        rows: The batch.
        settings: How tokens are chosen.
        ending: When answers end.
        assign: Is told the child of each row, before the first step and whenever rows have left.
    """
    from minerua_transformers.caching import make_room

    device = module.device
    batch = padded([row.ids for row in rows], device)
    alive, ids, mask, positions, cache = list(rows), batch.ids, batch.mask, batch.positions, None
    accepted = accepted_arguments(module)
    assign([row.child for row in alive])
    while alive:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        out = module(**{key: given[key] for key in given if key in accepted}, **_fixed(accepted))
        if cache is None:
            make_room(out.past_key_values)
        cache = out.past_key_values
        tokens = next_tokens(out.logits[:, -1], settings, _numbers(alive, settings, device))
        _take(alive, tokens.tolist(), ending)
        kept = [k for k, row in enumerate(alive) if not row.is_done]
        if not kept:
            return
        mask = _extended(mask)
        positions = positions[:, -1:] + _going(alive, device)
        if len(kept) <= (1 - LEAVING_SHARE) * len(alive) and hasattr(cache, "batch_select_indices"):
            index = _index(kept, device)
            cache.batch_select_indices(index)
            tokens, mask, positions = tokens[index], mask[index], positions[index]
            alive = [alive[k] for k in kept]
            assign([row.child for row in alive])
        ids = tokens[:, None]


def accepted_arguments(module: Any) -> frozenset[str]:
    """Returns the names that a module's `forward` takes."""
    return frozenset(inspect.signature(module.forward).parameters)


def _fixed(accepted: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in {"use_cache": True, "logits_to_keep": 1}.items() if key in accepted}


def _take(rows: Sequence[Row], tokens: Sequence[int], ending: Ending) -> None:
    """Gives each row its token; rows that are done let theirs pass."""
    for row, token in zip(rows, tokens, strict=True):
        if row.is_done:
            continue
        if token in ending.tokens:
            row.is_done = True
            continue
        row.answer.append(token)
        row.is_done = len(row.answer) >= row.budget or ending.is_reached(row)


def _numbers(rows: Sequence[Row], settings: Settings, device: torch.device) -> torch.Tensor | None:
    import torch

    if not settings.temperature:
        return None
    now = [row.numbers[min(len(row.answer), len(row.numbers) - 1)] for row in rows]
    return torch.from_numpy(np.asarray(now, np.float32)).to(device)


def _extended(mask: torch.Tensor) -> torch.Tensor:
    """Returns the mask with room for the token that comes next."""
    import torch

    return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


def _going(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """Returns how far each row moves on: one that is done and not yet gone must not leave the context."""
    import torch

    return torch.tensor([[0 if row.is_done else 1] for row in rows], device=device)


def _index(kept: Sequence[int], device: torch.device) -> torch.Tensor:
    import torch

    return torch.tensor(kept, device=device)
