"""Neighbours as one graph: the same results, whatever is connected to what; and what cannot be joined."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import pytest
from minerua_onnx.joining import _converted, _describe, join
from onnx import TensorProto, helper

from minerua import Skill, TensorSpec
from minerua.values import JoinedStep, Setup

ONE = Setup(threads=1)


def step(name, skill, inputs, outputs=()):
    return JoinedStep(name, skill, inputs, tuple(outputs))


def run_apart(steps, given):
    """Runs the steps one after the other."""
    found = {}
    for one in steps:
        values = {p: given[n] if s is None else found[s, n] for p, (s, n) in one.inputs.items()}
        found |= {(one.name, port): array for port, array in one.skill.load(ONE)(**values).items()}
    return {f"{one.name}_{port}": found[one.name, port] for one in steps for port in one.outputs}


def check_equal(steps, given):
    """Joins the steps, checks that nothing changes, and returns the joined skill."""
    skill = join(steps)
    assert skill is not None
    expected = run_apart(steps, given)
    for setup in (ONE, Setup(threads=2)):
        found = skill.load(setup)(**given)
        assert found.keys() == expected.keys() == skill.outputs.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, atol=1e-5)
    return skill


def diamond(workshop):
    """Two models beside one another into a third."""
    return [
        step("see", workshop.linear("v", seed=1), {"x": (None, "image")}),
        step("read", workshop.linear("l", seed=2), {"x": (None, "text")}, ["z"]),
        step("fuse", workshop.sum(), {"a": ("see", "y"), "b": ("read", "y")}, ["total"]),
    ]


def test_a_diamond_is_one_model_with_the_ports_that_were_asked_for(workshop, rows):
    skill = check_equal(diamond(workshop), {"image": rows, "text": rows[::-1].copy()})
    assert skill.inputs == {name: TensorSpec(name, ("batch", 4), "float32") for name in ("image", "text")}
    assert skill.outputs == {name: TensorSpec(name, ("batch", 4), "float32") for name in ("read_z", "fuse_total")}
    assert (skill.name, skill.pure, skill.batchable, skill.loaded_bytes) == ("see-read-fuse", True, True, 128)
    assert skill.setups == workshop.skill("v").setups


def test_an_output_can_be_used_inside_and_outside(workshop, rows):
    steps = [
        step("first", workshop.linear("a", seed=1), {"x": (None, "x")}, ["y"]),
        step("then", workshop.linear("b", seed=2), {"x": ("first", "y")}, ["y", "z"]),
    ]
    check_equal(steps, {"x": rows})


def test_an_input_can_serve_several_models_and_one_model_twice(workshop, rows):
    steps = [
        step("one", workshop.linear("a", seed=1), {"x": (None, "x")}),
        step("two", workshop.linear("b", seed=2), {"x": (None, "x")}),
        step("both", workshop.sum(), {"a": ("one", "y"), "b": ("two", "z")}, ["total"]),
        step("same", workshop.skill("sum"), {"a": (None, "x"), "b": (None, "x")}, ["total"]),
    ]
    assert list(check_equal(steps, {"x": rows}).inputs) == ["x"]


def test_a_joined_model_can_be_joined_again_and_sent_away(workshop, rows):
    inner = join(diamond(workshop))
    outer = [
        step("all", inner, {"image": (None, "image"), "text": (None, "text")}, ["read_z"]),
        step("last", workshop.linear("c", seed=3), {"x": ("all", "fuse_total")}, ["y"]),
    ]
    skill = pickle.loads(pickle.dumps(check_equal(outer, {"image": rows, "text": rows})))
    assert skill.load(ONE)(image=rows, text=rows)["last_y"].shape == (5, 4)


def test_the_version_depends_on_parts_names_and_wiring(workshop):
    steps = diamond(workshop)
    version = join(steps).version
    steps = diamond(workshop)
    assert join(steps).version == version
    swapped = step("fuse", steps[2].skill, {"a": ("read", "y"), "b": ("see", "y")}, ["total"])
    renamed = [step("look", steps[0].skill, steps[0].inputs, ["y"])]
    others = [join([*steps[:2], swapped]).version, join([*steps[:2], step("fuse", steps[2].skill, steps[2].inputs)])]
    assert version not in [others[0], others[1].version, join(renamed).version]
    workshop.linear("v", seed=9)
    assert join([step("see", workshop.skill("v"), steps[0].inputs), *steps[1:]]).version != version


def test_equal_extents_get_one_name_and_different_ones_stay_apart(workshop, rows):
    steps = [
        step("a", workshop.linear("a", rows="batch"), {"x": (None, "x")}, ["y"]),
        step("b", workshop.linear("b", rows="n"), {"x": ("a", "y")}, ["y"]),
        step("c", workshop.linear("c", rows="batch"), {"x": (None, "other")}, ["y"]),
    ]
    skill = check_equal(steps, {"x": rows, "other": rows[:2].copy()})
    assert skill.outputs["a_y"].shape == skill.outputs["b_y"].shape == ("batch", 4)
    assert skill.outputs["c_y"].shape == skill.inputs["other"].shape == ("c_batch", 4)
    assert not skill.batchable


def test_a_count_takes_the_place_of_the_names_it_is_connected_to(workshop, rows):
    steps = [
        step("a", workshop.linear("a"), {"x": (None, "x")}),
        step("b", workshop.linear("b", rows=1), {"x": ("a", "y")}, ["y"]),
    ]
    assert check_equal(steps, {"x": rows[:1]}).inputs["x"].shape == (1, 4)


def test_models_of_different_opsets_and_ir_versions_meet_at_the_newest(workshop, rows):
    steps = [
        step("old", workshop.linear("old", opset=11, ir=5), {"x": (None, "x")}),
        step("new", workshop.linear("new", opset=20, ir=10), {"x": ("old", "y")}, ["y"]),
    ]
    proto = check_equal(steps, {"x": rows}).load.model.proto()
    assert (proto.ir_version, [(one.domain, one.version) for one in proto.opset_import]) == (10, [("", 20)])


def test_weights_that_branches_of_a_condition_use_are_found_again(workshop, rows):
    def branch(op):
        out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, ("batch", 4))
        return helper.make_graph([helper.make_node(op, ["x", "w"], ["inner"])], op, [], [out])

    then, otherwise = branch("Add"), branch("Sub")
    otherwise.node[0].output[0] = otherwise.output[0].name = "other"
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=otherwise),
    ]
    floats = [
        helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0]),
    ]
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4))
    workshop.write("if", nodes, [port], [out], floats)
    steps = [
        step("a", workshop.skill("if"), {"x": (None, "x")}),
        step("b", workshop.skill("if"), {"x": ("a", "y")}, ["y"]),
    ]
    for given in (np.abs(rows), -np.abs(rows)):
        check_equal(steps, {"x": given})


def test_local_functions_of_one_name_do_not_meet(workshop, rows):
    steps = []
    for number, op in enumerate(("Neg", "Exp")):
        body = [helper.make_node(op, ["i"], ["o"])]
        function = helper.make_function("mine", "act", ["i"], ["o"], body, [helper.make_opsetid("", 20)])
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 4)) for name in "xy"]
        nodes = [helper.make_node("act", ["x"], ["y"], domain="mine")]
        proto = workshop.write(f"f{number}", nodes, value[:1], value[1:], functions=[function])
        proto.opset_import.append(helper.make_opsetid("mine", 1))
        onnx.save(proto, workshop.folder / f"f{number}.onnx")
        steps.append(step(f"s{number}", workshop.skill(f"f{number}"), {"x": (None, "x")}, ["y"]))
    check_equal(steps, {"x": rows})


def test_metadata_of_all_models_is_kept_under_their_steps(workshop):
    proto = workshop.write("m", [helper.make_node("Neg", ["x"], ["y"])], *_ports())
    for number in (1, 2):
        helper.set_model_props(proto, {"author": str(number)})
        onnx.save(proto, workshop.folder / f"m{number}.onnx")
    steps = [step(f"s{n}", workshop.skill(f"m{n}"), {"x": (None, "x")}, ["y"]) for n in (1, 2)]
    found = {entry.key: entry.value for entry in join(steps).load.model.proto().metadata_props}
    assert found == {"s1.author": "1", "s2.author": "2"}


def _ports():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 4)) for name in "xy")
    return [x], [y]


# ── what cannot be joined ────────────────────────────────────────────────────────────────────────────────────────────


def test_steps_that_are_not_all_models_of_one_setup_stay_apart(workshop):
    one, other = workshop.linear("a"), workshop.linear("b")
    stranger = Skill("stranger", lambda x: {"y": x}, one.inputs, {"y": one.outputs["y"]})
    for second in (stranger, workshop.skill("b", optimization="none"), workshop.skill("b", threads=1)):
        assert join([step("s", one, {"x": (None, "x")}), step("t", second, {"x": ("s", "y")}, ["y"])]) is None
    assert join([step("s", one, {}), step("t", other, {"x": ("s", "y")}, ["y"])]) is None


def test_shapes_and_dtypes_that_do_not_fit_stay_apart(workshop):
    one = workshop.linear("a", rows=2)
    workshop.write("i", [helper.make_node("Cast", ["x"], ["y"], to=1)], [_int("x")], [_ports()[1][0]])
    for other in (workshop.linear("b", rows=3), workshop.skill("i")):
        assert join([step("s", one, {"x": (None, "x")}), step("t", other, {"x": ("s", "y")}, ["y"])]) is None


def _int(name):
    return helper.make_tensor_value_info(name, TensorProto.INT64, ("batch", 4))


def test_opsets_that_nobody_can_convert_stay_apart(workshop):
    for version in (1, 2):
        nodes = [helper.make_node("Neg", ["x"], ["y"])]
        proto = workshop.write(f"d{version}", nodes, *_ports())
        proto.opset_import.append(helper.make_opsetid("com.example", version))
        onnx.save(proto, workshop.folder / f"d{version}.onnx")
    steps = [step(f"s{v}", workshop.skill(f"d{v}"), {"x": (None, "x")}, ["y"]) for v in (1, 2)]
    assert join(steps) is None
    protos = [one.skill.load.model.proto() for one in steps]
    with pytest.raises(ValueError, match="of domains that onnx cannot convert"):
        _converted(protos)


def test_an_output_of_unknown_rank_stays_apart(workshop):
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    workshop.write("u", [helper.make_node("Neg", ["x"], ["y"])], _ports()[0], [y])
    assert join([step("s", workshop.skill("u"), {"x": (None, "x")}, ["y"])]) is None


def test_a_port_of_unknown_rank_cannot_stand_in_a_merged_graph():
    with pytest.raises(ValueError, match="x has no described shape"):
        _describe(onnx.GraphProto(), [("x", np.ndarray)], [])
