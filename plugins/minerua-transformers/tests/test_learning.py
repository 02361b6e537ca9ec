"""What is learned from and with: the module, the loss, prompts with answers, and the skills around them."""

from __future__ import annotations

import json

import pytest
import torch
from minerua_transformers import minerua_losses, minerua_models, minerua_skills
from small_language_models import TEMPLATE, WORDS, prompts, save_tokenizer, spec_of, tensors_of

from minerua.errors import ConfigError
from minerua.learning import LearningPipeline, TrainingConfig
from minerua.learning.losses import cross_entropy
from minerua.learning.optimizers import optimizers
from minerua.values import Setup, SkillContext
from minerua.weights import open_checkpoint

SKILLS = {skill.name: skill for skill in minerua_skills()}
(LOSS,) = minerua_losses()
(FAMILY,) = minerua_models()


def made(name, folder, **settings):
    return SKILLS[name].configure(settings, SkillContext(folder))


def refused(name, folder, **settings):
    with pytest.raises(ConfigError, match=f"the settings of the skill '{name}' cannot be used") as error:
        made(name, folder, **settings)
    return "\n".join(error.value.faults)


# ── the module and its loss ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_the_module_has_the_names_of_the_file_and_returns_logits(folders, kind):
    checkpoint = open_checkpoint(folders[kind])
    module = FAMILY.module(path=str(folders[kind]), gradient_checkpointing=True)
    state = module.state_dict()
    assert state.keys() == checkpoint.specs.keys()
    assert {name: tuple(t.shape) for name, t in state.items()} == {n: s.shape for n, s in checkpoint.specs.items()}
    module.load_state_dict({name: torch.tensor(checkpoint.tensor(name)) for name in state})
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    model = spec_of(folders[kind]).build(tensors_of(folders[kind]))
    wanted = model.desk.resident.loaded.module(ids).logits
    module.eval()
    torch.testing.assert_close(module(ids), wanted)
    masked = module({"ids": ids, "mask": torch.tensor([[1, 1, 1], [1, 1, 0]])})
    torch.testing.assert_close(masked[1, :2], wanted[1, :2])
    module.train()
    module(ids).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_settings_of_the_module_are_checked():
    with pytest.raises(ConfigError, match="the settings of the module of the model 'causal-lm'") as error:
        FAMILY.module(pth="x", gradient_checkpointing=1)
    said = "\n".join(error.value.faults)
    assert "path is missing; expected a folder with the base's config.json" in said
    assert "gradient_checkpointing is 1; expected true or false" in said


def test_the_loss_moves_targets_by_one_and_counts_what_is_learned():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    targets[0, 2:4] = -100
    wanted = cross_entropy(logits[:, :-1], targets[:, 1:], class_axis=-1)
    torch.testing.assert_close(LOSS.call(logits, targets), wanted)
    assert LOSS.count(targets) == 6
    assert LOSS.call(logits, torch.full((2, 5), -100)) == 0
    with pytest.raises(ValueError, match="next-token needs"):
        LOSS.call(logits, targets[:, 1:])


def test_a_language_model_is_learned_from_prompts_with_answers(folders, tmp_path):
    lines = [{"prompt": f"w{k} w{k + 1}", "answer": f"w{k + 2}"} for k in range(24)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = TrainingConfig.read(
        {
            "model": {"name": "causal-lm", "base": str(folders["llama"]), "settings": {"path": str(folders["llama"])}},
            "loss": "next-token",
            "optimizer": {"name": "adamw", "rate": 0.01},
            "epochs": 4,
            "batch_size": 8,
            "data": {
                "skill": "instruction-data",
                "settings": {"file": "answers.jsonl", "tokenizer": str(folders["llama"])},
                "labels": {"kind": "number"},
                "transforms": {"dtype": "int64"},
                "split": {"train": 0.8, "validation": 0.2, "test": 0},
            },
        },
    )
    catalogs = {
        "models": {FAMILY.name: FAMILY},
        "losses": {LOSS.name: LOSS},
        "optimizers": {spec.name: spec for spec in optimizers()},
        "skills": SKILLS,
    }
    learned = LearningPipeline(config, folder=tmp_path, **catalogs).run(tmp_path / "out")
    losses = [report.metrics["loss"] for report in learned.history]
    assert losses[-1] < losses[0]
    tensors = tensors_of(learned.model)
    assert tensors.keys() == tensors_of(folders["llama"]).keys()
    assert spec_of(folders["llama"]).build(tensors)(["w1 w2"]) is not None


# ── prompts with answers ─────────────────────────────────────────────────────────────────────────────────────────────


def test_only_answers_are_targets_and_rows_are_filled_up(tmp_path):
    save_tokenizer(tmp_path / "t", template=TEMPLATE)
    said = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]
    lines = [{"prompt": "w4 w5", "answer": "w6"}, {"messages": said}]
    (tmp_path / "a.jsonl").write_text("\n".join([*map(json.dumps, lines), ""]))
    found = made("instruction-data", tmp_path, file="a.jsonl", tokenizer="t").call()["dataset"]
    spoken = [[WORDS[k] for k in row] for row in found["inputs"]]
    assert spoken == [
        ["w4", "w5", "w6", "</s>", "</s>", "</s>"],
        ["User:", "w1", "Assistant:", "w2", "w3", "</s>"],
    ]
    end = WORDS.index("</s>")
    assert found["targets"].tolist() == [
        [-100, -100, WORDS.index("w6"), end, -100, -100],
        [-100, -100, -100, WORDS.index("w2"), WORDS.index("w3"), end],
    ]
    with pytest.raises(ConfigError, match="some examples cannot be learned from") as error:
        made("instruction-data", tmp_path, file="a.jsonl", tokenizer="t", length=5).call()
    assert error.value.faults == ("example 2: it has 6 ids, more than the length of 5",)


