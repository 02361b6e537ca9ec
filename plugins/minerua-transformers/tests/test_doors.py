"""What is refused, in which words, and how conversations become ids."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from minerua_transformers.answers import memory_told
from minerua_transformers.family import configure
from minerua_transformers.folders import describe
from minerua_transformers.grouping import Grouping
from minerua_transformers.prompts import Prompts
from minerua_transformers.settings import SETTINGS, Settings, read_settings
from minerua_transformers.ways import as_rows
from small_language_models import ENDS, TEMPLATE, WORDS, random_changes, save_tokenizer, spec_of, tensors_of

from minerua.errors import CheckpointError, ConfigError
from minerua.settings import Settings as Told
from minerua.values import RunContext


def faults_of(settings, context):
    with pytest.raises(ConfigError, match="the settings of the model 'causal-lm' cannot be used") as error:
        configure(settings, context)
    return "\n".join(error.value.faults)


def test_importing_the_plugin_imports_neither_torch_nor_transformers():
    script = (
        "import sys, minerua_transformers as m; m.minerua_models(), m.minerua_skills(), m.minerua_losses();"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_all_faults_of_the_settings_are_told_at_once(folders, tmp_path):
    settings = {
        "max_new_token": 3, "batch_size": 0, "device": "gpu", "dtype": "int8", "chat": "always", "temperature": -1,
        "top_p": 2, "stop": "x", "system": 7, "context": True,
    }  # fmt: skip
    said = faults_of(settings, RunContext(tmp_path, folders["llama"]))
    assert "no setting is named 'max_new_token'; did you mean 'max_new_tokens'" in said
    assert "batch_size is 0; expected a whole number from 1 on" in said
    assert "device is 'gpu'; expected auto, cpu, or a device as torch names it" in said
    assert "dtype is 'int8'; expected one of auto, float32" in said
    assert "temperature is -1; expected a number from 0 on" in said
    assert "top_p is 2; expected a number from 1e-06 to 1" in said
    assert "stop is 'x'; expected a list of texts" in said
    assert "system is 7; expected a text" in said
    assert "context is True" in said
    assert len(said.splitlines()) == 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_this_machine_lacks_is_refused(folders, tmp_path):
    said = faults_of({"device": "cuda"}, RunContext(tmp_path, folders["llama"]))
    assert "device 'cuda' cannot be had on this machine" in said
    assert "device 'meta' holds no numbers" in faults_of({"device": "meta"}, RunContext(tmp_path, folders["llama"]))


def test_folders_that_describe_no_language_model_are_refused(folders, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    said = faults_of({}, RunContext(tmp_path, empty))
    assert "has no config.json: copy the one of the base" in said
    assert "has no tokenizer (none of tokenizer.json" in said
    assert "there is no base to take configuration and tokenizer from" in faults_of({}, RunContext(tmp_path))
    with pytest.raises(ConfigError, match="no language model is described where one was looked for"):
        describe(None, None, base=None, folder=tmp_path)
    said = faults_of({"path": "nowhere", "tokenizer": "no/where/at/all"}, RunContext(tmp_path))
    assert "path: " in said
    assert "is no name of the hub (org/name)" in said

    def offline(*args, **kwargs):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    said = faults_of({"path": "org/name"}, RunContext(tmp_path))
    assert "'org/name' is no folder here, nor in the local cache of the hub," in said
    assert "and the hub could not be asked for it: ConnectionError: no route" in said


def test_configurations_and_tokenizers_that_cannot_be_used_are_refused(folders, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folders["llama"], broken)
    (broken / "config.json").write_text("{")
    (broken / "tokenizer.json").write_text("{}")
    said = faults_of({}, RunContext(tmp_path, broken))
    assert "config.json cannot be used: " in said
    assert "the tokenizer in " in said
    assert " cannot be read: " in said
    (broken / "config.json").write_text(json.dumps({"model_type": "vit"}))
    said = faults_of({}, RunContext(tmp_path, broken / "model.safetensors"))
    assert "describes 'vit', which is no causal language model" in said


def test_a_template_that_is_asked_for_must_be_there(folders, tmp_path):
    said = faults_of({"chat": "template"}, RunContext(tmp_path, folders["llama"]))
    assert "chat is 'template', and the tokenizer has no chat template" in said


def test_tensors_of_another_model_are_refused_by_name(folders):
    tensors = dict(tensors_of(folders["llama"]))
    del tensors["model.norm.weight"]
    tensors |= {"more": np.zeros(2, "f4"), "lm_head.weight": np.zeros((3, 32), "f4")}
    with pytest.raises(CheckpointError, match="these tensors are not those of a llama") as error:
        spec_of(folders["llama"]).build(tensors)
    assert "model.norm.weight: the model needs it, and it is missing" in error.value.faults
    assert "more: the model has no place for it" in error.value.faults
    assert any("lm_head.weight: its shape is [3, 32], the model's" in fault for fault in error.value.faults)


def test_what_transformers_itself_says_of_tensors_is_passed_on(folders, monkeypatch):
    def from_pretrained(*args, **kwargs):
        raise RuntimeError("two tensors cannot be joined")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(CheckpointError, match="the tensors do not fit a llama of this configuration: two tensors"):
        spec_of(folders["llama"]).build(tensors_of(folders["llama"]))


def test_a_model_without_a_cache_is_refused(tmp_path):
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **ENDS)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="mamba keeps no cache of keys and values"):
        spec_of(tmp_path).build(tensors_of(tmp_path))


def test_memory_that_runs_out_names_the_batch():
    said = "memory ran out with 7 rows in a batch; set batch_size below"
    with pytest.raises(ConfigError, match=said), memory_told(7):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ConfigError, match="memory ran out with 7"), memory_told(7):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")
    with pytest.raises(RuntimeError, match="something else"), memory_told(7):
        raise RuntimeError("something else")


def test_rows_that_a_model_mixes_up_are_not_parted():
    grouping = Grouping([0, 1, 1], torch.device("cpu"))
    assert as_rows(torch.zeros(6, 4), grouping).shape == (3, 2, 4)
    with pytest.raises(ValueError, match="cannot be parted into 3 rows"):
        as_rows(torch.zeros(4, 4), grouping)


def test_a_layer_is_not_computed_for_rows_that_nobody_named(folders):
    tensors = tensors_of(folders["llama"])
    (model, _) = spec_of(folders["llama"]).open(tensors)(random_changes(tensors, 2))
    resident = model.desk.resident
    with resident.beside(), pytest.raises(RuntimeError, match="nobody has said which children the rows"):
        resident.loaded.module(torch.zeros(1, 2, dtype=torch.int64))


def test_the_version_changes_with_what_answers_depend_on_alone(folders):
    folder = folders["llama"]
    versions = {spec_of(folder, **more).version for more in ({}, {"batch_size": 3}, {"device": "cpu"})}
    assert len(versions) == 1
    others = [{"max_new_tokens": 3}, {"stop": ["x"]}, {"temperature": 1}, {"system": "x"}, {"seed": 1}]
    assert len({spec_of(folder, **more).version for more in others} | versions) == 6
    assert spec_of(folders["qwen2"]).version not in versions


def test_the_readme_has_every_setting(request):
    text = (request.path.parent.parent / "README.md").read_text("utf-8")
    assert [name for name in SETTINGS if f"`{name}`" not in text] == []
    assert read_settings(Told("the model 'causal-lm'", {}, request.path.parent)) == Settings()


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tokenizers(tmp_path):
    save_tokenizer(tmp_path / "plain")
    save_tokenizer(tmp_path / "chat", template=TEMPLATE)
    return {name: transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / name) for name in ("plain", "chat")}


@pytest.mark.parametrize(
    ("tokenizer", "settings", "conversation", "text"),
    [
        ("plain", {}, "w1 w2", "w1 w2"),
        ("plain", {"system": "w9"}, "w1", "w9 w1"),
        ("plain", {}, [{"role": "user", "content": "w1"}], "User: w1 Assistant:"),
        ("chat", {}, "w1", "w1"),
        ("chat", {"chat": "template", "system": "w9"}, "w1", "System: w9 User: w1 Assistant:"),
        ("chat", {}, [{"role": "user", "content": "w1"}], "User: w1 Assistant:"),
        ("chat", {"chat": "plain"}, [{"role": "system", "content": "w1"}], "System: w1 Assistant:"),
    ],
)
def test_a_conversation_becomes_the_text_that_its_settings_say(tokenizers, tokenizer, settings, conversation, text):
    made = tokenizers[tokenizer]
    assert Prompts(made, Settings(**settings)).ids(conversation) == made(text)["input_ids"]


def test_a_conversation_that_is_none_is_refused(tokenizers, folders):
    prompts = Prompts(tokenizers["plain"], Settings())
    for wrong in (7, [], b"w1"):
        with pytest.raises(ValueError, match="a conversation is a text or a list of messages"):
            prompts.ids(wrong)
    with pytest.raises(ValueError, match="a message has a role of system, user, assistant and a text as content"):
        prompts.ids([{"role": "tool", "content": "x"}])
    model = spec_of(folders["llama"]).build(tensors_of(folders["llama"]))
    with pytest.raises(TypeError, match="conversations are a sequence of texts"):
        model("w1")


def test_a_template_that_refuses_a_conversation_says_so(tokenizers):
    tokenizers["chat"].chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(ValueError, match=r"the chat template takes no conversation of user: no system here"):
        Prompts(tokenizers["chat"], Settings()).ids([{"role": "user", "content": "w1"}])


def test_a_tokenizer_of_its_own_may_stand_beside_a_configuration(folders, tmp_path):
    save_tokenizer(tmp_path / "other", template=TEMPLATE)
    found = describe(None, "other", base=folders["qwen2"], folder=tmp_path)
    assert found.tokenizer.chat_template == TEMPLATE
    assert found.config.model_type == "qwen2"
    assert found.tokenizer("w1 w2")["input_ids"] == [WORDS.index("w1"), WORDS.index("w2")]
