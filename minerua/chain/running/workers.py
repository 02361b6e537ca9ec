"""Processes for isolated steps: what runs in one can be stopped at any time, and takes nobody with it when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

from minerua.chain.running import isolated
from minerua.chain.running.isolated import Failed, Frame, SkillReference, reference_to
from minerua.errors import AllocationError, RunCancelled, StepFailed, StepTimeout

if TYPE_CHECKING:
    from minerua.kernels.pool import CancelToken

__all__ = ["ChildTraceback", "SkillReference", "WorkerProcesses", "WorkerStatistics", "reference_to"]

_BOOT_SECONDS = 120.0
"""How long a process may take to start, or to take a call in; on a machine with nothing to spare."""

_GLANCE_SECONDS = 0.01
"""How often whoever waits looks at its cancel token."""

_BOOT = (
    "import json, sys; a = json.loads(sys.argv[1]); sys.path[:] = a[0]; "
    "from minerua.chain.running.isolated import main; main(a[1], a[2])"
)


@final
@dataclass(frozen=True)
class WorkerStatistics:
    """What worker processes did so far.

    Args:
        calls: How many calls were made.
        started: How many processes were started.
        killed: How many were stopped because of a timeout, a cancellation or too much memory.
        died: How many ended by themselves.
        alive: How many there are now.
    """

    calls: int = 0
    started: int = 0
    killed: int = 0
    died: int = 0
    alive: int = 0


class ChildTraceback(Exception):
    """The cause of an error that came from a worker process: the traceback that it had there, as text."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


class _Gone(Exception):
    """The process died; `began` says whether it had begun the call."""

    began = False


class _Stopped(Exception):
    """The call was withdrawn, or took too long."""

    def __init__(self, is_late: bool) -> None:
        self.is_late = is_late


