import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from minerua.errors import CheckpointError, ConfigError
from minerua.merge.layout import output
from minerua.merge.layout.output import (
    INDEX_FILE,
    RECIPE_FILE,
    index_file,
    lay_out,
    model_card,
    parse_size,
    travelling_files,
)
from minerua.values import TensorSpec
from minerua.weights import open_checkpoint
from minerua.weights.header import CODES, DTYPES, nbytes

from .tokenizers_by_hand import put


def spec(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, shape, dtype)


def test_the_examples_run() -> None:
    assert doctest.testmod(output).failed == 0


# ── shards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tensors_stay_in_the_order_in_which_they_are_merged() -> None:
    (shard,) = lay_out([spec("z", 2), spec("a", 3), spec("m", 1)], 100)
    assert shard.file_name == "model.safetensors"
    assert [(tensor.name, offset - len(shard.header)) for tensor, offset in shard.tensors] == [
        ("z", 0),
        ("a", 8),
        ("m", 20),
    ]
    assert shard.nbytes == len(shard.header) + 24
    assert index_file([shard]) is None


def test_a_file_ends_before_it_would_hold_too_much() -> None:
    shards = lay_out([spec("a", 2), spec("b", 2), spec("huge", 9), spec("c", 1), spec("d", 3)], 16)
    assert [[tensor.name for tensor, _ in shard.tensors] for shard in shards] == [["a", "b"], ["huge"], ["c", "d"]]
    assert [shard.file_name for shard in shards] == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


SPECS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 4), max_size=3), st.sampled_from(["float32", "bfloat16", "int64", "uint8", "bool"])
    ),
    min_size=1,
    max_size=12,
)


@given(parts=SPECS, shard_bytes=st.integers(1, 300))
def test_every_tensor_is_aligned_and_follows_the_one_before(
    parts: list[tuple[list[int], str]], shard_bytes: int
) -> None:
    specs = [spec(f"t{number}", *shape, dtype=dtype) for number, (shape, dtype) in enumerate(parts)]
    shards = lay_out(specs, shard_bytes)
    assert sorted(tensor.name for shard in shards for tensor, _ in shard.tensors) == sorted(s.name for s in specs)
    for shard in shards:
        end = len(shard.header)
        for tensor, offset in shard.tensors:
            assert offset == end
            assert offset % DTYPES[CODES[tensor.dtype]].itemsize == 0
            end += nbytes(tensor)
        assert end == shard.nbytes
        assert end - len(shard.header) <= shard_bytes or len(shard.tensors) == 1


def test_what_is_laid_out_is_a_checkpoint_for_everybody(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "flags": rng.integers(0, 2, 3).astype(bool),
        "w": rng.standard_normal((3, 5)).astype(np.float32),
        "n": rng.integers(0, 9, 2),
    }
    shards = lay_out([TensorSpec(name, array.shape, array.dtype.name) for name, array in tensors.items()], 40)
    assert len(shards) == 3
    for shard in shards:
        content = bytearray(shard.nbytes)
        content[: len(shard.header)] = shard.header
        for tensor, offset in shard.tensors:
            content[offset : offset + nbytes(tensor)] = tensors[tensor.name].tobytes()
        (tmp_path / shard.file_name).write_bytes(content)
    index = index_file(shards)
    assert index is not None
    (tmp_path / INDEX_FILE).write_bytes(index)
    opened = open_checkpoint(tmp_path)
    assert opened.metadata == {"format": "pt"}
    theirs = {name: array for shard in shards for name, array in load_file(tmp_path / shard.file_name).items()}
    for name, array in tensors.items():
        np.testing.assert_array_equal(opened.tensor(name), array)
        np.testing.assert_array_equal(theirs[name], array)
    assert json.loads(index) == {
        "metadata": {"total_size": 79},
        "weight_map": {"flags": shards[0].file_name, "n": shards[2].file_name, "w": shards[1].file_name},
    }


def test_tensors_that_cannot_be_laid_out_are_all_named() -> None:
    with pytest.raises(CheckpointError, match="the merged model cannot be laid out") as caught:
        lay_out([spec("a"), spec("a"), spec("b", dtype="float4")], 1)
    assert caught.value.faults == (
        "two merged tensors have the name 'a'",
        "'b' has the dtype float4, which safetensors cannot store",
    )


def test_files_must_have_room_and_be_countable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="files of 0 bytes are asked for; a file holds one byte of tensors at least"):
        lay_out([spec("a")], 0)
    monkeypatch.setattr(output, "_MAX_SHARDS", 1)
    with pytest.raises(ConfigError, match="2 files of 4 bytes are more than the 1 that can be numbered"):
        lay_out([spec("a"), spec("b")], 4)


