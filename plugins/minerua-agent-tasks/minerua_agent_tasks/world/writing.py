"""A whole world in a folder: items for evaluators, examples to learn from, and a small model without its weights."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minerua.errors import ConfigError, StorageError

from .coding import draw_coding
from .database import draw_database
from .drawing import Draw, Task, example_tasks, item_tasks, templates
from .english import sentences
from .shell import draw_shell
from .tokens import END, tokenizer_files, vocabulary

__all__ = ["MODEL", "SKILLS", "Sizes", "chance_of", "write_world"]

SKILLS: Mapping[str, Callable[[Draw], Task]] = {
    "coding": draw_coding,
    "database": draw_database,
    "shell": draw_shell,
}
"""Skill → what draws its tasks."""

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.08,  # at transformers' 0.02 so narrow a model takes twice the steps
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything there is.

    Args:
        items: Per skill, for its evaluator.
        examples: Tasks per skill to learn from; a task of several turns is several examples.
        sentences: Of general text to learn from; a tenth as many are set aside.
    """

    items: int = 350
    examples: int = 2500
    sentences: int = 1500

    def __post_init__(self) -> None:
        """Refuses sizes that leave a file empty."""
        wrong = [f"{name} is {size}; it is at least 10" for name, size in vars(self).items() if size < 10]
        if wrong:
            raise ConfigError("a world of these sizes would have empty files", wrong)


def write_world(folder: str | Path, *, seed: int = 0, sizes: Sizes | None = None) -> None:
    """Writes a world; the same seed and sizes give the same bytes.

    `items/SKILL.jsonl` is what the evaluators read; `examples/SKILL.jsonl` and, with everything, `examples/base.jsonl`
    what is learned from; `general.jsonl` text that is set aside; `base` the configuration and the tokenizer of a model.
    The template of an item is none that an example has, or never with its numbers: see `Draw.held_out`.

    Args:
        folder: Where; made if it is not there. Files of these names are written anew, others stay.
        seed: Of everything random, from 0.
        sizes: How much; by default `Sizes()`.

    Raises:
        ConfigError: The seed is below 0.
        StorageError: Something cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_world(folder, seed=1, sizes=Sizes(items=10, examples=10, sentences=10))
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['base', 'examples', 'general.jsonl', 'items']
    """
    if seed < 0:
        raise ConfigError(f"the seed of a world is {seed}; it is a whole number from 0")
    content = _contents(seed, sizes or Sizes())
    try:
        for name, text in content.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"the world in {folder} cannot be written: {error.strerror or error}") from error


def chance_of(seed: int, skill: str, what: str) -> random.Random:
    """Returns where the chance of one file comes from, which no other file draws from."""
    return random.Random(f"{seed} {skill} {what}")


def _contents(seed: int, sizes: Sizes) -> dict[str, str]:
    """Returns path → text of every file."""
    items, examples = {}, {}
    for name, draw in SKILLS.items():
        learned = example_tasks(draw, chance_of(seed, name, "examples"), sizes.examples)
        asked = item_tasks(draw, chance_of(seed, name, "items"), sizes.items)
        examples[name] = [pair for task in learned for pair in _pairs(task)]
        items[name] = list(asked)
    said = list(sentences(chance_of(seed, "english", "sentences"), sizes.sentences + sizes.sentences // 10))
    general = [{"prompt": start, "answer": rest} for start, rest in said[: sizes.sentences]]
    held = [{"text": start + rest} for start, rest in said[sizes.sentences :]]
    whole = [*(pair for pairs in examples.values() for pair in pairs), *general]
    texts = [text for pair in whole for text in pair.values()] + [row["text"] for row in held]
    texts += [turn for tasks in items.values() for task in tasks for turn in task.turns]
    return {
        **{f"items/{name}.jsonl": _lines(map(_item, [name] * len(tasks), tasks)) for name, tasks in items.items()},
        **{f"examples/{name}.jsonl": _lines(pairs) for name, pairs in examples.items()},
        "examples/base.jsonl": _lines(whole),
        "general.jsonl": _lines(held),
        **_model(vocabulary(texts)),
    }


def _pairs(task: Task) -> list[dict[str, str]]:
    """Returns what is learned from a task: every answer, after all that was said before it."""
    before, pairs = "", []
    for said, answer in zip(task.turns[::2], task.turns[1::2], strict=True):
        pairs.append({"prompt": before + said, "answer": answer})
        before += said + answer + END
    return pairs


def _item(skill: str, task: Task) -> dict[str, Any]:
    return {"task_id" if skill == "coding" else "id": task.id, **task.fields()}


def _model(words: list[str]) -> dict[str, str]:
    files = {
        "config.json": MODEL | {"vocab_size": len(words)},
        **tokenizer_files(words, templates("model")["dialogue"]),
    }
    return {f"base/{name}": json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in files.items()}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
