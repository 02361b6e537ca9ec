"""A session: one shell in the sandbox that lives between its commands, as for somebody who has logged in."""

from __future__ import annotations

import json
import marshal
import math
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from minerua.errors import ConfigError

from .limits import Limits, Outcome, SandboxError

__all__ = ["COMMAND_BYTES", "Session"]

COMMAND_BYTES = 32 << 10
"""The longest command that a shell takes, in bytes."""

_GRACE_SECONDS = 20.0
"""How much later than its limit a command may be answered on a busy machine, before the sandbox itself has failed."""


class Session:
    r"""Commands in one room, one after the other; made by `Sandbox.open`.

    Files, the working folder, variables and functions persist from command to command: one bash carries them out. The
    limits are those of the session: `seconds` and `cpu_seconds` of all commands together, the others at any time.
    Between commands everybody is stopped, background jobs too, so that time in which nobody asks anything changes
    nothing and costs nothing.

    **A command that does not end** at its time limit, writes more than `output_bytes`, or passes another limit is
    killed together with all processes of the session, the shell too. So it is when the shell ends by itself (`exit`,
    `exec`, `kill $$`). The outcome says `shell_ended`; the next command gets a fresh shell in the home folder: files
    stay, variables and the working folder are lost. A session whose seconds are used up answers every further command
    with that limit.

    A command may not ask: its standard input is empty. Safe for threads, which wait for one another.

    Args:
        asking: The socket to the process that carries commands out.
        limits: Of the session.
        folder: Deleted at the end; empty for none.
        ended: Called once, when the session has ended.
    """

    def __init__(self, asking: socket.socket, limits: Limits, *, folder: str, ended: Callable[[Session], None]) -> None:
        self._asking, self._limits, self._folder, self._ended = asking, limits, folder, ended
        self._lock = threading.Lock()
        self._is_closed = False
        self._read = bytearray()

    def wait_until_ready(self) -> None:
        """Waits until the room is built.

        Raises:
            SandboxError: It could not be.
        """
        with self._lock:
            self._answer(_GRACE_SECONDS)

    def run(self, command: str, *, seconds: float | None = None) -> Outcome:
        """Carries out a command in the shell.

        Args:
            command: What one would type, any number of lines.
            seconds: How long it may take, on the wall; by default what is left of the session's.

        Returns:
            How it went: the exit code is the shell's `$?`, so that a signal is 128 and its number.

        Raises:
            ConfigError: The command has a zero byte, cannot be written as UTF-8 or is longer than `COMMAND_BYTES`.
            SandboxError: The sandbox failed, or the session is closed.
        """
        return self._asked({"command": _written(command)}, seconds)

    def run_program(self, command: Sequence[str], *, seconds: float | None = None) -> Outcome:
        """Ends all processes of the session, the shell too, and runs a program in what they left.

        Nobody whom the shell has started can disturb it, change its environment or see its arguments.

        Args:
            command: The program and its arguments; it starts in the home folder.
            seconds: How long it may take, on the wall; by default what is left of the session's.

        Raises:
            ConfigError: The command is none.
            SandboxError: The program cannot be started, the sandbox failed, or the session is closed.
        """
        words = list(command)
        if isinstance(command, str) or not words or any(not isinstance(w, str) or "\0" in w for w in words):
            raise ConfigError(f"the program is {command!r}; a list of texts without zero bytes is needed")
        return self._asked({"program": words}, seconds)

    def _asked(self, request: dict[str, Any], seconds: float | None) -> Outcome:
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise ConfigError(f"seconds is {seconds!r}; it is above 0, and finite")
        allowed = min(seconds or self._limits.seconds, self._limits.seconds)
        with self._lock:
            if self._is_closed:
                raise SandboxError("the session is closed; open another one")
            told = marshal.dumps({**request, "seconds": allowed})
            try:
                self._asking.sendall(len(told).to_bytes(4, "little") + told)
            except OSError as error:
                raise self._lost(error) from error
            fields, out, err = self._answer(allowed + _GRACE_SECONDS)
        return Outcome(stdout=out, stderr=err, **fields)

    # ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, seconds: float) -> tuple[dict[str, Any], bytes, bytes]:
        deadline = time.monotonic() + seconds
        head = bytes(self._until(b"\n", deadline))
        fields: dict[str, Any] = json.loads(head)
        if "fault" in fields:
            raise self._lost(fields["fault"])
        out, err = fields.pop("out"), fields.pop("err")
        return fields, self._exactly(out, deadline), self._exactly(err, deadline)

    def _until(self, mark: bytes, deadline: float) -> bytes:
        while mark not in self._read:
            self._more(deadline)
        return self._exactly(self._read.index(mark) + len(mark), deadline)

    def _exactly(self, count: int, deadline: float) -> bytes:
        while len(self._read) < count:
            self._more(deadline)
        taken = bytes(self._read[:count])
        del self._read[:count]
        return taken

    def _more(self, deadline: float) -> None:
        self._asking.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            chunk = self._asking.recv(1 << 16)
        except OSError as error:
            raise self._lost(error) from error
        if not chunk:
            raise self._lost(ConnectionResetError())
        self._read += chunk

    def _lost(self, why: str | OSError) -> SandboxError:
        was_closed = self._is_closed
        self._end()
        if isinstance(why, ConnectionError):  # which of them, and whether any, depends on who was faster
            why = "its first process is gone"
        return SandboxError("the session was closed" if was_closed else f"the session has failed: {why}")

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Ends all its processes and deletes its files; a command that runs raises. Any number of times."""
        self._is_closed = True
        with suppress(OSError):  # the other end is gone already
            self._asking.shutdown(socket.SHUT_RDWR)  # whoever waits for an answer stops waiting
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._is_closed = True
        if self._asking.fileno() < 0:
            return
        self._asking.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)  # a program may have made folders that cannot be deleted
        self._ended(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _written(command: str) -> bytes:
    try:
        told = command.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the command cannot be written as UTF-8: {error.reason}") from error
    if b"\0" in told:
        raise ConfigError("the command has a zero byte in it; no shell can be given one")
    if len(told) > COMMAND_BYTES:
        raise ConfigError(f"the command has {len(told)} bytes; a shell takes at most {COMMAND_BYTES}: write a file")
    return told
