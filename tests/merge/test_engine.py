import doctest
import json

import ml_dtypes
import numpy as np
import pytest

from minerua.errors import BrokenPlugin, CheckpointError, ConfigError
from minerua.kernels import passes
from minerua.merge import engine as module
from minerua.merge.engine import WholeModel, merge_arrays, merge_faults, number_of
from minerua.merge.merging import merge_models, merge_tensors, own_methods, prepare_merge
from minerua.merge.planning.plan import Job
from minerua.values import MergeMethodSpec, MergeParameter

from .folders import merged, put, recipe, write_models

TASK = {"base_model": "base"}
WEIGHT = MergeParameter("weight", per_model=True, default=1.0)


def test_examples_run():
    assert doctest.testmod(module).failed == 0


def models(*experts, **tensors):
    """Returns a base of zeros and experts that hold these numbers, in one tensor named `w`."""
    base = {"w": np.zeros_like(np.asarray(experts[0], np.float32))}
    named = {name: {"w": np.asarray(array, np.float32)} for name, array in zip("ab", experts, strict=False)}
    return {"base": base, **named, **tensors}


def merge(spec, given, **keys):
    """Merges in memory by a stranger's method."""
    content = recipe(spec.name, [name for name in given if name != "base"], **{**TASK, **keys})
    return merge_tensors(json.dumps(content), given, methods={**own_methods(), spec.name: spec})


# ── strangers' methods, of every kind ────────────────────────────────────────────────────────────────────────────────


def test_a_method_of_weights_is_given_task_vectors_and_weights():
    def middle(task_vectors, weights):
        assert all(vector.dtype == np.float32 and vector.shape == (2, 2) for vector in task_vectors)
        return sum(w * vector for w, vector in zip(weights, task_vectors, strict=True)) / 2

    spec = MergeMethodSpec("middle", middle)
    given = models(np.eye(2), 3 * np.ones((2, 2)))
    given["base"] = {"w": np.ones((2, 2), np.float32)}
    found = merge(spec, given)["w"]
    assert found.tolist() == [[2.0, 1.5], [1.5, 2.0]]


def test_a_method_of_tiles_sees_every_element_once_whatever_the_size(monkeypatch):
    monkeypatch.setattr(module, "TILE_ELEMENTS", 7)
    sizes = []

    def larger(tile):
        sizes.append(tile.experts[0].size)
        assert (tile.name, tile.base.dtype, tile.parameters) == ("w", np.float32, {"weight": (1.0, 1.0)})
        return np.maximum(*tile.experts)

    a, b = np.random.default_rng(0).normal(size=(2, 4, 9)).astype(np.float32)
    found = merge(MergeMethodSpec("larger", larger, uses="tiles"), models(a, b))["w"]
    np.testing.assert_array_equal(found, np.maximum(a, b))
    assert sorted(sizes) == [1, 7, 7, 7, 7, 7]


