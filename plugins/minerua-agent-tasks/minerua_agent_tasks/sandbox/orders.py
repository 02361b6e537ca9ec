"""What is told to the process that starts a program: plain values."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .filter import MACHINES, assemble
from .limits import Limits
from .view import View

__all__ = ["BOOT", "FOLDER", "MACHINES", "USER", "WRITABLE", "faults", "order"]

FOLDER = str(Path(__file__).parent)
"""Where the package `inside` lies."""

BOOT = "import sys;sys.path.insert(0,sys.argv[1]);from inside.launcher import main;main(sys.argv[2:])"
"""What the first process is: a fresh interpreter with the package `inside` and nothing else of minerua."""

USER = "user"
"""What the user of a session is called."""

WRITABLE = ("/tmp", "/home", "/root", "/etc", "/var", "/opt", "/srv", "/mnt", "/media", "/data", "/workspace")
"""Folders that a session may write to; empty at its beginning, but for the home folder and the user's name."""

_ACCOUNTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\n{user}:x:65534:65534::/home/{user}:/bin/bash\n",
    "/etc/group": "root:x:0:\n{user}:x:65534:\n",
    "/etc/hostname": "sandbox\n",
}

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
    mode: str,
    view: View,
    command: list[str],
    files: Mapping[str, str | bytes],
    limits: Limits,
    *,
    folder: str,
    is_session: bool = False,
    merged: bool = False,
) -> dict[str, Any]:
    """Returns the order for one run; what the process inside bubblewrap is told is its entry `within`."""
    strong = mode != "weak"
    home, room = _places(folder, is_session)
    accounts = {name: text.format(user=USER) for name, text in _ACCOUNTS.items()} if is_session and strong else {}
    known: dict[str, str | bytes] = {**accounts, **files}
    told: dict[str, Any] = {
        "how": mode,
        "command": command,
        "environment": view.variables(home) | ({"USER": USER, "LOGNAME": USER} if is_session else {}),
        "files": {name: text.encode() if isinstance(text, str) else text for name, text in known.items()},
        "home": home,
        "room": room,
        "session": is_session,
        "merged": merged,
        "writable": list(WRITABLE) if is_session else ["/tmp"],
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
        told |= {"bubblewrap": _bubblewrap(view, limits), "files": {}, "room": "", "processes_besides": 4}
    return told


def _places(folder: str, is_session: bool) -> tuple[str, str]:
    """Returns home and working folder; in a session they are the same, as for somebody who logs in."""
    if is_session:
        home = f"{folder}/{USER}" if folder else f"/home/{USER}"
        return home, home
    return f"{folder or '/tmp'}/home", f"{folder or '/tmp'}/room"


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
