"""What the passes on CUDA tensors refuse, and the sentences for it: all faults of all groups at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minerua.errors import KernelError
from minerua.kernels.arrays import DTYPES, dtype_name, is_tensor
from minerua.kernels.cuda_tables import Group
from minerua.kernels.pass_checks import Faults
from minerua.kernels.sources import Source


class GroupFaults:
    """Collects what is wrong with the arguments of one pass over groups; `refuse` says all of it.

    Args:
        operation: The pass, for the message.
        groups: What it was given.
    """

    def __init__(self, operation: str, groups: Sequence[Group]) -> None:
        self.operation = operation
        self.found: list[str] = [] if len(groups) else ["there are 0 groups; pass at least one"]
        self.of_groups = [Faults(operation) for _ in groups]
        self.groups = groups
        self.device = _first_device(groups)
        self.refused: set[int] = set()
        """Groups whose sources are at fault: what belongs to them cannot be judged."""
        for g, group in enumerate(groups):
            self._look_at(g, group)

    def of_each(self, name: str, given: Sequence[Any] | None) -> GroupFaults:
        """Looks whether there is one thing for each group."""
        if given is not None and len(given) != len(self.groups):
            self.found.append(f"there are {len(given)} {name} for {len(self.groups)} groups; pass one for each")
        return self

    def each(self, look: Callable[[Faults, Any], object], given: Sequence[Any] | None) -> GroupFaults:
        """Looks at what is given for each group, unless there is not one for each."""
        if given is None or len(given) != len(self.groups):
            return self
        for g, (own, one) in enumerate(zip(self.of_groups, given, strict=True)):
            if g not in self.refused:
                look(own, one)
        return self

    def refuse(self) -> None:
        """Raises everything that was found.

        Raises:
            KernelError: Something was; lists all faults, with the group where there are several.
        """
        found = list(self.found)
        for g, own in enumerate(self.of_groups):
            found += [f"group {g}: {fault}" if len(self.groups) > 1 else fault for fault in own.found]
        if found:
            raise KernelError(f"{self.operation} cannot take these arguments ({len(found)} faults):", found)

    def _look_at(self, g: int, group: Group) -> None:
        own = self.of_groups[g]
        own.count = len(group.sources)
        if not own.count:
            own.found.append("there are 0 sources; pass at least one")
        named = [(f"source {k}", source) for k, source in enumerate(group.sources)]
        for name, source in [*named, *([("the base", group.base)] if group.base is not None else [])]:
            own.found += _source_faults(name, source, self.device)
            if not own.found and source.shape != group.sources[0].shape:
                shapes = f"{tuple(source.shape)}, source 0 has {tuple(group.sources[0].shape)}"
                own.found.append(f"{name} has shape {shapes}; they must be alike")
        if own.found:
            self.refused.add(g)
        else:
            own.size = group.size


def check_groups(operation: str, groups: Sequence[Group]) -> GroupFaults:
    """Returns what is wrong with the sources of all groups."""
    return GroupFaults(operation, groups)


def check_numbers(faults: GroupFaults, given: Sequence[Any]) -> list[np.ndarray]:
    """Returns each group's coefficients as float32 of shape (R, K)."""
    numbers: list[np.ndarray] = []
    faults.each(lambda own, one: numbers.append(own.coefficients(one)), given)
    return numbers


def check_outs(faults: GroupFaults, outs: Sequence[Any]) -> GroupFaults:
    """Looks at the tensors that results go to."""

    def look(own: Faults, out: Any) -> None:
        own.found += _out_faults(out, own.size, faults.device)

    return faults.of_each("outs", outs).each(look, outs)


def check_weights(own: Faults, weights: Any) -> None:
    """Looks at what is done with the kept parts of a group."""
    own.of_numbers("factors", weights.factors)
    own.of_numbers("votes", weights.votes, optional=True)
    own.of_numbers("shares", weights.shares, optional=True)
    own.of_numbers("scale", [weights.scale], count=1)
    if weights.shares is not None and weights.votes is None:
        own.found.append("shares are given without votes; pass votes too, or shares=None")


def is_resident(value: Any) -> bool:
    """Whether it is a CUDA tensor."""
    return is_tensor(value) and bool(value.is_cuda)


def tensor_faults(name: str, tensor: Any, device: Any) -> Iterator[str]:
    """Yields why a tensor cannot be read or written beside sources on a device."""
    if dtype_name(tensor.dtype) not in DTYPES:
        yield f"{name} has dtype {tensor.dtype}; convert it to one of {', '.join(DTYPES)}"
    if not tensor.is_contiguous():
        yield f"{name} is not contiguous; copy it with contiguous()"
    if tensor.device != device:
        yield f"{name} lies on {tensor.device}, the first source on {device}; move it there"


def _source_faults(name: str, source: Any, device: Any) -> Iterator[str]:
    if not isinstance(source, Source) or not is_resident(source.array):
        yield f"{name} is a {_kind(source)}; pass a Source of a CUDA tensor"
        return
    array: Any = source.array
    yield from tensor_faults(name, array, device)
    if source.rows is not None or source.extra is not None:
        yield f"{name} chooses rows, which passes on a device cannot; choose them with torch.index_select first"
    if (source.left is None) != (source.right is None):
        yield f"{name} has one low-rank factor without the other; pass left and right, or neither"
    elif source.left is not None and source.right is not None:
        columns = max(1, array.shape[-1]) if array.ndim else 1
        rank = len(source.right)
        yield from _factor_faults(f"{name}'s left", source.left, (array.numel() // columns, rank), array)
        yield from _factor_faults(f"{name}'s right", source.right, (rank, columns), array)


def _factor_faults(name: str, factor: Any, shape: tuple[int, int], array: Any) -> Iterator[str]:
    if not is_resident(factor) or factor.device != array.device:
        yield f"{name} is not on {array.device}, where the stored tensor is; move it there"
    elif tuple(factor.shape) != shape or dtype_name(factor.dtype) != "float32" or not factor.is_contiguous():
        found = f"{factor.dtype} of shape {tuple(factor.shape)}"
        yield f"{name} is {found}; a factor on a device must be contiguous float32 of shape {shape}"


def _out_faults(out: Any, size: int, device: Any) -> Iterator[str]:
    if not is_resident(out):
        yield f"the result is to go to a {_kind(out)}; pass a CUDA tensor"
        return
    yield from tensor_faults("the tensor for the result", out, device)
    if out.numel() != size:
        yield f"the tensor for the result has {out.numel()} elements, the sources have {size}; make it as large"


def _first_device(groups: Sequence[Group]) -> Any:
    every = (source for group in groups for source in group.sources)
    arrays: Iterator[Any] = (source.array for source in every if isinstance(source, Source))
    return next((array.device for array in arrays if is_resident(array)), None)


def _kind(value: Any) -> str:
    array = value.array if isinstance(value, Source) else value
    return f"{array.device} tensor" if is_tensor(array) else type(array).__name__
