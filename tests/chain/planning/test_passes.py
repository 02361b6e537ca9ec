from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.graph import Graph, Retry, Source, Step
from minerua.chain.planning.joining import join_neighbours, presences
from minerua.chain.planning.passes import drop_dead, is_same_value, merge_equal, ordered
from minerua.errors import ChainError
from minerua.values import JoinedStep, Skill

from ..naive import add, carry_out, graph_of, join, wired

ADD = add()
JOINS = add("j", join=join)
EFFECT = add("e", pure=False)


# ── dead steps ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_steps_that_no_requested_output_needs_are_left_out_and_named() -> None:
    graph = graph_of(
        wired("a", ADD, {"a": "x"}),
        wired("b", ADD, {"a": "a.y"}),
        wired("c", ADD, {"a": "x"}),
        outputs={"y": "b.y", "z": "c.y"},
    )
    found = drop_dead(graph, ["z"])
    assert [step.name for step in found.graph.steps] == ["c"]
    assert list(found.graph.outputs) == ["z"]
    assert found.changes == (
        "step 'a' is left out: no requested output needs it",
        "step 'b' is left out: no requested output needs it",
    )
    assert found.graph.inputs == graph.inputs
    assert drop_dead(graph).changes == ()


def test_a_step_with_effects_stays_with_all_that_it_needs() -> None:
    graph = graph_of(
        wired("a", ADD, {"a": "x"}),
        wired("log", EFFECT, {"a": "x"}, when=["a.odd"]),
        wired("c", ADD, {"a": "x"}),
        outputs={"z": "c.y"},
    )
    assert drop_dead(graph).graph.by_name.keys() == {"a", "log", "c"}


def test_outputs_that_the_chain_does_not_have_are_all_named() -> None:
    graph = graph_of(wired("a", ADD, {"a": "x"}), outputs={"answer": "a.y"})
    with pytest.raises(ChainError, match="chain 'made' cannot give what was requested") as caught:
        drop_dead(graph, ["answr", "q"])
    assert len(caught.value.faults) == 2
    assert "did you mean 'answer'" in caught.value.faults[0]


# ── equal steps ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_steps_become_one_and_so_do_those_that_take_from_them() -> None:
    graph = graph_of(
        wired("a", ADD, {"a": "x"}),
        wired("b", ADD, {"a": "x"}),
        wired("c", ADD, {"a": "a.y"}, when=["a.odd"]),
        wired("d", ADD, {"a": "b.y"}, when=["b.odd"]),
        outputs={"p": "c.y", "q": ("d.y", "b.y")},
    )
    found = merge_equal(graph)
    assert list(found.graph.by_name) == ["a", "c"]
    assert found.graph.outputs["q"] == (Source("c", "y"), Source("a", "y"))
    assert found.parts == {"a": ("a", "b"), "c": ("c", "d")}
    assert found.changes == (
        "step 'b' is the same as 'a' and takes its results",
        "step 'd' is the same as 'c' and takes its results",
    )


@pytest.mark.parametrize(
    "other",
    [
        wired("b", ADD, {"a": "x"}, constants={"b": 1}),
        wired("b", ADD, {"a": "x", "b": "x"}),
        wired("b", ADD, {"a": ("x", "z")}),
        wired("b", add(version="2"), {"a": "x"}),
        wired("b", add(), {"a": "x"}),
        wired("b", ADD, {"a": "x"}, timeout_seconds=1.0),
        wired("b", ADD, {"a": "x"}, retry=Retry(2)),
        wired("b", ADD, {"a": "x"}, isolated=True),
        wired("b", ADD, {"a": "x"}, missing={"a": "fail"}),
        wired("b", ADD, {"a": "x"}, defaults={"a": 3}),
        wired("b", ADD, {"a": "x"}, when=["x"]),
    ],
)
def test_steps_that_differ_in_anything_stay_two(other: Step) -> None:
    graph = graph_of(wired("a", ADD, {"a": "x"}), other, outputs={"p": "a.y", "q": "b.y"})
    assert len(merge_equal(graph).graph.steps) == 2


