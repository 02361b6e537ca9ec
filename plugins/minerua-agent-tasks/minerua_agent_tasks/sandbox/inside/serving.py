"""Carries out the commands of a session, one after the other, in one shell that lives between them.

Requests come over the control socket: four bytes of length, then a dictionary as `marshal` writes it, from the same
interpreter. A reply is one line, a dictionary as Python writes it, then what was written to standard output and error.
"""

from __future__ import annotations

import marshal
import os
import select
import time

from . import reports, walls, watch
from .watch import suppress

TYPE_CHECKING = False  # typing's own takes longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_COMMANDS, _DONE, _OUT, _ERR = 200, 201, 202, 203  # open files of the shell alone; its programs do not inherit them
# Each command is evaluated with fresh standard files, whatever the one before did to them, and with `$?` as the one
# before left it. In one line: what bash says is wrong is in "line 1".
DRIVER = (
    f"exec {_OUT}>&1 {_ERR}>&2; "
    '__status() { return "$1"; }; __last=0; '
    f"while IFS= read -r -d '' -u {_COMMANDS} REPLY; do "
    f'eval "__status $__last; $REPLY" </dev/null >&{_OUT} 2>&{_ERR} '
    f"{_COMMANDS}<&- {_DONE}>&- {_OUT}>&- {_ERR}>&-; "
    f"__last=$?; builtin printf '%d\\n' \"$__last\" >&{_DONE}; done"
)
_CHUNK = 1 << 16


class Pipe:
    """One end of a pipe that is read here, up to a limit; the rest is thrown away."""

    def __init__(self, most: int) -> None:
        self.file, self.theirs = os.pipe()
        os.set_blocking(self.file, False)
        self.most, self.kept, self.is_truncated, self.is_open = most, bytearray(), False, True

    def read(self) -> bool:
        """Takes what is there; returns whether there was anything."""
        try:
            chunk = os.read(self.file, _CHUNK)
        except BlockingIOError:
            return False
        self.is_open = bool(chunk)
        room = self.most - len(self.kept)
        self.kept += chunk[:room]
        self.is_truncated |= len(chunk) > room
        return bool(chunk)

    def taken(self) -> bytes:
        """Returns what was kept, and forgets it."""
        kept = bytes(self.kept)
        self.kept, self.is_truncated = bytearray(), False
        return kept

    def close_theirs(self) -> None:
        """Closes the end that a child has inherited."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def close(self) -> None:
        """Closes both ends."""
        self.close_theirs()
        os.close(self.file)


class Child:
    """A process that is watched: a shell that is told commands, or a program.

    Args:
        command: Its program and arguments.
        output_bytes: How much of its output is kept for each command.
        is_shell: It reads commands and says when it has carried them out.
    """

    def __init__(self, command: list[str], output_bytes: int, *, is_shell: bool) -> None:
        self.command, self.is_shell = command, is_shell
        self.out, self.err, self.done = Pipe(output_bytes), Pipe(output_bytes), Pipe(64)
        self.told, self.tell = os.pipe()
        os.set_blocking(self.tell, False)
        self.pid, self.end = 0, -1

    @property
    def pipes(self) -> tuple[Pipe, Pipe, Pipe]:
        """Standard output, standard error, and the exit codes of a shell's commands."""
        return self.out, self.err, self.done

    def start(self, order: dict[str, Any], failed: Callable[[Exception], None]) -> None:
        """Starts it behind all walls."""
        self.pid = watch.spawn(lambda: self._become(order), failed)
        self.end = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1
        os.close(self.told)
        for pipe in self.pipes:
            pipe.close_theirs()

    def _become(self, order: dict[str, Any]) -> None:
        nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        err = self.out if order["merged"] else self.err
        for ours, standard in ((nothing, 0), (self.out.theirs, 1), (err.theirs, 2)):
            os.dup2(ours, standard)
        try:
            os.chdir(order["room"])
        except OSError:  # a command has taken the home folder away
            os.chdir("/")
        os.umask(0o022)
        walls.limit(order)
        if order["filter"]:
            walls.raise_walls(order)
        if self.is_shell:  # after the walls, which close everything that is not standard
            os.dup2(self.told, _COMMANDS)
            os.dup2(self.done.theirs, _DONE)
        walls.become({**order, "command": self.command})

    def send(self, command: bytes) -> bool:
        """Tells the shell a command; returns whether it had read all before."""
        while self.done.read():
            pass
        self.done.taken()  # whatever a program wrote there by itself
        try:
            return os.write(self.tell, command + b"\0") == len(command) + 1
        except (BlockingIOError, BrokenPipeError):
            return False

    def drain(self) -> None:
        """Reads what is left of its output."""
        for pipe in (self.out, self.err):
            while not self.is_flooding and pipe.read():
                pass

    @property
    def is_flooding(self) -> bool:
        """Whether more was written than is kept."""
        return self.out.is_truncated or self.err.is_truncated

    def close(self) -> None:
        """Closes everything that is held of it; the process must be gone."""
        for pipe in self.pipes:
            pipe.close()
        os.close(self.tell)
        if self.end >= 0:
            os.close(self.end)


