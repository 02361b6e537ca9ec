"""Small tokenizers in the Hugging Face layout, and mergekit's own answers about them."""

import json
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

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
