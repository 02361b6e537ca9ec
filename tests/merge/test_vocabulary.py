import contextlib
import doctest
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import CheckpointError, ConfigError
from minerua.merge.recipes.ingredients import ModelRef, TokenizerRecipe, TokenRule
from minerua.merge.tokenizers import vocabulary
from minerua.merge.tokenizers.tokenizer import plan_tokenizer
from minerua.merge.tokenizers.vocabulary import open_vocabulary, read_bytes

from .tokenizers_by_hand import (
    plan_of,
    put,
    three_models,
)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return three_models(tmp_path)


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
        f"{three[1]}/tokenizer.json: the file is JSON, but not an object: found list",
        f"{three[2]}/tokenizer.json: token 'a' has the id -1, which is not an integer from 0 to 2147483647",
        f"{three[0]} has no tokenizer.json, but the merged tokenizer is to be made from base's",
    )


def test_a_recipe_that_asks_for_the_impossible_is_refused(three: list[Path]) -> None:
    with pytest.raises(ConfigError, match="the tokenizer cannot be made") as caught:
        plan_of(three, TokenizerRecipe(ModelRef("z"), pad_to_multiple_of=65537))
    assert caught.value.faults == (
        "tokenizer.pad_to_multiple_of is 65537; it must be an integer from 1 to 65536",
        "tokenizer.source is z, whose folder is not known; known are base, x, y",
    )


WRONG = [
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


@settings(max_examples=100, deadline=None)
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


def test_the_examples_run() -> None:
    assert doctest.testmod(vocabulary).failed == 0
