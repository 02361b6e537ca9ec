"""minerua's own merge methods, which the registry finds through minerua's own entry point."""

from minerua.hookspecs import hookimpl
from minerua.merge.layer_match import match_layers
from minerua.merge.means import mean, regmean, task_arithmetic
from minerua.values import MergeMethodSpec


@hookimpl
def minerua_merge_methods() -> list[MergeMethodSpec]:
    """Provides minerua's own merge methods."""
    return [
        MergeMethodSpec("mean", mean),
        MergeMethodSpec("task-arithmetic", task_arithmetic),
        MergeMethodSpec("regmean", regmean, uses="grams"),
        MergeMethodSpec("layer-match", match_layers, uses="model"),
    ]
