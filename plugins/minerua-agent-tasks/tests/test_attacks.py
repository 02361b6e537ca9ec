"""Programs that try to get out, to take everything, or to disturb who comes next: none of them does.

Each program prints `ESCAPED` where it succeeds with what it must not, and is watched from outside too: a canary file, a
canary secret, sockets that listen, and the processes of the machine are looked at afterwards, and the next harmless
program must be right.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from minerua_agent_tasks.sandbox import Limits, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="strong modes need Linux")

LIMITS = Limits(
    seconds=10,
    cpu_seconds=10,
    memory_bytes=96 << 20,
    processes=12,
    file_bytes=4 << 20,
    disk_bytes=8 << 20,
    disk_files=500,
    output_bytes=64 << 10,
)
QUICK = replace(LIMITS, seconds=0.5, cpu_seconds=0.5)
"""For attacks that end only when they are stopped."""

UNTOUCHED = b"42\n/tmp:\nhome\nroom\n\n/tmp/home:\n\n/tmp/room:\n"
CANARY, SECRET = "the canary sings", "canary-secret-4711"

PRELUDE = """
import os, sys
TOKEN, FILE, HOME, TCP, UDP, ABSTRACT = sys.argv[1:7]
ARM = os.uname().machine == "aarch64"
if "ctypes" in globals():
    libc = ctypes.CDLL(None, use_errno=True)

def attempt(what, *arguments, **named):
    try:
        what(*arguments, **named)
    except (OSError, AttributeError, ValueError) as error:
        print("refused:", error)
    else:
        print("ESCAPED", getattr(what, "__name__", what), arguments)

def syscall(x86, arm, *arguments):
    result = libc.syscall(ctypes.c_long(arm if ARM else x86), *map(ctypes.c_long, arguments))
    print("ESCAPED" if result >= 0 else "refused:", x86, errno.errorcode.get(ctypes.get_errno()))

def read(path):
    with open(path, "rb") as file:
        return file.read(1 << 20)
