"""Evaluation: evaluators over a child, with splits, seeds, time limits, a cache and failures as values."""

from minerua.evaluation.runner import Evaluation
from minerua.evaluation.splits import Task, deal, item_faults, split_of

__all__ = ["Evaluation", "Task", "deal", "item_faults", "split_of"]
