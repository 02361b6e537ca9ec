from minerua.merge import methods
from minerua.merge.layer_match import match_layers
from minerua.merge.means import mean, regmean, task_arithmetic
from minerua.registry import Registry


def test_the_registry_finds_minerua_s_own_methods_by_name():
    found = Registry.of(methods).merge_methods
    assert {name: (spec.merge, spec.uses) for name, spec in found.items()} == {
        "layer-match": (match_layers, "model"),
        "mean": (mean, "weights"),
        "regmean": (regmean, "grams"),
        "task-arithmetic": (task_arithmetic, "weights"),
    }