def test_steps_with_effects_are_never_merged() -> None:
    graph = graph_of(wired("a", EFFECT, {"a": "x"}), wired("b", EFFECT, {"a": "x"}), outputs={"p": "a.y", "q": "b.y"})
    assert len(merge_equal(graph).graph.steps) == 2


def test_models_are_equal_by_name_and_version_whoever_made_their_loader() -> None:
    models = [
        Skill("net", load=lambda _, y=y: lambda a: {"y": a}, inputs={"a": int}, outputs={"y": int}, pure=True)
        for y in (1, 2)
    ]
    steps = [wired(name, model, {"a": "x"}) for name, model in zip("ab", models, strict=True)]
    assert len(merge_equal(graph_of(*steps, outputs={"p": "a.y", "q": "b.y"})).graph.steps) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, True, False),
        (1, 1.0, False),
        ([1, {"a": (2,)}], [1, {"a": (2,)}], True),
        ([1], [1, 2], False),
        ({"a": 1}, {"b": 1}, False),
        (np.zeros(2), np.zeros(2), True),
        (np.zeros(2), np.zeros(2, "float32"), False),
        (np.zeros(2), np.ones(2), False),
        (np.zeros(2), np.zeros((2, 1)), False),
    ],
)
def test_values_are_the_same_only_if_they_are_so_for_every_skill(one: Any, other: Any, same: bool) -> None:
    assert is_same_value(one, other) is same


# ── neighbours ───────────────────────────────────────────────────────────────────────────────────────────────────────


def fusion(**more: Any) -> Graph:
    return graph_of(
        wired("see", JOINS, {"a": "image"}),
        wired("read", JOINS, {"a": "text"}),
        wired("fuse", JOINS, {"a": "see.y", "b": "read.y"}, **more),
        outputs={"label": "fuse.y", "embedding": "read.y"},
    )


def test_the_largest_connected_group_becomes_one_step() -> None:
    found = join_neighbours(fusion())
    (step,) = found.graph.steps
    assert step.name == "see+read+fuse"
    assert step.inputs == {"see_a": (Source(None, "image"),), "read_a": (Source(None, "text"),)}
    assert found.graph.outputs == {"label": (Source(step.name, "fuse_y"),), "embedding": (Source(step.name, "read_y"),)}
    assert found.parts == {"see+read+fuse": ("see", "read", "fuse")}
    assert found.changes == ("steps 'see', 'read', 'fuse' became one: 'see+read+fuse'",)
    assert carry_out(found.graph, {"image": 3, "text": 4}) == {"label": 7, "embedding": 4}


def test_no_group_is_joined_around_a_step_that_stays_outside() -> None:
    graph = graph_of(
        wired("a", JOINS, {"a": "x"}),
        wired("between", ADD, {"a": "a.y"}),
        wired("c", JOINS, {"a": "a.y", "b": "between.y"}),
        outputs={"y": "c.y"},
    )
    assert join_neighbours(graph).graph is graph


def test_two_groups_never_need_each_other() -> None:
    other = add("k", join=lambda steps: join(steps))
    graph = graph_of(
        wired("a", JOINS, {"a": "x"}),
        wired("b", other, {"a": "x"}),
        wired("c", JOINS, {"a": "a.y", "b": "b.y"}),
        wired("d", other, {"a": "b.y", "b": "a.y"}),
        outputs={"y": "c.y", "z": "d.y"},
    )
    found = join_neighbours(graph).graph
    assert [step.name for step in found.steps] == ["b", "a+c", "d"]
    assert carry_out(found, {"x": 5}) == carry_out(graph, {"x": 5})


