"""Which models' tensors make which tensor of the merged model: roles, modules, slices, and layers' new numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple, TypeAlias

from minerua.merge.planning.layers import (
    Position,
    families,
    gradient_position,
    in_layer,
    is_after,
    module_of,
    natural_order,
    position,
)
from minerua.merge.planning.tensors import is_buffer, unusable
from minerua.merge.recipes.ingredients import NO_SETTINGS, Input, ModelRef, Module, Recipe, Settings, Slice
from minerua.values import MergeMethodSpec, TensorSpec

Models: TypeAlias = Mapping[ModelRef, Mapping[str, TensorSpec]]
Layered: TypeAlias = Mapping[int, Sequence[Position]]


class Group(NamedTuple):
    """Models that are merged with one another.

    Args:
        experts: In the recipe's order.
        base: What they have in common; `None` if the method does without.
        places: Settings that hold for all of them, the one that overrides the others first.
        place: Where the group stands in the recipe.
    """

    experts: tuple[Input, ...]
    base: Input | None
    places: tuple[Settings, ...]
    place: str

    @property
    def members(self) -> tuple[Input, ...]:
        """The experts, then the base if there is one."""
        return self.experts if self.base is None else (*self.experts, self.base)

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """The members' models."""
        return tuple(member.model for member in self.members)


class Merged(NamedTuple):
    """A tensor of the merged model.

    Args:
        name: Its name there.
        names: Its name in each of the group's members.
        t: Where its layer lies between the first and the last of its slice; 0 outside the layers.
        group: What it is made of.
    """

    name: str
    names: tuple[str, ...]
    t: float
    group: Group


@dataclass
class Section:
    """A part of the merged model that is planned at once: a module, or the whole.

    Args:
        groups: One for models, one per slice for slices.
        tensors: What it is made of.
        layer_counts: Family → layers of the merged model.
        layer_origins: Family → where each of its layers comes from; for slices only.
    """

    groups: list[Group]
    tensors: list[Merged] = field(default_factory=list)
    layer_counts: dict[str, int] = field(default_factory=dict)
    layer_origins: dict[str, tuple[tuple[ModelRef, int], ...]] = field(default_factory=dict)


def sections_of(
    recipe: Recipe, method: MergeMethodSpec, models: Models, faults: list[str], notes: list[str]
) -> list[Section]:
    """Returns the parts of the merged model.

    Args:
        recipe: What is merged.
        method: How; decides what the base is.
        models: Every reference of the recipe → tensor name → spec.
        faults: Takes what stands in the way.
        notes: Takes what the user should know.
    """
    modules = recipe.modules or (Module("", recipe.models, recipe.slices),)
    sections = [Section(_Casting(recipe, module, method, faults, notes).groups()) for module in modules]
    merged = dict.fromkeys(model for section in sections for group in section.groups for model in group.models)
    faults += [fault for section in sections for group in section.groups for fault in group_faults(group, method)]
    strange = unusable({model: models[model] for model in merged})
    faults += strange.values()
    left_out: dict[str, None] = {}
    for section, module in zip(sections, modules, strict=True):
        own = {model: _tensors_of(module, recipe.modules, models[model], left_out) for model in merged}
        if not any(model in strange for group in section.groups for model in group.models):
            _arrange(section, own, faults, module)
    if left_out:
        example = min(left_out)
        notes.append(f"left out, because every library computes them itself: {len(left_out)} buffers such as {example}")
    if recipe.modules:
        faults += _homeless([models[model] for model in merged], recipe.modules)
    return sections


def _arrange(section: Section, held: Models, faults: list[str], module: Module) -> None:
    """Fills a section with the tensors that the models hold for it."""
    if module.name and not any(held.values()):
        faults.append(f"{module.place}: no tensor belongs to this module; its name has to be a part of theirs")
        return
    arranging = _Arranging(section, held, faults, module)
    arranging.stack() if module.slices else arranging.align()


def group_faults(group: Group, method: MergeMethodSpec) -> list[str]:
    """Returns what a method cannot do with a group: too few or too many experts, a model twice, no base."""
    faults = []
    given = [expert.model for expert in group.experts]
    twice = [model.text for model in dict.fromkeys(given) if given.count(model) > 1]
    faults += [f"{group.place}: {text} is listed more than once; one model has one place in a merge" for text in twice]
    besides = " besides the base" if group.base is not None else ""
    if len(given) < method.fewest:
        faults.append(
            f"{group.place}: {method.name} needs at least {method.fewest} models{besides}, found {len(given)}"
        )
    if method.most is not None and len(given) > method.most:
        faults.append(f"{group.place}: {method.name} takes at most {method.most} models{besides}, found {len(given)}")
    return faults


