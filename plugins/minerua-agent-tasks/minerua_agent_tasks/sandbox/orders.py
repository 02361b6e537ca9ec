"""What is told to the process that starts a program: plain values."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .filter import MACHINES, assemble
from .limits import Limits
from .view import View

__all__ = ["BOOT", "FOLDER", "MACHINES", "faults", "order"]

FOLDER = str(Path(__file__).parent)
"""Where the package `inside` lies."""

BOOT = "import sys;sys.path.insert(0,sys.argv[1]);from inside.launcher import main;main(sys.argv[2:])"
"""What the first process is: a fresh interpreter with the package `inside` and nothing else of minerua."""

_INSIDE = "/sandbox"


def faults(command: Sequence[str], files: Mapping[str, str | bytes], limits: Limits) -> list[str]:
    """Returns what is wrong with a program before it is run."""
    found = []
    if isinstance(command, str) or not command or not all(isinstance(word, str) for word in command):
        found.append(f"the command is {command!r}; a list of texts is needed, the program first")
    elif any("\0" in word for word in command):
        found.append("the command has a zero byte in it; no program can be given one")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            found.append(f"the file {name!r} is not below the program's folder; give a relative path without '..'")
    sizes = [len(content.encode() if isinstance(content, str) else content) for content in files.values()]
    if sum(sizes) > limits.disk_bytes:
        found.append(f"the files have {sum(sizes)} bytes; disk_bytes is {limits.disk_bytes}: raise it")
    return found


def order(
    mode: str, view: View, command: list[str], files: Mapping[str, str | bytes], limits: Limits, *, folder: str
) -> dict[str, Any]:
    """Returns the order for one run; what the process inside bubblewrap is told is its entry `within`."""
    strong = mode != "weak"
    told: dict[str, Any] = {
        "how": mode,
        "command": command,
        "environment": view.variables("/tmp/home" if strong else f"{folder}/home"),
        "files": {name: text.encode() if isinstance(text, str) else text for name, text in files.items()},
        "folder": folder,
        "filter": assemble() if strong else b"",
        "has_capabilities": mode == "namespaces",
        "processes_kept_by_kernel": strong,
        "processes_besides": 0,
        "binds": view.binds,
        "links": view.links,
        "bubblewrap": [],
        **{name: getattr(limits, name) for name in limits.__dataclass_fields__},
    }
    if mode == "bubblewrap":
        told["within"] = {**told, "how": "inside", "processes_besides": 2}
        told |= {"bubblewrap": _bubblewrap(view, limits), "files": {}, "processes_besides": 4}
    return told


def _bubblewrap(view: View, limits: Limits) -> list[str]:
    """Returns bubblewrap's own command, up to the numbers of open files."""
    words = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"]
    words += ["--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--clearenv"]
    words += ["--size", str(limits.disk_bytes), "--tmpfs", "/tmp", "--dir", "/dev", "--symlink", "/tmp", "/dev/shm"]
    for path in view.binds:
        words += ["--ro-bind", path, path]
    for path, target in view.links.items():
        words += ["--symlink", target, path]
    for name in ("null", "zero", "urandom"):
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    words += ["--ro-bind", f"{FOLDER}/inside", f"{_INSIDE}/inside", "--remount-ro", "/", "--chdir", "/tmp", "--"]
    return [*words, view.python, "-I", "-S", "-B", "-c", BOOT, _INSIDE]