"""

ATTACKS = {
    # ── reading ──
    "reads a file of the host": "attempt(read, FILE)",
    "lists the home directory": """
        found = [name for name in os.listdir(HOME)] if os.path.isdir(HOME) else []
        if [name for name in found if not sys.prefix.startswith(os.path.join(HOME, name))]:
            print("ESCAPED", found)
    """,
    "reads secrets in the environment": "print(dict(os.environ))",
    "reads the environment of init through /proc": """
        for who in ("self", "1", "2", "thread-self"):
            attempt(read, f"/proc/{who}/environ")
    """,
    "leaves through the magic links of /proc": """
        for path in ("/proc/1/root/etc/passwd", "/proc/self/cwd/../../etc/passwd", "/proc/self/fd/0", "/proc/1/cwd"):
            attempt(read, path)
    """,
    "reads passwords, disks and the memory of the machine": """
        for path in ("/etc/shadow", "/etc/passwd", "/dev/mem", "/dev/kmsg", "/dev/vda", "/sys/kernel/vmcoreinfo"):
            attempt(read, path)
    """,
    "climbs out by relative paths": """
        os.chdir("/")
        attempt(read, "../" * 40 + FILE.lstrip("/"))
    """,
    "uses file descriptors that were left open": """
        for number in range(3, 256):
            attempt(os.fstat, number)
    """,
    # ── writing ──
    "writes over a file of the host": "attempt(open, FILE, 'w'); attempt(open, FILE, 'a')",
    "writes into system folders and the interpreter": """
        import json
        library = os.path.dirname(json.__file__)
        for path in ("/usr/bin/evil", "/evil", "/dev/evil", json.__file__, sys.executable, library + "/evil"):
            attempt(open, path, "wb")
        attempt(os.rename, "/usr/bin/true", "/usr/bin/false")
        attempt(os.chmod, sys.executable, 0o777)
    """,
    "writes through a symbolic link": """
        os.symlink(FILE, "link")
        attempt(open, "link", "w")
        os.symlink("/usr/bin", "folder")
        attempt(open, "folder/evil", "w")
    """,
    "makes a hard link to what it may only read": "attempt(os.link, sys.executable, 'mine')",
    "makes device files": """
        import stat
        attempt(os.mknod, "disk", 0o666 | stat.S_IFBLK, os.makedev(254, 0))
        attempt(os.mknod, "memory", 0o666 | stat.S_IFCHR, os.makedev(1, 1))
    """,
    "leaves a file for the next program": """
        for path in ("/tmp/left-behind", "/tmp/room/json.py", "/tmp/home/.profile"):
            open(path, "w").write("boo")
    """,
    # ── namespaces, mounts, rights ──
    "mounts": """
        os.mkdir("place")
        for kind in (b"proc", b"tmpfs", b"sysfs", b"devtmpfs", b"overlay"):
            print("refused" if libc.mount(b"x", b"place", kind, 0, None) else "ESCAPED")
        print("refused" if libc.mount(b"/usr", b"/usr", None, 32 | 4096, None) else "ESCAPED")  # read-write again
        print("refused" if libc.umount2(b"/usr", 2) else "ESCAPED")
        print("refused" if libc.umount2(b"/tmp", 2) else "ESCAPED")
    """,
    "mounts with the new calls": """
        for number in (428, 429, 430, 432, 433, 442):
            syscall(number, number, -100, 0, 0, 0, 0)
    """,
    "unshares into a user namespace of its own": "syscall(272, 97, 0x10000000); syscall(272, 97, 0x00020000)",
    "clones into a user namespace of its own": """
        syscall(56, 220, 0x10000000 | 17, 0, 0, 0, 0)
        syscall(435, 435, 0, 88)
    """,
    "enters other namespaces": "syscall(308, 268, 0, 0); syscall(308, 268, os.open('/usr', 0), 0)",
    "leaves a chroot": "attempt(os.chroot, '/tmp/room')",
    "opens by handle": "syscall(303, 264, -100, 0, 0, 0, 0); syscall(304, 265, -100, 0, 0)",
    "becomes root": """
        for how in (os.setuid, os.setgid, os.seteuid):
            attempt(how, 0)
        attempt(os.setgroups, [0])
        syscall(126, 91, 0, 0)
        print("ESCAPED" if 0 in (os.getuid(), os.geteuid()) else "nobody")
    """,
    "executes programs with set-user-id": """
        import subprocess
        for command in ("/usr/bin/su -c id", "/usr/bin/mount -t tmpfs x /tmp", "/bin/ping -c1 127.0.0.1"):
            try:
                done = subprocess.run(command.split(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
            except OSError as error:
                print("refused", error)
            else:
                print("ESCAPED" if done.returncode == 0 else "refused", done)
    """,
    "calls parts of the kernel that no program needs": """
        for x86, arm in ((321, 280), (250, 219), (248, 217), (298, 241), (425, 425), (323, 282), (246, 104), (320, 294),
                         (175, 105), (313, 273), (169, 142), (167, 224), (164, 170), (227, 112), (103, 116), (135, 92)):
            syscall(x86, arm, 0, 0, 0, 0, 0)
    """,
    "changes the machine's name": "attempt(socket.sethostname, 'mine')",
    "types into the terminal": """
        import fcntl
        attempt(fcntl.ioctl, 0, 0x5412, b"x")
        attempt(open, "/dev/tty", "w")
        attempt(open, "/dev/ptmx", "r+")
    """,
    # ── the watcher ──
    "kills everybody": """
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV):
            for whom in (1, -1):
                try:
                    os.kill(whom, number)  # success means nothing: an init is not reached
                except OSError as error:
                    print("refused:", error, flush=True)
        os.killpg(0, signal.SIGKILL)
        print("ESCAPED")
    """,
    "floods the watcher with signals": """
        end = time.time() + 0.3
        while time.time() < end:
            for whom in (1, -1):
                try:
                    os.kill(whom, signal.SIGCHLD)
                except OSError:
                    pass
    """,
    "debugs and reads the watcher": """
        syscall(101, 117, 16, 1, 0, 0)
        syscall(310, 270, 1, 0, 0, 0, 0, 0)
        syscall(438, 438, 3, 0, 0)
    """,
    "limits and slows the watcher": """
        import resource
        attempt(resource.prlimit, 1, resource.RLIMIT_CPU, (1, 1))
        attempt(os.setpriority, os.PRIO_PROCESS, 1, 19)
        attempt(os.setpriority, os.PRIO_USER, 0, 19)
        attempt(os.sched_setaffinity, 1, {0})
        attempt(os.sched_setscheduler, 1, 5, os.sched_param(0))
        attempt(resource.setrlimit, resource.RLIMIT_NPROC, (1000, 1000))
    """,
    "writes a report of its own": """
        for number in range(3, 256):
            attempt(os.write, number, b'{"code": 0, "seconds": 0}')
    """,
    # ── outliving ──
    "leaves a daemon": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
                time.sleep(60)
            os._exit(0)
        os.wait()
    """,
    "leaves a daemon that closed everything": """
        if os.fork() == 0:
            os.setsid()
            os.closerange(0, 256)
            time.sleep(60)
    """,
    "closes its output and goes on": "os.closerange(0, 256); time.sleep(60)",
    "ignores every signal": """
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            time.sleep(1)
    """,
    "stops itself": "os.kill(os.getpid(), signal.SIGSTOP)",
    # ── taking everything ──
    "is a fork bomb": """
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """,
    "is a fork bomb that changes sessions": """
        while True:
            try:
                if os.fork():
                    os.setsid()
            except OSError:
                pass
    """,
    "starts threads without end": """
        count = 0
        try:
            while True:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                count += 1
        except RuntimeError:
            print("refused" if count < 40 else "ESCAPED", count, flush=True)
            os._exit(0)
    """,
    "leaves dead children unburied": """
        count = 0
        try:
            while count < 100:
                if os.fork() == 0:
                    os._exit(0)
                count += 1
            print("ESCAPED")
        except OSError:
            print("refused", count)
    """,
    "fills the memory": """
        held = []
        while True:
            held.append(bytearray(b"x" * (1 << 20)))
    """,
    "fills the memory in many processes": """
        for _ in range(3):
            os.fork()
        held = []
        for _ in range(32):
            held.append(bytearray(b"x" * (1 << 20)))
            time.sleep(0.002)
        time.sleep(60)
    """,
    "fills the memory that is counted nowhere": """
        attempt(os.memfd_create, "x")
        syscall(29, 194, 0, 1 << 20, 0o1666)
        syscall(447, 447, 0)
        syscall(68, 186, 0, 0o1666)
    """,
    "reserves more than there is": """
        import mmap
        attempt(mmap.mmap, -1, 1 << 40)
    """,
    "fills the disk": """
        written = 0
        try:
            for number in range(100):
                with open(f"file{number}", "wb", buffering=0) as file:
                    written += file.write(bytes(1 << 20))
            print("ESCAPED")
        except OSError as error:
            print("refused:", error, written)
    """,
    "fills the disk with names": """
        try:
            for number in range(100000):
                os.mkdir(f"folder{number}")
            print("ESCAPED")
        except OSError as error:
            print("refused:", error, number)
    """,
    "makes one huge file": """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with open("huge", "wb") as file:
            attempt(file.truncate, 1 << 40)
            attempt(os.posix_fallocate, file.fileno(), 0, 1 << 30)
    """,
    "floods its output": "while True: os.write(1, b'x' * 65536)",
    "floods its errors": "while True: os.write(2, b'x' * 65536)",
    "burns every core": """
        for _ in range(3):
            os.fork()
        while True:
            pass
    """,
    # ── network ──
    "connects to a server of the host": "attempt(socket.create_connection, ('127.0.0.1', int(TCP)), 1)",
    "sends datagrams": """
        def send():
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"canary", ("127.0.0.1", int(UDP)))
        attempt(send)
    """,
    "connects to an abstract socket of the host": "attempt(socket.socket(socket.AF_UNIX).connect, '\\0' + ABSTRACT)",
    "opens sockets of every other family": """
        for family in range(2, 46):
            attempt(socket.socket, family, socket.SOCK_RAW)
            attempt(socket.socketpair, family, socket.SOCK_DGRAM)
    """,
    "asks for names and addresses": """
        attempt(socket.getaddrinfo, "localhost", 80, 0, 0, 0, socket.AI_NUMERICSERV)
        attempt(socket.create_server, ("", 0))
    """,
}

