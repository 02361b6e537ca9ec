"""minerua: learn skills, merge the models that have them, evolve the merges, chain the results.

What a plugin author needs is here; everything else is imported from its room. Importing this module loads neither
torch nor numpy and has no effects.
"""

from minerua.errors import ConfigError, MineruaError
from minerua.hookspecs import hookimpl
from minerua.settings import Settings
from minerua.values import (
    Change,
    EvaluatorSpec,
    Exhibit,
    LossSpec,
    MergeMethodSpec,
    MergeParameter,
    ModelSpec,
    OptimizerSpec,
    RunContext,
    Skill,
    SkillContext,
    TensorSpec,
)

__version__ = "0.1.0"

__all__ = [
    "Change",
    "ConfigError",
    "EvaluatorSpec",
    "Exhibit",
    "LossSpec",
    "MergeMethodSpec",
    "MergeParameter",
    "MineruaError",
    "ModelSpec",
    "OptimizerSpec",
    "RunContext",
    "Settings",
    "Skill",
    "SkillContext",
    "TensorSpec",
    "__version__",
    "hookimpl",
]
