"""The sandbox's first process: reads the order, makes the walls, starts the program, watches it, reports.

`python -I -S -c BOOT FOLDER ORDER STATUS CONTROL PARENT`: the numbers of three open files and the parent's pid. It
must not import minerua: a fresh interpreter that does nothing but this is what may safely fork and unshare.
"""

from __future__ import annotations

import marshal
import os
import sys

from . import files, kernel, reports, walls, watch

TYPE_CHECKING = False  # typing's own takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

_UNUSED_USERS = 1_879_048_192
"""The first of the user ids that nobody gives out, according to systemd's table of uids (systemd.io/UIDS-GIDS)."""
_NOBODY = 65534


class Run:
    """One run, from its order to its report.

    Args:
        order: What `Sandbox` wants.
        status: Where the report goes.
        control: Closed at the other end, or written to, when nobody wants the result any more.
    """

    def __init__(self, order: dict[str, Any], status: int, control: int) -> None:
        self.order, self.status, self.control = order, status, control
        self.step = "start"

    def report(self, **fields: Any) -> None:
        """Writes the report: one line of JSON."""
        os.write(self.status, reports.line(fields))

    def failed(self, error: Exception) -> None:
        """Reports that something could not be done, and what."""
        self.report(fault=f"{self.step}: {error}")

    # ── namespaces ───────────────────────────────────────────────────────────────────────────────────────────────────

    def in_namespaces(self) -> None:
        """Enters fresh namespaces, becomes the waiting parent of their init."""
        kernel.die_with_parent()
        kinds = sum(kernel.NEW_NAMESPACES.values())
        self.step = "enter fresh namespaces"
        is_root = os.geteuid() == 0
        if is_root:
            try:
                kernel.unshare(kinds)
            except PermissionError:  # root without rights, as in many containers
                is_root = False
                _become_nobody(os.getpid())
        if not is_root:
            _enter_user_namespace(kinds)
            kernel.die_with_parent()  # a change of user forgets it
        number = os.getpid()
        self.order["processes_besides"] = 1 if is_root else 2  # of this user namespace: the init, and this process
        pid = os.fork()
        if pid == 0:
            self.guarded(lambda: self._init(number if is_root else None))
        os.close(self.status)
        os.close(self.control)
        for standard in (0, 1, 2):
            os.close(standard)
        os.waitpid(pid, 0)

    def guarded(self, body: Any) -> None:
        """Does something and ends this process; what went wrong is told."""
        try:
            body()
        except Exception as error:  # noqa: BLE001 - told to whoever asked, who raises it
            self.failed(error)
        finally:
            os._exit(0)

    def _init(self, number: int | None) -> None:
        """The init of the pid namespace: builds the room, drops root if there is any, watches."""
        from . import room

        kernel.die_with_parent()
        kernel.default_signals()  # a signal without handler does not reach an init
        self.step = "build the file system"
        proc = room.build(self.order)
        kernel.name_host("sandbox")
        if number is not None:
            self.step = "become nobody"
            here = os.open("self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
            _become_nobody(number)
            _enter_user_namespace(0, here)
            os.close(here)
        kernel.die_with_parent()  # a change of user forgets it
        kernel.set_dumpable(False)
        self.step = "furnish the room"
        self._furnish()
        self.watch(proc=proc, alone=True)

    # ── bubblewrap, and nothing ──────────────────────────────────────────────────────────────────────────────────────

    def beside(self) -> None:
        """Runs a command as it stands and watches it from outside: its own walls are bubblewrap's, or none."""
        proc = None
        if sys.platform == "linux":
            kernel.die_with_parent()
            kernel.adopt_orphans()
            proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if self.order["room"]:
            self._furnish()
        self.watch(proc=proc, alone=False)

    def within_bubblewrap(self) -> None:
        """What bubblewrap starts: the files, the limits, the second walls, the program."""
        self._furnish()
        self._become()

    def _furnish(self) -> None:
        files.furnish(self.order["files"], self.order["home"], self.order["room"])

    # ── the program ──────────────────────────────────────────────────────────────────────────────────────────────────

    def watch(self, *, proc: int | None, alone: bool) -> None:
        """Starts the program, waits for it, reports; or carries out the commands of a session."""
        watching = watch.Watch(self.order, proc=proc, alone=alone, control=self.control)
        if self.order["session"]:
            from . import serving

            self.step = "start the shell, or a program of the session"
            serving.Serving(watching, self.control, self.failed).serve()
            return
        pid = watch.spawn(self._become, self.failed)
        self.report(**watching.run(pid))

    def _become(self) -> None:
        if self.order["bubblewrap"]:
            for inherited in self.order["keep"]:
                os.set_inheritable(inherited, True)
            if os.geteuid() == 0:
                _become_nobody(os.getpid())
            os.execve(self.order["bubblewrap"][0], self.order["bubblewrap"], {"PATH": "/usr/bin:/bin"})
        self.step = "set the limits"
        walls.limit(self.order)
        if self.order["filter"]:
            self.step = "raise the walls"
            walls.raise_walls(self.order)
        self.step = "start the program"
        walls.become(self.order)


def _become_nobody(number: int) -> None:
    """Gives up root for a user id of this run alone; where that is not mapped for the id of nobody."""
    os.setgroups([])
    for user in (_UNUSED_USERS + number, _NOBODY):
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:
            continue
        kernel.set_dumpable(True)  # or /proc/self stays root's, and the maps cannot be written
        return


def _enter_user_namespace(kinds: int, proc_self: int | None = None) -> None:
    """Enters a user namespace, and others with it, in which this user is called nobody."""
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEW_USER | kinds)
    folder = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if proc_self is None else proc_self
    lines = {"setgroups": "deny", "uid_map": f"{_NOBODY} {user} 1", "gid_map": f"{_NOBODY} {group} 1"}
    for name, text in lines.items():
        opened = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
        os.write(opened, text.encode())
        os.close(opened)
    if proc_self is None:
        os.close(folder)


def main(arguments: list[str]) -> None:
    """Carries out one order and ends this process."""
    order_file, status, control, parent = map(int, arguments)
    os.lseek(order_file, 0, os.SEEK_SET)
    with open(order_file, "rb") as file:
        order = marshal.load(file)  # from the same interpreter, a moment ago: no format needs to be agreed on
    for inherited in (status, control):
        if inherited >= 0:
            os.set_inheritable(inherited, False)
    run = Run(order, status, control)
    how = {"namespaces": run.in_namespaces, "inside": run.within_bubblewrap}.get(order["how"], run.beside)
    if parent and os.getppid() != parent:
        os._exit(0)  # it died before anything could notice
    run.guarded(how)
