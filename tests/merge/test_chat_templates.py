import doctest
import json
from pathlib import Path

import pytest

from minerua.errors import CheckpointError, ConfigError
from minerua.merge.recipes.ingredients import TokenizerRecipe
from minerua.merge.tokenizers import chat_templates
from minerua.merge.tokenizers.chat_templates import TEMPLATES, choose_template
from minerua.merge.tokenizers.tokenizer import copy_tokenizer
from minerua.merge.tokenizers.vocabulary import read_template

from .tokenizers_by_hand import (
    load_tokenizer,
    plan_of,
    put,
    saved,
    three_models,
)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return three_models(tmp_path)


TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "alpaca": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be kind.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
}


@pytest.mark.parametrize(("name", "rendered"), RENDERED.items())
def test_a_built_in_template_renders_the_published_format(
    name: str, rendered: str, three: list[Path], tmp_path: Path
) -> None:
    put(
        three[0],
        "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    )
    plan = plan_of(three[:1], TokenizerRecipe("base"), chat_template=name, heights=[7])
    loaded = load_tokenizer(saved(plan, tmp_path / "out"))
    assert loaded.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == rendered


def test_every_built_in_template_is_rendered() -> None:
    assert RENDERED.keys() == TEMPLATES.keys()


def test_mistral_gives_the_system_text_to_the_question_that_follows() -> None:
    assert "{{ '[INST] ' ~ state.system ~ message['content'] ~ ' [/INST]' }}" in TEMPLATES["mistral"]


def test_exaone_puts_an_empty_system_text_before_a_user(three: list[Path], tmp_path: Path) -> None:
    loaded = load_tokenizer(saved(plan_of(three, TokenizerRecipe("base"), chat_template="exaone"), tmp_path / "out"))
    assert loaded.apply_chat_template(TALK[1:2], tokenize=False) == "[|system|][|endofturn|]\n[|user|]Hi\n"


def test_a_set_template_replaces_every_other_one(three: list[Path]) -> None:
    put(three[0], "tokenizer_config.json", {"chat_template": "{{ old }}"})
    put(three[0], "chat_template.json", {"chat_template": "{{ old }}"})
    (three[0] / "chat_template.jinja").write_text("{{ old }}")
    (three[0] / "additional_chat_templates").mkdir()
    (three[0] / "additional_chat_templates" / "rag.jinja").write_text("{{ old }}")
    for recipe in ("base", "union"):
        files = plan_of(three, TokenizerRecipe(recipe), chat_template="{{ new }}").files  # type: ignore[arg-type]
        assert files["chat_template.jinja"] == b"{{ new }}"
        assert json.loads(files["tokenizer_config.json"])["chat_template"] == "{{ new }}"
        assert not any(b"old" in content for content in files.values())


def test_auto_takes_the_template_that_most_models_have(three: list[Path]) -> None:
    (three[0] / "chat_template.jinja").write_text("{{ rare }}")
    put(three[1], "tokenizer_config.json", {"chat_template": [{"name": "default", "template": "{{ usual }}\n"}]})
    put(three[2], "tokenizer_config.json", {"chat_template": "{{ usual }}"})
    assert choose_template("auto", three) == ("{{ usual }}", [])
    assert choose_template("auto", three[:2]) == ("{{ rare }}", [])
    assert choose_template("auto", []) == (None, [])
    assert choose_template("", three) == choose_template(None, three) == (None, [])


def test_a_template_that_nobody_knows_is_refused_with_the_nearest(three: list[Path]) -> None:
    with pytest.raises(ConfigError, match="the chat template cannot be set") as caught:
        plan_of(three, TokenizerRecipe("base"), chat_template="chatmal")
    assert caught.value.faults == (
        "chat_template: no template is named 'chatmal'; did you mean 'chatml'? Known: alpaca, auto, chatml, exaone, "
        "llama3, mistral; or write the template itself, in Jinja",
    )


def test_settings_that_are_no_json_cannot_take_a_template(three: list[Path]) -> None:
    (three[0] / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be written into the tokenizer's settings") as caught:
        copy_tokenizer(three[:1], donor=three[0], chat_template="chatml")
    assert caught.value.faults[0].startswith("tokenizer_config.json is not JSON")


def test_a_template_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ \xff }}")
    _, (fault,) = read_template(tmp_path)
    assert fault == f"{tmp_path}/chat_template.jinja is not a text in UTF-8: byte 3 is 0xff"


def test_the_examples_run() -> None:
    assert doctest.testmod(chat_templates).failed == 0
