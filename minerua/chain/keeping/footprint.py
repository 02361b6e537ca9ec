"""How much memory models and this process take, as far as they or the system say."""

from __future__ import annotations

import os
import sys
from typing import Any


def declared_bytes(model: Any) -> int | None:
    """Returns what a loaded model says that it takes, by `loaded_bytes` or numpy's word `nbytes`; `None` if nothing.

    Example:
        >>> declared_bytes(b"no such attribute") is None
        True
    """
    for name in ("loaded_bytes", "nbytes"):
        value = getattr(model, name, None)
        if type(value) is int and value >= 0:
            return value
    return None


def resident_bytes() -> int:
    """Returns what this process has in memory; where the system does not say, the most that it ever had."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_bytes()


def data_bytes() -> int:
    """Returns what this process has mapped for data of its own, which is what `RLIMIT_DATA` bounds.

    Memory that is shared with other processes is no part of it. Where the system does not say, it is the most that
    the process ever had in memory.
    """
    try:
        with open("/proc/self/status", "rb") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmData"))
    except OSError:
        return _peak_bytes()


def _peak_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
