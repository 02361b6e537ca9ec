"""A process that has everything imported and starts the launchers of sessions by forking: much cheaper than Python.

`python -I -S -B -c BOOT FOLDER SOCKET`: a socket over which the numbers of open files arrive, those of an order and of
a session's control. It reads neither, so that nothing of one session can reach another one, and starts no program
itself. It ends when the other end of its socket is closed, and its launchers with it.
"""

from __future__ import annotations

import gc
import os
import select
import socket

from . import launcher, room, serving  # noqa: F401 - imported once, here
from .watch import suppress


def main(arguments: list[str]) -> None:
    """Forks a launcher for each order that comes."""
    asked = socket.socket(fileno=int(arguments[0]))
    asked.set_inheritable(False)
    gc.freeze()  # or collecting would copy all that the forks share
    gc.disable()
    while True:
        if not select.select([asked], [], [], 1.0)[0]:
            _bury()
            continue
        try:
            word, files, _, _ = socket.recv_fds(asked, 1, 3)
        except ConnectionResetError:
            return
        if not word:
            return
        _fork(asked, files)
        _bury()


def _fork(asked: socket.socket, files: list[int]) -> None:
    if os.fork() == 0:
        try:
            asked.close()
            os.setsid()
            launcher.main([*map(str, files), str(os.getppid())])
        finally:
            os._exit(0)
    for file in files:
        os.close(file)


def _bury() -> None:
    """Collects launchers that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