FOREIGN = {
    "calls by the numbers of 32 bits": """
        import mmap
        code = mmap.mmap(-1, 4096, prot=7)
        code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, getpid; int 0x80; ret
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
        print("ESCAPED")
    """,
    "calls by the numbers of x32": "libc.syscall(ctypes.c_long(0x40000000 + 39)); print('ESCAPED')",
}


class Host:
    """What an attack could reach: a file, a secret, servers; and what it could leave behind."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "canary.txt"
        self.file.write_text(CANARY)
        self.token = f"attack-{uuid.uuid4().hex}"
        self.tcp, self.udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0{self.token}")
        self.abstract.listen()
        for server in self.servers:
            server.setblocking(False)

    @property
    def servers(self):
        return self.tcp, self.udp, self.abstract

    def arguments(self):
        ports = [str(server.getsockname()[1]) for server in (self.tcp, self.udp)]
        return [self.token, str(self.file), os.path.expanduser("~"), *ports, self.token]

    def visits(self):
        """How many connections and datagrams came."""
        return sum(self._is_visited(server) for server in self.servers)

    @staticmethod
    def _is_visited(server):
        try:
            if server.type == socket.SOCK_DGRAM:
                return bool(server.recv(10))
            server.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def left(self):
        """The processes that an attack left behind."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if self.token.encode() in path.read_bytes():
                    found.append(path)
            except (FileNotFoundError, ProcessLookupError):  # noqa: PERF203 - it ended meanwhile
                continue
        return found


