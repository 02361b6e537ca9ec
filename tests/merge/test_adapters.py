import doctest
import json

import numpy as np
import pytest

from minerua.errors import CheckpointError
from minerua.merge.adapters import stage as module
from minerua.merge.adapters.stage import merges_adapters
from minerua.merge.merging import merge_models, own_methods, prepare_merge
from minerua.merge.recipes.recipe import parse_recipes
from minerua.values import MergeMethodSpec
from minerua.weights import Factors, open_adapter, open_checkpoint, write_adapter

from .folders import contents, error_of, faults_of, merged, put, recipe, tensors, write

UP, DOWN, EMBED = "model.layers.0.mlp.up.weight", "model.layers.1.mlp.up.weight", "model.embed_tokens.weight"
SHAPES = {UP: (6, 4), DOWN: (6, 4), EMBED: (7, 4)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_lora(folder, ranks, *, seed=0, **options):
    """Writes an adapter of these ranks; returns its dense changes."""
    generator = np.random.default_rng(seed)
    factors = {}
    for name, rank in ranks.items():
        rows, columns = SHAPES[name]
        left, right = generator.normal(size=(rows, rank)), generator.normal(size=(rank, columns))
        factors[name] = Factors(left.astype(np.float32), right.astype(np.float32))
    write_adapter(folder, factors, rank=max(ranks.values()), **options)
    return {name: left @ right for name, (left, right) in factors.items()}


@pytest.fixture
def three(tmp_path):
    """Adapters `a`, `b` and `c` of different ranks and modules; returns their dense changes."""
    ranks = [{UP: 1, DOWN: 2}, {UP: 2}, {UP: 1, DOWN: 1, EMBED: 2}]
    return [write_lora(tmp_path / name, each, seed=k) for k, (name, each) in enumerate(zip("abc", ranks, strict=True))]


def merge(folder, content, out="out", **options):
    merge_models(prepare_merge(put(folder, content), **options), folder / out)
    return {name: left @ right for name, (left, right) in open_adapter(folder / out, None).factors.items()}


def assert_changes(found, expected, *, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        np.testing.assert_allclose(found[name], change, rtol=tolerance, atol=tolerance, err_msg=name)


def weighted(changes, weights):
    names = sorted({name for change in changes for name in change})
    zero = {name: np.zeros(SHAPES[name], np.float32) for name in names}
    return {n: sum(w * change.get(n, zero[n]) for w, change in zip(weights, changes, strict=True)) for n in names}


def test_examples_run():
    assert doctest.testmod(module).failed == 0


# ── linear methods: exact in every space ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("space", [None, "core", "knots", "full"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_linear_merge_of_adapters_is_that_of_their_products(tmp_path, three, space, method):
    keys = {} if space is None else {"space": space}
    found = merge(tmp_path, recipe(method, "abc", weights=[0.5, 0.25, 0.25], **keys))
    assert_changes(found, weighted(three, [0.5, 0.25, 0.25]))


def test_the_merged_adapter_gives_the_model_that_the_dense_merge_gives(tmp_path, three):
    write(tmp_path / "base", tensors())
    for name, change in zip("abc", three, strict=True):
        dense = {n: array + change[n] if n in change else array for n, array in tensors().items()}
        write(tmp_path / f"dense-{name}", dense)
    merge(tmp_path, recipe("task_arithmetic", "abc", weights=[1, -0.5, 2], base_model="base"))
    thick = recipe("task_arithmetic", [f"dense-{n}" for n in "abc"], weights=[1, -0.5, 2], base_model="base")
    expected = merged(tmp_path, thick, "thick")
    found = merged(tmp_path, recipe("passthrough", ["base+out"], weights=[]), "applied")
    for name in expected.specs:
        np.testing.assert_allclose(found.tensor(name), expected.tensor(name), rtol=1e-5, atol=1e-5)


def test_mergekits_habit_to_list_the_base_among_the_models_is_understood(tmp_path, three):
    write(tmp_path / "base", tensors())
    content = recipe("task_arithmetic", "abc", weights=[1, 1, 1], base_model="base")
    content["models"].insert(0, {"model": "base"})
    assert_changes(merge(tmp_path, content), weighted(three, [1, 1, 1]))


# ── other methods ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("space", ["core", "knots", "full"])
@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "breadcrumbs", "della", "model_stock", "sce"])
def test_every_method_merges_in_every_space(tmp_path, three, space, method):
    parameters = {} if method in ("model_stock", "sce") else {"parameters": {"density": 0.5}}
    weights = [] if method in ("model_stock", "sce") else None
    content = recipe(method, "abc", weights=weights, space=space, **parameters)
    found = merge(tmp_path, content, seed=3)
    assert found.keys() == SHAPES.keys()
    assert all(np.isfinite(change).all() for change in found.values())
    assert_changes(merge(tmp_path, content, "again", seed=3), found, tolerance=0)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "tsv-m"])
