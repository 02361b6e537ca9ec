"""The calls of Linux that Python has no function for, through ctypes; each failure is an OSError that names the call.

Source: man pages unshare(2), mount(2), mount_setattr(2), pivot_root(2), prctl(2), capset(2), seccomp(2), landlock(7).
"""

from __future__ import annotations

import ctypes
import os

NEW_NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
NEW_USER = 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
_NUMBERS = {  # x86-64, aarch64; from 424 on all machines share their numbers
    "pivot_root": {"x86_64": 155, "aarch64": 41},
    "capset": {"x86_64": 126, "aarch64": 91},
    "seccomp": {"x86_64": 317, "aarch64": 277},
}
_CLOSE_RANGE, _MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 436, 442, 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 1, 4, 24, 28
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_NO_ROOT_LOCKED = 0b00101111  # NOROOT, NO_SETUID_FIXUP, each locked, and KEEP_CAPS locked off
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _syscall(name: str, number: int, *arguments: object) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(name, _libc.syscall(ctypes.c_long(number), *words))


def _number(name: str) -> int:
    return _NUMBERS[name][os.uname().machine]


def _prctl(name: str, *arguments: int) -> None:
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:5]]
    _checked(name, _libc.prctl(*padded))


# ── namespaces and mounts ────────────────────────────────────────────────────────────────────────────────────────────


def unshare(flags: int) -> None:
    """Moves this process, or its next child for the pid namespace, into fresh namespaces."""
    _checked("unshare", _libc.unshare(flags))


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mounts a file system, or changes a mount."""
    words = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _checked(f"mount {target}", _libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]))


def seal_mount(target: str, *, recursive: bool, executable: bool) -> None:
    """Makes a mount read-only, without set-user-id; recursively with every mount below it. Needs Linux 5.12."""
    attributes = MS_RDONLY | MS_NOSUID | (0 if executable else MS_NOEXEC)  # MOUNT_ATTR_* have the same bits
    words = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)  # set, clear, propagation, userns_fd
    flags = 0x8000 if recursive else 0  # AT_RECURSIVE
    path = ctypes.c_char_p(target.encode())
    _syscall(f"mount_setattr {target}", _MOUNT_SETATTR, -100, path, flags, ctypes.byref(words), 32)


def detach(target: str) -> None:
    """Unmounts a tree at once; what is open stays usable for who has it open."""
    _checked(f"umount2 {target}", _libc.umount2(target.encode(), 2))


def pivot_here() -> None:
    """Makes the current folder, a mount point, the root; the old root is gone afterwards."""
    dot = ctypes.c_char_p(b".")
    _syscall("pivot_root", _number("pivot_root"), dot, dot)  # stacked, see pivot_root(2), "pivot_root(".", ".")"
    detach(".")
    os.chdir("/")


def name_host(name: str) -> None:
    """Gives the machine a name, in this namespace only."""
    _checked("sethostname", _libc.sethostname(name.encode(), len(name)))


def default_signals() -> None:
    """Undoes what Python does to signals when it starts: SIGINT, SIGPIPE and SIGXFSZ are as for any program."""
    for number in (2, 13, 25):
        _libc.signal(number, None)  # SIG_DFL


# ── rights ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def die_with_parent() -> None:
    """Asks for SIGKILL when the thread that started this process ends."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Makes this process the parent of whatever its descendants leave behind."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(value: bool) -> None:
    """Allows, or not, that processes of the same user look into this one's memory."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(value))


def drop_capabilities(*, bounding: bool) -> None:
    """Gives up all capabilities for good; the bounding set too where this process may."""
    if bounding:
        _prctl("PR_SET_SECUREBITS", _PR_SET_SECUREBITS, _NO_ROOT_LOCKED)
        for capability in range(64):
            try:
                _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)
            except OSError:  # noqa: PERF203 - past the kernel's last capability
                break
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    nothing = (ctypes.c_uint32 * 6)()
    _syscall("capset", _number("capset"), ctypes.byref(header), ctypes.byref(nothing))


def close_on_exec() -> None:
    """Keeps standard input, output and error for what is executed next, and no other open file. Needs Linux 5.11."""
    _syscall("close_range", _CLOSE_RANGE, 3, 0xFFFFFFFF, 4)


def no_new_privileges() -> None:
    """From now on no execve gives rights."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def install_filter(program: bytes) -> None:
    """Installs a seccomp filter: `program` is an array of `struct sock_filter`."""

    class _Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    held = ctypes.create_string_buffer(program, len(program))
    whole = _Program(len(program) // 8, ctypes.cast(held, ctypes.c_char_p))
    _syscall("seccomp", _number("seccomp"), 1, 0, ctypes.byref(whole))  # SECCOMP_SET_MODE_FILTER


# ── Landlock ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_WRITES = {1: 0x1FF2, 2: 0x3FF2, 3: 0x7FF2}
"""Landlock version → every right that changes files: all but execute, read a file, read a folder."""


def landlock_version() -> int:
    """Returns the kernel's Landlock version; 0 where it has none."""
    try:
        return _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def restrict_writes(folders: list[str]) -> None:
    """Allows this process changes below some folders only, no TCP, and no signals to processes outside.

    Needs `no_new_privileges` before it. Does nothing where the kernel has no Landlock: it is a second wall.
    """
    version = landlock_version()
    if not version:
        return
    handled = _WRITES[min(version, 3)]
    words = (ctypes.c_uint64 * 3)(handled, 3, 3)  # files, TCP bind and connect, abstract sockets and signals
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, ctypes.byref(words), size, 0)
    for folder in folders:
        _allow(rules, folder, handled)
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _allow(rules: int, folder: str, rights: int) -> None:
    opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    packed = rights.to_bytes(8, "little") + opened.to_bytes(4, "little")
    rule = ctypes.create_string_buffer(packed, len(packed))
    _syscall("landlock_add_rule", _LANDLOCK_ADD, rules, 1, ctypes.byref(rule), 0)
    os.close(opened)
