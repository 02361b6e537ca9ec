"""Tokenizers on disk: which token has which row of the embedding, read from Hugging Face's files as they lie there.

What counts is what transformers' `AutoTokenizer(...).get_vocab()` says, because it is what the model is fed with: the
model's own vocabulary, the added tokens of `tokenizer.json`, those of `added_tokens_decoder` in
`tokenizer_config.json`, and special tokens that are only named there, which are added behind all others on loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

from minerua.errors import CheckpointError
from minerua.weights.header import MAX_HEADER_BYTES, capped, parse_object, shown

MAX_FILE_BYTES = MAX_HEADER_BYTES
"""The largest file of a tokenizer that is read; the largest in use have a third of it."""

MAX_ID = (1 << 31) - 1
"""The largest id that a token may have."""

CONFIG, FAST, TEMPLATE = "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"
SPECIAL_MAP = "special_tokens_map.json"

SLOW_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.model",
    "tokenizer.model.v3",
    "vocab.json",
    "vocab.txt",
)
"""Files that hold a vocabulary beside, or instead of, `tokenizer.json`."""

SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Settings that name one special token."""

SPECIAL_LISTS = ("extra_special_tokens", "additional_special_tokens")
"""Settings that name several."""

_MAX_FAULTS = 20  # listed of one file; a hostile one can have millions
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class AddedToken(NamedTuple):
    """A token that is found in a text before the model cuts it into words.

    Args:
        content: The token.
        single_word: Whether it is only found as a word of its own.
        lstrip: Whether white space before it belongs to it.
        rstrip: Whether white space behind it belongs to it.
        normalized: Whether it is looked for in the normalized text.
        special: Whether it is left out when ids are turned back into text.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


@final
@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer as far as merging needs it; made by `open_vocabulary`. Nothing in it is changed by anybody.

    Args:
        folder: Where it was read.
        ids: Token → id, which is the row of the embedding; added tokens included.
        model_ids: Token → id, without those that are only added.
        added: Token → how it is found, of the added tokens, by id.
        document: The content of `tokenizer.json`; `None` without one.
        settings: The content of `tokenizer_config.json`; empty without one.
        special_map: The content of `special_tokens_map.json`; empty without one.
    """

    folder: Path
    ids: Mapping[str, int] = field(repr=False)
    model_ids: Mapping[str, int] = field(repr=False)
    added: Mapping[str, AddedToken] = field(repr=False)
    document: Mapping[str, Any] | None = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    special_map: Mapping[str, Any] = field(repr=False)


def open_vocabulary(folder: str | Path) -> Vocabulary | None:
    """Reads the tokenizer in a model's folder.

    Args:
        folder: The model's folder; its files are trusted in nothing.

    Returns:
        The vocabulary; `None` if the folder has no file of a tokenizer.

    Raises:
        CheckpointError: a file cannot be read or is malformed, or the vocabulary is only there in a form that is not
            read, such as SentencePiece's `tokenizer.model`; lists all faults (of each file the first 20).

    Example:
        >>> open_vocabulary("nowhere") is None
        True
    """
    folder = Path(folder)
    names = [FAST, CONFIG, SPECIAL_MAP, "added_tokens.json", "vocab.json"]
    contents: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    for name in names:
        if (folder / name).is_file():
            contents[name], wrong = read_object(folder / name)
            faults += wrong
    if not faults:
        vocabulary, faults = _parsed(folder, contents)
        if not faults:
            return vocabulary
    raise CheckpointError(f"the tokenizer in {folder} cannot be used", faults)


