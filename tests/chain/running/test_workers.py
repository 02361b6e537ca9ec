"""Worker processes: one clear error here whatever happens there, and nothing left over."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minerua.chain.running.workers import WorkerProcesses
from minerua.errors import AllocationError, RunCancelled, StepFailed, StepTimeout

FOLDER = str(Path(__file__).parent)


class Token:
    """A cancel token like the pool's."""

    def __init__(self) -> None:
        self.cancelled = False


@pytest.fixture(scope="module", autouse=True)
def _path_to_skills() -> Iterator[None]:
    """Lets `worker_skills` be imported by its name, here and in the processes."""
    sys.path.insert(0, FOLDER)
    yield
    sys.path.remove(FOLDER)
    sys.modules.pop("worker_skills", None)


@pytest.fixture
def workers() -> Iterator[WorkerProcesses]:
    with WorkerProcesses() as fresh:
        yield fresh


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.002)


def zombies() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state == "Z" and int(parent) == os.getpid():
            found.append(path.parent.name)
    return found


# ── death ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("exit", "'see' ended with the exit code 3; look at what it printed to the error output"),
        ("segfault", r"'see' was killed by SIGSEGV \(signal 11\); look at"),
        ("SIGKILL", r"'see' was killed by SIGKILL \(signal 9\); perhaps the system ran out of memory: its log tells"),
    ],
)
def test_a_process_that_dies_is_one_clear_error_and_is_replaced(
    how: str, message: str, workers: WorkerProcesses
) -> None:
    with pytest.raises(StepFailed, match=f"the process that ran the skill {message}") as caught:
        workers.run("worker_skills:die", {"how": how}, skill="see")
    assert caught.value.skill == "see"
    assert workers.run("worker_skills:echo", {"x": 1}) == {"x": 1}
    now = workers.statistics()
    assert (now.died, now.killed, now.started, now.alive) == (1, 0, 2, 1)
    assert zombies() == []


def test_an_abort_under_a_memory_limit_names_the_limit(workers: WorkerProcesses) -> None:
    with pytest.raises(StepFailed, match="perhaps it ate more memory than the 50000000 bytes that it declared"):
        workers.run("worker_skills:die", {"how": "SIGABRT"}, memory_bytes=50_000_000)


