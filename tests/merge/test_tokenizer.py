import contextlib
import doctest
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import CheckpointError, ConfigError
from minerua.merge import chat_templates, token_rows, tokenizer, tokenizer_files, vocabulary
from minerua.merge.chat_templates import TEMPLATES, choose_template
from minerua.merge.ingredients import ModelRef, ModelToken, TokenizerRecipe, TokenRule
from minerua.merge.token_rows import RowMap, extra_rows
from minerua.merge.tokenizer import TokenizerPlan, copy_tokenizer, plan_tokenizer
from minerua.merge.vocabulary import open_vocabulary, read_bytes, read_template

from .tokenizers_by_hand import ask_mergekit, document, load_tokenizer, put, write_tokenizer

SOME = ["<unk>", "a", "b", "ab", "c"]


def plan_of(
    folders: Sequence[Path],
    recipe: TokenizerRecipe,
    *,
    base: int | None = 0,
    heights: Sequence[int] | None = None,
    chat_template: str | None = None,
) -> TokenizerPlan:
    """The plan for models that are called by their folders' names; heights are those in their configurations."""
    refs = [ModelRef(folder.name) for folder in folders]
    heights = heights or [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in folders]
    return plan_tokenizer(
        recipe,
        dict(zip(refs, folders, strict=True)),
        base=None if base is None else refs[base],
        heights=dict(zip(refs, heights, strict=False)),
        chat_template=chat_template,
    )


def aligned(row_map: RowMap, tensors: Mapping[ModelRef, np.ndarray]) -> np.ndarray:
    """The merged rows of one model's tensor, shape (vocabulary, width)."""
    extra = extra_rows(row_map, lambda model, rows: tensors[model][rows])
    own = tensors[row_map.model]
    return np.stack([own[row] if row >= 0 else extra[-1 - row] for row in row_map.rows])


def embeddings_of(folders: Sequence[Path], width: int = 3) -> dict[ModelRef, np.ndarray]:
    """Model → random embedding with as many rows as its configuration says."""
    heights = [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in folders]
    rng = np.random.default_rng(0)
    return {
        ModelRef(folder.name): rng.standard_normal((height, width)).astype(np.float32)
        for folder, height in zip(folders, heights, strict=True)
    }


def saved(plan: TokenizerPlan, folder: Path) -> Path:
    """A folder with the plan's files and the configuration of a Llama."""
    put(folder, "config.json", {"model_type": "llama"})
    for name, content in plan.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A base and two models that have other tokens, in another order; the last embedding is padded."""
    return [
        write_tokenizer(tmp_path / "base", SOME, merges=["a b"], special=["<s>"], settings={"bos_token": "<s>"}),
        write_tokenizer(tmp_path / "x", ["<unk>", "c", "b", "a", "d"], special=["<s>", "<|im_end|>"]),
        write_tokenizer(tmp_path / "y", ["<unk>", "a", "b", "c", "e", "d"], special=["<s>"], height=16),
    ]


# ── against mergekit ─────────────────────────────────────────────────────────────────────────────────────────────────


def random_case(seed: int, folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """Three models with random tokens, and mergekit's `tokenizer` setting with random rules."""
    rng = np.random.default_rng(seed)
    letters = [*"abcdefgh", "ab", "cd"]
    folders = []
    for name in ("m0", "m1", "m2"):
        tokens = ["<unk>", *(letters[i] for i in rng.permutation(10)[: rng.integers(4, 10)])]
        special = ["<s>", *(f"<{i}>" for i in rng.permutation(3)[: rng.integers(0, 3)])]
        merges = ["a b"] if {"a", "b", "ab"} <= set(tokens) else []
        height = len(tokens) + len(special) + int(rng.integers(0, 4))
        path = folder / f"{seed}" / name
        path.parent.mkdir(exist_ok=True)
        folders.append(write_tokenizer(path, tokens, merges=merges, special=special, height=height))
    source = ["union", "base", str(folders[1])][seed % 3]
    rules: dict[str, Any] = {"<new>": {"source": {"kind": "zero"}}}
    rules["<s>"] = {"source": str(folders[int(rng.integers(3))]), "force": bool(rng.integers(2))}
    target = {"kind": "model_token", "model": str(folders[2]), "token_id": int(rng.integers(5))}
    rules["<other>"] = {"source": target, "force": bool(rng.integers(2))}
    if source == "base":  # mergekit counts new tokens as the base's own there, and fails for want of their rows
        rules = {"<s>": rules["<s>"]}
    return folders, {"source": source, "tokens": rules, "pad_to_multiple_of": [None, 8][seed % 2]}


