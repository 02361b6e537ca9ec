"""LoRA adapters: nothing changes at first, only factors learn, PEFT and our own reader see the same adapter."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from minerua.errors import CheckpointError, LearningError
from minerua.learning.adapters import attach_lora
from minerua.learning.groups import parameter_groups
from minerua.weights import open_adapter, open_checkpoint, open_expert, write_checkpoint


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.v_proj(self.q_proj(x))))


class Network(nn.Module):
    def __init__(self, *, tied=False):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([Block(6), Block(6)])
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


TOKENS = torch.arange(20).reshape(4, 5) % 11


def network(**arguments):
    torch.manual_seed(0)
    return Network(**arguments)


def attach(module, **changes):
    arguments = {"rank": 3, "alpha": 5, "targets": ["q_proj", "v_proj"], "seed": 1, **changes}
    return attach_lora(module, **arguments)


def learned(module, attached, steps=3):
    """Takes a few large steps, so that the factors matter."""
    optimizer = torch.optim.Adam(attached.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(TOKENS).square().mean().backward()
        optimizer.step()
    return attached


# ── attaching and detaching ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_outputs_are_the_same_at_first():
    module = network()
    before = module(TOKENS)
    attach(module, targets="all-linear", dropout=0.5)
    assert torch.equal(module(TOKENS), before)


def test_only_factors_learn():
    module = network()
    attached = attach(module)
    before = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    learned(module, attached)
    names = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert names == {
        f"layers.{i}.{layer}.lora.{side}" for i in (0, 1) for layer in ("q_proj", "v_proj") for side in "AB"
    }
    assert names == {name for name, _ in attached.named_parameters()}
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert all(bool(parameter.any()) for parameter in attached.parameters())


def test_the_factors_start_as_peft_has_them():
    module = network()
    attached = attach(module, rank=4, targets=["down"])
    for path in ("layers.0.down", "layers.1.down"):
        branch = attached.branches[path]
        assert branch.A.shape == (4, 12)
        assert branch.B.shape == (6, 4)
        assert not branch.B.any()
        assert 0.5 < branch.A.detach().abs().max() * 12**0.5 <= 1
    assert not torch.equal(attached.branches["layers.0.down"].A, attached.branches["layers.1.down"].A)


def test_the_start_depends_on_the_seed_and_the_layer_alone():
    torch.manual_seed(5)
    first = attach(network(), targets=["q_proj"]).state()
    torch.manual_seed(6)
    again, other = attach(network(), targets=["down", "q_proj"]).state(), attach(network(), seed=2).state()
    name = "layers.0.q_proj.lora.A"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_dropout_is_deterministic_under_a_seed_and_off_while_evaluating():
    module = network()
    learned(module, attach(module, dropout=0.5))

    def run(seed):
        torch.manual_seed(seed)
        return module(TOKENS)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    module.eval()
    assert torch.equal(run(0), run(1))


def test_detaching_leaves_the_module_as_it_was():
    module = network()
    module.norm.requires_grad_(False)
    before, output = copy.deepcopy(module.state_dict()), module(TOKENS)
    attached = learned(module, attach(module))
    assert attached.detach() is module
    assert attached.detach() is module, "a second time changes nothing"
    assert list(module.state_dict()) == list(before)
    assert torch.equal(module(TOKENS), output)
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["norm.weight", "norm.bias"]
    attach(module)


def test_a_copied_module_uses_its_own_factors():
    module = network()
    attached = learned(module, attach(module))
    twin = copy.deepcopy(module)
    output = twin(TOKENS)
    assert torch.equal(output, module(TOKENS))
    with torch.no_grad():
        attached.parameters()[1].zero_()
    assert torch.equal(twin(TOKENS), output)
    assert not torch.equal(module(TOKENS), output)


def test_inputs_by_keyword_reach_the_factors():
    layer = nn.ModuleDict({"one": nn.Linear(3, 2)})
    learned(lambda _: layer["one"](torch.ones(1, 3)), attach_lora(layer, rank=1, alpha=1, targets=["one"], seed=0))
    assert torch.equal(layer["one"](input=torch.ones(1, 3)), layer["one"](torch.ones(1, 3)))


def test_a_bfloat16_base_has_float32_factors_and_bfloat16_outputs():
    module = network().bfloat16()
    attached = attach(module)
    learned(module, attached)
    assert {parameter.dtype for parameter in attached.parameters()} == {torch.float32}
    assert module(TOKENS).dtype == torch.bfloat16
    assert attached.merged()["layers.0.q_proj.weight"].dtype == torch.bfloat16


def test_the_factors_are_grouped_with_decay_as_weights_are():
    module = network()
    attached = attach(module)
    (group,) = parameter_groups(module, weight_decay=0.1)
    assert group["weight_decay"] == 0.1
    assert list(map(id, group["params"])) == list(map(id, attached.parameters()))


# ── merged, saved, read ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_merged_weights_give_the_outputs_of_module_and_factors():
    module = network()
    attached = learned(module, attach(module, rank_pattern={"q_proj": 2}))
    merged = network()
    merged.load_state_dict(attached.merged())
    torch.testing.assert_close(merged(TOKENS), module(TOKENS), rtol=1e-5, atol=1e-5)


def test_a_state_that_was_saved_is_restored_bit_for_bit():
    module, other = network(), network()
    attached, fresh = learned(module, attach(module)), attach(other, seed=9)
    fresh.load_state(attached.state())
    assert torch.equal(module(TOKENS), other(TOKENS))


def test_the_state_of_another_adapter_is_refused_with_every_fault():
    module, other = network(), network()
    attached, fresh = attach(module, targets=["q_proj"]), attach(other, rank=2, targets=["q_proj", "down"])
    before = {name: tensor.clone() for name, tensor in fresh.state().items()}
    with pytest.raises(CheckpointError, match="the state is that of another adapter") as error:
        fresh.load_state({**attached.state(), "extra": torch.zeros(1)})
    assert "layers.0.down.lora.A is missing" in error.value.faults
    assert "extra belongs to no layer of this adapter" in error.value.faults
    assert "layers.1.q_proj.lora.A has the shape [3, 6], this adapter has [2, 6]" in error.value.faults
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state().items())


def saved(tmp_path, **changes):
    module = network()
    write_checkpoint(tmp_path / "base.safetensors", {n: t.numpy() for n, t in module.state_dict().items()})
    base = open_checkpoint(tmp_path / "base.safetensors")
    attached = learned(module, attach(module, **changes))
    attached.save(tmp_path / "adapter", base.digest, base_name="tiny")
    return module, attached, base


@pytest.mark.parametrize("changes", [{}, {"targets": "all-linear", "rank_pattern": {r"layers\.1\.q_proj": 2}}])
def test_our_own_reader_reads_what_is_saved(tmp_path, changes):
    _, attached, base = saved(tmp_path, **changes)
    adapter = open_adapter(tmp_path / "adapter", base)
    assert sorted(adapter.factors) == sorted(f"{path}.weight" for path in attached.layers)
    merged = attached.merged()
    for name, (left, right) in adapter.factors.items():
        np.testing.assert_allclose(base.tensor(name) + left @ right, merged[name].numpy(), atol=1e-6)


def test_an_adapter_of_another_base_is_refused_when_it_is_merged(tmp_path):
    _, _, base = saved(tmp_path)
    assert open_expert("coder", tmp_path / "adapter", base).task_vector
    stranger = {name: base.tensor(name) + 1 for name in base.specs}
    write_checkpoint(tmp_path / "other.safetensors", stranger)
    with pytest.raises(CheckpointError, match="base"):
        open_expert("coder", tmp_path / "adapter", open_checkpoint(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": ["head", "down"], "dropout": 0.3},
        {"targets": "all-linear", "rank_pattern": {r"layers\.1\.q_proj": 2, "head": 1}},
        {"targets": r"layers\.\d\.(q|v)_proj", "alpha": 3, "rank": 6},
        {"rank_pattern": {"v_proj": 1}, "alpha_pattern": {r"layers\.0\.q_proj": 12, "v_proj": 0.5}},
    ],
)
def test_peft_reads_what_is_saved_and_gives_the_same_outputs(tmp_path, changes):
    import peft

    module, attached, _ = saved(tmp_path, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(network(), tmp_path / "adapter")
    torch.testing.assert_close(theirs.eval()(TOKENS), module.eval()(TOKENS), rtol=1e-6, atol=1e-6)
    there = {name for name, one in theirs.base_model.model.named_modules() if hasattr(one, "lora_A")}
    assert there == set(attached.layers)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (attached.rank, attached.alpha)
    assert config["base_model_name_or_path"] == "tiny"


def test_layers_that_store_their_weights_transposed_are_saved_as_peft_reads_them(tmp_path):
    import peft
    from transformers.pytorch_utils import Conv1D

    def mixed():
        torch.manual_seed(0)
        return nn.Sequential(Conv1D(7, 6), nn.Tanh(), nn.Linear(7, 5))

    module, x = mixed(), torch.randn(3, 6)
    write_checkpoint(tmp_path / "base.safetensors", {n: t.numpy() for n, t in module.state_dict().items()})
    base = open_checkpoint(tmp_path / "base.safetensors")
    attached = learned(lambda _: module(x), attach(module, targets="all-linear"))
    attached.save(tmp_path / "adapter", base.digest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(mixed(), tmp_path / "adapter")
    torch.testing.assert_close(theirs.eval()(x), module(x), rtol=1e-6, atol=1e-6)
    merged = mixed()
    merged.load_state_dict(attached.merged())
    torch.testing.assert_close(merged(x), module(x), rtol=1e-5, atol=1e-5)
    for name, (left, right) in open_adapter(tmp_path / "adapter", base).factors.items():
        np.testing.assert_allclose(base.tensor(name) + left @ right, attached.merged()[name].numpy(), atol=1e-6)


def test_an_adapter_with_numbers_that_are_none_is_not_saved(tmp_path):
    module = network()
    attached = attach(module)
    with torch.no_grad():
        attached.parameters()[0][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="the adapter is no longer made of numbers") as error:
        attached.save(tmp_path / "adapter", "")
    assert error.value.faults == ("layers.0.q_proj.lora.A holds NaN or infinity",)
    assert not (tmp_path / "adapter").exists()


# ── which layers ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["layers.1.down"], {"layers.1.down"}),
        (["down"], {"layers.0.down", "layers.1.down"}),
        ([r"layers\.0\..*_proj"], {"layers.0.q_proj", "layers.0.v_proj"}),
        (r".*\.(q|v)_proj", {f"layers.{i}.{one}_proj" for i in (0, 1) for one in "qv"}),
        (["head", r"layers\.1\.q_proj"], {"head", "layers.1.q_proj"}),
        ("all-linear", {"head", *(f"layers.{i}.{one}" for i in (0, 1) for one in ("q_proj", "v_proj", "down"))}),
        (["All-Linear"], {"head", *(f"layers.{i}.{one}" for i in (0, 1) for one in ("q_proj", "v_proj", "down"))}),
    ],
)
def test_targets_are_paths_ends_of_paths_or_patterns(targets, found):
    assert set(attach(network(), targets=targets).layers) == found


def test_a_rank_is_no_longer_than_a_side_and_the_scale_stays():
    attached = attach(network(), rank=8, alpha=4, targets="all-linear")
    assert {branch.A.shape[0] for branch in attached.branches.values()} == {6}
    assert {branch.scaling for branch in attached.branches.values()} == {0.5}


def test_the_first_pattern_of_a_rank_holds():
    attached = attach(network(), rank=4, rank_pattern={r"layers\.0\.q_proj": 1, "q_proj": 2})
    ranks = {path: branch.A.shape[0] for path, branch in attached.branches.items()}
    assert ranks == {"layers.0.q_proj": 1, "layers.1.q_proj": 2, "layers.0.v_proj": 4, "layers.1.v_proj": 4}


def test_an_alpha_of_its_own_is_over_the_rank_that_the_layer_was_given():
    attached = attach(
        network(), rank=8, alpha=4, rank_pattern={"v_proj": 2}, alpha_pattern={"layers.0.q_proj": 16, "v_proj": 3}
    )
    found = {path: (branch.A.shape[0], branch.scaling) for path, branch in attached.branches.items()}
    assert found == {
        "layers.0.q_proj": (6, 2.0),
        "layers.1.q_proj": (6, 0.5),
        "layers.0.v_proj": (2, 1.5),
        "layers.1.v_proj": (2, 1.5),
    }


class WithAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.middle = nn.Linear(4, 4)
        self.embed, self.head, self.output = nn.Embedding(5, 4), nn.Linear(4, 5), nn.Linear(4, 2)
        self.head.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.output


def test_all_linear_says_what_it_leaves_out_and_why():
    attached = attach(WithAttention(), targets="all-linear")
    assert set(attached.layers) == {"middle"}
    assert attached.skipped == {
        "attention.out_proj": "is used by nn.MultiheadAttention through its weight, without being called: factors would"
        " do nothing",
        "head": "shares its weight with embed.weight, which merging would change too",
        "output": "is the model's output layer",
    }


def test_the_factors_count_where_torch_would_read_weights_past_the_layers():
    """Encoders of torch have a fast path for evaluations, which calls no layer; torch leaves it where hooks are."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    module, x = nn.TransformerEncoder(layer, 2), torch.randn(2, 5, 8)
    attached = learned(lambda _: module(x), attach(module, targets=["linear1", "linear2"]))
    output = module(x)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(x), output.detach(), rtol=1e-5, atol=1e-5)
        attached.detach()
        assert not torch.allclose(module(x), output)


