"""Image segmentation for minerua: models, losses, evaluators and data sets; nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minerua import EvaluatorSpec, LossSpec, ModelSpec, Skill, hookimpl
from minerua.values import RunContext, SkillContext

__all__ = ["minerua_evaluators", "minerua_losses", "minerua_models", "minerua_skills"]


@hookimpl
def minerua_skills() -> list[Skill]:
    """Provides `segmentation-images`, data sets to learn from, and `segmentation-worlds`, which writes small ones."""
    return [
        Skill(name="segmentation-images", configure=_images),
        Skill(
            name="segmentation-worlds",
            call=_worlds,
            inputs={"folder": str, "seed": int},
            outputs={"pairs": dict},
            optional=("seed",),
        ),
    ]


@hookimpl
def minerua_losses() -> list[LossSpec]:
    """Provides `dice`, `dice-cross-entropy` and `boundary`."""
    return [
        LossSpec("dice", _dice, _count),
        LossSpec("dice-cross-entropy", _dice_cross_entropy, _count),
        LossSpec("boundary", _boundary, _count),
    ]


@hookimpl
def minerua_models() -> list[ModelSpec]:
    """Provides the families `unet` and `sam`."""
    return [
        ModelSpec(name="unet", configure=_unet, module=_unet_module),
        ModelSpec(name="sam", configure=_sam, module=_sam_module),
    ]


@hookimpl
def minerua_evaluators() -> list[EvaluatorSpec]:
    """Provides the family `segmentation`."""
    return [EvaluatorSpec(name="segmentation", configure=_segmentation)]


# ── each loads what it needs when it is called ───────────────────────────────────────────────────────────────────────


def _images(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    from .learning import configure_images

    return configure_images(settings, context)


def _worlds(folder: str, seed: int = 0) -> dict[str, dict[str, int]]:
    from .writing import write_worlds

    return {"pairs": write_worlds(folder, seed=seed)}


def _dice(predictions: Any, targets: Any, **settings: Any) -> Any:
    from .losses import dice

    return dice(predictions, targets, **settings)


def _dice_cross_entropy(predictions: Any, targets: Any, **settings: Any) -> Any:
    from .losses import dice_cross_entropy

    return dice_cross_entropy(predictions, targets, **settings)


def _boundary(predictions: Any, targets: Any, **settings: Any) -> Any:
    from .losses import boundary

    return boundary(predictions, targets, **settings)


def _count(targets: Any, **settings: Any) -> int:
    from .losses import count_images

    return count_images(targets, **settings)


def _unet(settings: Mapping[str, Any], context: RunContext) -> ModelSpec:
    from .unet import configure_unet

    return configure_unet(settings, context)


def _unet_module(**settings: Any) -> Any:
    from .unet import unet_module

    return unet_module(**settings)


def _sam(settings: Mapping[str, Any], context: RunContext) -> ModelSpec:
    from .sam import configure_sam

    return configure_sam(settings, context)


def _sam_module(**settings: Any) -> Any:
    from .sam import sam_module

    return sam_module(**settings)


def _segmentation(settings: Mapping[str, Any], context: RunContext) -> EvaluatorSpec:
    from .evaluator import configure_segmentation

    return configure_segmentation(settings, context)
