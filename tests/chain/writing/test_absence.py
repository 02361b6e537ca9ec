"""What may be absent, decided exactly: by words for people, and against trying every case."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua import Skill, TensorSpec
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.chain.writing.presence import MOST_ATOMS


def nothing(**inputs: object) -> dict[str, object]:
    return {}


WORK = Skill("work", nothing, {"x": float}, {"x": float, "ok": bool})
LOOSE = Skill("loose", nothing, {"x": float, "y": float}, {"x": float}, optional=("y",))
ROWS = TensorSpec("rows", ("batch", 4), "float32")
ARRAYS = Skill("arrays", nothing, {"one": ROWS, "other": ROWS}, {"sum": ROWS})
SKILLS = {skill.name: skill for skill in (WORK, LOOSE, ARRAYS)}


def chain(*tasks: SkillTask, optional: tuple[str, ...] = ("text",), **inputs: Any) -> SkillChain:
    made = SkillChain("c", inputs={"text": float, "sure": float, "flag": bool, **inputs}, optional=optional, outputs={})
    for task in tasks:
        made.add_parallel_stage(task)
    return made


def test_an_optional_input_without_a_policy_is_a_fault_that_names_it_and_the_policies() -> None:
    assert chain(SkillTask("work", inputs={"x": "text"})).check(SKILLS) == (
        "step 'work', input 'x' is absent where the optional input 'text' of the chain is left out, and nothing says "
        "what to do then: set missing to skip, omit, zeros or fail, or give a default",
    )


def test_what_a_skipped_step_gives_is_absent_and_the_condition_is_named() -> None:
    first = SkillTask("work", "first", {"x": "sure"}, when="flag")
    second = SkillTask("work", "second", {"x": "first.x"})
    (fault,) = chain(first, second).check(SKILLS)
    assert "step 'second', input 'x' is absent where flag is false, which step 'first' depends on, and" in fault


def test_absence_goes_on_from_step_to_step() -> None:
    first = SkillTask("work", "first", {"x": "text"}, missing={"x": "skip"})
    second = SkillTask("work", "second", {"x": "first.x"}, missing={"x": "skip"})
    (fault,) = chain(first, second, SkillTask("work", "third", {"x": "second.x"})).check(SKILLS)
    assert "step 'third', input 'x' is absent where the optional input 'text' of the chain is left out" in fault


def test_of_two_branches_one_is_always_there() -> None:
    yes = SkillTask("work", "yes", {"x": "sure"}, when="flag")
    no = SkillTask("work", "no", {"x": "sure"}, when="not flag")
    both = SkillTask("work", "both", {"x": ["yes.x", "no.x"]})
    assert chain(yes, no, both).check(SKILLS) == ()
    (fault,) = chain(yes, no, both, optional=("flag",)).check(SKILLS)
    assert "where the optional input 'flag' of the chain is left out" in fault


def test_steps_of_one_branch_need_no_policies_for_each_other() -> None:
    first = SkillTask("work", "first", {"x": "sure"}, when="flag")
    assert chain(first, SkillTask("work", "second", {"x": "first.x"}, when="flag")).check(SKILLS) == ()


def test_an_input_that_the_skill_can_do_without_is_omitted() -> None:
    graph = chain(SkillTask("loose", inputs={"x": "sure", "y": "text"})).graph(SKILLS)
    assert graph.steps[0].missing == {"y": "omit"}


def test_a_default_in_place_of_an_absent_input() -> None:
    step = chain(SkillTask("work", inputs={"x": "text"}, defaults={"x": 0})).graph(SKILLS).steps[0]
    assert (dict(step.defaults), dict(step.missing), dict(step.constants)) == ({"x": 0}, {}, {})


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        (
            SkillTask("work", inputs={"x": "text"}, missing={"x": "zero"}),  # type: ignore[dict-item]
            "step 'work', missing: no policy is named 'zero'; did you mean 'zeros'? Known: fail, omit, skip, "
            "zeros; or give a default",
        ),
        (
            SkillTask("work", inputs={"x": "text"}, missing={"y": "skip", "x": "skip"}),
            "step 'work', missing: no input of skill 'work' is named 'y'. Known: x",
        ),
        (
            SkillTask("work", inputs={"x": "text"}, missing={"x": "skip"}, defaults={"x": 0}),
            "step 'work', missing: input 'x' has the policy 'skip' and a default; leave one out",
        ),
        (
            SkillTask("work", inputs={"x": "text"}, missing={"x": "omit"}),
            "step 'work', missing: skill 'work' cannot do without its input 'x', so it cannot be omitted",
        ),
        (
            SkillTask("work", inputs={"x": "text"}, missing={"x": "zeros"}),
            "step 'work', missing: input 'x' is number; zeros are for arrays, so give a default instead",
        ),
    ],
)
def test_a_policy_that_cannot_be_followed(task: SkillTask, fault: str) -> None:
    assert chain(task).check(SKILLS) == (fault,)


def test_zeros_need_an_array_that_tells_how_many() -> None:
    task = SkillTask("arrays", missing={"one": "zeros"})
    assert chain(task, one=ROWS, other=ROWS, optional=("one",)).check(SKILLS) == ()
    task = SkillTask("arrays", missing={"one": "zeros", "other": "zeros"})
    faults = chain(task, one=ROWS, other=ROWS, optional=("one", "other")).check(SKILLS)
    assert faults[0] == (
        "step 'arrays', missing: input 'one' is float32[batch, 4], but how much 'batch' is, no input tells that is "
        "always there; give a default, or skip the step"
    )
    assert len(faults) == 2


def test_a_step_that_can_never_run_leaves_those_that_need_it_without_their_input() -> None:
    never = SkillTask("work", "never", {"x": "sure"}, when=["flag", "not flag"])
    (fault,) = chain(never, SkillTask("work", "last", {"x": "never.x"})).check(SKILLS)
    assert fault.startswith("step 'last', input 'x' is absent in every run, and nothing says what to do then: ")


def test_more_conditions_than_can_be_told_apart_ask_for_policies() -> None:
    flags = {f"f{i}": bool for i in range(MOST_ATOMS + 1)}
    many = SkillTask("work", "many", {"x": "sure"}, when=[*flags])
    last = SkillTask("work", "last", {"x": "many.x"}, when=[*flags])
    (fault,) = chain(many, last, **flags).check(SKILLS)
    assert "step 'last', input 'x' is absent in more cases than can be listed, and nothing" in fault
    assert chain(many, SkillTask("work", "last", {"x": "many.x"}, missing={"x": "skip"}), **flags).check(SKILLS) == ()


# ── against trying every case ────────────────────────────────────────────────────────────────────────────────────────

INPUTS = ("sure", "text")
FLAGS = ("flag", "maybe")


@st.composite
def tasks(draw: st.DrawFn) -> tuple[SkillTask, ...]:
    made: list[SkillTask] = []
    for number in range(draw(st.integers(1, 4))):
        values = [*INPUTS, *(f"{task.title}.x" for task in made)]
        flags = [*FLAGS, *(f"{task.title}.ok" for task in made)]
        sources = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
        when = draw(st.lists(st.tuples(st.sampled_from(["", "not "]), st.sampled_from(flags)).map("".join), max_size=2))
        policy = draw(st.sampled_from([{}, {"x": "skip"}, {"x": "fail"}]))
        made.append(SkillTask("work", f"s{number}", {"x": sources}, when=when, missing=policy))  # type: ignore[arg-type]
    return tuple(made)


def cases(steps: tuple[SkillTask, ...]) -> Iterator[tuple[dict[str, bool], dict[str, bool]]]:
    """Yields what is given and what is true, in all ways."""
    truths = [*FLAGS, *(f"{task.title}.ok" for task in steps)]
    for given_bits in itertools.product((False, True), repeat=2):
        given_now = {"sure": True, "flag": True, "text": given_bits[0], "maybe": given_bits[1]}
        for bits in itertools.product((False, True), repeat=len(truths)):
            yield given_now, dict(zip(truths, bits, strict=True))


def lacking(steps: tuple[SkillTask, ...], given_now: Mapping[str, bool], true: Mapping[str, bool]) -> set[str]:
    """Returns the steps that would start without their input."""
    there, lack = dict(given_now), set()
    for task in steps:
        conditions = [(text.removeprefix("not "), not text.startswith("not ")) for text in task.when]
        runs = all(there[source] and true[source] == wanted for source, wanted in conditions)
        present = any(there[source] for source in task.inputs["x"])
        if runs and not present:
            lack.add(task.title)
        runs = runs and (present or task.missing.get("x") != "skip")
        there |= {f"{task.title}.x": runs, f"{task.title}.ok": runs}
    return lack


@settings(deadline=None)
@given(tasks())
def test_exactly_those_inputs_need_a_policy_that_lack_a_value_in_some_case(steps: tuple[SkillTask, ...]) -> None:
    lack = set().union(*(lacking(steps, given_now, true) for given_now, true in cases(steps)))
    expected = {task.title for task in steps if task.title in lack and not task.missing}
    faults = chain(*steps, maybe=bool, optional=("text", "maybe")).check(SKILLS)
    assert {fault.split("'")[1] for fault in faults} == expected, faults
