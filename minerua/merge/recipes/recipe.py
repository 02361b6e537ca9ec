"""From a recipe's text to a `Recipe`: mergekit's YAML unchanged, every fault at once, each with its place.

Source: the keys and what they mean are those of mergekit 0.1.5, https://github.com/arcee-ai/mergekit; differences are
in this room's README.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from minerua.errors import ConfigError, unknown
from minerua.merge.recipes.documents import read_documents
from minerua.merge.recipes.ingredients import (
    NO_SETTINGS,
    ActivationsRecipe,
    Input,
    ModelRef,
    ModelToken,
    Module,
    Recipe,
    Rule,
    Scalar,
    Setting,
    Settings,
    Slice,
    TokenizerRecipe,
    TokenRule,
)
from minerua.merge.recipes.stages import stage_faults
from minerua.weights.header import capped, shown

__all__ = ["ModelRef", "Recipe", "parse_recipes", "parse_reference", "read_recipes"]

_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "float32": "float32",
        "float16": "float16",
        "bfloat16": "bfloat16",
        "fp32": "float32",
        "fp16": "float16",
        "bf16": "bfloat16",
    }
)
"""An element type as recipes write it, with or without `torch.` in front → numpy's name."""

_MAX_FAULTS = 100
_MAX_LAYERS = 1 << 20

_T = TypeVar("_T")
_Path = str


def parse_recipes(text: str, *, where: str) -> tuple[Recipe, ...]:
    r"""Reads all recipes of a text: one, or the stages of a merge of merges.

    Args:
        text: YAML; several documents are separated by `---`.
        where: What messages call it, for example its path.

    Returns:
        The recipes in the order of the text. Names are unique, at most one recipe has none, and no stage needs itself.

    Raises:
        ConfigError: The text cannot be carried out, whatever the models hold; lists all faults with their places.

    Example:
        >>> recipe, = parse_recipes("models: [{model: a}, {model: b}]\nmerge_method: linear", where="r.yml")
        >>> [reference.text for reference in recipe.references]
        ['a', 'b']
    """
    recipes, faults = read_recipes(text, where=where)
    if faults:
        raise ConfigError(f"{where} cannot be carried out", capped(faults, limit=_MAX_FAULTS))
    return recipes


def read_recipes(text: str, *, where: str) -> tuple[tuple[Recipe, ...], list[str]]:
    """Reads all recipes of a text as far as they can be read, for those who have more to say about them.

    Args:
        text: YAML; several documents are separated by `---`.
        where: What messages call it, for example its path.

    Returns:
        The recipes, with stand-ins for what is wrong (empty texts, no settings), and all faults with their places.

    Raises:
        ConfigError: The text is no YAML that can be read, or holds no recipe.
    """
    documents = read_documents(text, where=where)
    if not documents:
        raise ConfigError(f"{where} holds no recipe; start with 'merge_method: ' and 'models: '")
    recipes: list[Recipe] = []
    faults: list[str] = []
    for number, (content, source) in enumerate(documents, 1):
        reading = _Reading()
        recipe = _recipe(reading, content, source)
        before = f"document {number}: " if len(documents) > 1 else ""
        faults += [before + fault for fault in reading.faults]
        recipes.append(recipe)
    return tuple(recipes), [*faults, *stage_faults(recipes)]


def parse_reference(text: str) -> ModelRef:
    """Reads a model as recipes and command lines write it.

    Args:
        text: `path[@revision][+adapter[@revision]]`.

    Raises:
        ConfigError: There is more than one `+`, or more than one `@` in a part, or a part is empty.

    Example:
        >>> parse_reference("base@main+adapter").lora
        ModelRef(path='adapter', revision=None, lora=None, architecture=None)
    """
    reading = _Reading()
    reference = _reference(reading, text, "the model")
    if reading.faults:
        raise ConfigError(f"{shown(text)} names no model", reading.faults)
    return reference


# ── what every part is read with ─────────────────────────────────────────────────────────────────────────────────────


