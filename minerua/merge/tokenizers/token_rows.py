"""From one model's vocabulary to the merged one: which row goes where, and what stands in for rows that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minerua.errors import ConfigError
from minerua.merge.recipes.ingredients import ModelRef, ModelToken, TokenRule
from minerua.weights.header import capped, shown

ReadRows = Callable[[ModelRef, np.ndarray], np.ndarray]
"""`read(model, rows)` returns rows of a model's own tensor: rows is (n,), int64; the answer (n, width), float32."""

Row = tuple[ModelRef, int]
"""A row of a model's own tensor."""

_BLOCK_ROWS = 4096  # read at a time: a few tens of megabytes
_MAX_FAULTS = 20
_NO_RULE = TokenRule()


class RowMap(NamedTuple):
    """How one model's tensor is brought into the order of the merged vocabulary, as `kernels.sources.Source` takes it.

    Args:
        model: Which model.
        rows: Shape (vocabulary,), int64; the row of the model's own tensor, or `-1 - e` for row e of the extra ones.
        extra: For each extra row the rows whose mean it is; none for zeros.
        padding: How many merged rows have no token: they share one more extra row, the mean of all the others.
    """

    model: ModelRef
    rows: np.ndarray
    extra: tuple[tuple[Row, ...], ...]
    padding: int

    @property
    def extra_count(self) -> int:
        """How many extra rows there are, the one for padding included."""
        return len(self.extra) + bool(self.padding)

    def is_identity(self, height: int) -> bool:
        """Returns whether nothing changes for a tensor with this many rows."""
        return len(self.rows) == height and bool(np.array_equal(self.rows, np.arange(height)))


class Known(NamedTuple):
    """The tokens that have a row in a model's embedding.

    Args:
        ids: Token → row.
        height: How many rows the embedding has.
    """

    ids: Mapping[str, int]
    height: int


def map_rows(
    models: Mapping[ModelRef, Known],
    *,
    base: ModelRef | None,
    ids: Mapping[str, int],
    vocabulary: int,
    rules: Mapping[str, TokenRule],
) -> dict[ModelRef, RowMap]:
    """Aligns the models that one tensor is merged from; the rules are those of `minerua.merge.tokenizers.tokenizer`.

    Args:
        models: Model → its tokens, in the order in which means are taken.
        base: Whose row stands in for a missing one if it is among the models; or `None`.
        ids: Token → merged row.
        vocabulary: How many merged rows there are.
        rules: Token → what the recipe says about it; models that it needs are among `models`.

    Returns:
        A map for each model.

    Raises:
        ConfigError: A row that a rule asks for does not exist; lists all faults.
    """
    own = {model: _own_rows(tokens.ids, ids, vocabulary) for model, tokens in models.items()}
    forced = {ids[token] for token, rule in rules.items() if rule.force and token in ids}
    lacking = np.logical_or.reduce([rows < 0 for rows in own.values()])
    faults: list[str] = []
    made: dict[int, tuple[Row, ...]] = {}
    for token, number in ids.items():
        if lacking[number] or number in forced:
            row = _ruled_row(token, rules.get(token, _NO_RULE), models, faults)
            made[number] = _default_row(number, own, base) if row is None else row
    if faults:
        raise ConfigError("the embeddings of some tokens cannot be made", capped(faults, limit=_MAX_FAULTS))
    padding = vocabulary - len(set(ids.values()))
    return {model: _row_map(model, rows, made, forced, padding) for model, rows in own.items()}


def extra_rows(row_map: RowMap, read: ReadRows, *, out: np.ndarray | None = None) -> np.ndarray:
    """Makes the rows that a model's tensor lacks.

    Args:
        row_map: Which rows.
        read: Gives rows of the models' own tensors, adapters applied; called with 1 to 4096 rows.
        out: Shape (extra_count, width), float32, to write into, such as a mapped file where there are many; it is
            overwritten. Default: a new array.

    Returns:
        Shape (extra_count, width), float32: `out`, if given. Means are summed in the order of the models, in float32;
        the mean for padding in float64.

    Example:
        >>> a, b = ModelRef("a"), ModelRef("b")
        >>> row_map = RowMap(a, np.array([0, -1]), (((a, 0), (b, 0)),), padding=0)
        >>> values = {a: np.ones((1, 2), np.float32), b: np.full((1, 2), 3, np.float32)}
        >>> extra_rows(row_map, lambda model, rows: values[model][rows])
        array([[2., 2.]], dtype=float32)
    """
    width = read(row_map.model, np.zeros(1, np.int64)).shape[1]
    made = np.empty((row_map.extra_count, width), np.float32) if out is None else out
    made[:] = 0
    for model, places, rows in _terms(row_map.extra):
        for begin in range(0, len(rows), _BLOCK_ROWS):
            block = slice(begin, begin + _BLOCK_ROWS)
            made[places[block]] += read(model, rows[block])
    for place, terms in enumerate(row_map.extra):
        if len(terms) > 1:
            made[place] /= len(terms)
    if row_map.padding:
        made[-1] = _mean_row(row_map, made[:-1], read)
    return made


