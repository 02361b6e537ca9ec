"""Runs the examples in the docstrings of a spec's functions."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from typing import Any

from minerua.conformance.report import Check, Found
from minerua.conformance.subject import Subject, functions_of


def _examples(subject: Subject) -> Found:
    runner = doctest.DocTestRunner(verbose=False)
    told = list[str]()
    for test in _all_tests(subject):
        runner.run(test, out=told.append, clear_globs=True)
    return [" ".join(text.split()) for text in told]


def _all_tests(subject: Subject) -> list[doctest.DocTest]:
    return [test for function in functions_of(subject.kind, subject.given) for test in _tests(function)]


def _tests(function: Callable[..., Any]) -> list[doctest.DocTest]:
    plain = inspect.unwrap(function)
    if not inspect.isroutine(plain) and not inspect.isclass(plain):
        return []
    names = dict(getattr(plain, "__globals__", {}))
    found = doctest.DocTestFinder(recurse=False).find(plain, globs=names)
    return [test for test in found if test.examples]


EXAMPLES = Check(
    "examples",
    "the examples in the docstrings of a spec's functions run, and give what they say",
    "run the docstring with `python -m doctest`, and correct the code or the example",
    _examples,
    lambda subject: bool(_all_tests(subject)),
)
