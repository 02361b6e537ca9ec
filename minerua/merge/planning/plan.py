"""From a recipe and the models' headers to a list of jobs, one per tensor of the merged model, or to all faults.

Not a byte of a tensor is looked at. What mergekit's plan would drop in silence is a fault here, or a note.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from minerua.merge.planning.groups import Group, Section, sections_of
from minerua.merge.planning.layers import natural_order
from minerua.merge.planning.tensors import FLOATS, Aligned, Holding, shape_of
from minerua.merge.recipes.ingredients import ModelRef, Recipe
from minerua.merge.recipes.settings import resolve, setting_faults
from minerua.values import MergeMethodSpec, MergeParameter, TensorSpec
from minerua.weights.header import ITEM_BYTES, capped

_MAX_FAULTS = 100
_MAX_NAMES = 3


class Job(NamedTuple):
    """One tensor of the merged model.

    Args:
        name: Its name there.
        shape: Its extents.
        dtype: numpy's name of its element type.
        experts: For each expert the model and the tensor's name in it, in the recipe's order.
        base: The same of the base; or `None`.
        parameters: Parameter name → its value; a tuple of one per expert where it is set per model. Empty for a copy.
        kind: `"copy"` if it is no floating-point tensor: all models must hold the same.
        vocabulary: Whether it has a row per token, and `shape` the merged vocabulary's size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    experts: tuple[tuple[ModelRef, str], ...]
    base: tuple[ModelRef, str] | None
    parameters: Mapping[str, Any]
    kind: Literal["merge", "copy"] = "merge"
    vocabulary: bool = False

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Plan(NamedTuple):
    """What a merge does.

    Args:
        jobs: One per tensor, in natural order of names; of no use if there are faults.
        layer_counts: Family of layers → how many layers the merged model has.
        layer_origins: For a family that is made of slices, for each layer of the merged model the model and the layer
            it comes from, of the base where it is among the sources, else of the first source.
        faults: Everything that stands in the way.
        notes: What the user should know: what has no effect, what is left out.
    """

    jobs: tuple[Job, ...]
    layer_counts: Mapping[str, int]
    layer_origins: Mapping[str, tuple[tuple[ModelRef, int], ...]]
    faults: tuple[str, ...]
    notes: tuple[str, ...]


def plan(
    recipe: Recipe,
    method: MergeMethodSpec,
    models: Mapping[ModelRef, Mapping[str, TensorSpec]],
    *,
    tied: Mapping[ModelRef, str] | None = None,
    vocabulary: Mapping[ModelRef, int] | None = None,
    merged_vocabulary: int | None = None,
    known_parameters: Collection[str] = (),
) -> Plan:
    """Plans a merge from the models' headers.

    Args:
        recipe: What is merged.
        method: How.
        models: Every one of `recipe.references` → tensor name → its spec.
        tied: Model → the tensor that stands in for its missing `lm_head.weight`; for models whose embeddings are tied.
        vocabulary: Model → rows of its own embedding; for merges that align vocabularies.
        merged_vocabulary: Rows of the merged embedding; `None` to leave vocabularies as they are.
        known_parameters: Names of parameters of all methods: left in a recipe for another method, they are only noted.

    Returns:
        The plan; never raises because of what the recipe or the models say.

    Example:
        >>> from minerua.merge.recipes.recipe import parse_recipes
        >>> recipe, = parse_recipes("{models: [{model: a}, {model: b}], merge_method: mean}", where="r.yml")
        >>> specs = {"w": TensorSpec("w", (2, 2), "float32")}
        >>> method = MergeMethodSpec("mean", print, base="ignored")
        >>> job, = plan(recipe, method, {model: specs for model in recipe.references}).jobs
        >>> job.name, job.parameters["weight"]
        ('w', (1.0, 1.0))
    """
    planning = _Planning(recipe, method, Aligned(models, tied or {}, vocabulary or {}, merged_vocabulary))
    faults, notes = setting_faults(recipe, method, known=known_parameters)
    planning.settings_hold = not faults
    planning.faults += faults
    planning.notes += [*recipe.notes, *notes]
    sections = sections_of(recipe, method, models, planning.faults, planning.notes)
    for section in sections:
        planning.add(section)
    return planning.finished(sections)


