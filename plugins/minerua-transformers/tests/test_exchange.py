"""Experts come in, children go out: full fine-tunes in shards and adapters, read back by transformers and PEFT."""

from __future__ import annotations

import shutil

import numpy as np
import peft
import pytest
import torch
import transformers
from minerua_transformers.loading import quiet
from small_language_models import KINDS, prompts, random_model, save_model, spec_of, tensors_of

from minerua.errors import CheckpointError
from minerua.weights import Subspace, materialise, open_checkpoint, open_expert, save_adapter, save_child

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's

LINEAR = ["q_proj", "v_proj", "down_proj"]


def logits_of(model, prompt=(5, 6, 7, 8)):
    with torch.no_grad():
        return model.eval()(torch.tensor([prompt])).logits


def load_folder(folder):
    with quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def family(request, tmp_path_factory):
    """A base in shards, a full fine-tune of it and two adapters made by PEFT."""
    home = tmp_path_factory.mktemp(request.param)
    base = random_model(KINDS[request.param]())
    save_model(base, home / "base", max_shard_size="20KB")
    tuned = random_model(KINDS[request.param]())
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_model(tuned, home / "full", max_shard_size="30KB")
    for k in range(2):
        torch.manual_seed(k)
        config = peft.LoraConfig(
            r=2 + k, lora_alpha=4, target_modules=LINEAR, task_type="CAUSAL_LM", init_lora_weights=False
        )
        peft.get_peft_model(load_folder(home / "base"), config).save_pretrained(home / f"adapter-{k}")
    return home


def space(home, *names):
    base = open_checkpoint(home / "base")
    return Subspace(base, {name: open_expert(name, home / name, base).task_vector for name in names})


def mixed(subspace):
    founders = list(subspace.founders.values())
    return subspace.combine(founders, np.linspace(0.4, 0.8, len(founders))[None])


def test_a_base_in_shards_is_opened_whole(family):
    assert len(list((family / "base").glob("*.safetensors"))) > 2
    model = spec_of(family / "base").build(tensors_of(family / "base"))
    torch.testing.assert_close(logits_of(model.desk.resident.loaded.module), logits_of(load_folder(family / "base")))


@pytest.mark.parametrize("names", [("full", "adapter-0"), ("adapter-0", "adapter-1")], ids=["full", "adapters"])
def test_a_written_child_loads_with_transformers_and_answers_as_it_did_here(family, names, tmp_path):
    subspace = space(family, *names)
    genome = mixed(subspace)
    save_child(tmp_path / "model.safetensors", subspace, genome)
    for path in family.joinpath("base").glob("*.json"):
        if not path.name.endswith(".index.json"):
            shutil.copy(path, tmp_path)
    theirs = load_folder(tmp_path)
    ours = spec_of(tmp_path).build(materialise(subspace, genome).tensors)
    torch.testing.assert_close(logits_of(theirs), logits_of(ours.desk.resident.loaded.module), rtol=0, atol=1e-4)
    assert spec_of(tmp_path).build(tensors_of(tmp_path))(prompts(3)) == ours(prompts(3))


def test_a_written_adapter_loads_with_peft_and_gives_the_same_logits(family, tmp_path):
    subspace = space(family, "adapter-0", "adapter-1")
    genome = mixed(subspace)
    assert save_adapter(tmp_path / "child", subspace, genome) == 0.0
    theirs = peft.PeftModel.from_pretrained(load_folder(family / "base"), tmp_path / "child")
    ours = spec_of(family / "base").build(materialise(subspace, genome).tensors)
    torch.testing.assert_close(logits_of(theirs), logits_of(ours.desk.resident.loaded.module), rtol=0, atol=1e-4)


