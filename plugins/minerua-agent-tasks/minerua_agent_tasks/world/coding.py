"""Coding tasks: a sentence becomes a small function of numbers, lists or texts."""

from __future__ import annotations

from typing import Any

from .drawing import Draw, Task, templates

__all__ = ["draw_coding"]

_TEXTS = templates("coding")
_NAMES = ("work", "solve", "run", "make", "find", "take")
_WORDS = ("red", "blue", "green", "white", "black")


def draw_coding(draw: Draw) -> Task:
    """Draws a coding task in the fields of MBPP, with the name of the function in `entry_point`."""
    name = draw.filling(_NAMES)
    frame = draw.part(_TEXTS["frames"])
    argument, what, code, inputs = draw.part((_number, _list, _list, _text))(draw)
    prompt = frame.format(name=name, arguments=argument, what=what)
    solution = f"def {name}({argument}):\n    return {code}"
    given = [{argument: value} for value in inputs]
    return Task((prompt, solution), lambda: _fields(prompt, name, solution, code, given))


def _fields(prompt: str, name: str, solution: str, code: str, given: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns an item; what its tests expect is what the solution's own expression gives."""
    tests = [f"assert {name}({', '.join(map(repr, one.values()))}) == {eval(code, dict(one))!r}" for one in given]
    return {"prompt": prompt, "entry_point": name, "test_list": tests, "canonical_solution": solution}


def _number(draw: Draw) -> tuple[str, str, str, list[Any]]:
    (first, code), (second, then) = draw.part(_TEXTS["number_steps"]), draw.part(_TEXTS["number_steps"])
    j, k = draw.number(2, 60), draw.number(2, 60)
    what = f"n {first.format(k=j)}, then {second.format(k=k)}"
    return "n", what, then.format(x=f"({code.format(x='n', k=j)})", k=k), [0, 3, 47, 90, 361]


def _list(draw: Draw) -> tuple[str, str, str, list[Any]]:
    (whole, collect), (those, where) = draw.part(_TEXTS["collections"]), draw.part(_TEXTS["selections"])
    (each, change) = draw.part(_TEXTS["changes"])
    k = draw.number(2, 99) if "{k}" in those else 50
    j = draw.number(2, 60) if "{j}" in each else 2
    code = collect.format(each=_TEXTS["each"].format(change=change.format(j=j), where=where.format(k=k)))
    values = [[k - 1, k, k + 1, k + 1], [5, 64, 3, 98, 20], [7, 7, 2], [], sorted({1, 50, 99, k}, reverse=True)]
    return "xs", f"{whole}{those.format(k=k)}{each.format(j=j)}", code, values


def _text(draw: Draw) -> tuple[str, str, str, list[Any]]:
    (first, code), (second, then) = draw.part(_TEXTS["text_steps"]), draw.part(_TEXTS["text_steps"])
    first, code = _filled(draw, first, code)
    second, then = _filled(draw, second, then)
    inner = f"({code.format(x='s')})" if " " in code else code.format(x="s")
    return "s", f"s {first}, then {second}", then.format(x=inner), ["", "a", "minerua", "Thirteen letters"]


def _filled(draw: Draw, said: str, code: str) -> tuple[str, str]:
    """Returns a step with its number and its word, if it has any, and a place for what comes before."""
    k = draw.number(2, 9) if "{k}" in said else 0
    word = draw.filling(_WORDS)
    return said.format(k=k, word=word), code.format(k=k, word=word, x="{x}")
