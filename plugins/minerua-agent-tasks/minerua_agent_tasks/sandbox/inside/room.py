"""The sandbox's own file system: system folders to read, one small folder to write, three devices, and nothing else."""

from __future__ import annotations

import os

from . import kernel

TYPE_CHECKING = False  # typing's own takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

_DEVICES = ("null", "zero", "urandom")


def build(order: dict[str, Any]) -> int:
    """Builds the new root, moves into it and lets the old one go.

    Args:
        order: `disk_bytes`, `disk_files`; `session`, with `writable`, folders directly below the root; `binds`, the
            folders to show; `links`, path → target.

    Returns:
        An open folder: the `/proc` of this pid namespace, which no path leads to.
    """
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    proc = _hidden_proc()
    # Built over /proc, the one folder that is always there and that nobody wants to see.
    kernel.mount("sandbox", "/proc", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,nr_inodes=4096,mode=0755")
    os.chdir("/proc")
    _several_writable(order) if order["session"] else _writable(order)  # before what is shown: it may lie below /tmp
    for path in order["binds"]:
        _show(path)
    for path, target in order["links"].items():
        os.makedirs(os.path.dirname(path[1:]) or ".", exist_ok=True)
        os.symlink(target, path[1:])
    _devices()
    kernel.pivot_here()
    kernel.seal_mount("/", recursive=False, executable=True)
    return proc


def _hidden_proc() -> int:
    """Mounts a fresh /proc over the old one, opens it, and takes it away again."""
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    kernel.detach("/proc")
    return proc


def _show(path: str) -> None:
    """Binds a folder or file of the old root to the same place below the current folder, read-only."""
    place = "." + path
    if os.path.isdir(path):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    kernel.mount(path, place, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.seal_mount(place, recursive=True, executable=True)


def _devices() -> None:
    os.mkdir("dev", 0o755)
    for name in _DEVICES:
        os.close(os.open(f"dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        kernel.mount(f"/dev/{name}", f"dev/{name}", None, kernel.MS_BIND)
        kernel.seal_mount(f"dev/{name}", recursive=False, executable=False)
    os.symlink("/tmp", "dev/shm")  # where the C library keeps semaphores


def _limits(order: dict[str, Any], mode: str) -> str:
    """Returns the options of a file system in memory."""
    return ",".join([f"size={order['disk_bytes']}", f"nr_inodes={order['disk_files']}", f"mode={mode}"])


def _writable(order: dict[str, Any]) -> None:
    os.mkdir("tmp", 0o755)
    kernel.mount("work", "tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _limits(order, "1777"))


def _several_writable(order: dict[str, Any]) -> None:
    """Shows folders of one small file system at several places, so that their limits are shared."""
    os.mkdir("work", 0o755)
    kernel.mount("work", "work", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, _limits(order, "0755"))
    for path in order["writable"]:
        place = path[1:]
        for made in (place, f"work/{place}"):
            os.mkdir(made)
        os.chmod(f"work/{place}", 0o1777)
        kernel.mount(f"work/{place}", place, None, kernel.MS_BIND)
    kernel.detach("work")
    os.rmdir("work")
