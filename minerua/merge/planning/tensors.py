"""What the models hold for one tensor of the merged model: under which name, of which shape, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from minerua.merge.planning.layers import may_count_tokens
from minerua.merge.recipes.ingredients import ModelRef
from minerua.values import TensorSpec

FLOATS = ("float32", "float16", "bfloat16", "float64")
"""Element types that are merged; float64 is rounded to float32 where it is read."""

_QUANTISED = frozenset(
    {
        *("qweight", "qzeros", "g_idx", "weight_scale", "weight_scale_inv", "weight_packed", "weight_shape"),
        *("absmax", "quant_map", "nested_absmax", "nested_quant_map", "SCB", "weight_format"),
        *("gate_up_proj_blocks", "gate_up_proj_scales", "down_proj_blocks", "down_proj_scales"),
    }
)
"""Last parts of names that GPTQ, AWQ, compressed-tensors, bitsandbytes and MXFP4 checkpoints have."""

_OUTPUT = "lm_head.weight"


class Holding(NamedTuple):
    """A tensor that a model holds.

    Args:
        model: Which model.
        spec: The tensor, under the model's own name for it.
    """

    model: ModelRef
    spec: TensorSpec

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's extents, whole numbers in a checkpoint."""
        return tuple(int(extent) for extent in self.spec.shape)


class Aligned(NamedTuple):
    """The models' tensors, with what makes tied embeddings and different vocabularies fit.

    Args:
        models: Model → tensor name → spec.
        tied: Model → the tensor that stands in for its missing `lm_head.weight`.
        vocabulary: Model → rows of its own embedding.
        merged_vocabulary: Rows of the merged embedding; `None` if vocabularies stay as they are.
    """

    models: Mapping[ModelRef, Mapping[str, TensorSpec]]
    tied: Mapping[ModelRef, str]
    vocabulary: Mapping[ModelRef, int]
    merged_vocabulary: int | None

    def holding(self, model: ModelRef, name: str) -> Holding | None:
        """Returns what a model holds under a name, or what stands in for it; `None` if it holds nothing."""
        specs = self.models[model]
        if name not in specs and (name == _OUTPUT or name.endswith("." + _OUTPUT)):
            name = self.tied.get(model, name)
        return Holding(model, specs[name]) if name in specs else None

    def shape_hint(self, name: str, found: Sequence[Holding]) -> str:
        """Returns what to do about different shapes."""
        rest = {holding.shape[1:] for holding in found}
        if len(rest) == 1 and may_count_tokens(name) and self.merged_vocabulary is None:
            return "if the vocabularies differ, align them with 'tokenizer: {source: base}' or 'union'"
        return "only models of one architecture can be merged"


def shape_of(name: str, found: Sequence[Holding], aligned: Aligned) -> tuple[tuple[int, ...] | None, bool]:
    """Returns the merged tensor's shape, and whether it has a row per token of the merged vocabulary.

    Args:
        name: The merged tensor's.
        found: What every model holds for it.
        aligned: The vocabularies' sizes.

    Returns:
        `None` for the shape if the models' shapes do not fit.
    """
    shapes = {holding.shape for holding in found}
    if aligned.merged_vocabulary is not None and may_count_tokens(name) and _has_row_per_token(found, aligned):
        rest = {shape[1:] for shape in shapes}
        return ((aligned.merged_vocabulary, *rest.pop()), True) if len(rest) == 1 else (None, True)
    return (shapes.pop() if len(shapes) == 1 else None), False


def _has_row_per_token(found: Sequence[Holding], aligned: Aligned) -> bool:
    return all(
        bool(holding.shape) and holding.shape[0] == aligned.vocabulary.get(holding.model, -1) for holding in found
    )


def unusable(models: Mapping[ModelRef, Mapping[str, TensorSpec]]) -> dict[ModelRef, str]:
    """Returns the models whose numbers are not floating-point ones that can be merged → why not."""
    faults = {}
    for model, specs in models.items():
        strange = [spec for spec in specs.values() if _is_quantised(spec)]
        if strange:
            example = f"{strange[0].name} of {strange[0].dtype}"
            faults[model] = (
                f"{model.text} is quantised ({len(strange)} tensors, such as {example}); dequantise it first"
            )
            continue
        other = [spec for spec in specs.values() if spec.dtype.startswith("complex")]
        if other:
            faults[model] = f"{model.text} holds complex numbers in {other[0].name}, which no method merges"
    return faults


def _is_quantised(spec: TensorSpec) -> bool:
    last = spec.name.rpartition(".")[2]
    if spec.dtype.startswith("float8") or last in _QUANTISED:
        return True
    is_whole = spec.dtype.startswith(("int", "uint"))
    return is_whole and last == "weight" and len(spec.shape) >= 1


def is_buffer(spec: TensorSpec) -> bool:
    """Whether a tensor holds what every library computes itself: rotary frequencies, and the masks of old GPT-2 files.

    Some checkpoints of one model family hold them and others do not; mergekit leaves them out, too.
    """
    if spec.name.endswith(
        ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "attn.masked_bias", "attention.masked_bias")
    ):
        return True
    is_mask = spec.name.endswith(("attn.bias", "attention.bias")) and len(spec.shape) == 4
    return is_mask and spec.shape[:2] == (1, 1) and spec.shape[2] == spec.shape[3]