def test_layers_that_cannot_have_factors_are_refused_by_name():
    module = WithAttention()
    attach(module, targets=["middle"])
    with pytest.raises(LearningError, match="the LoRA adapter cannot be attached") as error:
        attach(module, targets=["head", "out_proj", "embed", "middle", "attention"])
    assert error.value.faults == (
        "target 'head': head shares its weight with embed.weight, which merging would change too",
        "target 'out_proj': attention.out_proj is used by nn.MultiheadAttention through its weight, without being"
        " called: factors would do nothing",
        "target 'embed': embed is an Embedding; only nn.Linear and transformers' Conv1D can have factors",
        "target 'middle': middle has factors already; detach the adapter that is attached first",
        "target 'attention': attention is a MultiheadAttention; only nn.Linear and transformers' Conv1D can have"
        " factors",
    )


def test_wrong_targets_and_settings_are_named_at_once_with_the_nearest_modules():
    module = network()
    with pytest.raises(LearningError) as error:
        attach(module, rank=0, alpha=float("nan"), dropout=1.0, targets=["q_prjo", "zzz", "down", "(", "embed"])
    assert error.value.faults == (
        "rank is 0; at least 1 is needed",
        "alpha is nan; a positive number is needed, such as the rank",
        "dropout is 1.0; a share in [0, 1) is needed",
        "target 'q_prjo' names no module; did you mean 'q_proj'? linear modules end in q_proj, v_proj, down, head",
        "target 'zzz' names no module; linear modules end in q_proj, v_proj, down, head",
        "target '(' names no module; linear modules end in q_proj, v_proj, down, head",
        "target 'embed': embed is an Embedding; only nn.Linear and transformers' Conv1D can have factors",
    )
    assert not any("lora" in name for name, _ in module.named_modules())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_wrong_ranks_and_empty_targets_are_named():
    with pytest.raises(LearningError) as error:
        attach(network(), rank_pattern={"(": 1, "down": 1, "q_proj": 0})
    assert sorted(error.value.faults) == [
        "rank_pattern: '(' is not a regular expression (missing ), unterminated subpattern at position 7)",
        "rank_pattern: 'down' finds none of the layers that have factors",
        "rank_pattern: 'q_proj' has the rank 0; at least 1 is needed",
    ]
    with pytest.raises(LearningError) as error:
        attach(network(), alpha_pattern={"(": 1, "down": 1, "q_proj": 0.0})
    assert sorted(error.value.faults) == [
        "alpha_pattern: '(' is not a regular expression (missing ), unterminated subpattern at position 7)",
        "alpha_pattern: 'down' finds none of the layers that have factors",
        "alpha_pattern: 'q_proj' has the alpha 0.0; a positive number is needed",
    ]
    with pytest.raises(LearningError, match="targets is empty; name the layers, or all of them with 'all-linear'"):
        attach(network(), targets=[])