class _Reading:
    """Collects what is wrong and what has no effect; readers go on with a stand-in after a fault."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.notes: list[str] = []

    def wrong(self, path: _Path, message: str) -> None:
        self.faults.append(f"{path}: {message}" if path else message)

    def wanted(self, path: _Path, wanted: str, found: Any) -> None:
        self.wrong(path, f"must be {wanted}, found {shown(found)}")

    def fields(self, value: Any, path: _Path, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Any]:
        """Returns a mapping's entries that are not null, after a fault for each that is unknown or missing."""
        if not isinstance(value, dict):
            self.wanted(path, f"a mapping with the keys {', '.join(known)}", value)
            return {}
        for key in value:
            if key not in known:
                self.wrong(_below(path, key), unknown("key of this place", key, known))
        given = {key: entry for key, entry in value.items() if entry is not None}
        for key in required:
            if key not in given:
                self.wrong(_below(path, key), "is missing, and has to be given")
        return given

    def items(self, value: Any, path: _Path, read: Callable[[_Reading, Any, _Path], _T]) -> tuple[_T, ...]:
        if not isinstance(value, list):
            self.wanted(path, "a list", value)
            return ()
        return tuple(read(self, item, f"{path}[{index}]") for index, item in enumerate(value))

    def word(self, value: Any, path: _Path) -> str:
        if isinstance(value, str) and value.strip():
            return value
        self.wanted(path, "a text", value)
        return ""

    def choice(self, value: Any, path: _Path, known: Sequence[str]) -> Any:
        if value in known:
            return value
        self.wanted(path, f"one of {', '.join(known)}", value)
        return known[0]

    def whole(self, value: Any, path: _Path, *, fewest: int, most: int) -> int:
        number = _whole_number(value)
        if number is not None and fewest <= number <= most:
            return number
        self.wanted(path, f"a whole number from {fewest} to {most}", value)
        return fewest

    def flag(self, value: Any, path: _Path) -> bool:
        if not isinstance(value, bool):
            self.wanted(path, "true or false", value)
        return value is True


def _whole_number(value: Any) -> int | None:
    """Returns a whole number that may be written as a text or with a point, or `None` if it is none."""
    if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) < 20:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _below(path: _Path, key: str) -> _Path:
    plain = key if len(key) <= 60 and key.isprintable() else shown(key)
    return f"{path}.{plain}" if path else plain


# ── the document ─────────────────────────────────────────────────────────────────────────────────────────────────────

_KINDS = ("models", "slices", "modules")
_KEYS = (
    *("merge_method", *_KINDS, "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template", "name", "semantics", "space", "rank", "activations"),
)


def _recipe(reading: _Reading, content: Any, text: str) -> Recipe:
    given = reading.fields(content, "", _KEYS, ("merge_method",))
    kinds = [kind for kind in _KINDS if given.get(kind) not in (None, [], {})]
    if len(kinds) != 1 and isinstance(content, dict):
        found = " and ".join(kinds) or "none of them"
        reading.wrong("", f"exactly one of models, slices and modules says what is merged, found {found}")
    values: dict[str, Any] = {
        field: read(reading, given[key], key) for key, (field, read) in _READERS.items() if key in given
    }
    if "tokenizer_source" in given:
        if "tokenizer" in given:
            reading.wrong("tokenizer_source", "stands beside tokenizer; keep one of the two")
        values["tokenizer"] = TokenizerRecipe(_tokenizer_source(reading, given["tokenizer_source"], "tokenizer_source"))
    return Recipe(**{"method": "", **values}, text=text, notes=tuple(reading.notes))


def _method(reading: _Reading, value: Any, path: _Path) -> str:
    return reading.word(value, path).strip().replace("_", "-")


def _dtype(reading: _Reading, value: Any, path: _Path) -> str:
    name = reading.word(value, path).removeprefix("torch.")
    if name and name not in _DTYPES:
        reading.wanted(path, f"one of {', '.join(_DTYPES)}", value)
    return _DTYPES.get(name, "float32")


def _name(reading: _Reading, value: Any, path: _Path) -> str:
    name = reading.word(value, path)
    if set(name) & set("/\\@+\0") or name in (".", ".."):  # it becomes a folder, and a model's name
        reading.wanted(path, "a name without / \\ @ and +", value)
    return name


def _model_input(reading: _Reading, value: Any, path: _Path) -> Input:
    given = reading.fields(value, path, ("model", "parameters"), ("model",))
    return Input(_model_of(reading, given, path), None, _settings_of(reading, given, path), path)


def _source(reading: _Reading, value: Any, path: _Path) -> Input:
    given = reading.fields(value, path, ("model", "layer_range", "parameters"), ("model", "layer_range"))
    layers = (0, 0)
    if "layer_range" in given:
        layers = _layer_range(reading, given["layer_range"], _below(path, "layer_range"))
    return Input(_model_of(reading, given, path), layers, _settings_of(reading, given, path), path)


def _layer_range(reading: _Reading, value: Any, path: _Path) -> tuple[int, int]:
    numbers = [_whole_number(item) for item in value] if isinstance(value, list) else []
    first, end = numbers if len(numbers) == 2 else (None, None)
    if first is None or end is None or not 0 <= first <= _MAX_LAYERS or not 0 <= end <= _MAX_LAYERS:
        reading.wanted(path, "[first layer, one past the last]", value)
        return (0, 0)
    if end < first:
        reading.wrong(path, f"ends before it begins: [{first}, {end}]")
    return (first, end)


