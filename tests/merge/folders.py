"""Tiny models on the disk, recipes that name them, and merges of both."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import yaml

from minerua.errors import ConfigError, MineruaError
from minerua.merge.merging import merge_models, prepare_merge
from minerua.weights import open_checkpoint

from ..worlds import write_model

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "vocab_size": 7}


def tensors(seed=0, *, layers=2, vocabulary=7, dtype=np.float32, head=True):
    """Returns a tiny Llama's tensors: normal numbers, drawn from the seed."""
    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (vocabulary, 4), "model.norm.weight": (4,)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.mlp.up.weight": (6, 4), f"model.layers.{layer}.norm.weight": (4,)}
    shapes |= {"lm_head.weight": (vocabulary, 4)} if head else {}
    return {name: generator.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write(folder, model, *, config=CONFIG, shards=1):
    """Writes a model with its configuration; returns its folder."""
    write_model(folder, model, shards=shards)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_models(folder, count=2, **options):
    """Writes models named `a`, `b`, … drawn from seeds 0, 1, …; returns their tensors."""
    drawn = [tensors(seed, **options) for seed in range(count)]
    for name, model in zip("abcdefgh", drawn, strict=False):
        layers = {"num_hidden_layers": options.get("layers", 2), "vocab_size": options.get("vocabulary", 7)}
        write(folder / name, model, config=CONFIG | layers)
    return drawn


def recipe(method="linear", names="ab", *, weights=None, **keys):
    """Returns a recipe over models `a`, `b`, …; every model has weight 1 unless said, none where `weights` is empty."""
    weights = [1.0] * len(names) if weights is None else weights
    models = [{"model": name} for name in names]
    for model, weight in zip(models, weights, strict=False):
        model["parameters"] = {"weight": weight}
    return {"merge_method": method, "models": models, **keys}


def asked(method):
    """Returns a recipe for a method with what it needs: two or three models, a base, weights, a density."""
    extra = {"base_model": "a"} if method != "linear" else {}
    extra |= {"parameters": {"t": 0.3}} if method in ("slerp", "nearswap") else {}
    sparse = {"parameters": {"density": 0.5}} if method not in ("linear", "slerp", "nearswap", "model_stock") else {}
    names = "ab" if method in ("slerp", "nearswap") else "abc"
    weights = [] if method in ("slerp", "nearswap", "model_stock") else None
    return recipe(method, names, weights=weights, **extra, **sparse)


def put(folder, content, name="recipe.yml"):
    """Writes a recipe, given as text, as a mapping, or as several of these; relative paths become absolute."""
    documents = content if isinstance(content, list) else [content]
    texts = [one if isinstance(one, str) else yaml.safe_dump(one, sort_keys=False) for one in documents]
    (folder / name).write_text("\n---\n".join(texts), "utf-8")
    return folder / name


def merged(folder, content, out="out", *, progress=None, **options):
    """Merges by a recipe and opens the result."""
    merge_models(prepare_merge(put(folder, content), **options), folder / out, progress=progress)
    return open_checkpoint(folder / out)


def faults_of(folder, content, **options):
    """Returns the faults that keep a recipe from being merged."""
    with pytest.raises(ConfigError) as caught:
        prepare_merge(put(folder, content), **options)
    return caught.value.faults


def arrays_of(path):
    """Returns tensor name → array of what lies on the disk."""
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.tensor(name) for name in checkpoint.specs}


def error_of(step):
    """Returns the error of ours that a step ends with, or `None`; any other error is a failure of the test."""
    try:
        step()
    except MineruaError as error:
        return error
    return None


def contents(folder):
    """Returns path → bytes of all files below a folder."""
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def run_cli(*arguments):
    """Runs the command line in this process; returns its exit code, its output and its errors."""
    import sys
    from unittest.mock import patch

    from minerua.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["minerua", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
    return code, out.getvalue(), err.getvalue()
