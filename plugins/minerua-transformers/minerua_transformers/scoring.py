"""How likely a model finds texts that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from minerua_transformers.batches import padded
from minerua_transformers.generation import accepted_arguments
from minerua_transformers.prompts import start_token

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Continuation:
    """Ids of which the last ones are asked for.

    Args:
        ids: Context and continuation.
        count: How many ids of the continuation there are, at the end.
        child: Whose probabilities.
        result: Sum of log-probabilities, `count`, and whether each id is the likeliest.
    """

    ids: Sequence[int]
    count: int
    child: int = 0
    result: tuple[float, int, bool] = (0.0, 0, False)

    def of(self, child: int) -> Continuation:
        """Returns the same for a child."""
        return replace(self, child=child)

    def reset(self) -> None:
        """Forgets what was found."""
        self.result = (0.0, 0, False)


def continuation(tokenizer: Any, context: str, text: str) -> Continuation | None:
    """Returns a text as a continuation of another one; `None` if it has no ids.

    Ids are those of both together, so that a word is not cut in two; spaces at the end of the context belong to the
    text, as it was learned.
    """
    kept = context.rstrip()
    before = tokenizer(kept, verbose=False)["input_ids"]
    whole = tokenizer(context + text, verbose=False)["input_ids"]
    if not before:
        before = [one for one in (start_token(tokenizer),) if one is not None]
        whole = [*before, *whole]
    count = len(whole) - len(before)
    return Continuation(whole, count) if count > 0 and before else None


def whole_text(tokenizer: Any, text: str) -> Continuation | None:
    """Returns a text of which every id is asked for, after the token for a beginning, or else that for an end."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    start = start_token(tokenizer)
    if start is not None and ids[:1] != [start]:
        ids = [start, *ids]
    return Continuation(ids, len(ids) - 1) if len(ids) > 1 else None


def score(module: Any, rows: Sequence[Continuation]) -> None:
    """Fills in the results of the rows of one batch."""
    import torch

    batch = padded([row.ids for row in rows], module.device)
    kept = max(row.count for row in rows) + 1
    accepted = accepted_arguments(module)
    given = {
        "input_ids": batch.ids,
        "attention_mask": batch.mask,
        "position_ids": batch.positions,
        "use_cache": False,
        "logits_to_keep": kept,
    }
    logits = module(**{key: given[key] for key in given if key in accepted}).logits[:, -kept:-1]
    targets = batch.ids[:, -kept + 1 :]  # (rows, kept − 1)
    logs = logits.float().log_softmax(dim=-1)
    chosen = logs.gather(2, targets[:, :, None])[:, :, 0]
    counted = torch.arange(kept - 1, 0, -1, device=module.device) <= _counts(rows, module.device)
    sums = chosen.double().masked_fill(~counted, 0.0).sum(dim=1).tolist()
    greedy = ((logs.argmax(dim=-1) == targets) | ~counted).all(dim=1).tolist()
    for row, total, is_greedy in zip(rows, sums, greedy, strict=True):
        row.result = (float(total), row.count, bool(is_greedy))


def _counts(rows: Sequence[Continuation], device: torch.device) -> torch.Tensor:
    import torch

    return torch.tensor([[row.count] for row in rows], device=device)