def read_object(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Reads a JSON object from a file.

    Args:
        path: The file; at most `MAX_FILE_BYTES` long.

    Returns:
        The object, empty if there is none, and the faults, each with the path.
    """
    text, faults = read_bytes(path)
    if faults:
        return {}, faults
    content, faults = parse_object(text, what="the file")
    return content, [f"{path}: {fault}" for fault in capped(faults, limit=_MAX_FAULTS)]


def read_bytes(path: Path) -> tuple[bytes, list[str]]:
    """Reads a small file.

    Args:
        path: The file; at most `MAX_FILE_BYTES` long.

    Returns:
        Its bytes, empty if they cannot be read, and the faults, each with the path.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            return b"", [f"{path} is not a regular file"]
        with path.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return b"", [f"{path}: {error.strerror or error}"]
    if len(text) > MAX_FILE_BYTES:
        return b"", [f"{path} is longer than any tokenizer's or configuration's file: the limit is {MAX_FILE_BYTES}"]
    return text, []


def read_template(folder: Path) -> tuple[str | None, list[str]]:
    """Reads the chat template that transformers would use: `chat_template.jinja`, else that of the settings.

    Args:
        folder: The model's folder.

    Returns:
        The template (of several the one named `default`), `None` without one; and the faults.
    """
    if (folder / TEMPLATE).is_file():
        text, faults = read_bytes(folder / TEMPLATE)
        try:
            return (None if faults else text.decode()), faults
        except UnicodeDecodeError as error:
            return None, [f"{folder / TEMPLATE} is not a text in UTF-8: byte {error.start} is {text[error.start]:#04x}"]
    if not (folder / CONFIG).is_file():
        return None, []
    settings, faults = read_object(folder / CONFIG)
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return (found if isinstance(found, str) and found.strip() else None), faults


def token_of(value: object) -> str | None:
    """Returns the token that a setting such as `bos_token` names: itself, or its `content`; `None` without one."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


# ── one tokenizer ────────────────────────────────────────────────────────────────────────────────────────────────────


def _parsed(folder: Path, contents: Mapping[str, dict[str, Any]]) -> tuple[Vocabulary | None, list[str]]:
    """Returns the vocabulary that the files describe, `None` if there is none, and all faults."""
    document, settings = contents.get(FAST), contents.get(CONFIG, {})
    if document is not None:
        ids, faults = _model_ids(document.get("model"))
        added, wrong = _added_tokens(document)
        faults = [f"{folder / FAST}: {fault}" for fault in capped(faults + wrong, limit=_MAX_FAULTS)]
    elif "vocab.json" in contents:
        ids, faults = _checked_ids(contents["vocab.json"])
        faults = [f"{folder / 'vocab.json'}: {fault}" for fault in capped(faults, limit=_MAX_FAULTS)]
        added = {}
    else:
        return None, _missing_faults(folder)
    special_map = contents.get(SPECIAL_MAP, {})
    late, wrong = _late_tokens(settings, contents.get("added_tokens.json", {}))
    faults += [f"{folder / CONFIG}: {fault}" for fault in capped(wrong, limit=_MAX_FAULTS)]
    if faults:
        return None, faults
    named = settings if "added_tokens_decoder" in settings else {**settings, **special_map}
    late = dict(sorted(late.items(), key=lambda item: item[1][0]))  # transformers adds them in the order of their ids
    joined, flags = _joined(ids, {**added, **late}, _named_tokens(named))
    return Vocabulary(folder, joined, ids, flags, document, settings, special_map), []


def _missing_faults(folder: Path) -> list[str]:
    """Says what to do about a tokenizer of which only another form is there."""
    found = [name for name in SLOW_FILES if (folder / name).is_file()]
    if not found:
        return []
    remedy = (
        "write one with transformers, AutoTokenizer.from_pretrained(folder).save_pretrained(folder), or leave "
        "tokenizer and tokenizer_source out of the recipe, which copies the files as they are"
    )
    return [f"{folder} has {', '.join(found)}, but no {FAST} to read the vocabulary from: {remedy}"]


def _model_ids(model: object) -> tuple[dict[str, int], list[str]]:
    """Returns token → id of the part of `tokenizer.json` that cuts words, whatever its type."""
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return _checked_ids(vocab)
    if not isinstance(vocab, list):
        return {}, [f"model.vocab is neither an object nor a list: found {shown(vocab)}"]
    wrong = [
        f"model.vocab[{place}] is not a pair of a token and its score: found {shown(pair)}"
        for place, pair in enumerate(vocab)
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str))
    ]
    return ({} if wrong else {pair[0]: place for place, pair in enumerate(vocab)}), wrong


def _checked_ids(vocab: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    numbers = vocab.values()
    if set(map(type, numbers)) <= {int} and min(numbers, default=0) >= 0 and max(numbers, default=0) <= MAX_ID:
        return dict(vocab), []  # at once, as there may be hundreds of thousands
    return {}, [
        f"token {shown(token)} has the id {shown(number)}, which is not an integer from 0 to {MAX_ID}"
        for token, number in vocab.items()
        if not _is_id(number)
    ]


def _is_id(number: object) -> bool:
    return type(number) is int and 0 <= number <= MAX_ID


def _added_tokens(document: Mapping[str, Any]) -> tuple[dict[str, tuple[int, AddedToken]], list[str]]:
    """Returns the added tokens of `tokenizer.json` with their ids."""
    entries = document.get("added_tokens")
    if not isinstance(entries, list | None):
        return {}, [f"added_tokens is not a list: found {shown(entries)}"]
    return _read_added((entry.get("id") if isinstance(entry, dict) else None, entry) for entry in entries or ())


def _late_tokens(
    settings: Mapping[str, Any], added: Mapping[str, object]
) -> tuple[dict[str, tuple[int, AddedToken]], list[str]]:
    """Returns the tokens that are added on loading: those of the settings; only without them `added_tokens.json`'s."""
    entries = settings.get("added_tokens_decoder")
    if "added_tokens_decoder" not in settings:
        return _read_added((number, {"content": token}) for token, number in added.items())
    if not isinstance(entries, dict):
        return {}, [f"added_tokens_decoder is not an object: found {shown(entries)}"]
    return _read_added((int(key) if key.isdecimal() and len(key) < 20 else key, e) for key, e in entries.items())


def _read_added(entries: Iterable[tuple[object, object]]) -> tuple[dict[str, tuple[int, AddedToken]], list[str]]:
    found: dict[str, tuple[int, AddedToken]] = {}
    faults = []
    for number, entry in entries:
        token = _added_token(entry)
        if token is None or type(number) is not int or not 0 <= number <= MAX_ID:
            what = f"{shown(entry)} with the id {shown(number)}"
            faults.append(f"{what} is no added token: its content is a text, the id an integer, a flag true or false")
        else:
            found[token.content] = number, token
    return found, faults


def _added_token(entry: object) -> AddedToken | None:
    content = token_of(entry)
    if content is None or not isinstance(entry, dict):
        return None
    flags = {name: entry[name] for name in _FLAGS if name in entry}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        return None
    flags.setdefault("normalized", not flags.get("special", False))
    return AddedToken(content, **flags)


def _named_tokens(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yields the special tokens that the settings name, in the order in which transformers adds missing ones."""
    for key in SPECIAL_KEYS:
        token = token_of(settings.get(key))
        if token is not None:
            yield token
    for key in SPECIAL_LISTS:
        values = settings.get(key)
        values = list(values.values()) if isinstance(values, dict) else values
        yield from (token for token in map(token_of, values if isinstance(values, list) else ()) if token is not None)


def _joined(
    ids: Mapping[str, int], added: Mapping[str, tuple[int, AddedToken]], named: Iterable[str]
) -> tuple[dict[str, int], dict[str, AddedToken]]:
    """Returns the whole vocabulary, and the added tokens by id.

    The tokenizers library pays no heed to the ids that its file gives to added tokens: it numbers them as `next_id`
    does, in the order in which it meets them.
    """
    whole = dict(ids)
    flags = {token: flag for token, (_, flag) in added.items()}
    last = -1
    for token in (*added, *named):
        if token not in whole:
            whole[token] = next_id(len(ids), last)
        last = max(last, whole[token])
        flags.setdefault(token, AddedToken(token, normalized=False, special=True))
    return whole, {token: flags[token] for token in sorted(flags, key=whole.__getitem__)}


def next_id(count: int, last: int) -> int:
    """Returns the id that the tokenizers library gives to a token that is added.

    Args:
        count: How many tokens the model has without the added ones.
        last: The largest id of an added token; -1 without one.
    """
    return max(last + 1, count)