class _Worker:
    """One process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        lifeline, self._lifeline = os.pipe()
        self.channel, self.is_ready, self.has_script = ours, False, False
        self.loaded: set[bytes] = set()
        try:
            # never fork: this process has threads, and a copy of one that held a lock waits for ever
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps([sys.path, theirs.fileno(), lifeline])],
                stdin=subprocess.DEVNULL,
                stdout=2 if _is_open(2) else subprocess.DEVNULL,  # what it prints is no answer of this process
                pass_fds=(theirs.fileno(), lifeline),
                start_new_session=True,
            )
        except BaseException:  # nothing may stay open; raised again
            ours.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        ours.settimeout(_BOOT_SECONDS)

    def kill(self) -> int:
        """Kills the process and all that it started; returns how it ended: an exit code, or −signal."""
        if self.process.returncode is None:  # not waited for yet: the number is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses a group of the dead
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the system: subprocess reaps it later
            self.process.wait(5.0)
        self.channel.close()
        with contextlib.suppress(OSError):  # closed by an earlier call
            lifeline, self._lifeline = self._lifeline, -1
            os.close(lifeline)
        return self.process.returncode or 0

    def died(self) -> int:
        """Waits for a process that closed its channel; returns how it ended."""
        end = time.monotonic() + 2.0
        while not self.has_ended() and time.monotonic() < end:
            time.sleep(0.001)
        return self.kill()

    def has_ended(self) -> bool:
        """Whether it has; it is left there, so that its group keeps its number until that is killed too."""
        if not hasattr(os, "waitid"):
            return self.process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:  # waited for by somebody else's handler
            return True

    def next_frame(self, deadline: float, cancel: CancelToken | None) -> Frame:
        """Waits for a frame; raises `_Gone` if the process is, `_Stopped` if it is late or nobody wants it any more."""
        watch = select.poll()
        watch.register(self.channel, select.POLLIN)
        while True:
            if cancel is not None and cancel.cancelled:
                raise _Stopped(is_late=False)
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Stopped(is_late=True)
            if watch.poll(1000 * min(left, _GLANCE_SECONDS if cancel is not None else 3600.0)):
                frame = isolated.receive(self.channel)
                if frame is None:
                    raise _Gone
                return frame


@dataclass(frozen=True)
class _Call:
    """What is asked of a process, and on what terms."""

    skill: str
    name: bytes
    packed: tuple[bytes, list[memoryview]]
    timeout_seconds: float | None
    memory_bytes: int | None
    cancel: CancelToken | None
    on_partial: Callable[[Any], Any] | None


@final
class WorkerProcesses:
    """Processes that run one call each at a time, started when they are needed and kept for the next call.

    They are started afresh, never forked. A call's inputs and outputs are pickled, arrays of 64 kB and more go through
    shared memory: one copy in, one copy out; outputs are read-only. A process reads nothing from the terminal, and what
    it prints goes to the error output. It keeps the skills that it loaded. When this process ends, however it does,
    they and all that they started end too.

    Args:
        count: How many calls may run at a time.

    Example:
        >>> with WorkerProcesses() as workers:
        ...     workers.run("builtins:dict", {"x": 1})
        {'x': 1}
    """

    def __init__(self, count: int = 1) -> None:
        self.count: Final = count
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._starting = 0
        self._is_closed = False
        self._calls = self._started = self._killed = self._died = 0
        self._finalizer = weakref.finalize(self, _kill_all, self._all)

    def run(
        self,
        reference: SkillReference | str | Callable[..., Any],
        inputs: Mapping[str, Any],
        *,
        timeout_seconds: float | None = None,
        memory_bytes: int | None = None,
        cancel: CancelToken | None = None,
        skill: str = "",
        on_partial: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Calls a skill in another process and returns its outputs.

        A process that is stopped, or dies, is replaced in the background.

        Args:
            reference: What to call: see `SkillReference`; a text or a callable stands for one without arguments.
            inputs: Input name → value.
            timeout_seconds: How long the call may take from when the process, with the skill loaded, begins it; then
                the process is killed.
            memory_bytes: By how much the process may grow during the call; `None` for no bound. Linux only.
            cancel: Kills the process when it is cancelled; also ends the wait for a free one.
            skill: The skill's name, for messages.
            on_partial: Called with every partial output of a generator skill.

        Returns:
            What the skill returned; a mapping as a dict. Of a generator the last that it yielded.

        Raises:
            StepTimeout: The call took too long.
            RunCancelled: It was cancelled, or the workers were closed.
            AllocationError: It needed more memory than it may have.
            StepFailed: The process died, or an input cannot be sent.
            Exception: Whatever the skill raised; a `RuntimeError` with its text where this process cannot make the
                same error. The cause holds the traceback of the other process.
        """
        call = _call(reference, inputs, timeout_seconds, memory_bytes, cancel, skill, on_partial)
        while True:
            worker = self._take(call)
            try:
                outcome = _run(worker, call)
                break
            except _Stopped as stop:
                self._end(worker, is_killed=True)
                raise _stop_error(call, stop) from None
            except _Gone as gone:
                code = worker.died()
                self._end(worker, is_killed=False)
                # if it had the skill and never began the call, it died while it was idle; a new one has no skill yet
                if gone.began or call.name not in worker.loaded or self._is_closed:
                    raise self._death(call, code) from None
            except BaseException:  # an interrupt here, or a partial output that nobody wanted: the call still runs
                self._end(worker, is_killed=True)
                raise
        if isinstance(outcome, Failed) and outcome.grown_bytes is not None:
            self._end(worker, is_killed=True)  # what ran out of memory may have stopped half-way through anything
        else:
            self._give(worker)
        return _raised(call, outcome) if isinstance(outcome, Failed) else outcome

    def warm(self) -> None:
        """Starts all processes, so that the first calls need not wait as long."""
        with self._changed:
            missing = range(self.count - len(self._all) - self._starting)
            self._starting += len(missing)
        for _ in missing:
            self._give(self._new())

    # ── who is free ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, call: _Call) -> _Worker:
        """Returns a process for a call: one that has loaded the skill if it can be had, a new one if it must be."""
        while True:
            with self._changed:
                if self._is_closed:
                    raise _closed()
                if call.cancel is not None and call.cancel.cancelled:
                    raise _stop_error(call, _Stopped(is_late=False))
                worker = self._free(call.name)
                if worker is None and len(self._all) + self._starting >= self.count:
                    self._changed.wait(_GLANCE_SECONDS if call.cancel is not None else None)
                    continue
                self._calls += 1
                if worker is None:
                    self._starting += 1
            if worker is None:
                return self._new()
            if not worker.has_ended():
                return worker
            self._end(worker, is_killed=False)  # it died while it was idle: nobody's fault

    def _free(self, name: bytes) -> _Worker | None:
        for worker in self._idle:
            if name in worker.loaded:
                self._idle.remove(worker)
                return worker
        if len(self._all) + self._starting < self.count:
            return None  # a second process may load a second skill beside the first
        return self._idle.pop() if self._idle else None

    def _new(self) -> _Worker:
        """Starts a process that was announced in `_starting`."""
        try:
            worker = _Worker()
        except BaseException:  # it was announced and will not come; raised again
            with self._changed:
                self._starting -= 1
                self._changed.notify()
            raise
        with self._changed:
            self._starting -= 1
            self._started += 1
            if not self._is_closed:
                self._all.add(worker)
                return worker
        worker.kill()
        raise _closed()

    def _give(self, worker: _Worker) -> None:
        with self._changed:
            if not self._is_closed:
                self._idle.append(worker)
                self._changed.notify()
                return
            self._all.discard(worker)
        worker.kill()

    def _end(self, worker: _Worker, *, is_killed: bool) -> None:
        """Kills a process and starts another one, which gets ready by itself."""
        worker.kill()
        with self._changed:
            self._all.discard(worker)
            self._killed += is_killed
            self._died += not is_killed
            self._changed.notify()
            if self._is_closed or len(self._all) + self._starting >= self.count:
                return
            self._starting += 1
        with contextlib.suppress(OSError, RunCancelled):  # the next call tries again, and tells
            self._give(self._new())

    def _death(self, call: _Call, code: int) -> Exception:
        return _closed() if self._is_closed else _death_error(call, code)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def statistics(self) -> WorkerStatistics:
        """Returns counts of one moment."""
        with self._changed:
            return WorkerStatistics(self._calls, self._started, self._killed, self._died, len(self._all))

    def close(self) -> None:
        """Kills all processes; calls under way raise `RunCancelled`, and later ones too."""
        with self._changed:
            self._is_closed = True
            workers, idle = list(self._all), set(self._idle)
            self._idle.clear()
            self._all.difference_update(idle)
            self._changed.notify_all()
        for worker in workers:
            if worker in idle:
                worker.kill()
            else:  # whoever waits for it sees its end, and clears up
                worker.process.kill()

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _kill_all(workers: set[_Worker]) -> None:
    for worker in list(workers):
        worker.kill()