def tuned(base, folder, changed):
    """Writes a full fine-tune of a base, in which what `changed` names is another."""
    model = load_folder(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if changed(name):
                parameter.add_(0.01 * torch.randn_like(parameter))
    return save_model(model, folder)


def test_a_child_whose_layers_lie_transposed_loads_with_peft_and_gives_the_same_logits(tmp_path):
    save_model(random_model(KINDS["gpt2"]()), tmp_path / "base")
    tuned(tmp_path / "base", tmp_path / "full", lambda name: "c_" in name and name.endswith(".weight"))
    subspace = space(tmp_path, "full")
    assert save_adapter(tmp_path / "child", subspace, subspace.founders["full"]) == 0.0
    theirs = peft.PeftModel.from_pretrained(load_folder(tmp_path / "base"), tmp_path / "child")
    torch.testing.assert_close(logits_of(theirs), logits_of(load_folder(tmp_path / "full")), rtol=0, atol=1e-4)
    assert not torch.allclose(logits_of(theirs), logits_of(load_folder(tmp_path / "base")), atol=1e-3)


def test_changed_embeddings_are_refused_as_an_adapter_which_peft_could_not_load(family, tmp_path):
    tuned(family / "base", tmp_path / "full", lambda name: "embed" in name)
    base = open_checkpoint(family / "base")
    subspace = Subspace(base, {"full": open_expert("full", tmp_path / "full", base).task_vector})
    with pytest.raises(
        CheckpointError, match=r"embed_tokens\.weight: LoRA adapters hold changes of linear layers only"
    ):
        save_adapter(tmp_path / "child", subspace, subspace.founders["full"])


def test_an_adapter_made_by_peft_is_the_expert_that_peft_answers_with(family):
    subspace = space(family, "adapter-0")
    ours = spec_of(family / "base").build(materialise(subspace, subspace.founders["adapter-0"]).tensors)
    theirs = peft.PeftModel.from_pretrained(load_folder(family / "base"), family / "adapter-0")
    torch.testing.assert_close(logits_of(theirs), logits_of(ours.desk.resident.loaded.module), rtol=0, atol=1e-4)


# ── activations ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_activations_are_the_inputs_of_every_linear_layer_without_fillings(folders):
    folder = folders["llama"]
    spec = spec_of(folder, batch_size=2)
    model = spec.build(tensors_of(folder))
    asked = ["w1 w2 w3", "w4", "w5 w6"]
    seen = spec.activations(model, asked)
    first = [f"model.layers.0.self_attn.{side}_proj.weight" for side in "qkv"]
    assert list(seen)[:3] == first
    assert list(seen)[-1] == "lm_head.weight"
    assert len(seen) == 2 * 7 + 1
    assert all(np.array_equal(seen[first[0]], seen[name]) for name in first)
    assert {array.shape[0] for array in seen.values()} == {6}
    assert all(array.dtype == np.float32 for array in seen.values())
    alone = [spec.activations(model, [prompt]) for prompt in asked]
    for name, array in seen.items():
        apart = np.concatenate([alone[k][name] for k in (0, 2, 1)])  # the longest first
        np.testing.assert_allclose(array, apart, atol=1e-5)


def test_activations_leave_out_shared_output_layers_and_weights_that_lie_the_other_way_round(folders):
    for kind, count in (("qwen2", 14), ("gpt2", 0)):
        spec = spec_of(folders[kind])
        seen = spec.activations(spec.build(tensors_of(folders[kind])), ["w1 w2"])
        assert len(seen) == count


def test_layer_matching_takes_these_activations(folders):
    from minerua.merge.methods.layer_match import match_layers
    from minerua.values import MergeInputs

    spec, base = spec_of(folders["llama"]), tensors_of(folders["llama"])
    numbers = np.random.default_rng(0)
    experts = [{n: a + numbers.standard_normal(a.shape).astype("f4") * 0.01 for n, a in base.items()} for _ in "ab"]
    asked = [prompts(8, seed=k, longest=12) for k in range(2)]

    def activations(tensors, k):
        return spec.activations(spec.build(tensors), asked[k])

    merged = match_layers(MergeInputs(base, experts, activations), [1.0, 1.0])
    assert merged.keys() == base.keys()
    assert all(np.isfinite(change).all() for change in merged.values())
