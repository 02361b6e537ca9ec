import doctest
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
import yaml
from minerua.errors import CheckpointError, ConfigError, StorageError
from minerua.merge import merging as module
from minerua.merge.merging import merge_models, merge_tensors, prepare_merge
from minerua.merge.recipe import parse_recipes
from minerua.weights import open_checkpoint, write_checkpoint

from .folders import CONFIG, contents, faults_of, merged, put, recipe, tensors, write, write_models
from .tokenizers_by_hand import write_tokenizer

UP = "model.layers.{}.mlp.up.weight"
HALF = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def test_examples_run():
    assert doctest.testmod(module).failed == 0


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Recipes name models by paths that begin where the user is."""
    monkeypatch.chdir(tmp_path)


def arrays_of(path):
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.tensor(name) for name in checkpoint.specs}


def assert_tensors(found, expected, *, tolerance=1e-6):
    assert found.specs.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found.tensor(name).astype(np.float32), array, rtol=tolerance, atol=tolerance)


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_holds_weights_configuration_recipe_and_a_card(tmp_path):
    a, b = write_models(tmp_path)
    found = merged(tmp_path, recipe(weights=[3, 1]))
    assert_tensors(found, {name: 0.75 * a[name] + 0.25 * b[name] for name in a})
    files = contents(tmp_path / "out")
    assert sorted(files) == ["README.md", "config.json", "minerua_recipe.yml", "model.safetensors"]
    assert files["minerua_recipe.yml"] == (tmp_path / "recipe.yml").read_bytes()
    assert json.loads(files["config.json"])["num_hidden_layers"] == 2
    card = files["README.md"].decode()
    assert "# out\n" in card
    assert "- `a`\n- `b`\n" in card
    assert yaml.safe_dump(recipe(weights=[3, 1]), sort_keys=False) in card


def test_the_recipe_beside_the_weights_makes_the_same_weights_again(tmp_path):
    write_models(tmp_path)
    merged(tmp_path, recipe("task_arithmetic", base_model="a"))
    merge_models(prepare_merge(tmp_path / "out" / "minerua_recipe.yml"), tmp_path / "again")
    first, again = contents(tmp_path / "out"), contents(tmp_path / "again")
    assert first.pop("README.md").replace(b"# out\n", b"# again\n") == again.pop("README.md")
    assert first == again


@pytest.mark.parametrize("size", [1, 100, 300, "0.3KB", "5GB"])
def test_files_are_as_large_as_asked_and_hold_the_same_tensors(tmp_path, size):
    write_models(tmp_path)
    whole = merged(tmp_path, recipe(), "whole")
    found = merged(tmp_path, recipe(), shard_size=size)
    files = contents(tmp_path / "out")
    shards = [name for name in files if name.endswith(".safetensors")]
    assert (len(shards) > 1) == (size != "5GB") == ("model.safetensors.index.json" in files)
    for name in whole.specs:
        assert found.tensor(name).tobytes() == whole.tensor(name).tobytes()
    for name in shards:
        held = arrays_of(tmp_path / "out" / name)
        assert size == "5GB" or len(held) == 1 or sum(array.nbytes for array in held.values()) <= 300


def test_the_index_names_every_tensor_and_the_size_of_all(tmp_path):
    (a, _) = write_models(tmp_path)
    merged(tmp_path, recipe(), shard_size=200)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == a.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in a.values())
    for name, file in index["weight_map"].items():
        assert name in open_checkpoint(tmp_path / "out" / file).specs


def test_progress_ends_with_all_bytes_and_never_goes_back(tmp_path):
    (a, _) = write_models(tmp_path)
    seen = []
    merged(tmp_path, recipe(), progress=lambda done, total: seen.append((done, total)))
    total = sum(array.nbytes for array in a.values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert len(seen) == len(a)


def test_the_summary_says_what_will_be_read_written_and_held(tmp_path):
    (a, b) = write_models(tmp_path)
    prepared = prepare_merge(put(tmp_path, recipe()))
    summary = prepared.summary()
    assert summary["read_bytes"] == sum(array.nbytes for model in (a, b) for array in model.values())
    merge_models(prepared, tmp_path / "out")
    written = sum(map(len, contents(tmp_path / "out").values())) - (tmp_path / "out" / "README.md").stat().st_size
    assert summary["write_bytes"] == written
    assert (summary["method"], summary["models"], summary["tensors"]) == ("linear", ["a", "b"], len(a))
    assert summary["layers"] == "2 model.layers"
    assert json.loads(json.dumps(summary)) == summary


def test_a_prepared_merge_can_be_carried_out_twice(tmp_path):
    write_models(tmp_path, 3)
    texts = [{"name": "first", **recipe()}, recipe(names=["first", "c"])]
    prepared = prepare_merge(put(tmp_path, texts))
    merge_models(prepared, tmp_path / "one")
    merge_models(prepared, tmp_path / "two", sync=True)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


# ── dtypes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_merged_model_has_the_type_that_is_asked_for(tmp_path, key, dtype):
    a, b = write_models(tmp_path)
    found = merged(tmp_path, recipe(**{key: dtype}))
    assert {spec.dtype for spec in found.specs.values()} == {dtype}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert dtype in (config.get("dtype"), config.get("torch_dtype"))
    mean = {name: (a[name] / 2 + b[name] / 2).astype(HALF.get(dtype, np.float32)) for name in a}
    assert_tensors(found, {name: array.astype(np.float32) for name, array in mean.items()}, tolerance=1e-2)


def test_inputs_of_one_type_keep_it_and_mixed_ones_become_float32(tmp_path):
    write(tmp_path / "a", tensors(0, dtype=ml_dtypes.bfloat16))
    write(tmp_path / "b", tensors(1, dtype=ml_dtypes.bfloat16))
    write(tmp_path / "c", tensors(2, dtype=np.float16))
    assert {spec.dtype for spec in merged(tmp_path, recipe(), "same").specs.values()} == {"bfloat16"}
    assert {spec.dtype for spec in merged(tmp_path, recipe(names="ac"), "mixed").specs.values()} == {"float32"}


def test_what_is_beyond_the_asked_type_is_a_fault_and_nothing_stays(tmp_path):
    write_models(tmp_path)
    write(tmp_path / "a", tensors() | {"lm_head.weight": np.full((7, 4), 3e5, np.float32)})
    with pytest.raises(CheckpointError, match="the models cannot be merged") as caught:
        merged(tmp_path, recipe(dtype="float16"))
    (fault,) = caught.value.faults
    assert fault == "tensor 'lm_head.weight': 28 merged numbers are beyond float16; ask for a wider dtype"
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_buffers_of_whole_numbers_are_copied_if_all_models_agree(tmp_path):
    steps = {"steps": np.arange(3), "mask": np.array([True, False])}
    for seed, name in enumerate("ab"):
        write(tmp_path / name, tensors(seed) | steps)
    found = merged(tmp_path, recipe())
    assert found.tensor("steps").tolist() == [0, 1, 2]
    assert found.specs["mask"].dtype == "bool"


def test_buffers_of_whole_numbers_that_differ_are_a_fault_that_names_both_models(tmp_path):
    for seed, name in enumerate("ab"):
        write(tmp_path / name, tensors(seed) | {"steps": np.arange(3) + seed})
    with pytest.raises(CheckpointError) as caught:
        merged(tmp_path, recipe())
    assert caught.value.faults == (
        "tensor 'steps' is int64 and differs between a and b; only floating-point tensors can be merged",
    )


def test_numbers_that_are_not_finite_are_all_named(tmp_path):
    a, b = write_models(tmp_path)
    a["lm_head.weight"][0, :2] = np.nan
    b["model.norm.weight"][1] = np.inf
    write(tmp_path / "a", a)
    write(tmp_path / "b", b)
    with pytest.raises(CheckpointError) as caught:
        merged(tmp_path, recipe("task_arithmetic", base_model="b"))
    assert set(caught.value.faults) == {
        "a: 2 numbers of tensor 'lm_head.weight' are NaN or infinite",
        "b: 1 numbers of tensor 'model.norm.weight' are NaN or infinite",
    }


# ── slices, settings, modules, stages ────────────────────────────────────────────────────────────────────────────────


def test_layers_can_be_stacked_and_the_configuration_counts_them(tmp_path):
    a, b = write_models(tmp_path)
    content = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {"sources": [{"model": "b", "layer_range": [1, 2], "parameters": {"scale": 2.0}}]},
        ],
    }
    found = merged(tmp_path, content)
    assert_tensors(found, {
        "model.embed_tokens.weight": a["model.embed_tokens.weight"],
        UP.format(0): a[UP.format(0)],
        UP.format(1): a[UP.format(1)],
        UP.format(2): 2 * b[UP.format(1)],
        "model.layers.0.norm.weight": a["model.layers.0.norm.weight"],
        "model.layers.1.norm.weight": a["model.layers.1.norm.weight"],
        "model.layers.2.norm.weight": 2 * b["model.layers.1.norm.weight"],
        "model.norm.weight": 2 * b["model.norm.weight"],
        "lm_head.weight": 2 * b["lm_head.weight"],
    })  # fmt: skip
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3


def test_gradients_run_over_the_layers_and_filters_choose_tensors(tmp_path):
    a, b = write_models(tmp_path, layers=3)
    weight = [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.25}]
    content = recipe("task_arithmetic", base_model="a", weights=[0])
    content["models"][1]["parameters"] = {"weight": weight}
    found = merged(tmp_path, content)
    expected = {name: a[name] + 0.25 * (b[name] - a[name]) for name in a}
    for layer, share in enumerate((0.0, 0.5, 1.0)):
        name = UP.format(layer)
        expected[name] = a[name] + share * (b[name] - a[name])
    assert_tensors(found, expected)


def test_parts_of_a_model_are_merged_each_in_its_way(tmp_path):
    def parts(seed):
        generator = np.random.default_rng(seed)
        names = ["language_model.model.norm.weight", *(f"language_model.model.layers.{i}.w.weight" for i in range(2))]
        names += ["multi_modal_projector.linear_1.weight"]
        return {name: generator.normal(size=(3, 2)).astype(np.float32) for name in names}

    for seed, name in enumerate("ab"):
        write(tmp_path / name, parts(seed), config=None)
    both = [{"model": "a"}, {"model": "b"}]
    content = {
        "merge_method": "linear",
        "parameters": {"weight": 1.0},
        "modules": {
            "text_decoder": {"models": both, "parameters": {"weight": 1.0}},
            "multi_modal_projector": {"models": both[:1]},
        },
    }
    found = merged(tmp_path, content)
    a, b = parts(0), parts(1)
    expected = {name: (a[name] + b[name]) / 2 for name in a}
    expected["multi_modal_projector.linear_1.weight"] = a["multi_modal_projector.linear_1.weight"]
    assert_tensors(found, expected)


def test_a_stage_may_merge_what_another_made(tmp_path):
    a, b, c = write_models(tmp_path, 3)
    first = {"name": "first", **recipe(weights=[1, 3])}
    last = recipe("slerp", ["first", "c"], weights=[], base_model="first", parameters={"t": 0.0})
    found = merged(tmp_path, [last, first])
    assert_tensors(found, {name: 0.25 * a[name] + 0.75 * b[name] for name in a})
    assert not (tmp_path / "out" / ".stages").exists()
    found = merged(tmp_path, [first, recipe(names=["first", "c"])], "mean")
    assert_tensors(found, {name: 0.125 * a[name] + 0.375 * b[name] + 0.5 * c[name] for name in a})


def test_a_stage_keeps_what_its_slices_made_of_the_configuration(tmp_path):
    write_models(tmp_path)
    pieces = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in "ab"]
    first = {"name": "first", "merge_method": "passthrough", "slices": pieces}
    merged(tmp_path, [first, recipe(names=["first"])])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4


def test_only_the_stages_that_the_result_needs_are_carried_out(tmp_path):
    write_models(tmp_path)
    summary = prepare_merge(put(tmp_path, [{"name": "idle", **recipe(names=["gone"])}, recipe()])).summary()
    assert (summary["stages"], summary["models"]) == (1, ["a", "b"])


def test_without_a_nameless_stage_the_last_one_is_the_result():
    texts = "\n---\n".join(json.dumps({"name": name, **recipe()}) for name in ("x", "y"))
    assert [one.name for one in module.needed(parse_recipes(texts, where="r.yml"))] == ["y"]


def test_a_missing_head_of_a_tied_model_is_its_embedding(tmp_path):
    a, b = tensors(0, head=False), tensors(1)
    write(tmp_path / "a", a, config=CONFIG | {"tie_word_embeddings": True})
    write(tmp_path / "b", b, config=CONFIG | {"tie_word_embeddings": False})
    found = merged(tmp_path, recipe())
    np.testing.assert_allclose(
        found.tensor("lm_head.weight"), (a["model.embed_tokens.weight"] + b["lm_head.weight"]) / 2, rtol=1e-6
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_two_tied_models_stay_tied(tmp_path):
    for seed, name in enumerate("ab"):
        write(tmp_path / name, tensors(seed, head=False), config=CONFIG | {"tie_word_embeddings": True})
    assert "lm_head.weight" not in merged(tmp_path, recipe()).specs
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


# ── vocabularies ─────────────────────────────────────────────────────────────────────────────────────────────────────


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
    from .test_models import write_lora

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
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="the tokenizer of stage first cannot be kept for the next one: "):
        prepare_merge(path)


def test_models_without_embeddings_cannot_be_aligned(tmp_path):
    for name in "ab":
        write_tokenizer(tmp_path / name, ["<unk>", "x"])
        write_checkpoint(tmp_path / name / "model.safetensors", {"w": np.zeros((3, 2), np.float32)})
    found = faults_of(tmp_path, recipe(tokenizer={"source": "union"}))
    assert found == tuple(f"{name} has no embedding that vocabularies could be aligned by" for name in "ab")


# ── the same bytes ───────────────────────────────────────────────────────────────────────────────────────────────────

BITWISE = ["linear", "task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della", "slerp", "nearswap", "model_stock"]


def asked(method):
    extra = {"base_model": "a"} if method != "linear" else {}
    extra |= {"parameters": {"t": 0.3}} if method in ("slerp", "nearswap") else {}
    sparse = {"parameters": {"density": 0.5}} if method not in ("linear", "slerp", "nearswap", "model_stock") else {}
    names = "ab" if method in ("slerp", "nearswap") else "abc"
    weights = [] if method in ("slerp", "nearswap", "model_stock") else None
    return recipe(method, names, weights=weights, **extra, **sparse)


SCRIPT = """
import sys
from minerua.merge.merging import merge_models, prepare_merge
from minerua.kernels import num_threads, set_num_threads
set_num_threads(int(sys.argv[1]))
for name in sys.argv[2:]:
    merge_models(prepare_merge(f"{name}.yml", seed=5), f"{name}-{sys.argv[1]}")
