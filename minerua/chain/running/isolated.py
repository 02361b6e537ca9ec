"""The process in which an isolated step runs, and the frames in which its parent and it talk.

Both ends are ours and nobody else can reach the channel between them, a pair of sockets without a name; so values
travel by pickle. Arrays of 64 kB and more travel beside it in shared memory that has no name either: its descriptor
goes through the channel, and the system frees it with the last process that looks at it, whatever kills whom.

| bytes of a frame | what |
|---|---|
| 0 | its kind |
| 1 to 8 | how long its body is |
| 9 to 16 | how long its shared memory is; with more than 0 its descriptor comes with the frame |
| 17 on | the body: a count n, n sizes of arrays, 8 bytes each; then the pickle |
"""

from __future__ import annotations

import array
import contextlib
import importlib
import inspect
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import traceback
import types
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, final

from minerua.chain.keeping.footprint import data_bytes
from minerua.errors import ChainError
from minerua.values import Setup, Skill

SHARED_BYTES = 1 << 16
"""From how many bytes on an array travels in shared memory."""

READY, SCRIPT, RUN, STARTED, PARTIAL, DONE, FAILED = b"y", b"m", b"r", b"s", b"p", b"d", b"f"

_HEADER = struct.Struct("<cQQ")
_ALIGNMENT = 64


@final
@dataclass(frozen=True)
class SkillReference:
    """What to run, in words that another process understands.

    Args:
        target: `"module:attribute"`, or a callable that pickle can name, such as a function at the top level of a
            module.
        arguments: If given, the target is called with them and returns what is meant; if not, the target is meant.
        setup: How it is loaded if what is meant is a `Skill` with `load`.

    Example:
        >>> SkillReference("math:sqrt").resolve()(4.0)
        2.0
    """

    target: str | Callable[..., Any]
    arguments: tuple[Any, ...] | None = None
    setup: Setup = field(default_factory=Setup)

    def resolve(self) -> Callable[..., Any]:
        """Returns what to call, imported and loaded in this process.

        Raises:
            LookupError: If the module has no such attribute.
            TypeError: If what is meant cannot be called.
            Exception: Whatever importing and loading raise.
        """
        found = _imported(self.target) if isinstance(self.target, str) else self.target
        if self.arguments is not None:
            found = found(*self.arguments)
        if isinstance(found, Skill):
            found = found.call or (found.load(self.setup) if found.load is not None else None)
        if not callable(found):
            raise TypeError(f"{self.target} is {type(found).__name__}, not a function and no skill that can be called")
        return found


def _imported(target: str) -> Any:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    try:
        return attrgetter(path)(found)
    except AttributeError as error:
        raise LookupError(f"the module {module} has no {path!r}; write 'module:attribute'") from error


def reference_to(skill: Skill, setup: Setup) -> SkillReference:
    """Returns what to tell a worker process so that it runs this skill.

    Args:
        skill: Its function, or its `load`, stands at the top level of a module, or has a pickle, as a
            `functools.partial` of such a function has.
        setup: How it is loaded.

    Raises:
        ChainError: If another process cannot find the function by name.

    Example:
        >>> import json
        >>> reference_to(Skill("dump", call=json.dumps), Setup()).target
        'json:dumps'
    """
    function: Any = skill.call if skill.call is not None else skill.load
    arguments = None if skill.call is not None else (setup,)
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    found: Any = sys.modules.get(str(module))
    for name in path.split("."):
        found = getattr(found, name, None)
    if isinstance(found, Skill) and function in (found.call, found.load):
        return SkillReference(f"{module}:{path}", None, setup)
    if found is function and found is not None:
        return SkillReference(f"{module}:{path}", arguments, setup)
    try:
        pickle.dumps(function)
    except Exception as error:
        raise ChainError(
            f"the skill {skill.name!r} cannot run in a process of its own: that process cannot find {function!r} by "
            "name; define it at the top level of a module, or give the step no isolation"
        ) from error
    return SkillReference(function, arguments, setup)


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Frame(NamedTuple):
    """What came through the channel; its arrays become read-only views of shared memory."""

    kind: bytes
    body: bytes
    shared: memoryview

    def load(self) -> Any:
        """Returns the value; raises whatever its pickle does."""
        count = int.from_bytes(self.body[:8], "little")
        start = 8 * (1 + count)
        views, offset = [], 0
        for size in struct.unpack_from(f"<{count}Q", self.body, 8):
            views.append(self.shared[offset : offset + size])
            offset += size + -size % _ALIGNMENT
        return pickle.loads(memoryview(self.body)[start:], buffers=views)


