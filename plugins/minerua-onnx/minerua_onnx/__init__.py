"""ONNX models as skills, and the small skills that bring files and texts to them: nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minerua import Skill, hookimpl
from minerua.values import SkillContext

__all__ = ["minerua_skills"]


def _onnx_model(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    from minerua_onnx.model import configure

    return configure(settings, context)


def _image_file(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    from minerua_onnx.edges import image_file

    return image_file(settings, context)


def _word_tokens(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    from minerua_onnx.edges import word_tokens

    return word_tokens(settings, context)


def _label(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    from minerua_onnx.edges import label

    return label(settings, context)


@hookimpl
def minerua_skills() -> list[Skill]:
    """Provides the family of ONNX models, and the ways in and out: images, words, labels."""
    return [
        Skill(name="onnx-model", configure=_onnx_model),
        Skill(name="image-file", configure=_image_file),
        Skill(name="word-tokens", configure=_word_tokens),
        Skill(name="label", configure=_label),
    ]
