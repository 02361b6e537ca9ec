"""How a layer is computed for several children at a time, each row with its own child's weights.

Of a small matrix every child has its own, made as a materialised child's, and one batched product does all. Of a large
one the base's product is computed once over all rows, and what the children add goes through their cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minerua_transformers.grouping import Grouping

if TYPE_CHECKING:
    import torch

Way = Callable[[Any, Grouping], Any]
"""`way(inputs, grouping)` returns a layer's outputs."""

SMALL_BYTES = 1 << 22
"""All children's matrices of a layer together, up to which each child has its own: they stay in the caches then."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The changes of one tensor in all children.

    Args:
        cores: Shape (P, R, R'), float32; without bases (P, …) with the tensor's own shape. Zero for a child that does
            not change it.
        left: Shape (m, R), float32, or `None` for the identity.
        right: Shape (n, R'), float32, or `None`.
        base: The tensor in the base, as it is stored.
        dtype: What is computed in.
    """

    cores: torch.Tensor
    left: torch.Tensor | None
    right: torch.Tensor | None
    base: torch.Tensor
    dtype: torch.dtype

    @property
    def is_small(self) -> bool:
        """Whether every child may have a tensor of its own."""
        return len(self.cores) * math.prod(self.base.shape) * 4 <= SMALL_BYTES

    @cached_property  # layers that are tied share it
    def whole(self) -> torch.Tensor:
        """Returns every child's tensor, (P, …): base plus change in float32, rounded once to the base's dtype."""
        change = self.cores if self.left is None else self.left @ self.cores
        change = change if self.right is None else change @ self.right.T
        return (self.base.float() + change).to(self.base.dtype).to(self.dtype)


def way_of(module: Any, stacks: Mapping[str, Stack], scales: dict[Any, bool]) -> Way | None:
    """Returns how a layer is computed for several children.

    Args:
        module: A layer without layers of its own.
        stacks: Name of one of its parameters, such as `"weight"` → what children add to it.
        scales: Layer → whether it multiplies by its weight, as far as it was tried; what is tried is added.

    Returns:
        The way; `None` where a layer of this kind cannot be computed for several children at a time.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    names = set(stacks)
    if isinstance(module, nn.Embedding) and names == {"weight"} and module.max_norm is None:
        return _embedding(module, stacks["weight"])
    if isinstance(module, nn.Linear | Conv1D) and names <= {"weight", "bias"}:
        return _linear(module, stacks, is_transposed=isinstance(module, Conv1D))
    if isinstance(module, nn.LayerNorm) and names <= {"weight", "bias"} and module.weight is not None:
        return _layer_norm(module, stacks)
    if module not in scales:
        scales[module] = _scales_by_its_weight(module)
    if names == {"weight"} and scales[module]:
        return _scaled(module, stacks["weight"])
    return None


# ── products ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _linear(module: Any, stacks: Mapping[str, Stack], *, is_transposed: bool) -> Way:
    weight, bias = stacks.get("weight"), stacks.get("bias")
    if weight is not None and weight.is_small:
        return _own_products(module, weight, bias, is_transposed=is_transposed)
    way = _base(module) if weight is None else _through_cores(module, weight, is_transposed=is_transposed)
    return way if bias is None else _with_bias(way, bias)


def _base(module: Any) -> Way:
    """Computes a layer as its class does."""
    forward = type(module).forward
    return lambda inputs, grouping: forward(module, inputs)


def _own_products(module: Any, weight: Stack, bias: Stack | None, *, is_transposed: bool) -> Way:
    """Multiplies each child's rows by its own matrix."""
    whole = weight.whole
    matrices = whole if is_transposed else whole.transpose(1, 2).contiguous()  # (P, n, m), which bmm is fastest with
    biases = None if bias is None else bias.whole

    def way(inputs: torch.Tensor, grouping: Grouping) -> torch.Tensor:
        x = as_rows(inputs, grouping)
        made = grouping.join(grouping.split(x).bmm(grouping.chosen(matrices)), x.shape[1])
        if biases is not None:
            made = made + grouping.of_rows(biases, 3)
        elif module.bias is not None:
            made = made + module.bias
        return made if inputs.ndim == 3 else made.reshape(*inputs.shape[:-1], made.shape[-1])

    return way


