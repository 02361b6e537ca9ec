"""Sessions: what lives between commands, what ends them, and commands that try to disturb more than their own item."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from minerua_agent_tasks.sandbox import COMMAND_BYTES, Limits, Sandbox, SandboxError, starting
from minerua_agent_tasks.sandbox.inside import serving

from minerua.errors import ConfigError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="strong modes need Linux")

LIMITS = Limits(
    seconds=20,
    cpu_seconds=10,
    memory_bytes=96 << 20,
    processes=24,
    file_bytes=4 << 20,
    disk_bytes=8 << 20,
    disk_files=500,
    output_bytes=64 << 10,
)
MODES = [offer.mode for offer in Sandbox.check() if offer.fault is None and offer.mode != "bubblewrap"]
needs_walls = pytest.mark.skipif("namespaces" not in MODES, reason="this machine offers no namespaces")


@pytest.fixture(scope="module", params=MODES)
def sandbox(request):
    with Sandbox(request.param, limits=LIMITS) as one:
        yield one


@pytest.fixture(scope="module")
def walls():
    with Sandbox("namespaces", limits=LIMITS) as one:
        yield one


@pytest.fixture(scope="module")
def strongest():
    """For what takes long: it is the same code in all modes."""
    limits = replace(LIMITS, seconds=60)
    with Sandbox(MODES[0], limits=limits) as one, one.open() as session:
        yield session


@pytest.fixture
def session(sandbox):
    with sandbox.open(files={"a.txt": "hello\n", "deep/b.bin": b"\0\xff"}) as one:
        yield one


def said(outcome):
    return outcome.stdout.decode()


def left(word):
    """Processes of this machine with a word in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(path)
        except (FileNotFoundError, ProcessLookupError):  # noqa: PERF203 - it ended meanwhile
            continue
    return found


# ── what lives between commands ──────────────────────────────────────────────────────────────────────────────────────


def test_files_folder_variables_functions_and_exit_code_persist(session):
    assert said(session.run("cat a.txt; wc -c < deep/b.bin")) == "hello\n2\n"
    session.run("cd deep; x='a  b'; export y=2; f() { echo \"f $1\"; }; echo new > c.txt")
    outcome = session.run('f 1; echo "$x"; bash -c "echo $y"; ls; basename "$PWD"; false')
    assert said(outcome) == "f 1\na  b\n2\nb.bin\nc.txt\ndeep\n"
    assert (outcome.code, outcome.signal, outcome.limit, outcome.shell_ended) == (1, None, None, False)
    assert not outcome.is_success
    assert said(session.run("echo $?")) == "1\n"


def test_each_command_has_its_own_output_and_no_input(session):
    outcome = session.run("echo out; echo err >&2; read -r line || echo nothing to read; cat")
    assert (outcome.stdout, outcome.stderr) == (b"out\nnothing to read\n", b"err\n")
    assert session.run("true").stdout == b""


def test_a_session_can_merge_errors_into_its_output(sandbox):
    with sandbox.open(merged=True) as session:
        outcome = session.run("echo 1; echo 2 >&2; echo 3; nowhere")
        assert (said(outcome), outcome.stderr) == ("1\n2\n3\nbash: line 1: nowhere: command not found\n", b"")
        assert session.run_program(["/bin/sh", "-c", "echo 1; echo 2 >&2"]).stdout == b"1\n2\n"


def test_what_is_no_shell_language_is_an_outcome(session):
    for wrong in ("if", "echo 'a", "((", "}", "case", "\x01\x02", "é'"):
        outcome = session.run(wrong)
        assert outcome.code
        assert not outcome.shell_ended
    assert said(session.run("# only a remark")) == ""
    assert said(session.run("cat <<END\ntext\nEND")) == "text\n"
    assert said(session.run("\n\nfor i in 1 2\ndo\necho $i\ndone\n")) == "1\n2\n"


