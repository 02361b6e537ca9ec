"""Starts the launchers of sessions: a process of its own forks them, which costs a tenth of a fresh interpreter."""

from __future__ import annotations

import marshal
import os
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any

from . import orders
from .limits import SandboxError
from .running import in_memory

__all__ = ["Starter"]

_BOOT = "import sys;sys.path.insert(0,sys.argv[1]);from inside.zygote import main;main(sys.argv[2:])"


class Starter:
    """A process that starts launchers; made when the first one is needed, gone when this is closed or forgotten.

    Safe for threads. `process` is the process, `None` before the first start.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._ending: weakref.finalize[..., Starter] | None = None

    def start(self, order: dict[str, Any]) -> socket.socket:
        """Starts a session; returns the socket over which it is talked to.

        Raises:
            SandboxError: The process that starts others cannot be started.
        """
        ours, theirs = socket.socketpair()
        told = in_memory(marshal.dumps(order))
        try:
            self._ask([told, theirs.fileno(), theirs.fileno()])
        except BaseException:  # an interrupt too leaves no socket open; raised again
            ours.close()
            raise
        finally:
            os.close(told)
            theirs.close()
        return ours

    def _ask(self, files: list[int]) -> None:
        with self._lock:
            for attempt in range(2):
                asking = self._asking or self._begun()
                try:
                    socket.send_fds(asking, [b"s"], files)
                except OSError as error:
                    self._closed()
                    if attempt:
                        raise SandboxError(f"the process that starts sessions is gone: {error}") from error
                else:
                    return

    def _begun(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        library = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        words = [sys.executable, "-I", "-S", "-B", "-c", _BOOT, orders.FOLDER, str(theirs.fileno())]
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=library,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SandboxError(f"the process that starts sessions cannot be started: {error}") from error
        finally:
            theirs.close()
        self._asking, self.process = ours, process
        self._ending = weakref.finalize(self, _end, ours, process, os.getpid())
        return ours

    def close(self) -> None:
        """Ends the process; sessions that it has started end with it."""
        with self._lock:
            self._closed()

    def _closed(self) -> None:
        if self._ending is not None:
            self._ending()
        self._asking = self._ending = None


def _end(asking: socket.socket, process: subprocess.Popen[bytes], owner: int) -> None:
    """Closes the socket and waits for the process; in a fork of whoever owns it, only forgets it."""
    if os.getpid() == owner:
        with suppress(OSError):  # it is gone already
            asking.shutdown(socket.SHUT_RDWR)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    asking.close()
