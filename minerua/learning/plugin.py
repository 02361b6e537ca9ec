"""minerua's own optimizers and losses, which the registry finds through minerua's own entry point."""

from __future__ import annotations

from minerua.hookspecs import hookimpl
from minerua.learning.losses import losses
from minerua.learning.optimizers import optimizers
from minerua.values import LossSpec, OptimizerSpec


@hookimpl
def minerua_optimizers() -> list[OptimizerSpec]:
    """Provides torch's own optimizers, and Muon with AdamW."""
    return optimizers()


@hookimpl
def minerua_losses() -> list[LossSpec]:
    """Provides the usual losses."""
    return losses()