class Serving:
    """The commands of one session.

    Args:
        watching: The watch over all its processes.
        control: The socket.
        failed: Tells why a process could not be started.
    """

    def __init__(self, watching: watch.Watch, control: int, failed: Callable[[Exception], None]) -> None:
        self.watch, self.control, self.failed = watching, control, failed
        self.order = watching.order
        self.shell: Child | None = None
        self.seconds_left = float(self.order["seconds"])
        self.cpu_before = 0.0
        self.over: str | None = None

    def serve(self) -> None:
        """Carries out what is asked until nobody is at the other end any more."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send({"ready": True}, b"", b"")
            while (request := self._request()) is not None:
                self._send(*self._carried_out(request))
        self._end(self.shell)

    # ── talking to whoever asks ──────────────────────────────────────────────────────────────────────────────────────

    def _request(self) -> dict[str, Any] | None:
        head = self._exactly(4)
        return marshal.loads(self._exactly(int.from_bytes(head, "little"))) if head else None

    def _exactly(self, count: int) -> bytes:
        read = bytearray()
        while len(read) < count:
            chunk = os.read(self.control, count - len(read))
            if not chunk:
                return b""
            read += chunk
        return bytes(read)

    def _send(self, fields: dict[str, Any], out: bytes, err: bytes) -> None:
        left = memoryview(reports.line({**fields, "out": len(out), "err": len(err)}) + out + err)
        while left:
            left = left[os.write(self.control, left) :]

    # ── one command ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _carried_out(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes, bytes]:
        self.watch.begin(min(request["seconds"], self.seconds_left))
        if self.over:
            return {**self.watch.result(self.over), "code": None, "signal": None, "shell_ended": True}, b"", b""
        if "program" in request:
            self._end(self.shell)
            child = self._started(request["program"], is_shell=False)
            return self._outcome(child, *self._wait(child))
        if self.shell is None:
            self.shell = self._started([*self.order["command"], "-c", DRIVER, "bash"], is_shell=True)
        self.watch.go_on(self.shell.pid)
        if not self.shell.send(request["command"]):
            return self._outcome(self.shell, None, None)  # it pretended to be ready, and did not listen
        return self._outcome(self.shell, *self._wait(self.shell))

    def _started(self, command: list[str], *, is_shell: bool) -> Child:
        self.watch.status = None
        child = Child(command, self.order["output_bytes"], is_shell=is_shell)
        child.start(self.order, self.failed)
        return child

    def _wait(self, child: Child) -> tuple[str | None, int | None]:
        """Waits for the end of a command; returns the limit that it passed, and its exit code if the shell lives."""
        events = self._events(child)
        look = time.monotonic() + watch.TICK_SECONDS
        while True:
            left = look - time.monotonic()
            if left <= 0:
                began = time.monotonic()
                limit = self.watch.passed(began)
                if limit:
                    return limit, None
                look = began + max(watch.TICK_SECONDS, 4 * (time.monotonic() - began))  # at most a fifth of a core
            self._read(child, events, max(left, 0.0))
            if child.is_flooding:
                return "output_bytes", None
            if b"\n" in child.done.kept:
                return None, _code(bytes(child.done.kept))
            if self.watch.reap(child.pid):
                return None, None

    def _events(self, child: Child) -> select.poll:
        events = select.poll()
        for file in (self.control, child.end, *(pipe.file for pipe in child.pipes if pipe.is_open)):
            if file >= 0:
                events.register(file, select.POLLIN)
        return events

    def _read(self, child: Child, events: select.poll, seconds: float) -> None:
        ready = {file for file, _ in events.poll(seconds * 1000)}
        for pipe in child.pipes:
            if pipe.file in ready and not pipe.read() and not pipe.is_open:
                events.unregister(pipe.file)

    def _outcome(self, child: Child, limit: str | None, code: int | None) -> tuple[dict[str, Any], bytes, bytes]:
        """Returns how a command went, and leaves everybody stopped, or nobody."""
        self.watch.seconds = time.monotonic() - self.watch.start
        if code is not None:
            self.watch.pause(child.pid)
            child.drain()
        if child.is_flooding:
            limit = limit or "output_bytes"
        if code is None or limit:
            self.watch.end_all(child.pid)
            child.drain()
        fields = self.watch.result(limit)
        if code is not None and not limit:
            fields |= {"code": code, "signal": None, "limit": None}
        fields |= {
            "cpu_seconds": fields["cpu_seconds"] - self.cpu_before,
            "stdout_truncated": child.out.is_truncated,
            "stderr_truncated": child.err.is_truncated,
            "shell_ended": child.is_shell and (code is None or limit is not None),
        }
        self._account(fields)
        out, err = child.out.taken(), child.err.taken()
        if code is None or limit:
            self._end(child)
        return fields, out, err

    def _account(self, fields: dict[str, Any]) -> None:
        """Takes what a command used from what the session may use."""
        self.cpu_before += fields["cpu_seconds"]
        self.seconds_left -= self.watch.seconds
        if self.seconds_left <= 0:
            self.over = "seconds"
        if fields["limit"] == "cpu_seconds":
            self.over = "cpu_seconds"

    def _end(self, child: Child | None) -> None:
        """Ends everybody, and forgets the shell."""
        if child is not None:
            self.watch.end_all(child.pid)
            child.close()
        self.shell = None


def _code(line: bytes) -> int:
    """Returns the exit code that a shell wrote; 255 if something else wrote there."""
    text = line.partition(b"\n")[0]
    return int(text) & 0xFF if text.isdigit() else 255