def pack(value: Any) -> tuple[bytes, list[memoryview]]:
    """Returns the body of a frame and the arrays that travel beside it; raises whatever pickle does."""
    large: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes >= SHARED_BYTES:
            large.append(view)
        return view.nbytes < SHARED_BYTES

    content = pickle.dumps(value, 5, buffer_callback=is_small)
    return struct.pack(f"<{1 + len(large)}Q", len(large), *(view.nbytes for view in large)) + content, large


def send(channel: socket.socket, kind: bytes, packed: tuple[bytes, list[memoryview]]) -> None:
    """Sends a frame."""
    body, large = packed
    length = sum(view.nbytes + -view.nbytes % _ALIGNMENT for view in large)
    content = _HEADER.pack(kind, len(body), length) + body
    if not large:
        channel.sendall(content)
        return
    file = _shared_file(large)
    try:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))]
        sent = channel.sendmsg([content], rights)
    finally:
        os.close(file)
    channel.sendall(memoryview(content)[sent:])


def receive(channel: socket.socket) -> Frame | None:
    """Returns the next frame, or `None` if the other end is gone."""
    files = array.array("i")
    try:
        head, rights, _, _ = channel.recvmsg(_HEADER.size, socket.CMSG_SPACE(files.itemsize))
        for _, _, content in rights:
            files.frombytes(content[: len(content) - len(content) % files.itemsize])
        header = _completed(channel, head, _HEADER.size)
        if header is None:
            return None
        kind, body_bytes, shared_bytes = _HEADER.unpack(header)
        body = _completed(channel, b"", body_bytes)
        if body is None or (shared_bytes and not files):
            return None
        return Frame(kind, body, _mapped(files[0], shared_bytes) if shared_bytes else memoryview(b""))
    except ConnectionError:
        return None
    finally:
        for file in files:
            os.close(file)


def _completed(channel: socket.socket, start: bytes, size: int) -> bytes | None:
    content = bytearray(size)
    content[: len(start)] = start
    filled = len(start)
    with memoryview(content) as view:
        while filled < size:
            count = channel.recv_into(view[filled:])
            if not count:
                return None
            filled += count
    return bytes(content)


