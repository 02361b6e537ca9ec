"""A sandbox worthy of untrusted programs, built from what Linux gives without root."""

from __future__ import annotations

from .box import MODES, Offer, Sandbox
from .limits import Limits, Outcome, SandboxError, SandboxUnavailable
from .session import COMMAND_BYTES, Session

__all__ = [
    "COMMAND_BYTES",
    "MODES",
    "Limits",
    "Offer",
    "Outcome",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailable",
    "Session",
]
