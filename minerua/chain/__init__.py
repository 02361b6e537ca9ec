"""Chains: skills joined into applications, planned from measured costs, carried out over one pool of resources.

Importing this room loads none of its parts; a name is looked up in its module when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minerua.chain.graph import Condition, Graph, Retry, Source, Step
    from minerua.chain.keeping.cache import ContentCache
    from minerua.chain.keeping.residency import ModelResidency
    from minerua.chain.manager import SkillChainManager
    from minerua.chain.multimodal import Modality, MultiModalSystem
    from minerua.chain.plan import ExecutionPlan
    from minerua.chain.planning.explain import explain, mermaid
    from minerua.chain.planning.optimizer import ChainOptimizer
    from minerua.chain.planning.profile import Profile
    from minerua.chain.running.executor import ChainExecutor, Result
    from minerua.chain.running.partials import Partial
    from minerua.chain.running.stopping import cancelled
    from minerua.chain.running.trace import Span, Trace
    from minerua.chain.running.workers import WorkerProcesses
    from minerua.chain.writing.chain import SkillChain, SkillTask
    from minerua.chain.writing.functions import skill, torch_skill
    from minerua.kernels.pool import CancelToken, ResourcePool

_HOMES = {
    "minerua.chain.graph": ("Condition", "Graph", "Retry", "Source", "Step"),
    "minerua.chain.keeping.cache": ("ContentCache",),
    "minerua.chain.keeping.residency": ("ModelResidency",),
    "minerua.chain.manager": ("SkillChainManager",),
    "minerua.chain.multimodal": ("Modality", "MultiModalSystem"),
    "minerua.chain.plan": ("ExecutionPlan",),
    "minerua.chain.planning.explain": ("explain", "mermaid"),
    "minerua.chain.planning.optimizer": ("ChainOptimizer",),
    "minerua.chain.planning.profile": ("Profile",),
    "minerua.chain.running.executor": ("ChainExecutor", "Result"),
    "minerua.chain.running.partials": ("Partial",),
    "minerua.chain.running.stopping": ("cancelled",),
    "minerua.chain.running.trace": ("Span", "Trace"),
    "minerua.chain.running.workers": ("WorkerProcesses",),
    "minerua.chain.writing.chain": ("SkillChain", "SkillTask"),
    "minerua.chain.writing.functions": ("skill", "torch_skill"),
    "minerua.kernels.pool": ("CancelToken", "ResourcePool"),
}

__all__ = [
    "CancelToken",
    "ChainExecutor",
    "ChainOptimizer",
    "Condition",
    "ContentCache",
    "ExecutionPlan",
    "Graph",
    "Modality",
    "ModelResidency",
    "MultiModalSystem",
    "Partial",
    "Profile",
    "ResourcePool",
    "Result",
    "Retry",
    "SkillChain",
    "SkillChainManager",
    "SkillTask",
    "Source",
    "Span",
    "Step",
    "Trace",
    "WorkerProcesses",
    "cancelled",
    "explain",
    "mermaid",
    "skill",
    "torch_skill",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"minerua.chain has no {name!r}; it has {', '.join(__all__)}")
