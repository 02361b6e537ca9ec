"""Judges one program: executes the tests here, and the program in a process of its own.

The program sees calls and nothing else. Tests, expected values and the standard output on which verdicts are written
are in this process only, and what comes back from the program is data, rebuilt as plain values and compared here.
Several items are judged by one process each, see `foreman`.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import os
import socket
import sys
from typing import Any

from candidate import CLEAN, END, START  # type: ignore[import-not-found] # copied beside this file
from wire import pack, receive, send, unpack  # type: ignore[import-not-found] # copied beside this file

_MOST_LETTERS = 200
_ENDINGS = 5
"""How many times an item's own solution is waited for, a third of a second each."""


class Lost(BaseException):
    """The program's process ended, or answered what is no answer; no `except Exception` of a test may hide it."""


class Program:
    """A program in a process of its own."""

    def __init__(self, item: dict[str, Any], control: socket.socket, prefix: str, codes: list[str]) -> None:
        self.is_lost = False
        asked, self.ask_at = os.pipe()
        self.answer_at, answer = os.pipe()
        try:
            socket.send_fds(control, [START], [asked, answer])
        except BrokenPipeError:
            raise Lost("the process that starts programs is gone") from None
        finally:
            for file in (asked, answer):
                os.close(file)
        told = {"prefix": prefix, "codes": codes, "entry": item["entry"], "setup": item["setup"]}
        self.ask(do="load", **{"with": {**told, "paths": item["paths"]}})

    def close(self, control: socket.socket) -> None:
        """Sees to the end of the program."""
        for file in (self.ask_at, self.answer_at):
            os.close(file)
        for _ in range(_ENDINGS):
            control.sendall(END)
            if control.recv(1) == CLEAN:
                return
        raise Lost("it left a process that does not end")

    def ask(self, **asked: Any) -> Any:
        """Asks for one thing and returns the value, or raises what the program raised."""
        try:
            send(self.ask_at, asked)
            answer = receive(self.answer_at)
            if isinstance(answer, dict) and list(answer) == ["value"]:
                return unpack(answer["value"], lambda number: Remote(self, number))
            name, text = map(str, answer["raised"])
        except (EOFError, BrokenPipeError):
            self.is_lost = True
            raise Lost("the program ended itself") from None
        except (OSError, ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
            self.is_lost = True
            raise Lost(f"the program's answer cannot be read: {type(error).__name__}: {error}") from None
        if name == "StopIteration" and asked["do"] != "next":
            name = "RuntimeError"  # it would end a loop of the test early, which could then find nothing wrong
        raise _exception(name, text)

    def get(self, name: str) -> Any:
        """Returns what the program calls by a name.

        Raises:
            KeyError: Nothing is called so.
        """
        return self.ask(do="get", name=name)


class Remote:
    """Something of the program's that is no plain value: it can be called and walked through, never compared."""

    def __init__(self, program: Program, number: int) -> None:
        self._program, self._number = program, number

    def _do(self, what: str, *arguments: Any, **named: Any) -> Any:
        packed = [pack(part, _number_of) for part in (arguments, named)]
        return self._program.ask(do=what, object=self._number, arguments=packed[0], named=packed[1])

    def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: D102 - as any call
        return self._do("call", *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._do("attribute", name)

    def __iter__(self) -> Any:
        return self._do("iterate")

    def __next__(self) -> Any:
        return self._do("next")

    def __len__(self) -> Any:
        return self._do("length")

    def __getitem__(self, key: Any) -> Any:
        return self._do("item", key)

    def __contains__(self, part: Any) -> bool:
        return self._do("contains", part) is True

    def __eq__(self, other: object) -> bool:
        raise TypeError("the program returned an object, which cannot be compared; a plain value is needed")

    def __bool__(self) -> bool:
        raise TypeError("the program returned an object, which is neither true nor false; a plain value is needed")

    __hash__ = None  # type: ignore[assignment]


def _number_of(value: Any) -> int:
    if type(value) is Remote:
        return value._number
    raise TypeError(f"a test hands over a {type(value).__name__}; only plain values reach the program")


def _exception(name: str, text: str) -> Exception:
    """Returns an exception like the program's: of a built-in type if it is one, never one that says a test failed."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind is not AssertionError:
        try:
            return kind(text)
        except TypeError:  # some want more than a text
            return RuntimeError(f"{name}: {text}")
    return RuntimeError(f"{name}: {text}")


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def is_same(found: Any, wanted: Any, atol: float) -> bool:
    """Whether two values are equal; floats, and what is built of them, within a tolerance."""
    if found == wanted:
        return True
    if isinstance(found, float) or isinstance(wanted, float):
        return _is_close(found, wanted, atol)
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(is_same(a, b, atol) for a, b in zip(found, wanted, strict=True))
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(is_same(found[key], wanted[key], atol) for key in wanted)
    return False


def _is_close(found: Any, wanted: Any, atol: float) -> bool:
    if not all(isinstance(value, float | int) for value in (found, wanted)):
        return False
    both_nan = found != found and wanted != wanted
    return both_nan or math.isclose(found, wanted, rel_tol=1e-7, abs_tol=atol or 1e-6)


# ── the item ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Judge:
    """One item and where its verdicts go: a line of JSON each.

    Args:
        item: The item, with its `number`.
        out: Where verdicts are written.
        control: Leads to the process that starts programs.
    """

    def __init__(self, item: dict[str, Any], out: int, control: socket.socket) -> None:
        self.item, self.out, self.control = item, out, control

    def say(self, **line: Any) -> None:
        """Writes a line at once, so that what is known survives whatever comes."""
        os.write(self.out, json.dumps({"item": self.item["number"], **line}).encode() + b"\n")

    def run(self) -> None:
        """Judges."""
        item = self.item
        self.say(total=len(item["inputs"]) or len(item["tests"]))
        wanted = self._wanted() if item["inputs"] else []
        if wanted is None:
            return
        try:
            program = Program(item, self.control, item["prefix"], item["codes"])
        except (Exception, Lost) as error:  # noqa: BLE001 - whatever the program raises when it is loaded
            self.say(unloaded=_told(error))
            return
        checks = self._comparisons(program, wanted) if item["inputs"] else self._tests(program)
        for check in checks:
            try:
                check()
                if program.is_lost:  # and the test hid it
                    raise Lost("the program ended itself during a test")
            except (Exception, Lost) as error:  # noqa: BLE001, PERF203 - whatever a test raises is a verdict
                self.say(passed=False, why=_told(error))
            else:
                self.say(passed=True)

    def _wanted(self) -> list[Any] | None:
        """Returns what the item's own solution returns; it is asked and gone before the program exists."""
        try:
            solution = Program(self.item, self.control, "", [self.item["reference"]])
            wanted = [solution.get(self.item["entry"])(*arguments) for arguments in self.item["inputs"]]
            solution.close(self.control)
            return wanted
        except (Exception, Lost) as error:  # noqa: BLE001 - a fault of the item, whatever it is
            self.say(fault=f"the item's own solution failed: {_told(error)}")
            return None

    def _comparisons(self, program: Program, wanted: list[Any]) -> Any:
        def compare(arguments: list[Any], right: Any) -> None:
            found = program.get(self.item["entry"])(*arguments)
            if not is_same(found, right, self.item["atol"]):
                raise AssertionError(f"{arguments!r:.60} gives {found!r:.60}, not {right!r:.60}")

        for arguments, right in zip(self.item["inputs"], wanted, strict=True):
            yield lambda arguments=arguments, right=right: compare(arguments, right)

    def _tests(self, program: Program) -> Any:
        names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        exec(compile(self.item["setup"], "setup", "exec"), names)
        for test in self.item["tests"]:
            yield lambda test=test: self._test(test, program, names)

    def _test(self, test: str, program: Program, names: dict[str, Any]) -> None:
        tree = ast.parse(test)
        defined = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for name in sorted(_called(tree) - defined):
            if name in self.item["names"] or not (name in names or hasattr(builtins, name)):
                if name in sys.stdlib_module_names and name not in self.item["names"]:
                    names[name] = __import__(name)  # never the program's: it could say that all is close to all
                    continue
                try:
                    names[name] = program.get(name)
                except KeyError:
                    raise NameError(f"the program does not define {name}") from None
        exec(compile(tree, "test", "exec"), dict(names))


def _called(tree: ast.AST) -> set[str]:
    """Returns the names that a test reads and does not bring itself."""
    nodes = list(ast.walk(tree))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.Lambda)]
    own = {argument.arg for function in functions for argument in ast.walk(function.args) if hasattr(argument, "arg")}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {a.asname or a.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for a in node.names}
    own |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    return read - own


def _told(error: BaseException) -> str:
    kind = "" if isinstance(error, Lost) else f"{type(error).__name__}: "
    return f"{kind}{error}"[:_MOST_LETTERS]