def _slice(reading: _Reading, value: Any, path: _Path) -> Slice:
    known = ("sources", "base_model", "parameters", "residual_weight")
    given = reading.fields(value, path, known, ("sources",))
    sources = reading.items(given["sources"], _below(path, "sources"), _source) if "sources" in given else ()
    if given.get("sources") == []:
        reading.wrong(_below(path, "sources"), "is empty; name at least one model")
    counts = {end - first for first, end in (source.layers or (0, 0) for source in sources)}
    if len(counts) > 1:
        ranges = ", ".join(f"{source.model.text} {list(source.layers or ())}" for source in sources)
        reading.wrong(path, f"all sources of a slice need as many layers, found {ranges}")
    if "residual_weight" in given:
        reading.notes.append(f"{_below(path, 'residual_weight')} has no effect, as in mergekit")
    base = _reference(reading, given["base_model"], _below(path, "base_model")) if "base_model" in given else None
    stand_in = sources or (Input(ModelRef("")),)
    return Slice(stand_in, base, _settings_of(reading, given, path), path)


def _modules(reading: _Reading, value: Any, path: _Path) -> tuple[Module, ...]:
    if not isinstance(value, dict):
        reading.wanted(path, "a mapping of modules' names to models or slices", value)
        return ()
    return tuple(_module(reading, name, entry, _below(path, name)) for name, entry in value.items())


def _module(reading: _Reading, name: str, value: Any, path: _Path) -> Module:
    given = reading.fields(value, path, ("models", "slices", "parameters"))
    if bool(given.get("models")) == bool(given.get("slices")):
        reading.wrong(path, "needs models or slices, one of the two")
    models = reading.items(given["models"], _below(path, "models"), _model_input) if "models" in given else ()
    slices = reading.items(given["slices"], _below(path, "slices"), _slice) if "slices" in given else ()
    return Module(name, models, slices, _settings_of(reading, given, path), path)


def _activations(reading: _Reading, value: Any, path: _Path) -> ActivationsRecipe:
    given = reading.fields(value, path, ("model", "tasks"), ("model", "tasks"))
    model = reading.word(given["model"], _below(path, "model")) if "model" in given else ""
    tasks = reading.items(given["tasks"], _below(path, "tasks"), _Reading.word) if "tasks" in given else ()
    return ActivationsRecipe(model, tasks)


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _model_of(reading: _Reading, given: Mapping[str, Any], path: _Path) -> ModelRef:
    return _reference(reading, given["model"], _below(path, "model")) if "model" in given else ModelRef("")


def _reference(reading: _Reading, value: Any, path: _Path) -> ModelRef:
    if isinstance(value, str):
        base, *adapters = value.split("+")
        if len(adapters) > 1:
            reading.wrong(path, f"names more than one adapter: {shown(value)}; write model and lora as keys")
        own = _located(reading, base, path)
        return ModelRef(own.path, own.revision, _located(reading, adapters[0], path) if adapters else None)
    if not isinstance(value, dict):
        reading.wanted(path, "a model: path[@revision][+adapter[@revision]]", value)
        return ModelRef("")
    given = reading.fields(value, path, ("model", "lora", "override_architecture"), ("model",))
    own = _located(reading, given.get("model", "missing"), _below(path, "model"))
    lora = _located(reading, given["lora"], _below(path, "lora")) if "lora" in given else None
    key = "override_architecture"
    architecture = reading.word(given[key], _below(path, key)) if key in given else None
    return ModelRef(own.path, own.revision, lora, architecture)


def _located(reading: _Reading, value: Any, path: _Path) -> ModelRef:
    """Reads `path[@revision]`, or a mapping with the two, for paths that hold a `@` or a `+` themselves."""
    if isinstance(value, dict):
        given = reading.fields(value, path, ("path", "revision"), ("path",))
        words = {key: reading.word(given[key], _below(path, key)) for key in ("path", "revision") if key in given}
        return ModelRef(words.get("path", ""), words.get("revision"))
    text = reading.word(value, path)
    place, *revisions = text.split("@")
    if len(revisions) > 1:
        reading.wrong(path, f"names more than one revision: {shown(value)}; write path and revision as keys")
    if text and (not place.strip() or "" in revisions):
        reading.wrong(path, f"leaves out the path or the revision beside '@': {shown(value)}")
    return ModelRef(place, revisions[0] if revisions else None)


# ── parameters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _settings_of(reading: _Reading, given: Mapping[str, Any], path: _Path) -> Settings:
    return _settings(reading, given["parameters"], _below(path, "parameters")) if "parameters" in given else NO_SETTINGS


def _settings(reading: _Reading, value: Any, path: _Path) -> Settings:
    if not isinstance(value, dict):
        reading.wanted(path, "a mapping of parameters' names to values", value)
        return NO_SETTINGS
    return MappingProxyType({name: _setting(reading, entry, _below(path, name)) for name, entry in value.items()})


