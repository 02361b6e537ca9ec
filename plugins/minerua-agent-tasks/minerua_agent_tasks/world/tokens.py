"""A tokenizer of whole words, in Hugging Face's layout: a word has its space before it, numbers are single digits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["END", "PADDING", "UNKNOWN", "tokenizer_files", "vocabulary"]

PADDING = "<pad>"
END = "<end>"
UNKNOWN = "<unknown>"
_PATTERN = r"\n *| ?[A-Za-z_]+| ?[^A-Za-z_0-9\s]|[0-9]|\s"
"""A token: a line's begin with its indent; a word or a sign, with the space before it; a digit; other space."""


def vocabulary(texts: Iterable[str]) -> list[str]:
    r"""Returns the tokens of some texts, sorted, after the special ones; all digits and signs are among them.

    Example:
        >>> vocabulary(["x + 1"])[3:5]
        ['\n', '\n    ']
    """
    found = {"\n", "\n    ", " ", *"0123456789"}
    for text in texts:
        found.update(re.findall(_PATTERN, text))
    return [PADDING, END, UNKNOWN, *sorted(found)]


def tokenizer_files(words: list[str], template: str) -> dict[str, Any]:
    """Returns name → JSON of the files that Hugging Face's fast tokenizers are loaded from.

    Args:
        words: The tokens, in the order of their ids.
        template: How a dialogue becomes one text, in Jinja.
    """
    special = [
        {"id": k, "content": words[k], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for k in range(3)
    ]
    split = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {word: k for k, word in enumerate(words)}, "unk_token": UNKNOWN}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": model,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PADDING,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": 128,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}
