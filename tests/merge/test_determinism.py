"""The same recipe gives the same bytes: whatever the threads, the files, and the backend."""

import os
import subprocess
import sys

import ml_dtypes
import pytest

from minerua.merge.merging import prepare_merge
from minerua.weights import open_checkpoint

from .folders import arrays_of, asked, contents, merged, put, write, write_models


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Recipes name models by paths that begin where the user is."""
    monkeypatch.chdir(tmp_path)


BITWISE = ["linear", "task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della", "slerp", "nearswap", "model_stock"]


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
