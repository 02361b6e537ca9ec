"""Small tokenizers in the Hugging Face layout, and mergekit's own answers about them."""

import json
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minerua.merge.recipes.ingredients import ModelRef, TokenizerRecipe
from minerua.merge.tokenizers.token_rows import RowMap, extra_rows
from minerua.merge.tokenizers.tokenizer import TokenizerPlan, plan_tokenizer

SOME = ["<unk>", "a", "b", "ab", "c"]

CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}


def added_entry(number: int, content: str, *, special: bool = False) -> dict[str, Any]:
    """An added token as `tokenizer.json` has it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": number, "content": content, **flags, "normalized": not special, "special": special}


def document(
    tokens: Sequence[str],
    *,
    merges: Sequence[str] = (),
    added: Sequence[str] = (),
    special: Sequence[str] = (),
    kind: str = "BPE",
) -> dict[str, Any]:
    """The content of `tokenizer.json`: tokens in the order of their ids, then those that are only added."""
    ids = {token: number for number, token in enumerate(tokens)}
    model: dict[str, Any] = {"type": kind, "vocab": ids, "unk_token": tokens[0]}
    if kind == "BPE":
        model |= {"merges": list(merges), "dropout": None, "fuse_unk": False, "byte_fallback": False}
    elif kind == "Unigram":
        model = {"type": kind, "unk_id": 0, "vocab": [[token, -float(number)] for token, number in ids.items()]}
    elif kind == "WordPiece":
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    behind = [token for token in (*special, *added) if token not in ids]
    numbers = ids | {token: len(ids) + place for place, token in enumerate(behind)}
    entries = [added_entry(numbers[token], token, special=token in special) for token in (*special, *added)]
    entries.sort(key=lambda entry: int(entry["id"]))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def write_tokenizer(
    folder: Path,
    tokens: Sequence[str],
    *,
    height: int | None = None,
    settings: Mapping[str, Any] | None = None,
    **parts: Any,
) -> Path:
    """Writes a model's folder without weights; its embedding has as many rows as there are tokens, unless said."""
    folder.mkdir(exist_ok=True)
    content = document(tokens, **parts)
    count = len({*tokens, *(entry["content"] for entry in content["added_tokens"])})
    put(folder, "tokenizer.json", content)
    put(folder, "tokenizer_config.json", {**CLASS, **(settings or {})})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": height or count}
    put(folder, "config.json", config)
    return folder


def put(folder: Path, name: str, content: object) -> None:
    """Writes a JSON file."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


MERGEKIT = """
import json, logging, sys, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from mergekit.common import ImmutableMap, ModelReference
from mergekit.io.tasks import GatherTensors
from mergekit.tokenizer.build import BuildTokenizer
from mergekit.tokenizer.config import TokenizerConfig
from mergekit.tokenizer.embed import PermutedVocabulary
answers = []
for asked in json.load(sys.stdin):
    models = [ModelReference.model_validate(folder) for folder in asked["models"]]
    base = ModelReference.model_validate(asked["base"]) if asked["base"] else None
    config = TokenizerConfig.model_validate(asked["tokenizer"])
    build = BuildTokenizer(base_model=base, referenced_models=tuple(models), tokenizer_source=config.source,
        add_tokens=tuple(config.tokens or ()))
    made = build.execute()
    tensors = {model: torch.tensor(rows, dtype=torch.float32) for model, rows in zip(models, asked["embeddings"])}
    task = PermutedVocabulary(gather_tensors=GatherTensors(weight_info=ImmutableMap({})), tokenizer_task=build,
        tokens=ImmutableMap(config.tokens or {}), pad_to_multiple_of=config.pad_to_multiple_of, base_model=base,
        vocabulary_axis=0)
    aligned = task.execute(made, tensors)
    answers.append({"ids": made.tokenizer.get_vocab(), "embeddings": [aligned[model].tolist() for model in models]})
print(json.dumps(answers))
"""


def ask_mergekit(questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """mergekit's merged vocabulary (`ids`) and every model's aligned embedding (`embeddings`), for each question.

    A question has the folders of the `models`, the `base` or `None`, the recipe's `tokenizer`, and the `embeddings`.
    """
    command = [sys.executable, "-c", MERGEKIT]
    done = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder as transformers loads it, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        return transformers.AutoTokenizer.from_pretrained(folder)


def plan_of(
    folders: Sequence[Path],
    recipe: TokenizerRecipe,
    *,
    base: int | None = 0,
    heights: Sequence[int] | None = None,
    chat_template: str | None = None,
) -> TokenizerPlan:
    """The plan for models that are called by their folders' names; heights are those in their configurations."""
    refs = [ModelRef(folder.name) for folder in folders]
    heights = heights or [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in folders]
    return plan_tokenizer(
        recipe,
        dict(zip(refs, folders, strict=True)),
        base=None if base is None else refs[base],
        heights=dict(zip(refs, heights, strict=False)),
        chat_template=chat_template,
    )


def aligned(row_map: RowMap, tensors: Mapping[ModelRef, np.ndarray]) -> np.ndarray:
    """The merged rows of one model's tensor, shape (vocabulary, width)."""

    def read(model: ModelRef, rows: np.ndarray) -> np.ndarray:
        assert len(rows), "nothing is read"
        return tensors[model][rows]

    extra = extra_rows(row_map, read)
    own = tensors[row_map.model]
    return np.stack([own[row] if row >= 0 else extra[-1 - row] for row in row_map.rows])


def embeddings_of(folders: Sequence[Path], width: int = 3) -> dict[ModelRef, np.ndarray]:
    """Model → random embedding with as many rows as its configuration says."""
    heights = [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in folders]
    rng = np.random.default_rng(0)
    return {
        ModelRef(folder.name): rng.standard_normal((height, width)).astype(np.float32)
        for folder, height in zip(folders, heights, strict=True)
    }


def saved(plan: TokenizerPlan, folder: Path) -> Path:
    """A folder with the plan's files and the configuration of a Llama."""
    put(folder, "config.json", {"model_type": "llama"})
    for name, content in plan.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def three_models(folder: Path) -> list[Path]:
    """A base and two models that have other tokens, in another order; the last embedding is padded."""
    return [
        write_tokenizer(folder / "base", SOME, merges=["a b"], special=["<s>"], settings={"bos_token": "<s>"}),
        write_tokenizer(folder / "x", ["<unk>", "c", "b", "a", "d"], special=["<s>", "<|im_end|>"]),
        write_tokenizer(folder / "y", ["<unk>", "a", "b", "c", "e", "d"], special=["<s>"], height=16),
    ]
