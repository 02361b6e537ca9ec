import doctest
import json

import ml_dtypes
import numpy as np
import pytest
import torch
import yaml

from minerua.errors import CheckpointError, ConfigError, StorageError
from minerua.merge import merging as module
from minerua.merge.merging import merge_models, merge_tensors, prepare_merge
from minerua.merge.recipes.recipe import parse_recipes
from minerua.weights import open_checkpoint

from .folders import CONFIG, arrays_of, asked, contents, merged, put, recipe, tensors, write, write_models
from .test_models import put_in_cache, write_lora

UP = "model.layers.{}.mlp.up.weight"
HALF = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def test_examples_run():
    assert doctest.testmod(module).failed == 0


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Recipes name models by paths that begin where the user is."""
    monkeypatch.chdir(tmp_path)


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


def test_float64_is_merged_in_float32_and_what_does_not_fit_is_named(tmp_path):
    a, b = tensors(0, dtype=np.float64), tensors(1, dtype=np.float64)
    write(tmp_path / "a", a)
    write(tmp_path / "b", b)
    found = merged(tmp_path, recipe())
    assert {spec.dtype for spec in found.specs.values()} == {"float32"}
    assert_tensors(found, {name: (a[name] + b[name]) / 2 for name in a})
    a["lm_head.weight"][0, 0] = 1e300
    write(tmp_path / "a", a)
    with pytest.raises(CheckpointError) as caught:
        merged(tmp_path, recipe(), "out-2")
    assert caught.value.faults == ("a: 1 numbers of tensor 'lm_head.weight' are NaN or infinite",)


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


def test_an_adapter_can_be_applied_to_what_a_stage_made(tmp_path):
    a, b = write_models(tmp_path)
    pair = write_lora(tmp_path / "lora", name=UP.format(1))
    found = merged(tmp_path, [{"name": "first", **recipe()}, recipe("passthrough", ["first+lora"], weights=[])])
    expected = {name: (a[name] + b[name]) / 2 for name in a}
    expected[UP.format(1)] = expected[UP.format(1)] + pair.left @ pair.right
    assert_tensors(found, expected, tolerance=1e-5)


def test_the_card_names_repositories_for_the_hub_and_nothing_else(tmp_path, monkeypatch):
    write_models(tmp_path)
    put_in_cache(tmp_path / "cache", "acme/coder")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    merged(tmp_path, [{"name": "first", **recipe()}, recipe(names=["first", "a", "acme/coder"])])
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == ["acme/coder"]


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
