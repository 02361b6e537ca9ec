"""LoRA adapters: small factors beside frozen linear layers, learned in place and saved in PEFT's layout.

A layer keeps its class, its name and its weights; a hook adds the factors' product to its output. So the names of a
model's weights are the same with and without an adapter, and `Attached.detach` leaves nothing behind.

Source: Hu et al. 2021, arXiv 2106.09685; starting values and names as in PEFT 0.21 (`peft/tuners/lora`).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from minerua.errors import CheckpointError, LearningError
from minerua.weights.adapter import BASE_KEY, Factors
from minerua.weights.writer import write_adapter

ALL_LINEAR = "all-linear"
"""The target that means every linear layer but the output layer of a language model."""

BRANCH = "lora"
"""What a layer calls its factors: they are its child of this name."""

_MAX_NAMED = 12  # names of modules in a message


@final
class Branch(nn.Module):
    """What an adapter adds to one layer: `scaling * dropout(x) @ A.T @ B.T`.

    Args:
        rank: r.
        inputs: n.
        outputs: m.
        scaling: What the product is multiplied by.
        dropout: The share of the inputs that is set to zero while learning; drawn from torch's own generator, whose
            state belongs to a checkpoint.
        generator: Of the starting values.
        device: Where the layer is.

    Attributes:
        A: Shape (r, n), float32; uniform in ±1/√n at first, as PEFT has it.
        B: Shape (m, r), float32; zero at first.
    """

    def __init__(
        self,
        rank: int,
        inputs: int,
        outputs: int,
        *,
        scaling: float,
        dropout: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.scaling, self.dropout = scaling, dropout
        start = torch.empty(rank, inputs).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        self.A = nn.Parameter(start.to(device))
        self.B = nn.Parameter(torch.zeros(outputs, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns what is added to the layer's output, in the factors' precision.

        Args:
            x: The layer's inputs, shape (…, n).
        """
        dropped = functional.dropout(x.to(self.A.dtype), self.dropout, self.training)
        return functional.linear(functional.linear(dropped, self.A), self.B) * self.scaling