@needs_walls
def test_a_session_is_a_small_system_with_a_user(walls):
    with walls.open() as session:
        assert said(session.run("whoami; hostname; pwd; echo $HOME $USER; date +%Z")) == (
            "user\nsandbox\n/home/user\n/home/user user\nUTC\n"
        )
        made = (
            "for d in /tmp /home /root /etc /var /opt /srv /mnt /media /data /workspace; do touch $d/x || exit 1; done"
        )
        assert session.run(made).is_success
        assert session.run("touch /usr/x /x /bin/x /dev/x; ls /x /usr/x").code != 0
        assert said(session.run("ls /var /etc")) == "/etc:\ngroup\nhostname\npasswd\nx\n\n/var:\nx\n"


def test_the_same_commands_say_the_same(sandbox):
    commands = ["pwd | sed 's/minerua-[^/]*//'", "echo $LANG $TZ $HOME | wc -w", "ls -a", "echo b > z; ls", "umask"]

    def all_of_them():
        with sandbox.open(files={"a": ""}) as session:
            return [session.run(command).stdout for command in commands]

    assert all_of_them() == all_of_them()


@needs_walls
def test_time_stands_still_between_commands(walls):
    with walls.open() as session:
        session.run("(while sleep 0.02; do echo x >> ticks; done) &")
        session.run("sleep 0.2")
        before = int(session.run("wc -l < ticks").stdout)
        time.sleep(0.6)
        after = int(session.run("wc -l < ticks").stdout)
        assert 2 <= before <= after <= before + 8
        session.run("sleep 0.3")
        assert int(session.run("wc -l < ticks").stdout) > after


def test_many_sessions_at_once_see_nothing_of_each_other(sandbox):
    sessions = [sandbox.open(files={"mine": str(number)}) for number in range(12)]

    def worked(number):
        sessions[number].run(f"x={number}; echo {number} > made-{number}")
        return said(sessions[number].run("echo $x $(cat mine) $(ls)"))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(worked, range(12))) == [f"{n} {n} made-{n} mine\n" for n in range(12)]
    for session in sessions:
        session.close()


# ── what ends a shell ────────────────────────────────────────────────────────────────────────────────────────────────

ENDINGS = {
    "exit 3": (3, None),
    "exec true": (0, None),
    "exec nowhere": (127, None),
    "set -e; false": (1, None),
    "kill -9 $$": (None, signal.SIGKILL),
    "kill -TERM 0": (None, signal.SIGTERM),
    "trap 'exit 9' EXIT; exit 2": (9, None),
}


@pytest.mark.parametrize("command", ENDINGS)
def test_a_shell_that_ends_is_told_and_the_next_command_gets_a_fresh_one(session, command):
    session.run("x=1; cd deep; echo kept > ~/kept; sleep 50 &")
    outcome = session.run(command)
    assert (outcome.code, outcome.signal) == ENDINGS[command]
    assert (outcome.shell_ended, outcome.limit) == (True, None)
    assert said(session.run("echo [$x] ${PWD##*/} $(cat kept); jobs")) == "[] user kept\n"


STUCK = {
    "sleep 60": {"seconds"},
    "while :; do :; done": {"seconds"},
    "x=$(sleep 60)": {"seconds"},
    "sleep 60 & wait": {"seconds"},
    "trap '' TERM INT HUP QUIT; sleep 60": {"seconds"},
    "kill -STOP $$": {"seconds"},
    "yes": {"output_bytes"},
    "yes >&2": {"output_bytes"},
    "head -c 100000 /dev/zero": {"output_bytes"},
    "f() { f; }; f": {"seconds", None},  # bash gives up by itself, if it is fast enough
    "x=x; while :; do x=$x$x; done": {"seconds", "memory_bytes", None},
}


@pytest.mark.parametrize("command", STUCK)
def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(strongest, command):
    outcome = strongest.run(f"echo begun\n{command}", seconds=0.4)
    assert outcome.limit in STUCK[command]
    assert outcome.stdout.startswith(b"begun\n")
    assert len(outcome.stdout) <= LIMITS.output_bytes
    assert outcome.seconds < 3
    assert outcome.shell_ended
    assert said(strongest.run("echo on")) == "on\n"


def test_all_commands_together_have_the_session_s_seconds(sandbox):
    with sandbox.open(limits=Limits(seconds=1.2)) as session:
        assert session.run("sleep 0.3").limit is None
        assert session.run("sleep 5", seconds=5).limit == "seconds"
        further = session.run("echo more")
        assert (further.limit, further.stdout, further.code, further.shell_ended) == ("seconds", b"", None, True)
        assert session.run_program(["/bin/true"]).limit == "seconds"


