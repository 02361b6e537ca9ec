"""Who provides what: loads every plugin behind a guard and accounts for each one.

A plugin that cannot be used is quarantined as a whole, with its reason, and everything else goes on. Nothing here is
global: a registry is a frozen value that is handed to whoever needs it.
"""

from minerua.registry.catalog import DISABLED_VARIABLE, Catalog, Plugin
from minerua.registry.loading import Registry
from minerua.registry.specs import KINDS, Kind, spec_faults

__all__ = ["DISABLED_VARIABLE", "KINDS", "Catalog", "Kind", "Plugin", "Registry", "spec_faults"]
