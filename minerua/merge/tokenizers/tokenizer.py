"""The merged model's tokenizer: its files, and which row of each model's embedding every merged row is made of.

The rules are mergekit 0.1.5's. A token that a model has keeps that model's own row. A model that lacks it takes, in
this order: what the recipe's `tokens` says; the row of the only model that has it; the base's row; the mean of the
models that have it; zeros, if none has. `force` gives this row to the models that have the token, too. Rows beyond the
tokens, which `pad_to_multiple_of` asks for, are the mean of all the others. Where ours differs:

- A token whose id lies beyond a model's embedding counts as lacking there; mergekit fails on most of them.
- A token that the recipe adds to the base's tokenizer is new to the base, too; mergekit looks for its row there, and
  fails or takes a row of padding.
- `force` without a source takes what holds without a rule; mergekit fails.
- New tokens of a union are numbered model by model, in the recipe's order, by their ids; mergekit's order changes from
  run to run.
- Without a base the first model's tokenizer stands in for the base's; with mergekit it is any model's.
- Means are taken in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, final

from minerua.errors import CheckpointError, ConfigError
from minerua.merge.recipes.ingredients import ModelRef, TokenizerRecipe, TokenRule
from minerua.merge.tokenizers.chat_templates import choose_template
from minerua.merge.tokenizers.token_rows import Known, RowMap, map_rows
from minerua.merge.tokenizers.tokenizer_files import copied_files, edited_files, with_template
from minerua.merge.tokenizers.vocabulary import FAST, AddedToken, Vocabulary, next_id, open_vocabulary
from minerua.weights.header import shown

MAX_PADDING = 1 << 16
"""The largest `pad_to_multiple_of`."""


class TokenizerFiles(NamedTuple):
    """A tokenizer that is taken over as it is.

    Args:
        files: Path in the merged model's folder → content.
        notes: What a user should know, in sentences.
    """

    files: Mapping[str, bytes]
    notes: tuple[str, ...]


@final
@dataclass(frozen=True, eq=False)
class TokenizerPlan:
    """A merged tokenizer; made by `plan_tokenizer`.

    Args:
        files: Path in the merged model's folder → content.
        ids: Token → its merged row.
        vocabulary: How many rows the merged embeddings have, padding included.
        new_ids: Id in the donor's tokenizer (the base's, or else the first model's) → id of the same token in the
            merged one, for configurations that name ids; tokens that the merged one lacks are left out.
        notes: What a user should know, in sentences.
    """

    files: Mapping[str, bytes]
    ids: Mapping[str, int]
    vocabulary: int
    new_ids: Mapping[int, int]
    notes: tuple[str, ...]
    _known: Mapping[ModelRef, Known] = field(repr=False)
    _rules: Mapping[str, TokenRule] = field(repr=False)

    def row_maps(self, models: Sequence[ModelRef], *, base: ModelRef | None) -> dict[ModelRef, RowMap]:
        """Aligns the models that one tensor is merged from.

        Args:
            models: The models, in the order in which means are taken; all have an embedding that was announced to
                `plan_tokenizer`.
            base: The base, whose row stands in for a missing one if it is among the models; or `None`.

        Returns:
            A map for each of them; the same arguments give the same maps.

        Raises:
            ConfigError: A row that the recipe's `tokens` ask for does not exist; lists all faults.
        """
        known = {model: self._known[model] for model in models}
        return map_rows(known, base=base, ids=self.ids, vocabulary=self.vocabulary, rules=self._rules)


def copy_tokenizer(folders: Sequence[Path], *, donor: Path, chat_template: str | None = None) -> TokenizerFiles:
    """Takes over the donor's tokenizer, for recipes that say nothing about tokenizers.

    Args:
        folders: The folders of all models, in the recipe's order; for `chat_template: auto`.
        donor: The base's folder, or else the first model's.
        chat_template: The recipe's `chat_template`.

    Returns:
        The files, none where the donor has no tokenizer.

    Raises:
        ConfigError: There is no such chat template, or no tokenizer to give it to.
        CheckpointError: A file cannot be read.
    """
    files = copied_files(donor)
    template = _template(chat_template, folders)
    if files:
        return TokenizerFiles(files if template is None else with_template(files, template), ())
    if template is not None:
        raise ConfigError(
            f"chat_template is set, but {donor} has no tokenizer to give it to; set it later, or remove it"
        )
    return TokenizerFiles({}, (f"{donor} has no tokenizer, so the merged model has none",))


def plan_tokenizer(
    recipe: TokenizerRecipe,
    folders: Mapping[ModelRef, Path],
    *,
    base: ModelRef | None,
    heights: Mapping[ModelRef, int],
    chat_template: str | None = None,
) -> TokenizerPlan:
    """Makes the merged tokenizer and numbers its tokens; reads no weights.

    Args:
        recipe: The recipe's `tokenizer`.
        folders: Model → its folder, of those that are merged and of the one that the tokenizer is taken from.
        base: The base; `None` makes the first model's tokenizer the base's.
        heights: Model → how many rows its embedding has, of those that are merged, in the recipe's order.
        chat_template: The recipe's `chat_template`.

    Returns:
        The plan; the same arguments and files give the same one.

    Raises:
        ConfigError: The recipe asks for what is not there, such as a chat template; lists all faults.
        CheckpointError: Tokenizer files cannot be read or changed; lists the faults of all models.

    Example:
        >>> import tempfile
        >>> model, recipe = ModelRef("m"), TokenizerRecipe("base", {"<new>": TokenRule("zero")})
        >>> text = '{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}}'
        >>> with tempfile.TemporaryDirectory() as name:
        ...     _ = Path(name, "tokenizer.json").write_text(text)
        ...     plan = plan_tokenizer(recipe, {model: Path(name)}, base=None, heights={model: 2})
        >>> dict(plan.ids), plan.row_maps([model], base=None)[model].rows
        ({'a': 0, 'b': 1, '<new>': 2}, array([ 0,  1, -1]))
    """
    donor = next(iter(heights or folders)) if base is None else base
    start = donor if isinstance(recipe.source, str) else recipe.source
    _check_recipe(recipe, start, folders)
    opened = _opened(folders, needed=(donor, start))
    known = {model: _known(opened.get(model, opened[donor]), height) for model, height in heights.items()}
    template = _template(chat_template, [folders[model] for model in heights])
    merged = _merged(recipe, opened, start, donor, known)
    files = _files(opened[start], merged)
    multiple = recipe.pad_to_multiple_of or 1
    return TokenizerPlan(
        files=MappingProxyType(files if template is None else with_template(files, template)),
        ids=MappingProxyType(merged.ids),
        vocabulary=-(-(max(merged.ids.values(), default=-1) + 1) // multiple) * multiple,
        new_ids=MappingProxyType(
            {n: merged.ids[token] for token, n in opened[donor].ids.items() if token in merged.ids}
        ),
        notes=tuple(_notes(recipe, opened, start, donor, known, merged)),
        _known=MappingProxyType(known),
        _rules=recipe.tokens,
    )


# ── what is there ────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_recipe(recipe: TokenizerRecipe, start: ModelRef, folders: Mapping[ModelRef, Path]) -> None:
    faults = []
    multiple = recipe.pad_to_multiple_of
    if multiple is not None and not 1 <= multiple <= MAX_PADDING:
        faults.append(f"tokenizer.pad_to_multiple_of is {multiple}; it must be an integer from 1 to {MAX_PADDING}")
    if start not in folders:
        known = ", ".join(model.text for model in folders)
        faults.append(f"tokenizer.source is {start.text}, whose folder is not known; known are {known}")
    if faults:
        raise ConfigError("the tokenizer cannot be made", faults)


def _template(wanted: str | None, folders: Sequence[Path]) -> str | None:
    template, faults = choose_template(wanted, folders)
    if faults:
        raise ConfigError("the chat template cannot be set", faults)
    return template


def _opened(folders: Mapping[ModelRef, Path], *, needed: Sequence[ModelRef]) -> dict[ModelRef, Vocabulary]:
    """Reads the tokenizers of all models; those that have none are left out, but for the needed ones."""
    faults: dict[Path, tuple[str, ...]] = {}
    distinct = dict.fromkeys(folders.values())  # a folder once, however many adapters are applied to its model
    read = {folder: _vocabulary(folder, faults) for folder in distinct}
    for model in dict.fromkeys(needed):
        folder = folders[model]
        if read[folder] is None and folder not in faults:
            faults[folder] = (f"{folder} has no {FAST}, but the merged tokenizer is to be made from {model.text}'s",)
    if faults:
        raise CheckpointError("the tokenizers cannot be read", [fault for found in faults.values() for fault in found])
    opened = {model: read[folder] for model, folder in folders.items()}
    return {model: vocabulary for model, vocabulary in opened.items() if vocabulary is not None}


def _vocabulary(folder: Path, faults: dict[Path, tuple[str, ...]]) -> Vocabulary | None:
    try:
        return open_vocabulary(folder)
    except CheckpointError as error:
        faults[folder] = error.faults
        return None


def _known(vocabulary: Vocabulary, height: int) -> Known:
    """Returns the tokens that have a row in an embedding; the others can never have been trained."""
    if max(vocabulary.ids.values(), default=-1) < height:
        return Known(vocabulary.ids, height)
    return Known({token: number for token, number in vocabulary.ids.items() if number < height}, height)


# ── the merged one ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Merged(NamedTuple):
    """The merged vocabulary.

    Args:
        ids: Token → id.
        added: The added tokens, by id.
        new: Tokens that the tokenizer did not have which the merged one is made from.
    """

    ids: dict[str, int]
    added: dict[str, AddedToken]
    new: tuple[str, ...]


def _merged(
    recipe: TokenizerRecipe,
    opened: Mapping[ModelRef, Vocabulary],
    start: ModelRef,
    donor: ModelRef,
    known: Mapping[ModelRef, Known],
) -> _Merged:
    vocabulary = opened[start]
    kept = known[start].ids if start in known else vocabulary.ids
    asked: dict[str, AddedToken] = {}
    if recipe.source == "union":
        order = dict.fromkeys([donor, *known])  # of one token's settings the base's count, then the first model's
        asked = _union(kept, [(opened[m], known[m].ids) for m in order if m in opened and m in known])
    asked |= {token: AddedToken(token) for token in recipe.tokens if token not in kept and token not in asked}
    asked.pop("", None)  # the tokenizers library has no use for an empty token
    return _numbered(vocabulary, kept, asked)


def _union(
    kept: Mapping[str, int], participants: Sequence[tuple[Vocabulary, Mapping[str, int]]]
) -> dict[str, AddedToken]:
    """Returns new ordinary tokens, and all that any tokenizer adds; in the order in which new ones are numbered.

    Args:
        kept: The tokens that are there.
        participants: Tokenizers, that of the base first, and their tokens that have a row.
    """
    added: dict[str, AddedToken] = {}
    ordinary: dict[str, AddedToken] = {}
    for vocabulary, rows in participants:
        for token, flags in vocabulary.added.items():
            if token in rows:
                added.setdefault(token, flags)
    for _, rows in participants:
        for token in sorted(rows.keys() - kept.keys() - added.keys(), key=rows.__getitem__):
            ordinary.setdefault(token, AddedToken(token))
    return ordinary | added


def _numbered(vocabulary: Vocabulary, kept: Mapping[str, int], asked: Mapping[str, AddedToken]) -> _Merged:
    """Adds tokens behind those that are kept, as the tokenizers library would."""
    ids = dict(kept)
    added = {token: flags for token, flags in vocabulary.added.items() if token in kept} | dict(asked)
    count = sum(token in kept for token in vocabulary.model_ids)
    last = max((kept[token] for token in added if token in kept), default=-1)
    new = tuple(token for token in asked if token not in kept)
    for token in new:
        ids[token] = last = next_id(count, last)
    added = {token: added[token] for token in sorted(added, key=ids.__getitem__)}
    if new and len(set(ids.values())) < len(ids):
        shared = next(token for token in new if ids[token] in kept.values())
        fault = f"{vocabulary.folder / FAST}: the ids have holes, and {shown(shared)} would get an id that is taken"
        raise CheckpointError("no tokens can be added to the tokenizer", [fault])
    return _Merged(ids, added, new)


def _files(vocabulary: Vocabulary, merged: _Merged) -> dict[str, bytes]:
    if merged.ids == vocabulary.ids and merged.added == vocabulary.added:
        return copied_files(vocabulary.folder)
    if vocabulary.document is None:
        fault = (
            f"{vocabulary.folder} has no {FAST} to put them into: write one with transformers, "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
        raise CheckpointError("the tokenizer needs other tokens than it has", [fault])
    return edited_files(vocabulary, merged.ids, merged.added)


def _notes(
    recipe: TokenizerRecipe,
    opened: Mapping[ModelRef, Vocabulary],
    start: ModelRef,
    donor: ModelRef,
    known: Mapping[ModelRef, Known],
    merged: _Merged,
) -> Iterator[str]:
    for model in known:
        if model not in opened:
            yield f"{model.text} has no tokenizer; its tokens are taken to be those of {donor.text}"
    lost = [token for token in opened[start].ids if token not in merged.ids]
    if lost:
        yield f"left out of the tokenizer of {start.text}, as its embedding has no row for them: {_some(lost)}"
    ordinary = [
        token for token in merged.new if merged.added[token] == AddedToken(token) and token not in recipe.tokens
    ]
    if ordinary:
        yield (
            "tokens that only other models have are found in a text as they are written, before it is cut into words: "
            f"{_some(ordinary)}"
        )
    unknown = merged.ids.keys() - set().union(*(tokens.ids for tokens in known.values()))
    nowhere = [
        token for token in merged.ids if token in unknown and recipe.tokens.get(token, TokenRule()).source is None
    ]
    if nowhere:
        yield f"no model has an embedding of these tokens, their rows are zero: {_some(nowhere)}"


def _some(tokens: Sequence[str]) -> str:
    """Returns how many tokens there are, and the first of them."""
    shortened = ", ".join(shown(token) for token in tokens[:5])
    return f"{len(tokens)} in all, {shortened}" + (", …" if len(tokens) > 5 else "")