def modes():
    return [offer.mode for offer in Sandbox.check()[:2] if offer.fault is None]


@pytest.fixture(scope="module", params=modes() or [None])
def sandbox(request):
    if request.param is None:
        pytest.skip("this machine offers no strong mode")
    with Sandbox(request.param, limits=LIMITS) as one:
        yield one


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setenv("MINERUA_CANARY", SECRET)
    host = Host(tmp_path)
    yield host
    for server in host.servers:
        server.close()


def whole(attack):
    """The program of an attack, with the modules that it uses and no other: most of its time is their import."""
    used = [name for name in ("signal", "socket", "threading", "time") if f"{name}." in attack]
    calls = ["ctypes", "errno"] if any(word in attack for word in ("libc.", "syscall(", "ctypes.")) else []
    imports = "".join(f"import {name}\n" for name in [*used, *calls])
    return imports + PRELUDE + dedent(attack)


def attacked(sandbox, host, attack, limits=LIMITS):
    """Runs an attack and looks at everything but its outcome, which it returns."""
    source = whole(attack)
    outcome = sandbox.run(
        [sandbox.python, "-S", "attack.py", *host.arguments()], files={"attack.py": source}, limits=limits
    )
    said = outcome.stdout.decode(errors="replace") + outcome.stderr.decode(errors="replace")
    assert "ESCAPED" not in said
    assert "SyntaxError" not in said
    assert "NameError" not in said
    assert CANARY not in said
    assert SECRET not in said
    assert host.left() == []
    assert host.file.read_text() == CANARY
    assert sorted(path.name for path in host.file.parent.iterdir()) == ["canary.txt"]
    assert host.visits() == 0
    assert outcome.seconds < limits.seconds + 1
    assert outcome.peak_bytes < LIMITS.memory_bytes * 2.5
    next_one = sandbox.run(["/bin/sh", "-c", "echo $((6 * 7)); ls /tmp /tmp/room /tmp/home"])
    assert (next_one.stdout, next_one.stderr, next_one.code) == (UNTOUCHED, b"", 0)
    return outcome


ENDED_BY = {
    "kills everybody": {None},
    "closes its output and goes on": {"seconds"},
    "ignores every signal": {"seconds"},
    "stops itself": {"seconds"},
    "is a fork bomb": {"seconds", "cpu_seconds"},
    "is a fork bomb that changes sessions": {"seconds", "cpu_seconds"},
    "fills the memory in many processes": {"memory_bytes"},
    "floods its output": {"output_bytes"},
    "floods its errors": {"output_bytes"},
    "burns every core": {"cpu_seconds", "seconds"},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_gets_out_or_disturbs_who_comes_next(name, sandbox, host):
    if sandbox.mode == "bubblewrap" and name == "fills the disk with names":
        pytest.skip("bubblewrap has no option for how many files there may be")
    stopped = {"seconds", "cpu_seconds"} & ENDED_BY.get(name, {None})
    outcome = attacked(sandbox, host, ATTACKS[name], QUICK if stopped else LIMITS)
    assert outcome.limit in ENDED_BY.get(name, {None})
    assert outcome.stdout or name in ENDED_BY or outcome.stderr or outcome.code == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other interfaces are those of x86-64")
@pytest.mark.parametrize("name", FOREIGN)
def test_calls_by_another_interface_end_the_program(name, sandbox, host):
    assert attacked(sandbox, host, FOREIGN[name]).signal in {31, 11}  # SIGSYS; SIGSEGV where the kernel has it not


def test_there_are_at_least_thirty_attacks():
    assert len(ATTACKS) + len(FOREIGN) >= 50


def test_the_attacks_do_get_out_of_nothing(host, tmp_path):
    """The programs themselves work: without walls, what is harmless enough to be let loose does escape."""
    with Sandbox("weak", limits=LIMITS) as weak:
        for name in ("reads a file of the host", "connects to a server of the host", "sends datagrams"):
            source = whole(ATTACKS[name])
            outcome = weak.run([weak.python, "-S", "attack.py", *host.arguments()], files={"attack.py": source})
            assert b"ESCAPED" in outcome.stdout
    assert host.visits() == 2