def test_siblings_are_joined_only_when_asked_for() -> None:
    graph = graph_of(
        wired("a", JOINS, {"a": "x"}),
        wired("b", JOINS, {"a": "x"}),
        wired("c", ADD, {"a": "a.y", "b": "b.y"}),
        outputs={"y": "c.y"},
    )
    assert join_neighbours(graph).graph is graph
    found = join_neighbours(graph, siblings=True).graph
    assert [step.name for step in found.steps] == ["a+b", "c"]
    assert carry_out(found, {"x": 5}) == {"y": 10}


@pytest.mark.parametrize(
    "more",
    [
        {"timeout_seconds": 1.0},
        {"retry": Retry(2)},
        {"isolated": True},
        {"when": ["see.odd"]},
    ],
)
def test_steps_with_other_policies_stay_apart(more: dict[str, Any]) -> None:
    assert len(join_neighbours(fusion(**more)).graph.steps) == 3


def test_steps_that_may_be_absent_at_different_times_stay_apart() -> None:
    graph = fusion(missing={"a": "zeros", "b": "zeros"})
    lacking = Graph(graph.name, graph.inputs, ("image",), graph.steps, graph.outputs)
    assert len(join_neighbours(lacking).graph.steps) == 2
    assert presences(lacking)["see"] != presences(lacking)["fuse"]
    strict = fusion()
    together = Graph(strict.name, strict.inputs, ("image",), strict.steps, {"label": strict.outputs["label"]})
    assert [step.name for step in join_neighbours(together).graph.steps] == ["read", "see+fuse"]
    for inputs in ({"text": 1}, {"text": 1, "image": 2}):
        assert carry_out(join_neighbours(together).graph, inputs) == carry_out(together, inputs)


def test_where_a_join_does_not_take_all_the_largest_part_that_it_takes_is_joined() -> None:
    def at_most_two(steps: Any) -> Skill | None:
        return join(steps) if len(steps) <= 2 else None

    skill = add("p", join=at_most_two)
    graph = graph_of(
        *(wired(f"s{i}", skill, {"a": f"s{i - 1}.y" if i else "x"}, constants={"b": i}) for i in range(5)),
        outputs={"y": "s4.y"},
    )
    found = join_neighbours(graph)
    assert [step.name for step in found.graph.steps] == ["s0+s1", "s2+s3", "s4"]
    assert carry_out(found.graph, {"x": 5}) == {"y": 15}


def test_a_long_group_has_a_short_name() -> None:
    graph = graph_of(
        *(wired(f"s{i}", JOINS, {"a": f"s{i - 1}.y" if i else "x"}) for i in range(10)), outputs={"y": "s9.y"}
    )
    assert [step.name for step in join_neighbours(graph).graph.steps] == ["s0+8+s9"]


def test_a_join_that_fails_leaves_the_steps_apart_and_is_reported() -> None:
    def broken(steps: Any) -> Skill:
        raise ValueError("no such operator")

    graph = graph_of(
        wired("a", add("b", join=broken), {"a": "x"}),
        wired("b", add("b", join=broken), {"a": "a.y"}),
        outputs={"y": "b.y"},
    )
    found = join_neighbours(graph)
    assert found.graph is graph
    assert found.changes == ("steps 'a', 'b' stay apart, joining them failed: ValueError: no such operator",)


def test_a_joined_skill_without_the_ports_that_were_asked_for_is_not_used() -> None:
    def lacking(steps: Any) -> Skill:
        return Skill("odd", call=dict, pure=True)

    skill = add("b", join=lacking)
    graph = graph_of(wired("a", skill, {"a": "x"}), wired("b", skill, {"a": "a.y"}), outputs={"y": "b.y"})
    assert join_neighbours(graph).changes == (
        "steps 'a', 'b' stay apart, joining them failed: the joined skill 'odd' lacks b_y, a_a",
    )


def test_steps_in_a_circle_have_no_order() -> None:
    with pytest.raises(ChainError, match="steps that need one another in a circle: a, b; cut one of the edges"):
        ordered([wired("a", ADD, {"a": "b.y"}), wired("b", ADD, {"a": "a.y"})])


