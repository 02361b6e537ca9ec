"""A sandbox worthy of untrusted programs, built from what Linux gives without root."""

from __future__ import annotations

from .box import MODES, Offer, Sandbox
from .limits import Limits, Outcome, SandboxError, SandboxUnavailable

__all__ = ["MODES", "Limits", "Offer", "Outcome", "Sandbox", "SandboxError", "SandboxUnavailable"]
