"""Merged models as the library that made the models sees them: they load, and answer as a model merged by hand does."""

import json
import warnings

import numpy as np
import pytest
import torch

from .folders import merged, put, recipe, run_cli
from .tokenizers_by_hand import write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

COMMON = {"bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, **COMMON,
}  # fmt: skip
KINDS = {
    "LlamaForCausalLM": ("LlamaConfig", LLAMA | {"tie_word_embeddings": False}),
    "tied": ("LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
    "GPT2LMHeadModel": ("GPT2Config", {
        "vocab_size": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32, **COMMON,
    }),
    "MixtralForCausalLM": ("MixtralConfig", LLAMA | {"num_local_experts": 2, "num_experts_per_tok": 2}),
    "BertForMaskedLM": ("BertConfig", {
        "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="the library that loads merged models")


def make(library, kind, seed, folder=None, **changes):
    """Makes a model with random weights; writes it if a folder is given."""
    config, settings = KINDS[kind]
    torch.manual_seed(seed)
    name = "LlamaForCausalLM" if kind == "tied" else kind
    model = getattr(library, name)(getattr(library, config)(**{**settings, **changes})).eval()
    if folder is not None:
        model.save_pretrained(folder)
    return model


def load(library, kind, folder):
    name = "LlamaForCausalLM" if kind == "tied" else kind
    model, report = getattr(library, name).from_pretrained(folder, output_loading_info=True)
    assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


IDS = torch.arange(12).reshape(2, 6)


def answer(model):
    with torch.no_grad():
        return model(IDS).logits.float().numpy()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_size", ["5GB", "1KB"])
def test_a_merged_model_loads_and_answers_as_one_merged_by_hand(library, tmp_path, kind, shard_size):
    models = [make(library, kind, seed, tmp_path / name) for seed, name in enumerate("abc")]
    content = recipe("task_arithmetic", "ab", weights=[0.5, -0.25], base_model="c")
    merged(tmp_path, content, shard_size=shard_size)
    a, b, base = (model.state_dict() for model in models)
    by_hand = make(library, kind, 9)
    by_hand.load_state_dict({
        name: base[name] + 0.5 * (a[name] - base[name]) - 0.25 * (b[name] - base[name])
        if base[name].is_floating_point()
        else base[name]
        for name in base
    })  # fmt: skip
    found = answer(load(library, kind, tmp_path / "out"))
    np.testing.assert_allclose(found, answer(by_hand), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, answer(models[2]), atol=1e-3)


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM"])
def test_stacked_layers_load_and_answer_as_layers_stacked_by_hand(library, tmp_path, kind):
    models = [make(library, kind, seed, tmp_path / name) for seed, name in enumerate("ab")]
    slices = [{"sources": [{"model": name, "layer_range": span}]} for name, span in (("a", [0, 2]), ("b", [1, 2]))]
    code, _, errors = run_cli("merge", put(tmp_path, {"merge_method": "passthrough", "slices": slices}), "out")
    assert (code, errors) == (0, "")
    found = load(library, kind, tmp_path / "out")
    layers = "n_layer" if kind == "GPT2LMHeadModel" else "num_hidden_layers"
    assert getattr(found.config, layers) == 3
    by_hand = make(library, kind, 9, **{layers: 3})
    a, b = (model.state_dict() for model in models)
    path = "transformer.h" if kind == "GPT2LMHeadModel" else "model.layers"
    state = {
        name: a[name] if f"{path}." in name or "embed" in name or "wte" in name or "wpe" in name else b[name]
        for name in a
    }
    state |= {name.replace(f"{path}.1.", f"{path}.2."): b[name] for name in b if f"{path}.1." in name}
    if kind == "GPT2LMHeadModel":
        state["lm_head.weight"] = state["transformer.wte.weight"]
    by_hand.load_state_dict(state)
    np.testing.assert_allclose(answer(found), answer(by_hand), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_library_loads_the_type_that_was_asked_for(library, tmp_path, dtype):
    for seed, name in enumerate("ab"):
        make(library, "LlamaForCausalLM", seed, tmp_path / name)
    merged(tmp_path, recipe(dtype=dtype))
    model = library.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == getattr(torch, dtype)


def test_a_union_of_tokenizers_loads_and_matches_the_embedding(library, tmp_path):
    words = {"a": ["<unk>", "<s>", "</s>", "x", "y"], "b": ["<unk>", "<s>", "</s>", "z", "x"]}
    for seed, (name, tokens) in enumerate(words.items()):
        write_tokenizer(tmp_path / name, tokens)
        make(library, "LlamaForCausalLM", seed, tmp_path / name, vocab_size=len(tokens))
    merged(tmp_path, recipe(tokenizer={"source": "union"}))
    tokenizer = library.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = load(library, "LlamaForCausalLM", tmp_path / "out")
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 6
    rows = {}
    for name in words:
        source = load(library, "LlamaForCausalLM", tmp_path / name)
        rows[name] = source.get_input_embeddings().weight.detach()
    found = model.get_input_embeddings().weight.detach()
    number = tokenizer.convert_tokens_to_ids
    torch.testing.assert_close(found[number("x")], (rows["a"][3] + rows["b"][4]) / 2)
    assert tokenizer("x z", add_special_tokens=False)["input_ids"] == [number("x"), number("z")]


def test_a_model_saved_as_bin_merges_to_the_same_as_safetensors(library, tmp_path):
    for seed, name in enumerate("ab"):
        model = make(library, "GPT2LMHeadModel", seed, tmp_path / name)
        (tmp_path / f"{name}-bin").mkdir()
        (tmp_path / f"{name}-bin" / "config.json").write_bytes((tmp_path / name / "config.json").read_bytes())
        torch.save(model.state_dict(), tmp_path / f"{name}-bin" / "pytorch_model.bin")
    merged(tmp_path, recipe())
    merged(tmp_path, recipe(names=["a-bin", "b-bin"]), "out-bin")
    one, two = (load(library, "GPT2LMHeadModel", tmp_path / name) for name in ("out", "out-bin"))
    np.testing.assert_array_equal(answer(one), answer(two))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"


def test_an_adapter_of_peft_is_applied_as_peft_applies_it(library, tmp_path):
    peft = pytest.importorskip("peft", reason="the library that makes adapters")
    base = make(library, "LlamaForCausalLM", 0, tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    tuned = peft.get_peft_model(base, config)
    tuned.save_pretrained(tmp_path / "lora")
    expected = answer(tuned.merge_and_unload())
    merged(tmp_path, recipe("passthrough", ["base+lora"], weights=[]))
    np.testing.assert_allclose(
        answer(load(library, "LlamaForCausalLM", tmp_path / "out")), expected, rtol=1e-4, atol=1e-5
    )