def test_all_commands_together_have_the_session_s_processor_time(sandbox):
    with sandbox.open(limits=Limits(seconds=10, cpu_seconds=0.4)) as session:
        assert session.run("true").limit is None
        assert session.run("while :; do :; done").limit == "cpu_seconds"
        assert session.run("echo more").limit == "cpu_seconds"


# ── commands that mean harm ──────────────────────────────────────────────────────────────────────────────────────────

ATTACKS = {
    "writes the end mark itself": "for n in $(seq 3 254); do echo 0 >&$n; done 2>/dev/null; echo on",
    "writes marks without end": "for n in 10 11 12 13 201; do (yes 7 >&$n &) 2>/dev/null; done; echo on",
    "eats the commands that come": "for n in 10 11 12 200; do head -c 100 <&$n & done 2>/dev/null; sleep 0.1",
    "closes everything": 'for n in $(seq 0 254); do eval "exec $n>&-"; done',
    "closes standard output": "exec >&- 2>&-; echo lost",
    "redirects standard output": "exec >caught 2>&1; echo caught",
    "redefines the words of the loop": "eval() { :; }; read() { :; }; printf() { :; }; __status() { :; }; IFS=x",
    "redefines what says the end": "builtin() { while :; do sleep 1; done; }",
    "traps everything": "trap 'sleep 60' EXIT DEBUG RETURN ERR; false",
    "is a fork bomb": ":(){ :|:& };:",
    "forks in the background": "for n in $(seq 100); do sleep 60 & done",
    "changes its limits": "ulimit -n 3; ulimit -u 1; ulimit -f 0; ulimit -v 1000",
    "fills the disk": "head -c 4000000 /dev/zero > a; cat a a a > b; for n in $(seq 600); do : > f$n; done",
    "fills the memory": "x=$(head -c 60000000 /dev/zero | tr '\\0' x); y=$x$x; echo ${#y}",
    "takes its home away": "cd /; rm -rf ~; ls ~",
    "closes its home": "chmod 000 ~ /tmp /etc; mv /etc/passwd /etc/other",
    "kills everybody": "kill -9 -1",
    "stops everybody": "kill -STOP -1",
    "leaves a daemon": "setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' >/dev/null 2>&1 &",
    "floods from the background": "(yes & yes >&2 &) ; sleep 0.05",
    "becomes another program": "exec sleep 60",
    "is long": "x=" + "y" * (COMMAND_BYTES - 10),
    "signals init": "kill -9 1; kill -STOP 1; kill -TERM 1; echo on",
    "plants start-up files": "for f in .bashrc .profile .bash_env; do echo 'echo PLANTED; exit 0' > ~/$f; done;"
    "echo 'print(\"PLANTED\")' > ~/json.py; export BASH_ENV=~/.bashrc PATH=~:$PATH PYTHONPATH=~ LD_PRELOAD=~/x.so",
    "plants python packages": "d=$(python3 -m site --user-site 2>/dev/null || echo ~/.local/lib/python3/site-packages);"
    "mkdir -p $d; echo 'print(\"PLANTED\")' | tee $d/usercustomize.py $d/sitecustomize.py > /dev/null",
}


@needs_walls
@pytest.mark.parametrize("name", ATTACKS)
def test_no_command_disturbs_more_than_its_own_session(walls, strongest, name):
    other = strongest
    other.run("x=mine")
    with walls.open() as session:
        outcome = session.run(ATTACKS[name], seconds=0.5)
        assert outcome.seconds < 4
        session.run("echo more", seconds=0.5)
        check = session.run_program([walls.python, "-I", "-c", "import json; print(6 * 7)"], seconds=5)
        assert (check.stdout, check.code) == (b"42\n", 0)
        check = session.run_program(["bash", "-c", "echo $((6 * 7)) $1", "--", "a b"], seconds=5)
        assert (check.stdout, check.code) == (b"42 a b\n", 0)
        assert said(other.run("echo $x")) == "mine\n"


