"""Items of coding tasks, read from the fields that public data sets have."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .jsonl import read_lines

__all__ = ["CodingItem", "read_items"]


@dataclass(frozen=True)
class CodingItem:
    """One task: what is asked, and how an answer is tested.

    Args:
        id: Unique in its file.
        prompt: What is asked; in HumanEval's items the head of the function, which an answer may continue.
        entry: The function's name; `None` where only the tests name it.
        setup: Code that runs before the tests, and before the program.
        tests: Python that raises if it finds a fault; used if there are no inputs.
        reference: A solution: what it returns for the inputs is expected, and its names are the program's.
        inputs: Argument lists.
        atol: How far floats may be apart; 0 stands for 1e-6.
    """

    id: str
    prompt: str
    entry: str | None = None
    setup: str = ""
    tests: tuple[str, ...] = ()
    reference: str = ""
    inputs: tuple[tuple[Any, ...], ...] = ()
    atol: float = 0.0

    def told(self) -> dict[str, Any]:
        """Returns what the judge needs to know."""
        return {
            "prefix": self.prompt if self.entry is not None else "",
            "entry": self.entry,
            "setup": self.setup,
            "tests": list(self.tests),
            "reference": self.reference,
            "inputs": [list(arguments) for arguments in self.inputs],
            "atol": self.atol,
            "names": sorted({*_names(self.reference), *([self.entry] if self.entry else [])}),
        }


def read_items(path: str | Path) -> list[CodingItem]:
    """Reads coding items from a JSONL file.

    MBPP: `task_id`, `text` or `prompt`, `test_list`, and optionally `test_setup_code`,
    `test_imports`, `code`. HumanEval and EvalPlus: `task_id`, `prompt`, `entry_point`, `test`, or `canonical_solution`
    with `base_input` and `plus_input`, and optionally `atol`. Other fields are passed over.

    Raises:
        ConfigError: The file cannot be read, or what is in it; all faults with their lines.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "items.jsonl")
        ...     _ = file.write_text('{"task_id": 2, "text": "Add.", "test_list": ["assert add(1, 1) == 2"]}')
        ...     read_items(file)[0].id
        '2'
    """
    seen: set[str] = set()

    def parse(fields: dict[str, Any]) -> tuple[CodingItem | None, list[str]]:
        faults = _faults(fields)
        id = str(fields.get("task_id"))
        if not faults and id in seen:
            faults = [f"the task_id {id!r} was there before; each item needs its own"]
        seen.add(id)
        return (None, faults) if faults else (_item(fields), [])

    return read_lines(path, parse)


_KINDS: Mapping[str, tuple[type, ...]] = {
    "task_id": (str, int),
    "text": (str,),
    "prompt": (str,),
    "code": (str,),
    "test_setup_code": (str,),
    "entry_point": (str,),
    "canonical_solution": (str,),
    "test": (str,),
    "test_list": (list,),
    "test_imports": (list,),
    "base_input": (list,),
    "plus_input": (list, dict),  # EvalPlus writes {} where there is none
    "atol": (int, float),
}


def _faults(fields: dict[str, Any]) -> list[str]:
    found = [
        f"{name} is of type {type(fields[name]).__name__}, not {' or '.join(kind.__name__ for kind in kinds)}"
        for name, kinds in _KINDS.items()
        if fields.get(name) is not None and not isinstance(fields[name], kinds)
    ]
    if fields.get("task_id") in (None, ""):
        found.append("task_id is missing; it names the item")
    if not (fields.get("text") or fields.get("prompt")):
        found.append("text or prompt is missing; it is what the model is asked")
    has_inputs = fields.get("base_input") or fields.get("plus_input")
    if has_inputs and not (fields.get("canonical_solution") and fields.get("entry_point")):
        found.append("inputs need canonical_solution and entry_point, which say what is expected of them")
    if not has_inputs and not fields.get("test_list") and not (fields.get("test") and fields.get("entry_point")):
        found.append("there are no tests; an item has test_list, or test and entry_point, or base_input")
    return found + _inner_faults(fields)


def _inner_faults(fields: dict[str, Any]) -> list[str]:
    found = []
    for name, kind in (("test_list", str), ("test_imports", str), ("base_input", list), ("plus_input", list)):
        parts = fields.get(name) or []
        if isinstance(parts, list) and not all(isinstance(part, kind) for part in parts):
            found.append(f"not every entry of {name} is of type {kind.__name__}")
    entry = fields.get("entry_point")
    if isinstance(entry, str) and not entry.isidentifier():
        found.append(f"entry_point is {entry!r}; it is the name of a function")
    return found


def _item(fields: dict[str, Any]) -> CodingItem:
    entry = fields.get("entry_point")
    prompt = str(fields.get("prompt") or fields.get("text"))
    solution = str(fields.get("canonical_solution") or fields.get("code") or "")
    tests = fields.get("test_list") or []
    if not tests and fields.get("test"):
        tests = [f"{fields['test']}\n\ncheck({entry})"]
    setup = [str(fields.get("test_setup_code") or ""), *(fields.get("test_imports") or [])]
    inputs = [*(fields.get("base_input") or []), *(fields.get("plus_input") or [])]
    return CodingItem(
        id=str(fields["task_id"]),
        prompt=prompt,
        entry=entry,
        setup="\n".join(line for line in setup if line),
        tests=tuple(tests),
        reference=_whole(prompt, solution, entry) if entry else solution,
        inputs=tuple(tuple(arguments) for arguments in inputs),
        atol=float(fields.get("atol") or 0.0),
    )


def _whole(prompt: str, solution: str, entry: str) -> str:
    """Returns the solution with the head that it continues, unless it stands for itself."""
    return solution if solution and entry in _names(solution) and not _names(prompt) else prompt + solution


def _names(source: str) -> set[str]:
    """Returns the functions and classes that a solution defines; none if it is no Python, as prompts in prose."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
