"""Checking chains: every fault with its words, all at once, and graphs of what is sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minerua import Skill, hookimpl
from minerua.chain.graph import Condition, PortType, Retry, Source
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.errors import ChainError
from minerua.registry import Registry
from minerua.values import SkillContext

from .written import IMAGE, SKILLS, Made, array, chain, make

# ── what is sound ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_steps_are_ordered_by_need_and_else_as_they_were_added() -> None:
    made = chain(
        SkillTask("number", "late", {"x": "early.x"}),
        SkillTask("number", "free", {"x": "x"}),
        SkillTask("number", "early", {"x": "x"}),
        inputs={"x": float},
    )
    assert [step.name for step in made.graph(SKILLS).steps] == ["free", "early", "late"]


def test_a_step_keeps_everything_that_was_written_about_it() -> None:
    task = SkillTask(
        "fusion",
        "fuse",
        constants={"top": 5},
        when=["see.is_cat", "not see.is_cat"],
        defaults={},
        timeout_seconds=2,
        retry=Retry(3),
    )
    graph = chain(SkillTask("vision", "see"), task).graph(SKILLS)
    step = graph.by_name["fuse"]
    assert (dict(step.constants), step.timeout_seconds, step.retry, step.isolated) == ({"top": 5}, 2, Retry(3), False)
    assert step.when == (Condition(Source("see", "is_cat")), Condition(Source("see", "is_cat"), wanted=False))
    assert step.skill is SKILLS["fusion"]
    assert "words" not in step.inputs


def test_a_default_of_an_input_that_nothing_is_connected_to_is_a_constant() -> None:
    step = chain(SkillTask("number", defaults={"x": 1})).graph(SKILLS).steps[0]
    assert (dict(step.constants), dict(step.defaults)) == ({"x": 1}, {})


def test_lists_and_texts_of_files_become_arrays_and_paths() -> None:
    tasks = (SkillTask("reader", constants={"ids": [1, 2]}), SkillTask("open", constants={"path": "a.txt"}))
    graph = chain(tasks).graph(SKILLS, SkillContext(Path("folder")))
    ids = graph.by_name["reader"].constants["ids"]
    assert (ids.dtype, ids.tolist(), ids.flags.writeable) == (np.int32, [1, 2], False)
    assert graph.by_name["open"].constants["path"] == Path("folder/a.txt")


def test_settings_make_the_skill_and_paths_begin_where_the_chain_lies(tmp_path: Path) -> None:
    made = chain(SkillTask("sized", settings={"size": 64}))
    made.folder = tmp_path
    skill = made.graph(SKILLS).steps[0].skill
    assert (skill.inputs["image"], skill.version) == (array("n", 64), str(tmp_path))


def test_a_catalog_tells_who_provides_a_skill() -> None:
    class Plugin:
        @hookimpl
        def minerua_skills(self) -> list[Skill]:
            return [SKILLS["number"]]

    (step,) = chain("number", inputs={"x": float}).graph(Registry.of(Plugin()).skills).steps
    assert step.provider.startswith("plugin 'test_a_catalog_tells_who")
    assert step.provider.endswith("Plugin' (given)")
    (step,) = chain("number", inputs={"x": float}).graph(SKILLS).steps
    assert step.provider == ""


# ── what is not ──────────────────────────────────────────────────────────────────────────────────────────────────────

FAULTS = {
    "no steps": (lambda: chain(), "the chain 'look' has no steps; add one"),
    "no name": (lambda: _renamed(chain("vision"), ""), "the chain's name is ''; give it a text that is not empty"),
    "input name": (
        lambda: chain("vision", inputs={**IMAGE, "a b": str}),
        "input 'a b' of the chain: a name must be a Python identifier, such as image",
    ),
    "output name": (
        lambda: chain("vision", outputs={"a.b": "image"}),
        "output 'a.b' of the chain: a name must be a Python identifier, such as image",
    ),
    "optional": (
        lambda: chain("vision", optional=["imag"]),
        "optional inputs: no input of the chain is named 'imag'; did you mean 'image'? Known: image",
    ),
    "type": (
        lambda: chain("vision", inputs={**IMAGE, "x": "text"}),  # type: ignore[dict-item]
        "input 'x' of the chain has the type 'text'; expected a Python type such as str, or a TensorSpec",
    ),
    "dtype": (
        lambda: chain("vision", inputs={**IMAGE, "x": array(dtype="floot")}),
        "input 'x' of the chain has the dtype 'floot', which numpy does not know; write float32, int64 and so on",
    ),
    "step name": (
        lambda: chain(SkillTask("vision", "see.it")),
        "step 'see.it': a step's name must be a Python identifier, without dots, such as see",
    ),
    "step twice": (
        lambda: chain(SkillTask("vision", "see"), SkillTask("vision", "see")),
        "step 'see': two steps have this name; rename one",
    ),
    "unknown skill": (
        lambda: chain("visoin"),
        "step 'visoin': no skill is named 'visoin'; did you mean 'vision'? Known: fusion, language",
    ),
    "settings": (
        lambda: chain(SkillTask("vision", settings={"size": 1})),
        "step 'vision': skill 'vision' takes no settings, found size",
    ),
    "bad settings": (
        lambda: chain("sized"),
        "step 'sized': its settings cannot be used: settings are incomplete; size: missing",
    ),
    "no skill": (
        lambda: chain(SkillTask("odd", settings={"a": 1})),
        "step 'odd': its skill must have either call or load, found {'a': 1}",
    ),
    "empty skill": (
        lambda: chain(Skill("empty")),
        "step 'empty': its skill must have either call or load, found Skill",
    ),
    "port": (
        lambda: chain(make("strange", {"image": array(dtype="floot")}, {})),
        "step 'strange': port 'image' of skill 'strange' has the dtype 'floot', which numpy does not know",
    ),
    "timeout": (
        lambda: chain(SkillTask("vision", timeout_seconds=0)),
        "step 'vision': timeout_seconds is 0; expected seconds above 0 and up to 1e+09, or nothing for ever",
    ),
    "endless timeout": (lambda: chain(SkillTask("vision", timeout_seconds=float("inf"))), "timeout_seconds is inf"),
    "retry": (
        lambda: chain(SkillTask("vision", retry=3)),  # type: ignore[arg-type]
        "step 'vision': retry is 3; expected a Retry",
    ),
    "attempts": (
        lambda: chain(SkillTask("vision", retry=Retry(0))),
        "step 'vision': retry.attempts is 0; expected a count from 1, the first attempt included",
    ),
    "factor": (
        lambda: chain(SkillTask("vision", retry=Retry(2, factor=0.5))),
        "step 'vision': retry.factor is 0.5; expected a number from 1 to 1e+09",
    ),
    "isolated": (
        lambda: chain(SkillTask("later", constants={"x": 1}, isolated=True)),
        "step 'later' is isolated, but its skill is a coroutine, which can be stopped where it is; leave isolated out",
    ),
    "condition": (
        lambda: chain("vision", SkillTask("number", constants={"x": 1}, when="not  vision.embedding")),
        "step 'number', when: vision.embedding is float32[batch, 16]; a condition must be flag",
    ),
    "circle": (
        lambda: chain(
            SkillTask("number", "a", {"x": "c.x"}),
            SkillTask("number", "b", {"x": "a.x"}),
            SkillTask("number", "c", {"x": "b.x"}),
        ),
        "the steps need each other in a circle: a -> b -> c -> a",
    ),
    "own output": (
        lambda: chain(SkillTask("number", "a", {"x": "a.x"})),
        "the steps need each other in a circle: a -> a",
    ),
    "wrong constant": (
        lambda: chain(SkillTask("number", constants={"x": "5"})),
        "'x', a constant of step 'number', must be number, found text '5'",
    ),
    "ragged constant": (
        lambda: chain(SkillTask("reader", constants={"ids": [[1], [2, 3]]})),
        "'ids', a constant of step 'reader', must be int32[length], found list [[1], [2, 3]]",
    ),
    "unknown default": (
        lambda: chain(SkillTask("vision", defaults={"imag": 5})),
        "step 'vision', defaults: no input of skill 'vision' is named 'imag'; did you mean 'image'?",
    ),
    "wrong default": (
        lambda: chain(SkillTask("number", defaults={"x": "5"})),
        "'x', a default of step 'number', must be number, found text '5'",
    ),
    "types": (
        lambda: chain(
            "language", "number", SkillTask("number", "n", {"x": "language.words"}), inputs={"text": str, "x": float}
        ),
        "language.words -> n.x: language.words is float32[n, 16], and n.x wants number",
    ),
    "adapter": (
        lambda: chain("tokens", "reader", inputs={"text": str}),
        "tokens.ids -> reader.ids: tokens.ids is int64[length], and reader.ids wants int32[length]; between them could "
        "stand the skill 'narrow'",
    ),
    "axes": (
        lambda: chain(SkillTask("same", inputs={"x": "image"}), inputs={"image": array("n")}),
        "image -> same.x: image is float32[n], and same.x wants float32[a, b]",
    ),
    "extents": (
        lambda: chain("vision", inputs={"image": array("n", 32)}),
        "image -> vision.image: image is float32[n, 32], and vision.image wants float32[batch, 64]: axis 1 has 32, and "
        "64 is wanted",
    ),
    "extents at a distance": (
        lambda: chain(
            ("vision", "wide"),
            SkillTask("same", inputs={"x": "wide.grid"}),
            SkillTask("pairs", inputs={"one": "vision.embedding", "other": "same.x"}),
            inputs={**IMAGE, "text": str},
        ),
        "axis 1: 'b' of step 'same' is 32 by wide.grid -> same.x, but 'w' of step 'pairs' is 16 by vision.embedding -> "
        "pairs.one",
    ),
    "constant's extent": (
        lambda: chain(
            "vision",
            SkillTask("pairs", inputs={"one": "vision.embedding"}, constants={"other": np.zeros((2, 3), np.float32)}),
        ),
        "'w' of step 'pairs' is 16 by vision.embedding -> pairs.one, but 3 by the constant pairs.other",
    ),
}


def _renamed(made: SkillChain, name: str) -> SkillChain:
    made.name = name
    return made


@pytest.mark.parametrize(("make_chain", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_chain_that_cannot_run_is_told_why(make_chain: Made, fault: str) -> None:
    faults = make_chain().check(SKILLS)
    assert any(fault in one for one in faults), faults
    assert len(set(faults)) == len(faults)
    with pytest.raises(ChainError, match="cannot be run as it is written") as caught:
        make_chain().graph(SKILLS)
    assert caught.value.faults == faults


def test_all_faults_are_told_at_once() -> None:
    made = chain(
        "visoin",
        SkillTask("number", "a", {"x": "b.x"}, timeout_seconds=-1),
        SkillTask("number", "b", {"x": "a.x"}, constants={"x": "y"}),
        SkillTask("reader", inputs={"ids": "image"}),
        "language",
    )
    faults = "\n".join(made.check(SKILLS))
    for words in ("'visoin'", "-1", "circle: a -> b -> a", "connected twice", "must be number", "image -> reader.ids"):
        assert words in faults
    assert "'text'" not in faults  # it may be an output of the skill that was not found


def test_an_error_of_the_catalog_is_told_in_its_own_words() -> None:
    class Broken:
        @hookimpl
        def minerua_skills(self) -> None:
            return None

    class One:
        @hookimpl
        def minerua_skills(self) -> list[Skill]:
            return [SKILLS["number"]]

    class Two(One):
        pass

    registry = Registry.of(Broken(), One(), Two())
    (unknown, contested) = chain("visoin", "number", inputs={"x": float}).check(registry.skills)[:2]
    assert "A plugin that is not in use may provide it" in unknown
    assert "Broken" in unknown
    assert "so neither is used" in contested


@pytest.mark.parametrize("error", [ValueError("no such file"), KeyError("x"), RuntimeError()])
def test_whatever_a_configure_raises_is_a_fault(error: Exception) -> None:
    def fail(settings: object, context: object) -> Skill:
        raise error

    (fault,) = chain(Skill("fails", configure=fail)).check({})
    assert fault.startswith("step 'fails': its settings cannot be used: ")
    assert (str(error) or "RuntimeError") in fault


def test_a_circle_is_told_once_however_it_is_entered() -> None:
    made = chain(
        SkillTask("number", "a", {"x": "b.x"}),
        SkillTask("number", "b", {"x": "c.x"}),
        SkillTask("number", "c", {"x": "b.x"}),
        SkillTask("number", "d", {"x": "c.x"}),
    )
    assert made.check(SKILLS) == ("the steps need each other in a circle: b -> c -> b",)


@pytest.mark.parametrize(
    ("given_type", "wanted", "fits"),
    [
        (bool, float, True),
        (int, float, True),
        (bool, int, True),
        (float, int, False),
        (str, object, True),
        (array(3), object, True),
        (array(3), np.ndarray, True),
        (np.ndarray, array(3), True),
        (object, str, False),
        (array(3), str, False),
        (array(3), array(3, dtype="float64"), False),
        (array(3), array("n"), True),
    ],
)
def test_an_output_fits_what_takes_it(given_type: PortType, wanted: PortType, fits: bool) -> None:
    taker = make("taker", {"x": wanted}, {})
    assert (chain(taker, inputs={"x": given_type}, outputs={}).check({}) == ()) is fits


def test_a_chain_of_many_steps_is_checked_quickly() -> None:
    """Linear in the steps: a walk over all earlier steps per input would take minutes for chains of machines."""
    made = SkillChain("long", inputs={"x": float})
    for _ in range(400):
        made.add_stage("number")
    assert len(made.graph(SKILLS).steps) == 400
    assert replace(SKILLS["number"]) == SKILLS["number"]