"""


def test_neither_threads_nor_shards_change_a_bit(tmp_path):
    write_models(tmp_path, 3, layers=1)
    for method in BITWISE:
        put(tmp_path, asked(method), f"{method}.yml")
    for threads in "12":
        subprocess.run([sys.executable, "-c", SCRIPT, threads, *BITWISE], check=True, cwd=tmp_path)
    for method in BITWISE:
        one, two = (contents(tmp_path / f"{method}-{threads}") for threads in "12")
        assert one.pop("README.md").replace(b"-1\n", b"-2\n") == two.pop("README.md")
        assert one == two, method
        cut = merged(tmp_path, asked(method), f"{method}-cut", shard_size=100, seed=5)
        whole = open_checkpoint(tmp_path / f"{method}-1")
        assert all(cut.tensor(name).tobytes() == whole.tensor(name).tobytes() for name in whole.specs), method


@pytest.mark.parametrize("method", BITWISE)
def test_the_reference_gives_the_bits_of_the_compiled_core(tmp_path, monkeypatch, method):
    from minerua.kernels import compiled

    if compiled.core is None:
        pytest.skip("the compiled core is missing")
    write_models(tmp_path, 3, layers=1, dtype=ml_dtypes.bfloat16)
    fast = merged(tmp_path, asked(method), "fast", seed=5)
    monkeypatch.setenv("MINERUA_BACKEND", "reference")
    slow = merged(tmp_path, asked(method), "slow", seed=5)
    for name in fast.specs:
        assert fast.tensor(name).tobytes() == slow.tensor(name).tobytes(), name


@pytest.mark.parametrize("method", ["linear", "ties", "breadcrumbs", "dare_linear", "dare_ties", "della"])
def test_the_seed_changes_random_methods_only(tmp_path, method):
    write_models(tmp_path, 3, layers=1)
    runs = [contents(tmp_path / str(seed)) for seed in (0, 1) if merged(tmp_path, asked(method), str(seed), seed=seed)]
    same = runs[0]["model.safetensors"] == runs[1]["model.safetensors"]
    assert same == (method in ("linear", "ties", "breadcrumbs"))


def test_what_else_is_merged_does_not_change_a_tensors_random_mask(tmp_path):
    write_models(tmp_path, 3)
    whole = merged(tmp_path, asked("dare_linear"), "whole")
    for name in "abc":
        part = dict(list(arrays_of(tmp_path / name).items())[:3])
        write(tmp_path / "part" / name, part, config=None)
    os.chdir(tmp_path / "part")
    part = merged(tmp_path / "part", asked("dare_linear"))
    assert part.specs
    for name in part.specs:
        assert part.tensor(name).tobytes() == whole.tensor(name).tobytes()


def test_the_paper_can_be_followed_by_recipe_or_by_argument(tmp_path):
    write_models(tmp_path, 3, layers=1)
    by_recipe = prepare_merge(put(tmp_path, asked("dare_ties") | {"semantics": "paper"}))
    by_argument = prepare_merge(put(tmp_path, asked("dare_ties")), semantics="paper")
    assert by_recipe.summary()["semantics"] == by_argument.summary()["semantics"] == "paper"
    back = prepare_merge(put(tmp_path, asked("dare_ties") | {"semantics": "paper"}), semantics="mergekit")
    assert back.summary()["semantics"] == "mergekit"


# ── in memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_merge_in_memory_equals_that_of_files(tmp_path, monkeypatch):
    write_models(tmp_path, 3)
    text = json.dumps(asked("ties"))
    on_disk = merged(tmp_path, asked("ties"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    given = {name: tensors(seed) for seed, name in enumerate("abc")}
    given["b"] = {name: torch.from_numpy(array) for name, array in given["b"].items()}
    found = merge_tensors(text, given)
    assert found.keys() == on_disk.specs.keys()
    for name, array in found.items():
        assert array.tobytes() == on_disk.tensor(name).tobytes()


def test_a_model_in_memory_hides_what_has_its_name_on_the_disk(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    (tmp_path / "a" / "tokenizer_config.json").write_text("{")
    given = {name: {"w": np.full(2, value, np.float32)} for name, value in (("a", 1), ("b", 3))}
    assert merge_tensors(json.dumps(recipe()), given)["w"].tolist() == [2, 2]


def test_faults_of_a_merge_in_memory_are_told_at_once():
    with pytest.raises(ConfigError, match="the recipe cannot be merged") as caught:
        merge_tensors(json.dumps(recipe(names=["a", "gone"])), {"a": {"w": np.zeros(1)}}, seed=-1)
    seed, gone = caught.value.faults
    assert seed == "seed -1 is not a whole number from 0 to 2^64 - 1"
    assert "gone is neither a file nor a folder" in gone
    two = json.dumps({"name": "x", **recipe()}) + "\n---\n" + json.dumps(recipe())
    with pytest.raises(ConfigError) as caught:
        merge_tensors(two, {"a": {}, "b": {}})
    assert caught.value.faults[0] == "the recipe has 2 documents; merge them one after another"


@pytest.mark.parametrize("kind", ["O", "U3", "complex64", "V8", "float128", "M8[s]"])
def test_arrays_that_nobody_can_merge_are_faults(kind):
    given = {name: {"w": np.zeros(2, kind), "v": np.zeros(1, np.float32)} for name in "ab"}
    with pytest.raises(ConfigError):
        merge_tensors(json.dumps(recipe()), given)


def test_arrays_without_elements_and_without_axes_are_merged():
    given = {
        name: {"none": np.zeros((0, 3), np.float32), "one": np.array(k, np.float32)} for k, name in enumerate("ab")
    }
    for method in ("linear", "ties", "slerp", "model_stock", "breadcrumbs", "nearswap", "della"):
        content = asked(method) if method != "linear" else recipe()
        models = given | {"c": given["b"]}
        found = merge_tensors(json.dumps(content), models)
        assert (found["none"].shape, found["one"].shape) == ((0, 3), ()), method
        assert np.isfinite(found["one"]), method


# ── where it is written ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_folder_is_taken_and_a_full_one_is_not(tmp_path):
    write_models(tmp_path)
    (tmp_path / "out").mkdir()
    merged(tmp_path, recipe())
    before = contents(tmp_path / "out")
    with pytest.raises(StorageError, match="the folder exists and is not empty: remove it, or choose another name"):
        merged(tmp_path, recipe())
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "where", ["gone/out", "file", "file/out", ".", "", "..", "/", "x" * 300, "a/model.safetensors"]
)
def test_a_place_where_nothing_can_be_written_is_refused_before_anything_is_merged(tmp_path, monkeypatch, where):
    write_models(tmp_path)
    (tmp_path / "file").write_text("mine")
    prepared = prepare_merge(put(tmp_path, recipe()))
    monkeypatch.setattr(module, "_write", lambda *_, **__: pytest.fail("something was merged"))
    before = contents(tmp_path)
    with pytest.raises(StorageError):
        merge_models(prepared, where)
    assert contents(tmp_path) == before


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    write_models(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    merged(tmp_path, recipe())
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").is_file()