@needs_walls
def test_programs_of_a_session_inherit_no_open_file_but_the_standard_ones(walls):
    with walls.open() as session:
        source = (
            "import os\nfound = []\nfor n in range(256):\n    try:\n        os.fstat(n)\n"
            "    except OSError:\n        continue\n    found.append(n)\nprint(found)"
        )
        assert said(session.run(f'{walls.python} -I -c "{source}"')) == "[0, 1, 2]\n"
        assert session.run_program([walls.python, "-I", "-c", source]).stdout == b"[0, 1, 2]\n"


@needs_walls
def test_the_walls_of_a_session_are_those_of_a_run(walls, tmp_path):
    Path(tmp_path, "canary").write_text("sings")
    with walls.open() as session:
        for command in (
            f"cat {tmp_path}/canary",
            "cat /proc/1/environ",
            "echo x > /usr/bin/evil",
            "echo x > /dev/evil",
            "mount -t tmpfs x /tmp",
            "unshare -r true",
            "chroot / true",
            "echo x > /dev/tcp/127.0.0.1/22",
        ):
            outcome = session.run(command)
            assert outcome.code != 0
            assert b"sings" not in outcome.stdout
        assert said(session.run("ls / | tr '\\n' ' '; id -u")).endswith("65534\n")


@needs_walls
def test_nothing_is_left_when_sessions_end(walls):
    with walls.open() as session:
        session.run("setsid sleep 12345.5 & sleep 12345.5 & disown -a; sleep 0.1")
        assert len(left("12345.5")) == 2
    deadline = time.monotonic() + 5
    while left("12345.5") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left("12345.5") == []


@needs_walls
def test_a_program_beside_the_shell_finds_nobody_of_it_alive(walls):
    with walls.open() as session:
        session.run("(while :; do echo disturbed > state; done) & echo fine > state")
        assert session.run_program(["/bin/sh", "-c", "echo fine > state; sleep 0.1; cat state"]).stdout == b"fine\n"
        outcome = session.run_program(["/bin/sh", "-c", "exit 4"])
        assert (outcome.code, outcome.shell_ended) == (4, False)
        assert session.run_program(["/bin/sh", "-c", "kill -9 $$"]).signal == signal.SIGKILL
        assert session.run_program(["/bin/sleep", "9"], seconds=0.2).limit == "seconds"
        assert said(session.run("cat state")) == "fine\n"


# ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_asked_is_refused(session):
    with pytest.raises(ConfigError, match="has a zero byte in it; no shell can be given one"):
        session.run("echo \0")
    with pytest.raises(ConfigError, match="the command cannot be written as UTF-8: surrogates not allowed"):
        session.run("\ud800")
    with pytest.raises(ConfigError, match=f"has {COMMAND_BYTES + 1} bytes; a shell takes at most {COMMAND_BYTES}"):
        session.run("x" * (COMMAND_BYTES + 1))
    for wrong in ("true", [], ["true", 1], ["a\0"]):
        with pytest.raises(ConfigError, match="a list of texts without zero bytes is needed"):
            session.run_program(wrong)
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="it is above 0, and finite"):
            session.run("true", seconds=wrong)
    assert said(session.run("echo fine")) == "fine\n"


def test_files_that_cannot_be_are_refused(sandbox):
    with pytest.raises(ConfigError, match="the session cannot be opened as it is asked") as caught:
        sandbox.open(files={"/etc/passwd": "", "../x": ""})
    assert len(caught.value.faults) == 2


def test_a_shell_that_is_not_there_is_an_error(sandbox):
    with sandbox.open(shell="nosuchshell") as session:
        with pytest.raises(SandboxError, match=r"start the shell, or a program of the session: .*No such file"):
            session.run("true")
        with pytest.raises(SandboxError, match="the session is closed; open another one"):
            session.run("true")


def test_a_closed_session_takes_no_commands(sandbox):
    session = sandbox.open()
    session.close()
    session.close()
    with pytest.raises(SandboxError, match="the session is closed; open another one"):
        session.run("true")


def test_closing_ends_a_command_that_runs(sandbox):
    session = sandbox.open()
    timer = threading.Timer(0.3, session.close)
    timer.start()
    began = time.monotonic()
    with pytest.raises(SandboxError, match="the session was closed"):
        session.run("sleep 15")
    assert time.monotonic() - began < 5
    timer.join()


