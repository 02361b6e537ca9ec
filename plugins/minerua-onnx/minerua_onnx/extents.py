"""Which extents of several models are the same count once the models are connected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from minerua import TensorSpec
from minerua.values import JoinedStep
from minerua_onnx.ports import Port

Extent = int | tuple[str, str]
"""A count, or a name with the step that has it: `("see", "batch")`."""


@final
class Extents:
    """Extents that were found to be equal, each group under one name."""

    def __init__(self) -> None:
        self._same: dict[Extent, Extent] = {}
        self._names: dict[Extent, str] = {}

    @classmethod
    def of(cls, steps: Sequence[JoinedStep]) -> Extents | None:
        """Returns the extents of connected steps; `None` where two ports that are connected do not fit."""
        found = cls()
        for one, other in _connected(steps):
            if not found._connect(*one, *other):
                return None
        for step in steps:
            for port in (*step.skill.inputs.values(), *step.skill.outputs.values()):
                found._name(step, port)
        return found

    def port(self, step: JoinedStep, port: Port, name: str) -> Port:
        """Returns a port of a step as a port of all of them, under another name."""
        if not isinstance(port, TensorSpec):
            return port
        roots = [self._root(_extent(step, extent)) for extent in port.shape]
        return TensorSpec(name, tuple(r if isinstance(r, int) else self._names[r] for r in roots), port.dtype)

    def _connect(self, one: JoinedStep, source: Port, other: JoinedStep, target: Port) -> bool:
        if not isinstance(source, TensorSpec) or not isinstance(target, TensorSpec):
            return False
        if source.dtype != target.dtype or len(source.shape) != len(target.shape):
            return False
        pairs = zip(source.shape, target.shape, strict=True)
        return all(self._unite(_extent(one, a), _extent(other, b)) for a, b in pairs)

    def _unite(self, one: Extent, other: Extent) -> bool:
        a, b = self._root(one), self._root(other)
        if a == b:
            return True
        if isinstance(a, int) and isinstance(b, int):
            return False
        child, parent = (a, b) if not isinstance(a, int) else (b, a)  # a count is always the root
        self._same[child] = parent
        return True

    def _root(self, extent: Extent) -> Extent:
        while extent in self._same:
            extent = self._same[extent]
        return extent

    def _name(self, step: JoinedStep, port: Port) -> None:
        """Names the extents of a port: as the step does, unless another group already has that name."""
        for extent in port.shape if isinstance(port, TensorSpec) else ():
            root = self._root(_extent(step, extent))
            if isinstance(root, int) or root in self._names:
                continue
            name = str(extent)
            while name in self._names.values():
                name = f"{step.name}_{name}"
            self._names[root] = name


def _extent(step: JoinedStep, extent: int | str) -> Extent:
    return extent if isinstance(extent, int) else (step.name, extent)


Place = tuple[JoinedStep, Port]


def _connected(steps: Sequence[JoinedStep]) -> Iterator[tuple[Place, Place]]:
    """Yields every two ports that hold the same array: an output and an input, or two inputs."""
    by_name = {step.name: step for step in steps}
    first: dict[str, Place] = {}
    for step in steps:
        for port, (source, name) in step.inputs.items():
            here = (step, step.skill.inputs[port])
            if source is not None:
                yield (by_name[source], by_name[source].skill.outputs[name]), here
            elif name in first:
                yield first[name], here
            else:
                first[name] = here