@final
class Attached:
    """An adapter on a module; made by `attach_lora`.

    Args:
        module: The module, its own weights frozen.
        layers: Module path → the layer that has factors.
        rank: The adapter's rank.
        alpha: Its alpha.
        skipped: Module path → why `"all-linear"` left it out.
        on_detach: Undoes what was done to the module besides the factors.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Mapping[str, nn.Module],
        *,
        rank: int,
        alpha: float,
        skipped: Mapping[str, str],
        on_detach: Callable[[], None],
    ) -> None:
        self.module, self.layers, self.skipped = module, dict(layers), dict(skipped)
        self.rank, self.alpha = rank, alpha
        self._on_detach = on_detach

    @property
    def branches(self) -> dict[str, Branch]:
        """Module path → its factors."""
        return {path: getattr(layer, BRANCH) for path, layer in self.layers.items()}

    def parameters(self) -> list[nn.Parameter]:
        """Returns all factors, layer by layer, A before B."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields all factors with their names in the module, such as `"layers.0.lora.A"`."""
        for path, branch in self.branches.items():
            for side, parameter in branch.named_parameters():
                yield f"{path}.{BRANCH}.{side}", parameter

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the factors by name, detached; they change as learning goes on."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes over factors that `state` returned, for the same layers and ranks.

        Args:
            state: Name → tensor; copied.

        Raises:
            CheckpointError: Names or shapes are others; nothing was changed; lists all faults.
        """
        own = dict(self.named_parameters())
        faults = [f"{name} is missing" for name in own if name not in state]
        faults += [f"{name} belongs to no layer of this adapter" for name in state if name not in own]
        faults += [
            f"{name} has the shape {list(state[name].shape)}, this adapter has {list(parameter.shape)}"
            for name, parameter in own.items()
            if name in state and state[name].shape != parameter.shape
        ]
        if faults:
            raise CheckpointError("the state is that of another adapter", faults)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def save(self, folder: str | Path, base_digest: str, *, base_name: str | None = None) -> None:
        """Writes the adapter in PEFT's layout; the folder appears complete or not at all.

        Dropout is not written: it belongs to learning. Modules are named in full, so that PEFT finds these and no
        others.

        Args:
            folder: The folder to make.
            base_digest: Digest of the base that the module's weights came from (`Checkpoint.digest`); who merges the
                adapter with another base is refused by it. Empty: it is not recorded.
            base_name: The base's name, for the reader's information.

        Raises:
            CheckpointError: A factor holds NaN or infinity; lists all.
            StorageError: The system refused to write, or the folder exists and is not empty.
        """
        faults = [
            f"{name} holds NaN or infinity" for name, one in self.state().items() if not bool(one.isfinite().all())
        ]
        if faults:
            raise CheckpointError(f"{folder} cannot be written: the adapter is no longer made of numbers", faults)
        is_transposed = any(map(_is_transposed, self.layers.values()))
        write_adapter(
            folder,
            {f"{path}.weight": _factors(branch, transposed=is_transposed) for path, branch in self.branches.items()},
            rank=self.rank,
            alpha=self.alpha,
            base_name=base_name,
            fan_in_fan_out=is_transposed,
            metadata={BASE_KEY: base_digest} if base_digest else None,
        )

    def merged(self) -> dict[str, torch.Tensor]:
        """Returns the module's state as it would be with the factors added to its weights; the module stays as it is.

        The sum is made in float32 (float64 for such weights) and rounded once.
        """
        own = {name for name, _ in self.named_parameters()}
        state = {name: tensor.detach() for name, tensor in self.module.state_dict().items() if name not in own}
        for path, branch in self.branches.items():
            weight = state[f"{path}.weight"]
            wide = torch.promote_types(weight.dtype, torch.float32)
            change = (branch.B.detach().to(wide) @ branch.A.detach().to(wide)) * branch.scaling
            change = change.T if _is_transposed(self.layers[path]) else change
            state[f"{path}.weight"] = (weight.to(wide) + change).to(weight.dtype)
        return state

    def detach(self) -> nn.Module:
        """Takes the adapter off; returns the module as it was before, its weights unchanged and no longer frozen."""
        if self.layers:
            self._on_detach()
        for layer in self.layers.values():
            delattr(layer, BRANCH)
        self.layers.clear()
        return self.module


def attach_lora(
    module: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: str | Sequence[str],
    dropout: float = 0.0,
    seed: int,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> Attached:
    r"""Freezes a module and gives its linear layers factors to learn; its outputs stay the same at first.

    A target is a module's path, the end of one after a dot, or a regular expression that matches the whole path;
    `"all-linear"` is every linear layer but the output layer of a transformers model and what cannot have factors
    (`Attached.skipped` says which and why). A single text is no name: it is a regular expression, or `"all-linear"`.

    Args:
        module: Any module with `nn.Linear` layers, or `Conv1D` ones of transformers; changed in place.
        rank: r, at least 1; a layer whose weight has a shorter side has as many as that.
        alpha: The product is multiplied by alpha / rank, in every layer that has no alpha of its own: one of another
            rank has a proportional alpha.
        targets: Which layers.
        dropout: The share of the factors' inputs that is set to zero while learning, in [0, 1).
        seed: Of the starting values; each layer's depend on it and on its path alone.
        rank_pattern: Pattern → another rank; the first pattern `p` holds for which `(.*\.)?(p)$` matches the path.
        alpha_pattern: Pattern → an alpha of its own, found in the same way: the product is multiplied by that alpha /
            the rank that `rank` or `rank_pattern` gives the layer.

    Returns:
        The adapter.

    Raises:
        LearningError: A target finds nothing or no linear layer, or a setting is out of range; lists all faults.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> attached = attach_lora(model, rank=2, alpha=2, targets=["0"], seed=0)
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['0.lora.A', '0.lora.B']
    """
    faults = list(_setting_faults(rank, alpha, dropout))
    layers, skipped, more = _chosen(module, targets)
    ranks, rank_faults = _matched(layers, rank_pattern or {}, "rank")
    alphas, alpha_faults = _matched(layers, alpha_pattern or {}, "alpha")
    faults += [*more, *rank_faults, *alpha_faults]
    if faults:
        raise LearningError("the LoRA adapter cannot be attached", faults)
    undo = _frozen(module)
    for path, layer in layers.items():
        outputs, inputs = _extents(layer)
        own_rank = ranks.get(path, rank)
        branch = Branch(
            min(own_rank, inputs, outputs),
            inputs,
            outputs,
            scaling=alphas[path] / own_rank if path in alphas else alpha / rank,
            dropout=dropout,
            generator=_generator(seed, path),
            device=_weight(layer).device,
        )
        layer.add_module(BRANCH, branch.train(layer.training))
        undo.append(layer.register_forward_hook(_with_branch, with_kwargs=True).remove)
    return Attached(module, layers, rank=rank, alpha=float(alpha), skipped=skipped, on_detach=lambda: _undone(undo))


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _frozen(module: nn.Module) -> list[Callable[[], object]]:
    """Freezes a module; returns what makes it as it was."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.requires_grad_(False)
    return [functools.partial(parameter.requires_grad_, True) for parameter in trained]


