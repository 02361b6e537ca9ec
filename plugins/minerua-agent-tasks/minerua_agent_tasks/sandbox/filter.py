"""The seccomp filter: which system calls a program may not make, as a program for the kernel's BPF machine.

Only what a program without rights could still reach is listed with care; most of the rest would fail anyway, and is
refused so that faults of the kernel behind it cannot be reached.

Source: seccomp(2); https://docs.kernel.org/userspace-api/seccomp_filter.html; numbers from the kernel's own tables
(arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["MACHINES", "REFUSED", "assemble"]

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine → its AUDIT_ARCH number."""

# Call → numbers on x86-64 and aarch64; `None` where it does not exist.
_BOTH: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),  # memory that no process has mapped is counted nowhere
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "set_mempolicy": (238, 237),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),  # as memfd_create
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
    "_sysctl": (156, None),
}
_SHARED = {  # the same number on all machines
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
    "process_mrelease": 448,
    "set_mempolicy_home_node": 450,
    "statmount": 457,
    "listmount": 458,
    "open_tree_attr": 467,
}
REFUSED = tuple(sorted({*_BOTH, *_SHARED}))
"""Calls that fail with EPERM, whatever their arguments."""

_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone takes
_UNIX = 1
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_PRIO_PROCESS = 0
# Call → numbers; tests, of which each must hold: argument, "is" or "is not" a value, or has "none of" some bits.
_GUARDED: dict[str, tuple[tuple[int, int], tuple[tuple[int, str, int], ...]]] = {
    "clone": ((56, 220), ((0, "none of", _NAMESPACES),)),
    "ioctl": ((16, 29), ((1, "is not", _TIOCSTI), (1, "is not", _TIOCLINUX))),
    "prlimit64": ((302, 261), ((0, "is", 0),)),  # a program's limits are its own: its watcher has the same user
    "sched_setaffinity": ((203, 122), ((0, "is", 0),)),
    "sched_setattr": ((314, 274), ((0, "is", 0),)),
    "sched_setparam": ((142, 118), ((0, "is", 0),)),
    "sched_setscheduler": ((144, 119), ((0, "is", 0),)),
    "setpriority": ((141, 140), ((0, "is", _PRIO_PROCESS), (1, "is", 0))),
    "socket": ((41, 198), ((0, "is", _UNIX),)),
    "socketpair": ((53, 199), ((0, "is", _UNIX),)),
}
_CLONE3 = 435
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data
_Instruction = tuple[int, int, int, int]


@lru_cache(maxsize=2)
def assemble(machine: str | None = None) -> bytes:
    """Returns the filter as an array of `struct sock_filter`.

    Args:
        machine: `"x86_64"` or `"aarch64"`; by default this one.

    Raises:
        KeyError: For this machine there is no table.

    Example:
        >>> len(assemble("x86_64")) % 8
        0
    """
    machine = machine or platform.machine()
    column = list(MACHINES).index(machine) if machine in MACHINES else None
    if column is None:
        raise KeyError(f"no filter for the machine {machine!r}; there are filters for {', '.join(MACHINES)}")
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_EQUAL, 1, 0, MACHINES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine == "x86_64":  # the x32 interface has numbers of its own for everything
        program += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    # The C library goes back to clone when clone3 does not exist; only clone has its flags where a filter sees them.
    program += _when(_CLONE3, [(_RETURN, 0, 0, _REFUSE | errno.ENOSYS)])
    for numbers, tests in _GUARDED.values():
        program += _when(numbers[column], _body(tests))
    refused = [pair[column] for pair in _BOTH.values()]
    for number in sorted({*(n for n in refused if n is not None), *_SHARED.values()}):
        program += _when(number, [(_RETURN, 0, 0, _REFUSE | errno.EPERM)])
    return _packed([*program, (_RETURN, 0, 0, _ALLOW)])


def _when(number: int, body: list[_Instruction]) -> list[_Instruction]:
    return [(_EQUAL, 0, len(body), number), *body]


def _body(tests: Iterable[tuple[int, str, int]]) -> list[_Instruction]:
    """Looks at the low halves of arguments: the kernel takes no more of those that are tested."""
    body: list[_Instruction] = []
    for argument, how, value in tests:
        jump, if_so, if_not = {"is": (_EQUAL, 1, 0), "is not": (_EQUAL, 0, 1), "none of": (_ANY_BIT, 0, 1)}[how]
        body += [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument), (jump, if_so, if_not, value)]
        body.append((_RETURN, 0, 0, _REFUSE | errno.EPERM))
    return [*body, (_RETURN, 0, 0, _ALLOW)]


def _packed(program: Iterable[_Instruction]) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
