"""The exam as a whole: who sits it, which checks, what is exempt, and how all of it is told."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

import minerua.conformance
from minerua import LossSpec, OptimizerSpec, Skill, hookimpl
from minerua.conformance import Report, Sample, cases, exam, examine
from minerua.errors import ConfigError, UnknownName

from .asking import found, reasons


def good(number):
    """Returns a number.

    Example:
        >>> good(1)
        {'number': 1}
    """
    return {"number": number}


def wrong_example(number):
    """Returns a number.

    Example:
        >>> wrong_example(1)
        {'number': 2}
    """
    return {"number": number}


def of_number(call, **fields):
    return Skill("s", call, {"number": int}, {"number": int}, **{"pure": True, **fields})


def plugin(*skills, **attributes):
    module = ModuleType("given_plugin")
    module.minerua_skills = hookimpl(specname="minerua_skills")(lambda: list(skills))
    vars(module).update(attributes)
    return module


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_problem_says_what_was_asked_what_was_found_where_and_what_to_do():
    (problem,) = examine(of_number(lambda number: {}), only="*/returns").problems
    lines = str(problem).splitlines()
    assert lines[0] == "skill 's', returns: 'number', an output, is missing; integer is wanted there"
    assert lines[1].strip() == (
        "asked: a call returns a mapping with the outputs, of the types, dtypes and extents that its ports say"
    )
    assert lines[2].strip().startswith(f"where: {__file__}:")
    assert lines[3].strip() == "do:    correct the ports, or what is returned"


def test_all_problems_are_told_at_once_and_counted():
    def changes(rows=None):
        return {"other": 1}

    report = examine(Skill("s", changes, {"number": int}, {"number": int}, pure=True))
    assert {problem.check for problem in report.problems} == {"takes", "returns", "borrows", "pure"}
    assert report.summary == "exam of s: 1 passed, 4 failed"
    assert str(report).startswith("exam of s: 1 passed, 4 failed\nskill 's', takes: a call with number does not fit")


def test_a_report_is_json_for_programs():
    value = examine(of_number(lambda number: {}), only="*/returns").as_json()
    assert json.loads(json.dumps(value)) == value
    assert (value["passed"], value["target"]) == (False, "s")
    assert value["verdicts"][0]["problems"][0]["found"].startswith("'number', an output, is missing")


def test_an_empty_report_says_so():
    assert str(Report("x")) == "exam of x: nothing to examine"


def test_a_function_without_a_source_is_told_so():
    (problem,) = examine(LossSpec("l", print), only="*/finite", samples={"l": Sample(predictions=1)}).problems
    assert problem.where.startswith("its functions have no source, the loss given")


def test_whatever_a_thing_raises_is_one_of_its_problems():
    def leaves(number):
        raise SystemExit(3)

    (one,) = found(of_number(leaves), "returns")
    assert one.startswith("it raised SystemExit: 3 (")


# ── examples and specs ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_examples_of_docstrings_are_run():
    assert [verdict.status for verdict in examine(of_number(good), only="*/examples").verdicts] == ["passed"]
    (one,) = found(of_number(wrong_example), "examples")
    assert "Expected: {'number': 2} Got: {'number': 1}" in one
    with pytest.raises(ConfigError, match="only: no check matches"):
        examine(of_number(lambda number: {"number": number}), only="*/examples")


def test_a_spec_that_is_not_valid_is_told_and_asked_nothing_else():
    report = examine(Skill("Not A Name", good))
    assert [verdict.check for verdict in report.verdicts] == ["spec"]
    assert "is not lower-case words joined by '-'" in report.problems[0].found


# ── which checks ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plugin_in_memory_is_examined_with_everything_that_it_provides():
    report = examine(plugin(of_number(good)))
    assert not report.problems, str(report)
    assert [(v.check, v.reason) for v in report.of("not judged")] == [
        ("import-effects", "an object in memory has no import; examine its module, or the installed plugin"),
        ("import-light", "an object in memory has no import; examine its module, or the installed plugin"),
        ("names", "it is not installed, so that there is nobody to quarrel with"),
    ]
    assert [v.check for v in report.of("passed")][:2] == ["loads", "provides"]


def test_a_plugin_in_memory_that_is_not_valid_is_told_with_its_reason():
    broken = plugin(Skill("two words", good))
    report = examine(broken)
    assert [problem.check for problem in report.problems] == ["loads", "provides"]
    assert "name 'two words' is not lower-case words" in report.problems[0].found
    assert report.problems[1].found == "no hook of it returns a spec"
    assert report.problems[0].where == "the plugin 'given_plugin' given"


def test_an_exemption_is_a_verdict_of_its_own_with_its_reason():
    clock = iter(range(9))
    skill = of_number(lambda number: {"number": next(clock)}, pure=True)
    module = plugin(skill, minerua_conformance_exemptions={"s/pure": "it tells the time"})
    report = examine(module)
    assert not report.problems
    assert [(v.name, v.check, v.reason) for v in report.of("exempt")] == [("s", "pure", "it tells the time")]
    assert "exempt      skill 's', pure: it tells the time" in str(report)
    assert examine(skill, exempt={"pure": "as an argument"}).of("exempt")[0].reason == "as an argument"


def test_orders_that_cannot_be_carried_out_are_all_told_with_the_nearest_names():
    exempt = {"s/pur": "why", "takes": " "}
    with pytest.raises(ConfigError, match="the exam cannot be held as it is ordered") as error:
        examine(of_number(good, pure=True), only=["*/takes", "*/gradiant"], samples={"t": Sample()}, exempt=exempt)
    assert len(error.value.faults) == 4
    assert "minerua_conformance_exemptions: no check is named 's/pur'; did you mean 's/pure'" in str(error.value)
    assert "minerua_conformance_exemptions['takes'] is ' '; say in a text why the law does not hold" in str(error.value)
    assert "samples: no thing of this plugin is named 't'" in str(error.value)
    assert "only: no check matches '*/gradiant'; write kind/name/check, such as 'loss/focal/*'" in str(error.value)


def test_a_name_that_is_not_installed_is_refused_with_the_nearest(site_packages):
    site_packages.install("acme-tasks", acme="")
    with pytest.raises(UnknownName, match="no installed plugin is named 'acme-task'; did you mean 'acme-tasks'"):
        examine("acme-task")


def test_the_door_has_what_it_says_and_nothing_else():
    assert {name: getattr(minerua.conformance, name).__name__ for name in minerua.conformance.__all__}
    with pytest.raises(AttributeError, match=r"minerua\.conformance has no 'exams'; it has Problem, Report"):
        _ = minerua.conformance.exams


# ── pytest ───────────────────────────────────────────────────────────────────────────────────────────────────────────


test_exam = exam(of_number(good))


def test_the_cases_have_ids_that_can_be_read():
    assert [str(case) for case in cases(OptimizerSpec("o", print))][:3] == [
        "optimizer/o/spec",
        "optimizer/o/builds",
        "optimizer/o/parabola",
    ]


def test_a_case_that_fails_or_is_skipped_says_why_to_pytest():
    def run(skill, check):
        test = exam(skill, only=f"*/{check}")
        (mark,) = test.pytestmark
        test(case=mark.args[1][0])

    with pytest.raises(pytest.fail.Exception, match="'number', an output, is missing; integer is wanted there"):
        run(of_number(lambda number: {}), "returns")
    thing = Skill("s", lambda thing: {}, {"thing": Sample}, {}, pure=True)
    with pytest.raises(pytest.skip.Exception, match="no value can be made up for thing"):
        run(thing, "returns")
    assert reasons(thing, "returns")
    run(of_number(good), "returns")
