"""One run, seen from the process that asked for it: starts the launcher, reads what comes, sees to the end."""

from __future__ import annotations

import json
import marshal
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from . import orders
from .limits import Limits, Outcome, SandboxError

__all__ = ["Launch", "in_memory"]

_GRACE_SECONDS = 20.0
"""How much later than its limit a run may report on a busy machine, before the sandbox itself has failed."""

_CHUNK = 1 << 16


class _Stream:
    """What arrived at one pipe, up to a limit; the rest is thrown away."""

    def __init__(self, file: int, most: int) -> None:
        self.file, self.most, self.kept, self.is_truncated = file, most, bytearray(), False
        os.set_blocking(file, False)

    def read(self) -> bool:
        """Takes what is there; returns whether more may come."""
        try:
            chunk = os.read(self.file, _CHUNK)
        except BlockingIOError:
            return True
        room = self.most - len(self.kept)
        self.kept += chunk[:room]
        self.is_truncated |= len(chunk) > room
        return bool(chunk)


class Launch:
    """One run of one order.

    Args:
        order: What `orders.order` returned.
        limits: The limits that are kept on this side: output, and how long to wait for a report.
        stdin: What the program reads.
    """

    def __init__(self, order: dict[str, Any], limits: Limits, stdin: bytes) -> None:
        self._order, self._limits, self._stdin = order, limits, stdin
        self._held, self._hold = os.pipe()  # closed here: the run is to end
        self._lock = threading.Lock()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Asks the run to end; from any thread, any number of times."""
        with self._lock:
            self._is_cancelled = True
            self._let_go()

    def close(self) -> None:
        """Gives up what a launch holds that is never run."""
        self.cancel()
        os.close(self._held)

    def _let_go(self) -> None:
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def run(self) -> Outcome:
        """Runs it to its end.

        Raises:
            SandboxError: The program could not be started, or the sandbox did not report.
        """
        pipes = [os.pipe() for _ in range(3)]
        streams = [_Stream(pipe[0], most) for pipe, most in zip(pipes, self._most(), strict=True)]
        try:
            process = self._start([pipe[1] for pipe in pipes])
            self._follow(process, streams)
            return self._outcome(*streams)
        finally:
            with self._lock:
                self._let_go()
            for stream in streams:
                os.close(stream.file)

    def _most(self) -> tuple[int, int, int]:
        return self._limits.output_bytes, self._limits.output_bytes, _CHUNK

    def _start(self, ends: list[int]) -> subprocess.Popen[bytes]:
        """Starts the launcher and closes this side of everything that it was given."""
        out, err, status = ends
        given = in_memory(self._stdin)
        within = in_memory(marshal.dumps(self._order.pop("within"))) if "within" in self._order else -1
        if within >= 0:
            self._order["bubblewrap"] += [str(within), str(status), "-1", "0"]
            self._order["keep"] = [within, status]
        told = in_memory(marshal.dumps(self._order))
        numbers = [told, status, self._held]
        library = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        words = [sys.executable, "-I", "-S", "-c", orders.BOOT, orders.FOLDER, *map(str, numbers), str(os.getpid())]
        kept = [*numbers, *([within] if within >= 0 else [])]
        try:
            return subprocess.Popen(
                words, stdin=given, stdout=out, stderr=err, pass_fds=kept, env=library, cwd="/", start_new_session=True
            )
        except OSError as error:
            raise SandboxError(f"the sandbox's first process cannot be started: {error}") from error
        finally:
            for file in {*ends, given, *kept}:
                os.close(file)

    def _follow(self, process: subprocess.Popen[bytes], streams: list[_Stream]) -> None:
        """Reads until the report is there, or nobody is left who could write one."""
        deadline = time.monotonic() + self._limits.seconds + _GRACE_SECONDS
        try:
            with selectors.DefaultSelector() as selector:
                for stream in streams:
                    selector.register(stream.file, selectors.EVENT_READ, stream)
                while not self._is_over(process, streams[2], deadline):
                    for key, _ in selector.select(0.1):
                        if not key.data.read():
                            selector.unregister(key.fd)
                    if any(stream.is_truncated for stream in streams):
                        with self._lock:
                            self._let_go()
        finally:
            self._end(process)
        for stream in streams[:2]:
            _drain(stream)

    def _is_over(self, process: subprocess.Popen[bytes], status: _Stream, deadline: float) -> bool:
        return b'"seconds"' in status.kept or process.poll() is not None or time.monotonic() > deadline

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Leaves no process: asks first, then kills; what is below dies with it."""
        with self._lock:
            self._let_go()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _outcome(self, out: _Stream, err: _Stream, status: _Stream) -> Outcome:
        while status.read() and not status.kept.endswith(b"\n"):
            time.sleep(0.001)
        reports = [json.loads(line) for line in bytes(status.kept).splitlines()]
        fault = next((report for report in reports if "fault" in report), None)
        if fault:
            raise SandboxError(f"the program was not started. {fault['fault']}")
        if not reports:
            said = err.kept.decode(errors="replace").strip()[-300:]
            raise SandboxError(f"the sandbox ended without a report; its first process wrote: {said or 'nothing'}")
        (report,) = reports
        if self._is_cancelled:
            raise SandboxError("the run was ended, because its sandbox was closed")
        ended = report.pop("limit")
        if out.is_truncated or err.is_truncated:
            ended = "output_bytes"
        return Outcome(
            stdout=bytes(out.kept),
            stderr=bytes(err.kept),
            stdout_truncated=out.is_truncated,
            stderr_truncated=err.is_truncated,
            limit=ended,
            **report,
        )


def _drain(stream: _Stream) -> None:
    """Reads what is left in a pipe to which nobody writes any more."""
    before = -1
    while len(stream.kept) != before and not stream.is_truncated:
        before = len(stream.kept)
        if not stream.read():
            return


def in_memory(content: bytes) -> int:
    """Returns an open file with this content that nobody can change, at its beginning."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            file.seek(0)
            return os.dup(file.fileno())
    opened = os.memfd_create("minerua", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(opened, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(opened, 0, os.SEEK_SET)
    _seal(opened)
    return opened


def _seal(opened: int) -> None:
    import fcntl  # Linux has it, and only Linux comes here

    add_seals, everything = 1033, 0b1111  # F_ADD_SEALS; shrink, grow, write, and no more seals (fcntl(2))
    fcntl.fcntl(opened, add_seals, everything)
