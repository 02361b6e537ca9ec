"""What a recipe says, as frozen values: models, slices, modules, settings, tokenizer; nothing here reads anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

Scalar: TypeAlias = bool | int | float | str
"""A single value of a parameter, as YAML reads it."""


class ModelRef(NamedTuple):
    """A model as a recipe names it: where it is, and the adapter that is applied to it. Equal ones are one model.

    Args:
        path: A local path, or a repository's name.
        revision: Of the repository; `None` for its default.
        lora: The adapter, a reference without an adapter of its own; or `None`.
        architecture: `override_architecture`; `None` to believe the model's own configuration.

    Example:
        >>> ModelRef("base", lora=ModelRef("adapter", "v2")).text
        'base+adapter@v2'
    """

    path: str
    revision: str | None = None
    lora: ModelRef | None = None
    architecture: str | None = None

    @property
    def text(self) -> str:
        """The reference as recipes write it: `path[@revision][+lora[@revision]]`."""
        own = f"{self.path}@{self.revision}" if self.revision else self.path
        return f"{own}+{self.lora.text}" if self.lora else own


class Rule(NamedTuple):
    """A value for the tensors whose name contains a text.

    Args:
        value: One value; or a tuple, a gradient that runs over the layers.
        filter: The text; `None` or `"*"` for all tensors.
    """

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None


@dataclass(frozen=True)
class Setting:
    """What a recipe says about one parameter at one place.

    Args:
        rules: The first whose filter fits a tensor holds for it.
        place: Where it stands in the document, such as `models[0].parameters.weight`.
    """

    rules: tuple[Rule, ...]
    place: str = field(compare=False, default="")


Settings: TypeAlias = Mapping[str, Setting]
"""Parameter name → what a recipe says about it."""

NO_SETTINGS: Settings = MappingProxyType({})


@dataclass(frozen=True)
class Input:
    """A model that is merged.

    Args:
        model: Which.
        layers: The first of its layers and one past the last; `None` for all of them.
        parameters: What holds for this model only.
        place: Where it stands in the document.
    """

    model: ModelRef
    layers: tuple[int, int] | None = None
    parameters: Settings = field(default_factory=lambda: NO_SETTINGS)
    place: str = field(compare=False, default="")


@dataclass(frozen=True)
class Slice:
    """Layers of the merged model that are made of as many layers of every source.

    Args:
        sources: One or more; all with `layers`.
        base: In place of the recipe's base; or `None`.
        parameters: What holds for this slice.
        place: Where it stands in the document.
    """

    sources: tuple[Input, ...]
    base: ModelRef | None = None
    parameters: Settings = field(default_factory=lambda: NO_SETTINGS)
    place: str = field(compare=False, default="")

    @property
    def count(self) -> int:
        """How many layers the slice has, by its first source."""
        first, end = self.sources[0].layers or (0, 0)
        return end - first


@dataclass(frozen=True)
class Module:
    """A part of a model of several parts, such as the text decoder of a vision-language model.

    Args:
        name: As the recipe calls it.
        models: What it is merged from, all layers; empty where there are slices.
        slices: Its layers; empty where there are models.
        parameters: What holds for this module.
        place: Where it stands in the document.
    """

    name: str
    models: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Settings = field(default_factory=lambda: NO_SETTINGS)
    place: str = field(compare=False, default="")


class ModelToken(NamedTuple):
    """The embedding of a token of one model; exactly one of `token` and `token_id` is given.

    Args:
        model: Which.
        token: The token's text.
        token_id: Its number.
    """

    model: ModelRef
    token: str | None = None
    token_id: int | None = None


class TokenRule(NamedTuple):
    """How one token's merged embedding is made.

    Args:
        source: The model whose embedding of the token is taken, another token's embedding, `"zero"`, or `None` for
            what holds without a rule.
        force: Whether models that have the token use this embedding too.
    """

    source: ModelRef | ModelToken | Literal["zero"] | None = None
    force: bool = False


class TokenizerRecipe(NamedTuple):
    """The tokenizer of the merged model.

    Args:
        source: A model's tokenizer, the base's, or the union of all.
        tokens: Token → how its embedding is made; for tokens that are not in the tokenizer, too.
        pad_to_multiple_of: The number of rows of the embeddings is rounded up to a multiple of it; `None` leaves it.
    """

    source: ModelRef | Literal["base", "union"] = "union"
    tokens: Mapping[str, TokenRule] = MappingProxyType({})
    pad_to_multiple_of: int | None = None

    @property
    def references(self) -> tuple[ModelRef, ...]:
        """The models that are named here, each once, in the order of the recipe."""
        named = [self.source, *(rule.source for rule in self.tokens.values())]
        models = [source.model if isinstance(source, ModelToken) else source for source in named]
        return tuple(dict.fromkeys(model for model in models if isinstance(model, ModelRef)))


class ActivationsRecipe(NamedTuple):
    """What runs the models where a method looks at what flows through them.

    Args:
        model: Name of the model kind that turns weights into something callable.
        tasks: Names of the evaluators that give each expert its own inputs, one per expert in the recipe's order.
    """

    model: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A whole merge; exactly one of `models`, `slices` and `modules` is not empty.

    Args:
        method: Name of the merge method, words joined by `-`.
        models: Models that are merged layer by layer.
        slices: Layers, one after another.
        modules: Parts that are merged each in its own way.
        base: The base; or `None`.
        parameters: What holds for all models, slices and modules.
        dtype: Element type of the merged model where `out_dtype` is `None`; `None` for the inputs' own.
        out_dtype: Element type of the merged model.
        tokenizer: `None` to keep the tokenizer of the base, or else of the first model.
        chat_template: `auto`, a known template's name, or the template itself; `None` to keep the tokenizer's.
        name: What other documents call the merged model; `None` for the last stage.
        semantics: Whether mergekit or the paper is followed where they differ.
        space: Where adapters of one base are merged; `None` for the method's usual way.
        rank: Rank of the adapter that is written; `None` for the exact one.
        activations: For methods that look at activations; or `None`.
        text: The document as it was written.
        notes: What the recipe says without effect.
    """

    method: str
    models: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    modules: tuple[Module, ...] = ()
    base: ModelRef | None = None
    parameters: Settings = field(default_factory=lambda: NO_SETTINGS)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerRecipe | None = None
    chat_template: str | None = None
    name: str | None = None
    semantics: Literal["mergekit", "paper"] = "mergekit"
    space: Literal["core", "knots", "full"] | None = None
    rank: int | None = None
    activations: ActivationsRecipe | None = None
    text: str = ""
    notes: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[ModelRef, ...]:
        """The models whose weights are read: inputs in the order of the recipe, then bases that are no input.

        Those that only the tokenizer names are in `tokenizer.references`.
        """
        bases = [self.base, *(piece.base for piece in self.all_slices())]
        inputs = [given.model for given in self.all_inputs()]
        return tuple(dict.fromkeys([*inputs, *(base for base in bases if base is not None)]))

    def all_slices(self) -> Iterator[Slice]:
        """Yields every slice, those of modules too."""
        yield from self.slices
        for module in self.modules:
            yield from module.slices

    def all_inputs(self) -> Iterator[Input]:
        """Yields every model or slice source, in the order of the recipe."""
        yield from self.models
        for module in self.modules:
            yield from module.models
            for piece in module.slices:
                yield from piece.sources
        for piece in self.slices:
            yield from piece.sources

    def parts(self) -> Iterator[Recipe | Module | Slice | Input]:
        """Yields everything that has parameters: the recipe, its modules, slices and inputs."""
        yield self
        yield from self.modules
        yield from self.all_slices()
        yield from self.all_inputs()
