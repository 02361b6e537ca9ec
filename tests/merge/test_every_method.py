"""What holds for every merge method, whatever it does: laws over whole merges of tiny models."""

import ml_dtypes
import numpy as np
import pytest

from minerua.errors import CheckpointError
from minerua.merge.merging import merge_models, own_methods, prepare_merge

from .folders import arrays_of, contents, put, recipe, tensors, write

METHODS = own_methods()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Recipes name models by paths that begin where the user is."""
    monkeypatch.chdir(tmp_path)


def asked(spec, **keys):
    """Returns a recipe that a method takes: as many experts as it can have, at most two, and a base `c` if it may."""
    count = min(2, spec.most or 2)
    known = {parameter.name: parameter for parameter in spec.parameters}
    parameters = {name: 0.5 for name, parameter in known.items() if parameter.default is None and name != "weight"}
    parameters |= {"density": 0.5} if "density" in known else {}
    base = {} if spec.base == "ignored" else {"base_model": "c"}
    activations = {"activations": {"model": "toy", "tasks": ["x"] * count}} if spec.uses in ("grams", "model") else {}
    weights = None if "weight" in known else []
    return recipe(spec.name, "ab"[:count], weights=weights, parameters=parameters, **base, **activations, **keys)


def run(arrays, k):
    """Inputs that reach the matrices of a tiny Llama, the same in every model."""
    generator = np.random.default_rng(k)
    matrices = [name for name, array in arrays.items() if array.ndim == 2 and "embed" not in name]
    return {name: generator.normal(size=(16, arrays[name].shape[1])).astype(np.float32) for name in matrices}


def merge(folder, spec, out="out", **keys):
    path = put(folder, asked(spec, **keys))
    merge_models(prepare_merge(path, open_activations=lambda *_: run, seed=1), folder / out)
    return arrays_of(folder / out)


def write_three(folder, dtype=np.float32):
    """Writes two experts near a base `c`, all drawn; returns their tensors."""
    base = tensors(9)
    models = {"c": base}
    for seed, name in enumerate("ab"):
        models[name] = {key: base[key] + 0.1 * array for key, array in tensors(seed).items()}
    for name, model in models.items():
        write(folder / name, {key: array.astype(dtype) for key, array in model.items()})
    return models


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_method_writes_every_tensor_and_nothing_that_is_not_finite(tmp_path, name, dtype):
    write_three(tmp_path, dtype)
    found = merge(tmp_path, METHODS[name])
    assert found.keys() == tensors().keys()
    assert {array.dtype for array in found.values()} == {np.dtype(dtype)}
    assert all(np.isfinite(array.astype(np.float32)).all() for array in found.values())
    again = merge(tmp_path, METHODS[name], "again")
    assert all(again[key].tobytes() == array.tobytes() for key, array in found.items())


@pytest.mark.parametrize("name", METHODS)
def test_models_that_are_all_the_same_merge_to_themselves(tmp_path, name):
    for model in "abc":
        write(tmp_path / model, tensors(3))
    found = merge(tmp_path, METHODS[name])
    for key, array in tensors(3).items():
        np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("owner", ["a", "c"])
def test_one_number_that_is_not_finite_is_found_and_its_model_named(tmp_path, name, number, owner):
    models = write_three(tmp_path)
    spec = METHODS[name]
    if owner == "c" and spec.base == "ignored":
        owner = "a"
    models[owner]["model.layers.1.mlp.up.weight"][2, 3] = number
    write(tmp_path / owner, models[owner])
    with pytest.raises(CheckpointError, match="the models cannot be merged") as caught:
        merge(tmp_path, spec)
    assert caught.value.faults == (f"{owner}: 1 numbers of tensor 'model.layers.1.mlp.up.weight' are NaN or infinite",)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", METHODS)
def test_the_papers_way_merges_too(tmp_path, name):
    write_three(tmp_path)
    found = merge(tmp_path, METHODS[name], semantics="paper")
    assert all(np.isfinite(array).all() for array in found.values())
    assert contents(tmp_path / "out")["config.json"]
