"""Small ONNX models, made by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from minerua_onnx import minerua_skills
from onnx import TensorProto, helper

from minerua.values import SkillContext

FAMILIES = {skill.name: skill for skill in minerua_skills()}


def value(name, shape=("batch", 4), dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def weights(name, *shape, seed=0):
    array = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return helper.make_tensor(name, TensorProto.FLOAT, shape, array.tobytes(), raw=True)


class Workshop:
    """Writes models into a folder and makes skills of them."""

    def __init__(self, folder):
        self.folder, self.context = folder, SkillContext(folder)

    def write(self, name, nodes, inputs, outputs, initializers=(), *, opset=20, ir=10, **more):
        graph = helper.make_graph(nodes, name, inputs, outputs, list(initializers))
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, **more)
        onnx.save(proto, self.folder / f"{name}.onnx")
        return proto

    def linear(self, name="linear", *, rows="batch", seed=0, **more):
        """`x` → `y` = relu(x · w), four by four, and `z` = -y."""
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["inner"], name="node"),
            helper.make_node("Relu", ["inner"], ["y"]),
            helper.make_node("Neg", ["y"], ["z"]),
        ]
        ports = [value("x", (rows, 4))], [value("y", (rows, 4)), value("z", (rows, 4))]
        self.write(name, nodes, *ports, [weights("w", 4, 4, seed=seed)], **more)
        return self.skill(name)

    def sum(self, name="sum", *, rows="batch", **more):
        """`a`, `b` → `total` = a + b."""
        ports = [value("a", (rows, 4)), value("b", (rows, 4))], [value("total", (rows, 4))]
        self.write(name, [helper.make_node("Add", ["a", "b"], ["total"])], *ports, **more)
        return self.skill(name)

    def skill(self, name, **settings):
        return FAMILIES["onnx-model"].configure({"file": f"{name}.onnx", **settings}, self.context)

    def edge(self, name, **settings):
        return FAMILIES[name].configure(settings, self.context)


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture(scope="session")
def rows():
    return np.random.default_rng(7).standard_normal((5, 4), np.float32)