def test_a_closed_sandbox_closes_its_sessions_and_opens_none():
    sandbox = Sandbox("weak")
    session = sandbox.open()
    sandbox.close()
    with pytest.raises(SandboxError, match="the session is closed"):
        session.run("true")
    with pytest.raises(SandboxError, match="the sandbox is closed; no session can be opened in it any more"):
        sandbox.open()


def test_an_exception_in_a_session_closes_it(sandbox):
    with pytest.raises(ZeroDivisionError), sandbox.open() as session:
        raise ZeroDivisionError
    with pytest.raises(SandboxError, match="the session is closed"):
        session.run("true")


def test_there_are_no_sessions_in_bubblewrap():
    with Sandbox("weak") as sandbox:
        sandbox.mode = "bubblewrap"
        with pytest.raises(SandboxError, match="there are no sessions in mode 'bubblewrap'"):
            sandbox.open()


def test_a_room_that_cannot_be_built_is_an_error(monkeypatch):
    with Sandbox("weak") as sandbox:
        order = sandbox_order = starting.Starter.start

        def broken(self, told):
            return order(self, {**told, "room": "/nowhere/at/all", "home": "/nowhere/at/all"})

        monkeypatch.setattr(starting.Starter, "start", broken)
        with pytest.raises(SandboxError, match=r"the session has failed: start: .*No such file"):
            sandbox.open()
        monkeypatch.setattr(starting.Starter, "start", sandbox_order)
        with sandbox.open() as session:
            assert session.run("true").is_success


def test_a_starter_that_was_killed_is_started_again(sandbox):
    with sandbox.open() as session:
        assert session.run("true").is_success
    sandbox._starter.process.kill()
    sandbox._starter.process.wait()
    with sandbox.open() as session:
        assert said(session.run("echo again")) == "again\n"


@pytest.mark.parametrize("then", [subprocess.Popen.poll, subprocess.Popen.wait], ids=["at once", "when it is gone"])
def test_a_session_whose_first_process_is_killed_is_an_error_and_others_live(sandbox, then):
    with sandbox.open() as session:
        session.run("true")
        sandbox._starter.process.kill()
        then(sandbox._starter.process)
        with pytest.raises(SandboxError, match="the session has failed: its first process is gone"):
            session.run("sleep 10")


@needs_walls
def test_a_starter_that_cannot_be_started_says_so(monkeypatch):
    monkeypatch.setattr(starting.sys, "executable", "/no/such/python")
    with (
        Sandbox("namespaces") as sandbox,
        pytest.raises(SandboxError, match=r"the process that starts sessions cannot be started: .*No such file"),
    ):
        sandbox.open()


@needs_walls
def test_a_starter_that_ends_at_once_is_tried_again_and_then_told(monkeypatch):
    monkeypatch.setattr(starting, "_BOOT", "import sys")

    def slow(*arguments):
        time.sleep(0.5)  # until the process has ended
        return send(*arguments)

    send = socket.send_fds
    monkeypatch.setattr(starting.socket, "send_fds", slow)
    with (
        Sandbox("namespaces") as sandbox,
        pytest.raises(SandboxError, match="the process that starts sessions is gone: "),
    ):
        sandbox.open()


def test_sessions_die_with_whoever_opened_them():
    script = (
        "import sys, time\nfrom minerua_agent_tasks.sandbox import Sandbox\n"
        f"session = Sandbox({MODES[0]!r}).open()\n"
        "session.run('sleep 23456.5 & sleep 0.1')\nprint('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        assert len(left("23456.5")) >= 2
        process.kill()
    deadline = time.monotonic() + 10
    while left("23456.5") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left("23456.5") == []


def test_a_forgotten_sandbox_leaves_no_process():
    sandbox = Sandbox("weak")
    sandbox.open().close()
    process = sandbox._starter.process
    del sandbox
    gc.collect()
    assert process.returncode is not None


def test_an_exit_code_that_is_none_reads_as_255():
    lines = (b"0\n", b"130\n5\n", b"-1\n", b"\xff\n", b"300\n")
    assert [serving._code(line) for line in lines] == [0, 130, 255, 255, 44]