def as_ours(setting: Mapping[str, Any]) -> TokenizerRecipe:
    """mergekit's `tokenizer` setting as a recipe, models called by their folders' names."""

    def source(asked: Any) -> Any:
        if isinstance(asked, str):
            return asked if asked in ("union", "base") else ModelRef(Path(asked).name)
        if asked["kind"] == "zero":
            return "zero"
        return ModelToken(ModelRef(Path(asked["model"]).name), asked.get("token"), asked.get("token_id"))

    rules = {
        token: TokenRule(source(rule["source"]), rule.get("force", False)) for token, rule in setting["tokens"].items()
    }
    return TokenizerRecipe(source(setting["source"]), rules, setting["pad_to_multiple_of"])


def test_random_recipes_give_mergekits_tokens_and_rows(tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    cases = [(*random_case(seed, tmp_path), [None, 0][seed % 2]) for seed in range(18)]
    questions = []
    for folders, setting, base in cases:
        first = None if base is None else str(folders[base])
        embeddings = [rows.tolist() for rows in embeddings_of(folders).values()]
        questions.append(
            {"models": list(map(str, folders)), "base": first, "tokenizer": setting, "embeddings": embeddings}
        )
    averaged = 0
    for (folders, setting, base), theirs in zip(cases, ask_mergekit(questions), strict=True):
        plan = plan_of(folders, as_ours(setting), base=base)
        assert plan.ids.keys() == theirs["ids"].keys()
        refs, tensors = [ModelRef(folder.name) for folder in folders], embeddings_of(folders)
        maps = plan.row_maps(refs, base=None if base is None else refs[base])
        order = [theirs["ids"][token] for token in sorted(plan.ids)]
        for ref, wanted in zip(refs, theirs["embeddings"], strict=True):
            ours = aligned(maps[ref], tensors)
            assert len(ours) == len(wanted) == plan.vocabulary
            np.testing.assert_allclose(ours[[plan.ids[token] for token in sorted(plan.ids)]], np.array(wanted)[order])
            np.testing.assert_allclose(ours[len(order) :], wanted[len(order) :], rtol=1e-5, atol=1e-6)
        averaged += sum(len(row) > 1 for row_map in maps.values() for row in row_map.extra)
        if setting["source"] != "union":  # where the order of tokens does not change from run to run
            assert dict(plan.ids) == theirs["ids"]
    assert averaged > 10


# ── the merged tokenizer ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_union_has_the_bases_tokens_first_then_each_models_own(three: list[Path]) -> None:
    plan = plan_of(three, TokenizerRecipe("union"))
    assert list(plan.ids) == [*SOME, "<s>", "d", "e", "<|im_end|>"]
    assert list(plan.ids.values()) == list(range(9))
    assert plan.notes == (
        "tokens that only other models have are found in a text as they are written, before it is cut into words: "
        "2 in all, 'd', 'e'",
    )


def test_the_union_loads_and_encodes_with_the_planned_ids(three: list[Path], tmp_path: Path) -> None:
    recipe = TokenizerRecipe("union", {"<new>": TokenRule("zero")})
    plan = plan_of(three, recipe)
    loaded = load_tokenizer(saved(plan, tmp_path / "out"))
    assert loaded.get_vocab() == dict(plan.ids)
    tokens = loaded.convert_ids_to_tokens(loaded("ab c<|im_end|> d<new>e")["input_ids"])
    assert tokens == ["ab", "c", "<|im_end|>", "d", "<new>", "e"]
    assert loaded.decode(loaded("ab<|im_end|>")["input_ids"], skip_special_tokens=True) == "ab"


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "Unigram", "WordPiece"])
def test_tokens_can_be_added_and_left_out_whatever_the_kind(kind: str, tmp_path: Path) -> None:
    base = write_tokenizer(tmp_path / "base", SOME, kind=kind, special=["<s>"], added=["<p>", "<q>"], height=7)
    other = write_tokenizer(tmp_path / "other", [*SOME, "f"], kind=kind, special=["<s>", "<r>"])
    plan = plan_of([base, other], TokenizerRecipe("union"))
    assert list(plan.ids) == [*SOME, "<s>", "<p>", "f", "<r>"]
    assert plan.notes[0].startswith("left out of the tokenizer of base, as its embedding has no row for them: 1 in all")
    assert load_tokenizer(saved(plan, tmp_path / "out")).get_vocab() == dict(plan.ids)


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "Unigram", "WordPiece"])
def test_ordinary_tokens_without_a_row_are_left_out_with_their_merges(kind: str, tmp_path: Path) -> None:
    tokens = [*SOME, "bc", "abc"]
    base = write_tokenizer(
        tmp_path / "base", tokens, kind=kind, height=5, **({"merges": ["b c"]} if kind == "BPE" else {})
    )
    plan = plan_of([base], TokenizerRecipe("base"))
    assert list(plan.ids) == SOME
    assert load_tokenizer(saved(plan, tmp_path / "out")).get_vocab() == dict(plan.ids)


