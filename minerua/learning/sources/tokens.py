"""Text becomes ids through a plugin's skill, and rows of different lengths become a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from minerua.errors import BrokenPlugin, ConfigError
from minerua.learning.data_config import TokenizerConfig
from minerua.learning.rows import RowError, seen
from minerua.learning.sources.factories import call_of
from minerua.values import Skill

IGNORED = -100
"""What targets are filled up with: the class that torch's cross-entropy leaves out unless it is told otherwise."""


@final
class Tokens:
    """Makes ids of text; the skill is loaded once per process, when it is needed.

    Args:
        config: Which skill, and how many ids are kept.
        skill: The skill.
        folder: Where relative paths in its settings begin.

    Raises:
        ConfigError: If the skill cannot be called with text.
    """

    def __init__(self, config: TokenizerConfig, skill: Skill, folder: Path) -> None:
        self._config, self._skill, self._folder = config, skill, folder
        self._call: Callable[..., Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_call": None}

    def of(self, text: str | Mapping[str, str]) -> np.ndarray | dict[str, np.ndarray]:
        """Returns the ids of a text, shape (n,), int64; of a mapping of texts, a mapping of them.

        Raises:
            RowError: If a text has no ids.
            BrokenPlugin: If the skill returns something else.
        """
        if isinstance(text, str):
            return self._ids(text)
        return {name: self._ids(part) for name, part in text.items()}

    def _ids(self, text: str) -> np.ndarray:
        if self._call is None:
            call, configured = call_of(self._skill, self._config.settings, self._folder)
            if self._config.settings and not configured:
                raise ConfigError(f"tokenizer.settings: skill {self._skill.name!r} takes none")
            self._call = call
        made = self._call(text=text)
        if not isinstance(made, Mapping) or "ids" not in made:
            raise BrokenPlugin(f"skill {self._skill.name!r} must return a mapping with 'ids', found {seen(made)}")
        ids = np.asarray(made["ids"])
        if ids.size == 0:
            raise RowError("no ids", f"the tokenizer makes nothing of {seen(text)}")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise BrokenPlugin(
                f"skill {self._skill.name!r} must return a list of whole numbers, found {seen(made['ids'])}"
            )
        return ids[: self._config.most].astype(np.int64)


@final
class PadRows:
    """Collates rows of ids of different lengths: the shorter ones are filled up at their end.

    Args:
        pad: What they are filled up with.
        mask: Whether inputs become a mapping of `ids` and `mask`.
        targets: Whether targets are ids as well; they are filled up with `IGNORED`.
    """

    def __init__(self, pad: int, *, mask: bool, targets: bool) -> None:
        self._pad, self._mask, self._targets = pad, mask, targets

    def __call__(self, rows: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Returns a batch: inputs of shape (rows, longest), int64, and targets."""
        from torch.utils.data import default_collate

        inputs = [inputs for inputs, _ in rows]
        targets = [target for _, target in rows]
        padded = self._padded(inputs, self._pad, masked=self._mask)
        return padded, self._padded(targets, IGNORED) if self._targets else default_collate(targets)

    def _padded(self, rows: Sequence[Any], pad: int, *, masked: bool = False) -> Any:
        import torch

        if isinstance(rows[0], Mapping):
            return {name: self._padded([row[name] for row in rows], pad, masked=masked) for name in rows[0]}
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), pad, np.int64)
        mask = np.zeros_like(ids)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = row
            mask[k, : len(row)] = 1
        padded = torch.from_numpy(ids)
        return {"ids": padded, "mask": torch.from_numpy(mask)} if masked else padded
