"""Parameter groups: each trainable parameter once, decays where it should, and every fault in one message."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minerua.errors import LearningError
from minerua.learning.groups import KINDS, parameter_groups
from minerua.learning.optimizers import optimizers


class SquareRootNorm(nn.Module):
    """A norm layer of somebody's own, known by its class's name."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


class Network(nn.Module):
    def __init__(self, *, tied=False):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(11)])
        self.attention = nn.MultiheadAttention(4, 2)
        self.rnn = nn.GRU(4, 4)
        self.norm = SquareRootNorm()
        self.batch = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7)
        if tied:
            self.head.weight = self.embed.weight


def names_of(module, groups):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def groups_of(module, **arguments):
    groups = parameter_groups(module, **arguments)
    return [
        ({key: one for key, one in group.items() if key != "params"}, names)
        for group, names in zip(groups, names_of(module, groups), strict=True)
    ]


def test_weights_decay_and_biases_and_norms_do_not():
    (decayed, with_decay), (spared, without) = groups_of(Network(), weight_decay=0.1)
    assert (decayed, spared) == ({"weight_decay": 0.1}, {"weight_decay": 0.0})
    assert with_decay[:3] == ["embed.weight", "layers.0.0.weight", "layers.1.0.weight"]
    assert {"rnn.weight_ih_l0", "attention.in_proj_weight", "head.weight"} <= set(with_decay)
    assert {"layers.0.0.bias", "layers.3.1.weight", "norm.scale", "batch.weight"} <= set(without)
    assert {"attention.in_proj_bias", "attention.out_proj.bias", "rnn.bias_hh_l0"} <= set(without)


@pytest.mark.parametrize("tied", [False, True])
@given(no_decay=st.sets(st.sampled_from([*KINDS, "head", r"layers\.\d"])), decay=st.sampled_from([0.0, 0.1]))
@settings(max_examples=15, deadline=None)
def test_every_trainable_parameter_is_in_exactly_one_group(tied, no_decay, decay):
    module = Network(tied=tied)
    module.layers[2].requires_grad_(False)
    rules = [{"match": "head", "lr": 0.5}, {"match": r"layers\.1\d?", "lr": 0.1, "weight_decay": 0.3}]
    groups = parameter_groups(module, weight_decay=decay, no_decay=sorted(no_decay), rules=rules)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert all(names == sorted(names, key=order_of(module).index) for names in names_of(module, groups))


def order_of(module):
    return [name for name, _ in module.named_parameters()]


def test_kinds_are_told_by_the_layer_and_by_the_shape():
    module = Network()
    for kind, name in (("embedding", "embed.weight"), ("vector", "norm.scale"), ("norm", "norm.scale")):
        groups = groups_of(module, weight_decay=0.1, no_decay=[kind])
        (spared,) = [names for settings, names in groups if settings == {"weight_decay": 0.0}]
        assert name in spared
    vectors = groups_of(module, weight_decay=0.1, no_decay=["vector"])[1][1]
    assert {name for name, p in module.named_parameters() if p.ndim < 2} == set(vectors)


def test_a_pattern_finds_whole_parts_of_names():
    (_, found), *_ = groups_of(Network(), rules=[{"match": r"layers\.1", "lr": 0.5}])[1:]
    assert found == ["layers.1.0.weight", "layers.1.0.bias", "layers.1.1.weight", "layers.1.1.bias"]


def test_layers_have_rates_of_their_own_and_a_rule_goes_before_the_exclusions():
    rules = [
        {"match": r"head\.bias", "weight_decay": 0.7},
        {"match": "head", "rate": "5e-1"},  # as PyYAML reads it
        {"match": r"layers\.(0|1)", "lr": 0.1},
    ]
    groups = groups_of(Network(), weight_decay=0.1, rules=rules)
    assert ({"weight_decay": 0.7}, ["head.bias"]) in groups
    assert ({"weight_decay": 0.1, "lr": 0.5}, ["head.weight"]) in groups
    assert ({"weight_decay": 0.1, "lr": 0.1}, ["layers.0.0.weight", "layers.1.0.weight"]) in groups
    assert [s for s, n in groups if "layers.0.0.bias" in n] == [{"weight_decay": 0.0, "lr": 0.1}]


def test_equal_settings_share_a_group():
    assert len(parameter_groups(Network())) == 1
    assert len(parameter_groups(Network(), rules=[{"match": "head", "lr": 1.0}, {"match": "embed", "lr": 1.0}])) == 2


def test_a_tied_parameter_is_found_by_any_of_its_names_and_is_of_every_kind():
    module = Network(tied=True)
    by_head = groups_of(module, rules=[{"match": "head", "lr": 0.5}])
    assert ({"weight_decay": 0.0, "lr": 0.5}, ["embed.weight", "head.bias"]) in by_head
    spared = groups_of(module, weight_decay=0.1, no_decay=["embedding"])[0]
    assert spared == ({"weight_decay": 0.0}, ["embed.weight"])


def test_chosen_parameters_are_grouped_alone():
    module = Network()
    groups = parameter_groups(module, weight_decay=0.1, named=module.head.named_parameters(prefix="head"))
    assert names_of(module, groups) == [["head.weight"], ["head.bias"]]


def test_an_optimizer_takes_the_groups():
    build = next(spec.build for spec in optimizers() if spec.name == "adamw")
    groups = parameter_groups(Network(), weight_decay=0.1, rules=[{"match": "head", "lr": "5e-1", "betas": [0.8, 0.9]}])
    made = build(groups, lr=0.01)
    assert [(group["lr"], group["weight_decay"]) for group in made.param_groups] == [
        (0.01, 0.1),
        (0.01, 0.0),
        (0.5, 0.1),
        (0.5, 0.0),
    ]


def test_all_faults_are_named_at_once():
    module = Network()
    module.batch.requires_grad_(False)
    rules = [
        {"match": "haed", "lr": 0.1},
        {"match": "head", "lr": 0.1, "rate": 0.1},
        {"match": r"head\.bias", "lr": 0.1},
        {"match": "batch", "lr": 0.1},
        {"match": "(", "lr": 0.1},
        {"match": "norm"},
        {"lr": 0.1},
        {"match": "zzzz", "lr": 0.1},
    ]
    with pytest.raises(LearningError, match="parameters cannot be grouped") as error:
        parameter_groups(module, no_decay=["bais"], rules=rules)
    assert error.value.faults == (
        "no_decay: 'bais' is none of bias, norm, embedding, vector; as a pattern, 'bais' finds none of the 58"
        " parameters; did you mean 'bias'?",
        "rules[0]: 'haed' finds none of the 58 parameters; did you mean 'head'?",
        "rules[1] sets rate and lr, which are the same; leave one out",
        "rules[2]: 'head\\\\.bias' finds only what an earlier rule has found; put it first",
        "rules[3]: 'batch' finds 2 parameters, all of them frozen",
        "rules[4]: '(' is not a regular expression (missing ), unterminated subpattern at position 7)",
        "rules[5] sets nothing; give it a setting, such as lr, or leave it out",
        "rules[6] has no match: name the parameters that it is for, such as match: head",
        "rules[7]: 'zzzz' finds none of the 58 parameters; the first is 'embed.weight'",
    )


def test_a_module_without_trainable_parameters_is_refused():
    with pytest.raises(LearningError, match="none of the 2 parameters can be trained: all are frozen"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))
