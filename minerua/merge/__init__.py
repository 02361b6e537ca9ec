"""Merging: recipes in mergekit's YAML, methods that turn several models into one, and the engine that streams them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minerua.merge.merging import PreparedMerge, merge_models, merge_tensors, prepare_merge

__all__ = ["PreparedMerge", "merge_models", "merge_tensors", "prepare_merge"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: the registry loads this room's hooks, and nothing else of it."""
    if name in __all__:
        from minerua.merge import merging

        return getattr(merging, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
