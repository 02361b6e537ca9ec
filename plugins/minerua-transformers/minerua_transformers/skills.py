"""Skills: a language model that answers a prompt in a chain, and a tokenizer for what is learned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua.settings import Settings as Told
from minerua.values import Setup, Skill, SkillContext
from minerua_transformers.family import build, checked, version
from minerua_transformers.folders import Described, digest, read_tokenizer, resolve
from minerua_transformers.settings import Settings, read_settings

if TYPE_CHECKING:
    import numpy as np

    from minerua.weights import Checkpoint, Expert

BEST = "best.safetensors"
"""The file in a run's folder that holds its chosen model."""
SOURCES = ("checkpoint", "adapter", "run")


def language_model(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    """Makes a skill of a language model: `prompt`, a text, becomes `answer`, a text.

    Which weights: a `checkpoint`; a LoRA `adapter` of the `base`; the chosen model of a `run`; or the `base` itself.
    Configuration and tokenizer come from the folder of the base, or from `path`. The other settings are those of the
    model kind `causal-lm`. It is pure: all bytes of the weights are read once, to name the answers.

    Args:
        settings: As above.
        context: Where relative paths begin.

    Raises:
        ConfigError: With every fault of the settings and of what they name.
    """
    told = Told("the skill 'language-model'", settings, context.folder)
    chosen = read_settings(told)
    paths = {name: told.existing(name, None) for name in ("base", *SOURCES)}
    given = [name for name in SOURCES if settings.get(name) is not None]
    has_base = settings.get("base") is not None
    if len(given) > 1 or not (given or has_base):
        told.fault(f"one of {', '.join(SOURCES)}, or a base alone, is needed; found {' and '.join(given)}")
    if "adapter" in given and not has_base:
        told.fault("base is missing; a LoRA adapter changes the weights of its base")
    described: Any = told.made(lambda: checked(chosen, paths["base"] or paths["checkpoint"], context.folder), None)
    told.done()
    weights: Any = told.made(lambda: _weights(paths), None)
    told.done()
    return _skill(described, chosen, weights)


def tokenizer(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    """Makes a skill of a tokenizer: `text` becomes `ids`, for `data.tokenizer` of a training file.

    Settings: `path`, a folder or a name of the hub; `end`, whether the token that ends a text is put after it (default
    true); `special`, whether the tokenizer puts in its own, such as one for the beginning (default true).

    Args:
        settings: As above.
        context: Where relative paths begin.

    Raises:
        ConfigError: With every fault of the settings and of what they name.
    """
    told = Told("the skill 'hf-tokenizer'", settings, context.folder)
    path = told.text("path", what="a folder with a tokenizer, or a name of the hub")
    end, special = told.flag("end", True), told.flag("special", True)
    folder = told.made(lambda: resolve(path, context.folder, "path"), None) if told.has("path") else None
    made = None if folder is None else told.made(lambda: read_tokenizer(folder), None)
    if made is not None and end and made.eos_token_id is None:
        told.fault("end: the tokenizer has no token that ends a text; set it to false")
    told.done()
    return Skill(
        name="hf-tokenizer",
        call=partial(_ids, made, end, special),
        inputs={"text": str},
        outputs={"ids": list},
        version=f"1 {digest(Path(str(folder)))} {end} {special}",
        pure=True,
    )


def _ids(made: Any, end: bool, special: bool, text: str) -> dict[str, list[int]]:
    ids: list[int] = list(made(text, add_special_tokens=special, verbose=False)["input_ids"])
    if end and ids[-1:] != [made.eos_token_id]:
        ids.append(int(made.eos_token_id))
    return {"ids": ids}


# ── the language model ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights that were opened, and not yet read: a checkpoint, or a base with what an adapter adds to it."""

    base: Checkpoint
    adapter: Expert | None = None

    @property
    def digest(self) -> str:
        return self.base.digest if self.adapter is None else f"{self.base.digest} {self.adapter.digest}"

    def tensors(self) -> Mapping[str, np.ndarray]:
        from minerua.weights import apply

        if self.adapter is None:
            return {name: self.base.tensor(name) for name in self.base.specs}
        return apply(self.base, self.adapter.task_vector)


def _weights(paths: Mapping[str, Path | None]) -> _Weights:
    from minerua.weights import open_checkpoint, open_expert

    if paths["adapter"] is not None and paths["base"] is not None:
        base = open_checkpoint(paths["base"])
        return _Weights(base, open_expert("adapter", paths["adapter"], base))
    if paths["run"] is not None:
        return _Weights(open_checkpoint(paths["run"] / BEST))
    source: Any = paths["checkpoint"] or paths["base"]  # one of them is there: settings without are refused
    return _Weights(open_checkpoint(source))


def _skill(described: Described, settings: Settings, weights: _Weights) -> Skill:
    return Skill(
        name="language-model",
        load=partial(_load, described, settings, weights),
        inputs={"prompt": str},
        outputs={"answer": str},
        version=f"{version(described, settings)} {weights.digest}",
        pure=True,
        loaded_bytes=weights.base.nbytes,
    )


def _load(described: Described, settings: Settings, weights: _Weights, setup: Setup) -> Callable[..., dict[str, str]]:
    """Builds the model; a function of the module, so that the skill can be sent to a process of its own."""
    if settings.device == "auto" and setup.device != "cpu":
        settings = replace(settings, device=setup.device)
    model, one_at_a_time = build(described, settings, weights.tensors()), threading.Lock()

    def answer(prompt: str) -> dict[str, str]:
        with one_at_a_time:
            (said,) = model([prompt])
        if said is None:
            raise ValueError(
                f"the prompt is too long: its tokens leave no room for an answer within {model.desk.context}"
            )
        return {"answer": said}

    return answer
