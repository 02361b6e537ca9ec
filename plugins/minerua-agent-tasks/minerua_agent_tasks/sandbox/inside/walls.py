"""What a program's process does to itself last, before it becomes the program: limits, rights, filter."""

from __future__ import annotations

import os
import resource
import sys

from . import kernel

TYPE_CHECKING = False  # typing's own takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

SYSTEM_BYTES = 64 << 10
SPARED = 16
"""What part of the memory no process can have for itself. Without it a program that takes all there is would at times
be refused memory, and at times be ended with those who judge it, depending on when the watcher looks."""


def limit(order: dict[str, Any]) -> None:
    """Sets the limits that the kernel keeps for each process; none can be raised again."""
    os.nice(5)  # whoever watches comes first, and so does the rest of the machine
    cpu = int(order["cpu_seconds"]) + 1  # the watcher is exact; this is for when it is late
    limits = {
        "RLIMIT_CPU": (cpu, cpu + 1),
        "RLIMIT_AS": order["memory_bytes"] - order["memory_bytes"] // SPARED,
        "RLIMIT_FSIZE": order["file_bytes"],
        "RLIMIT_NOFILE": 256,
        "RLIMIT_STACK": 8 << 20,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": SYSTEM_BYTES,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_NICE": 0,
        "RLIMIT_RTPRIO": 0,
        "RLIMIT_SIGPENDING": 256,
    }
    if order["processes_kept_by_kernel"]:
        limits["RLIMIT_NPROC"] = order["processes"] + order["processes_besides"]
    for name, value in limits.items():
        if hasattr(resource, name):  # other systems have fewer of them
            _lower(getattr(resource, name), value if isinstance(value, tuple) else (value, value))


def _lower(kind: int, wanted: tuple[int, int]) -> None:
    _, hard = resource.getrlimit(kind)
    capped = [value if hard == resource.RLIM_INFINITY else min(value, hard) for value in wanted]
    try:
        resource.setrlimit(kind, (capped[0], capped[1]))
    except (OSError, ValueError):
        if sys.platform == "linux":  # elsewhere some limits exist in name only
            raise


def raise_walls(order: dict[str, Any]) -> None:
    """Gives up every right and installs Landlock and the filter."""
    kernel.close_on_exec()
    kernel.drop_capabilities(bounding=order["has_capabilities"])
    kernel.no_new_privileges()
    kernel.restrict_writes([*order["writable"], "/dev"])
    kernel.install_filter(order["filter"])


def become(order: dict[str, Any]) -> None:
    """Becomes the program; does not return.

    Raises:
        OSError: The program cannot be found or executed.
    """
    command = order["command"]
    if "/" in command[0]:
        os.execve(command[0], command, order["environment"])
    os.execvpe(command[0], command, order["environment"])
