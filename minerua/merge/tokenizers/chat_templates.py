"""Chat templates: how a conversation becomes one text, in Jinja, as transformers renders it.

The built-in ones are written from the formats' public descriptions, and shorter than their makers' own: roles, contents
and the marks between them; no tools, no default system text.

- `alpaca`: https://github.com/tatsu-lab/stanford_alpaca#data-release
- `chatml`: https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
- `exaone`: https://huggingface.co/LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct
- `llama3`: https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
- `mistral`: https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2; mergekit puts a space before `[INST]`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from minerua.errors import unknown
from minerua.merge.tokenizers.vocabulary import read_template

_ALPACA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' ~ message['content'] | trim ~ '\\n\\n' }}"
    "{% elif message['role'] == 'user_context' %}{{ '### Input:\\n' ~ message['content'] | trim ~ '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\\n' ~ message['content'] | trim ~ eos_token ~ '\\n\\n' }}"
    "{% else %}{{ message['content'] | trim ~ '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_EXAONE = (
    "{% if messages and messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '[|' ~ message['role'] ~ '|]' ~ message['content'] ~ ('' if message['role'] == 'user' else '[|endofturn|]') "
    "~ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)

_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' "
    "~ message['content'] | trim ~ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

_MISTRAL = (
    "{{ bos_token }}{% set state = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set state.system = message['content'] ~ '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' ~ state.system ~ message['content'] ~ ' [/INST]' }}"
    "{% set state.system = '' %}"
    "{% else %}{{ ' ' ~ message['content'] ~ eos_token }}{% endif %}{% endfor %}"
)

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}
)
"""Name → template."""


def choose_template(wanted: str | None, folders: Iterable[Path]) -> tuple[str | None, list[str]]:
    """Finds the chat template that a recipe means.

    Args:
        wanted: `auto` for the one that most models have (of equally common ones, that of the first model); a name in
            `TEMPLATES`; or the template itself, which has a `{`. `None` or an empty text to leave it as it is.
        folders: The models' folders, in the recipe's order.

    Returns:
        The template, `None` to leave what the tokenizer has; and the faults.

    Example:
        >>> choose_template("lama3", [])[1]
        ["chat_template: no template is named 'lama3'; did you mean 'llama3'? Known: alpaca, auto, chatml, exaone, \
llama3, mistral; or write the template itself, in Jinja"]
    """
    if not wanted:
        return None, []
    if wanted == "auto":
        return _most_common(folders)
    if "{" in wanted:
        return wanted, []
    if wanted in TEMPLATES:
        return TEMPLATES[wanted], []
    known = unknown("template", wanted[:100], [*TEMPLATES, "auto"])
    return None, [f"chat_template: {known}; or write the template itself, in Jinja"]


def _most_common(folders: Iterable[Path]) -> tuple[str | None, list[str]]:
    found: Counter[str] = Counter()
    faults: list[str] = []
    for folder in dict.fromkeys(folders):
        template, wrong = read_template(folder)
        faults += wrong
        if template is not None:
            found[template.strip()] += 1
    return (max(found, key=found.__getitem__) if found else None), faults  # the first of equally common ones
