"""Whole merges against mergekit's own program, which is an oracle here and nothing else."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import yaml

from minerua.weights import open_checkpoint

from .folders import merged, recipe
from .test_loading import make

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the libraries' own warnings

GRADIENT = [{"filter": "mlp", "value": [0.0, 0.5, 1.0]}, {"filter": "norm", "value": 0.25}, {"value": 0.75}]

RECIPES = {
    "linear": recipe(weights=[0.3, 0.9]),
    "linear-sum": recipe(weights=[0.3, 0.9], parameters={"normalize": False}),
    "slerp-gradient": recipe("slerp", "ac", weights=[], base_model="a", parameters={"t": GRADIENT}),
    "ties": recipe("ties", "ab", base_model="c", parameters={"density": 0.5, "normalize": True}),
    "task-arithmetic": recipe("task_arithmetic", "ab", weights=[0.5, -0.2], base_model="c", parameters={"lambda": 1.5}),
    "breadcrumbs": recipe("breadcrumbs", "ab", base_model="c", parameters={"density": 0.7, "gamma": 0.1}),
    "model-stock": recipe("model_stock", "ab", weights=[], base_model="c"),
    "nuslerp": recipe("nuslerp", "ab", weights=[0.2, 0.8], base_model="c"),
    "karcher": recipe("karcher", "ab", weights=[]),
    "sce": recipe("sce", "ab", weights=[], base_model="c", parameters={"select_topk": 0.5}),
    "nearswap": recipe("nearswap", "a", weights=[], base_model="c", parameters={"t": 0.01}),
    "stacked": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {"sources": [{"model": "b", "layer_range": [1, 2], "parameters": {"scale": GRADIENT[1:]}}]},
        ],
    },
    "slices": {
        "merge_method": "linear",
        "parameters": {"weight": 1.0},
        "slices": [{"sources": [{"model": name, "layer_range": [0, 2]} for name in "ab"]}],
    },
}

SCRIPT = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
for name, content in yaml.safe_load(open("recipes.yml")).items():
    configuration = MergeConfiguration.model_validate(content)
    run_merge(configuration, f"theirs-{name}", MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tiny models in float32, and what mergekit makes of every recipe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit", reason="mergekit is the oracle")
        library = pytest.importorskip("transformers", reason="the library that makes the models")
    folder = tmp_path_factory.mktemp("parity")
    for seed, name in enumerate("abc"):
        make(library, "LlamaForCausalLM", seed, folder / name)
    (folder / "recipes.yml").write_text(yaml.safe_dump({k: {"dtype": "float32", **v} for k, v in RECIPES.items()}))
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_whole_merge_is_that_of_mergekit(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    ours = merged(folder, {"dtype": "float32", **RECIPES[name]}, f"ours-{name}")
    theirs = open_checkpoint(folder / f"theirs-{name}")
    assert ours.specs == theirs.specs
    for tensor in theirs.specs:
        expected = theirs.tensor(tensor)
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(ours.tensor(tensor), expected, rtol=0, atol=2e-6 * max(scale, 1e-6), err_msg=tensor)
    layers = [
        yaml.safe_load((folder / f"{who}-{name}" / "config.json").read_text())["num_hidden_layers"]
        for who in ("ours", "theirs")
    ]
    assert layers[0] == layers[1]
