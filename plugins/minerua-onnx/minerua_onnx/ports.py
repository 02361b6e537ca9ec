"""From what an ONNX model says of its inputs and outputs to ports: names, dtypes, extents."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from minerua import TensorSpec

if TYPE_CHECKING:
    import onnx

Port = type | TensorSpec

DTYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "object",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""ONNX element type → numpy's name, for those that numpy has itself; 8 are texts."""


def identifier(name: str) -> str:
    """Returns a Python identifier for a name in an ONNX model.

    Letters, digits and `_` of ASCII stay, everything else becomes `_`; what then begins with a digit, is empty or is a
    word of Python gets a `_` before it.

    Example:
        >>> identifier("batch"), identifier("input.1"), identifier("0"), identifier("class")
        ('batch', 'input_1', '_0', '_class')
    """
    found = re.sub(r"[^0-9A-Za-z_]", "_", name)
    return f"_{found}" if not found or found[0].isdigit() or keyword.iskeyword(found) else found


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """Returns name → identifier, each different: of those that would be equal the second gets `_2`, and so on.

    Example:
        >>> identifiers(["x.1", "x:1", "y"])
        {'x.1': 'x_1', 'x:1': 'x_1_2', 'y': 'y'}
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        base = identifier(name)
        candidate, number = base, 2
        while candidate in taken:
            candidate, number = f"{base}_{number}", number + 1
        found.setdefault(name, candidate)
        taken.add(candidate)
    return found


def symbols_of(values: Iterable[onnx.ValueInfoProto]) -> dict[str, str]:
    """Returns the names of extents in some values → how ports call them."""
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
    return identifiers(dict.fromkeys(dim.dim_param for dim in dims if dim.dim_param))


def port_of(value: onnx.ValueInfoProto, name: str, symbols: Mapping[str, str]) -> Port:
    """Returns a port: a `TensorSpec`, or any array where the model does not even tell the number of axes.

    An extent of which nothing is known is called after its place: `"x_0"` is the first of port `x`.

    Args:
        value: An input or output that `port_faults` finds nothing wrong with.
        name: The port's.
        symbols: From `symbols_of`.
    """
    import numpy as np

    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return np.ndarray
    shape: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.dim_param:
            shape.append(symbols[dim.dim_param])
        else:
            shape.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else f"{name}_{axis}")
    return TensorSpec(name, tuple(shape), DTYPES[tensor.elem_type])


def port_faults(value: onnx.ValueInfoProto, side: str) -> list[str]:
    """Returns what keeps an input or output from being a port."""
    import onnx

    dims = value.type.tensor_type.shape.dim
    if not all(isinstance(text, str) for text in (value.name, *(dim.dim_param for dim in dims))):
        return [f"{side} {value.name!r} or one of its extents has a name that is not UTF-8; the file is damaged"]
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        found = (kind or "value of no type").removesuffix("_type").replace("_", " ")
        return [f"{side} {value.name!r} is a {found}; only tensors can pass between skills"]
    if value.type.tensor_type.elem_type in DTYPES:
        return []
    number = value.type.tensor_type.elem_type
    known = onnx.TensorProto.DataType.values()
    dtype = onnx.TensorProto.DataType.Name(number).lower() if number in known else f"type {number}"
    return [f"{side} {value.name!r} is a tensor of {dtype}, which numpy does not have; cast it inside the model"]


def is_batchable(ports: Iterable[Port]) -> bool:
    """Whether all ports have rows: the same named extent as the first one, and nowhere else."""
    shapes = [port.shape if isinstance(port, TensorSpec) else () for port in ports]
    firsts = {shape[0] if shape else None for shape in shapes}
    if len(firsts) != 1:
        return False
    (first,) = firsts
    return isinstance(first, str) and all(first not in shape[1:] for shape in shapes)
