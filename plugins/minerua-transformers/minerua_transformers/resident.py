"""One base in memory, and the children that it becomes: one in its place, or several beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import numpy as np

from minerua.errors import CheckpointError
from minerua.values import Change
from minerua_transformers.grouping import Grouping
from minerua_transformers.loading import Loaded, borrowed, torch_dtype
from minerua_transformers.ways import Stack, Way, way_of

if TYPE_CHECKING:
    import torch

BLOCK_VALUES = 1 << 21
"""Values of a tensor that are computed at a time. As `minerua.weights.materialise` has it: sums of blocks of other
sizes may differ in their last bits."""


@final
class Resident:
    """A language model whose weights can be those of a child, or the base's with several children beside them.

    Args:
        loaded: The base.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.generation = 0
        self._changes: Sequence[Mapping[str, Change]] = ()
        self._in_place: Mapping[str, Change] = {}
        self._ways: dict[Any, Way] | None = {}
        self._grouping: Grouping | None = None
        self._bases: dict[int, tuple[np.ndarray, torch.Tensor]] = {}
        self._stored: dict[str, torch.Tensor] = {}
        self._scales: dict[Any, bool] = {}
        self._ran: set[Any] = set()
        self.is_small = True
        """Whether children change small tensors alone: each is in place in no time, and shares no product with any."""

    @property
    def is_joint(self) -> bool:
        """Whether several children can be computed at a time."""
        return self._ways is not None

    def settle(self, changes: Sequence[Mapping[str, Change]]) -> None:
        """Becomes ready for the children of a generation; what was made for the last one is given up.

        Args:
            changes: Per child, tensor name → change.

        Raises:
            CheckpointError: If a change is of a tensor that the model has no place for.
        """
        self._check(changes)
        self.generation += 1
        self._changes, self._ran = changes, set()
        if len(changes) == 1:
            self._ways = {}
            self._become(changes[0])
            return
        self._become({})
        self._ways = self._found_ways(changes)

    @contextmanager
    def child(self, number: int) -> Iterator[None]:
        """Has the weights of one child in place."""
        ways, self._ways = self._ways, {}
        self._become(self._changes[number])
        try:
            yield
        finally:
            self._ways = ways
            if len(self._changes) > 1:
                self._become({})

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Computes changed layers with each row's own child, for the rows that `assign` names."""
        layers = tuple(self._ways or {})
        for layer in layers:
            layer.forward = self._forward_of(layer)  # beside the class's own, which ways call
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward
            self._grouping = None

    def assign(self, children: Sequence[int]) -> None:
        """Is told the child of each row of the batch that comes next."""
        self._grouping = Grouping(children, self.loaded.module.device)

    def all_ways_ran(self) -> bool:
        """Tells whether every changed layer was called in the batches since the children are there.

        A model that reads a layer's weights without calling it would take the base's.
        """
        if not self._ways or len(self._ran) == len(self._ways):
            return True
        self._ways = None
        warnings.warn("a changed layer is never called by this model: children are computed one by one", stacklevel=2)
        return False

    # ── beside the base ──────────────────────────────────────────────────────────────────────────────────────────────

    def _forward_of(self, layer: Any) -> Callable[[Any], Any]:
        ways = self._ways or {}
        way = ways[layer]

        def forward(inputs: Any) -> Any:
            self._ran.add(layer)
            if self._grouping is None:
                raise RuntimeError("nobody has said which children the rows of this batch belong to")
            return way(inputs, self._grouping)

        return forward

    def _found_ways(self, changes: Sequence[Mapping[str, Change]]) -> dict[Any, Way] | None:
        """Returns how every changed layer is computed; `None` if some layer can only be computed child by child."""
        names = [name for name in self.loaded.tensors if any(name in one for one in changes)]
        stacks = {name: self._stack(name, changes) for name in names}
        self.is_small = all(stack.is_small for stack in stacks.values())
        found: dict[Any, Way] = {}
        for layer, own in self._layers(stacks).items():
            way = way_of(layer, own, self._scales)
            if way is None:
                warnings.warn(
                    f"layers of the kind {type(layer).__name__} cannot be computed for several children at a time: "
                    "children are computed one by one",
                    stacklevel=4,
                )
                return None
            found[layer] = way
        return found

    def _layers(self, stacks: Mapping[str, Stack]) -> dict[Any, dict[str, Stack]]:
        """Returns every layer that holds a changed tensor; tied ones hold the same."""
        by_parameter = {id(self.loaded.places[name]): stack for name, stack in stacks.items()}
        layers: dict[Any, dict[str, Stack]] = {}
        for layer in self.loaded.module.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                if id(parameter) in by_parameter:
                    layers.setdefault(layer, {})[name] = by_parameter[id(parameter)]
        return layers

    def _stack(self, name: str, changes: Sequence[Mapping[str, Change]]) -> Stack:
        import torch

        some = next(one[name] for one in changes if name in one)
        cores = np.zeros((len(changes), *some.core.shape), np.float32)
        for core, one in zip(cores, changes, strict=True):
            if name in one:
                core[...] = one[name].core
        return Stack(
            cores=torch.from_numpy(cores).to(self._device),
            left=self._basis(some.left),
            right=self._basis(some.right),
            base=self._base(name),
            dtype=self.loaded.dtype,
        )

    def _base(self, name: str) -> torch.Tensor:
        """Returns a tensor of the base as it is stored; on a GPU, what the model holds of it, and no second copy."""
        if self._device.type != "cpu":
            return self.loaded.places[name].data
        if name not in self._stored:
            self._stored[name] = borrowed(self.loaded.tensors[name])
        return self._stored[name]

    def _basis(self, basis: np.ndarray | None) -> torch.Tensor | None:
        """Returns a basis on the device; it is moved once, however many generations share it."""
        if basis is None:
            return None
        if id(basis) not in self._bases:
            self._bases[id(basis)] = basis, borrowed(np.asarray(basis, np.float32)).to(self._device)
        return self._bases[id(basis)][1]

    # ── in place ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _become(self, changes: Mapping[str, Change]) -> None:
        """Has one child's weights, exactly as materialised; tensors that are not its become the base's again."""
        if changes is self._in_place:
            return
        before, self._in_place = self._in_place, {}
        for name in before:
            if name not in changes:
                self._place(name, borrowed(self.loaded.tensors[name]))
        for name, change in changes.items():
            self._place(name, self._changed(name, change))
        self._in_place = changes

    def _place(self, name: str, tensor: torch.Tensor) -> None:
        """Gives a parameter its numbers: on the CPU by pointing there, so that the base's file is never written to."""
        parameter = self.loaded.places[name]
        if self._device.type == "cpu":
            parameter.data = tensor.to(self.loaded.dtype)
        else:
            parameter.data.copy_(tensor)

    def _changed(self, name: str, change: Change) -> torch.Tensor:
        """Returns base plus change in float32, rounded once to the base's dtype."""
        import torch

        tensor = self.loaded.tensors[name]
        if self._device.type == "cpu":
            return borrowed(changed(tensor, change))
        core = torch.from_numpy(np.array(change.core, np.float32)).to(self._device)
        left, right = self._basis(change.left), self._basis(change.right)
        core = core if left is None else left @ core
        core = core if right is None else core @ right.T
        base = borrowed(tensor).to(self._device)
        return (base.float() + core.reshape(base.shape)).to(torch_dtype(tensor.dtype))

    @property
    def _device(self) -> torch.device:
        return self.loaded.module.device

    def _check(self, changes: Sequence[Mapping[str, Change]]) -> None:
        strange = sorted({name for one in changes for name in one if name not in self.loaded.places})
        if strange:
            raise CheckpointError(
                "transformers joins these tensors with others, so that no child can change them over one base; evolve "
                "experts that leave them as they are, such as LoRA adapters of other layers",
                strange,
            )


def changed(tensor: np.ndarray, change: Change) -> np.ndarray:
    """Returns a tensor with a change added in float32 and rounded once: the bytes of `materialise`."""
    if not tensor.ndim:
        return np.asarray(tensor.astype(np.float32) + change.core, tensor.dtype)
    made = np.empty_like(tensor)
    step = max(1, BLOCK_VALUES // max(1, tensor.size // max(1, len(tensor))))
    with np.errstate(over="ignore", invalid="ignore"):  # whoever uses the child finds infinity there
        for start in range(0, len(tensor), step):
            rows = slice(start, start + step)
            part = change.core[rows] if change.left is None else change.left[rows] @ change.core
            part = part if change.right is None else part @ change.right.T
            wide = tensor[rows].astype(np.result_type(tensor.dtype, np.float32))
            made[rows] = (wide + part.reshape(wide.shape)).astype(tensor.dtype)
    return made
