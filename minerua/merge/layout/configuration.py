"""The merged model's `config.json`: the donor's, with what merging changes: layers, vocabulary, dtype, ids."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from minerua.errors import CheckpointError
from minerua.weights.header import shown

_TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config.text_config", "decoder")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "decoder_layers")
_ENCODER_KEYS = ("encoder_layers", "num_encoder_layers", "num_layers", "encoder.num_hidden_layers")
_DECODER_KEYS = ("decoder_layers", "num_decoder_layers", "decoder.num_hidden_layers")
_OTHER_SECTIONS = {"vision": ("vision_config",), "visual": ("vision_config",), "audio": ("audio_config",)}
_TOWER_KEYS = ("num_hidden_layers", "depth", "num_layers", "n_layer", "encoder_layers")

INDEX_LISTS = (
    "attn_layer_idx",
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "mlp_only_layers",
    "moe_layers",
)
"""Settings that list numbers of layers."""

BY_NUMBER = (
    "attn_layer_offset",
    "attn_layer_period",
    "decoder_sparse_step",
    "expert_layer_offset",
    "expert_layer_period",
    "first_k_dense_replace",
    "full_attention_interval",
    "interleave_moe_layer_step",
    "num_kv_shared_layers",
    "sliding_window_pattern",
)
"""Settings that tell kinds of layers apart by their numbers, so that a layer which is moved may change its kind."""

_LISTS_OF_IDS = ("suppress_tokens", "begin_suppress_tokens")


class MergedConfig(NamedTuple):
    """A configuration.

    Args:
        content: For `config.json`.
        notes: What a user should look at, in sentences.
    """

    content: dict[str, Any]
    notes: tuple[str, ...]


def merged_config(
    config: Mapping[str, Any],
    *,
    dtype: str | None = None,
    layers: Mapping[str, Sequence[int]] = MappingProxyType({}),
    vocabulary: int | None = None,
    new_ids: Mapping[int, int] | None = None,
) -> MergedConfig:
    """Makes the configuration of a merged model.

    Args:
        config: The donor's, the base's or else the first model's; it is not changed.
        dtype: Element type of the merged weights; `None` leaves what the donor says.
        layers: Path of a number of layers (`find_layer_key`) → for every layer of the merged model the donor's layer
            that stands for it: lists with an entry per layer, such as `layer_types`, follow it.
        vocabulary: How many rows the merged embeddings have; `None` leaves it.
        new_ids: The donor's token ids → the merged tokenizer's (`TokenizerPlan.new_ids`); `None` leaves them.

    Returns:
        The configuration and notes; settings that are not known are left alone.

    Raises:
        CheckpointError: The donor's configuration lacks what must be changed; lists all faults.

    Example:
        >>> config = {"num_hidden_layers": 2, "layer_types": ["full", "sliding"]}
        >>> merged_config(config, layers={"num_hidden_layers": [0, 1, 1]}).content
        {'num_hidden_layers': 3, 'layer_types': ['full', 'sliding', 'sliding']}
    """
    content = copy.deepcopy(dict(config))
    notes: list[str] = []
    faults: list[str] = []
    for path, sources in layers.items():
        _set_layers(content, path, sources, faults, notes)
    if vocabulary is not None:
        holders = [part for part in _text_parts(content) if "vocab_size" in part]
        for part in holders:
            part["vocab_size"] = vocabulary
        if not holders:
            faults.append(f"it has no vocab_size to set to the {vocabulary} rows of the merged embeddings")
    if dtype is not None:
        _set_dtype(content, dtype)
    if new_ids is not None:
        for part in _text_parts(content):
            translated, lost = translate_ids(part, new_ids)
            part.update(translated)
            notes += [f"config.json: {note}" for note in lost]
    if faults:
        raise CheckpointError("the donor's config.json does not fit the merged model", faults)
    return MergedConfig(content, (*notes, *_code_notes(content)))


def find_layer_key(config: Mapping[str, Any], *, family: str, count: int) -> str | None:
    """Finds the setting that says how many layers a part of the model has.

    Args:
        config: The donor's configuration.
        family: What stands before the layers' numbers in its tensors' names, such as `model.layers` or
            `vision_tower.encoder.layers`.
        count: How many layers the donor has there.

    Returns:
        The setting's path, such as `num_hidden_layers` or `text_config.num_hidden_layers`: the first that suits the
        family and says `count`; `None` if there is none.

    Example:
        >>> find_layer_key({"text_config": {"num_hidden_layers": 4}}, family="language_model.layers", count=4)
        'text_config.num_hidden_layers'
    """
    for path in _layer_paths(family):
        section, _, key = path.rpartition(".")
        part = _part(config, section)
        if part is not None and type(part.get(key)) is int and part[key] == count:
            return path
    return None


def translate_ids(content: Mapping[str, Any], new_ids: Mapping[int, int]) -> tuple[dict[str, Any], list[str]]:
    """Brings ids of tokens in settings such as `eos_token_id` up to date.

    Args:
        content: Settings, of which only this level is looked at.
        new_ids: Old id → new id.

    Returns:
        The settings, and a note for each whose token is gone, which is left as it was.

    Example:
        >>> translate_ids({"eos_token_id": [1, 2], "pad_token_id": 9, "hidden_size": 1}, {1: 5, 2: 2})
        ({'eos_token_id': [5, 2], 'pad_token_id': 9, 'hidden_size': 1}, ['pad_token_id 9 is no token of the merged \
tokenizer'])
    """
    translated = dict(content)
    notes = []
    for key, value in content.items():
        if not (key.endswith(("_token_id", "_token_ids", "_token_index")) or key in _LISTS_OF_IDS):
            continue
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
            continue
        gone = [number for number in numbers if number not in new_ids]
        if gone:
            notes.append(f"{key} {', '.join(map(str, gone[:8]))} is no token of the merged tokenizer")
            continue
        moved = [new_ids[number] for number in numbers]
        translated[key] = moved if isinstance(value, list) else moved[0]
    return translated, notes


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _layer_paths(family: str) -> Iterator[str]:
    """Yields where the number of a family's layers may stand, the likeliest first."""
    for word, sections in _OTHER_SECTIONS.items():
        if word in family:
            yield from (f"{section}.{key}" for section in sections for key in _TOWER_KEYS)
            return
    if "encoder" in family:
        yield from _ENCODER_KEYS
    elif "decoder" in family:
        yield from _DECODER_KEYS
    yield from (f"{section}.{key}" for section in _TEXT_SECTIONS for key in _LAYER_KEYS)
    yield from _LAYER_KEYS


