"""Lion through its hook: the paper's algorithm bit for bit, decay apart from the gradient, state that round-trips."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import minerua_lion as plugin
import numpy as np
import pytest
import torch

from minerua.registry.specs import KINDS, spec_faults

(SPEC,) = plugin.minerua_optimizers()
SHAPES = ((), (3,), (4, 3), (2, 3, 2, 2))


def lion_by_the_paper(weights, gradients, *, rate, betas, decay):
    """Algorithm 2 of Chen et al. 2023, line by line, in numpy."""
    beta_1, beta_2 = betas
    momentum = np.zeros_like(weights)
    for gradient in gradients:
        update = np.sign(beta_1 * momentum + (1 - beta_1) * gradient)
        weights = weights - rate * (update + decay * weights)
        momentum = beta_2 * momentum + (1 - beta_2) * gradient
    return weights, momentum


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def steps(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = torch.as_tensor(gradient).to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.25])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_algorithm_of_the_paper(shape, decay):
    start, gradients = drawn(*shape), [drawn(*shape, seed=seed) for seed in range(1, 20)]
    parameter = torch.nn.Parameter(torch.as_tensor(start).clone())
    optimizer = SPEC.build([{"params": [parameter]}], lr=0.01, betas=(0.8, 0.95), weight_decay=decay)
    steps(optimizer, parameter, gradients)
    weights, momentum = lion_by_the_paper(start, gradients, rate=0.01, betas=(0.8, 0.95), decay=decay)
    np.testing.assert_allclose(parameter.detach().numpy(), weights, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(optimizer.state[parameter]["momentum"].numpy(), momentum, rtol=1e-13, atol=1e-15)


def test_every_weight_moves_by_the_rate_whatever_the_gradients_size():
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = SPEC.build([parameter], lr=0.5)
    steps(optimizer, parameter, [np.array([1e-9, -1e9, 3.0, 0.0])])
    assert parameter.tolist() == [-0.5, 0.5, -0.5, 0.0]


def test_weights_decay_apart_from_the_gradient():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = SPEC.build([parameter], lr=0.5, weight_decay=0.1)
    steps(optimizer, parameter, [np.zeros(3)])
    assert parameter.tolist() == pytest.approx([0.95] * 3)
    assert not optimizer.state[parameter]["momentum"].any()


def test_groups_have_rates_and_decays_of_their_own_and_what_has_no_gradient_stays():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    groups = [
        {"params": parameters[:1], "lr": 0.25},
        {"params": parameters[1:], "weight_decay": 0.5},
    ]
    optimizer = SPEC.build(groups, lr=0.125)
    for parameter in parameters[:2]:
        parameter.grad = torch.ones(2)
    optimizer.step()
    assert [parameter[0].item() for parameter in parameters] == [0.75, 1 - 0.125 * 1.5, 1.0]


def test_it_goes_on_from_its_state_bit_for_bit():
    first = [torch.nn.Parameter(torch.as_tensor(drawn(*shape)).float()) for shape in SHAPES]
    optimizer = SPEC.build([{"params": first}], lr=0.01, weight_decay=0.1)
    for seed in range(5):
        for parameter in first:
            parameter.grad = torch.as_tensor(drawn(*parameter.shape, seed=seed)).float()
        optimizer.step()
    second = [torch.nn.Parameter(parameter.detach().clone()) for parameter in first]
    resumed = SPEC.build([{"params": second}], lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameters, one in ((first, optimizer), (second, resumed)):
        for seed in range(5, 9):
            for parameter in parameters:
                parameter.grad = torch.as_tensor(drawn(*parameter.shape, seed=seed)).float()
            one.step()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_finds_the_bottom_of_a_parabola_with_a_falling_rate(shape):
    minimum = torch.as_tensor(drawn(*shape)).float()
    parameter = torch.nn.Parameter(torch.zeros(shape))
    optimizer = SPEC.build([parameter], lr=0.1)
    for number in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - number / 200)
        steps(optimizer, parameter, [(parameter - minimum).detach()])
    torch.testing.assert_close(parameter.detach(), minimum, rtol=0, atol=0.02)


def test_a_closure_is_evaluated_with_gradients():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = SPEC.build([parameter], lr=0.25)

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert parameter.tolist() == [0.75, 0.75]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lr": -1.0}, "lr is -1.0; it is at least 0"),
        ({"weight_decay": -0.5}, "weight_decay is -0.5; it is at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\); two numbers in \[0, 1\) are needed"),
    ],
)
def test_settings_out_of_range_are_refused(settings, text):
    with pytest.raises(ValueError, match=f"Lion cannot be built: {text}"):
        SPEC.build([torch.nn.Parameter(torch.ones(2))], **settings)
    with pytest.raises(ValueError, match=text):
        SPEC.build([{"params": [torch.nn.Parameter(torch.ones(2))], **settings}])


def test_an_unknown_setting_is_a_type_error():
    with pytest.raises(TypeError, match="momentum"):
        SPEC.build([torch.nn.Parameter(torch.ones(2))], momentum=0.9)


def test_the_spec_is_valid_and_its_module_imports_no_torch():
    kind = next(kind for kind in KINDS if kind.hook == "minerua_optimizers")
    assert spec_faults(kind, SPEC) == []
    script = "import json, sys, minerua_lion as m; m.minerua_optimizers(); print(json.dumps('torch' in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) is False
