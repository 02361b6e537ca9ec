"""The sandbox: one untrusted program at a time per call, any number of calls beside one another."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from minerua.errors import ConfigError, unknown

from . import orders
from .limits import Limits, Outcome, SandboxError, SandboxUnavailable
from .running import Launch
from .session import Session
from .starting import Starter
from .view import View

__all__ = ["MODES", "Offer", "Sandbox"]

MODES = ("namespaces", "bubblewrap", "weak")
"""How programs are kept apart, the strongest first; `weak` is never chosen by itself."""


@dataclass(frozen=True)
class Offer:
    """Whether this machine offers a mode.

    Args:
        mode: One of `MODES`.
        fault: Why not; `None` if it does.
    """

    mode: str
    fault: str | None


class Sandbox:
    r"""Runs untrusted programs, each in a room of its own that is gone afterwards.

    **namespaces** (Linux 5.14, no root needed): user, mount, pid, network, ipc and host name of its own; a file system
    with the system's programs and the interpreter to read, `/tmp` in memory to write, `null`, `zero` and `urandom`, no
    `/proc`; no capabilities, no new privileges, a seccomp filter, Landlock where there is one, limits. A process that
    the program cannot signal watches it and is the init of its pid namespace: when it ends, nothing is left, and it
    ends when this process does, however that happens. Run by root, programs get a user id that nobody else has.

    **bubblewrap** (where `bwrap` is installed): the same by its options; files are counted in bytes only.

    **weak** (anywhere, must be named): limits for each process, a session of its own, time watched, and killed with its
    children. It does **not** stop a program from reading and writing what you can, from using the network, from
    signalling or debugging your processes, from reading the environment of others, from forking faster than it is
    killed, from filling the disk with many files; nor, outside Linux, a child that leaves the session, or memory in
    many processes. For programs you trust that may be faulty.

    Safe for threads. Programs of one sandbox see nothing of each other.

    Args:
        mode: One of `MODES`; by default the strongest that this machine offers, `weak` never.
        limits: For every run that has none of its own.
        python: An interpreter to show, and to find as `sandbox.python`; by default the one that runs this.
        readable: More folders or files to show, read-only, at their own places. In mode `weak` all is readable.
        environment: More variables for programs, and others than `PATH`, `HOME`, `LANG`, `TZ` and a few that make runs
            repeatable.

    Raises:
        ConfigError: An unknown mode, or folders that cannot be shown.
        SandboxUnavailable: This machine does not offer the mode, or no strong one; the message says why.

    Example:
        >>> with Sandbox("weak") as sandbox:
        ...     outcome = sandbox.run([sandbox.python, "-c", "print(6 * 7)"])
        >>> outcome.stdout, str(outcome).partition(" after")[0]
        (b'42\n', 'exit code 0')
    """

    def __init__(
        self,
        mode: str | None = None,
        *,
        limits: Limits | None = None,
        python: str | None = None,
        readable: Iterable[str | Path] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if mode is not None and mode not in MODES:
            raise ConfigError(unknown("mode of a sandbox", mode, MODES))
        self.limits = limits or Limits()
        self._view = View(python=python, readable=readable, environment=environment or {})
        self.python = self._view.python
        self.mode = _offered(mode, python)
        self._launches: set[Launch] = set()
        self._sessions: set[Session] = set()
        self._starter = Starter()
        self._lock = threading.Lock()
        self._is_closed = False

    @staticmethod
    def check(python: str | None = None) -> tuple[Offer, ...]:
        """Returns what this machine offers, found by running `true` in each mode.

        Example:
            >>> [offer.mode for offer in Sandbox.check()]
            ['namespaces', 'bubblewrap', 'weak']
        """
        return tuple(Offer(mode, _trial(mode, python)) for mode in MODES)

    def run(
        self,
        command: Sequence[str],
        *,
        files: Mapping[str, str | bytes] | None = None,
        stdin: str | bytes | None = None,
        limits: Limits | None = None,
    ) -> Outcome:
        """Runs one program to its end, in a fresh folder.

        Args:
            command: The program and its arguments. A name without `/` is looked for in the system's folders.
            files: Relative path → content, written into the folder in which the program starts.
            stdin: What it reads from standard input; by default nothing. In memory, and nothing can be written to it.
            limits: Others than the sandbox's.

        Returns:
            How it went. A program that fails, or is stopped, is an outcome, no exception.

        Raises:
            ConfigError: A command or files that cannot be; all faults listed.
            SandboxError: The program could not be started, or the sandbox failed or was closed.
        """
        limits = limits or self.limits
        faults = orders.faults(command, files or {}, limits)
        if faults:
            raise ConfigError("the program cannot be run as it is asked", faults)
        folder = tempfile.mkdtemp(prefix="minerua-") if self.mode == "weak" else ""
        try:
            order = orders.order(self.mode, self._view, list(command), files or {}, limits, folder=folder)
            return self._launch(Launch(order, limits, _bytes(stdin or b"")))
        finally:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)  # a program may have made folders that cannot be deleted

    def open(
        self,
        *,
        files: Mapping[str, str | bytes] | None = None,
        limits: Limits | None = None,
        shell: str = "bash",
        merged: bool = False,
    ) -> Session:
        r"""Opens a session: one shell in a fresh room, which lives between its commands.

        Unlike a run's, its room is furnished like a small system: the user is called `user`, begins in `/home/user`,
        and may write to `/tmp`, `/home`, `/root`, `/etc`, `/var`, `/opt`, `/srv`, `/mnt`, `/media`, `/data` and
        `/workspace`, which are otherwise empty; `disk_bytes` is for all of them. In mode `weak` only the home folder is
        fresh. Any number of sessions may be open at once.

        Args:
            files: Relative path → content, written into the home folder.
            limits: Of the session, others than the sandbox's; see `Session`.
            shell: A bash, by name or path.
            merged: Standard error goes where standard output goes, in the order in which it is written.

        Raises:
            ConfigError: Files that cannot be; all faults listed.
            SandboxError: The session could not be started, the sandbox is closed, or its mode is bubblewrap: there a
                program can kill whoever watches over it, and a session with it.

        Example:
            >>> with Sandbox("weak") as sandbox, sandbox.open(files={"a.txt": "hello"}) as session:
            ...     _ = session.run("x=$(cat a.txt); mkdir sub; cd sub")
            ...     session.run('echo "$x" from ${PWD##*/}').stdout
            b'hello from sub\n'
        """
        limits = limits or self.limits
        faults = orders.faults([shell], files or {}, limits)
        if faults:
            raise ConfigError("the session cannot be opened as it is asked", faults)
        if self.mode == "bubblewrap":
            raise SandboxError(
                "there are no sessions in mode 'bubblewrap': nobody there outlives the shell whom it cannot kill; "
                "use 'namespaces', or run single programs"
            )
        folder = tempfile.mkdtemp(prefix="minerua-") if self.mode == "weak" else ""
        order = orders.order(
            self.mode, self._view, [shell], files or {}, limits, folder=folder, is_session=True, merged=merged
        )
        try:
            session = self._session(order, limits, folder)
        except BaseException:  # an interrupt too leaves no folder behind; raised again
            shutil.rmtree(folder, ignore_errors=True)
            raise
        session.wait_until_ready()
        return session

    def _session(self, order: dict[str, Any], limits: Limits, folder: str) -> Session:
        with self._lock:
            if self._is_closed:
                raise SandboxError("the sandbox is closed; no session can be opened in it any more")
            session = Session(self._starter.start(order), limits, folder=folder, ended=self._forget)
            self._sessions.add(session)
            return session

    def _forget(self, session: Session) -> None:
        self._sessions.discard(session)

    def _launch(self, launch: Launch) -> Outcome:
        with self._lock:
            if self._is_closed:
                launch.close()
                raise SandboxError("the sandbox is closed; nothing can be run in it any more")
            self._launches.add(launch)
        try:
            return launch.run()
        finally:
            with self._lock:
                self._launches.discard(launch)

    def close(self) -> None:
        """Ends all programs that run, and takes no more; the calls that wait for them raise."""
        with self._lock:
            self._is_closed = True
            for launch in self._launches:
                launch.cancel()
        for session in list(self._sessions):
            session.close()
        self._starter.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


# ── what this machine offers ─────────────────────────────────────────────────────────────────────────────────────────


def _offered(mode: str | None, python: str | None) -> str:
    """Returns the mode, or the strongest that there is."""
    wanted = (mode,) if mode else MODES[:-1]
    faults = []
    for one in wanted:
        fault = _trial(one, python)
        if fault is None:
            return one
        faults.append(f"{one}: {fault}")
    asked = f"the sandbox mode {mode!r}" if mode else "a sandbox for untrusted programs"
    raise SandboxUnavailable(
        f"this machine does not offer {asked}. Mode 'weak' is offered everywhere, but stops little (see `Sandbox`); "
        "it must be asked for by name: Sandbox('weak')",
        faults,
    )


@lru_cache(maxsize=16)
def _trial(mode: str, python: str | None) -> str | None:
    """Returns why a mode cannot be had; `None` if a program ran in it."""
    fault = _missing(mode)
    if fault or mode == "weak":
        return fault
    limits = Limits(seconds=20)
    try:
        view = View(python=python, environment={})
        outcome = Launch(orders.order(mode, view, ["/bin/true"], {}, limits, folder=""), limits, b"").run()
    except SandboxError as error:
        return str(error)
    return None if outcome.is_success else f"`true` did not run in it: {outcome}"


def _missing(mode: str) -> str | None:
    """Returns what is plainly missing on this machine."""
    if mode == "weak":
        return None if os.name == "posix" else "needs a POSIX system"
    if sys.platform != "linux":
        return f"needs Linux; this is {sys.platform}"
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdecimal())
    if release < (5, 14):
        return f"needs Linux 5.14, whose limits count by namespace; this is {platform.release()}"
    if platform.machine() not in orders.MACHINES:
        return f"has no seccomp filter for {platform.machine()}; there are {', '.join(orders.MACHINES)}"
    if mode == "bubblewrap" and shutil.which("bwrap") is None:
        return "`bwrap` is not on PATH; install the package bubblewrap"
    return None
