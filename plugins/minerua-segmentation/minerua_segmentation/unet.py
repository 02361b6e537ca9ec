"""The model kind `unet`: a small U-Net whose convolutions are matrices, as merging and mutation want them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from minerua import ModelSpec
from minerua.errors import CheckpointError
from minerua.settings import Settings

from .network import forward, layers_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from minerua.values import RunContext

__all__ = ["configure_unet", "unet_module"]

IMAGES, ROWS = 16, 2048
"""How many images `activations` looks at, and how many patches of all of them it gives per layer: some for each weight
of a row. Merges that look at activations ask for them once per layer and expert, so that more would take minutes."""


def configure_unet(settings: Mapping[str, Any], context: RunContext) -> ModelSpec:
    """Returns the model kind that settings describe.

    Args:
        settings: `width`, `depth`, `batch_size`, `threads`; see the README.
        context: Plays no part.

    Raises:
        ConfigError: A setting is unknown or out of range; all faults.

    Example:
        >>> from pathlib import Path
        >>> from minerua.values import RunContext
        >>> configure_unet({"width": 4}, RunContext(Path())).name
        'unet'
    """
    told = Settings("the model 'unet'", settings, context.folder)
    width, depth = _sizes(told)
    batch, threads = told.whole("batch_size", 64), told.whole("threads", None)
    told.done()
    return ModelSpec(
        "unet",
        build=lambda tensors: _Found(tensors, width, depth, batch, threads),
        activations=_activations,
        module=unet_module,
    )


def unet_module(**settings: Any) -> torch.nn.Module:
    """Returns a fresh U-Net that can be learned; it takes images (n, h, w, 3) in [0, 1] and returns logits (n, h, w).

    Args:
        settings: `width` and `depth`.

    Raises:
        ConfigError: A setting is unknown or out of range; all faults.
    """
    from pathlib import Path

    from torch import nn

    told = Settings("the module of the model 'unet'", settings, Path())
    width, depth = _sizes(told)
    told.done()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = {name: nn.Linear(n, m) for name, (m, n) in layers_of(width, depth).items()}
            for layer in layers.values():
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
            self.layers = nn.ModuleDict(layers)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return forward(dict(self.named_parameters()), images, depth)

    return Network()


def _sizes(told: Settings) -> tuple[int, int]:
    return told.whole("width", 12), told.whole("depth", 3)


class _Found:
    """Weights that can be called: images (n, h, w, 3), uint8 or float32 in [0, 1], become probabilities (n, h, w)."""

    def __init__(
        self, tensors: Mapping[str, np.ndarray], width: int, depth: int, batch: int, threads: int | None
    ) -> None:
        import torch

        _check(tensors, width, depth)
        self.tensors = {name: torch.tensor(array).float() for name, array in _plain(tensors).items()}
        self.depth, self.batch, self.threads = depth, batch, threads

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import numpy as np

        return np.concatenate([self.run(part).sigmoid().numpy() for part in _parts(images, self.batch)])

    def run(self, images: np.ndarray, seen: dict[str, torch.Tensor] | None = None, *, most: int = 1) -> torch.Tensor:
        """Returns logits; fills `seen` with the patches that reach each layer."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            with torch.inference_mode():
                scale = 255.0 if images.dtype.kind == "u" else 1.0
                return forward(self.tensors, torch.tensor(images).float() / scale, self.depth, seen, most=most)
        finally:
            torch.set_num_threads(before)


def _activations(model: _Found, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the patches that reach each layer, at places that are the same for all models."""
    import numpy as np

    count = min(len(inputs), IMAGES)
    chosen = inputs[np.arange(count) * len(inputs) // count]
    seen: dict[str, torch.Tensor] = {}
    model.run(chosen, seen, most=ROWS // count)
    return {name: patches.numpy() for name, patches in seen.items()}


def _parts(images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, max(len(images), 1), batch):
        yield images[start : start + batch]


def _plain(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Returns tensors of dtypes that torch takes from numpy; bfloat16 is none."""
    return {name: array.astype("float32") for name, array in tensors.items()}


def _check(tensors: Mapping[str, np.ndarray], width: int, depth: int) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for name, shape in layers_of(width, depth).items():
        wanted |= {f"layers.{name}.weight": shape, f"layers.{name}.bias": shape[:1]}
    found = {name: array.shape for name, array in tensors.items()}
    if found != wanted:
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise CheckpointError(
            f"these are not the weights of a U-Net of width {width} and depth {depth}; set model.settings to what it "
            "was learned with",
            [f"{name}: found {found.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}" for name in names],
        )
