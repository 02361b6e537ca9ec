"""Has several items judged one after the other in one room, and says of each whether it left the room as it was.

Each item is judged by a process of its own, and its programs have others. Nothing of an item may reach the next one:
an item that is not done within its time, whose judge did not come to its end, that left a process, or files that cannot
be taken away, ends everything here. Whoever asked then has it judged alone, and the rest in a fresh room.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
from typing import Any

from candidate import CLEAN, END  # type: ignore[import-not-found] # copied beside this file
from judge import Judge  # type: ignore[import-not-found]

_UNTIDY = 3
"""The exit code that says: judge the item in hand alone."""


def starter() -> socket.socket:
    """Starts the process that starts programs, which never sees a test; returns what leads to it."""
    ours, its = socket.socketpair()
    nothing = os.open(os.devnull, os.O_RDWR)
    files = [(os.POSIX_SPAWN_DUP2, nothing, standard) for standard in (0, 1, 2)]
    number = max(ours.fileno(), its.fileno(), nothing) + 1
    actions = [*files, (os.POSIX_SPAWN_DUP2, its.fileno(), number)]
    words = [sys.executable, "-s", "-S", "-B", os.path.join(sys.path[0], "candidate.py"), str(number)]
    os.posix_spawn(sys.executable, words, os.environ, file_actions=actions)
    its.close()
    os.close(nothing)
    return ours


def judged(item: dict[str, Any], out: int, control: socket.socket, seconds: float | None) -> bool:
    """Judges an item in a process of its own; returns whether that came to its end in time."""
    ended, ending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ended)
            sys.path[:] = [*sys.path[1:], *item["paths"]]  # the program may write modules into the working folder
            Judge(item, out, control).run()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(ending)
    is_in_time = bool(select.select([ended], [], [], seconds)[0])
    os.close(ended)
    return is_in_time and os.waitpid(pid, 0)[1] == 0


def what_is_left(control: socket.socket) -> bytes:
    """Waits for all programs; returns whether one is left, in the words of `candidate`; nothing if nobody can say."""
    try:
        control.sendall(END)
        return control.recv(1)
    except OSError:
        return b""


# ── a tidy room ──────────────────────────────────────────────────────────────────────────────────────────────────────


def listing(folder: str) -> dict[str, tuple[int, ...]]:
    """Returns everything below a folder, with what would show that it was changed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            is_folder = name in folders
            times = () if is_folder else (status.st_size, status.st_mtime_ns)
            found[path] = (status.st_ino, status.st_mode, *times)
    return found


def tidy(folder: str, before: dict[str, tuple[int, ...]]) -> bool:
    """Takes away what was not there before; returns whether all is as it was."""
    try:
        for path in sorted(listing(folder).keys() - before.keys(), reverse=True):  # what is inside comes first
            (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
        return listing(folder) == before
    except OSError:
        return False


def main() -> None:
    """Reads the items from standard input and judges them, until one is not as it should be."""
    control = starter()
    told = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # tests may print
        os.dup2(nothing, standard)
    folder = os.path.dirname(os.getcwd())
    before = listing(folder)
    gc.freeze()  # a collection would touch, and so copy, all pages that a fork shares
    for item in told["items"]:
        is_over = judged(item, out, control, told["seconds"])
        left = what_is_left(control)
        is_alone = told["seconds"] is None
        if not (is_over and left and (is_alone or (left == CLEAN and tidy(folder, before)))):
            os._exit(_UNTIDY)
        os.write(out, json.dumps({"done": item["number"]}).encode() + b"\n")


if __name__ == "__main__":
    main()
