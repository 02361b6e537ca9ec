"""Tokenizer files for a merged model: copied as they lie there, or written anew with other tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minerua.errors import CheckpointError
from minerua.merge.tokenizers.vocabulary import (
    CONFIG,
    FAST,
    SLOW_FILES,
    SPECIAL_KEYS,
    SPECIAL_LISTS,
    SPECIAL_MAP,
    TEMPLATE,
    AddedToken,
    Vocabulary,
    read_bytes,
    token_of,
)
from minerua.weights.header import parse_object, shown

PROCESSOR_TEMPLATE = "chat_template.json"
"""The chat template of models that take pictures or sounds, in the layout of older releases of transformers."""

_ALWAYS = (FAST, CONFIG, SPECIAL_MAP, TEMPLATE, PROCESSOR_TEMPLATE)
_TEMPLATE_FOLDER = "additional_chat_templates"


def copied_files(folder: Path) -> dict[str, bytes]:
    """Reads the files of a tokenizer that is taken over as it is.

    Args:
        folder: The model's folder.

    Returns:
        Path in the folder → content, of the files that exist; code (`*.py`) is never among them.

    Raises:
        CheckpointError: A file cannot be read; lists all of them.
    """
    return _read(folder, (*_ALWAYS, *SLOW_FILES))


def edited_files(vocabulary: Vocabulary, ids: Mapping[str, int], added: Mapping[str, AddedToken]) -> dict[str, bytes]:
    """Writes a tokenizer with other tokens.

    Args:
        vocabulary: What it is made from; has a `tokenizer.json`.
        ids: Token → id, all that it shall have; those of the model's own vocabulary keep their ids.
        added: The added tokens among them.

    Returns:
        Path in the folder → content. Files of other tokenizer libraries are left out: they would still hold the old
        tokens.

    Raises:
        CheckpointError: A file cannot be read, or holds what JSON cannot say.
    """
    files = _read(vocabulary.folder, (TEMPLATE, PROCESSOR_TEMPLATE))
    document = {**(vocabulary.document or {}), "added_tokens": [_entry(added[token], ids[token]) for token in added]}
    if any(token not in ids for token in vocabulary.model_ids):
        document["model"] = _without_missing(document["model"], ids)
    files[FAST] = _encoded(vocabulary.folder / FAST, document)
    if vocabulary.settings:
        settings = _without_named(vocabulary.settings, ids)
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {str(ids[token]): added[token]._asdict() for token in added}
        files[CONFIG] = _encoded(vocabulary.folder / CONFIG, settings, indent=2)
    if vocabulary.special_map:
        special_map = _without_named(vocabulary.special_map, ids)
        files[SPECIAL_MAP] = _encoded(vocabulary.folder / SPECIAL_MAP, special_map, indent=2)
    return files


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """Sets a tokenizer's chat template.

    Args:
        files: The tokenizer's files.
        template: The template, in Jinja.

    Returns:
        The files, with the template as `chat_template.jinja`, which transformers prefers, and in the settings, where
        other programs look; other templates are left out.

    Raises:
        CheckpointError: `tokenizer_config.json` is not a JSON object.
    """
    others = (PROCESSOR_TEMPLATE, _TEMPLATE_FOLDER)
    changed = {name: content for name, content in files.items() if not name.startswith(others)}
    changed[TEMPLATE] = _encoded_text(Path(TEMPLATE), template)
    if CONFIG in files:
        settings, faults = parse_object(files[CONFIG], what=CONFIG)
        if faults:
            raise CheckpointError("the chat template cannot be written into the tokenizer's settings", faults)
        changed[CONFIG] = _encoded(Path(CONFIG), {**settings, "chat_template": template}, indent=2)
    return changed


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    templates = sorted((folder / _TEMPLATE_FOLDER).glob("*.jinja"))
    present = [folder / name for name in names if (folder / name).is_file()] + templates
    read = {path: read_bytes(path) for path in present}
    faults = [fault for _, wrong in read.values() for fault in wrong]
    if faults:
        raise CheckpointError(f"the tokenizer files in {folder} cannot be copied", faults)
    return {path.relative_to(folder).as_posix(): content for path, (content, _) in read.items()}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _entry(token: AddedToken, number: int) -> dict[str, Any]:
    return {"id": number, **token._asdict()}


def _without_missing(model: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Returns the part of `tokenizer.json` that cuts words, without the tokens that are not in `ids`."""
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram, whose ids are places in a list; what is missing stands at its end
        return {**model, "vocab": [pair for pair in vocab if pair[0] in ids]}
    vocab = {token: number for token, number in vocab.items() if token in ids}
    if not isinstance(model.get("merges"), list):
        return {**model, "vocab": vocab}
    return {**model, "vocab": vocab, "merges": [merge for merge in model["merges"] if _is_possible(merge, vocab)]}


def _is_possible(merge: object, vocab: Mapping[str, int]) -> bool:
    """Whether a merge of two tokens, `"a b"` or `["a", "b"]`, has all three of its tokens."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        return True  # what it means is the tokenizers library's business
    return all(token in vocab for token in (*parts, "".join(parts)))


def _without_named(settings: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Returns settings that name no special token which is not in `ids`; transformers would add it on loading."""
    changed = dict(settings)
    for key in SPECIAL_KEYS:
        token = token_of(changed.get(key))
        if token is not None and token not in ids:
            del changed[key]
    for key in SPECIAL_LISTS:
        values = changed.get(key)
        if isinstance(values, list):
            changed[key] = [value for value in values if token_of(value) in ids]
        elif isinstance(values, dict):
            changed[key] = {name: value for name, value in values.items() if token_of(value) in ids}
    return changed


def _encoded(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """Returns JSON; without `indent` it is written thirty times faster, which counts where there are 100,000 tokens."""
    try:
        text = json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be written anew", [f"JSON cannot say it: {error}"]) from error
    return _encoded_text(path, text + "\n" if indent else text)


def _encoded_text(path: Path, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        fault = f"half of a surrogate pair, which is not a Unicode text, in {shown(text[error.start - 20 : error.end])}"
        raise CheckpointError(f"{path} cannot be written anew", [fault]) from error