def test_a_header_is_never_longer_than_readers_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_HEADER_BYTES", 60)
    with pytest.raises(CheckpointError, match=r"model\.safetensors would name more tensors than it can") as caught:
        lay_out([spec("a" * 50)], 4)
    assert caught.value.faults[0].startswith("names take 136 bytes, a header's limit is 60: ask for smaller files")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (7, 7),
        ("1000", 1000),
        ("5B", 5 * 10**9),
        ("5b", 5 * 10**9),
        ("3K", 3000),
        ("2M", 2 * 10**6),
        ("5G", 5 * 10**9),
        ("1T", 10**12),
        ("5GB", 5 * 10**9),
        ("0.5 kb", 500),
        ("500MB", 5 * 10**8),
        ("4GiB", 4 << 30),
        ("1.5MiB", 3 << 19),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5P", "1e9", "5 G B", "1.GB", "٣K", "9" * 19, "5X", -1])
def test_what_is_no_size_is_refused_with_examples(text: str | int) -> None:
    with pytest.raises(ConfigError, match="is not a size in bytes; write for example 5GB, 500MB"):
        parse_size(text)


@pytest.mark.parametrize("text", [0, "0GB", "0.1"])
def test_a_size_of_nothing_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigError, match=f"the size '?{text}'? is less than one byte"):
        parse_size(text)


# ── files beside ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_files_beside_the_weights_travel_unchanged_and_code_stays_behind(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id":   2}')
    (tmp_path / "preprocessor_config.json").write_bytes(b"anything")
    (tmp_path / "modeling_x.py").write_text("import os")
    (tmp_path / "notes.txt").write_text("no")
    travelling = travelling_files(tmp_path)
    assert travelling.files == {
        "generation_config.json": b'{"eos_token_id":   2}',
        "preprocessor_config.json": b"anything",
    }
    (note,) = travelling.notes
    assert note == f"{tmp_path} holds code, which is not copied: modeling_x.py; copy it yourself if you trust it"


def test_ids_in_the_generation_settings_follow_the_tokenizer(tmp_path: Path) -> None:
    put(
        tmp_path,
        "generation_config.json",
        {"eos_token_id": [2, 3], "pad_token_id": 9, "temperature": 0.5, "x": "\ud800"},
    )
    travelling = travelling_files(tmp_path, new_ids={2: 4, 3: 3})
    assert json.loads(travelling.files["generation_config.json"]) == {
        "eos_token_id": [4, 3],
        "pad_token_id": 9,
        "temperature": 0.5,
        "x": "\ud800",
    }
    assert travelling.notes == ("generation_config.json: pad_token_id 9 is no token of the merged tokenizer",)
    before = (tmp_path / "generation_config.json").read_bytes()
    same = travelling_files(tmp_path, new_ids={2: 2, 3: 3, 9: 9})
    assert same.files["generation_config.json"] == before


def test_generation_settings_that_are_no_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the files beside the weights in .* cannot be copied") as caught:
        travelling_files(tmp_path, new_ids={})
    assert caught.value.faults[0].startswith(f"{tmp_path}: generation_config.json is not JSON")


# ── the card ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_card_says_what_was_merged_and_how_to_do_it_again() -> None:
    recipe = "merge_method: ties\nbase_model: org/base\n"
    card = model_card(
        "merged",
        method="ties",
        models=["org/base", "org/coder", "local/one"],
        base="org/base",
        hub_names=["org/base", "org/coder"],
        recipe=recipe,
        notes=["look here"],
    )
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": ["org/base", "org/coder"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["minerua", "merge"],
    }
    assert "\n# merged\n" in text
    assert "A model merged by minerua with the method `ties`. No training was done.\n" in text
    assert "## What it is made of\n\n- `org/coder`\n- `local/one`\n- `org/base`, the base\n" in text
    assert f"## How to make it again\n\nPut this into `{RECIPE_FILE}`, then\n" in text
    assert f"```yaml\n{recipe}```\n" in text
    assert f"    minerua merge {RECIPE_FILE} OUT_DIR\n" in text
    assert text.endswith("## Notes\n\n- look here\n")


def test_models_on_the_disk_are_no_base_model_of_the_card() -> None:
    _, front, _ = model_card("m", method="mean", models=["a", "b"], recipe="x").split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["minerua", "merge"]}


def test_nothing_in_a_recipe_breaks_out_of_its_place() -> None:
    card = model_card(
        "a\n---\n# <b>", method="`x`", models=["m\n# c", "n``o"], recipe="# ```\n````\nmerge", hub_names=['a"\n- b: c']
    )
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == ['a"\n- b: c']
    assert "# a --- # \\<b>\n" in text
    assert "the method `` `x` ``." in text
    assert "- `m # c`\n- ``` n``o ```\n" in text
    assert "`````yaml\n# ```\n````\nmerge\n`````\n" in text
