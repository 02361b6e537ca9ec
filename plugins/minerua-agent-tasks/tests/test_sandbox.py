"""The sandbox as its users see it: outcomes, limits, faults at the door, threads, and the death of whoever asked."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from minerua_agent_tasks import sandbox as door
from minerua_agent_tasks.sandbox import (
    MODES,
    Limits,
    Outcome,
    Sandbox,
    SandboxError,
    SandboxUnavailable,
    box,
    filter,
    orders,
)
from minerua_agent_tasks.sandbox.inside import launcher, reports, room

from minerua.errors import ConfigError, MineruaError

SMALL = Limits(memory_bytes=96 << 20, disk_bytes=4 << 20, file_bytes=1 << 20, output_bytes=1000)
OFFERED = [offer.mode for offer in Sandbox.check() if offer.fault is None]
STRONG = OFFERED[0] != "weak"
needs_walls = pytest.mark.skipif(not STRONG, reason="this machine offers no strong mode")


@pytest.fixture(scope="module", params=OFFERED)
def sandbox(request):
    with Sandbox(request.param, limits=SMALL) as one:
        yield one


def python(sandbox, source, **settings):
    return sandbox.run([sandbox.python, "-I", "-S", "-c", source], **settings)


# ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_program_says_how_it_went(sandbox):
    outcome = python(sandbox, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (outcome.code, outcome.signal, outcome.limit) == (3, None, None)
    assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")
    assert not outcome.is_success
    assert str(Outcome(code=3, signal=None, stdout=b"", stderr=b"", seconds=0.5)) == "exit code 3 after 0.50 s"
    assert 0 < outcome.cpu_seconds < outcome.seconds * 2 < 20
    assert 1 << 20 < outcome.peak_bytes < 96 << 20


def test_files_and_standard_input_arrive_as_bytes(sandbox):
    files = {"a.txt": "ä", "deep/er/b.bin": b"\0\xff"}
    source = (
        "import sys; print(open('a.txt', 'rb').read(), open('deep/er/b.bin', 'rb').read(), sys.stdin.buffer.read())"
    )
    assert python(sandbox, source, files=files, stdin="ö").stdout == b"b'\\xc3\\xa4' b'\\x00\\xff' b'\\xc3\\xb6'\n"
    assert python(sandbox, "import sys; print(sys.stdin.read() == '')").stdout == b"True\n"


def test_more_input_than_a_pipe_holds_is_no_obstacle(sandbox):
    source = "import sys; print(len(sys.stdin.buffer.read()))"
    assert python(sandbox, source, stdin=bytes(3 << 20)).stdout == b"3145728\n"


def test_a_signal_is_told_by_name(sandbox):
    outcome = python(sandbox, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert (outcome.code, outcome.signal) == (None, signal.SIGTERM)
    assert str(outcome).startswith("ended by the signal SIGTERM after ")


def test_time_on_the_wall_is_limited(sandbox):
    source = "import time; print('began', flush=True); time.sleep(60)"
    outcome = python(sandbox, source, limits=Limits(seconds=0.8))
    assert (outcome.limit, outcome.stdout) == ("seconds", b"began\n")
    assert 0.8 <= outcome.seconds < 3
    assert str(outcome).startswith("ended by the limit seconds after ")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only each process is limited")
def test_processor_time_is_limited_over_all_processes(sandbox):
    source = "import os\nif os.fork() == 0:\n    while True: pass\nos.wait()"
    outcome = python(sandbox, source, limits=Limits(seconds=5, cpu_seconds=0.3))
    assert outcome.limit == "cpu_seconds"
    assert 0.3 <= outcome.cpu_seconds < 1.0


@needs_walls
def test_processor_time_of_children_that_nobody_waits_for_counts_too():
    source = """if True:
        import os, signal, time
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range(100):
            if os.fork() == 0:
                end = time.process_time() + 0.1
                while time.process_time() < end: pass
                os._exit(0)
            time.sleep(0.12)
    """
    with Sandbox(OFFERED[0], limits=Limits(seconds=5, cpu_seconds=0.3)) as one:
        assert python(one, source).limit == "cpu_seconds"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only each process is limited")
def test_memory_is_limited_in_one_process_and_in_all_together(sandbox):
    alone = python(sandbox, "held = bytearray(200 << 20)")
    assert (alone.code, alone.limit) == (1, None)
    assert b"MemoryError" in alone.stderr
    kept = python(sandbox, "import resource\nprint(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20)")
    assert kept.stdout == b"90\n"  # of 96: a program that takes all there is, is refused before its judge is ended
    source = "import os, time\nos.fork()\nos.fork()\nheld = b'x' * (40 << 20)\ntime.sleep(60)"
    assert python(sandbox, source).limit == "memory_bytes"


def test_memory_that_processes_share_counts_once(sandbox):
    source = "import os, time\nheld = b'x' * (30 << 20)\nfor _ in range(3):\n    os.fork()\ntime.sleep(0.1)"
    assert python(sandbox, source).limit is None


def test_output_is_cut_and_ends_the_program(sandbox):
    outcome = python(sandbox, "import sys; print('x' * 5000); sys.stdout.flush(); import time; time.sleep(60)")
    assert outcome.limit == "output_bytes"
    assert outcome.stdout == b"x" * 1000
    assert (outcome.stdout_truncated, outcome.stderr_truncated) == (True, False)
    assert python(sandbox, "print('x' * 999)").stdout_truncated is False


@pytest.mark.parametrize("how", ["signal", "error"])
def test_a_file_that_grows_too_large_is_stopped(sandbox, how):
    source = "open('x', 'wb').write(bytes(2 << 20))"
    if how == "signal":
        source = f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); {source}"
    outcome = python(sandbox, source)
    assert outcome.limit == ("file_bytes" if how == "signal" else None)
    assert not outcome.is_success


def test_every_run_begins_in_the_same_fresh_room(sandbox):
    source = "import os; print(sorted(os.environ), os.listdir('.'), {'a', 'b', 'c'}, hash('a')); open('left', 'w')"
    command = [sandbox.python, "-s", "-S", "-c", source]
    first, second = sandbox.run(command), sandbox.run(command)
    assert first.stdout == second.stdout
    assert b"[]" in first.stdout
    assert b"MYCORE" not in first.stdout


def test_own_variables_and_folders_are_shown(tmp_path):
    (tmp_path / "lesson.py").write_text("TAUGHT = 42")
    tmp_path.chmod(0o755)  # run by root, programs see what everybody may
    with Sandbox(OFFERED[0], readable=[tmp_path], environment={"GREETING": "hello"}) as one:
        source = f"import os, sys; sys.path.append({str(tmp_path)!r}); import lesson; print(lesson.TAUGHT, os.environ"
        source += "['GREETING'])"
        assert python(one, source).stdout == b"42 hello\n"
        if STRONG:
            assert b"Read-only file system" in python(one, f"open({str(tmp_path / 'x')!r}, 'w')").stderr


# ── beside one another, and afterwards ───────────────────────────────────────────────────────────────────────────────


def test_runs_beside_one_another_do_not_meet(sandbox):
    def one(number):
        source = f"import os, time; open('mine', 'w').write('{number}'); time.sleep(0.1)"
        source += "; print(open('mine').read(), os.listdir('.'))"
        return python(sandbox, source, limits=Limits()).stdout

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(8))) == [f"{number} ['mine']\n".encode() for number in range(8)]


def test_no_open_file_is_left_here(sandbox):
    def count():
        return len(os.listdir("/dev/fd"))

    python(sandbox, "print(1)")
    before = count()
    for source in ("print(1)", "import time; time.sleep(60)"):
        python(sandbox, source, limits=Limits(seconds=0.1))
    with pytest.raises(SandboxError):
        sandbox.run(["/does/not/exist"])
    assert count() == before


def test_closing_ends_what_runs_and_takes_no_more(sandbox):
    one = Sandbox(sandbox.mode)
    caught = []

    def wait():
        try:
            python(one, "import time; time.sleep(60)", limits=Limits(seconds=30))
        except SandboxError as error:
            caught.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    one.close()
    thread.join(5)
    assert caught == ["the run was ended, because its sandbox was closed"]
    with pytest.raises(SandboxError, match="the sandbox is closed; nothing can be run in it any more"):
        python(one, "print(1)")


ORPHANS = """
import sys
from minerua_agent_tasks.sandbox import Limits, Sandbox
program = "import os, time\\nfor _ in '12': os.fork()\\nif os.getpid() != os.getsid(0): os.setsid()\\ntime.sleep(60)"
box = Sandbox(sys.argv[1])
print("ready", flush=True)
box.run([box.python, "-I", "-S", "-c", program, sys.argv[2]], limits=Limits(seconds=50))
"""


def marked(token):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if token in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):  # noqa: PERF203 - it ended meanwhile
            continue
    return found


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@needs_walls
@pytest.mark.parametrize("mode", [mode for mode in OFFERED if mode != "weak"])
def test_when_the_parent_is_killed_no_process_of_the_sandbox_survives(mode):
    token = f"orphan-{os.getpid()}-{time.monotonic_ns()}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, mode, token], env=environment, stdout=subprocess.PIPE)
    try:
        assert parent.stdout.readline() == b"ready\n"
        assert until(lambda: len(marked(token.encode())) >= 5)  # the parent itself, and four of the program
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert until(lambda: marked(token.encode()) == [])


# ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_limits_out_of_range_are_told_all_at_once():
    with pytest.raises(ConfigError, match="the limits of a sandbox cannot be kept as they are") as caught:
        Limits(seconds=0, cpu_seconds=float("inf"), memory_bytes=1, processes=2.5, disk_files=True, output_bytes="1")
    assert caught.value.faults == (
        "seconds is 0; it is at least a little above 0, and finite",
        "cpu_seconds is inf; it is at least a little above 0, and finite",
        "memory_bytes is 1; it is at least 16777216, and finite",
        "processes is 2.5; a number without fraction is needed",
        "disk_files is True; a number without fraction is needed",
        "output_bytes is '1'; a number without fraction is needed",
    )
    with pytest.raises(ConfigError) as caught:
        Limits(seconds="1")
    assert caught.value.faults == ("seconds is '1'; a number is needed",)


def test_what_cannot_be_run_is_told_all_at_once(sandbox):
    files = {"/etc/passwd": "", "../x": "", "": "", "big": bytes(5 << 20)}
    with pytest.raises(ConfigError, match="the program cannot be run as it is asked") as caught:
        sandbox.run("ls -l", files=files)
    faults = caught.value.faults
    assert faults[0] == "the command is 'ls -l'; a list of texts is needed, the program first"
    assert faults[1] == "the file '/etc/passwd' is not below the program's folder; give a relative path without '..'"
    assert faults[4] == "the files have 5242880 bytes; disk_bytes is 4194304: raise it"
    with pytest.raises(ConfigError) as caught:
        sandbox.run(["echo", "a\0b"])
    assert caught.value.faults == ("the command has a zero byte in it; no program can be given one",)


def test_a_program_that_is_not_there_is_no_outcome(sandbox):
    with pytest.raises(SandboxError, match=r"the program was not started. start the program: .*No such file") as caught:
        sandbox.run(["/does/not/exist"])
    assert isinstance(caught.value, MineruaError)


@needs_walls
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("binds", "build the file system: .*"),
        ("filter", r"raise the walls: \[Errno 22\] seccomp"),
        ("files", "furnish the room: .*"),
    ],
)
def test_a_wall_that_cannot_be_raised_is_an_error_and_the_program_never_starts(name, step, monkeypatch):
    broken = {"binds": ["/does/not/exist"], "filter": b"\0" * 8, "files": {"a": b"", "a/b": b""}}
    real = box.orders.order
    monkeypatch.setattr(box.orders, "order", lambda *a, **k: {**real(*a, **k), name: broken[name]})
    if OFFERED[0] != "namespaces":
        pytest.skip("bubblewrap builds its own walls")
    one = Sandbox.__new__(Sandbox)
    one.__dict__.update(Sandbox("weak").__dict__, mode="namespaces", limits=SMALL)
    with pytest.raises(SandboxError, match=f"the program was not started. {step}"):
        one.run(["/bin/echo", "hello"])


@pytest.mark.skipif(sys.platform != "linux", reason="calls of Linux")
def test_every_step_has_a_name_that_is_told_when_it_fails(monkeypatch, tmp_path):
    def refuse(*arguments, **named):
        raise PermissionError(1, "no")

    monkeypatch.setattr(launcher.kernel, "die_with_parent", lambda: None)
    monkeypatch.setattr(launcher.kernel, "unshare", refuse)
    monkeypatch.setattr(launcher.os, "geteuid", lambda: 1000)
    run = launcher.Run({"bubblewrap": []}, -1, -1)
    with pytest.raises(PermissionError):
        run.in_namespaces()
    assert run.step == "enter fresh namespaces"
    monkeypatch.setattr(launcher.walls, "limit", refuse)
    with pytest.raises(PermissionError):
        run._become()
    assert run.step == "set the limits"


@pytest.mark.skipif(sys.platform != "linux", reason="calls of Linux")
def test_the_private_folder_is_limited_in_bytes_and_files(monkeypatch, tmp_path):
    mounted = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room.kernel, "mount", lambda *arguments: mounted.append(arguments))
    room._writable({"disk_bytes": 1000, "disk_files": 7})
    assert mounted[0][-1] == "size=1000,nr_inodes=7,mode=1777"


def test_the_first_process_imports_nothing_of_minerua_and_little_else(sandbox):
    assert orders.BOOT.startswith("import sys;sys.path.insert(0,sys.argv[1]);from inside.launcher import main")
    script = "import sys; sys.path.insert(0, sys.argv[1]); from inside import launcher, room; print(*sys.modules)"
    words = [sys.executable, "-I", "-S", "-c", script, orders.FOLDER]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert not {"minerua", "typing", "json", "re", "enum", "contextlib"} & set(done.stdout.split())


def test_a_report_is_a_line_of_json_whatever_is_in_it():
    fields = {
        "fault": 'a "quote" \\ and\n\t\x00\x7f ä € 🐍 \udc80',
        "limit": None,
        "code": -1,
        "cut": True,
        "whole": False,
    }
    fields |= {"seconds": 1e-05, "peak_bytes": 2**40}
    line = reports.line(fields)
    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    assert json.loads(line) == fields
    assert [type(value) for value in json.loads(line).values()] == [type(value) for value in fields.values()]


def test_a_first_process_that_says_nothing_is_an_error(sandbox, monkeypatch):
    monkeypatch.setattr(door.running.orders, "BOOT", "import sys; sys.exit('no idea')")
    with pytest.raises(SandboxError, match="ended without a report; its first process wrote: no idea"):
        sandbox.run(["/bin/true"])
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    with pytest.raises(SandboxError, match=r"the sandbox's first process cannot be started: .*No such file"):
        sandbox.run(["/bin/true"])


def test_folders_that_cannot_be_shown_are_told_all_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="a sandbox cannot show what it is asked to") as caught:
        Sandbox("weak", readable=["/nothing/here", tmp_path, "/"])
    home = f"would show the home directory {tmp_path / 'home'}; give folders further down"
    assert caught.value.faults == (
        "/nothing/here does not exist; give an absolute path that does",
        f"{tmp_path} {home}",
        f"/ {home}",
    )


def test_an_unknown_mode_is_told_with_the_known_ones():
    with pytest.raises(ConfigError, match="no mode of a sandbox is named 'namespace'; did you mean 'namespaces'"):
        Sandbox("namespace")


def test_without_a_strong_mode_the_weak_one_must_be_named(monkeypatch):
    monkeypatch.setattr(box, "_trial", lambda mode, python: None if mode == "weak" else "is not there")
    with pytest.raises(
        SandboxUnavailable, match=r"does not offer a sandbox for untrusted programs. Mode 'weak'"
    ) as caught:
        Sandbox()
    assert "it must be asked for by name: Sandbox('weak')" in caught.value.message
    assert caught.value.faults == ("namespaces: is not there", "bubblewrap: is not there")
    with pytest.raises(SandboxUnavailable, match="does not offer the sandbox mode 'bubblewrap'"):
        Sandbox("bubblewrap")
    assert Sandbox("weak").mode == "weak"


def test_what_a_machine_lacks_is_told(monkeypatch):
    assert [offer.mode for offer in Sandbox.check()] == list(MODES)
    monkeypatch.setattr(box.platform, "release", lambda: "5.4.0-100-generic")
    monkeypatch.setattr(box.sys, "platform", "linux")
    assert box._missing("namespaces") == "needs Linux 5.14, whose limits count by namespace; this is 5.4.0-100-generic"
    monkeypatch.setattr(box.platform, "release", lambda: "6.1.0")
    monkeypatch.setattr(box.platform, "machine", lambda: "mips")
    assert box._missing("namespaces") == "has no seccomp filter for mips; there are x86_64, aarch64"
    monkeypatch.setattr(box.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(box.shutil, "which", lambda name: None)
    assert box._missing("bubblewrap") == "`bwrap` is not on PATH; install the package bubblewrap"
    monkeypatch.setattr(box.sys, "platform", "darwin")
    assert box._missing("namespaces") == "needs Linux; this is darwin"
    monkeypatch.setattr(box.os, "name", "nt")
    assert box._missing("weak") == "needs a POSIX system"


def test_a_mode_in_which_true_fails_is_not_offered(monkeypatch):
    failed = Outcome(code=1, signal=None, stdout=b"", stderr=b"")
    monkeypatch.setattr(box, "_missing", lambda mode: None)
    monkeypatch.setattr(box.Launch, "run", lambda self: self.close() or failed)
    monkeypatch.setattr(box.orders, "order", lambda *a, **k: {})
    assert str(box._trial.__wrapped__("namespaces", None)).startswith("`true` did not run in it: exit code 1")


# ── the filter ───────────────────────────────────────────────────────────────────────────────────────────────────────


def verdict(program, machine, number, *arguments):
    """What a filter says to a call, by an interpreter of the few instructions that it has."""
    held = struct.pack("<IIQ6Q", number, machine, 0, *arguments, *[0] * (6 - len(arguments)))
    at, value = 0, 0
    while True:
        code, if_so, if_not, k = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x06:
            return k
        if code == 0x20:
            value = struct.unpack_from("<I", held, k)[0]
        else:
            holds = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code]
            at += if_so if holds else if_not


ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


@pytest.mark.parametrize(
    ("machine", "number", "arguments", "expected"),
    [
        ("x86_64", 0, (), ALLOW),
        ("x86_64", 59, (), ALLOW),
        ("x86_64", 101, (), EPERM),
        ("aarch64", 117, (), EPERM),
        ("aarch64", 101, (), ALLOW),
        ("x86_64", 425, (), EPERM),
        ("x86_64", 435, (), ENOSYS),
        ("x86_64", 56, (17,), ALLOW),
        ("x86_64", 56, (0x10000011,), EPERM),
        ("aarch64", 220, (0x00020011,), EPERM),
        ("x86_64", 41, (1,), ALLOW),
        ("x86_64", 41, (2,), EPERM),
        ("x86_64", 41, (2**32 + 1,), ALLOW),
        ("aarch64", 198, (10,), EPERM),
        ("x86_64", 16, (0, 0x5401), ALLOW),
        ("x86_64", 16, (0, 0x5412), EPERM),
        ("x86_64", 16, (0, 0x1_0000_5412), EPERM),
        ("x86_64", 302, (0, 7), ALLOW),
        ("x86_64", 302, (1, 7), EPERM),
        ("x86_64", 141, (0, 0), ALLOW),
        ("x86_64", 141, (2, 0), EPERM),
        ("x86_64", 0x40000000 + 39, (), KILL),
    ],
)
def test_the_filter_says_what_it_should(machine, number, arguments, expected):
    assert verdict(filter.assemble(machine), filter.MACHINES[machine], number, *arguments) == expected


def test_the_filter_refuses_the_calls_of_other_machines():
    assert verdict(filter.assemble("x86_64"), 0x40000003, 20) == KILL
    assert verdict(filter.assemble("aarch64"), filter.MACHINES["x86_64"], 0) == KILL
    with pytest.raises(KeyError, match="no filter for the machine 'mips'; there are filters for x86_64, aarch64"):
        filter.assemble("mips")
    assert {"ptrace", "mount", "bpf", "keyctl", "io_uring_setup"} <= set(filter.REFUSED)
