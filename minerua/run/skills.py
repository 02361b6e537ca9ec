"""The skill `minerua-model`: weights on disk that can be called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minerua.chain.graph import PortType
from minerua.chain.writing.functions import to_numpy
from minerua.chain.writing.ports import parse_port
from minerua.errors import ChainError, JournalError, MineruaError, unknown
from minerua.evolution import read_journal
from minerua.run import JOURNAL
from minerua.settings import Settings
from minerua.values import ModelSpec, Setup, Skill, SkillContext
from minerua.weights import Checkpoint, Expert, apply, open_checkpoint, open_expert

MODEL_SKILL = "minerua-model"
BEST = "best.safetensors"
"""The file in a run's folder that holds its chosen model."""
SOURCES = ("checkpoint", "adapter", "run")
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
        >>> configure({"adapter": "child"}, SkillContext(Path()))
        Traceback (most recent call last):
        minerua.errors.ConfigError: the settings of the skill 'minerua-model' cannot be used
          - adapter and base belong together: a LoRA adapter changes the weights of its base
          - model is missing; name a model kind
    """
    told = Settings(f"the skill {MODEL_SKILL!r}", settings, context.folder)
    paths = {name: told.path(name, None) for name in (*SOURCES, "base")}
    flags = {name: told.flag(name, default) for name, default in FLAGS.items()}
    inputs = told.made(partial(parse_port, told.text("inputs", "object"), "inputs"), object)
    outputs = told.made(partial(parse_port, told.text("outputs", "object"), "outputs"), object)
    _refuse_other_sources(told, paths)
    model = _model(told, context, paths["run"])
    weights = None if told.faults else told.made(lambda: _weights(paths), None)
    told.done()
    return _skill(model, weights, inputs, outputs, flags)  # type: ignore[arg-type]  # `done` raises if one is missing


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


def _weights(paths: Mapping[str, Any]) -> _Weights:
    if paths["adapter"] is not None:
        base = open_checkpoint(paths["base"])
        return _Weights(base, open_expert("adapter", paths["adapter"], base))
    return _Weights(open_checkpoint(paths["checkpoint"] or paths["run"] / BEST))


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_other_sources(told: Settings, paths: Mapping[str, Path | None]) -> None:
    given = [name for name in SOURCES if told.has(name)]
    if len(given) != 1:
        told.fault(f"one of checkpoint, adapter and run is needed, found {' and '.join(given) or 'none of them'}")
    if (paths["adapter"] is None) != (paths["base"] is None):
        told.fault("adapter and base belong together: a LoRA adapter changes the weights of its base")


def _model(told: Settings, context: SkillContext, run: Path | None) -> ModelSpec | None:
    """Returns the model kind that is named, or else that of the run."""
    name = told.text("model", None)
    if name is None and run is not None:
        name = told.made(lambda: _model_of_run(run), None)
    elif name is None and "model" not in told.names:
        told.fault("model is missing; name a model kind")
    if name is None:
        return None
    try:
        found = context.models[name]
    except MineruaError as error:  # a registry's own words: who might have it, or who quarrels over it
        told.fault("; ".join([error.message, *error.faults]))
    except KeyError:
        told.fault(unknown("model", name, tuple(context.models)))
    else:
        if found.configure is None:
            return found
        told.fault(f"model: {name!r} is made from settings, which this skill cannot pass on; use its plugin's skill")
    return None


def _model_of_run(folder: Path) -> str:
    try:
        model = read_journal(folder / JOURNAL)[0]["config"]["model"]
        return str(model["name"] if isinstance(model, dict) else model)
    except (LookupError, TypeError) as error:
        raise JournalError(f"{folder / JOURNAL} does not say which model kind was evolved; name it in model") from error
