"""The processes of the programs that are judged: load them, answer calls, know neither tests nor what is expected.

The first process here executes no program. It forks one that does whenever it is asked, so that a start takes a
millisecond, and it adopts whatever they leave behind, so that it can say whether they left anything.
"""

from __future__ import annotations

import ast
import gc
import os
import socket
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

from wire import pack, receive, send, unpack  # type: ignore[import-not-found] # copied beside this file

_TRIMS = 200
"""How many lines of prose may follow the code of an answer."""


class Candidate:
    """A loaded program, and the objects of it that the judge has been told numbers of."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "solution", "__builtins__": __builtins__}
        self.objects: list[Any] = []

    def number(self, value: Any) -> int:
        """Keeps an object and returns its number."""
        self.objects.append(value)
        return len(self.objects) - 1

    def load(self, prefix: str, codes: list[str], entry: str | None, setup: str, paths: list[str]) -> None:
        """Executes the first of the codes that is a program."""
        sys.path[:] = [*sys.path[1:], *paths]
        exec(compile(setup, "setup", "exec"), self.names)
        exec(compile(_program(prefix, codes, entry), "solution", "exec"), self.names)

    def answer(self, asked: dict[str, Any]) -> Any:
        """Does what is asked, and returns the result."""
        what = asked["do"]
        if what == "load":
            return self.load(**asked["with"])
        if what == "get":
            return self.names[asked["name"]]
        target = self.objects[asked["object"]]
        arguments = unpack(asked["arguments"], self.objects.__getitem__)
        return OPERATIONS[what](target, *arguments, **unpack(asked["named"], self.objects.__getitem__))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *arguments, **named: target(*arguments, **named),
    "attribute": getattr,
    "iterate": iter,
    "next": next,
    "length": len,
    "item": lambda target, key: target[key],
    "contains": lambda target, part: part in target,
}


def _program(prefix: str, codes: list[str], entry: str | None) -> ast.Module:
    """Returns the first program; the error of the first code if none is one."""
    first: SyntaxError | None = None
    for code in codes:
        for text in (code, *_trimmed(code)):
            try:
                return _whole(prefix, text, entry)
            except SyntaxError as error:  # noqa: PERF203 - each text is a try of its own
                first = first or error
    raise first or SyntaxError(codes)


def _trimmed(code: str) -> list[str]:
    """Returns a code without its last line, its last two lines, and so on."""
    lines = code.rstrip().splitlines(keepends=True)
    return ["".join(lines[:end]) for end in range(len(lines) - 1, max(0, len(lines) - _TRIMS), -1)]


def _whole(prefix: str, code: str, entry: str | None) -> ast.Module:
    """Returns a code after what it continues: a prompt's imports and helpers, or the head of the function itself."""
    try:
        alone = ast.parse(code)
    except SyntaxError:
        if not prefix:
            raise
        return ast.parse(prefix + code)  # the rest of the function, as the prompt left it
    if entry is None or entry in _defined(alone):
        try:
            return ast.parse(f"{prefix}\n\n\n{code}")
        except SyntaxError:  # the prompt is prose
            return alone
    if not any(isinstance(node, ast.Return) for node in _outside_functions(alone)):
        raise SyntaxError(f"the answer does not define {entry}")
    return ast.parse(prefix + textwrap.indent(code, "    "))  # the rest of the function, without its indentation


def _outside_functions(tree: ast.Module) -> list[ast.AST]:
    blocks = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [node for block in blocks for node in ast.walk(block)]


def _defined(tree: ast.Module) -> set[str]:
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = {t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if hasattr(t, "id")}
    imported = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    return functions | assigned | imported


def serve(asked_at: int, answer_at: int) -> None:
    """Answers until nobody asks any more."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    candidate = Candidate()
    while True:
        try:
            asked = receive(asked_at)
        except EOFError:
            return
        try:
            result = {"value": pack(candidate.answer(asked), candidate.number)}
        except BaseException as error:  # noqa: BLE001 - whatever a program raises, SystemExit too, is told
            result = {"raised": [type(error).__name__, str(error)[:500]]}
        send(answer_at, result)


# ── the process that forks them ──────────────────────────────────────────────────────────────────────────────────────

START, END = b"s", b"e"
CLEAN, LEFT = b"c", b"l"
_PR_SET_CHILD_SUBREAPER = 36
_END_SECONDS = 0.3


def adopt() -> None:
    """Makes this process the parent of everything that its children leave behind."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(control: socket.socket, files: list[int]) -> None:
    """Forks a process for a program; returns in the parent only."""
    if os.fork():
        for file in files:
            os.close(file)
        return
    try:
        control.close()
        serve(*files)
    finally:
        os._exit(0)


def is_clean() -> bool:
    """Waits until no process is left of those that were started, for a while; returns whether none is."""
    deadline, pause = time.monotonic() + _END_SECONDS, 0.0001
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
    return False


def main() -> None:
    """Does what the judge asks by the socket whose number is the first argument: start a program, see to the end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    adopt()
    gc.freeze()  # a collection would touch, and so copy, all pages that a fork shares
    while True:
        word, files, _, _ = socket.recv_fds(control, 1, 2)
        if word == START:
            start(control, files)
        elif word == END:
            control.sendall(CLEAN if is_clean() else LEFT)
        else:
            return


if __name__ == "__main__":
    main()
