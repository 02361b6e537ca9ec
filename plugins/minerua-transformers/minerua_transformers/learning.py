"""Language models that are learned: a module with the file's names, and the loss of the next token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua.settings import Settings
from minerua_transformers.folders import read_config, resolve
from minerua_transformers.loading import class_of, quiet
from minerua_transformers.settings import DTYPES

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The target that does not count."""


def module(**settings: Any) -> Any:
    """Returns a fresh language model that can be learned.

    Args:
        settings: `path`, a folder or hub name with the configuration; `dtype`, what it is learned in (default
            float32); `gradient_checkpointing`, whether layers are computed again for their gradients (default false).

    Returns:
        A `torch.nn.Module`. `forward(inputs)` takes ids, shape (rows, length), int64, or a mapping with `ids` and
        `mask`, filled up on the right, and returns logits, shape (rows, length, vocabulary). Its `state_dict` has
        the names of a file: an output layer that shares the embedding's weight is not in it.

    Raises:
        ConfigError: With every fault of the settings.
    """
    import torch

    told = Settings("the module of the model 'causal-lm'", settings, Path())
    path = told.text("path", what="a folder with the base's config.json, or a name of the hub")
    dtype = told.choice("dtype", ("float32", *DTYPES[2:]), "float32")
    checkpointing = told.flag("gradient_checkpointing", False)
    told.done()
    made = fresh(read_config(resolve(path, Path(), "path")), getattr(torch, dtype))
    if checkpointing:
        made.activation_checkpointing_enable({"use_reentrant": False})
    return made


def fresh(config: Any, dtype: torch.dtype) -> Any:
    """Returns a learnable model with new weights."""
    with quiet():
        made = _learnable(class_of(config))._from_config(config, dtype=dtype)
    made.train()
    return made


def _learnable(kind: Any) -> Any:
    """Returns transformers' class with the `forward` and the `state_dict` of a module that minerua learns."""

    class Learnable(kind):  # type: ignore[misc]
        def forward(self, inputs: Any) -> torch.Tensor:
            ids, mask = (inputs["ids"], inputs.get("mask")) if isinstance(inputs, Mapping) else (inputs, None)
            logits: torch.Tensor = super().forward(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return logits

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            state = super().state_dict(*args, **kwargs)
            prefix = kwargs.get("prefix", "")
            for name in self.all_tied_weights_keys:
                state.pop(prefix + name, None)
            return state

        def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
            shared = {name: state_dict[own] for name, own in self.all_tied_weights_keys.items() if own in state_dict}
            return super().load_state_dict({**shared, **state_dict}, strict=strict, assign=assign)

    Learnable.__name__ = Learnable.__qualname__ = kind.__name__
    return Learnable


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def next_token(predictions: torch.Tensor, targets: torch.Tensor, *, ignore_index: int = IGNORED) -> torch.Tensor:
    """Returns the mean negative log-probability of each row's next token.

    Args:
        predictions: Logits, shape (rows, length, vocabulary); the one at a place predicts the target at the next.
        targets: The ids themselves, not moved, shape (rows, length); whole numbers of any dtype, as `labels.kind:
            number` makes float32 of them, which is exact below 2^24.
        ignore_index: Targets of this value do not count.

    Returns:
        A scalar, in float32; zero where no target counts.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    from torch.nn import functional

    if predictions.ndim != 3 or predictions.shape[:2] != targets.shape:
        raise ValueError(
            f"predictions have the shape {list(predictions.shape)}, targets {list(targets.shape)}; "
            "next-token needs (rows, length, vocabulary) and (rows, length)"
        )
    logits = predictions[:, :-1].reshape(-1, predictions.shape[-1]).float()
    wanted = targets[:, 1:].reshape(-1).long()
    total = functional.cross_entropy(logits, wanted, ignore_index=ignore_index, reduction="sum")
    return total / (wanted != ignore_index).sum().clamp(min=1)


def count_next_tokens(targets: torch.Tensor, *, ignore_index: int = IGNORED) -> int:
    """Returns how many targets count: all but the first of each row, and none that are ignored."""
    return int((targets[:, 1:] != ignore_index).sum())
