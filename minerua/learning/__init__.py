"""Learning: datasets, a loop that a person can read, and runs that go on bit for bit where they were killed.

Importing this room imports no torch; a name is looked up in its module when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minerua.learning.checkpoints import CheckpointManager
    from minerua.learning.config import TrainingConfig
    from minerua.learning.datasets import DatasetManager
    from minerua.learning.devices import DeviceManager
    from minerua.learning.evaluator import ModelEvaluator
    from minerua.learning.pipeline import LearningPipeline, learn
    from minerua.learning.reports import EvaluationReport, Learned, Observer, StartReport, StepReport
    from minerua.learning.trainer import ModelTrainer

__all__ = [
    "CheckpointManager",
    "DatasetManager",
    "DeviceManager",
    "EvaluationReport",
    "Learned",
    "LearningPipeline",
    "ModelEvaluator",
    "ModelTrainer",
    "Observer",
    "StartReport",
    "StepReport",
    "TrainingConfig",
    "learn",
]

_HOMES = {
    "CheckpointManager": "checkpoints",
    "DatasetManager": "datasets",
    "DeviceManager": "devices",
    "EvaluationReport": "reports",
    "Learned": "reports",
    "LearningPipeline": "pipeline",
    "ModelEvaluator": "evaluator",
    "ModelTrainer": "trainer",
    "Observer": "reports",
    "StartReport": "reports",
    "StepReport": "reports",
    "TrainingConfig": "config",
    "learn": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"minerua.learning has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"minerua.learning.{_HOMES[name]}"), name)
