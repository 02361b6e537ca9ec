"""The model kind `causal-lm`: settings become something that builds language models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua.errors import ConfigError
from minerua.settings import Settings as Told
from minerua.values import Change, ModelSpec, RunContext
from minerua_transformers.activations import activations
from minerua_transformers.answers import Desk
from minerua_transformers.folders import Described, describe
from minerua_transformers.generation import Ending, accepted_arguments
from minerua_transformers.learning import module as learnable
from minerua_transformers.loading import load
from minerua_transformers.model import LanguageModel
from minerua_transformers.prompts import Prompts
from minerua_transformers.resident import Resident
from minerua_transformers.settings import SPEED, Settings, read_settings

if TYPE_CHECKING:
    import numpy as np
    import torch

SMALL = 100_000_000
"""Parameters below which a batch has more rows."""

UNLIMITED = 1 << 30
"""What stands for the context of a model that names no limit; tokenizers write numbers beyond this for that."""


def configure(settings: Mapping[str, Any], context: RunContext) -> ModelSpec:
    """Makes the model kind that settings describe.

    Args:
        settings: See `minerua_transformers.settings.Settings`.
        context: Where relative paths begin, and the base, whose folder has configuration and tokenizer.

    Raises:
        ConfigError: With every fault of the settings and of what they name.
    """
    told = Told("the model 'causal-lm'", settings, context.folder)
    chosen = read_settings(told)
    described: Any = told.made(lambda: checked(chosen, context.base, context.folder), None)
    told.done()
    return spec(described, chosen)


def checked(settings: Settings, base: Path | None, folder: Path) -> Described:
    """Returns configuration and tokenizer, once prompts can be made with them.

    Raises:
        ConfigError: With every fault of the files.
    """
    described = describe(settings.path, settings.tokenizer, base=base, folder=folder)
    Prompts(described.tokenizer, settings)
    return described


def spec(described: Described, settings: Settings) -> ModelSpec:
    """Returns the model kind over a configuration and a tokenizer."""
    return ModelSpec(
        name="causal-lm",
        build=partial(build, described, settings),
        activations=activations,
        version=version(described, settings),
        module=learnable,
        open=partial(open_base, described, settings),
    )


def version(described: Described, settings: Settings) -> str:
    """Returns what answers depend on besides the weights: settings, configuration, tokenizer, transformers."""
    import transformers

    answering = {key: value for key, value in asdict(settings).items() if key not in (*SPEED, "path", "tokenizer")}
    return f"1 {described.digest} {transformers.__version__} {json.dumps(answering, sort_keys=True)}"


def build(described: Described, settings: Settings, tensors: Mapping[str, np.ndarray]) -> LanguageModel:
    """Returns a language model around given arrays, which stay the caller's.

    Args:
        described: Configuration and tokenizer.
        settings: How it answers.
        tensors: Tensor name → array, read-only.

    Raises:
        CheckpointError: If the tensors are not those of such a model.
    """
    desk = open_desk(described, settings, tensors)
    desk.resident.settle([{}])
    return LanguageModel(desk)


def open_base(
    described: Described, settings: Settings, base: Mapping[str, np.ndarray]
) -> Callable[[Sequence[Mapping[str, Change]]], list[LanguageModel]]:
    """Loads a base once, and returns what makes children of it.

    Args:
        described: Configuration and tokenizer.
        settings: How children answer.
        base: Tensor name → array, read-only.

    Returns:
        `children(changes)`: one model per child, valid until it is called again. A single child has its weights in
        place, with the bytes of materialising; several are computed beside the base.

    Raises:
        CheckpointError: If the tensors are not those of such a model.
    """
    desk = open_desk(described, settings, base)

    def children(changes: Sequence[Mapping[str, Change]]) -> list[LanguageModel]:
        desk.resident.settle(changes)
        return [LanguageModel(desk, k) for k in range(len(changes))]

    return children


def open_desk(described: Described, settings: Settings, tensors: Mapping[str, np.ndarray]) -> Desk:
    """Loads a model, and sets up where it is asked."""
    resident = Resident(load(described.config, tensors, device=device_of(settings.device), dtype=settings.dtype))
    module = resident.loaded.module
    if "past_key_values" not in accepted_arguments(module):
        raise ConfigError(
            f"{described.config.model_type} keeps no cache of keys and values that rows could leave; "
            "this model kind needs one"
        )
    ending = Ending(end_tokens(module, described.tokenizer), settings.stop, described.tokenizer)
    return Desk(
        described=described,
        resident=resident,
        settings=settings,
        prompts=Prompts(described.tokenizer, settings),
        ending=ending,
        context=context_of(described, settings),
        batch_size=settings.batch_size or rows_of(module),
    )


def rows_of(module: Any) -> int:
    """Returns how many rows a batch has where nobody says so: of small models a step costs the same for many."""
    return 256 if sum(p.numel() for p in module.parameters()) < SMALL else 32


def device_of(name: str) -> torch.device:
    """Returns the device that a setting names; `auto` is CUDA where there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def end_tokens(module: Any, tokenizer: Any) -> frozenset[int]:
    """Returns the ids that end an answer: those of the model's generation settings, and the tokenizer's."""
    found: set[int] = set()
    for one in (module.generation_config.eos_token_id, module.config.eos_token_id, tokenizer.eos_token_id):
        found |= set(one) if isinstance(one, list | tuple) else {one} if one is not None else set()
    return frozenset(found)


def context_of(described: Described, settings: Settings) -> int:
    """Returns the most tokens of prompt and answer: what is set, but no more than the model has positions for."""
    config = described.config.get_text_config()
    own = getattr(config, "max_position_embeddings", None) or UNLIMITED
    length = getattr(described.tokenizer, "model_max_length", None) or UNLIMITED
    return min(settings.context or UNLIMITED, int(own), min(int(length), UNLIMITED))
