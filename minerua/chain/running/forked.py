"""A run that parts once: one branch in the caller's thread, the other handed to a worker, and no more to schedule."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import copy_context
from queue import Empty, SimpleQueue
from time import perf_counter_ns
from typing import final

from minerua.chain.running.branches import Branches
from minerua.chain.running.compiling import UnitCode
from minerua.chain.running.line import Line
from minerua.chain.running.plain import do_plain
from minerua.chain.running.stopping import GRACE_SECONDS, current_flag


def carry_out_forked(line: Line, branches: Branches) -> None:
    """Does all units of a line that parts once.

    Raises:
        BaseException: An interrupt of this thread, after the other branch ended, or was asked to and did not.
    """
    place = threading.current_thread().name
    side = Side(line, branches.side)
    token = current_flag.set(line)
    try:
        _do(line, branches.before, place)
        side.call()
        _do(line, branches.own, place)
        side.join()
        _do(line, branches.after, place)
    except BaseException as error:  # an interrupt ends the run; raised again
        line.stop(error)
        side.leave()
        raise
    finally:
        current_flag.reset(token)
        line.when_stopped = None
        line.end()


def _do(line: Line, units: Sequence[UnitCode], place: str, wait_ns: int = 0) -> None:
    """Does units until one does not end well; none of a run that failed."""
    for unit in units:
        if line.error is not None or not do_plain(line, unit, place, wait_ns):
            return
        wait_ns = 0


@final
class Side:
    """The branch for another thread; a worker does it, or the caller, if it has nothing else to do before one comes.

    Args:
        line: The run.
        units: The branch.
    """

    __slots__ = ("_claim", "_context", "_line", "_news", "_since", "_units", "is_over")

    def __init__(self, line: Line, units: Sequence[UnitCode]) -> None:
        self._line, self._units = line, units
        self._claim = threading.Lock()  # taken once, by whoever does the branch
        self._context = copy_context()
        self._news: SimpleQueue[bool] = SimpleQueue()  # whether the branch ended, or else the run was stopped
        self._since = 0
        self.is_over = False

    def call(self) -> None:
        """Calls a worker, unless the run failed already."""
        if self._line.error is None:
            self._line.when_stopped = lambda: self._news.put(False)
            self._since = perf_counter_ns()
            self._line.means.crew.submit(self._come, self._line.number)

    def _come(self) -> None:
        if self._claim.acquire(blocking=False):
            self._context.run(self._work)

    def _work(self) -> None:
        token = current_flag.set(self._line)
        try:
            _do(self._line, self._units, threading.current_thread().name, perf_counter_ns() - self._since)
        except BaseException as error:  # noqa: BLE001 - an interrupt, or a fault of minerua: told, never lost
            self._line.stop(error)
        finally:
            current_flag.reset(token)
            self.is_over = True
            self._line.means.take_back(self)
            self._news.put(True)

    def join(self) -> None:
        """Does the branch if nobody came for it, or waits for whoever did; not for long if the run was stopped."""
        if self._claim.acquire(blocking=False):
            _do(self._line, self._units, threading.current_thread().name, perf_counter_ns() - self._since)
        elif self._line.error is not None or not self._news.get():
            self.leave()

    def leave(self) -> None:
        """Waits for the branch of a run that was stopped; one that does not end in time is left behind."""
        if self._claim.acquire(blocking=False):
            return  # nobody came, and nobody will
        try:
            while not self._news.get(timeout=GRACE_SECONDS):
                pass  # that the run was stopped is known
        except Empty:
            self._line.means.leave_behind(self)