def test_the_full_space_gives_what_the_method_gives_of_whole_models(tmp_path, three, method):
    keys = {} if method == "tsv-m" else {"parameters": {"density": 0.5}}
    content = recipe(method, "abc", **keys)
    found = merge(tmp_path, content | {"space": "full"}, seed=3)
    write(tmp_path / "base", {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}, config=None)
    for name, change in zip("abc", three, strict=True):
        zeros = {n: np.zeros(shape, np.float32) for n, shape in SHAPES.items()}
        write(tmp_path / f"dense-{name}", zeros | change, config=None)
    thick = recipe(method, [f"dense-{n}" for n in "abc"], base_model="base", **keys)
    expected = merged(tmp_path, thick, "thick", seed=3)
    assert_changes(found, {name: expected.tensor(name) for name in expected.specs}, tolerance=1e-4)


def test_strangers_methods_merge_adapters_as_task_vectors(tmp_path, three):
    def largest(task_vectors, weights):
        return max(task_vectors, key=lambda vector: float(np.abs(vector).sum()))

    spec = MergeMethodSpec("largest", largest)
    found = merge(tmp_path, recipe("largest", "abc", space="full"), methods={"largest": spec})
    expected = {name: max((c[name] for c in three if name in c), key=lambda v: np.abs(v).sum()) for name in SHAPES}
    assert_changes(found, expected)


# ── rank, files, notes ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_rank_is_as_asked_and_the_card_says_what_it_leaves_out(tmp_path, three):
    exact = merge(tmp_path, recipe("linear", "abc"), "exact")
    found = merge(tmp_path, recipe("linear", "abc", rank=1))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 1
    U, sigma, V = np.linalg.svd(exact[UP])
    np.testing.assert_allclose(found[UP], sigma[0] * np.outer(U[:, 0], V[0]), rtol=1e-4, atol=1e-5)
    assert "rank 1 leaves out " in (tmp_path / "out" / "README.md").read_text()
    assert "leaves out" not in (tmp_path / "exact" / "README.md").read_text()


def test_a_folder_holds_what_peft_reads_the_recipe_and_a_card(tmp_path, three):
    merge(tmp_path, recipe("linear", "abc", dtype="bfloat16"))
    files = contents(tmp_path / "out")
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "minerua_recipe.yml"]
    assert files["minerua_recipe.yml"] == (tmp_path / "recipe.yml").read_bytes()
    assert "bfloat16: adapters are written in float32" in files["README.md"].decode()
    specs = open_checkpoint(tmp_path / "out" / "adapter_model.safetensors").specs
    assert {spec.dtype for spec in specs.values()} == {"float32"}


def test_what_the_adapters_say_of_their_base_is_kept(tmp_path):
    for seed, name in enumerate("ab"):
        write_lora(tmp_path / name, {UP: 1}, seed=seed, base_name="acme/base", fan_in_fan_out=True)
    merge(tmp_path, recipe())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["fan_in_fan_out"]) == ("acme/base", True)


@pytest.mark.parametrize("space", ["core", "knots", "full"])
def test_the_summary_bounds_what_is_written(tmp_path, three, space):
    prepared = prepare_merge(put(tmp_path, recipe("ties", "abc", space=space)))
    summary = json.loads(json.dumps(prepared.summary()))
    done = []
    merge_models(prepared, tmp_path / "out", progress=lambda *seen: done.append(seen))
    assert sum(map(len, contents(tmp_path / "out").values())) <= summary["write_bytes"]
    assert sorted([*summary["files"], "README.md"]) == sorted(contents(tmp_path / "out"))
    assert (summary["tensors"], summary["models"]) == (3, ["a", "b", "c"])
    assert done[-1][0] == done[-1][1]


