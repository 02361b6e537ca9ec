"""Building chains in Python; what a chain means is in `test_checking.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from minerua import Skill, TensorSpec
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.chain.writing.functions import skill
from minerua.errors import ChainError


def double(x: float) -> float:
    return 2 * x


def bare(x):  # type: ignore[no-untyped-def]
    return x


def test_names_of_steps_come_from_their_skills_and_are_made_unique() -> None:
    chain = SkillChain("c")
    assert chain.add_stage("read-text") == "read_text"
    assert chain.add_stage("read-text") == "read_text_2"
    assert chain.add_parallel_stage("read-text", SkillTask("x", "own"), Skill("see", double)) == (
        "read_text_3",
        "own",
        "see",
    )
    assert [task.title for task in chain.tasks] == ["read_text", "read_text_2", "read_text_3", "own", "see"]
    assert repr(chain) == "<SkillChain 'c': read_text, read_text_2, read_text_3, own, see>"
    assert repr(SkillChain("c")) == "<SkillChain 'c': empty>"


def test_a_function_becomes_a_skill_when_it_is_added() -> None:
    chain = SkillChain("c", inputs={"x": float})
    assert chain.add_stage(double) == "double"
    graph = chain.graph({})
    assert graph.steps[0].skill.call(x=2.0) == {"result": 4.0}  # type: ignore[misc]
    with pytest.raises(ChainError, match="the function 'bare' cannot become a skill"):
        chain.add_stage(bare)
    assert len(chain.tasks) == 1


def test_connections_are_made_in_a_row_and_checked_with_the_rest() -> None:
    chain = SkillChain("c", inputs={"number": float}, outputs={"x": "b.result"})
    chain.add_parallel_stage(SkillTask(skill(double), "a"), SkillTask(skill(double), "b"))
    assert chain.connect("number", "a.x").connect("a.result", "b.x") is chain
    assert [str(step.inputs["x"][0]) for step in chain.graph({}).steps] == ["number", "a.result"]


def test_arrays_of_a_chain_are_called_as_its_inputs() -> None:
    chain = SkillChain("c", inputs={"image": TensorSpec("pixel_values", (3,), "float32")})
    assert chain.inputs == {"image": TensorSpec("image", (3,), "float32")}


def test_chains_are_equal_if_they_are_written_alike() -> None:
    def made(name: str = "c", reference: str | list[str] = "x", **more: object) -> SkillChain:
        chain = SkillChain(name, inputs={"x": float, "y": int}, optional=more.get("optional", ()))  # type: ignore[arg-type]
        chain.add_stage("s", inputs={"x": reference}, when="not y")
        return chain

    assert made() == made(reference=["x"])
    assert made(optional=["x", "y"]) == made(optional=("y", "x", "y"))
    elsewhere = made()
    elsewhere.folder = Path("elsewhere")
    assert made() == elsewhere
    assert made() != made("d")
    assert made() != made(reference="y")
    assert made() != made().connect("x", "s.x")
    assert made() != "c"
    with pytest.raises(TypeError, match="unhashable"):
        hash(made())


def test_a_task_keeps_copies_of_what_it_was_given() -> None:
    inputs, settings = {"x": ["a", "b"]}, {"size": 1}
    task = SkillTask("s", inputs=inputs, settings=settings)
    inputs["x"].append("c")
    settings["size"] = 2
    assert (dict(task.inputs), task.settings) == ({"x": ("a", "b")}, {"size": 1})


def test_a_chain_can_be_checked_again_after_it_was_mended() -> None:
    chain = SkillChain("c", inputs={"x": float})
    chain.add_stage("double")
    with pytest.raises(ChainError, match="cannot be run") as caught:
        chain.graph({})
    assert str(caught.value) == (
        "the chain 'c' cannot be run as it is written\n  - step 'double': no skill is named 'double'. Known: none"
    )
    assert chain.check({"double": skill(double)}) == ()