def _tensors_of(
    module: Module, modules: Sequence[Module], specs: Mapping[str, TensorSpec], left_out: dict[str, None]
) -> dict[str, TensorSpec]:
    """Returns a model's tensors that belong to a module, without buffers."""
    names = [known.name for known in modules]
    found = {}
    for name, spec in specs.items():
        if is_buffer(spec):
            left_out[name] = None
        elif not names or module_of(name, names) == module.name:
            found[name] = spec
    return found


def _homeless(models: Sequence[Mapping[str, TensorSpec]], modules: Sequence[Module]) -> Iterator[str]:
    names = [module.name for module in modules]
    lost = [name for name in dict.fromkeys(chain.from_iterable(models)) if module_of(name, names) is None]
    if lost:
        known = ", ".join(names)
        yield f"modules: {len(lost)} tensors belong to none of {known}, such as {lost[0]}; add their module"


# ── who is an expert, and who the base ───────────────────────────────────────────────────────────────────────────────


class _Casting(NamedTuple):
    """Gives the models of a module their roles, as the method has it."""

    recipe: Recipe
    module: Module
    method: MergeMethodSpec
    faults: list[str]
    notes: list[str]

    def groups(self) -> list[Group]:
        module, recipe = self.module, self.recipe
        above = (module.parameters, recipe.parameters) if recipe.modules else (recipe.parameters,)
        if not module.slices:
            place = f"{module.place}.models" if module.place else "models"
            return [self._group(module.models, recipe.base, (NO_SETTINGS, *above), place)]
        return [
            self._group(piece.sources, piece.base or recipe.base, (piece.parameters, *above), piece.place, piece)
            for piece in module.slices
        ]

    def _group(
        self,
        inputs: tuple[Input, ...],
        base: ModelRef | None,
        places: tuple[Settings, ...],
        place: str,
        piece: Slice | None = None,
    ) -> Group:
        if self.method.base == "ignored":
            return Group(self._with_unlisted(inputs, base, places, piece), None, places, place)
        if base is None:
            if self.method.base == "required":
                self.faults.append(f"{place}: {self.method.name} merges what differs from a base; set base_model")
            return Group(inputs, None, places, place)
        listed = [given for given in inputs if given.model == base]
        if listed and self._takes_per_model(listed[0]):
            self.notes.append(f"{listed[0].place}.parameters has no effect: the model is the base")
        experts = tuple(given for given in inputs if given.model != base)
        return Group(experts, listed[0] if listed else self._unlisted(inputs, base, piece), places, place)

    def _takes_per_model(self, given: Input) -> bool:
        return any(parameter.per_model and parameter.name in given.parameters for parameter in self.method.parameters)

    def _unlisted(self, inputs: tuple[Input, ...], base: ModelRef, piece: Slice | None) -> Input:
        """Returns the base that no source names; in a slice it takes the layers that all sources take."""
        if piece is None:
            return Input(base)
        ranges = {given.layers for given in inputs}
        if len(ranges) > 1:
            self.faults.append(
                f"{piece.place}: the base {base.text} is no source, and the sources take different layers"
            )
        return Input(base, inputs[0].layers, place=piece.place)

    def _with_unlisted(
        self, inputs: tuple[Input, ...], base: ModelRef | None, places: tuple[Settings, ...], piece: Slice | None
    ) -> tuple[Input, ...]:
        """Adds a base that is one expert like the others, as mergekit does, wherever mergekit would not fail then."""
        if base is None or piece is not None or any(given.model == base for given in inputs):
            return inputs
        unset = [
            parameter.name
            for parameter in self.method.parameters
            if parameter.per_model
            and parameter.default is None
            and not any(parameter.name in given for given in places)
        ]
        if unset or (self.method.most is not None and len(inputs) >= self.method.most):
            self.notes.append(
                f"base_model: {base.text} gives only configuration and tokenizer; it is none of the models"
            )
            return inputs
        self.notes.append(
            f"base_model: {base.text} is merged like the others: {self.method.name} treats no model as base"
        )
        return (*inputs, Input(base))