def test_a_method_of_tensors_reads_and_writes_by_passes_and_may_prepare():
    seen = []

    def prepare(all_tensors):
        seen.extend(tensors.name for tensors in all_tensors)
        assert len(all_tensors) == len(all_tensors[:]) == 2
        assert all_tensors[-1].name == seen[-1]
        return len(seen)

    def first(tensors, target):
        assert (tensors.prepared, tensors.seed, tensors.semantics) == (2, 0, "mergekit")
        return passes.combine(tensors.experts[:1], [tensors.parameters["scale"]], base=None, target=target)

    spec = MergeMethodSpec(
        "first", first, uses="tensors", parameters=(MergeParameter("scale", default=2.0),), base="ignored",
        prepare=prepare,
    )  # fmt: skip
    given = {name: {"w": np.ones(2, np.float32), "v": np.ones(1, np.float32)} for name in "ab"}
    content = recipe("first", weights=[])
    found = merge_tensors(json.dumps(content), given, methods={"first": spec})
    assert {name: array.tolist() for name, array in found.items()} == {"v": [2.0], "w": [2.0, 2.0]}
    assert sorted(seen) == ["v", "w"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A base, two experts, and a way to run them: layer `one.weight` feeds `two.weight`, a bias has no inputs."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(3)
    shapes = {"one.weight": (3, 2), "two.weight": (2, 3), "two.bias": (2,)}
    drawn = [{name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in "xyz"]
    inputs = generator.normal(size=(2, 5, 2)).astype(np.float32)
    asked = []

    def run(tensors, k):
        asked.append(k)
        return {"one.weight": inputs[k], "two.weight": inputs[k] @ tensors["one.weight"].T}

    from minerua.weights import write_checkpoint

    for name, tensors in zip(("base", "a", "b"), drawn, strict=True):
        write_checkpoint(tmp_path / f"{name}.safetensors", tensors)
    return drawn, inputs, run, asked, tmp_path


def merge_files(world, spec, **keys):
    *_, run, _, folder = world
    names = ["a.safetensors", "b.safetensors"]
    activations = {"activations": {"model": "toy", "tasks": ["x", "y"]}}
    path = put(folder, recipe(spec.name, names, base_model="base.safetensors", **activations, **keys))

    def open_activations(model, tasks):
        assert (model, list(tasks)) == ("toy", ["x", "y"])
        return run

    prepared = prepare_merge(path, methods={spec.name: spec}, open_activations=open_activations)
    merge_models(prepared, folder / "out")
    from minerua.weights import open_checkpoint

    found = open_checkpoint(folder / "out")
    return {name: found.tensor(name) for name in found.specs}


def test_a_method_of_grams_is_given_those_of_each_experts_own_inputs(world):
    drawn, inputs, *_ = world
    seen = {}

    def keep(task_vectors, weights, grams):
        seen[task_vectors[0].shape] = grams
        return np.zeros_like(task_vectors[0])

    found = merge_files(world, MergeMethodSpec("keep", keep, uses="grams"))
    assert found.keys() == drawn[0].keys()
    np.testing.assert_array_equal(found["one.weight"], drawn[0]["one.weight"])
    assert seen[(2,)] is None
    for k in range(2):
        np.testing.assert_allclose(seen[(3, 2)][k], inputs[k].T @ inputs[k], rtol=1e-5)
        hidden = inputs[k] @ drawn[1 + k]["one.weight"].T
        np.testing.assert_allclose(seen[(2, 3)][k], hidden.T @ hidden, rtol=1e-5)
    assert world[3] == [0, 1], "activations are asked for once per expert"


def test_a_method_of_the_model_is_given_all_of_it_and_called_once(world):
    drawn, *_ = world
    calls = []

    def whole(given, weights):
        calls.append(weights)
        assert given.activations(given.base, 1)["one.weight"].shape == (5, 2)
        assert [expert.keys() for expert in given.experts] == [given.base.keys()] * 2
        return {"one.weight": weights[0] * (given.experts[0]["one.weight"] - given.base["one.weight"])}

    found = merge_files(world, MergeMethodSpec("whole", whole, uses="model"))
    np.testing.assert_allclose(found["one.weight"], drawn[1]["one.weight"], rtol=1e-6)
    np.testing.assert_array_equal(found["two.bias"], drawn[0]["two.bias"])
    assert calls == [[1.0, 1.0]]


@pytest.mark.parametrize("name", ["regmean", "layer-match"])
def test_own_methods_that_look_at_activations_merge_files(world, name):
    found = merge_files(world, own_methods()[name])
    drawn = world[0]
    assert all(np.isfinite(array).all() for array in found.values())
    assert not np.array_equal(found["one.weight"], drawn[0]["one.weight"])


def test_a_method_that_needs_activations_refuses_work_without_them(world):
    from minerua.merge.engine import Work

    spec = MergeMethodSpec("keep", print, uses="grams")
    whole = WholeModel(Work(spec, (), {}, print, "mergekit", 0))
    with pytest.raises(BrokenPlugin, match="merge method 'keep' needs activations, and the recipe names none"):
        whole._activations({}, 0)


# ── strangers' mistakes ──────────────────────────────────────────────────────────────────────────────────────────────


def fail(*_):
    return 1 / 0


@pytest.mark.parametrize("uses", ["weights", "tiles", "tensors"])
def test_a_method_that_fails_is_named_with_the_tensor(uses):
    with pytest.raises(BrokenPlugin) as caught:
        merge(MergeMethodSpec("bad", fail, uses=uses), models([1, 2], [3, 4]))
    assert str(caught.value) == "merge method 'bad' failed at tensor 'w': ZeroDivisionError: division by zero"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("uses", ["grams", "model"])
def test_a_method_that_fails_at_activations_is_named_with_the_tensor(world, uses):
    with pytest.raises(BrokenPlugin, match=r"^merge method 'bad' failed at tensor 'one\.weight': ZeroDivision"):
        merge_files(world, MergeMethodSpec("bad", fail, uses=uses))
    assert not list(world[-1].glob("*out*"))


@pytest.mark.parametrize("uses", ["weights", "tiles"])
def test_a_method_that_returns_another_shape_is_named(uses):
    spec = MergeMethodSpec("bad", lambda *_: np.zeros((3, 3), np.float32), uses=uses)
    with pytest.raises(BrokenPlugin) as caught:
        merge(spec, models(np.ones((2, 2)), np.ones((2, 2))))
    expected = [2, 2] if uses == "weights" else [4]
    assert str(caught.value) == f"merge method 'bad' returned shape [3, 3] for {expected} of 'w'"


@pytest.mark.parametrize("result", ["text", [[1, 2]], [0.5, 0, 0, 0], 7])
def test_a_method_of_tensors_that_returns_no_counts_is_named(result):
    with pytest.raises(BrokenPlugin, match=r"merge method 'bad' returned .* for 'w'; return what a pass of minerua"):
        merge(MergeMethodSpec("bad", lambda *_: result, uses="tensors"), models([1], [2]))


@pytest.mark.parametrize("result", ["text", None, [object()], {}])
@pytest.mark.parametrize("uses", ["weights", "tiles"])
def test_a_method_that_returns_no_array_is_named(uses, result):
    with pytest.raises(BrokenPlugin, match="merge method 'bad'"):
        merge(MergeMethodSpec("bad", lambda *_: result, uses=uses), models([1, 2], [2, 3]))


def test_a_method_that_fails_to_prepare_is_named():
    spec = MergeMethodSpec("bad", print, uses="tensors", prepare=fail)
    with pytest.raises(BrokenPlugin, match=r"^merge method 'bad' failed to prepare: ZeroDivisionError: division by"):
        merge(spec, models([1], [2]))


def test_a_method_may_refuse_while_it_prepares():
    def refuse(all_tensors):
        raise ConfigError("no", [f"{len(all_tensors)} are too few"])

    with pytest.raises(ConfigError) as caught:
        merge(MergeMethodSpec("picky", print, uses="tensors", prepare=refuse), models([1], [2]))
    assert caught.value.faults == ("1 are too few",)


def test_what_a_method_says_of_its_parameters_is_told_once_with_the_tensors():
    def check(parameters):
        return "the weights sum to zero" if sum(parameters["weight"]) == 0 else None

    spec = MergeMethodSpec("picky", print, check=check)
    given = {name: {"w": np.zeros(1, np.float32), "v": np.zeros(1, np.float32)} for name in ("base", "a", "b")}
    with pytest.raises(ConfigError) as caught:
        merge(spec, given, **{"models": [{"model": n, "parameters": {"weight": w}} for n, w in (("a", 1), ("b", -1))]})
    assert caught.value.faults == ("the weights sum to zero (in 2 tensors, the first is 'v')",)


def test_a_check_that_fails_is_one_fault_of_all():
    job = Job("w", (1,), "float32", (), None, {})
    spec = MergeMethodSpec("bad", print, parameters=(), check=fail)
    (fault,) = merge_faults(spec, [job])
    assert fault.startswith("merge method 'bad' cannot check its parameters: ZeroDivisionError: division by zero (in 1")
    assert merge_faults(MergeMethodSpec("none", print), [job]) == []


# ── numbers that are not finite ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("uses", ["weights", "tiles"])
def test_numbers_that_are_not_finite_are_found_for_every_kind_of_method(uses):
    mean = {"weights": lambda vectors, _: sum(vectors) / 2, "tiles": lambda tile: sum(tile.experts) / 2}[uses]
    given = models([1, np.nan, np.inf], [1, 2, 3])
    with pytest.raises(CheckpointError) as caught:
        merge(MergeMethodSpec("mean-of", mean, uses=uses), given)
    assert caught.value.faults == ("a: 2 numbers of tensor 'w' are NaN or infinite",)
    with pytest.raises(CheckpointError) as caught:
        merge(MergeMethodSpec("mean-of", mean, uses=uses), models([6e4] * 2, [8e4] * 2), dtype="float16")
    assert caught.value.faults[0].endswith("2 merged numbers are beyond float16; ask for a wider dtype")


def test_a_pass_over_other_sources_than_the_experts_is_counted_too():
    def first(tensors, target):
        return passes.combine(tensors.experts[:1], [1], base=None, target=target)

    spec = MergeMethodSpec("first", first, uses="tensors")
    assert merge(spec, models([1, 2], [3, 4]))["w"].tolist() == [1, 2]
    with pytest.raises(CheckpointError) as caught:
        merge(spec, models([np.inf, 2], [3, 4]))
    assert caught.value.faults == ("tensor 'w': 2 numbers of its models, or merged ones, are NaN or infinite",)


def test_numbers_that_a_method_makes_infinite_are_found():
    spec = MergeMethodSpec("burst", lambda vectors, _: vectors[0] * np.float32(np.inf))
    with pytest.raises(CheckpointError) as caught:
        merge(spec, models([1, 2], [3, 4]))
    assert caught.value.faults[0].startswith("tensor 'w': 2 merged numbers are beyond float32")


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tensors_are_asked_for_before_they_are_merged_and_in_the_order_of_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path, dtype=ml_dtypes.bfloat16)
    from minerua.merge.models import Model

    events = []
    read_ahead, source = Model.read_ahead, Model.source

    def note_ahead(model, name):
        events.append(("ahead", model.text, name))
        read_ahead(model, name)

    def note_source(model, name):
        events.append(("read", model.text, name))
        return source(model, name)

    monkeypatch.setattr(Model, "read_ahead", note_ahead)
    monkeypatch.setattr(Model, "source", note_source)
    monkeypatch.setattr(module, "READ_AHEAD_BYTES", 1)
    found = merged(tmp_path, recipe())
    reads = list(dict.fromkeys(name for kind, text, name in events if kind == "read" and text == "a"))
    assert reads == sorted(reads, key=found.place)
    for name in found.specs:
        for text in "ab":
            assert events.index(("ahead", text, name)) < max(
                place for place, event in enumerate(events) if event == ("read", text, name)
            )


def test_a_tensor_is_numbered_by_its_name_alone():
    assert number_of("w") == number_of("w") != number_of("v")
    assert 0 <= number_of("model.layers.0.mlp.up.weight") < 1 << 32


def test_task_vectors_in_memory_are_merged_by_own_methods():
    vectors = [np.float32([[1, -2], [3, 0]]), np.float32([[3, 2], [1, 0]])]
    found = merge_arrays(own_methods()["task-arithmetic"], vectors, name="w", settings={"weight": (0.5, 0.5)})
    assert found.tolist() == [[2, 0], [2, 0]]
    assert merge_arrays(own_methods()["linear"], vectors, name="w", settings={"weight": (1, 1)}).tolist() == [
        [2, 0],
        [2, 0],
    ]
