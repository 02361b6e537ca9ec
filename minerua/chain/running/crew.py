"""The threads of an executor: workers kept warm, one that keeps time, one for an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, final

Task = Callable[[], object]


@final
class _Worker:
    """A thread of a crew, and what it is to do next.

    Args:
        thread: The thread, once it is started.
    """

    __slots__ = ("task", "thread", "wake")

    def __init__(self) -> None:
        self.task: Task | None = None
        self.thread: threading.Thread | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


@final
class Crew:
    """Worker threads that are started when they are needed and wait for more afterwards.

    Tasks of a smaller rank go first, among equals those that came first. Who has just become idle is called first: its
    stack and its core's caches are warm. A task must not raise.

    Args:
        most: How many threads there may be, not counting those that only wait for something outside.
        name: What the threads are called.
    """

    def __init__(self, most: int, name: str) -> None:
        self.most = most
        self._name = name
        self._lock = threading.Lock()
        self._tasks: list[tuple[int, int, Task]] = []
        self._numbers = itertools.count()
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._lent = 0
        self._is_closed = False

    def submit(self, task: Task, rank: int = 0) -> None:
        """Lets a worker do a task."""
        with self._lock:
            heapq.heappush(self._tasks, (rank, next(self._numbers), task))
            worker = self._give()
        if worker is not None:
            worker.wake.release()

    def _give(self) -> _Worker | None:
        """Hands the first task to an idle worker, which is returned to be woken, or to a new one; the lock is held."""
        if self._idle:
            worker = self._idle.pop()
            worker.task = heapq.heappop(self._tasks)[2]
            return worker
        if len(self._workers) < self.most + self._lent:
            self._start(heapq.heappop(self._tasks)[2])
        return None

    def _start(self, task: Task) -> None:
        worker = _Worker()
        worker.task = task
        number = len(self._workers)
        worker.thread = threading.Thread(target=self._work, args=(worker,), name=f"{self._name} {number}", daemon=True)
        self._workers.append(worker)
        worker.thread.start()

    def lend(self, count: int) -> None:
        """Allows so many threads more, or less, while others cannot work: they wait outside, or are given up."""
        with self._lock:
            self._lent += count
            worker = self._give() if self._tasks and count > 0 else None
        if worker is not None:
            worker.wake.release()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """While a worker waits for something outside, another one may work."""
        self.lend(1)
        try:
            yield
        finally:
            self.lend(-1)

    def _work(self, worker: _Worker) -> None:
        while (task := worker.task) is not None:
            task()
            del task  # it may be the last to know a run and its values
            if self._is_next(worker):
                worker.wake.acquire()

    def _is_next(self, worker: _Worker) -> bool:
        """Finds a worker's next task; returns whether it has to wait for it."""
        with self._lock:
            worker.task = None
            if len(self._workers) > self.most + self._lent:  # a lent place was taken back; who is left does the rest
                self._workers.remove(worker)
            elif self._tasks:
                worker.task = heapq.heappop(self._tasks)[2]
            elif not self._is_closed:
                self._idle.append(worker)
                return True
        return False

    def close(self, wait: bool = True) -> None:
        """Ends the threads, after the tasks that were submitted; waits for them if told to."""
        with self._lock:
            self._is_closed = True
            threads = [worker.thread for worker in self._workers]
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.wake.release()
        for thread in threads if wait else ():
            if thread is not None and thread is not threading.current_thread():
                thread.join()


@final
class Alarm:
    """Something that will be done at some time, unless it is called off."""

    __slots__ = ("task",)

    def __init__(self, task: Task) -> None:
        self.task: Task | None = task

    def cancel(self) -> None:
        """Calls it off; does nothing if it was done."""
        self.task = None


@final
class Clock:
    """One thread that does small things at their time; it is started by the first of them.

    Args:
        name: What the thread is called.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._alarms: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def after(self, seconds: float, task: Task) -> Alarm:
        """Does a task after some time; it must be short and must not raise."""
        alarm = Alarm(task)
        with self._changed:
            heapq.heappush(self._alarms, (time.monotonic() + seconds, next(self._numbers), alarm))
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_time, name=self._name, daemon=True)
                self._thread.start()
            elif self._alarms[0][2] is alarm:
                self._changed.notify()
        return alarm

    def _keep_time(self) -> None:
        while True:
            with self._changed:
                while self._alarms and self._alarms[0][2].task is None:
                    heapq.heappop(self._alarms)
                left = self._alarms[0][0] - time.monotonic() if self._alarms else None
                if self._is_closed:
                    return
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
                task = heapq.heappop(self._alarms)[2].task
            if task is not None:
                task()
            del task

    def close(self) -> None:
        """Ends the thread; what was not done is not done any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


@final
class LoopThread:
    """An event loop in a thread of its own, for coroutines of runs that are not in one.

    Args:
        name: What the thread is called.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name=name, daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def close(self) -> None:
        """Cancels what runs in the loop, and ends it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        if self._thread is not threading.current_thread():
            self._thread.join()


def tell_loop(loop: asyncio.AbstractEventLoop, task: Task) -> bool:
    """Does something in a loop, soon, from whatever thread; returns whether the loop is still open."""
    try:
        loop.call_soon_threadsafe(task)
    except RuntimeError:  # closed: nobody in it waits any more
        return False
    return True


@final
class LoopDoor:
    """The way into an event loop from wherever, directly if the caller is in it already.

    Args:
        loop: The loop.
        context: What the tasks see of context variables.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        self._loop, self._context = loop, context
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself knows its tasks only weakly

    def is_here(self) -> bool:
        """Whether the caller is in this loop."""
        return asyncio._get_running_loop() is self._loop

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        return self._loop

    def run(self, task: Callable[..., object], *arguments: object) -> object:
        """Does something at once, with the context variables of the loop's user; only inside the loop."""
        return self._context.copy().run(task, *arguments)

    def do(self, task: Task) -> None:
        """Does something in the loop, soon.

        Raises:
            RuntimeError: If the loop was closed.
        """
        self._loop.call_soon_threadsafe(task, context=self._context.copy())

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a coroutine; only inside the loop."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