# ── which tensors ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Arranging(NamedTuple):
    """Fills a section with its tensors."""

    section: Section
    held: Mapping[ModelRef, Mapping[str, TensorSpec]]
    faults: list[str]
    module: Module

    def align(self) -> None:
        """Merges every tensor with its namesakes."""
        (group,) = self.section.groups
        if not group.models or self._are_strangers(group):
            return
        counts = [families(self.held[model]) for model in group.models]
        names = natural_order(set(chain.from_iterable(self.held[model] for model in group.models)))
        uneven = self._uneven(group, counts)
        for name in names:
            place = in_layer(name, counts[0])
            if place is not None and place.family in uneven:
                continue
            t = 0.0 if place is None else gradient_position(place.layer, counts[0][place.family])
            self.section.tensors.append(Merged(name, (name,) * len(group.members), t, group))
        self.section.layer_counts.update(counts[0])

    def _uneven(self, group: Group, counts: Sequence[Mapping[str, int]]) -> set[str]:
        """Returns families of which the models have different numbers of layers, after a fault for each."""
        uneven = set()
        for family in counts[0]:
            found = [count.get(family) for count in counts]
            if None not in found and len(set(found)) > 1:
                uneven.add(family)
                listed = ", ".join(f"{model.text} {count}" for model, count in zip(group.models, found, strict=True))
                self.faults.append(
                    f"{group.place}: the models have different numbers of {family}: {listed}; use slices"
                )
        return uneven

    def _are_strangers(self, group: Group) -> bool:
        shared = set.intersection(*(set(self.held[model]) for model in group.models))
        if shared or len(set(group.models)) < 2:
            return False
        examples = ", ".join(f"{model.text} {next(iter(self.held[model]), 'nothing')}" for model in group.models)
        self.faults.append(f"{group.place}: the models have no tensor in common; the first of each: {examples}")
        return True

    def stack(self) -> None:
        """Puts slices on one another, and renumbers their layers."""
        groups = self.section.groups
        models = list(dict.fromkeys(model for group in groups for model in group.models))
        family = self._family(models)
        if family is None:
            return
        self._outside(groups[0], family, after=False)
        layered = {model: self._layered(model, family) for model in models}
        done = 0
        origins: list[tuple[ModelRef, int]] = []
        for group, piece in zip(groups, self.module.slices, strict=True):
            if self._has_layers(group, family):
                self._layers(group, layered, family, done, piece.count)
            donor = group.base or piece.sources[0]
            first = (donor.layers or (0, 0))[0]
            origins += [(donor.model, first + index) for index in range(piece.count)]
            done += piece.count
        self._outside(groups[-1], family, after=True)
        self.section.layer_counts[family] = done
        self.section.layer_origins[family] = tuple(origins)

    def _family(self, models: Sequence[ModelRef]) -> str | None:
        """Returns the family that slices are about, or `None` after a fault."""
        found = [families(self.held[model]) for model in models]
        shared = [family for family in found[0] if all(family in other for other in found)]
        if len(shared) == 1:
            return shared[0]
        place = f"{self.module.place}.slices" if self.module.place else "slices"
        if shared:
            advice = "choose the layers of each under modules"
            self.faults.append(f"{place}: there are several kinds of layers, {', '.join(shared)}; {advice}")
        else:
            known = "; ".join(
                f"{m.text}: {', '.join(counts) or 'none'}" for m, counts in zip(models, found, strict=True)
            )
            self.faults.append(f"{place}: the models have no numbered layers in common; {known}")
        return None

    def _has_layers(self, group: Group, family: str) -> bool:
        """Whether every member has the layers that are asked of it; a fault for each that has not."""
        fits = True
        for member in group.members:
            count, end = families(self.held[member.model])[family], (member.layers or (0, 0))[1]
            if end > count:
                fits = False
                self.faults.append(
                    f"{member.place}: asks for layers up to {end}, {member.model.text} has {count} {family}"
                )
        return fits

    def _layers(self, group: Group, layered: Mapping[ModelRef, Layered], family: str, done: int, count: int) -> None:
        for index in range(count):
            t = gradient_position(index, count)
            layers = [(member.layers or (0, 0))[0] + index for member in group.members]
            places = dict.fromkeys(
                place
                for model, layer in zip(group.models, layers, strict=True)
                for place in layered[model].get(layer, ())
            )
            for place in places:
                names = tuple(place.at(layer) for layer in layers)
                self.section.tensors.append(Merged(place.at(done + index), names, t, group))

    def _layered(self, model: ModelRef, family: str) -> Layered:
        """Returns layer → where its tensors stand, told as if they stood in the first."""
        found: dict[int, list[Position]] = {}
        for name in self.held[model]:
            place = in_layer(name, {family: 0})
            if place is not None:
                found.setdefault(place.layer, []).append(place._replace(layer=0))
        return found

    def _outside(self, group: Group, family: str, *, after: bool) -> None:
        """Adds what comes before the layers, or after them."""
        names = natural_order(set(chain.from_iterable(self.held[model] for model in group.models)))
        for name in names:
            place = position(name)
            if (place is None or place.family != family) and is_after(name) == after:
                self.section.tensors.append(Merged(name, (name,) * len(group.members), 0.0, group))
