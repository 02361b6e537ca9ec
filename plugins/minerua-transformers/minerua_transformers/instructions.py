"""Prompts with their answers, to learn from: only the answers are targets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minerua.errors import ConfigError
from minerua.settings import Settings as Told
from minerua.values import Skill, SkillContext
from minerua_transformers.folders import read_tokenizer, resolve
from minerua_transformers.learning import IGNORED
from minerua_transformers.prompts import Conversation, Prompts, checked_messages
from minerua_transformers.settings import CHATS, Settings

LISTED = 50
"""Faults of a file that are told at once."""

Example = tuple[Conversation, str]
"""What is asked, and the answer to learn."""


def instruction_data(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    """Makes a skill that returns a dataset of prompts with their answers; for `data.dataset` of a training file.

    Settings: `file`, JSONL whose lines have `prompt` and `answer`, or `messages`, the last of which is the
    assistant's; `tokenizer`, a folder or a name of the hub; `chat` and `system`, as for the model kind `causal-lm`;
    `length`, the most ids of an example (default: no limit; longer ones are refused).

    Args:
        settings: As above.
        context: Where relative paths begin.

    Raises:
        ConfigError: With every fault of the settings and of the file.
    """
    told = Told("the skill 'instruction-data'", settings, context.folder)
    path, named = told.file("file", what="a JSONL file"), told.text("tokenizer", what="a folder, or a name of the hub")
    chosen = Settings(chat=told.choice("chat", CHATS, "auto"), system=told.text("system", None))
    length = told.whole("length", None, least=2)
    faults: list[str] = []
    examples = list(read_examples(path, faults)) if told.has("file") else []
    told.fault(*faults)
    made, prompts = None, None
    if told.has("tokenizer"):
        made = told.made(lambda: read_tokenizer(resolve(named, context.folder, "tokenizer")), None)
    if made is not None:
        prompts = told.made(lambda: Prompts(made, chosen), None)
    told.done()
    return Skill(
        name="instruction-data",
        call=partial(dataset, examples, made, prompts, length),
        outputs={"dataset": object},
        pure=True,
    )


def read_examples(path: Path, faults: list[str]) -> Iterator[Example]:
    """Yields the examples of a JSONL file; adds what is wrong to the faults, with its line.

    Args:
        path: The file.
        faults: Where faults go, the first 50.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{path} cannot be read: {error}")
        return
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _example(json.loads(line))
        except (ValueError, RecursionError) as error:
            found.append(f"{path}, line {number}: {error}")
    if not any(line.strip() for line in lines):
        found.append(f"{path} holds no example")
    faults += found[:LISTED] + [f"and {len(found) - LISTED} lines more"] * (len(found) > LISTED)


def _example(line: Any) -> Example:
    if not isinstance(line, Mapping):
        raise ValueError(f"expected an object with prompt and answer, or messages; found {line!r:.80}")
    if "messages" in line:
        messages = checked_messages(line["messages"])
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise ValueError("the last of two or more messages must be the assistant's: it is what is learned")
        return messages[:-1], messages[-1]["content"]
    for name in ("prompt", "answer"):
        if not isinstance(line.get(name), str) or not line[name]:
            raise ValueError(f"{name} must be a text; found {line.get(name)!r:.80}")
    return line["prompt"], line["answer"]


def dataset(examples: Sequence[Example], made: Any, prompts: Any, length: int | None) -> dict[str, Any]:
    """Returns examples as ids: prompt, answer and the token that ends it; only the last two are targets.

    Args:
        examples: Prompts and answers.
        made: The tokenizer.
        prompts: Makes ids of prompts, as they are when the model is asked.
        length: The most ids of an example.

    Returns:
        `dataset`: `inputs` and `targets`, both of shape (n, longest), int64. Targets are not moved: for the loss
        `next-token`.

    Raises:
        ConfigError: If an example is longer, or a chat template refuses it.
    """
    rows, faults = [], []
    for number, (prompt, answer) in enumerate(examples, 1):
        try:
            rows.append(_row(prompt, answer, made, prompts))
        except ValueError as error:
            faults.append(f"example {number}: {error}")
            continue
        size = len(rows[-1][0])
        if length is not None and size > length:
            faults.append(f"example {number}: it has {size} ids, more than the length of {length}")
    if faults:
        raise ConfigError("some examples cannot be learned from", faults[:LISTED])
    longest = max(len(ids) for ids, _ in rows)
    fill = made.pad_token_id if made.pad_token_id is not None else made.eos_token_id or 0
    ids, targets = (np.full((len(rows), longest), value, np.int64) for value in (fill, IGNORED))
    for k, (row, start) in enumerate(rows):
        ids[k, : len(row)] = row
        targets[k, start : len(row)] = row[start:]
    return {"dataset": {"inputs": ids, "targets": targets}}


def _row(prompt: Conversation, answer: str, made: Any, prompts: Prompts) -> tuple[list[int], int]:
    """Returns the ids of an example, and where its answer begins."""
    before = prompts.ids(prompt)
    said: list[int] = made(answer, add_special_tokens=False, verbose=False)["input_ids"]
    end = [] if made.eos_token_id is None else [int(made.eos_token_id)]
    return [*before, *said, *end], len(before)
