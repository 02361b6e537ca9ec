import doctest
from pathlib import Path

import numpy as np
import pytest

from minerua.errors import CheckpointError, ConfigError
from minerua.merge.recipes.ingredients import ModelRef, ModelToken, TokenizerRecipe, TokenRule
from minerua.merge.tokenizers import token_rows
from minerua.merge.tokenizers.token_rows import RowMap, extra_rows

from .tokenizers_by_hand import aligned, document, embeddings_of, plan_of, put, three_models, write_tokenizer


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return three_models(tmp_path)


def test_a_missing_row_is_the_only_models_then_the_bases_then_the_mean(tmp_path: Path) -> None:
    folders = [
        write_tokenizer(tmp_path / name, tokens)
        for name, tokens in {"p": ["only", "both", "base"], "q": ["both", "mean", "base"], "r": ["mean", "x"]}.items()
    ]
    p, q, r = refs = [ModelRef(name) for name in "pqr"]
    plan = plan_of(folders, TokenizerRecipe("union"))
    maps = plan.row_maps(refs, base=p)
    number = plan.ids
    rows = {ref: dict(zip(number, maps[ref].rows, strict=True)) for ref in refs}
    assert maps[q].extra[-1 - rows[q]["only"]] == ((p, 0),)
    assert maps[r].extra[-1 - rows[r]["base"]] == ((p, 2),)
    assert maps[p].extra[-1 - rows[p]["mean"]] == ((q, 1), (r, 0))
    without = plan.row_maps(refs, base=None)
    assert without[r].extra[-1 - without[r].rows[number["base"]]] == ((p, 2), (q, 2))
    alone = plan.row_maps([r], base=p)[r]  # the base does not take part in this tensor
    assert alone.extra[-1 - alone.rows[number["base"]]] == ()


def test_force_without_a_source_gives_every_model_the_default_row(three: list[Path]) -> None:
    plan = plan_of(three, TokenizerRecipe("base", {"a": TokenRule(None, force=True), "b": TokenRule(None)}))
    refs = [ModelRef(folder.name) for folder in three]
    maps = plan.row_maps(refs, base=refs[0])
    assert [row_map.extra[-1 - row_map.rows[1]] for row_map in maps.values()] == [((refs[0], 1),)] * 3
    assert [int(row_map.rows[2]) for row_map in maps.values()] == [2, 2, 2]
    assert list(plan_of(three, TokenizerRecipe("base", {"new": TokenRule()})).notes) == [
        "no model has an embedding of these tokens, their rows are zero: 1 in all, 'new'"
    ]


def test_padding_rows_are_the_mean_of_all_others(three: list[Path]) -> None:
    plan = plan_of(three, TokenizerRecipe("union", pad_to_multiple_of=8))
    assert plan.vocabulary == 16
    refs, tensors = [ModelRef(folder.name) for folder in three], embeddings_of(three)
    for row_map in plan.row_maps(refs, base=refs[0]).values():
        rows = aligned(row_map, tensors)
        np.testing.assert_allclose(rows[9:], np.tile(rows[:9].mean(axis=0), (7, 1)), rtol=1e-6)


def test_rows_beyond_the_tokens_are_cut_off_without_padding(three: list[Path]) -> None:
    plan = plan_of([three[2]], TokenizerRecipe("base"))
    assert plan.vocabulary == 7
    row_map = plan.row_maps([ModelRef("y")], base=None)[ModelRef("y")]
    assert row_map.extra == ()
    assert row_map.padding == 0
    assert row_map.is_identity(7)
    assert not row_map.is_identity(16)


def test_ids_with_holes_leave_rows_that_are_padding(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "holes", ["<unk>", "a"], kind="WordLevel", height=5)
    content = document(["<unk>", "a"], kind="WordLevel")
    content["model"]["vocab"]["z"] = 4
    put(folder, "tokenizer.json", content)
    plan = plan_of([folder], TokenizerRecipe("base"))
    row_map = plan.row_maps([ModelRef("holes")], base=None)[ModelRef("holes")]
    assert (plan.vocabulary, row_map.padding, row_map.rows.tolist()) == (5, 2, [0, 1, -1, -1, 4])
    more = write_tokenizer(tmp_path / "more", ["<unk>", "b", "c"], kind="WordLevel")
    with pytest.raises(
        CheckpointError, match=r"no tokens can be added[\s\S]*the ids have holes, and 'c' would get an id"
    ):
        plan_of([folder, more], TokenizerRecipe("union"))


def test_extra_rows_are_read_in_blocks_into_the_array_that_is_given() -> None:
    a, b = ModelRef("a"), ModelRef("b")
    tensors = {a: np.arange(30000, dtype=np.float32).reshape(-1, 3), b: np.ones((10000, 3), np.float32)}
    extra = tuple(((a, row), (b, row)) if row % 2 else ((b, row),) for row in range(10000))
    largest = 0

    def read(model: ModelRef, rows: np.ndarray) -> np.ndarray:
        nonlocal largest
        largest = max(largest, len(rows))
        return tensors[model][rows]

    out = np.full((10001, 3), np.nan, np.float32)
    row_map = RowMap(b, np.array([7, *range(-1, -10002, -1)]), extra, padding=1)
    assert extra_rows(row_map, read, out=out) is out
    assert largest == 4096
    np.testing.assert_array_equal(out[:10000:2], 1)
    np.testing.assert_array_equal(out[1:10000:2], (tensors[a][1::2] + 1) / 2)
    np.testing.assert_allclose(out[-1], (out[:-1].sum(axis=0, dtype=np.float64) + 1) / 10001)


def test_rows_that_cannot_be_made_are_all_reported_at_once(three: list[Path]) -> None:
    rules = {
        "<1>": TokenRule(ModelRef("stranger")),
        "<2>": TokenRule(ModelRef("x")),
        "<3>": TokenRule(ModelToken(ModelRef("x"), token="e")),
        "<4>": TokenRule(ModelToken(ModelRef("x"), token_id=7)),
        "a": TokenRule(ModelRef("stranger")),  # every model has it: the rule is not needed
    }
    plan = plan_of(three, TokenizerRecipe("base", rules))
    with pytest.raises(ConfigError, match="the embeddings of some tokens cannot be made") as caught:
        plan.row_maps([ModelRef("base"), ModelRef("x")], base=None)
    has = "its embedding has 7 rows, its tokenizer 7 tokens"
    assert caught.value.faults[3].endswith("for token_id 7: its embedding has 7 rows, its tokenizer 7 tokens")
    assert caught.value.faults == (
        "tokenizer.tokens['<1>'] takes a row of stranger, whose embedding is not among those that are merged: base, x",
        f"tokenizer.tokens['<2>'] takes a row of x, which has none for token '<2>': {has}",
        f"tokenizer.tokens['<3>'] takes a row of x, which has none for token 'e': {has}",
        f"tokenizer.tokens['<4>'] takes a row of x, which has none for token_id 7: {has}",
    )


def test_the_examples_run() -> None:
    assert doctest.testmod(token_rows).failed == 0