def _through_cores(module: Any, stack: Stack, *, is_transposed: bool) -> Way:
    """Computes the base once, and adds x Q_A Cᵀ Q_Bᵀ in float32, which is `x (Q_B C Q_Aᵀ)ᵀ` from the right side on.

    Layers that store their weights the other way round add x Q_B C Q_Aᵀ.
    """
    base = _base(module)
    down, up = (stack.left, stack.right) if is_transposed else (stack.right, stack.left)
    cores = stack.cores if is_transposed else stack.cores.transpose(1, 2).contiguous()

    def way(inputs: torch.Tensor, grouping: Grouping) -> torch.Tensor:
        import torch

        outputs = base(inputs, grouping)
        x = as_rows(inputs, grouping).float()
        inner = grouping.split(x if down is None else x @ down)  # (children, rows of each × length, R')
        made = grouping.join(torch.bmm(inner, grouping.chosen(cores)), x.shape[1])
        wide = made if up is None else made @ up.T  # (rows, length, m)
        return (outputs.float() + wide.reshape(outputs.shape)).to(outputs.dtype)

    return way


def _with_bias(base: Way, bias: Stack) -> Way:
    """Adds each child's change of the bias to what a layer makes with the base's."""

    def way(inputs: torch.Tensor, grouping: Grouping) -> torch.Tensor:
        outputs: torch.Tensor = base(inputs, grouping)
        rows = as_rows(outputs, grouping)
        return (rows.float() + grouping.of_rows(bias.cores, 3)).to(outputs.dtype).reshape(outputs.shape)

    return way


def as_rows(x: torch.Tensor, grouping: Grouping) -> torch.Tensor:
    """Returns a layer's input as (rows, length, n).

    Raises:
        ValueError: If it does not consist of the batch's rows.
    """
    if x.ndim == 3 and x.shape[0] == grouping.rows:
        return x
    if len(x) % grouping.rows or x.ndim < 2:
        raise ValueError(f"a layer is given {tuple(x.shape)}, which cannot be parted into {grouping.rows} rows")
    return x.reshape(grouping.rows, -1, x.shape[-1])


def _embedding(module: Any, stack: Stack) -> Way:
    """Looks up each child's own rows, or adds the rows of Q_B C Q_Aᵀ that ids stand for."""
    whole = stack.whole if stack.is_small else None
    base = _base(module)

    def way(ids: torch.Tensor, grouping: Grouping) -> torch.Tensor:
        import torch

        rows = ids.expand(grouping.rows, -1)  # positions can be the same for all rows
        if whole is not None:
            return whole[grouping.children[:, None], rows]
        if stack.left is None:
            made = stack.cores[grouping.children[:, None], rows]  # (rows, length, R')
        else:
            looked_up = grouping.split(stack.left[rows])  # (children, …, R)
            made = grouping.join(torch.bmm(looked_up, grouping.chosen(stack.cores)), rows.shape[1])
        outputs = base(rows, grouping)
        return (outputs.float() + (made if stack.right is None else made @ stack.right.T)).to(outputs.dtype)

    return way


# ── norms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _layer_norm(module: Any, stacks: Mapping[str, Stack]) -> Way:
    own = {name: stack.whole for name, stack in stacks.items()}

    def way(inputs: torch.Tensor, grouping: Grouping) -> torch.Tensor:
        from torch.nn import functional

        made = functional.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
        for name, parameter in (("weight", module.weight), ("bias", module.bias)):
            if name in own or parameter is not None:
                numbers = grouping.of_rows(own[name], inputs.ndim) if name in own else parameter
                made = made * numbers if name == "weight" else made + numbers
        return made

    return way


def _scaled(module: Any, stack: Stack) -> Way:
    """Computes a layer with a weight per row in the place of its own."""
    own = stack.whole
    return lambda inputs, grouping: _with_weight(module, grouping.of_rows(own, inputs.ndim), inputs)


def _with_weight(module: Any, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns what a layer's class makes of x with another weight, behind which its parameter is hidden meanwhile."""
    vars(module)["weight"] = weight
    try:
        return type(module).forward(module, x)
    finally:
        del vars(module)["weight"]


def _scales_by_its_weight(module: Any) -> bool:
    """Tells whether a layer multiplies by its weight, so that rows can have their own: found by trying.

    RMS norms do, under a dozen names of classes; some add one first, some compute in float32.
    """
    import torch

    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 1 or list(module.children()) or len(list(module.parameters())) != 1:
        return False
    numbers = torch.Generator().manual_seed(0)
    x, own = (torch.randn(2, n, len(weight), generator=numbers).to(weight) for n in (3, 1))
    try:
        together = _with_weight(module, own, x)
        apart = [_with_weight(module, own[k, 0], x[k : k + 1]) for k in (0, 1)]
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return together.shape == x.shape and torch.allclose(together, torch.cat(apart), rtol=1e-3, atol=1e-3)