def test_merges_in_the_form_of_pairs_are_read_too(tmp_path: Path) -> None:
    base = write_tokenizer(tmp_path / "base", [*SOME, "abc"], height=5)
    content = document([*SOME, "abc"])
    content["model"]["merges"] = [["a", "b"], ["ab", "c"]]
    put(base, "tokenizer.json", content)
    plan = plan_of([base], TokenizerRecipe("base"))
    assert json.loads(plan.files["tokenizer.json"])["model"]["merges"] == [["a", "b"]]
    assert load_tokenizer(saved(plan, tmp_path / "out")).tokenize("abc") == ["ab", "c"]


def test_a_tokenizer_that_needs_no_change_is_copied_byte_by_byte(three: list[Path]) -> None:
    (three[0] / "tokenizer.model").write_bytes(b"pieces")
    (three[0] / "additional_chat_templates").mkdir()
    (three[0] / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"{{ messages }}")
    plan = plan_of(three, TokenizerRecipe("base"))
    names = ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "additional_chat_templates/tool_use.jinja"]
    assert dict(plan.files) == {name: (three[0] / name).read_bytes() for name in names}
    assert dict(plan.new_ids) == {number: number for number in range(6)}


def test_files_with_the_old_tokens_do_not_travel_with_a_changed_tokenizer(three: list[Path]) -> None:
    (three[0] / "tokenizer.model").write_bytes(b"pieces")
    put(three[0], "added_tokens.json", {"<s>": 5})
    assert sorted(plan_of(three, TokenizerRecipe("union")).files) == ["tokenizer.json", "tokenizer_config.json"]


def test_another_models_tokenizer_moves_the_donors_ids(three: list[Path]) -> None:
    plan = plan_of(three, TokenizerRecipe(ModelRef("x")))
    assert list(plan.ids) == ["<unk>", "c", "b", "a", "d", "<s>", "<|im_end|>"]
    assert dict(plan.new_ids) == {0: 0, 1: 3, 2: 2, 4: 1, 5: 5}  # "ab" is gone


def test_a_tokenizer_may_come_from_a_model_that_is_not_merged(three: list[Path]) -> None:
    plan = plan_of(three, TokenizerRecipe(ModelRef("y")), heights=[6, 7])
    assert list(plan.ids) == ["<unk>", "a", "b", "c", "e", "d", "<s>"]
    assert plan.notes == ("no model has an embedding of these tokens, their rows are zero: 1 in all, 'e'",)


