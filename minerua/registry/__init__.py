"""Who provides what: loads every plugin behind a guard and accounts for each one.

A plugin that cannot be used is quarantined as a whole, with its reason, and everything else goes on. Nothing here is
global: a registry is a frozen value that is handed to whoever needs it.
"""

from minerua.registry.catalog import ALLOWED_VARIABLE, DISABLED_VARIABLE, Catalog, Plugin
from minerua.registry.loading import Registry
from minerua.registry.specs import KINDS, Kind, spec_faults
from minerua.registry.tracing import TRACE_VARIABLE, Call

__all__ = [
    "ALLOWED_VARIABLE",
    "DISABLED_VARIABLE",
    "KINDS",
    "TRACE_VARIABLE",
    "Call",
    "Catalog",
    "Kind",
    "Plugin",
    "Registry",
    "spec_faults",
]
