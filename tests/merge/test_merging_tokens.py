"""Whole merges of models whose vocabularies differ."""

import json

import numpy as np
import pytest

from minerua.errors import StorageError
from minerua.merge import merging
from minerua.merge.merging import prepare_merge
from minerua.weights import write_checkpoint

from .folders import CONFIG, contents, faults_of, merged, put, recipe, tensors, write
from .test_models import write_lora
from .tokenizers_by_hand import write_tokenizer


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Recipes name models by paths that begin where the user is."""
    monkeypatch.chdir(tmp_path)


def with_tokens(folder, seed, tokens):
    """Writes a model with a tokenizer; row i of its embedding is drawn from the seed."""
    write_tokenizer(folder, tokens)
    model = tensors(seed, vocabulary=len(tokens))
    write(folder, model, config=CONFIG | {"vocab_size": len(tokens)})
    return model


def test_a_union_of_tokenizers_has_a_row_for_every_token(tmp_path):
    a = with_tokens(tmp_path / "a", 0, ["<unk>", "x", "y"])
    b = with_tokens(tmp_path / "b", 1, ["<unk>", "z", "x"])
    found = merged(tmp_path, recipe(tokenizer={"source": "union"}))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = found.tensor(name)
        assert rows.shape == (4, 4)
        np.testing.assert_allclose(rows[0], (a[name][0] + b[name][0]) / 2, rtol=1e-5)
        np.testing.assert_allclose(rows[1], (a[name][1] + b[name][2]) / 2, rtol=1e-5)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 4
    assert "z" in (tmp_path / "out" / "tokenizer.json").read_text()


def test_the_tokenizer_of_the_base_can_be_kept(tmp_path):
    a = with_tokens(tmp_path / "a", 0, ["<unk>", "x", "y"])
    b = with_tokens(tmp_path / "b", 1, ["<unk>", "z", "x"])
    found = merged(tmp_path, recipe("task_arithmetic", base_model="a", weights=[0, 1], tokenizer={"source": "base"}))
    name = "model.embed_tokens.weight"
    assert found.specs[name].shape == (3, 4)
    np.testing.assert_allclose(found.tensor(name)[1], b[name][2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.tensor(name)[2], a[name][2], rtol=1e-5, atol=1e-6)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "a/tokenizer.json").read_bytes()


def test_rows_are_aligned_under_an_adapter_on_the_embedding(tmp_path):
    name = "model.embed_tokens.weight"
    a = with_tokens(tmp_path / "a", 0, ["<unk>", "x", "y"])
    b = with_tokens(tmp_path / "b", 1, ["<unk>", "z", "x"])
    pair = write_lora(tmp_path / "lora", name=name, shape=(3, 4))
    thin = merged(tmp_path, recipe(names=["a", "b+lora"], tokenizer={"source": "union"}), "thin")
    b[name] = b[name] + pair.left @ pair.right
    write(tmp_path / "b", b, config=CONFIG | {"vocab_size": 3})
    thick = merged(tmp_path, recipe(tokenizer={"source": "union"}), "thick")
    np.testing.assert_allclose(thin.tensor(name), thick.tensor(name), rtol=1e-5, atol=1e-5)
    assert not np.allclose(thin.tensor(name)[2], a[name][2] / 2)


def test_a_stage_hands_its_tokenizer_to_the_next(tmp_path):
    with_tokens(tmp_path / "a", 0, ["<unk>", "x", "y"])
    with_tokens(tmp_path / "b", 1, ["<unk>", "z", "x"])
    with_tokens(tmp_path / "c", 2, ["<unk>", "x", "y", "z"])
    first = {"name": "first", **recipe(tokenizer={"source": "union"}), "chat_template": "{{ messages }}"}
    found = merged(tmp_path, [first, recipe(names=["first", "c"])])
    assert found.specs["lm_head.weight"].shape == (4, 4)
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    known = {*tokenizer["model"]["vocab"], *(entry["content"] for entry in tokenizer["added_tokens"])}
    assert known == {"<unk>", "x", "y", "z"}
    assert any("{{ messages }}" in content.decode() for content in contents(tmp_path / "out").values() if content)
    merged(tmp_path, [first, recipe(names=["first", "b"], tokenizer={"source": "union"})], "again")
    tokenizer = json.loads((tmp_path / "again" / "tokenizer.json").read_text())
    assert known == {*tokenizer["model"]["vocab"], *(entry["content"] for entry in tokenizer["added_tokens"])}


def test_a_stages_tokenizer_that_cannot_be_kept_is_an_error(tmp_path, monkeypatch):
    for seed, name in enumerate("ab"):
        with_tokens(tmp_path / name, seed, ["<unk>", "x"])
    first = {"name": "first", **recipe(tokenizer={"source": "union"})}
    path = put(tmp_path, [first, recipe(names=["first", "b"])])
    monkeypatch.setattr(merging.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="the tokenizer of stage first cannot be kept for the next one: "):
        prepare_merge(path)


def test_models_without_embeddings_cannot_be_aligned(tmp_path):
    for name in "ab":
        write_tokenizer(tmp_path / name, ["<unk>", "x"])
        write_checkpoint(tmp_path / name / "model.safetensors", {"w": np.zeros((3, 2), np.float32)})
    found = faults_of(tmp_path, recipe(tokenizer={"source": "union"}))
    assert found == tuple(f"{name} has no embedding that vocabularies could be aligned by" for name in "ab")