def test_the_settings_list_every_added_token_where_they_list_any(three: list[Path], tmp_path: Path) -> None:
    special = {
        "content": "<s>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    put(
        three[0], "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {"5": special}}
    )
    plan = plan_of(three, TokenizerRecipe("union"))
    listed = json.loads(plan.files["tokenizer_config.json"])["added_tokens_decoder"]
    assert {entry["content"]: int(number) for number, entry in listed.items()} == {
        token: number for token, number in plan.ids.items() if number >= 5
    }
    assert listed["5"] == special
    loaded = load_tokenizer(saved(plan, tmp_path / "out"))
    assert {token: loaded.get_vocab()[token] for token in plan.ids} == dict(plan.ids)


def test_of_one_tokens_flags_the_bases_count(three: list[Path]) -> None:
    content = document(["<unk>", "a"], added=["<s>", "b"])
    put(three[1], "tokenizer.json", content)
    added = {
        entry["content"]: entry
        for entry in json.loads(plan_of(three, TokenizerRecipe("union")).files["tokenizer.json"])["added_tokens"]
    }
    assert added["<s>"]["special"] is True
    assert added["b"] == {
        "id": 2,
        "content": "b",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }


def test_special_tokens_that_are_only_named_count_as_transformers_counts_them(tmp_path: Path) -> None:
    named = {
        "pad_token": "<pad>",
        "eos_token": {"__type": "AddedToken", "content": "b"},
        "additional_special_tokens": ["<x>"],
    }
    base = write_tokenizer(tmp_path / "base", SOME, added=["<s>"], settings=named)
    opened = open_vocabulary(base)
    assert opened is not None
    assert dict(opened.ids) == load_tokenizer(base).get_vocab()
    assert list(opened.ids)[-2:] == ["<pad>", "<x>"]


def test_special_tokens_without_a_row_are_not_named_any_more(tmp_path: Path) -> None:
    named = {"pad_token": "<pad>", "bos_token": "<s>", "additional_special_tokens": ["<s>", "<x>"]}
    base = write_tokenizer(tmp_path / "base", SOME, special=["<s>"], settings=named, height=6)
    put(base, "special_tokens_map.json", {"pad_token": {"content": "<pad>"}, "extra_special_tokens": {"image": "<x>"}})
    plan = plan_of([base], TokenizerRecipe("base"))
    settings_file = json.loads(plan.files["tokenizer_config.json"])
    assert settings_file == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "additional_special_tokens": ["<s>"],
    }
    assert json.loads(plan.files["special_tokens_map.json"]) == {"extra_special_tokens": {}}
    assert load_tokenizer(saved(plan, tmp_path / "out")).get_vocab() == dict(plan.ids)


@pytest.mark.parametrize(
    ("tokens", "added", "late"),
    [
        (SOME, [(5, "<x>"), (6, "<y>")], {}),
        (SOME, [(9, "<x>"), (2, "<y>")], {}),
        (SOME, [(2, "b"), (5, "<y>")], {"5": "<y>", "6": "<z>"}),
        (SOME, [], {"7": "<y>", "6": "<z>", "1": "a"}),
    ],
)
def test_ids_are_those_that_transformers_gives(
    tokens: list[str], added: list[tuple[int, str]], late: dict[str, str], tmp_path: Path
) -> None:
    folder = write_tokenizer(tmp_path / "model", tokens)
    content = document(tokens)
    content["added_tokens"] = [
        {**document(["a"], added=["b"])["added_tokens"][0], "id": n, "content": t} for n, t in added
    ]
    put(folder, "tokenizer.json", content)
    entries = {number: {"content": token, "special": False} for number, token in late.items()}
    settings_file = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    put(folder, "tokenizer_config.json", settings_file | ({"added_tokens_decoder": entries} if late else {}))
    opened = open_vocabulary(folder)
    assert opened is not None
    assert dict(opened.ids) == load_tokenizer(folder).get_vocab()


