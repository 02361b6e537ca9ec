"""Settings by name and type: what is taken, what is refused in which words, and that all of it is told at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerua.errors import ChainError, ConfigError, StorageError
from minerua.settings import Settings

RUNS = Path("/runs")
OWNER = "the evaluator 'coding'"

Ask = Callable[[Settings], Any]

KINDS: dict[str, Ask] = {
    "value": lambda told: told.value("x"),
    "text": lambda told: told.text("x"),
    "choice": lambda told: told.choice("x", ("all", "share")),
    "whole": lambda told: told.whole("x", most=9),
    "number": lambda told: told.number("x", least=-1, most=1),
    "flag": lambda told: told.flag("x"),
    "texts": lambda told: told.texts("x"),
    "path": lambda told: told.path("x"),
    "existing": lambda told: told.existing("x"),
    "file": lambda told: told.file("x"),
    "folder": lambda told: told.folder("x"),
    "paths": lambda told: told.paths("x"),
}
"""A required setting of each type."""


def told_of(value: Any, folder: Path = RUNS) -> Settings:
    return Settings(OWNER, {"x": value}, folder)


def faults_of(told: Settings) -> tuple[str, ...]:
    with pytest.raises(ConfigError, match="the settings of the evaluator 'coding' cannot be used") as caught:
        told.done()
    return caught.value.faults


# ── what is taken ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ask", "value", "expected"),
    [
        (KINDS["value"], {"a": [1]}, {"a": [1]}),
        (KINDS["text"], "two words", "two words"),
        (KINDS["choice"], "share", "share"),
        (KINDS["whole"], 1, 1),
        (KINDS["whole"], 9, 9),
        (lambda told: told.whole("x", least=-3), -3, -3),
        (KINDS["number"], 1, 1.0),
        (KINDS["number"], -1.0, -1.0),
        (KINDS["number"], "1e-8", 1e-8),
        (KINDS["number"], "-2.5E-1", -0.25),
        (lambda told: told.number("x", above=0), 1e-300, 1e-300),
        (KINDS["flag"], False, False),
        (KINDS["texts"], ["a", "b"], ("a", "b")),
        (lambda told: told.texts("x", ("c",)), [], ()),
        (KINDS["path"], "a/b", Path("/runs/a/b")),
        (KINDS["path"], "/a", Path("/a")),
        (KINDS["paths"], ["a", "/b"], (Path("/runs/a"), Path("/b"))),
        (lambda told: told.paths("x", None), [], ()),
    ],
)
def test_a_setting_of_the_right_type_is_returned_as_it_is(ask: Ask, value: Any, expected: Any) -> None:
    told = told_of(value)
    found = ask(told)
    assert (found, type(found)) == (expected, type(expected))
    assert told.has("x")
    told.done()


@pytest.mark.parametrize("settings", [{}, {"x": None}])
def test_what_is_not_given_or_null_has_its_default(settings: dict[str, Any]) -> None:
    told = Settings(OWNER, settings, RUNS)
    assert told.value("x", 3) == 3
    assert told.text("x", None) is None
    assert told.choice("x", ("all",), "other") == "other"
    assert told.whole("x", 0) == 0
    assert told.number("x", 5.0, most=1) == 5.0
    assert told.flag("x", True) is True
    assert (told.texts("x", ()), told.paths("x", None)) == ((), None)
    assert (told.path("x", None), told.file("x", RUNS)) == (None, RUNS)
    assert (told.folder("x", None), told.existing("x", None)) == (None, None)
    assert told.section("x").names == ()
    assert not told.has("x")
    told.done()


def test_paths_begin_at_the_folder_are_absolute_and_know_where_home_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    told = Settings(OWNER, {"a": "a.txt", "b": "~/b.txt", "c": ["~", "."]}, Path("runs"))
    assert told.path("a") == tmp_path / "runs" / "a.txt"
    assert told.path("b") == Path("/home/someone/b.txt")
    assert told.paths("c") == (Path("/home/someone"), tmp_path / "runs")


def test_files_and_folders_are_taken_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    told = Settings(OWNER, {"file": "a.txt", "folder": "."}, tmp_path)
    assert told.file("file") == told.existing("file") == tmp_path / "a.txt"
    assert told.folder("folder") == told.existing("folder") == tmp_path
    told.done()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ask", "value", "fault"),
    [
        (KINDS["text"], 7, "x is 7; expected a text"),
        (KINDS["text"], "", "x is ''; expected a text"),
        (lambda told: told.text("x", None, what="a tokenizer"), [], "x is []; expected a tokenizer"),
        (KINDS["choice"], "al", "x is 'al'; expected one of all, share; did you mean 'all'?"),
        (KINDS["choice"], ["all"], "x is ['all']; expected one of all, share"),
        (KINDS["whole"], 0, "x is 0; expected a whole number from 1 to 9"),
        (KINDS["whole"], 10, "x is 10; expected a whole number from 1 to 9"),
        (KINDS["whole"], True, "x is True; expected a whole number from 1 to 9"),
        (lambda told: told.whole("x", 3), 2.0, "x is 2.0; expected a whole number from 1 on"),
        (KINDS["number"], 1.5, "x is 1.5; expected a number from -1 to 1"),
        (KINDS["number"], True, "x is True; expected a number from -1 to 1"),
        (KINDS["number"], "1", "x is '1'; expected a number from -1 to 1"),
        (lambda told: told.number("x"), math.nan, "x is nan; expected a number"),
        (lambda told: told.number("x", least=0), math.inf, "x is inf; expected a number from 0 on"),
        (lambda told: told.number("x", most=2**31 - 1), "1e999", "x is '1e999'; expected a number up to 2147483647"),
        (lambda told: told.number("x", above=0), 0, "x is 0; expected a number above 0"),
        (lambda told: told.number("x", above=0, most=1), 2, "x is 2; expected a number above 0, up to 1"),
        (KINDS["flag"], 1, "x is 1; expected true or false"),
        (KINDS["flag"], "yes", "x is 'yes'; expected true or false"),
        (KINDS["texts"], "ab", "x is 'ab'; expected a list of texts"),
        (KINDS["texts"], ["a", 3], "x is ['a', 3]; expected a list of texts"),
        (KINDS["texts"], [], "x is []; expected a list of texts"),
        (KINDS["path"], 3, "x is 3; expected a path, absolute or relative to /runs"),
        (KINDS["path"], "a\0b", "x is 'a\\x00b'; no path has a zero byte in it"),
        (KINDS["paths"], "a", "x is 'a'; expected a list of paths, absolute or relative to /runs"),
        (KINDS["paths"], [], "x is []; expected a list of paths, absolute or relative to /runs"),
        (KINDS["file"], "gone", "x is 'gone'; /runs/gone does not exist"),
        (lambda told: told.section("x"), [1], "x is [1]; expected a mapping whose names are texts"),
        (lambda told: told.section("x"), {3: 1}, "x is {3: 1}; expected a mapping whose names are texts"),
    ],
)
def test_a_wrong_value_is_told_with_what_was_expected(ask: Ask, value: Any, fault: str) -> None:
    told = told_of(value)
    ask(told)
    assert told.faults == (fault,) == faults_of(told)
    assert not told.has("x")


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_default_a_setting_is_required(kind: str) -> None:
    told = Settings(OWNER, {"x": None}, RUNS)
    KINDS[kind](told)
    (fault,) = faults_of(told)
    assert fault.startswith("x is missing; expected ")


def test_where_a_value_is_wrong_its_default_or_a_stand_in_of_its_type_is_returned() -> None:
    assert (told_of(0).whole("x", 7), told_of(0).whole("x", None), told_of(0).whole("x", least=3)) == (7, None, 3)
    assert (told_of("a").number("x", 0.5), told_of("a").number("x", least=2), told_of("a").number("x")) == (0.5, 2, 0)
    assert (told_of(1).text("x"), told_of(1).texts("x"), told_of(1).flag("x")) == ("", (), False)
    assert (told_of(1).path("x"), told_of(1).choice("x", ("a", "b"))) == (RUNS, "a")


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    told = Settings(OWNER, {"file": ".", "folder": "a.txt", "either": "gone"}, tmp_path)
    told.file("file"), told.folder("folder"), told.existing("either")
    assert faults_of(told) == (
        f"file is '.'; {tmp_path} is a folder; expected a file",
        f"folder is 'a.txt'; {tmp_path}/a.txt is a file; expected a folder",
        f"either is 'gone'; {tmp_path}/gone does not exist",
    )


def test_paths_that_no_system_has_are_told_like_any_fault() -> None:
    told = Settings(OWNER, {"long": "x" * 5000, "home": "~nobody_has_this_name/x"}, RUNS)
    told.file("long"), told.path("home")
    long, home = faults_of(told)
    assert long.startswith(f"long is '{'x' * 56}...; nothing can be there: ")
    assert home.startswith("home is '~nobody_has_this_name/x'; that is no possible path: ")


def test_huge_values_are_cut_in_messages() -> None:
    told = Settings(OWNER, {"a": list(range(10**4)), "b": 1 << 10**5}, RUNS)
    told.text("a"), told.number("b", 0.0)
    a, b = faults_of(told)
    assert a == f"a is {str(list(range(99)))[:57]}...; expected a text"
    assert b == "b is a number of thousands of digits; expected a number"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["all", "1e3", "~", "."]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=5,
)


@given(value=JSON, kind=st.sampled_from(sorted(KINDS)))
def test_whatever_is_given_is_taken_or_told_and_never_both(value: Any, kind: str) -> None:
    told = told_of(value)
    KINDS[kind](told)
    assert len(told.faults) == (not told.has("x"))


# ── all at once ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_faults_come_in_the_order_in_which_they_were_found_and_unknown_names_last() -> None:
    given: dict[Any, Any] = {"trun": 1, "path": 3, "scoring": "none", 4: 1}
    told = Settings(OWNER, given, RUNS)
    told.path("path"), told.whole("turns", 1), told.choice("scoring", ("all",), "all")
    told.fault("one thing more", "and another")
    assert faults_of(told) == (
        "path is 3; expected a path, absolute or relative to /runs",
        "scoring is 'none'; expected one of all",
        "one thing more",
        "and another",
        "no setting is named 'trun'; did you mean 'turns'? Known: path, scoring, turns",
        "no setting is named '4'. Known: path, scoring, turns",
    )


def test_names_that_nobody_asked_for_are_refused_even_if_they_are_null() -> None:
    assert faults_of(Settings(OWNER, {"x": None}, RUNS)) == ("no setting is named 'x'. Known: none",)


def test_the_error_is_of_the_class_that_was_named() -> None:
    with pytest.raises(ChainError, match="the settings of the skill 'sum' cannot be used"):
        Settings("the skill 'sum'", {"x": 1}, RUNS, error=ChainError).done()


def test_what_is_asked_twice_is_told_once() -> None:
    told = told_of(0)
    told.whole("x"), told.whole("x", 1)
    assert faults_of(told) == ("x is 0; expected a whole number from 1 on",)


def test_done_may_be_called_between_readings() -> None:
    told = Settings(OWNER, {"x": 1}, RUNS)
    told.whole("x")
    told.done()
    told.text("y")
    assert faults_of(told) == ("y is missing; expected a text",)


def test_the_given_settings_are_not_changed_nor_followed() -> None:
    given = {"x": 1}
    told = Settings(OWNER, given, RUNS)
    given["y"] = 2
    assert told.names == ("x",)
    assert told.whole("x") == 1
    told.done()


# ── sections ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_section_tells_its_faults_to_the_outer_settings_with_names_of_both() -> None:
    told = Settings(OWNER, {"limits": {"seconds": 0, "procesess": 3, "deep": {"q": 1}}, "x": 1}, RUNS)
    limits = told.section("limits")
    limits.number("seconds", above=0), limits.whole("processes", 1), limits.section("deep").flag("p", False)
    told.text("x")
    assert limits.names == ("seconds", "procesess", "deep")
    assert faults_of(told) == (
        "limits.seconds is 0; expected a number above 0",
        "x is 1; expected a text",
        "no setting of limits is named 'procesess'; did you mean 'processes'? Known: deep, processes, seconds",
        "no setting of limits.deep is named 'q'. Known: p",
    )


def test_paths_of_a_section_begin_where_those_around_it_do() -> None:
    told = Settings(OWNER, {"files": {"a": "a.txt"}}, RUNS)
    files = told.section("files")
    assert {name: files.path(name) for name in files.names} == {"a": Path("/runs/a.txt")}
    told.done()


# ── what is made of settings ─────────────────────────────────────────────────────────────────────────────────────────


def raising(error: Exception) -> Any:
    raise error


def test_errors_of_minerua_are_kept_as_faults_and_others_pass() -> None:
    told = Settings(OWNER, {}, RUNS)
    assert told.made(lambda: 3, None) == 3
    wrong = ConfigError("three items are wrong", ["the first", "the second"])
    assert told.made(lambda: raising(wrong), "none") == "none"
    assert told.made(lambda: raising(StorageError("the disk is full")), None) is None
    assert told.faults == ("three items are wrong", "the first", "the second", "the disk is full")
    with pytest.raises(ZeroDivisionError):
        told.made(lambda: 1 // 0, None)


def test_the_manual_of_plugins_has_every_method_and_no_other() -> None:
    text = (Path(__file__).parent.parent / "plugins" / "README.md").read_text("utf-8")
    table = text.partition("\n## Settings\n")[2].partition("\n## ")[0].partition("| call | returns |")[2]
    said = re.findall(r"`(\w+)\(", "".join(line.split(" | ")[0] for line in table.splitlines()))
    methods = {name for name, found in vars(Settings).items() if callable(found) and not name.startswith("_")}
    assert sorted(said) == sorted(methods)


def test_importing_the_reader_loads_neither_torch_nor_numpy(run_python: Any) -> None:
    script = "import sys, minerua.settings; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    assert run_python("-c", script).stdout == "[]\n"
