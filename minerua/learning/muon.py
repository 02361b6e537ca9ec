"""Muon for matrices, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

_KEPT = ("params", "param_names")


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on parameters of two dimensions; AdamW on vectors, scalars and tensors of more dimensions.

    Muon's authors use it for the matrices inside a network, and AdamW for all that is no matrix, and for embeddings and
    the output layer, though these are matrices. An optimizer sees only shapes: give those two to AdamW by a group with
    `muon: False`. Each group that is given becomes up to two, its matrices first.

    Both parts share `lr` and `weight_decay`: by default a matrix's step is scaled to the size that AdamW's has
    (`adjust_lr_fn="match_rms_adamw"`), so that a rate that is right for AdamW is right for both. There is one state
    dict, and schedules see all groups.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        weight_decay: Decoupled, of both parts.
        momentum: Muon's.
        nesterov: Whether Muon's momentum is Nesterov's.
        ns_coefficients: Of the Newton-Schulz polynomial that makes a step orthogonal.
        ns_steps: How often it is applied.
        eps: What Muon adds to a norm that it divides by.
        adjust_lr_fn: How Muon's rate depends on a matrix's shape: `"match_rms_adamw"` or `"original"`.
        adam_betas: AdamW's decay rates; the authors' defaults.
        adam_eps: What AdamW adds to its denominator.
        muon: Whether Muon is used: `None` decides by the number of dimensions.

    Raises:
        ValueError: A group with `muon: True` has a parameter that is no matrix, or torch refuses a setting.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale: Liu et al. 2025, arXiv 2502.16982.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> [group["muon"] for group in MuonWithAdamW(layer.parameters()).param_groups]
        [True, False]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        eps: float = 1e-7,
        adjust_lr_fn: str | None = "match_rms_adamw",
        adam_betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        muon: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "ns_steps": ns_steps,
            "eps": eps,
            "adjust_lr_fn": adjust_lr_fn,
            "adam_betas": adam_betas,
            "adam_eps": adam_eps,
            "muon": muon,
        }
        super().__init__(params, defaults)
        self._assemble()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as up to two: its matrices, and the rest.

        Args:
            param_group: `params`, and settings of their own.

        Raises:
            ValueError: It asks for Muon, and has a parameter that is no matrix.
        """
        params = param_group["params"]
        entries = [params] if isinstance(params, torch.Tensor) else list(params)
        settings = {**self.defaults, **{key: value for key, value in param_group.items() if key not in _KEPT}}
        wanted = settings["muon"]
        others = [entry for entry in entries if _tensor(entry).ndim != 2]
        if wanted and others:
            shapes = ", ".join(str(list(_tensor(entry).shape)) for entry in others[:5])
            raise ValueError(f"a group with muon: True has parameters that are no matrices: {shapes}; leave muon out")
        matrices = [entry for entry in entries if wanted is not False and _tensor(entry).ndim == 2]
        chosen = set(map(id, matrices))
        rest = [entry for entry in entries if id(entry) not in chosen]
        for is_muon, part in ((True, matrices), (False, rest)):
            if part:
                super().add_param_group(
                    {**(settings if is_muon else _for_adamw(settings)), "params": part, "muon": is_muon}
                )
        if hasattr(self, "_parts"):
            self._assemble()

    def _assemble(self) -> None:
        """Lets Muon and AdamW work on this optimizer's own groups and state."""
        makers = ((torch.optim.Muon, True), (torch.optim.AdamW, False))
        parts = [(make, [group for group in self.param_groups if group["muon"] is is_muon]) for make, is_muon in makers]
        self._parts = [make(groups) for make, groups in parts if groups]
        for part in self._parts:
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._assemble()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Changes the parameters once.

        Args:
            closure: Evaluates the loss anew, where it is given.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()  # type: ignore[no-untyped-call]
        return loss


def _tensor(entry: Any) -> torch.Tensor:
    tensor: torch.Tensor = entry[1] if isinstance(entry, tuple) else entry
    return tensor


def _for_adamw(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns a group's settings under the names that AdamW reads."""
    return {**settings, "betas": settings["adam_betas"], "eps": settings["adam_eps"]}