def test_a_vocabulary_without_tokenizer_json_is_read_and_copied(three: list[Path], tmp_path: Path) -> None:
    old = tmp_path / "old"
    put(old, "vocab.json", {"a": 0, "b": 1})
    put(old, "added_tokens.json", {"<s>": 2})
    put(old, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    put(old, "config.json", {"vocab_size": 3})
    (old / "merges.txt").write_text("#version: 0.2\n")
    plan = plan_of([old, three[0]], TokenizerRecipe("base"))
    assert dict(plan.ids) == {"a": 0, "b": 1, "<s>": 2}
    assert sorted(plan.files) == ["added_tokens.json", "merges.txt", "tokenizer_config.json", "vocab.json"]
    with pytest.raises(
        CheckpointError, match=r"needs other tokens than it has[\s\S]*no tokenizer.json to put them into"
    ):
        plan_of([old, three[0]], TokenizerRecipe("union"))


def test_a_model_without_a_tokenizer_has_the_bases_tokens(three: list[Path], tmp_path: Path) -> None:
    put(tmp_path / "bare", "config.json", {"vocab_size": 6})
    plan = plan_of([three[0], tmp_path / "bare"], TokenizerRecipe("union"))
    assert plan.notes == ("bare has no tokenizer; its tokens are taken to be those of base",)
    refs = [ModelRef("base"), ModelRef("bare")]
    assert all(row_map.is_identity(6) for row_map in plan.row_maps(refs, base=None).values())


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    takes = "takes a row of x, which has none for"
    has = "its embedding has 7 rows, its tokenizer 7 tokens"
    assert caught.value.faults == (
        "tokenizer.tokens['<1>'] takes a row of stranger, whose embedding is not among those that are merged: "
        "base, x, y",
        f"tokenizer.tokens['<2>'] {takes} token '<2>': {has}",
        f"tokenizer.tokens['<3>'] {takes} token 'e': {has}",
        f"tokenizer.tokens['<4>'] {takes} token_id 7: {has}",
    )


# ── chat templates ───────────────────────────────────────────────────────────────────────────────────────────────────

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "alpaca": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be kind.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_built_in_template_renders_the_published_format(name: str, three: list[Path], tmp_path: Path) -> None:
    put(
        three[0],
        "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    )
    plan = plan_of(three[:1], TokenizerRecipe("base"), chat_template=name, heights=[7])
    loaded = load_tokenizer(saved(plan, tmp_path / "out"))
    assert loaded.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == RENDERED[name]


def test_exaone_puts_an_empty_system_text_before_a_user(three: list[Path], tmp_path: Path) -> None:
    loaded = load_tokenizer(saved(plan_of(three, TokenizerRecipe("base"), chat_template="exaone"), tmp_path / "out"))
    assert loaded.apply_chat_template(TALK[1:2], tokenize=False) == "[|system|][|endofturn|]\n[|user|]Hi\n"


def test_a_set_template_replaces_every_other_one(three: list[Path]) -> None:
    put(three[0], "tokenizer_config.json", {"chat_template": "{{ old }}"})
    put(three[0], "chat_template.json", {"chat_template": "{{ old }}"})
    (three[0] / "chat_template.jinja").write_text("{{ old }}")
    (three[0] / "additional_chat_templates").mkdir()
    (three[0] / "additional_chat_templates" / "rag.jinja").write_text("{{ old }}")
    for recipe in ("base", "union"):
        files = plan_of(three, TokenizerRecipe(recipe), chat_template="{{ new }}").files  # type: ignore[arg-type]
        assert files["chat_template.jinja"] == b"{{ new }}"
        assert json.loads(files["tokenizer_config.json"])["chat_template"] == "{{ new }}"
        assert not any(b"old" in content for content in files.values())


def test_auto_takes_the_template_that_most_models_have(three: list[Path]) -> None:
    (three[0] / "chat_template.jinja").write_text("{{ rare }}")
    put(three[1], "tokenizer_config.json", {"chat_template": [{"name": "default", "template": "{{ usual }}\n"}]})
    put(three[2], "tokenizer_config.json", {"chat_template": "{{ usual }}"})
    assert choose_template("auto", three) == ("{{ usual }}", [])
    assert choose_template("auto", three[:2]) == ("{{ rare }}", [])
    assert choose_template("auto", []) == (None, [])
    assert choose_template("", three) == choose_template(None, three) == (None, [])


def test_a_template_that_nobody_knows_is_refused_with_the_nearest(three: list[Path]) -> None:
    with pytest.raises(ConfigError, match="the chat template cannot be set") as caught:
        plan_of(three, TokenizerRecipe("base"), chat_template="chatmal")
    assert caught.value.faults == (
        "chat_template: no template is named 'chatmal'; did you mean 'chatml'? Known: alpaca, auto, chatml, exaone, "
        "llama3, mistral; or write the template itself, in Jinja",
    )


def test_settings_that_are_no_json_cannot_take_a_template(three: list[Path]) -> None:
    (three[0] / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be written into the tokenizer's settings") as caught:
        copy_tokenizer(three[:1], donor=three[0], chat_template="chatml")
    assert caught.value.faults[0].startswith("tokenizer_config.json is not JSON")


def test_a_template_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ \xff }}")
    fault = f"{tmp_path}/chat_template.jinja is not a text in UTF-8: byte 3 is 0xff"
    assert read_template(tmp_path) == (None, [fault])


# ── a tokenizer that is taken over ───────────────────────────────────────────────────────────────────────────────────


def test_a_copied_tokenizer_is_the_donors_with_the_template_that_is_asked_for(three: list[Path]) -> None:
    files = copy_tokenizer(three, donor=three[1])
    assert files.files == {name: (three[1] / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    changed = copy_tokenizer(three, donor=three[1], chat_template="chatml").files
    assert changed["chat_template.jinja"].decode() == TEMPLATES["chatml"]
    assert changed["tokenizer.json"] == files.files["tokenizer.json"]


def test_a_donor_without_a_tokenizer_gives_none_and_says_so(tmp_path: Path) -> None:
    assert copy_tokenizer([tmp_path], donor=tmp_path) == (
        {},
        (f"{tmp_path} has no tokenizer, so the merged model has none",),
    )
    with pytest.raises(ConfigError, match=r"chat_template is set, but .* has no tokenizer to give it to"):
        copy_tokenizer([tmp_path], donor=tmp_path, chat_template="chatml")


def test_a_file_that_cannot_be_read_is_named(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_FILE_BYTES", 10)
    with pytest.raises(CheckpointError, match=r"the tokenizer files in .* cannot be copied") as caught:
        copy_tokenizer(three, donor=three[0])
    assert caught.value.faults[0] == (
        f"{three[0]}/tokenizer.json is longer than any tokenizer's or configuration's file: the limit is 10"
    )


# ── files from anybody ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_with_sentencepiece_only_is_told_how_to_make_a_tokenizer_json(three: list[Path]) -> None:
    (three[1] / "tokenizer.json").unlink()
    (three[1] / "tokenizer.model").write_bytes(b"pieces")
    with pytest.raises(CheckpointError, match="the tokenizers cannot be read") as caught:
        plan_of(three, TokenizerRecipe("union"))
    assert caught.value.faults == (
        f"{three[1]} has tokenizer.model, but no tokenizer.json to read the vocabulary from: write one with "
        "transformers, AutoTokenizer.from_pretrained(folder).save_pretrained(folder), or leave tokenizer and "
        "tokenizer_source out of the recipe, which copies the files as they are",
    )


def test_the_tokenizers_of_all_models_are_judged_at_once(three: list[Path]) -> None:
    (three[0] / "tokenizer.json").unlink()
    (three[1] / "tokenizer.json").write_text("[]")
    put(three[2], "tokenizer.json", {"model": {"vocab": {"a": -1}}})
    with pytest.raises(CheckpointError) as caught:
        plan_of(three, TokenizerRecipe("union"))
    assert caught.value.faults == (
        f"{three[0]} has no tokenizer.json, but the merged tokenizer is to be made from base's",
        f"{three[1]}/tokenizer.json: the file is JSON, but not an object: found list",
        f"{three[2]}/tokenizer.json: token 'a' has the id -1, which is not an integer from 0 to 2147483647",
    )


def test_a_recipe_that_asks_for_the_impossible_is_refused(three: list[Path]) -> None:
    with pytest.raises(ConfigError, match="the tokenizer cannot be made") as caught:
        plan_of(three, TokenizerRecipe(ModelRef("z"), pad_to_multiple_of=65537))
    assert caught.value.faults == (
        "tokenizer.pad_to_multiple_of is 65537; it must be an integer from 1 to 65536",
        "tokenizer.source is z, whose folder is not known; known are base, x, y",
    )


WRONG: list[tuple[str, object, str]] = [
    ("tokenizer.json", {"model": {"vocab": 3}}, "model.vocab is neither an object nor a list: found 3"),
    ("tokenizer.json", {"model": {"vocab": [["a"]]}}, "model.vocab[0] is not a pair of a token and its score"),
    ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": {}}, "added_tokens is not a list: found {}"),
    ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder is not an object: found []"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "with the id 'x' is no added token"),
    (
        "tokenizer.json",
        {"model": {"vocab": {}}, "added_tokens": [{"id": 1, "content": "a", "special": 1}]},
        "is no added token: its content is a text, the id an integer, a flag true or false",
    ),
]


@pytest.mark.parametrize(("name", "content", "fault"), WRONG)
def test_a_malformed_file_is_refused_with_its_place(name: str, content: object, fault: str, three: list[Path]) -> None:
    put(three[0], name, content)
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be used") as caught:
        open_vocabulary(three[0])
    assert caught.value.faults[0].startswith(f"{three[0]}/{name}: ")
    assert fault in caught.value.faults[0]


@pytest.mark.parametrize(
    ("settings_file", "fault"),
    [
        ('{"x": NaN}', "JSON cannot say it: Out of range float values"),
        ('{"x": "\\ud800"}', "half of a surrogate pair, which is not a Unicode text, in "),
    ],
)
def test_what_cannot_be_written_again_is_refused(settings_file: str, fault: str, three: list[Path]) -> None:
    (three[0] / "tokenizer_config.json").write_text(settings_file)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json cannot be written anew") as caught:
        plan_of(three, TokenizerRecipe("union"))
    assert caught.value.faults[0].startswith(fault)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(tmp_path / "pipe") == (b"", [f"{tmp_path}/pipe is not a regular file"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["", "a", "<s>", "\ud800"]) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "content", "vocab", "a", "<s>", "1", "special", "default", "name", "template"]),
            inner,
        )
    ),
    max_leaves=12,
)
KEYS = ["model", "added_tokens", "added_tokens_decoder", "bos_token", "extra_special_tokens", "chat_template"]


@settings(max_examples=300, deadline=None)
@given(contents=st.lists(st.dictionaries(st.sampled_from(KEYS), JSON), min_size=3, max_size=3))
def test_no_content_of_the_files_raises_anything_but_our_errors(
    contents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    for name, content in zip(
        ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"], contents, strict=True
    ):
        put(folder, name, content)
    for template in (None, "auto", "chatml"):
        with contextlib.suppress(CheckpointError, ConfigError):
            plan_all(folder, template)


def plan_all(folder: Path, template: str | None) -> None:
    ref = ModelRef("m")
    recipe = TokenizerRecipe("union", {"<t>": TokenRule()})
    plan = plan_tokenizer(recipe, {ref: folder}, base=ref, heights={ref: 4}, chat_template=template)
    assert plan.row_maps([ref], base=ref)[ref].rows.shape == (plan.vocabulary,)


MODULES = [chat_templates, token_rows, tokenizer, tokenizer_files, vocabulary]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_run(module: ModuleType) -> None:
    assert doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL).failed == 0
