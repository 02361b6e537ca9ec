"""Items of operating-system tasks, in AgentBench's fields or in a few plain ones.

Source: AgentBench, Liu et al. 2023, arXiv 2308.03688; its fields as data/os_interaction of THUDM/AgentBench has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from minerua.errors import ConfigError

from ..jsonl import read_lines

__all__ = ["OperatingItem", "Script", "read_items"]

_LANGUAGES = ("bash", "python")


@dataclass(frozen=True)
class Script:
    """A script that is run beside the model's shell, never in it.

    Args:
        code: What it does.
        language: `"bash"` or `"python"`.
    """

    code: str
    language: str = "bash"


@dataclass(frozen=True)
class OperatingItem:
    """One task: what is asked, the room in which it is asked, and how it is checked.

    Args:
        id: Unique in its file.
        prompt: What is asked.
        files: Relative path → text, in the home folder.
        setup: Scripts that run before the model is asked.
        start: A command that the model's shell carries out first; empty for none.
        answer: The answer that is expected; `None` where none is.
        regex: A regular expression that is searched for in the answer instead.
        is_stripped: Blanks around an answer do not count.
        checks: Scripts that must all end with exit code 0. The first argument is the model's answer, the others are
            what the checks before have printed. `None` stands for the example.
        example: A solution: what it prints is the answer, what it does is what is asked.
        labels: What kind of task it is, in the data set's words.
    """

    id: str
    prompt: str
    files: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[Script, ...] = ()
    start: str = ""
    answer: str | None = None
    regex: str | None = None
    is_stripped: bool = True
    checks: tuple[Script | None, ...] = ()
    example: Script | None = None
    labels: tuple[str, ...] = ()

    @property
    def wants_answer(self) -> bool:
        """Whether the answer itself is compared."""
        return self.answer is not None or self.regex is not None


def read_items(path: str | Path, *, scripts: str | Path | None = None) -> list[OperatingItem]:
    r"""Reads operating-system items from a JSONL file, or a JSON file with a list of them.

    AgentBench: `description`, `evaluation` with `match` or `check` and optionally `example`, and optionally `create`
    with `init`, `start`, `labels`. Plain: `prompt`, `answer`, `regex` or `check`, and optionally `id`, `files`,
    `setup`, `example`, `labels`. An item without `id` is named by its number, from 0: `"00000"`. Other fields are
    passed over; there are no images, every item begins in the sandbox's own small system.

    Args:
        path: The file.
        scripts: Where the `file` of a script is looked for; by default beside `path`.

    Raises:
        ConfigError: The file cannot be read, or what is in it; all faults with their lines.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "items.jsonl")
        ...     _ = file.write_text('{"id": "a", "prompt": "How many files are in /tmp?", "answer": "0"}\n')
        ...     read_items(file)[0].answer
        '0'
    """
    reading = _Reading(Path(scripts) if scripts is not None else Path(path).parent)
    if Path(path).suffix != ".json":
        return read_lines(path, reading.item)
    return _read_list(Path(path), reading)


def _read_list(path: Path, reading: _Reading) -> list[OperatingItem]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"the items in {path} cannot be read: {error.strerror}; give a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the items in {path} are not as they should be: it is not JSON: {error}") from error
    parsed = [_parsed(reading, entry) for entry in (content if isinstance(content, list) else [content])]
    faults = [f"item {number}: {fault}" for number, (_, wrong) in enumerate(parsed) for fault in wrong]
    if faults or not parsed:
        raise ConfigError(f"the items in {path} are not as they should be", faults or ["there is no item in it"])
    return [item for item, _ in parsed if item is not None]


def _parsed(reading: _Reading, entry: Any) -> tuple[OperatingItem | None, list[str]]:
    if not isinstance(entry, dict):
        return None, [f"is a JSON {type(entry).__name__}, not an object with named fields"]
    return reading.item(entry)


class _Reading:
    """Makes items of objects; collects what is wrong with each."""

    def __init__(self, scripts: Path) -> None:
        self.scripts = scripts
        self.seen: set[str] = set()
        self.count = 0
        self.faults: list[str] = []

    def item(self, fields: dict[str, Any]) -> tuple[OperatingItem | None, list[str]]:
        """Returns an item, or what is wrong with it."""
        self.faults = []
        id = self._id(fields)
        read = self._agent_bench if "description" in fields or "evaluation" in fields else self._plain
        made = read(fields)
        files = self._files(fields.get("files") or {})
        labels = tuple(map(str, self._kind(fields, "labels", list, [])))
        if self.faults:
            return None, self.faults
        return OperatingItem(id=id, labels=labels, files=files, **made), []

    def _id(self, fields: dict[str, Any]) -> str:
        given = fields.get("id")
        if given is not None and (isinstance(given, bool) or not isinstance(given, str | int) or given == ""):
            self.faults.append(f"id is {given!r}; it is a text or a whole number that names the item")
        id = f"{self.count:05d}" if given is None else str(given)
        if id in self.seen:
            self.faults.append(f"the id {id!r} was there before; each item needs its own")
        self.seen.add(id)
        self.count += 1
        return id

    def _kind(self, fields: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
        value = fields.get(name)
        if value is not None and not isinstance(value, kind):
            self.faults.append(f"{name} is of type {type(value).__name__}, not {kind.__name__}")
        return value if isinstance(value, kind) else default

    def _text(self, fields: Mapping[str, Any], name: str) -> str:
        value = self._kind(fields, name, str, "")
        if not value and fields.get(name) in (None, ""):
            self.faults.append(f"{name} is missing; it is what the model is asked")
        return str(value)

    # ── the two forms ────────────────────────────────────────────────────────────────────────────────────────────────

    def _plain(self, fields: dict[str, Any]) -> dict[str, Any]:
        answer = fields.get("answer")
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = str(answer)
        made = {
            "prompt": self._text(fields, "prompt"),
            "setup": tuple(self._scripts(fields.get("setup"), "setup")),
            "answer": self._kind({"answer": answer}, "answer", str, None),
            "regex": self._regex(self._kind(fields, "regex", str, None), "regex"),
            "checks": tuple(self._scripts(fields.get("check"), "check")),
            "example": self._script(fields.get("example"), "example"),
        }
        if made["answer"] is None and made["regex"] is None and not made["checks"]:
            self.faults.append("nothing says what is right; an item has answer, regex or check")
        return made

    def _agent_bench(self, fields: dict[str, Any]) -> dict[str, Any]:
        create = self._kind(fields, "create", dict, {})
        evaluation = self._kind(fields, "evaluation", dict, {})
        start = self._script(fields.get("start"), "start")
        if start is not None and start.language != "bash":
            self.faults.append("start is in Python; the shell carries it out, so it is bash")
        made = {
            "prompt": self._text(fields, "description"),
            "setup": tuple(self._scripts(create.get("init"), "create.init")),
            "start": "" if start is None else start.code,
            "example": self._script(evaluation.get("example"), "evaluation.example"),
        }
        made |= self._evaluated(evaluation, made["example"] is not None)
        return made

    def _evaluated(self, evaluation: Mapping[str, Any], has_example: bool) -> dict[str, Any]:
        match = evaluation.get("match")
        if match is not None:
            return self._match(match)
        given = evaluation.get("check")
        listed = given if isinstance(given, list) else [] if given is None else [given]
        if not listed:
            self.faults.append("nothing says what is right; evaluation has match or check")
        if None in listed and not has_example:
            self.faults.append("evaluation.check has null in it, which stands for evaluation.example; there is none")
        return {"checks": tuple(self._script(one, "evaluation.check") for one in listed)}

    def _match(self, match: Any) -> dict[str, Any]:
        if isinstance(match, str):
            return {"answer": match}
        if not isinstance(match, dict) or not isinstance(match.get("answer", match.get("regex")), str):
            self.faults.append("evaluation.match is neither a text nor an object with answer or regex")
            return {}
        is_stripped = bool(match.get("strip", True))
        if "answer" in match:
            return {"answer": match["answer"], "is_stripped": is_stripped}
        return {"regex": self._regex(match["regex"], "evaluation.match.regex"), "is_stripped": is_stripped}

    # ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _scripts(self, given: Any, name: str) -> list[Script]:
        listed = given if isinstance(given, list) else [given]
        return [script for one in listed if (script := self._script(one, name)) is not None]

    def _script(self, given: Any, name: str) -> Script | None:
        if given is None:
            return None
        entry = {"code": given} if isinstance(given, str) else given
        if not isinstance(entry, dict) or not isinstance(entry.get("code", entry.get("file")), str):
            self.faults.append(f"{name} is neither a text nor an object with code or file")
            return None
        language = entry.get("language", "bash")
        if language not in _LANGUAGES:
            self.faults.append(f"{name} is in the language {language!r}; there are {' and '.join(_LANGUAGES)}")
            return None
        code = self._contents(entry["file"], name) if "code" not in entry else entry["code"]
        if "\0" in code:
            self.faults.append(f"{name} has a zero byte in it; no program can be given one")
        return Script(code, language)

    def _contents(self, file: str, name: str) -> str:
        try:
            return (self.scripts / file).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            self.faults.append(f"{name} names {self.scripts / file}, which cannot be read: {error}; see `scripts`")
            return ""

    def _regex(self, pattern: str | None, name: str) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            self.faults.append(f"{name} is {pattern!r}, which is no regular expression: {error}")
        return pattern

    def _files(self, given: Any) -> dict[str, str]:
        if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
            self.faults.append("files is no object of paths and texts")
            return {}
        for name in given:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                self.faults.append(f"files has {name!r}, which is not below the home folder; let setup write it")
        return dict(given)