# ── which rows ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _own_rows(theirs: Mapping[str, int], ids: Mapping[str, int], vocabulary: int) -> np.ndarray:
    """Returns, shape (vocabulary,), a model's own row for every merged one; -1 where it has none."""
    rows = np.full(vocabulary, -1, np.int64)
    rows[np.fromiter(ids.values(), np.int64, len(ids))] = np.fromiter(
        (theirs.get(token, -1) for token in ids), np.int64, len(ids)
    )
    return rows


def _default_row(number: int, own: Mapping[ModelRef, np.ndarray], base: ModelRef | None) -> tuple[Row, ...]:
    present = [(model, int(rows[number])) for model, rows in own.items() if rows[number] >= 0]
    bases = [row for row in present if row[0] == base]
    return tuple(bases or present)


def _ruled_row(
    token: str, rule: TokenRule, models: Mapping[ModelRef, Known], faults: list[str]
) -> tuple[Row, ...] | None:
    """Returns the row that a recipe asks for, nothing for zeros; `None` where it leaves the choice."""
    if rule.source is None or isinstance(rule.source, str):
        return None if rule.source is None else ()
    asked = rule.source if isinstance(rule.source, ModelToken) else ModelToken(rule.source, token)
    where = f"tokenizer.tokens[{shown(token)}] takes a row of {asked.model.text}"
    if asked.model not in models:
        among = ", ".join(model.text for model in models)
        faults.append(f"{where}, whose embedding is not among those that are merged: {among}")
        return ()
    ids, height = models[asked.model]
    row = ids.get(asked.token, -1) if asked.token is not None else asked.token_id
    if row is None or not 0 <= row < height:
        what = f"token {shown(asked.token)}" if asked.token is not None else f"token_id {asked.token_id}"
        faults.append(
            f"{where}, which has none for {what}: its embedding has {height} rows, its tokenizer {len(ids)} tokens"
        )
        return ()
    return ((asked.model, row),)


def _row_map(
    model: ModelRef, own: np.ndarray, made: Mapping[int, tuple[Row, ...]], forced: set[int], padding: int
) -> RowMap:
    """Returns the map of one model, which takes only those of the made rows that it needs."""
    rows = own.copy()
    needed = [number for number in made if own[number] < 0 or number in forced]
    rows[needed] = -1 - np.arange(len(needed))
    if padding:
        named = np.zeros(len(own), bool)
        named[own >= 0] = True
        named[needed] = True
        rows[~named] = -1 - len(needed)
    return RowMap(model, rows, tuple(made[number] for number in needed), padding)


# ── their values ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _terms(extra: Sequence[tuple[Row, ...]]) -> Iterator[tuple[ModelRef, np.ndarray, np.ndarray]]:
    """Yields model, places among the extra rows, and rows: first every first term, then every second one."""
    for position in range(max(map(len, extra), default=0)):
        models: dict[ModelRef, list[tuple[int, int]]] = {}
        for place, terms in enumerate(extra):
            if position < len(terms):
                model, row = terms[position]
                models.setdefault(model, []).append((place, row))
        for model, pairs in models.items():
            places, rows = np.array(pairs, np.int64).T  # (n,), (n,)
            yield model, places, rows


def _mean_row(row_map: RowMap, extra: np.ndarray, read: ReadRows) -> np.ndarray:
    """Returns the mean of all merged rows that have a token, shape (width,), float64."""
    own = row_map.rows[row_map.rows >= 0]
    total: np.ndarray = extra.sum(axis=0, dtype=np.float64)
    for begin in range(0, len(own), _BLOCK_ROWS):
        total += read(row_map.model, own[begin : begin + _BLOCK_ROWS]).sum(axis=0, dtype=np.float64)
    total /= max(1, len(own) + len(extra))
    return total
