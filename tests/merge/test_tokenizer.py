import doctest
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minerua.errors import CheckpointError, ConfigError
from minerua.merge.recipes.ingredients import ModelRef, ModelToken, TokenizerRecipe, TokenRule
from minerua.merge.tokenizers import tokenizer, vocabulary
from minerua.merge.tokenizers.chat_templates import TEMPLATES
from minerua.merge.tokenizers.tokenizer import copy_tokenizer
from minerua.merge.tokenizers.vocabulary import open_vocabulary

from .tokenizers_by_hand import (
    SOME,
    aligned,
    ask_mergekit,
    document,
    embeddings_of,
    load_tokenizer,
    plan_of,
    put,
    saved,
    three_models,
    write_tokenizer,
)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return three_models(tmp_path)


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
            padding = np.array(wanted)[len(order) :]
            np.testing.assert_allclose(ours[len(order) :], padding, rtol=1e-5, atol=1e-6)
        averaged += sum(len(row) > 1 for row_map in maps.values() for row in row_map.extra)
        if setting["source"] != "union":  # where the order of tokens does not change from run to run
            assert dict(plan.ids) == theirs["ids"]
    assert averaged > 10


# ── the merged tokenizer ──────────────────────────────────────────────────────────────────────────────────────────────


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


# ── a tokenizer that is taken over ────────────────────────────────────────────────────────────────────────────────────


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


def test_the_examples_run() -> None:
    assert doctest.testmod(tokenizer).failed == 0