def test_a_process_that_died_while_idle_is_replaced_without_a_word(workers: WorkerProcesses) -> None:
    pid = workers.run("worker_skills:process", {})["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    assert workers.run("worker_skills:process", {})["pid"] != pid
    assert workers.statistics().died == 1


def test_a_process_that_does_not_get_ready_is_said(workers: WorkerProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    workers.warm()
    monkeypatch.setattr("minerua.chain.running.workers._BOOT_SECONDS", 0)
    with pytest.raises(StepFailed, match="no process for the skill 'see' got ready within 0 s; free the machine"):
        workers.run("worker_skills:echo", {}, skill="see")
    assert workers.statistics().killed == 1


def test_a_call_that_takes_too_long_is_killed_with_all_that_it_started(
    workers: WorkerProcesses, tmp_path: Path
) -> None:
    workers.run("worker_skills:echo", {})
    start = time.monotonic()
    with pytest.raises(StepTimeout, match=r"'see' took longer than the 0.2 s that it may; its process was killed"):
        workers.run(
            "worker_skills:sleep",
            {"seconds": 100, "pid_file": str(tmp_path / "pids")},
            timeout_seconds=0.2,
            skill="see",
        )
    assert time.monotonic() - start < 5
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until(lambda: not any(map(alive, pids)))
    assert zombies() == []
    assert workers.run("worker_skills:echo", {"x": 1}) == {"x": 1}


def test_a_call_that_holds_the_lock_of_its_interpreter_is_killed_too(workers: WorkerProcesses) -> None:
    with pytest.raises(StepTimeout):
        workers.run("worker_skills:hang_with_the_lock", {"seconds": 100}, timeout_seconds=0.1)


def test_loading_does_not_count_as_the_calls_time(
    workers: WorkerProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slow_to_load.py").write_text("import time; time.sleep(0.4)\ndef call(): return {'y': 1}\n")
    assert workers.run("slow_to_load:call", {}, timeout_seconds=0.3) == {"y": 1}


def test_a_cancelled_call_is_killed(workers: WorkerProcesses) -> None:
    token = Token()
    threading.Timer(0.2, lambda: setattr(token, "cancelled", True)).start()
    with pytest.raises(RunCancelled, match="the call of the skill 'see' was cancelled; its process was killed"):
        workers.run("worker_skills:sleep", {"seconds": 100}, cancel=token, skill="see")
    assert workers.statistics().killed == 1
    with pytest.raises(RunCancelled):
        workers.run("worker_skills:echo", {}, cancel=token)


def test_whoever_waits_for_a_process_can_be_cancelled(workers: WorkerProcesses) -> None:
    token, errors = Token(), []

    def hold() -> None:
        with pytest.raises(RunCancelled, match="the worker processes were closed; close them after the last run"):
            workers.run("worker_skills:sleep", {"seconds": 100})

    def wait() -> None:
        try:
            workers.run("worker_skills:echo", {}, cancel=token)
        except RunCancelled as error:
            errors.append(error)

    threads = [threading.Thread(target=hold), threading.Thread(target=wait)]
    threads[0].start()
    until(lambda: workers.statistics().calls == 1)
    threads[1].start()
    token.cancelled = True
    threads[1].join(10)
    assert len(errors) == 1
    workers.close()
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert workers.statistics().alive == 0
    with pytest.raises(RunCancelled, match="the worker processes were closed"):
        workers.run("worker_skills:echo", {})


def test_a_process_that_starts_while_the_workers_are_closed_is_killed(
    workers: WorkerProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Late(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            started.append(self.pid)
            workers.close()

    monkeypatch.setattr("minerua.chain.running.workers.subprocess.Popen", Late)
    with pytest.raises(RunCancelled, match="the worker processes were closed"):
        workers.run("worker_skills:sleep", {"seconds": 100})
    assert not any(map(alive, started))
    assert workers.statistics().alive == 0


def test_a_partial_output_that_nobody_wants_ends_the_call(workers: WorkerProcesses) -> None:
    def refuse(partial: Any) -> None:
        raise ArithmeticError("enough")

    with pytest.raises(ArithmeticError, match="enough"):
        workers.run("worker_skills:steps", {"count": 5}, on_partial=refuse)
    assert workers.run("worker_skills:echo", {"x": 1}) == {"x": 1}


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound a process's data")
def test_a_call_that_eats_more_than_it_declared_is_one_error_with_both_numbers(workers: WorkerProcesses) -> None:
    assert workers.run("worker_skills:eat", {"nbytes": 50_000_000}, memory_bytes=80_000_000) == {"total": 50_000_000}
    message = r"'see' ate more memory than it declared: it may grow by 80000000 bytes, it had grown by \d+ and asked"
    with pytest.raises(AllocationError, match=message) as caught:
        workers.run("worker_skills:eat", {"nbytes": 200_000_000}, memory_bytes=80_000_000, skill="see")
    assert "191. MiB" in str(caught.value)
    assert workers.run("worker_skills:eat", {"nbytes": 200_000_000}) == {"total": 200_000_000}
    assert workers.statistics().killed == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound a process's data")
def test_torch_says_it_in_its_own_words_and_is_understood(workers: WorkerProcesses) -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        workers.run("worker_skills:eat", {"nbytes": 1, "how": "torch"})
    with pytest.raises(AllocationError, match="ate more memory than it declared"):
        workers.run("worker_skills:eat", {"nbytes": 1, "how": "torch"}, memory_bytes=100_000_000)


def test_inputs_in_shared_memory_do_not_count_as_the_calls_own(workers: WorkerProcesses) -> None:
    array = np.ones(100_000_000, np.uint8)
    assert workers.run("worker_skills:look", {"x": array}, memory_bytes=10_000_000)["writeable"] is False


# ── nothing is left over ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_after_kills_and_close_no_descriptor_no_memory_and_no_process_is_left() -> None:
    def state() -> tuple[int, list[str], list[str]]:
        return len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm")), zombies()

    before = state()
    workers = WorkerProcesses()
    pids = []
    array = np.ones(100_000)
    for _ in range(2):
        pids.append(workers.run("worker_skills:process", {})["pid"])
        with pytest.raises(StepFailed):
            workers.run("worker_skills:die", {"how": "SIGKILL", "array": array})
        with pytest.raises(StepTimeout):
            workers.run("worker_skills:sleep", {"seconds": 100}, timeout_seconds=0.01)
    workers.close()
    assert state() == before
    assert not any(map(alive, pids))


PARENT = """
import json, os, sys, threading, time
from minerua.chain.running.workers import WorkerProcesses
workers = WorkerProcesses(2)
pids = [workers.run("worker_skills:process", {})["pid"]]
threading.Thread(target=workers.run, args=("worker_skills:hang_with_the_lock", {"seconds": 100}), daemon=True).start()
threading.Thread(
    target=workers.run, args=("worker_skills:sleep", {"seconds": 100, "pid_file": sys.argv[1]}), daemon=True
).start()
while not os.path.exists(sys.argv[1]) or len(open(sys.argv[1]).read().split()) < 2 or len(workers._all) < 2:
    time.sleep(0.01)
time.sleep(0.2)
print(json.dumps([worker.process.pid for worker in workers._all]), flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread ends the process, which needs the lock")
def test_when_the_parent_is_killed_its_processes_die_even_if_they_hang(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "pids")], stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None
        assert select.select([parent.stdout], [], [], 20)[0]
        pids = json.loads(parent.stdout.readline())
        pids += [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert len(set(pids)) == 3
        assert all(map(alive, pids))
        parent.kill()
        parent.wait(10)
    until(lambda: not any(map(alive, pids)))


def test_where_the_system_cannot_a_thread_ends_the_process_with_its_parent() -> None:
    ours, theirs = os.pipe()
    code = (
        f"import sys, time; sys.path[:] = {sys.path!r}; from minerua.chain.running.isolated import end_with_parent; "
        f"end_with_parent({ours}, by_signal=False); print(flush=True); time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=[ours], start_new_session=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.poll() is None
        os.close(theirs)
        assert child.wait(10) == -signal.SIGKILL
    os.close(ours)


def test_a_process_whose_parent_is_gone_already_ends_at_once() -> None:
    ours, theirs = os.pipe()
    os.close(theirs)
    code = (
        f"import sys, time; sys.path[:] = {sys.path!r}; from minerua.chain.running.isolated import end_with_parent; "
        f"end_with_parent({ours}); time.sleep(100)"
    )
    done = subprocess.run([sys.executable, "-c", code], pass_fds=[ours], start_new_session=True, timeout=20)
    os.close(ours)
    assert done.returncode == -signal.SIGKILL


def test_workers_that_are_forgotten_are_killed() -> None:
    workers = WorkerProcesses()
    pid = workers.run("worker_skills:process", {})["pid"]
    del workers
    until(lambda: not alive(pid))


# ── several ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_processes_run_two_calls_at_a_time_and_never_more() -> None:
    with WorkerProcesses(2) as workers:
        workers.warm()
        assert workers.statistics().alive == 2
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda: results.append(workers.run("worker_skills:process", {}))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(results) == 8
        assert len({one["pid"] for one in results}) <= 2
        assert workers.statistics().started == 2


def test_a_call_goes_where_its_skill_is_loaded() -> None:
    with WorkerProcesses(2) as workers:
        first = workers.run("worker_skills:process", {})["pid"]
        workers.run("worker_skills:echo", {})
        assert workers.statistics().started == 2
        assert [workers.run("worker_skills:process", {})["pid"] for _ in range(3)] == [first] * 3