def _setting(reading: _Reading, value: Any, path: _Path) -> Setting:
    if isinstance(value, dict):
        return Setting((_rule(reading, value, path),), path)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return Setting(reading.items(value, path, _rule), path)
    if value == []:
        return Setting((), path)
    return Setting((Rule(_value(reading, value, path)),), path)


def _rule(reading: _Reading, value: Any, path: _Path) -> Rule:
    if not isinstance(value, dict):
        reading.wanted(path, "a mapping with value and filter, as its neighbours are", value)
        return Rule(0)
    given = reading.fields(value, path, ("value", "filter"), ("value",))
    pattern = given.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        reading.wanted(_below(path, "filter"), "a text that tensors' names contain", pattern)
        pattern = None
    return Rule(_value(reading, given.get("value", 0), _below(path, "value")), pattern)


def _value(reading: _Reading, value: Any, path: _Path) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list):
        return reading.items(value, path, _scalar)
    return _scalar(reading, value, path)


def _scalar(reading: _Reading, value: Any, path: _Path) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        reading.wrong(path, f"is not a finite number: {value}")
    if isinstance(value, (bool, int, float, str)):
        return value
    reading.wanted(path, "a number, a text, true or false, or a list of them", value)
    return 0


# ── the tokenizer ────────────────────────────────────────────────────────────────────────────────────────────────────


def _tokenizer(reading: _Reading, value: Any, path: _Path) -> TokenizerRecipe:
    given = reading.fields(value, path, ("source", "tokens", "pad_to_multiple_of"))
    source = _tokenizer_source(reading, given.get("source", "union"), _below(path, "source"))
    tokens, place = given.get("tokens", {}), _below(path, "tokens")
    if not isinstance(tokens, dict):
        reading.wanted(place, "a mapping of tokens to how their embeddings are made", tokens)
        tokens = {}
    rules = {token: _token_rule(reading, rule, _below(place, token)) for token, rule in tokens.items()}
    key = "pad_to_multiple_of"
    multiple = reading.whole(given[key], _below(path, key), fewest=1, most=1 << 20) if key in given else None
    return TokenizerRecipe(source, MappingProxyType(rules), multiple)


def _tokenizer_source(reading: _Reading, value: Any, path: _Path) -> Any:
    return value if value in ("union", "base") else _reference(reading, value, path)


def _token_rule(reading: _Reading, value: Any, path: _Path) -> TokenRule:
    given = reading.fields(value, path, ("source", "force"))
    force = reading.flag(given["force"], _below(path, "force")) if "force" in given else False
    source, place = given.get("source"), _below(path, "source")
    if not isinstance(source, dict) or "kind" not in source:
        return TokenRule(None if source is None else _reference(reading, source, place), force)
    if source["kind"] == "zero":
        reading.fields(source, place, ("kind",))
        return TokenRule("zero", force)
    return TokenRule(_model_token(reading, source, place), force)


def _model_token(reading: _Reading, value: Any, path: _Path) -> ModelToken:
    given = reading.fields(value, path, ("kind", "model", "token", "token_id"), ("model",))
    reading.choice(given.get("kind"), _below(path, "kind"), ("model_token", "zero"))
    if ("token" in given) == ("token_id" in given):
        reading.wrong(path, "needs a token or its token_id, one of the two")
    token = reading.word(given["token"], _below(path, "token")) if "token" in given else None
    place = _below(path, "token_id")
    number = reading.whole(given["token_id"], place, fewest=0, most=1 << 31) if "token_id" in given else None
    return ModelToken(_model_of(reading, given, path), token, number)


_READERS: Mapping[str, tuple[str, Callable[[_Reading, Any, _Path], Any]]] = {
    "merge_method": ("method", _method),
    "models": ("models", lambda reading, value, path: reading.items(value, path, _model_input)),
    "slices": ("slices", lambda reading, value, path: reading.items(value, path, _slice)),
    "modules": ("modules", _modules),
    "base_model": ("base", _reference),
    "parameters": ("parameters", _settings),
    "dtype": ("dtype", _dtype),
    "out_dtype": ("out_dtype", _dtype),
    "tokenizer": ("tokenizer", _tokenizer),
    "chat_template": ("chat_template", _Reading.word),
    "name": ("name", _name),
    "semantics": ("semantics", lambda reading, value, path: reading.choice(value, path, ("mergekit", "paper"))),
    "space": ("space", lambda reading, value, path: reading.choice(value, path, ("core", "knots", "full"))),
    "rank": ("rank", lambda reading, value, path: reading.whole(value, path, fewest=1, most=1 << 20)),
    "activations": ("activations", _activations),
}
"""Key of the document → field of `Recipe`, and what reads it."""