@dataclass
class _Planning:
    """A plan in the making."""

    recipe: Recipe
    method: MergeMethodSpec
    aligned: Aligned
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    settings_hold: bool = True
    _missing: dict[tuple[ModelRef, tuple[ModelRef, ...]], list[str]] = field(default_factory=dict)
    _unset: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)

    def add(self, section: Section) -> None:
        for tensor in section.tensors:
            holdings = [self.aligned.holding(*pair) for pair in zip(tensor.group.models, tensor.names, strict=True)]
            found = [holding for holding in holdings if holding is not None]
            if len(found) == len(holdings):
                self._add_job(tensor.name, tensor.t, tensor.group, found)
            else:
                self._note_missing(tensor.name, tensor.group, holdings)

    def _add_job(self, name: str, t: float, group: Group, found: Sequence[Holding]) -> None:
        kinds = {holding.spec.dtype in FLOATS for holding in found}
        dtypes = list(dict.fromkeys(holding.spec.dtype for holding in found))
        if len(kinds) > 1 or (kinds == {False} and len(dtypes) > 1):
            self.faults.append(f"tensor {name!r} has element types that cannot be mixed: {_listed(found, 'dtype')}")
            return
        shape, is_vocabulary = shape_of(name, found, self.aligned)
        if shape is None:
            hint = self.aligned.shape_hint(name, found)
            self.faults.append(f"tensor {name!r} has different shapes: {_listed(found, 'shape')}; {hint}")
            return
        is_merged = kinds == {True}
        pairs = tuple((holding.model, holding.spec.name) for holding in found)
        experts, base = (pairs, None) if group.base is None else (pairs[:-1], pairs[-1])
        parameters = self._parameters(name, t, group, found) if is_merged else {}
        dtype = self._dtype(dtypes) if is_merged else dtypes[0]
        kind: Literal["merge", "copy"] = "merge" if is_merged else "copy"
        self.jobs[name] = Job(name, shape, dtype, experts, base, parameters, kind, is_vocabulary)

    def _dtype(self, dtypes: Sequence[str]) -> str:
        """Returns the output's element type: as asked for, or what holds the inputs' numbers, at most float32."""
        asked = self.recipe.out_dtype or self.recipe.dtype
        return asked or (dtypes[0] if len(dtypes) == 1 and dtypes[0] != "float64" else "float32")

    def _parameters(self, name: str, t: float, group: Group, found: Sequence[Holding]) -> Mapping[str, Any]:
        if not self.settings_hold:
            return {}
        values: dict[str, Any] = {}
        for parameter in self.method.parameters:
            if parameter.per_model:
                values[parameter.name] = tuple(
                    self._value(parameter, [given.parameters, *group.places], holding.spec.name, t, group, given.model)
                    for given, holding in zip(group.experts, found, strict=False)
                )
            else:
                values[parameter.name] = self._value(parameter, group.places, name, t, group, None)
        return MappingProxyType(values)

    def _value(
        self, parameter: MergeParameter, places: Sequence[Any], tensor: str, t: float, group: Group, model: Any
    ) -> Any:
        value = resolve(parameter, places, tensor=tensor, t=t)
        if value is None:
            owner = "the merge" if model is None else model.text
            self._unset.setdefault((parameter.name, owner, group.place), []).append(tensor)
        return value

    def _note_missing(self, name: str, group: Group, holdings: Sequence[Holding | None]) -> None:
        holders = tuple(model for model, found in zip(group.models, holdings, strict=True) if found is not None)
        for model, found in zip(group.models, holdings, strict=True):
            if found is None:
                self._missing.setdefault((model, holders), []).append(name)

    def finished(self, sections: Sequence[Section]) -> Plan:
        """Returns the plan with its jobs in natural order and its faults told."""
        for (model, holders), names in self._missing.items():
            text = " and ".join(holder.text for holder in holders)
            self.faults.append(
                f"{model.text} lacks {_some(names)}, found in {text}; every model needs the same tensors"
            )
        for (parameter, owner, place), names in self._unset.items():
            self.faults.append(
                f"{place}: {parameter} is not set for {owner} at {_some(names)}; set it under parameters"
            )
        if not self.jobs and not self.faults:
            self.faults.append("the models hold no tensors that could be merged")
        jobs = tuple(self.jobs[name] for name in natural_order(self.jobs))
        counts = {family: count for section in sections for family, count in section.layer_counts.items()}
        origins = {family: origin for section in sections for family, origin in section.layer_origins.items()}
        faults = tuple(capped(list(dict.fromkeys(self.faults)), limit=_MAX_FAULTS))
        return Plan(jobs, counts, origins, faults, tuple(dict.fromkeys(self.notes)))


def _some(names: Sequence[str]) -> str:
    """Names the first of many tensors, and counts them."""
    first = ", ".join(names[:_MAX_NAMES])
    return f"{first} and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else first


def _listed(found: Sequence[Holding], what: Literal["dtype", "shape"]) -> str:
    values = [(holding.model.text, getattr(holding.spec, what)) for holding in found]
    return ", ".join(f"{text} {list(value) if isinstance(value, tuple) else value}" for text, value in values)
