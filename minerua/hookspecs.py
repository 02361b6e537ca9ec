"""The whole contract with strangers: six hooks, each returning a list of specs.

A plugin is an importable module, named in the entry-point group `minerua` of its distribution, with functions marked
`@minerua.hookimpl`. No hook receives anything, so that a list of specs is all there is to test.
"""

from __future__ import annotations

import pluggy

from minerua.values import EvaluatorSpec, LossSpec, MergeMethodSpec, ModelSpec, OptimizerSpec, Skill

hookspec = pluggy.HookspecMarker("minerua")
hookimpl = pluggy.HookimplMarker("minerua")


@hookspec
def minerua_skills() -> list[Skill]:
    """Returns the skills that this plugin provides: callables with described inputs and outputs."""
    return []


@hookspec
def minerua_optimizers() -> list[OptimizerSpec]:
    """Returns the optimizers that this plugin provides for learning."""
    return []


@hookspec
def minerua_losses() -> list[LossSpec]:
    """Returns the losses that this plugin provides for learning."""
    return []


@hookspec
def minerua_evaluators() -> list[EvaluatorSpec]:
    """Returns the evaluators that this plugin provides: tasks whose items score a model."""
    return []


@hookspec
def minerua_models() -> list[ModelSpec]:
    """Returns the model kinds that this plugin provides: how weights become something that can be called."""
    return []


@hookspec
def minerua_merge_methods() -> list[MergeMethodSpec]:
    """Returns the merge methods that this plugin provides."""
    return []