def _undone(undo: Sequence[Callable[[], object]]) -> None:
    for one in undo:
        one()


def _with_branch(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor) -> Any:
    """Adds the factors' product to a layer's output; no closure, so that a copied module uses its own factors."""
    x = args[0] if args else next(iter(kwargs.values()))
    return output + getattr(layer, BRANCH)(x).to(output.dtype)


def _is_transposed(layer: nn.Module) -> bool:
    """Whether a layer stores its weight as (inputs, outputs), as GPT-2's Conv1D does."""
    return type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils"


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or _is_transposed(layer)


def _weight(layer: nn.Module) -> torch.Tensor:
    weight: torch.Tensor = layer.get_parameter("weight")
    return weight


def _extents(layer: nn.Module) -> tuple[int, int]:
    """Returns outputs and inputs."""
    rows, columns = _weight(layer).shape
    return (columns, rows) if _is_transposed(layer) else (rows, columns)


def _factors(branch: Branch, *, transposed: bool) -> Factors:
    """Returns a layer's factors with the scaling folded in, for a weight stored as (outputs, inputs) or the reverse."""
    up, down = (one.detach().float().cpu().numpy() for one in (branch.B, branch.A))
    left, right = (down.T, up.T) if transposed else (up, down)
    return Factors(left * np.float32(branch.scaling), np.ascontiguousarray(right))


def _generator(seed: int, path: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}:{path}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


# ── which layers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _chosen(module: nn.Module, targets: str | Sequence[str]) -> tuple[dict[str, nn.Module], dict[str, str], list[str]]:
    """Returns the layers that the targets name, what `all-linear` left out and why, and all faults."""
    modules = {path: one for path, one in module.named_modules() if path}
    refused = {path: reason for path, one in modules.items() if (reason := _refusal(module, path, one))}
    entries = [targets] if isinstance(targets, str) else list(targets)
    wanted: dict[str, str] = {}
    skipped: dict[str, str] = {}
    faults = [] if entries else ["targets is empty; name the layers, or all of them with 'all-linear'"]
    for entry in entries:
        if entry.lower() == ALL_LINEAR:
            linear = [path for path, one in modules.items() if _is_linear(one)]
            output = _output_layer(module)
            skipped = {path: "is the model's output layer" for path in linear if modules[path] is output}
            skipped |= {path: refused[path] for path in linear if path in refused}
            found = [path for path in linear if path not in skipped]
        else:
            found = [path for path in modules if _names(entry, path, alone=isinstance(targets, str))]
            faults += [f"target {entry!r}: {path} {refused[path]}" for path in found[:_MAX_NAMED] if path in refused]
        if not found:
            faults.append(f"target {entry!r} names no module{_near(entry, modules)}")
        wanted.update(dict.fromkeys(found, entry))
    layers = {path: one for path, one in modules.items() if path in wanted and path not in refused}
    return layers, skipped, faults


