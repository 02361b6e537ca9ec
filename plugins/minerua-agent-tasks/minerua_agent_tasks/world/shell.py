"""Shell tasks: a sentence about files becomes a command line, and what the command says becomes an answer."""

from __future__ import annotations

import shlex
from typing import Any

from .drawing import Draw, Task, templates

__all__ = ["DONE", "SILENT", "draw_shell"]

_TEXTS = templates("shell")
_FOLDERS = ("box", "work", "home", "old", "shop", "garden")
_NAMES = ("notes", "names", "list", "log", "plan", "diary")
_WORDS = ("red", "blue", "green", "white", "black", "fox", "oak", "moon", "salt", "wolf")

DONE = "done"
"""What is said when there is nothing left to do and nothing to answer."""
SILENT = "(no output)"
"""What a model is told of a command that printed nothing; the evaluator's plain format says so."""


class _Files:
    """A small file tree that a task speaks of."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        folder = draw.filling(_FOLDERS)
        names = draw.random.sample(_NAMES, 3)
        self.paths = [f"{folder}/{name}" for name in names]
        self.words = draw.random.sample(_WORDS, 2)
        self.lines = self._lines()

    def _lines(self) -> list[str]:
        """Returns six to nine lines; two to four have the first word, some are equal, the rest are others."""
        chance, others = self.draw.random, [word for word in _WORDS if word not in self.words]
        lines = [f"{self.words[0]} {word}" for word in chance.sample(others, chance.randint(2, 4))]
        lines += chance.sample(others, chance.randint(4, 5))
        lines += lines[:1]
        chance.shuffle(lines)
        return lines

    def filled(self, text: str, k: int) -> str:
        """Returns a template with paths, words and a number in place of its letters in braces."""
        return text.format(p=self.paths[0], q=self.paths[1], w=self.words[0], v=self.words[1], k=k)

    def item(self, prompt: str, command: str) -> dict[str, Any]:
        """Returns the fields that all items have; the command is the example of a solution."""
        return {"prompt": prompt, "files": self.tree(), "example": command}

    def tree(self) -> dict[str, str]:
        """Returns path → text of all files."""
        contents = {self.paths[0]: self.lines, self.paths[1]: ["old line"], self.paths[2]: self.lines[1:4]}
        return {path: "".join(f"{line}\n" for line in lines) for path, lines in contents.items()}

    def check(self, command: str) -> str:
        """Returns a script that makes the files again, carries out the command there, and compares folders."""
        folder = self.paths[0].partition("/")[0]
        made = [f"printf %s {shlex.quote(text)} > {path}" for path, text in self.tree().items()]
        lines = [_TEXTS["elsewhere"].format(folder=folder), *made, command, _TEXTS["compared"].format(folder=folder)]
        return "".join(f"{line}\n" for line in lines)


def draw_shell(draw: Draw) -> Task:
    """Draws a shell task, in minerua-agent-tasks' own fields."""
    files = _Files(draw)
    return draw.part((_asked, _asked, _stored, _done))(draw, files)


def _piped(draw: Draw, files: _Files) -> tuple[str, str, list[str]]:
    """Returns some lines of a file: in words, as a command, and themselves."""
    said, command = draw.part(_TEXTS["filters"])
    ordered, then = draw.part(_TEXTS["orders"])
    lines = files.lines
    if "grep" in command:
        lines = [line for line in lines if (files.words[0] in line.split()) != ("-v" in command)]
    them = files.filled(f"{said} of {{p}}{ordered}", 0)
    return them, files.filled(command, 0) + then, _ordered(lines, then.removeprefix(" | "))


def _ordered(lines: list[str], command: str) -> list[str]:
    match command:
        case "sort":
            return sorted(lines)
        case "sort -r":
            return sorted(lines, reverse=True)
        case "sort -u":
            return sorted(set(lines))
        case "tac":
            return lines[::-1]
    return lines


def _asked(draw: Draw, files: _Files) -> Task:
    take, then = draw.part(_TEXTS["takes"])
    them, command, lines = _piped(draw, files)
    k = draw.number(2, min(4, len(lines))) if "{k}" in take else 1
    taken = {"first": lines[0], "last": lines[-1], "number": lines[k - 1], "How many": str(len(lines))}
    answer = next(text for words, text in taken.items() if words in take)
    prompt, command = take.format(them=them, k=k), command + then.format(k=k)
    turns = (prompt, command, answer, f"answer: {answer}")
    return Task(turns, lambda: files.item(prompt, command) | {"answer": answer})


def _stored(draw: Draw, files: _Files) -> Task:
    store, then = draw.part(_TEXTS["stores"])
    them, command, _ = _piped(draw, files)
    k = draw.number(2, 4) if "{k}" in store else 0
    return _deed(files, store.format(them=them, q=files.paths[1], k=k), command + then.format(q=files.paths[1], k=k))


def _done(draw: Draw, files: _Files) -> Task:
    frame = draw.part(("{}", "Please {}", "Now {}"))
    deed, command = draw.part(_TEXTS["deeds"])
    k = draw.number(2, 4) if "{k}" in deed else 0
    said = deed if frame == "{}" else frame.format(deed[0].lower() + deed[1:])
    return _deed(files, files.filled(said, k), files.filled(command, k))


def _deed(files: _Files, prompt: str, command: str) -> Task:
    """Returns a task whose command changes files and prints nothing; all files are compared with what it leaves."""
    return Task((prompt, command, SILENT, DONE), lambda: files.item(prompt, command) | {"check": files.check(command)})
