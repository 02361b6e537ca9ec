"""The skill `minerua-model`: weights on disk that can be called."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minerua.chain.graph import PortType
from minerua.chain.writing.functions import to_numpy
from minerua.chain.writing.ports import parse_port, short
from minerua.errors import ChainError, ConfigError, JournalError, MineruaError, unknown
from minerua.evolution import read_journal
from minerua.run import JOURNAL
from minerua.values import ModelSpec, Setup, Skill, SkillContext
from minerua.weights import Checkpoint, Expert, apply, open_checkpoint, open_expert

MODEL_SKILL = "minerua-model"
BEST = "best.safetensors"
"""The file in a run's folder that holds its chosen model."""
SOURCES = ("checkpoint", "adapter", "run")
KEYS = ("model", *SOURCES, "base", "inputs", "outputs", "pure", "batchable", "thread_safe")
FLAGS = {"pure": True, "batchable": False, "thread_safe": False}
"""Settings that are true or false, and what they are by default."""


def configure(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    """Makes a skill of weights on disk and a model kind that can call them.

    Its input is `inputs`, its output `outputs`. Which weights: a `checkpoint`; a `base` with a LoRA `adapter`, the form
    in which a child is served beside others; or the folder of a `run`, whose chosen model is taken and whose model kind
    is known. Other settings: `model`, the model kind's name; `inputs` and `outputs`, types as in `float32[batch, 64]`
    (default `object`); `pure` (default true: all bytes of the weights are read once, to name the results), `batchable`
    and `thread_safe` (default false).

    Args:
        settings: As above.
        context: Where relative paths begin, and the model kinds.

    Raises:
        ConfigError: If the settings do not say what to load, or it cannot be opened; lists all faults.

    Example:
        >>> configure({"checkpont": "w.safetensors"}, SkillContext(Path()))
        Traceback (most recent call last):
        minerua.errors.ConfigError: these are no weights that can be called
          - checkpont: unknown key; did you mean 'checkpoint'?
          - one of checkpoint, adapter and run is needed, found none of them
          - model: missing; name a model kind
    """
    faults = list(_key_faults(settings))
    model = _model(settings, context, faults)
    weights = _attempt(lambda: _weights(settings, context.folder), faults) if not faults else None
    inputs = _attempt(lambda: parse_port(_text(settings, "inputs", "object"), "inputs"), faults)
    outputs = _attempt(lambda: parse_port(_text(settings, "outputs", "object"), "outputs"), faults)
    if faults or model is None or weights is None or inputs is None or outputs is None:
        raise ConfigError("these are no weights that can be called", faults)
    return _skill(
        model, weights, inputs, outputs, {**FLAGS, **{key: settings[key] for key in FLAGS if key in settings}}
    )


def _skill(
    model: ModelSpec, weights: _Weights, inputs: PortType, outputs: PortType, flags: Mapping[str, bool]
) -> Skill:
    digest = weights.digest if flags["pure"] else "unread"  # what is not pure is never looked up by its version
    return Skill(
        MODEL_SKILL,
        load=partial(_load, model, weights),
        inputs={"inputs": inputs},
        outputs={"outputs": outputs},
        version=f"{model.name} {model.version} {digest}",
        pure=flags["pure"],
        batchable=flags["batchable"],
        thread_safe=flags["thread_safe"],
        loaded_bytes=weights.base.nbytes,
    )


def _load(model: ModelSpec, weights: _Weights, setup: Setup) -> Callable[..., Any]:
    """Builds the model; a function of the module, so that the skill can be sent to a process of its own."""
    built = model.build(weights.tensors())
    if not callable(built):
        raise ChainError(
            f"model kind {model.name!r} makes {type(built).__name__} of {weights.path}, which cannot be called; "
            "a skill needs a model kind whose build returns a callable"
        )
    return lambda inputs: {"outputs": to_numpy(built(inputs))}


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights that were opened, and not yet read: a checkpoint, or a base with what an adapter adds to it."""

    base: Checkpoint
    adapter: Expert | None = None

    @property
    def path(self) -> Path:
        return self.base.path if self.adapter is None else self.adapter.path

    @property
    def digest(self) -> str:
        return self.base.digest if self.adapter is None else f"{self.base.digest} {self.adapter.digest}"

    def tensors(self) -> Mapping[str, np.ndarray]:
        if self.adapter is None:
            return {name: self.base.tensor(name) for name in self.base.specs}
        return apply(self.base, self.adapter.task_vector)


def _weights(settings: Mapping[str, Any], folder: Path) -> _Weights:
    if "adapter" in settings:
        base = open_checkpoint(folder / settings["base"])
        return _Weights(base, open_expert("adapter", folder / settings["adapter"], base))
    if "checkpoint" in settings:
        return _Weights(open_checkpoint(folder / settings["checkpoint"]))
    return _Weights(open_checkpoint(folder / settings["run"] / BEST))


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _key_faults(settings: Mapping[str, Any]) -> list[str]:
    faults = []
    for key, value in settings.items():
        if key not in KEYS:
            nearest = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(KEYS)}"
            faults.append(f"{key}: unknown key; {hint}")
        elif not isinstance(value, bool if key in FLAGS else str):
            faults.append(f"{key}: must be {'true or false' if key in FLAGS else 'a text'}, found {short(value)}")
    given = [key for key in SOURCES if key in settings]
    if len(given) != 1:
        faults.append(f"one of checkpoint, adapter and run is needed, found {' and '.join(given) or 'none of them'}")
    if ("adapter" in settings) != ("base" in settings):
        faults.append("adapter and base belong together: a LoRA adapter changes the weights of its base")
    return faults


def _text(settings: Mapping[str, Any], key: str, default: str) -> str:
    value = settings.get(key, default)
    return value if isinstance(value, str) else default


def _model(settings: Mapping[str, Any], context: SkillContext, faults: list[str]) -> ModelSpec | None:
    """Returns the model kind that is named, or else that of the run."""
    name = settings.get("model")
    if name is None and isinstance(settings.get("run"), str):
        name = _attempt(lambda: _model_of_run(context.folder / settings["run"]), faults)
    elif name is None:
        faults.append("model: missing; name a model kind")
    if not isinstance(name, str):
        return None
    try:
        found = context.models[name]
    except MineruaError as error:  # a registry's own words: who might have it, or who quarrels over it
        faults.append("; ".join([error.message, *error.faults]))
    except KeyError:
        faults.append(unknown("model", name, tuple(context.models)))
    else:
        if found.configure is None:
            return found
        faults.append(f"model: {name!r} is made from settings, which this skill cannot pass on; use its plugin's skill")
    return None


def _model_of_run(folder: Path) -> str:
    try:
        model = read_journal(folder / JOURNAL)[0]["config"]["model"]
        return str(model["name"] if isinstance(model, dict) else model)
    except (LookupError, TypeError) as error:
        raise JournalError(f"{folder / JOURNAL} does not say which model kind was evolved; name it in model") from error


def _attempt(step: Callable[[], Any], faults: list[str]) -> Any:
    """Returns what a step returns, or `None` and keeps the faults of the error that it raised."""
    try:
        return step()
    except MineruaError as error:
        faults += [f"{error.message}: {fault}" for fault in error.faults] or [error.message]
        return None