def _names(entry: str, path: str, *, alone: bool) -> bool:
    if not alone and (path == entry or path.endswith(f".{entry}")):
        return True
    try:
        return re.fullmatch(entry, path) is not None
    except re.error:
        return False


def _refusal(module: nn.Module, path: str, one: nn.Module) -> str:
    """Returns why a module cannot have factors; empty if it can."""
    if not _is_linear(one):
        return f"is {_article(one)}; only nn.Linear and transformers' Conv1D can have factors"
    parent = module.get_submodule(path.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return "is used by nn.MultiheadAttention through its weight, without being called: factors would do nothing"
    if hasattr(one, BRANCH):
        return "has factors already; detach the adapter that is attached first"
    sharers = [name for name, other in module.named_parameters(remove_duplicate=False) if other is _weight(one)]
    if len(sharers) > 1:
        others = ", ".join(name for name in sharers if name != f"{path}.weight")
        return f"shares its weight with {others}, which merging would change too"
    return ""


def _output_layer(module: nn.Module) -> nn.Module | None:
    """Returns the layer that a transformers model names as its output, which PEFT leaves out of `all-linear`."""
    ask = getattr(module, "get_output_embeddings", None)
    layer: nn.Module | None = ask() if callable(ask) else None
    return layer


def _near(entry: str, modules: Mapping[str, nn.Module]) -> str:
    """Says which linear modules may be meant."""
    linear = [path for path, one in modules.items() if _is_linear(one)]
    ends = list(dict.fromkeys(path.rpartition(".")[2] for path in linear))
    near = difflib.get_close_matches(entry, [*ends, *linear], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    rest = f" and {len(ends) - _MAX_NAMED} more" if len(ends) > _MAX_NAMED else ""
    return f"{hint or ';'} linear modules end in {', '.join(ends[:_MAX_NAMED]) or 'nothing'}{rest}"


def _article(one: nn.Module) -> str:
    name = type(one).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _setting_faults(rank: int, alpha: float, dropout: float) -> Iterator[str]:
    if rank < 1:
        yield f"rank is {rank}; at least 1 is needed"
    if not (math.isfinite(alpha) and alpha > 0):
        yield f"alpha is {alpha}; a positive number is needed, such as the rank"
    if not 0 <= dropout < 1:
        yield f"dropout is {dropout}; a share in [0, 1) is needed"


def _matched(
    layers: Mapping[str, nn.Module], patterns: Mapping[str, float], what: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns what patterns say of layers, each one's first, and what is wrong with them."""
    faults: list[str] = []
    found: dict[str, Any] = {}
    for key, value in reversed(list(patterns.items())):  # the first one has the last word
        try:
            mine = [path for path in layers if re.match(rf"(.*\.)?({key})$", path)]
        except re.error as error:
            faults.append(f"{what}_pattern: {key!r} is not a regular expression ({error})")
            continue
        if what == "rank" and value < 1:
            faults.append(f"rank_pattern: {key!r} has the rank {value}; at least 1 is needed")
        if what == "alpha" and not (math.isfinite(value) and value > 0):
            faults.append(f"alpha_pattern: {key!r} has the alpha {value}; a positive number is needed")
        if layers and not mine:
            faults.append(f"{what}_pattern: {key!r} finds none of the layers that have factors")
        found.update(dict.fromkeys(mine, value))
    return found, faults
