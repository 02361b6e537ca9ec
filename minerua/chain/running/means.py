"""What all runs of an executor share: threads, a clock, a loop, models, batches, worker processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast, final

from minerua.chain.keeping.residency import ModelResidency
from minerua.chain.running.batching import Batcher
from minerua.chain.running.compiling import StepCode, Turn
from minerua.chain.running.crew import Clock, Crew, LoopThread
from minerua.chain.running.observing import Observers

if TYPE_CHECKING:
    import asyncio

    from minerua.chain.keeping.cache import ContentCache
    from minerua.chain.running.forked import Side
    from minerua.chain.running.line import Line
    from minerua.chain.running.run import Run
    from minerua.chain.running.workers import WorkerProcesses
    from minerua.kernels.pool import CancelToken, ResourcePool


@final
class Means:
    """Everything that is made when it is first needed and closed once; what was given is borrowed.

    Args:
        name: The chain's name; threads have it in theirs.
        pool: Where steps hold what they need; `None`: nothing is counted.
        cache: Where results are kept.
        residency: Where models are loaded; default: one without a bound.
        workers: Processes for isolated steps; default: as many as there are threads.
        observers: Who is told what happens.
        threads: How many worker threads there may be.
    """

    def __init__(
        self,
        name: str,
        pool: ResourcePool | None,
        cache: ContentCache | None,
        residency: ModelResidency | None,
        workers: WorkerProcesses | None,
        observers: Iterable[object],
        threads: int,
    ) -> None:
        self.pool, self.cache = pool, cache
        self.residency = ModelResidency() if residency is None else residency
        self._own_residency = residency is None
        self.observers = Observers(observers)
        self.crew = Crew(threads, f"minerua {name}")
        self.clock = Clock(f"minerua {name} clock")
        self._name = name
        self._changed = threading.Condition()
        self._loop: LoopThread | None = None
        self._given_workers, self._workers = workers, workers
        self._batchers: dict[str, Batcher] = {}
        self._strays: set[Run | Line | Side] = set()

    def tell_started(self, run_id: int, step: str) -> None:
        """Tells the observers, if there are any, that a step is called."""
        if self.observers.started:
            self.observers.step_started(run_id, step)

    def tell_finished(self, run_id: int, record: tuple[Any, ...]) -> None:
        """Tells them that it ended; takes the fields of its span."""
        if self.observers.finished:
            self.observers.step_finished(run_id, record)

    def own_loop(self) -> asyncio.AbstractEventLoop:
        """Returns the event loop for coroutines of runs that are not in one."""
        with self._changed:
            if self._loop is None:
                self._loop = LoopThread(f"minerua {self._name} loop")
            return self._loop.loop

    @property
    def workers(self) -> WorkerProcesses:
        """The processes in which isolated steps run."""
        with self._changed:
            if self._workers is None:
                from minerua.chain.running.workers import WorkerProcesses  # few chains have isolated steps

                self._workers = WorkerProcesses(self.crew.most)
            return self._workers

    def call_process(self, run: Run, code: StepCode, inputs: Mapping[str, Any]) -> Any:
        """Calls a step's skill in a worker process and returns its outputs; kills it if the run is stopped."""
        with self.crew.outside():
            return self.workers.run(
                code.reference,
                inputs,
                timeout_seconds=code.step.timeout_seconds,
                memory_bytes=code.skill.resources.get("host_bytes"),
                cancel=cast("CancelToken", run.flag),  # whether it is cancelled is all that is looked at
                skill=code.skill_name,
                on_partial=lambda outputs: run.emit(code, outputs, last=False),
            )

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def batcher(self, code: StepCode) -> Batcher:
        """Returns what joins the calls of a step, of all runs."""
        with self._changed:
            batcher = self._batchers.get(code.name)
            if batcher is None:
                rows = code.planned.batch_rows
                batcher = Batcher(self._batch_call(code), skill=code.skill_name, most_rows=rows)
                self._batchers[code.name] = batcher
            return batcher

    def _batch_call(self, code: StepCode) -> Callable[..., Mapping[str, Any]]:
        """Returns a call that holds what the step needs, once for the whole batch."""
        skill, setup, pool = code.skill, code.planned.setup, self.pool

        def call(**inputs: Any) -> Mapping[str, Any]:
            with _Taken(code.turn), self.residency.use(skill, setup) as function:
                if pool is None or code.requirements is None:
                    return function(**inputs)
                with pool.acquire(code.requirements, name=code.name):
                    return function(**inputs)

        return call

    # ── what was left behind ─────────────────────────────────────────────────────────────────────────────────────────

    def keep_stray(self, run: Run) -> None:
        """Remembers a run that is over while a step of it still runs in a thread."""
        with self._changed:
            self._strays.add(run)

    def leave_behind(self, work: Line | Side) -> None:
        """Remembers a run, or a branch, whose caller went, if a thread is still at it; another may work meanwhile."""
        with self._changed:
            if work.is_over:
                return
            self._strays.add(work)
        self.crew.lend(1)

    def take_back(self, work: Line | Side) -> bool:
        """The thread is done with it; returns whether its caller had gone."""
        with self._changed:
            was_left = work in self._strays
        if was_left:
            self.crew.lend(-1)
            self.forget_stray(work)
        return was_left

    def forget_stray(self, run: Run | Line | Side) -> None:
        """The last step of such a run ended."""
        with self._changed:
            self._strays.discard(run)
            self._changed.notify_all()

    def wait_for_strays(self, seconds: float | None) -> bool:
        """Waits until no step runs for nobody; returns whether that came about in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._strays, seconds)

    def close(self, *, waits: bool) -> None:
        """Closes what was made here. Threads that are stuck in a step are left, if told not to wait."""
        for batcher in list(self._batchers.values()):
            batcher.close()
        if self._loop is not None:
            self._loop.close()
        self.clock.close()
        self.crew.close(waits)
        if self._given_workers is None and self._workers is not None:
            self._workers.close()
        if self._own_residency and waits:
            self.residency.close()


class _Taken:
    """A turn held inside a `with`, by a thread that may wait for it."""

    def __init__(self, turn: Turn | None) -> None:
        self._turn = turn

    def __enter__(self) -> None:
        if self._turn is not None:
            gate = threading.Lock()
            gate.acquire()
            if not self._turn.take(gate.release):
                gate.acquire()

    def __exit__(self, *_: object) -> None:
        if self._turn is not None:
            self._turn.give()
