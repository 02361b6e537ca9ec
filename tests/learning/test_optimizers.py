"""Optimizers: every one meets the same targets, goes on bit for bit, and says which settings it does not know."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from minerua.conformance import optimizers as conformance
from minerua.errors import LearningError
from minerua.learning.optimizers import optimizers

SPECS = {spec.name: spec for spec in optimizers()}
RATES = {
    "sgd": 0.05,
    "adam": 0.1,
    "adamw": 0.1,
    "adafactor": 0.2,
    "muon": 0.2,
    "rmsprop": 0.05,
    "adagrad": 0.8,
    "adadelta": 20.0,
    "adamax": 0.2,
    "nadam": 0.1,
    "radam": 0.2,
}
OWN = {name: {"weight_decay": 0.0} for name in RATES}
OWN["sgd"] = {"momentum": 0.9}
VALLEY = {**RATES, "sgd": 0.003, "adafactor": 0.1, "adagrad": 0.1, "adadelta": 1.0, "adamax": 0.1, "muon": 0.1}
VALLEY |= {"rmsprop": 0.01, "nadam": 0.05, "radam": 0.03}
"""Rates for Rosenbrock's valley."""
EVERY = pytest.mark.parametrize("name", RATES)


def settings(name, rates=RATES):
    return {"lr": rates[name], **OWN[name]}


def test_every_optimizer_has_a_rate_here():
    assert list(SPECS) == list(RATES)


@EVERY
def test_it_finds_the_bottom_of_a_parabola(name):
    assert conformance.learns(SPECS[name].build, conformance.parabola(), settings=settings(name), steps=150) == []


@EVERY
def test_it_follows_the_valley_of_rosenbrock(name):
    target = conformance.rosenbrock()
    assert conformance.descends(SPECS[name].build, target, settings=settings(name, VALLEY), steps=600) == []


@EVERY
def test_it_learns_a_scalar_a_vector_a_matrix_and_a_tensor_of_four_dimensions(name):
    assert conformance.learns(SPECS[name].build, conformance.mixed_shapes(), settings=settings(name), steps=150) == []


@EVERY
def test_it_goes_on_from_its_state_bit_for_bit(name):
    assert conformance.goes_on_from_its_state(SPECS[name].build, settings=settings(name)) == []


@EVERY
def test_the_same_start_gives_the_same_bits(name):
    assert conformance.repeats(SPECS[name].build, settings=settings(name)) == []


@EVERY
def test_groups_have_settings_of_their_own(name):
    assert conformance.keeps_groups_apart(SPECS[name].build, settings=settings(name)) == []


@EVERY
def test_unknown_settings_are_named_with_the_nearest_ones_those_of_groups_too(name):
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lrr": 0.1}]
    with pytest.raises(TypeError) as error:
        SPECS[name].build(groups, lr=0.1, weight_dekay=0.1)
    assert f"optimizer {name!r} cannot be called with these settings" in str(error.value)
    assert "no setting is named 'weight_dekay'; did you mean 'weight_decay'" in str(error.value)
    assert "parameter group 0: no setting is named 'lrr'; did you mean 'lr'?" in str(error.value)


def test_numbers_that_yaml_takes_for_texts_are_read_and_lists_become_tuples():
    group = {"params": [nn.Parameter(torch.ones(2))], "weight_decay": "1e-2"}
    built = SPECS["adamw"].build([group], lr=1e-3, eps="1e-6", betas=["9e-1", 0.95])
    (own,) = built.param_groups
    assert (own["eps"], own["betas"], own["weight_decay"]) == (1e-6, (0.9, 0.95), 0.01)
    assert group.keys() == {"params", "weight_decay"}, "the caller's group was changed"


def test_a_value_that_torch_refuses_is_refused_with_its_message():
    with pytest.raises(ValueError, match="Invalid learning rate"):
        SPECS["adamw"].build([nn.Parameter(torch.ones(2))], lr=-1.0)


def test_an_optimizer_that_this_torch_lacks_is_named_with_the_release_that_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(LearningError, match=r"optimizer 'muon' needs torch 2\.9 or later, and this is torch"):
        SPECS["muon"].build([nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(LearningError, match="update torch, or choose 'adamw'"):
        SPECS["muon"].build([nn.Parameter(torch.ones(2, 2))])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_torch_optimizer_under_its_name_is_torchs_own(name):
    made = SPECS[name].build([nn.Parameter(torch.ones(2))], lr=0.1)
    assert type(made) is {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]


# ── Muon with AdamW ──────────────────────────────────────────────────────────────────────────────────────────────────


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def gradients(module, seed):
    torch.manual_seed(seed)
    module.zero_grad()
    module(torch.randn(4, 1, 4, 4)).square().mean().backward()


def test_muon_takes_the_matrices_and_adamw_the_rest_as_torch_does_with_each_alone():
    together, apart = network(), network()
    ours = SPECS["muon"].build(together.parameters(), lr=0.01, weight_decay=0.1)
    matrices = [p for p in apart.parameters() if p.ndim == 2]
    rest = [p for p in apart.parameters() if p.ndim != 2]
    theirs = [
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95)),
    ]
    for seed in range(4):
        gradients(together, seed)
        gradients(apart, seed)
        ours.step()
        for one in theirs:
            one.step()
    assert all(torch.equal(a, b) for a, b in zip(together.parameters(), apart.parameters(), strict=True))


def test_a_group_can_keep_its_matrices_from_muon():
    module = network()
    groups = [{"params": list(module[2].parameters())}, {"params": list(module[4].parameters()), "muon": False}]
    made = SPECS["muon"].build(groups, lr=0.01)
    assert [(group["muon"], len(group["params"])) for group in made.param_groups] == [(True, 1), (False, 1), (False, 2)]


def test_a_group_that_asks_for_muon_has_matrices_only():
    with pytest.raises(ValueError, match=r"muon: True has parameters that are no matrices: \[2\]; leave muon out"):
        SPECS["muon"].build([{"params": [nn.Parameter(torch.ones(2))], "muon": True}])


def test_schedules_and_a_later_group_reach_both_parts_of_muon():
    module = network()
    made = SPECS["muon"].build(module[:3].parameters(), lr=0.01, weight_decay=0.0)
    made.add_param_group({"params": list(module[4].parameters())})
    for group in made.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(module.state_dict())
    gradients(module, 0)
    made.step()
    assert all(torch.equal(before[name], one) for name, one in module.state_dict().items())
    for group in made.param_groups:
        group["lr"] = 0.01
    made.step()
    assert not any(torch.equal(before[name], one) for name, one in module.state_dict().items())


def test_a_copied_muon_works_on_the_copied_parameters():
    module = network()
    made = SPECS["muon"].build(module.parameters(), lr=0.01)
    gradients(module, 0)
    made.step()
    twin_module, twin = copy.deepcopy((module, made))
    for one, optimizer in ((module, made), (twin_module, twin)):
        gradients(one, 1)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin_module.parameters(), strict=True))
    assert conformance.same_tree(made.state_dict(), twin.state_dict())


def test_muon_evaluates_a_closure_with_gradients():
    parameter = nn.Parameter(torch.ones(2, 2))
    made = SPECS["muon"].build([("weight", parameter)], lr=0.01)

    def closure():
        made.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert made.step(closure).item() == 4.0
    assert float(parameter.detach().square().sum()) < 4.0
    assert made.param_groups[0]["param_names"] == ["weight"]
