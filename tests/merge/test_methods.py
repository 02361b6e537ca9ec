import subprocess
import sys

import pytest

from minerua.merge import methods
from minerua.merge.methods.layer_match import match_layers
from minerua.merge.methods.means import mean, regmean
from minerua.registry import Registry

from .oracle import METHODS, mergekit_methods

OURS = {"mean": (mean, "weights"), "regmean": (regmean, "grams"), "layer-match": (match_layers, "model")}
"""Methods that mergekit does not have, for seeds of a population."""

NOT_IN_MERGEKIT = {*OURS, "consensus", "tsv-m", "iso-c", "iso-cts", "subspace-boosting"}


def test_the_registry_finds_minerua_s_own_methods_by_name():
    found = Registry.of(methods).merge_methods
    assert {name: (found[name].merge, found[name].uses) for name in OURS} == OURS
    assert found.keys() == METHODS.keys()


def test_every_method_of_mergekit_is_there():
    theirs = {method.spec.name.replace("_", "-") for method in mergekit_methods().registered_methods()}
    assert len(theirs) == 20
    assert theirs == METHODS.keys() - NOT_IN_MERGEKIT


@pytest.mark.parametrize("name", sorted(METHODS.keys() - NOT_IN_MERGEKIT))
def test_every_method_takes_mergekit_s_parameters_with_its_defaults(name):
    theirs = mergekit_methods().get(name.replace("-", "_")).spec
    ours = {parameter.name: parameter for parameter in METHODS[name].parameters}
    assert ours.keys() == {parameter.name for parameter in theirs.parameters}
    for parameter in theirs.parameters:
        own = ours[parameter.name]
        assert own.per_model == (parameter.scope.value != "shared")
        assert (own.kind == "flag") == (parameter.value_type is bool)
        if name == "passthrough":
            assert (own.default, parameter.default) == (1.0, None)  # no scale is a scale of one
        else:
            assert own.default == (None if parameter.required else parameter.default)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - NOT_IN_MERGEKIT))
def test_every_method_takes_as_many_models_as_mergekit_s(name):
    contract = mergekit_methods().get(name.replace("-", "_")).spec.contract
    ours, base = METHODS[name], int(contract.base.value == "required")
    assert ours.base == contract.base.value
    fewest = contract.min_inputs - base if contract.min_non_base is None else contract.min_non_base
    most = contract.max_non_base if contract.max_inputs is None else contract.max_inputs - base
    assert (ours.fewest, ours.most) == (fewest, most)


def test_the_methods_are_listed_without_numpy():
    program = "import minerua.merge.methods as m, sys; m.minerua_merge_methods(); print('numpy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
