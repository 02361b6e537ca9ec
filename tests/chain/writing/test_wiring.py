"""Wiring: what is connected to what, by hand and by name, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.graph import Source
from minerua.chain.writing.chain import SkillChain, SkillTask

from .written import IMAGE, SKILLS, Made, array, chain, connected

# ── what is sound ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_inputs_are_wired_by_name_to_the_nearest_stage_else_to_the_chain() -> None:
    graph = chain(
        "same",
        SkillTask("same", "again"),
        ("same", SkillTask("same", "beside")),
        inputs={"x": array(2, 3)},
        outputs={"x": "same_2.x"},
    ).graph(SKILLS)
    sources = {step.name: step.inputs["x"] for step in graph.steps}
    assert sources == {
        "same": (Source(None, "x"),),
        "again": (Source("same", "x"),),
        "same_2": (Source("again", "x"),),
        "beside": (Source("again", "x"),),
    }
    assert graph.outputs == {"x": (Source("same_2", "x"),)}


def test_what_is_not_written_beside_what_is_written_is_still_wired_by_name() -> None:
    task = SkillTask("pairs", inputs={"one": "x"})
    graph = chain("same", task, inputs={"x": array("n", 3), "other": array("n", 3)}).graph(SKILLS)
    assert graph.by_name["pairs"].inputs == {"one": (Source(None, "x"),), "other": (Source(None, "other"),)}


def test_outputs_are_by_default_all_of_the_last_stage() -> None:
    graph = chain(("vision", "language"), inputs={**IMAGE, "text": str}).graph(SKILLS)
    assert {name: str(source) for name, (source,) in graph.outputs.items()} == {
        "embedding": "vision.embedding",
        "is_cat": "vision.is_cat",
        "words": "language.words",
    }


def test_several_sources_of_different_widths_are_left_to_the_run() -> None:
    made = chain(
        SkillTask("same", inputs={"x": ["small", "large"]}),
        inputs={"small": array("n", 2), "large": array("n", 3)},
        optional=["small"],
    )
    assert made.check(SKILLS) == ()


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_wiring_by_name_is_what_the_rule_says(stages: list[int], random: Any) -> None:
    """The rule read backwards, stage by stage; numbers say how many steps of a stage have the output."""
    made = SkillChain("c", inputs={"x": float}, outputs={"x": "x"})
    expected: dict[str, str] = {}
    nearest: list[str] = ["x"]
    for stage, count in enumerate(stages):
        tasks = [SkillTask("number", f"s{stage}_{i}") for i in range(count)]
        tasks += [SkillTask("open", f"o{stage}", constants={"path": "p"})]
        random.shuffle(tasks)
        made.add_parallel_stage(*tasks)
        for task in tasks:
            if task.skill == "number":
                expected[task.title] = nearest[0] if len(nearest) == 1 else "unclear"
        if count:
            nearest = [f"{task.title}.x" for task in tasks if task.skill == "number"]
    faults = made.check(SKILLS)
    unclear = [name for name, source in expected.items() if source == "unclear"]
    assert len(faults) == len(unclear)
    assert all(any(f"step {name!r}, input 'x' could be any of" in fault for fault in faults) for name in unclear)
    if not faults:
        steps = made.graph(SKILLS).by_name
        assert {name: str(steps[name].inputs["x"][0]) for name in expected} == expected


# ── what is not ──────────────────────────────────────────────────────────────────────────────────────────────────────

FAULTS = {
    "reference": (
        lambda: chain(SkillTask("vision", inputs={"image": "a.b.c"})),
        "step 'vision', input 'image': 'a.b.c' is no reference; write image for an input of the chain, see.embedding",
    ),
    "value": (
        lambda: chain(SkillTask("number", inputs={"x": 5})),  # type: ignore[dict-item]
        "step 'number', input 'x': 5 is no reference; write image for an input of the chain, see.embedding for an "
        "output of a step, and put values into constants",
    ),
    "unknown input of chain": (
        lambda: chain(SkillTask("vision", inputs={"image": "imge"})),
        "step 'vision', input 'image': no input of the chain is named 'imge'; did you mean 'image'? Known: image",
    ),
    "step for output": (
        lambda: chain("vision", SkillTask("same", inputs={"x": "vision"})),
        "Known: image; 'vision' is a step, so write vision.OUTPUT",
    ),
    "unknown step": (
        lambda: chain(SkillTask("vision", "see"), SkillTask("same", inputs={"x": "sea.embedding"})),
        "step 'same', input 'x': no step is named 'sea'; did you mean 'see'? Known: same, see",
    ),
    "unknown output": (
        lambda: chain("vision", SkillTask("same", inputs={"x": "vision.embeding"})),
        "no output of step 'vision' is named 'embeding'; did you mean 'embedding'? Known: embedding, is_cat",
    ),
    "unknown input": (
        lambda: chain(SkillTask("vision", inputs={"imag": "image"})),
        "step 'vision': no input of skill 'vision' is named 'imag'; did you mean 'image'? Known: image",
    ),
    "connection end": (
        lambda: connected(("image", "see")),
        "connection image -> see: its end must be an input of a step, such as fuse.vision",
    ),
    "connection step": (
        lambda: connected(("image", "sea.image")),
        "connection image -> sea.image: no step is named 'sea'; did you mean 'see'? Known: see, size",
    ),
    "connection start": (
        lambda: connected(("imag", "see.image")),
        "step 'see', input 'image': no input of the chain is named 'imag'; did you mean 'image'?",
    ),
    "connected twice": (
        lambda: connected(("image", "see.image"), ("see.embedding", "see.image")),
        "step 'see', input 'image' is connected twice, to 'image' and to 'see.embedding'; of several sources "
        "write a list, the best first",
    ),
    "connected and constant": (
        lambda: connected(("see.embedding", "size.x")),
        "step 'size', input 'x' is connected twice, to the constant 1 and to 'see.embedding'; of several",
    ),
    "no sources": (
        lambda: chain(SkillTask("vision", inputs={"image": []})),
        "step 'vision', input 'image': its list of sources is empty; leave it out to have it wired by name",
    ),
    "not connected": (
        lambda: chain(SkillTask("vision", "see"), "language"),
        "step 'language', input 'text' is not connected: no earlier step has an output 'text', and the chain has no "
        "such input; there are image, see.embedding, see.is_cat",
    ),
    "nothing there": (lambda: chain("language", inputs={}), "the chain has no such input; nothing is there"),
    "ambiguous": (
        lambda: chain(("same", SkillTask("same", "also")), "same", inputs={"x": array(1, 2)}),
        "step 'same_2', input 'x' could be any of same.x, also.x; write which one, or a list of them, the best first",
    ),
    "output": (
        lambda: chain("vision", outputs={"label": "vision.lable"}),
        "output 'label' of the chain: no output of step 'vision' is named 'lable'. Known: embedding, is_cat",
    ),
    "empty output": (
        lambda: chain("vision", outputs={"label": []}),
        "output 'label' of the chain has no source; name one, such as fuse.label",
    ),
    "ambiguous output": (
        lambda: chain(("same", SkillTask("same", "also")), inputs={"x": array(1, 2)}),
        "the output 'x' of the chain could be same.x and also.x; name the chain's outputs",
    ),
    "condition text": (
        lambda: chain("vision", SkillTask("number", constants={"x": 1}, when="vision.is_cat and image")),
        "step 'number', when: 'vision.is_cat and image' is no reference",
    ),
    "unknown constant": (
        lambda: chain(SkillTask("vision", constants={"tob": 5})),
        "step 'vision': no input of skill 'vision' is named 'tob'. Known: image",
    ),
}


@pytest.mark.parametrize(("make_chain", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_connected_is_told(make_chain: Made, fault: str) -> None:
    faults = make_chain().check(SKILLS)
    assert any(fault in one for one in faults), faults