def _set_layers(
    content: dict[str, Any], path: str, sources: Sequence[int], faults: list[str], notes: list[str]
) -> None:
    section, _, key = path.rpartition(".")
    part = _part(content, section)
    count = None if part is None else part.get(key)
    if part is None or type(count) is not int:
        faults.append(f"it has no number of layers at {path}, which is to become {len(sources)}")
        return
    wrong = [source for source in sources if not 0 <= source < count]
    if wrong:
        faults.append(f"layer {wrong[0]} is wanted, but {path} is {count}")
        return
    part[key] = len(sources)
    if list(sources) == list(range(count)):
        return
    for name, value in part.items():
        if not isinstance(value, list):
            continue
        if name in INDEX_LISTS:
            part[name] = [place for place, source in enumerate(sources) if source in value]
        elif len(value) == count and _is_per_layer(name):
            part[name] = [copy.deepcopy(value[source]) for source in sources]
    kinds = [name for name in BY_NUMBER if part.get(name)]
    if kinds:
        notes.append(f"config.json tells kinds of layers apart by {', '.join(kinds)}: look whether moved layers fit")


def _is_per_layer(name: str) -> bool:
    return name not in _LISTS_OF_IDS and any(word in name for word in ("layer", "block", "_types"))


# ── other settings ───────────────────────────────────────────────────────────────────────────────────────────────────


def _part(content: Mapping[str, Any], path: str) -> Any:
    """Returns the settings below a path of sections; `None` if there are none."""
    part: Any = content
    for section in path.split(".") if path else ():
        part = part.get(section) if isinstance(part, dict) else None
    return part if isinstance(part, Mapping) else None


def _text_parts(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the settings that speak of the text model: those at the top, and its own section."""
    return [content, *(part for part in (_part(content, section) for section in _TEXT_SECTIONS) if part is not None)]


def _set_dtype(content: dict[str, Any], dtype: str) -> None:
    """Sets the dtype wherever it is said; at the top at least, under the name that every transformers release reads."""
    if not {"dtype", "torch_dtype"} & content.keys():
        content["torch_dtype"] = dtype
    sections = [value for name, value in content.items() if isinstance(value, dict) and name != "quantization_config"]
    for part in [content, *sections]:
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = dtype


def _code_notes(content: Mapping[str, Any]) -> Iterator[str]:
    if content.get("auto_map"):
        yield f"config.json runs code of its own, which is not copied: auto_map {shown(content['auto_map'])}"
