"""The tree of errors is the one that is drawn, and a message tells everything at once."""

from __future__ import annotations

import doctest
import re

import pytest

from minerua import errors


def drawn_tree() -> dict[str, tuple[str, ...]]:
    """Class name → the names of its bases, as the docstring of `errors` draws them."""
    path: list[str] = []
    bases: dict[str, tuple[str, ...]] = {}
    for line in (errors.__doc__ or "").splitlines():
        drawn = re.match(r"    ([│├└─ ]*)(\w+)\s*(?:\((\w+)\))?(?:\s{2,}\S.*)?$", line)
        if drawn is None:
            continue
        branches, name, builtin = drawn.groups()
        path[len(branches) // 4 :] = [name]
        parent = path[-2] if len(path) > 1 else "Exception"
        bases[name] = (parent, builtin) if builtin else (parent,)
    return bases


def actual_tree() -> dict[str, tuple[str, ...]]:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    return {c.__name__: tuple(base.__name__ for base in c.__bases__) for c in classes}


CLASSES = [getattr(errors, name) for name in actual_tree()]


def test_the_drawn_tree_is_the_tree() -> None:
    assert drawn_tree() == actual_tree()
    assert len(drawn_tree()) >= 12


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_caught_as_minerua_error_and_as_its_builtin(error: type[errors.MineruaError]) -> None:
    for base in (errors.MineruaError, *error.__bases__):
        with pytest.raises(base, match="what is wrong"):
            raise error("what is wrong")


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_lists_all_its_faults(error: type[errors.MineruaError]) -> None:
    raised = error("two things are wrong", (fault for fault in ["the first: mend it", "the second: drop it"]))
    assert str(raised) == "two things are wrong\n  - the first: mend it\n  - the second: drop it"
    assert raised.message == "two things are wrong"
    assert raised.faults == ("the first: mend it", "the second: drop it")


@pytest.mark.parametrize("error", CLASSES)
def test_without_faults_the_message_is_all(error: type[errors.MineruaError]) -> None:
    assert (str(error("it is wrong")), error("it is wrong").faults) == ("it is wrong", ())


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_has_a_docstring_that_is_a_sentence(error: type[errors.MineruaError]) -> None:
    first = (error.__doc__ or "").splitlines()[0]
    assert first[0].isupper()
    assert first.endswith(".")


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("tise", ["ties", "linear"], "no merge method is named 'tise'; did you mean 'ties'? Known: linear, ties"),
        ("zzz", ["ties", "linear"], "no merge method is named 'zzz'. Known: linear, ties"),
        ("ties", [], "no merge method is named 'ties'. Known: none"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(name: str, known: list[str], sentence: str) -> None:
    assert errors.unknown("merge method", name, known) == sentence


def test_the_examples_in_the_docstrings_are_right() -> None:
    assert doctest.testmod(errors) == doctest.TestResults(failed=0, attempted=1)
