import json

import ml_dtypes
import numpy as np
import pytest

from minerua.errors import ConfigError, UnknownName
from minerua.merge import stage
from minerua.merge.engine import dense
from minerua.merge.merging import own_methods, prepare_merge
from minerua.merge.models import Model
from minerua.merge.planning.plan import Job
from minerua.merge.preparation import method_of
from minerua.merge.recipes.recipe import parse_recipes
from minerua.merge.stage import Faults, Stage
from minerua.values import MergeMethodSpec
from minerua.weights import write_checkpoint

from .folders import CONFIG, contents, error_of, faults_of, put, recipe, tensors, write, write_models


@pytest.fixture(autouse=True)
def headers_only(tmp_path, monkeypatch):
    """Nothing here may look at a tensor: what is prepared is prepared from headers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Model, "tensor", lambda model, name: pytest.fail(f"{name} of {model.text} was read"))
    monkeypatch.setattr(Model, "source", lambda model, name: pytest.fail(f"{name} of {model.text} was read"))


def without(model, *names):
    return {name: array for name, array in model.items() if name not in names}


def has(faults, *parts):
    """Whether one of the faults has all these parts."""
    return any(all(part in fault for part in parts) for fault in faults)


# ── all faults of the input at once ──────────────────────────────────────────────────────────────────────────────────


def test_everything_that_is_wrong_with_recipe_and_models_is_told_at_once(tmp_path):
    write_models(tmp_path)
    write(tmp_path / "short", without(tensors(), "model.norm.weight"))
    write(tmp_path / "long", tensors() | {"extra.weight": np.zeros(3, np.float32)})
    write(tmp_path / "wide", tensors(vocabulary=9))
    names = ["a", "short", "long", "wide"]
    content = recipe("task_arithmetic", names, base_model="b", parameters={"density": 7, "lambada": 1})
    del content["models"][3]["parameters"]
    before = contents(tmp_path)
    found = faults_of(tmp_path, content)
    assert has(found, "short lacks model.norm.weight, found in a and long and wide and b")
    assert has(found, "a and short and wide and b lack") or has(found, "lacks extra.weight, found in long")
    assert has(found, "'lm_head.weight' has different shapes: a [7, 4], short [7, 4]", "wide [9, 4]", "tokenizer:")
    assert has(found, "lambada")
    after = contents(tmp_path)
    after.pop("recipe.yml")
    assert after == before


def test_models_that_cannot_be_opened_are_all_named(tmp_path):
    write_models(tmp_path)
    for name in ("torn", "overlapping", "strange"):
        write(tmp_path / name, tensors())
    file = tmp_path / "torn" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("v", "w")}
    text = json.dumps(header).encode()
    (tmp_path / "overlapping" / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    (tmp_path / "strange" / "model.safetensors").write_bytes(b"\xff" * 64)
    names = ["a", "torn", "overlapping", "strange", "gone"]
    found = faults_of(tmp_path, recipe("no_such_method", names))
    assert has(found, "no merge method is named 'no-such-method'")
    for name in names[1:]:
        assert has(found, f"{name} cannot be opened: "), name
    assert not has(found, "a cannot be opened")


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ({"w.weight": np.zeros(2, "uint8")}, "bad is quantised (1 tensors, such as w.weight of uint8); dequantise it"),
        ({"w": np.zeros(2, ml_dtypes.float8_e4m3fn)}, "bad is quantised (1 tensors, such as w of float8_e4m3fn)"),
        ({"w.qweight": np.zeros(2, "int32")}, "bad is quantised (1 tensors, such as w.qweight of int32)"),
        ({"w": np.zeros(2, "complex64")}, "bad holds complex numbers in w, which no method merges"),
    ],
)
def test_numbers_that_no_method_merges_are_refused_by_their_headers(tmp_path, extra, fault):
    write_models(tmp_path, 1)
    write(tmp_path / "bad", tensors() | extra)
    assert has(faults_of(tmp_path, recipe(names=["a", "bad"])), fault)


def test_a_method_that_nobody_provides_is_named_with_the_nearest(tmp_path):
    write_models(tmp_path)
    (fault,) = faults_of(tmp_path, recipe("lineal"))
    assert fault.startswith("no merge method is named 'lineal'; did you mean 'linear'")
    assert "task-arithmetic" in fault


def test_the_registry_itself_says_which_names_are_near():
    class Names(dict):
        def __missing__(self, name):
            raise UnknownName(f"nobody has {name}")

    (one,) = parse_recipes(json.dumps(recipe("other")), where="r.yml")
    with pytest.raises(UnknownName, match="nobody has other"):
        method_of(one, Names())


def test_missing_weights_and_settings_out_of_range_are_faults(tmp_path):
    write_models(tmp_path)
    found = faults_of(tmp_path, recipe(weights=[1.0]))
    assert has(found, "weight is not set for b at ", "set it under parameters")
    content = recipe("ties", base_model="a", parameters={"density": 1.5})
    assert has(faults_of(tmp_path, content), "density")


@pytest.mark.parametrize("weights", [["x", 1.0], [1.0]])
def test_parameters_that_are_wrong_or_missing_are_not_checked_together(tmp_path, weights):
    write_models(tmp_path)
    (fault,) = faults_of(tmp_path, recipe(weights=weights))
    assert fault.startswith(("models[0].parameters.weight: must be a number", "models: weight is not set for b"))


def test_weights_that_sum_to_zero_are_found_before_anything_is_read(tmp_path):
    write_models(tmp_path)
    assert has(faults_of(tmp_path, recipe(weights=[1, -1])), "weights", "sum to zero", "(in 7 tensors, the first is")


@pytest.mark.parametrize("layers", [[0, 3], [1, 0], [-1, 1], "all"])
def test_layer_ranges_that_do_not_exist_are_faults(tmp_path, layers):
    write_models(tmp_path)
    slices = [{"sources": [{"model": "a", "layer_range": layers}]}]
    content = {"merge_method": "passthrough", "slices": slices}
    assert has(faults_of(tmp_path, content), "slices[0]")


def test_a_recipe_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "gone.yml", tmp_path / "binary.yml", tmp_path):
        with pytest.raises(ConfigError, match=r"^the recipe .* cannot be read: "):
            prepare_merge(path)


def test_faults_of_independent_stages_are_told_together_by_their_names(tmp_path):
    write_models(tmp_path)
    stages = [
        {"name": "one", **recipe(names=["a", "gone"])},
        {"name": "two", **recipe("lineal")},
        recipe(names=["one", "two"]),
    ]
    one, two = faults_of(tmp_path, stages)
    assert one.startswith("one: gone cannot be opened: gone is neither a file nor a folder")
    assert two.startswith("two: no merge method is named 'lineal'")


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_is_a_number_of_64_bits(tmp_path, seed):
    write_models(tmp_path)
    assert has(faults_of(tmp_path, recipe(), seed=seed), f"seed {seed} is not a whole number from 0 to 2^64 - 1")
    assert prepare_merge(put(tmp_path, recipe()), seed=(1 << 64) - 1).summary()["seed"] == (1 << 64) - 1


@pytest.mark.parametrize("size", ["five", 0, "-1GB", "1XB"])
def test_a_size_of_files_that_is_none_is_a_fault_beside_the_others(tmp_path, size):
    write_models(tmp_path)
    found = faults_of(tmp_path, recipe("lineal"), shard_size=size)
    assert len(found) == 2
    assert has(found, "size")


def test_a_hundred_faults_are_enough(tmp_path):
    found = faults_of(tmp_path, recipe(names=[f"gone-{k}" for k in range(150)]))
    assert len(found) <= 101


# ── activations ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_method_that_looks_at_activations_asks_how_to_get_them(tmp_path):
    write_models(tmp_path, 3)
    asked = {"activations": {"model": "toy", "tasks": ["x", "y"]}}
    for keys, opened in (({}, print), (asked, None)):
        found = faults_of(tmp_path, recipe("regmean", "abc", base_model="c", **keys), open_activations=opened)
        assert found == (
            "merge_method: regmean looks at activations; say how to get them: "
            "activations: {model: NAME, tasks: [NAME, one per expert]}",
        )


def test_activations_need_one_task_per_expert(tmp_path):
    write_models(tmp_path, 3)
    content = recipe("regmean", "abc", base_model="a", activations={"model": "toy", "tasks": ["x"]})
    (fault,) = faults_of(tmp_path, content, open_activations=lambda *_: print)
    assert fault == "activations: 1 tasks are named for 2 experts; name one for each, in the order of the models"


# ── what is noted ────────────────────────────────────────────────────────────────────────────────────────────────────


def notes(tmp_path, content):
    return prepare_merge(put(tmp_path, content)).summary()["notes"]


def test_a_model_without_configuration_is_noted(tmp_path):
    for seed, name in enumerate("ab"):
        write(tmp_path / name, tensors(seed), config=None)
    assert "a has no config.json, so the merged model has none" in notes(tmp_path, recipe())


def test_a_configuration_that_counts_layers_nowhere_is_noted(tmp_path):
    for seed, name in enumerate("ab"):
        write(tmp_path / name, tensors(seed), config={"model_type": "odd"})
    slices = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in "ab"]
    found = notes(tmp_path, {"merge_method": "passthrough", "slices": slices})
    assert "config.json says nowhere that a has 2 model.layers; correct it by hand" in found


@pytest.mark.parametrize("keys", [{"rank": 3}, {"space": "core"}])
def test_what_only_adapters_have_is_noted_to_be_idle(tmp_path, keys):
    write_models(tmp_path)
    idle = "rank and space have no effect: they are for merges of adapters, and these are whole models"
    assert idle in notes(tmp_path, recipe(**keys))
    assert idle not in notes(tmp_path, recipe())


def test_what_is_noted_stands_in_the_card_and_is_said_once(tmp_path):
    write_models(tmp_path)
    content = [{"name": "first", **recipe()}, recipe(names=["first", "a"])]
    found = notes(tmp_path, content)
    assert len(found) == len(set(found))


# ── estimates ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_memory_grows_with_tensors_only_for_methods_that_hold_them(tmp_path):
    write(tmp_path / "a", {"w": np.zeros((512, 2048), np.float32)}, config=None)
    write(tmp_path / "b", {"w": np.zeros((512, 2048), np.float32)}, config=None)

    def memory(uses, **options):
        spec = MergeMethodSpec("method", print, uses=uses, base="ignored", **options)
        path = put(tmp_path, recipe("method", activations={"model": "m", "tasks": ["x", "y"]}))
        options = {"open_activations": lambda *_: print}
        return prepare_merge(path, methods={"method": spec}, **options).summary()["memory_bytes"]

    tiles = memory("tiles")
    assert memory("tensors") == tiles < 1 << 30
    assert tiles + 2 * (512 * 2048 * 4) <= memory("tensors", whole=True) <= memory("grams")
    assert memory("weights") > tiles
    assert memory("model") > memory("weights")


def test_a_dry_plan_reads_each_byte_once_however_often_it_is_used(tmp_path):
    (a, _) = write_models(tmp_path)
    slices = [{"sources": [{"model": "a", "layer_range": [0, 2]}]}] * 3
    summary = prepare_merge(put(tmp_path, {"merge_method": "passthrough", "slices": slices})).summary()
    assert summary["read_bytes"] == sum(array.nbytes for array in a.values())
    assert summary["layers"] == "6 model.layers"


def test_jobs_are_in_the_order_of_the_disk(tmp_path):
    write_models(tmp_path)
    (stage,) = prepare_merge(put(tmp_path, recipe())).stages
    assert isinstance(stage, Stage)
    model = next(iter(stage.models.values()))
    places = [model.place(job.experts[0][1]) for job in stage.jobs]
    assert places == sorted(places)


def test_faults_of_errors_are_kept_with_their_messages():
    faults = Faults()

    def fail():
        raise ConfigError("outer", ["one", "two"])

    assert faults.attempt(fail) is None
    assert faults.attempt(lambda: 3) == 3
    assert faults == ["outer: one", "outer: two"]


# ── any garbage beside the weights ───────────────────────────────────────────────────────────────────────────────────

GARBAGE = [
    b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xff", b"[" * 50_000, b'{"a": 1, "a": 2}', b"NaN",
    b'{"num_hidden_layers": "two", "vocab_size": [], "tie_word_embeddings": {}, "torch_dtype": 5, "dtype": []}',
    b'{"num_hidden_layers": -1, "vocab_size": 1e308, "text_config": 7, "architectures": "x", "model_type": null}',
    b'{"num_hidden_layers": 99999999999999999999, "eos_token_id": {"x": 1}, "layer_types": 3, "bos_token_id": [[]]}',
    b'{"weight_map": {"w": 1}, "metadata": []}', b'{"weight_map": {"w": "gone.safetensors"}}', b'{"weight_map": null}',
    b'{"model": {"type": "BPE", "vocab": []}, "added_tokens": {}}', b'{"model": 3}', b'{"added_tokens": [3]}',
    b'{"added_tokens_decoder": [], "chat_template": 3}', b'{"chat_template": [{}]}', b'{"\\ud800": "\\ud800"}',
]  # fmt: skip

NAMES = [
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.json", "vocab.json",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_garbage_beside_the_weights_is_a_fault_or_has_no_effect(tmp_path, name):
    from .tokenizers_by_hand import write_tokenizer

    for seed, model in enumerate("ab"):
        write_tokenizer(tmp_path / model, ["<unk>", *"uvwxyz"])
        shards = 2 if name.startswith("model.") else 1
        write(tmp_path / model, tensors(seed), config=CONFIG | {"tie_word_embeddings": False}, shards=shards)
    slices = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in "ab"]
    recipes = [
        recipe(),
        recipe("task_arithmetic", base_model="a", tokenizer={"source": "union"}, chat_template="auto"),
        {"merge_method": "passthrough", "slices": slices},
    ]
    paths = [put(tmp_path, content, f"{number}.yml") for number, content in enumerate(recipes)]
    refused = []
    for garbage in GARBAGE:
        (tmp_path / "a" / name).write_bytes(garbage)
        refused += [error_of(lambda path=path: json.dumps(prepare_merge(path).summary())) for path in paths]
    assert all(error is None or error.faults for error in refused)
    if name in ("config.json", "model.safetensors.index.json", "tokenizer.json"):
        assert any(refused)


def test_a_garbled_byte_anywhere_in_the_header_never_breaks_anything(tmp_path):
    write_models(tmp_path)
    path = put(tmp_path, recipe())
    file = tmp_path / "a" / "model.safetensors"
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(150):
        garbled = bytearray(whole)
        for place in generator.integers(0, 300, size=2):
            garbled[place] = generator.integers(0, 256)
        file.write_bytes(garbled[: generator.integers(1, len(whole))] if generator.random() < 0.2 else garbled)
        error = error_of(lambda: prepare_merge(path))
        assert error is None or error.faults


def test_what_is_prepared_by_headers_reads_tensors_only_when_it_is_carried_out(tmp_path):
    write_checkpoint(tmp_path / "x.safetensors", {"w": np.ones(2, np.float32)})
    (stage,) = prepare_merge(put(tmp_path, recipe(names=["x.safetensors"]))).stages
    (job,) = stage.jobs
    assert isinstance(job, Job)
    with pytest.raises(pytest.fail.Exception, match="w of x"):
        dense(stage.source(*job.experts[0], job), job.shape)


def test_own_methods_are_known_by_name():
    assert {"linear", "slerp", "ties", "regmean", "model-stock"} <= own_methods().keys()
    assert stage.TILES_BYTES < 1 << 28
