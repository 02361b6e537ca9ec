"""Configuration and tokenizer: from a folder, or by a name of the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minerua.errors import ConfigError

NAMED_BY = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)
"""The files that decide what a prompt becomes and when an answer ends: their bytes are part of a version."""


class Described(NamedTuple):
    """A language model without its weights.

    Args:
        folder: Where the configuration came from.
        config: transformers' configuration.
        tokenizer: transformers' tokenizer.
        digest: Names what both say: 32 hexadecimal digits.
    """

    folder: Path
    config: Any
    tokenizer: Any
    digest: str


def describe(path: str | None, tokenizer: str | None, *, base: Path | None, folder: Path) -> Described:
    """Reads configuration and tokenizer.

    Args:
        path: A folder, or a name of the hub such as `org/name`; `None`: the folder of `base`.
        tokenizer: The same for the tokenizer alone; `None`: from where the configuration is.
        base: The base checkpoint, a file or a folder; `None` where there is none.
        folder: Where relative paths begin.

    Raises:
        ConfigError: If there is no such folder, no configuration, no tokenizer, or no causal language model; all faults
            at once.
    """
    faults: list[str] = []
    home = _attempt(lambda: _home(path, base, folder), faults)
    config = _attempt(lambda: read_config(home), faults) if home is not None else None
    kept = _attempt(lambda: resolve(tokenizer, folder, "tokenizer"), faults) if tokenizer else home
    made = _attempt(lambda: read_tokenizer(kept), faults) if kept is not None else None
    if faults or home is None or kept is None:
        raise ConfigError("no language model is described where one was looked for", faults)
    return Described(home, config, made, digest(home, kept))


def resolve(name: str, folder: Path, setting: str) -> Path:
    """Returns the folder that a path or a name of the hub stands for; what is missing of the hub's is downloaded.

    Args:
        name: A path, which counts where it exists, or a name of the hub.
        folder: Where relative paths begin.
        setting: Whose value it is, for messages.

    Raises:
        ConfigError: If it is neither.
    """
    path = folder / name
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(f"{setting}: {path} does not exist, and {name!r:.80} is no name of the hub (org/name)")
    return _from_hub(name, setting)


def read_config(folder: Path) -> Any:
    """Returns the configuration in a folder.

    Raises:
        ConfigError: If there is none, it cannot be read, or no causal language model has it.
    """
    import transformers

    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json: copy the one of the base model there, or set path")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'} cannot be used: {str(error).splitlines()[0]:.300}") from error
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"{folder / 'config.json'} describes {config.model_type!r}, which is no causal language model "
            "that transformers knows; models with code of their own are not loaded"
        )
    return config


def read_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer in a folder.

    Raises:
        ConfigError: If there is none, or it cannot be read.
    """
    import transformers

    known = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
    if not any((folder / name).is_file() for name in known):
        raise ConfigError(f"{folder} has no tokenizer (none of {', '.join(known)}): set tokenizer to a folder with one")
    kind = transformers.PreTrainedTokenizerFast if _is_generic(folder) else transformers.AutoTokenizer
    try:
        return kind.from_pretrained(str(folder))
    except Exception as error:  # the libraries behind it raise anything, down to their own base class
        raise ConfigError(f"the tokenizer in {folder} cannot be read: {_first_line(error)}") from error


def _is_generic(folder: Path) -> bool:
    """Tells whether a tokenizer says of itself that its `tokenizer.json` is all there is to it.

    transformers 5.23 takes the class of the model's type all the same where the folder has a configuration, and a
    tokenizer of words beside a Qwen2 then makes no ids at all.
    """
    try:
        said = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False  # whoever reads it next says what is wrong
    named = said.get("tokenizer_class") if isinstance(said, dict) else None
    return named in ("TokenizersBackend", "PreTrainedTokenizerFast") and (folder / "tokenizer.json").is_file()


# ── where they are ───────────────────────────────────────────────────────────────────────────────────────────────────


def _home(path: str | None, base: Path | None, folder: Path) -> Path:
    if path is not None:
        return resolve(path, folder, "path")
    if base is None:
        raise ConfigError("there is no base to take configuration and tokenizer from: set path to a folder with both")
    return base if base.is_dir() else base.parent


def _from_hub(name: str, setting: str) -> Path:
    """Returns the folder of the local cache; downloads what describes the model, not its weights."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*NAMED_BY]))
    except Exception as error:  # offline, unknown, gated, full disk: the library has a dozen classes for them
        raise ConfigError(
            f"{setting}: {folder_hint(name)} and the hub could not be asked for it: {_first_line(error)}"
        ) from error


def folder_hint(name: str) -> str:
    """Returns the first half of the sentence about a name that is no folder."""
    return f"{name!r:.80} is no folder here, nor in the local cache of the hub,"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]:.300}"


def digest(*folders: Path) -> str:
    """Returns 32 hexadecimal digits that name what folders say of configuration and tokenizer."""
    said = hashlib.sha256()
    for folder in folders:
        for name in NAMED_BY:
            if (folder / name).is_file():
                content = (folder / name).read_bytes()
                said.update(f"{name} {len(content)}\n".encode() + content)
    return said.hexdigest()[:32]


def _attempt(step: Callable[[], Any], faults: list[str]) -> Any:
    """Returns what a step returns, or `None` and keeps what was wrong."""
    try:
        return step()
    except ConfigError as error:
        faults += [error.message, *error.faults]
        return None