def _is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


# ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _call(
    reference: SkillReference | str | Callable[..., Any],
    inputs: Mapping[str, Any],
    timeout_seconds: float | None,
    memory_bytes: int | None,
    cancel: CancelToken | None,
    skill: str,
    on_partial: Callable[[Any], Any] | None,
) -> _Call:
    if not isinstance(reference, SkillReference):
        reference = SkillReference(reference)
    skill = skill or str(reference.target)
    try:
        name = pickle.dumps(reference, 5)
        packed = isolated.pack((name, dict(inputs), memory_bytes))
    except Exception as error:
        kinds = ", ".join(f"{name}: {type(value).__name__}" for name, value in inputs.items())
        raise StepFailed(
            f"the call of the skill {skill!r} cannot be sent to another process: {type(error).__name__}: {error}; "
            f"its inputs are {kinds}; let it run in this one, or give it values that have a pickle",
            skill=skill,
        ) from error
    return _Call(skill, name, packed, timeout_seconds, memory_bytes, cancel, on_partial)


def _run(worker: _Worker, call: _Call) -> Any:
    """Has a process run a call; returns the outputs, or a `Failed`."""
    if not worker.is_ready:
        _wait_until_ready(worker, call)
    try:
        if not worker.has_script and b"__main__" in call.packed[0]:
            worker.has_script = True
            isolated.send(worker.channel, isolated.SCRIPT, isolated.pack(isolated.script_of_this_process()))
        isolated.send(worker.channel, isolated.RUN, call.packed)
    except ConnectionError as error:
        raise _Gone from error
    deadline = float("inf")  # loading takes what it takes: only the call itself is timed
    began = False
    while True:
        try:
            frame = worker.next_frame(deadline, call.cancel)
        except _Gone as gone:
            gone.began = began
            raise
        if frame.kind == isolated.STARTED:
            began = True
            worker.loaded.add(call.name)
            if call.timeout_seconds is not None:
                deadline = time.monotonic() + call.timeout_seconds
        elif frame.kind != isolated.PARTIAL:
            return frame.load()
        elif call.on_partial is not None:
            call.on_partial(frame.load())


def _wait_until_ready(worker: _Worker, call: _Call) -> None:
    try:
        worker.next_frame(time.monotonic() + _BOOT_SECONDS, call.cancel)
    except _Stopped as stop:
        if not stop.is_late:
            raise
        raise StepFailed(
            f"no process for the skill {call.skill!r} got ready within {_BOOT_SECONDS} s; free the machine, or run "
            "fewer isolated steps at a time",
            skill=call.skill,
        ) from None
    worker.is_ready = True


def _raised(call: _Call, failed: Failed) -> NoReturn:
    """Raises what a skill raised in another process."""
    cause = ChildTraceback(failed.trace)
    if failed.grown_bytes is not None:
        raise AllocationError(
            f"the skill {call.skill!r} ate more memory than it declared: it may grow by {call.memory_bytes} bytes, it "
            f"had grown by {failed.grown_bytes} and asked for more ({failed.kind}: {failed.text}); declare more"
        ) from cause
    try:
        error = pickle.loads(failed.error)
    except Exception:  # noqa: BLE001 - its class is not there, or cannot be made of what it was pickled as
        error = None
    if not isinstance(error, Exception):  # a SystemExit there must not end this process
        raise RuntimeError(f"{failed.kind}: {failed.text}") from cause
    raise error from cause


def _stop_error(call: _Call, stop: _Stopped) -> Exception:
    if not stop.is_late:
        return RunCancelled(f"the call of the skill {call.skill!r} was cancelled; its process was killed")
    return StepTimeout(
        f"the skill {call.skill!r} took longer than the {call.timeout_seconds} s that it may; its process was killed",
        skill=call.skill,
    )


def _closed() -> RunCancelled:
    return RunCancelled("the worker processes were closed; close them after the last run")


def _death_error(call: _Call, code: int) -> Exception:
    how = f"ended with the exit code {code}"
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name} (signal {-code})"
    hint = "look at what it printed to the error output"
    if code == -signal.SIGKILL:
        hint = "perhaps the system ran out of memory: its log tells"
    elif call.memory_bytes is not None and code == -signal.SIGABRT:
        hint = f"perhaps it ate more memory than the {call.memory_bytes} bytes that it declared"
    return StepFailed(f"the process that ran the skill {call.skill!r} {how}; {hint}", skill=call.skill)
