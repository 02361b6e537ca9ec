"""What a program can see of this machine, and its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from minerua.errors import ConfigError

__all__ = ["View"]

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/libx32", "/lib64")


class View:
    """The folders that are shown, read-only, and the variables that are set.

    Args:
        python: An interpreter whose folder is shown too; by default the one that runs this.
        readable: More folders or files to show, at their own places.
        environment: More variables, and others than the defaults.

    Raises:
        ConfigError: A folder that does not exist, or that would show a home directory; all of them listed.
    """

    def __init__(
        self, *, python: str | None = None, readable: Iterable[str | Path] = (), environment: Mapping[str, str]
    ) -> None:
        base = python or getattr(sys, "_base_executable", None) or sys.executable
        self.python = os.path.realpath(base)
        prefix = os.path.dirname(os.path.dirname(self.python)) if python else os.path.realpath(sys.base_prefix)
        wanted = [prefix, *(os.path.realpath(path) for path in readable)]
        faults = [fault for path in (self.python, *wanted) if (fault := _fault(path))]
        if faults:
            raise ConfigError("a sandbox cannot show what it is asked to", dict.fromkeys(faults))
        self.links = {path: os.readlink(path) for path in _SYSTEM if os.path.islink(path)}
        system = ["/usr", *(path for path in _SYSTEM if os.path.isdir(path) and not os.path.islink(path))]
        self.binds = _outermost([*system, *wanted])
        self.environment = {
            "PATH": f"{os.path.dirname(self.python)}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "PYTHONHASHSEED": "0",  # the same program, the same order of sets
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **environment,
        }

    def variables(self, home: str) -> dict[str, str]:
        """Returns the environment of a program whose home is `home`."""
        return {"HOME": home, "TMPDIR": home, **self.environment}


def _fault(path: str) -> str | None:
    if not os.path.exists(path):
        return f"{path} does not exist; give an absolute path that does"
    home = os.path.realpath(os.path.expanduser("~"))
    if os.path.isdir(path) and _is_within(home, path):
        return f"{path} would show the home directory {home}; give folders further down"
    return None


def _is_within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _outermost(paths: Iterable[str]) -> list[str]:
    """Returns the paths without those that lie in another one, in order."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(_is_within(path, other) for other in kept):
            kept.append(path)
    return kept