def _shared_file(views: list[memoryview]) -> int:
    """Returns the descriptor of memory without a name that holds these bytes."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("minerua-arrays", os.MFD_CLOEXEC)
    else:  # macOS: a file that is removed while it is open
        import tempfile

        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    try:
        for view in views:
            _write_all(file, view)
            _write_all(file, memoryview(bytes(-view.nbytes % _ALIGNMENT)))
    except BaseException:  # nothing may stay open; raised again
        os.close(file)
        raise
    return file


def _write_all(file: int, rest: memoryview) -> None:
    while rest.nbytes:
        rest = rest[os.write(file, rest) :]


def _mapped(file: int, size: int) -> memoryview:
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    return memoryview(mmap.mmap(file, size, flags=flags, prot=mmap.PROT_READ))


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def main(channel_file: int, lifeline: int) -> None:
    """Runs what the parent asks for until the parent is gone.

    Args:
        channel_file: Descriptor of this end of the channel.
        lifeline: Descriptor of a pipe whose other end the parent keeps open as long as it lives.
    """
    end_with_parent(lifeline)
    channel = socket.socket(fileno=channel_file)
    channel.set_inheritable(False)
    loaded: dict[bytes, Callable[..., Any]] = {}
    script: Script | None = None
    send(channel, READY, pack(None))
    while (frame := receive(channel)) is not None:
        if frame.kind == SCRIPT:
            script = frame.load()
            continue
        try:
            _answer(channel, frame, loaded, script)
        except ConnectionError:
            break
        del frame  # nothing of the last call stays alive while the next one is awaited


def end_with_parent(lifeline: int, *, by_signal: bool = sys.platform == "linux") -> None:
    """Sees to it that this process and all that it started die when the other end of the lifeline closes.

    Linux kills them itself, even if this process never comes to run Python again; elsewhere a thread waits for it.
    """
    os.set_inheritable(lifeline, False)
    if by_signal:
        import fcntl

        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([lifeline], [], [], 0)[0]:  # it closed before this was in place
            os.killpg(0, signal.SIGKILL)
    else:
        threading.Thread(target=_wait_and_die, args=(lifeline,), daemon=True).start()


def _wait_and_die(lifeline: int) -> None:
    os.read(lifeline, 1)  # nothing is ever written: it returns when the pipe closes
    os.killpg(0, signal.SIGKILL)


class Script(NamedTuple):
    """What a process runs as `__main__`: a module by name, or a file."""

    module: str
    path: str


class Failed(NamedTuple):
    """How a call failed, in words that need nothing but this module to be read."""

    error: bytes  # its pickle; empty if it has none
    kind: str
    text: str
    trace: str
    grown_bytes: int | None  # by how much the process grew, if it ran out of the memory that it may have


def _answer(
    channel: socket.socket, frame: Frame, loaded: dict[bytes, Callable[..., Any]], script: Script | None
) -> None:
    """Runs one call and sends what came of it."""
    limit = _MemoryLimit()
    try:
        if script is not None:
            _adopt(script)
        name, inputs, memory_bytes = frame.load()
        call = loaded.get(name)
        if call is None:
            call = loaded[name] = pickle.loads(name).resolve()
        send(channel, STARTED, pack(None))
        with limit.of(memory_bytes):
            outputs = _result(call(**inputs), lambda partial: send(channel, PARTIAL, pack(_plain(partial))))
        packed = pack(_plain(outputs))
    except ConnectionError:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a skill raises, SystemExit too, is the parent's to raise
        send(channel, FAILED, pack(_described(error, limit)))
    else:
        send(channel, DONE, packed)


def _plain(outputs: Any) -> Any:
    """Outputs as a dict: mappings of other kinds may have no pickle."""
    return dict(outputs) if isinstance(outputs, Mapping) else outputs


def script_of_this_process() -> Script | None:
    """Returns what this process runs as `__main__`, for a process that needs what is defined there.

    Returns:
        `None` if it cannot be run again: it is interactive, or nothing but an entrance.
    """
    main = sys.modules["__main__"]
    sys.modules.setdefault("__mp_main__", main)  # the name that it has there
    name = getattr(getattr(main, "__spec__", None), "name", "")
    if name:
        return None if name.endswith("__main__") else Script(name, "")
    path = getattr(main, "__file__", None)
    return None if path is None else Script("", os.path.abspath(path))


def _adopt(script: Script) -> None:
    """Makes what the parent's script defines known as `__main__`, as multiprocessing does; without its guarded part."""
    if "__mp_main__" in sys.modules:
        return
    import runpy

    if script.module:
        content = runpy.run_module(script.module, run_name="__mp_main__", alter_sys=True)
    else:
        content = runpy.run_path(script.path, run_name="__mp_main__")
    module = types.ModuleType("__mp_main__")
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def _result(outputs: Any, tell: Callable[[Any], Any]) -> Any:
    """Awaits a coroutine, exhausts a generator: of what it yields, the last is the result, the others are told."""
    if inspect.isawaitable(outputs) or isinstance(outputs, AsyncIterator):
        import asyncio  # takes as long to import as a small process to start

        return asyncio.run(_last_of(outputs, tell) if isinstance(outputs, AsyncIterator) else _awaited(outputs))
    if not inspect.isgenerator(outputs):
        return outputs
    last = None
    for count, partial in enumerate(outputs):
        if count:
            tell(last)
        last = partial
    return last


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def _last_of(partials: AsyncIterator[Any], tell: Callable[[Any], Any]) -> Any:
    last, count = None, 0
    async for partial in partials:
        if count:
            tell(last)
        last, count = partial, count + 1
    return last


def _described(error: BaseException, limit: _MemoryLimit) -> Failed:
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        content = pickle.dumps(error)
    except Exception:  # noqa: BLE001 - an error may hold anything; its text is enough
        content = b""
    try:
        text = str(error)
    except Exception as another:  # noqa: BLE001 - a stranger's error may fail to say what it is
        text = f"it has no text, because saying it raised {type(another).__name__}"
    return Failed(content, type(error).__qualname__, text, trace, limit.grown_bytes(error, text))


class _MemoryLimit:
    """The memory that a call may take beyond what the process had; of data, which memory shared with others is not."""

    def __init__(self) -> None:
        self._before: int | None = None

    @contextlib.contextmanager
    def of(self, memory_bytes: int | None) -> Iterator[None]:
        """Sets the limit for as long as the context lasts; `None` sets none."""
        if memory_bytes is None:
            yield
            return
        import resource

        self._before = data_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = self._before + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def grown_bytes(self, error: BaseException, text: str) -> int | None:
        """By how much the process grew, if that is what the error is about."""
        is_full = isinstance(error, MemoryError) or "allocate memory" in text  # torch raises a RuntimeError
        return max(0, data_bytes() - self._before) if is_full and self._before is not None else None
