"""Watches the processes of a sandbox until the program ends or a limit is passed; then none of them is left."""

from __future__ import annotations

import os
import resource
import select
import time

from . import kernel

TYPE_CHECKING = False  # typing's own takes longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

TICK_SECONDS = 0.01
_CLOCK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SIGKILL, _SIGXCPU, _SIGXFSZ = 9, 24, 25  # the module signal takes as long to import as Python to start

_SIGCONT, _SIGSTOP = (18, 19) if os.uname().sysname == "Linux" else (19, 17)


class suppress:  # noqa: N801 - contextlib.suppress, without its import
    """Passes over errors of some kinds."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self.kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self.kinds)


class Watch:
    """The processes below this one: how much they use, whether they must end, and their end.

    Args:
        order: `seconds`, `cpu_seconds`, `memory_bytes`, `processes`.
        proc: An open `/proc`, or `None` where there is none: then only time is watched.
        alone: This process is the init of a pid namespace, so that all processes in `proc` are the program's.
        control: What is open at the other end for as long as somebody wants the result.
    """

    def __init__(self, order: dict[str, Any], *, proc: int | None, alone: bool, control: int) -> None:
        self.order, self.proc, self.alone, self.control = order, proc, alone, control
        self.start = time.monotonic()
        self.peak_bytes = 0
        self.used: dict[tuple[int, str], float] = {}  # pid and start → seconds, of all that were ever seen
        self.status: int | None = None
        self.seconds = 0.0

    def begin(self, seconds: float) -> None:
        """Starts the time of another command, for which a new child may be started."""
        self.start, self.seconds = time.monotonic(), 0.0
        self.order["seconds"] = seconds

    def run(self, child: int) -> dict[str, Any]:
        """Waits for the program `child`, ends whatever it left behind, and returns how it went."""
        self._listen(child)
        ended = None
        tick = TICK_SECONDS
        while ended is None and not self.reap(child):
            began = time.monotonic()
            ended = self.passed(began)
            tick = max(TICK_SECONDS, 4 * (time.monotonic() - began))  # at most a fifth of a core
            if ended is None:
                self._sleep(began + tick)
        self.seconds = time.monotonic() - self.start
        self.end_all(child)
        return self.result(ended)

    def _listen(self, child: int) -> None:
        """Prepares what wakes this process: the program's end, and that nobody waits any more."""
        self.events = select.poll()
        self.events.register(self.control, select.POLLIN)
        if hasattr(os, "pidfd_open"):
            self.events.register(os.pidfd_open(child), select.POLLIN)

    def _sleep(self, until: float) -> None:
        """Sleeps until something happens or the time has come."""
        left = until - time.monotonic()
        if left > 0:
            self.events.poll(left * 1000)

    def reap(self, child: int) -> bool:
        """Collects what has ended; returns whether the program itself has."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == child:
                    self.status = status
                if pid == 0:
                    break
        return self.status is not None

    def passed(self, now: float) -> str | None:
        """Returns the limit that is passed, `"cancelled"` if nobody wants the result any more, or `None`."""
        if select.select([self.control], [], [], 0)[0]:
            return "cancelled"
        if now - self.start > self.order["seconds"]:
            return "seconds"
        if self.proc is None:
            return None
        pids = self._pids()
        memory = self._memory(pids)
        self.peak_bytes = max(self.peak_bytes, memory)
        if memory > self.order["memory_bytes"]:
            return "memory_bytes"
        if self._cpu(pids) > self.order["cpu_seconds"]:
            return "cpu_seconds"
        return "processes" if len(pids) > self.order["processes"] + self.order["processes_besides"] else None

    # ── who there is ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _pids(self) -> list[int]:
        if self.proc is None:
            return []
        every = [int(name) for name in os.listdir(self.proc) if name.isdecimal()]
        return [pid for pid in every if pid != 1] if self.alone else self._descendants(every)

    def _descendants(self, every: list[int]) -> list[int]:
        """Returns all below this process; complete, because it adopts orphans."""
        children: dict[int, list[int]] = {}
        for pid in every:
            with suppress(OSError):
                children.setdefault(int(self._stat(pid)[1]), []).append(pid)
        found = list(children.get(os.getpid(), []))
        for pid in found:  # grows while it is walked through
            found += children.get(pid, [])
        return found

    def _text(self, name: str) -> str:
        opened = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        try:
            return os.read(opened, 1 << 16).decode(errors="replace")
        finally:
            os.close(opened)

    def _stat(self, pid: int) -> list[str]:
        """Returns /proc/PID/stat from its third field on: a name may hold blanks and brackets."""
        return self._text(f"{pid}/stat").rpartition(")")[2].split()

    # ── what they use ────────────────────────────────────────────────────────────────────────────────────────────────

    def _memory(self, pids: list[int]) -> int:
        """Returns what all processes hold: pages that several share count once, if it matters."""
        resident = {pid: self._resident(pid) for pid in pids}
        if sum(resident.values()) <= self.order["memory_bytes"]:
            return sum(resident.values())
        return sum(self._proportional(pid, most) for pid, most in resident.items())

    def _resident(self, pid: int) -> int:
        with suppress(OSError, ValueError, IndexError):
            return int(self._text(f"{pid}/statm").split()[1]) * _PAGE
        return 0

    def _proportional(self, pid: int, most: int) -> int:
        with suppress(OSError, ValueError):
            lines = dict(line.split(":", 1) for line in self._text(f"{pid}/smaps_rollup").splitlines()[1:])
            return sum(int(lines[name].split()[0]) << 10 for name in ("Pss", "SwapPss") if name in lines)
        return most

    def _cpu(self, pids: list[int]) -> float:
        """Returns the seconds that all processes have used, the ended ones included."""
        total = _children_seconds()
        for pid in pids:
            with suppress(OSError, ValueError, IndexError):
                stat = self._stat(pid)
                total += sum(map(int, stat[11:15])) / _CLOCK  # own time, and that of its reaped children
                self.used[pid, stat[19]] = sum(map(int, stat[11:13])) / _CLOCK
        return max(total, sum(self.used.values()))  # a child that nobody waits for is counted by nobody else

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def end_all(self, child: int) -> None:
        """Kills until nobody is left."""
        seconds = 0.0002  # most are dead at once
        while True:
            self._signal_all(child, _SIGKILL)
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == child:
                self.status = status
            if pid == 0:
                time.sleep(seconds)
                seconds = min(2 * seconds, 0.002)

    def pause(self, child: int) -> None:
        """Stops everybody: between the commands of a session time stands still."""
        for _ in range(1 if self.alone else 2):  # -1 reaches whoever is just being forked; a list may miss them once
            self._signal_all(child, _SIGSTOP)

    def go_on(self, child: int) -> None:
        """Lets everybody go on."""
        self._signal_all(child, _SIGCONT)

    def _signal_all(self, child: int, number: int) -> None:
        for target in self._targets(child):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(target, number)

    def _targets(self, child: int) -> Iterator[int]:
        if self.alone:
            yield -1  # everybody in the pid namespace but its init, which is this process
            return
        yield from self._pids()
        if self.status is None:
            yield from (-child, child)

    def result(self, ended: str | None) -> dict[str, Any]:
        """Returns how the program went, and what all of them have used."""
        status = self.status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        if self.order["bubblewrap"] and os.WEXITSTATUS(status) > 128:
            number = os.WEXITSTATUS(status) - 128  # as bubblewrap tells of a signal
        by_kernel = {_SIGXCPU: "cpu_seconds", _SIGXFSZ: "file_bytes"}
        unit = 1024 if os.uname().sysname == "Linux" else 1
        return {
            "code": None if number else os.WEXITSTATUS(status),
            "signal": number,
            "limit": ended or by_kernel.get(number or 0),
            "seconds": self.seconds,
            "cpu_seconds": max(_children_seconds(), sum(self.used.values())),
            "peak_bytes": max(self.peak_bytes, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit),
        }


def _children_seconds() -> float:
    """Returns the seconds that this process's ended children have used, and theirs that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spawn(child: Callable[[], None], failed: Callable[[Exception], None]) -> int:
    """Forks and runs `child`, which becomes another program; tells `failed` if it cannot; returns the pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        kernel.default_signals()
        os.setsid()
        child()
    except Exception as error:  # noqa: BLE001 - whatever keeps the program from starting is no outcome of its own
        failed(error)
    finally:
        os._exit(126)
