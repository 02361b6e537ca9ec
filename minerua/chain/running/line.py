"""A run whose units follow one another in the caller's thread, all of them plain calls: nothing to schedule."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, final

from minerua.chain.running.compiling import Program, StepCode
from minerua.chain.running.gathering import ABSENT, beginning, outputs_of
from minerua.chain.running.plain import do_plain
from minerua.chain.running.stopping import StopFlag, current_flag
from minerua.chain.running.trace import Trace
from minerua.errors import MineruaError

if TYPE_CHECKING:
    from minerua.chain.running.means import Means


@final
class Line(StopFlag):
    """The state of such a run and the flag that its steps look at; one thread works on it, others may stop it.

    Of a run that parts once (`forked.py`) two threads work on it.

    Args:
        means: What all runs of an executor share.
        program: What to run; `is_plain_line`.
        number: The run's number.
        inputs: The chain's inputs, checked.
    """

    __slots__ = (
        *(
            "_lock",
            "_others",
            "_readers",
            "channel",
            "end_ns",
            "epoch_ns",
            "error",
            "is_over",
            "means",
            "number",
            "program",
        ),
        *("records", "start_ns", "values", "when_stopped"),
    )

    def __init__(self, means: Means, program: Program, number: int, inputs: Mapping[str, Any]) -> None:
        self.means, self.program, self.number, self.channel = means, program, number, None
        self.values = beginning(program, inputs)
        self.records: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None
        self.is_over = False
        self.when_stopped: Callable[[], object] | None = None
        self.cancelled = False
        self._readers = program.readers.copy()
        self._lock = threading.Lock()
        self._others: list[BaseException] = []
        self.epoch_ns, self.start_ns = time.time_ns(), perf_counter_ns()
        self.end_ns = self.start_ns

    def carry_out(self) -> None:
        """Does all units.

        Raises:
            BaseException: An interrupt between two steps.
        """
        place = threading.current_thread().name
        token = current_flag.set(self)
        try:
            for unit in self.program.units:
                if not do_plain(self, unit, place, 0):
                    break
        except BaseException as error:  # an interrupt between two steps ends the run; raised again
            self.stop(error)
            raise
        finally:
            current_flag.reset(token)
            self.end()

    def end(self) -> None:
        """Is over: tells so."""
        self.is_over, self.end_ns = True, perf_counter_ns()
        if self._others and isinstance(self.error, MineruaError):
            self.error.faults += tuple(str(other) for other in self._others)
        observers = self.means.observers
        if observers.ended:
            observers.run_finished(self.number, self.trace(), self.error)

    def stop(self, error: BaseException, *, hurry: bool = False) -> None:
        """Ends the run before its next step, and tells the one that is under way.

        The first error counts, later ones are told beside it.
        """
        del hurry  # nobody waits for anything here
        with self._lock:
            if self.error is None:
                self.error = error
            elif error is not self.error and not self.is_over:
                self._others.append(error)
        self.cancelled = True
        if (tell := self.when_stopped) is not None:
            tell()

    def drop(self, error: BaseException | None = None, *, hurry: bool = False) -> None:
        """Ends the run after a step that did not end well."""
        if error is not None:
            self.stop(error, hurry=hurry)

    def unread(self, code: StepCode) -> None:
        """Frees what nobody will read any more."""
        with self._lock:
            for slot in code.reads:
                self._readers[slot] -= 1
                if not self._readers[slot]:
                    self.values[slot] = ABSENT

    def record(self, fields: tuple[Any, ...]) -> None:
        """Takes down what became of a step: the fields of a `Span`."""
        self.records.append(fields)
        self.means.tell_finished(self.number, fields)

    def trace(self) -> Trace:
        """Returns what happened."""
        return Trace(self.program.name, self.number, self.records, self.start_ns, self.end_ns, self.epoch_ns)

    def outputs(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Returns the outputs that are there, and the names of those that are not; forgets them.

        Raises:
            BaseException: What ended the run.
        """
        values, self.values = self.values, []
        if self.error is not None:
            raise self.error
        return outputs_of(self.program, values)