def test_lines_that_are_no_examples_are_told_with_their_numbers(tmp_path):
    save_tokenizer(tmp_path / "t")
    bad = ["7", '{"prompt": "w1"}', '{"messages": [{"role": "user", "content": "w1"}]}', "{"]
    (tmp_path / "a.jsonl").write_text("\n".join(bad))
    said = refused("instruction-data", tmp_path, file="a.jsonl", tokenizer="t")
    assert "line 1: expected an object with prompt and answer, or messages; found 7" in said
    assert "line 2: answer must be a text; found None" in said
    assert "line 3: the last of two or more messages must be the assistant's" in said
    assert "line 4: " in said
    (tmp_path / "a.jsonl").write_text("\n")
    assert "a.jsonl holds no example" in refused("instruction-data", tmp_path, file="a.jsonl", tokenizer="t")
    (tmp_path / "a.jsonl").write_bytes(b"\xff")
    assert "a.jsonl cannot be read: 'utf-8'" in refused("instruction-data", tmp_path, file="a.jsonl", tokenizer="t")
    (tmp_path / "a.jsonl").write_text("7\n" * 60)
    assert "and 10 lines more" in refused("instruction-data", tmp_path, file="a.jsonl", tokenizer="t")
    said = refused("instruction-data", tmp_path)
    assert "file is missing; expected a JSONL file" in said
    assert "tokenizer is missing; expected a folder, or a name of the hub" in said


# ── the skills ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tokenizer_makes_ids_and_ends_them(tmp_path):
    save_tokenizer(tmp_path / "t")
    one, three = WORDS.index("w1"), WORDS.index("w3")
    assert made("hf-tokenizer", tmp_path, path="t").call(text="w1 w3") == {"ids": [one, three, 1]}
    assert made("hf-tokenizer", tmp_path, path="t", end=False).call(text="w1 w3") == {"ids": [one, three]}
    assert "path is missing; expected a folder with a tokenizer" in refused("hf-tokenizer", tmp_path)
    settings = tmp_path / "t" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": None}))
    assert "end: the tokenizer has no token that ends a text" in refused("hf-tokenizer", tmp_path, path="t")


def test_a_language_model_answers_a_prompt_in_a_chain(folders):
    base = folders["llama"]
    skill = made("language-model", base.parent, base="llama", max_new_tokens=5)
    answer = skill.load(Setup())
    (wanted,) = spec_of(base, max_new_tokens=5).build(tensors_of(base))(prompts(1))
    assert answer(prompt=prompts(1)[0]) == {"answer": wanted}
    same = made("language-model", base.parent, base="llama", checkpoint="llama/model.safetensors", max_new_tokens=5)
    assert same.version == skill.version
    with pytest.raises(ValueError, match="the prompt is too long: its tokens leave no room for an answer within 64"):
        answer(prompt="w1 " * 64)


def test_settings_that_name_no_weights_are_refused(folders, tmp_path):
    home = folders["llama"].parent
    said = refused("language-model", home, checkpoint="llama", run="llama")
    assert "or a base alone, is needed; found checkpoint and run" in said
    assert "base is missing; a LoRA adapter changes" in refused("language-model", home, adapter="llama", path="llama")
    assert "nowhere does not exist" in refused("language-model", home, base="nowhere")
    assert "nothing can be there: " in refused("language-model", home, base="a" * 5000)
    assert "best.safetensors" in refused("language-model", home, run="llama", base="llama")