def test_what_a_join_is_told_names_every_input_of_the_joined_skill_once() -> None:
    told: list[JoinedStep] = []

    def curious(steps: Any) -> Skill | None:
        told.extend(steps)
        return None

    skill = add("c", join=curious)
    join_neighbours(
        graph_of(wired("a", skill, {"a": "x", "b": "x"}), wired("b", skill, {"a": "a.y"}), outputs={"y": "b.y"})
    )
    assert told[0].inputs == {"a": (None, "a_a"), "b": (None, "a_b")}
    assert told[1].inputs == {"a": ("a", "y")}
    assert [step.outputs for step in told[:2]] == [(), ("y",)]


# ── all together ─────────────────────────────────────────────────────────────────────────────────────────────────────

SKILLS = (ADD, JOINS, JOINS, JOINS, EFFECT, add("k", join=lambda steps: join(steps)))

POLICIES = (None, None, "skip", "skip", "zeros", "default")


@st.composite
def graphs(draw: st.DrawFn, policies: tuple[str | None, ...] = POLICIES) -> Graph:
    """Any chain of the toy skills: conditions, alternatives, policies, constants, optional inputs."""
    names = ["x", "y", "z"]
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 8))):
        if steps and draw(st.integers(0, 3)) == 0:  # a twin
            steps.append(replace(draw(st.sampled_from(steps)), name=f"s{number}"))
            names.append(f"s{number}.y")
            continue
        likely = names[-2:] * 2 + names
        sources = st.lists(st.sampled_from(likely), min_size=1, max_size=1 + (number % 3 == 0), unique=True).map(tuple)
        wires: dict[str, tuple[str, ...]] = {"a": draw(sources)}
        more: dict[str, Any] = {}
        kind = draw(st.sampled_from(["wired", "constant", "left out", "left out"]))
        if kind == "wired":
            wires["b"] = draw(sources)
        elif kind == "constant":
            more["constants"] = {"b": draw(st.integers(0, 2))}
        for port in wires:
            policy = draw(st.sampled_from(policies))
            if policy == "default":
                more.setdefault("defaults", {})[port] = draw(st.integers(0, 2))
            elif policy is not None:
                more.setdefault("missing", {})[port] = policy
        flags = [f"{word}{step.name}.odd" for step in steps for word in ("", "not ")]
        when = [draw(st.sampled_from(flags))] if flags and draw(st.integers(0, 4)) == 0 else []
        steps.append(wired(f"s{number}", draw(st.sampled_from(SKILLS)), wires, when, **more))
        names.append(f"s{number}.y")
    ends = draw(st.lists(st.sampled_from(names[3:]), min_size=1, max_size=5, unique=True))
    optional = tuple(draw(st.sets(st.sampled_from("xyz"))))
    graph = graph_of(*steps, outputs={f"o{i}": end for i, end in enumerate(ends)}, optional=optional)
    return Graph(graph.name, {"x": int, "y": int, "z": int}, optional, graph.steps, graph.outputs)


def all_inputs(graph: Graph) -> list[dict[str, int]]:
    """What a caller may give: everything, and everything with one or all of the optional inputs left out."""
    full = {"x": 3, "y": 4, "z": 8}
    left_out = [(), *((name,) for name in graph.optional), graph.optional]
    return [{name: value for name, value in full.items() if name not in gone} for gone in left_out]


@settings(max_examples=150, deadline=None)
@given(graph=graphs(), siblings=st.booleans())
def test_no_pass_changes_what_a_chain_gives(graph: Graph, siblings: bool) -> None:
    dead = drop_dead(graph).graph
    equal = merge_equal(dead).graph
    joined = join_neighbours(equal, siblings=siblings).graph
    assert [step.name for step in ordered(joined.steps)] == [step.name for step in joined.steps]
    for inputs in all_inputs(graph):
        expected = carry_out(graph, inputs)
        assert carry_out(dead, inputs) == expected
        assert carry_out(equal, inputs) == expected
        assert carry_out(joined, inputs) == expected
