"""Causal language models in Hugging Face's layout as a model kind, as skills and as something to learn.

Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minerua import LossSpec, ModelSpec, Skill, hookimpl
from minerua.values import RunContext, SkillContext

__all__ = ["minerua_losses", "minerua_models", "minerua_skills"]


def _causal_lm(settings: Mapping[str, Any], context: RunContext) -> ModelSpec:
    from minerua_transformers.family import configure

    return configure(settings, context)


def _module(**settings: Any) -> Any:
    from minerua_transformers.learning import module

    return module(**settings)


def _next_token(predictions: Any, targets: Any, **settings: Any) -> Any:
    from minerua_transformers.learning import next_token

    return next_token(predictions, targets, **settings)


def _count_next_tokens(targets: Any, **settings: Any) -> int:
    from minerua_transformers.learning import count_next_tokens

    return count_next_tokens(targets, **settings)


def _language_model(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    from minerua_transformers.skills import language_model

    return language_model(settings, context)


def _tokenizer(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    from minerua_transformers.skills import tokenizer

    return tokenizer(settings, context)


def _instructions(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    from minerua_transformers.instructions import instruction_data

    return instruction_data(settings, context)


@hookimpl
def minerua_models() -> list[ModelSpec]:
    """Provides the family of causal language models."""
    return [ModelSpec(name="causal-lm", configure=_causal_lm, module=_module)]


@hookimpl
def minerua_losses() -> list[LossSpec]:
    """Provides the loss of language models whose targets are their inputs."""
    return [LossSpec("next-token", _next_token, _count_next_tokens)]


@hookimpl
def minerua_skills() -> list[Skill]:
    """Provides language models for chains, and what learning needs to make ids of text."""
    return [
        Skill(name="language-model", configure=_language_model),
        Skill(name="hf-tokenizer", configure=_tokenizer),
        Skill(name="instruction-data", configure=_instructions),
    ]