def test_adapters_are_found_in_the_local_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate("ab"):
        folder = tmp_path / "cache" / f"models--acme--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "v1").write_text("c0ffee")
        (folder / "snapshots").mkdir()
        write_lora(folder / "snapshots" / "c0ffee", {UP: 1}, seed=seed)
    assert merge(tmp_path, recipe(names=["acme/a@v1", "acme/b@v1"])).keys() == {UP}


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_adapters_and_whole_models_cannot_be_mixed(tmp_path, three):
    write(tmp_path / "whole", tensors())
    found = faults_of(tmp_path, recipe(names=["a", "whole"]))
    assert found == ("whole is no adapter, but others are: write those as whole+ADAPTER",)


def test_what_adapters_do_not_have_is_refused_at_once(tmp_path, three):
    content = recipe("regmean", "ab", tokenizer={"source": "union"}, chat_template="auto")
    assert set(faults_of(tmp_path, content)) == {
        "merge_method: regmean looks at activations, which adapters alone do not have",
        "tokenizer and chat_template: adapters have no tokenizer; remove them",
    }


def test_an_adapter_that_a_stage_would_make_is_of_no_use_to_another(tmp_path, three):
    found = faults_of(tmp_path, [{"name": "first", **recipe()}, recipe(names=["first", "c"])])
    assert found == ("first: it merges adapters into one, which no other stage can use; merge it by itself",)
    assert merge(tmp_path, {"name": "alone", **recipe()}).keys() == {UP, DOWN}


def test_layers_of_adapters_are_not_stacked(tmp_path, three):
    slices = [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]
    found = faults_of(tmp_path, {"merge_method": "passthrough", "slices": slices})
    assert found == ("adapters are merged as a whole: name them under models, not in slices or modules",)


def test_adapters_of_different_bases_do_not_fit(tmp_path, monkeypatch):
    write_lora(tmp_path / "a", {UP: 1})
    monkeypatch.setitem(SHAPES, UP, (5, 3))
    write_lora(tmp_path / "b", {UP: 1}, fan_in_fan_out=True)
    assert set(faults_of(tmp_path, recipe())) == {
        "some adapters have fan_in_fan_out set and others not: they were not made for one base",
        f"the adapters change {UP!r} in different shapes: a [6, 4], b [5, 3]",
    }


def test_adapters_are_held_against_the_base_where_one_is_named(tmp_path, three):
    write(tmp_path / "base", tensors(layers=1))
    found = faults_of(tmp_path, recipe("task_arithmetic", "abc", base_model="base"))
    assert len(found) == 2
    assert all("has no tensor" in fault for fault in found)


def test_all_adapters_that_cannot_be_used_are_named(tmp_path, three):
    for name, change in (("a", {"r": 0}), ("b", {"use_dora": True})):
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = faults_of(tmp_path, recipe("lineal", "abc"))
    assert len([fault for fault in found if fault.startswith(("a cannot be used", "b cannot be used"))]) >= 2
    assert any("no merge method is named 'lineal'" in fault for fault in found)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"[]", b"{", b"\xff", b'{"peft_type": "LORA", "r": [], "lora_alpha": {}}', b"[" * 50_000, b'{"r": 1e999}',
     b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": {}}',
     b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "rank_pattern": {"(": 3}, "target_modules": 7}'],
)  # fmt: skip
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_garbage_in_an_adapter_is_a_fault_or_has_no_effect(tmp_path, three, name, garbage):
    (tmp_path / "b" / name).write_bytes(garbage)
    write(tmp_path / "base", tensors())
    contents = [recipe(), recipe("task_arithmetic", ["base+b"], base_model="base"), recipe(names=["b", "b"])]
    for number, content in enumerate(contents):
        out = tmp_path / f"out-{number}"
        path = put(tmp_path, content)
        error = error_of(lambda path=path, out=out: merge_models(prepare_merge(path), out))
        assert error is None or error.faults
        assert out.exists() == (error is None)


def test_numbers_beyond_float32_are_a_fault_and_nothing_stays(tmp_path, three):
    with pytest.raises(CheckpointError, match="adapters cannot be merged into one"):
        merge(tmp_path, recipe("task_arithmetic", "abc", weights=[3e38, 3e38, 3e38]))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_what_a_recipe_merges_is_seen_from_what_it_names(tmp_path, three):
    def asked(names):
        (one,) = parse_recipes(json.dumps(recipe(names=names)), where="r.yml")
        return one

    write(tmp_path / "whole", tensors())
    assert merges_adapters(asked(["a", "whole"]))
    assert not merges_adapters(asked(["whole", "whole+a", "gone"]))
    assert not merges_adapters(asked(["a", "b"]), {"a": None, "b": None})
    assert own_methods()["linear"].base == "ignored"
