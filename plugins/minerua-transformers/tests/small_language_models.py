"""Tiny random language models of several kinds, with a tokenizer of words, in Hugging Face's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from minerua_transformers import family
from minerua_transformers.loading import quiet
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from minerua.values import Change, RunContext
from minerua.weights import open_checkpoint

WORDS = ("<s>", "</s>", "<unk>", "other", *(f"w{k}" for k in range(40)), ".", "User:", "System:", "Assistant:", "stop")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
TEMPLATE = "{% for m in messages %}{{ m.role.title() }}: {{ m.content }} {% endfor %}Assistant:"


def llama(**more):
    return transformers.LlamaConfig(**SIZES, **ENDS, num_key_value_heads=2, max_position_embeddings=64, **more)


def qwen2(**more):
    settings = {"tie_word_embeddings": True, "max_position_embeddings": 64, **more}
    return transformers.Qwen2Config(**SIZES, **ENDS, num_key_value_heads=2, **settings)


def gpt2(**more):
    return transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ENDS, **more)


KINDS = {"llama": llama, "qwen2": qwen2, "gpt2": gpt2}


def save_tokenizer(folder, *, template=None):
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.normalizer = normalizers.Replace("\n", " ")
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def random_model(config, *, seed=0, scale=0.3):
    """Returns a model whose answers vary: small random weights, norms and biases that are not the usual ones."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * (0.1 if is_norm else scale) + (1.0 if is_norm else 0.0))
    return model.eval()


def save_model(model, folder, *, dtype=torch.float32, template=None, **more):
    with quiet():
        model.to(dtype).save_pretrained(folder, **more)
    save_tokenizer(folder, template=template)
    return Path(folder)


def random_changes(tensors, count, *, seed=0, rank=3, scale=0.05, dense=False):
    """Returns changes of every tensor in `count` children, which share their bases."""
    numbers = np.random.default_rng(seed)
    children = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and not dense:
            left, right = (np.linalg.qr(numbers.standard_normal((n, rank)))[0].astype("f4") for n in tensor.shape)
            for child in children:
                core = numbers.standard_normal((rank, rank)).astype("f4") * scale * 20
                child[name] = Change(core, left, right)
        else:
            for child in children:
                child[name] = Change(numbers.standard_normal(tensor.shape).astype("f4") * scale)
    return children


def prompts(count, *, seed=0, longest=9):
    numbers = np.random.default_rng(seed)
    return [" ".join(f"w{k}" for k in numbers.integers(0, 40, numbers.integers(1, longest))) for _ in range(count)]


def tensors_of(folder):
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.specs}


def spec_of(folder, **settings):
    return family.configure({"max_new_tokens": 12, **settings}, RunContext(folder.parent, folder))
