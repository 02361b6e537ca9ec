"""The model kind `sam`: SAM-family models of transformers, prompted with a box over the whole image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua import ModelSpec
from minerua.errors import CheckpointError, ConfigError
from minerua.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from minerua.values import RunContext

__all__ = ["PARTS", "ROWS", "configure_sam", "sam_module"]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's images, with which SAM was learned; transformers' `SamImageProcessor` has the same."""

PARTS = ("mask-decoder", "all")
"""What can be learned: the decoder alone, as the paper's experts do, or everything."""

ROWS = 4096
"""How many rows `activations` gives per layer at most."""


@dataclass(frozen=True)
class _Asked:
    """What the settings say: where the configuration is, which part is learned, where and how it is computed."""

    path: Path
    learned: str
    batch: int
    device: str


def configure_sam(settings: Mapping[str, Any], context: RunContext) -> ModelSpec:
    """Returns the model kind that settings describe.

    Args:
        settings: `path`, `learned`, `batch_size`, `device`; see the README.
        context: Where relative paths begin; without `path` the base's folder has the configuration.

    Raises:
        ConfigError: A setting is wrong, there is no configuration of SAM, or transformers is missing; all faults.
    """
    told = Settings("the model 'sam'", settings, context.folder)
    asked = _read(told, context.base)
    return ModelSpec(
        "sam",
        build=lambda tensors: _Found(tensors, asked),
        activations=_activations,
        module=lambda **given: sam_module(**{**settings, **given}),
    )


def sam_module(**settings: Any) -> torch.nn.Module:
    """Returns a SAM that can be learned; it takes images (n, h, w, 3) in [0, 1] and returns logits (n, h, w).

    Args:
        settings: `path`, a folder with `config.json`, and weights where there are any; `learned`: what has gradients.

    Raises:
        ConfigError: As `configure_sam`.
    """
    asked = _read(Settings("the module of the model 'sam'", settings, Path()), None)
    return _module(_network(asked, weights=True), asked.learned)


def _read(told: Settings, base: Path | None) -> _Asked:
    home = None if base is None else base if base.is_dir() else base.parent
    what = "a folder with SAM's config.json, as transformers saves it"
    path = told.path("path", what=what) if home is None else told.path("path", home, what=what)
    learned, batch = told.choice("learned", PARTS, PARTS[0]), told.whole("batch_size", 4)
    asked = _Asked(path, learned, batch, told.text("device", "cpu"))
    if (home is not None or told.has("path")) and not (path / "config.json").is_file():
        told.fault(f"{path} has no config.json; name a folder that transformers' save_pretrained has written")
    told.done()
    return asked


# ── the network ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _network(asked: _Asked, *, weights: bool) -> Any:
    """Returns transformers' `SamModel`, with the folder's weights if they are wanted and there."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("the model 'sam' needs transformers: pip install 'minerua-segmentation[sam]'") from error
    try:
        config = transformers.AutoConfig.from_pretrained(asked.path, local_files_only=True)
        if config.model_type != "sam":
            raise ConfigError(
                f"{asked.path} has the configuration of {config.model_type!r}; the model 'sam' takes 'sam'"
            )
        if weights and any(asked.path.glob("*.safetensors")):
            return transformers.SamModel.from_pretrained(asked.path, local_files_only=True)
        return transformers.SamModel(config)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{asked.path} has no SAM that transformers can read: {error}") from error


def _module(network: Any, learned: str) -> torch.nn.Module:
    """Returns the network with a plain way through it, its weights under their own names."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        return _logits(network, type(network).forward, images)

    for name, parameter in network.named_parameters():
        parameter.requires_grad_(learned == "all" or name.startswith("mask_decoder."))
    network.forward = forward
    found: torch.nn.Module = network
    return found


def _logits(network: Any, call: Callable[..., Any], images: torch.Tensor) -> torch.Tensor:
    """Runs the network with a box over the whole image.

    Args:
        network: A `SamModel`.
        call: Its own forward.
        images: Shape (n, h, w, 3), in [0, 1].

    Returns:
        Logits of the one mask that SAM gives for an unambiguous prompt, shape (n, h, w).
    """
    from torch.nn import functional

    side = network.config.vision_config.image_size
    mean, deviation = images.new_tensor(MEAN), images.new_tensor(DEVIATION)
    pixels = ((images - mean) / deviation).permute(0, 3, 1, 2)
    pixels = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
    box = images.new_tensor([0.0, 0.0, side, side]).expand(len(images), 1, 4)
    found = call(network, pixel_values=pixels, input_boxes=box, multimask_output=False).pred_masks  # (n, 1, 1, h', w')
    logits = functional.interpolate(found[:, 0], images.shape[1:3], mode="bilinear", align_corners=False)
    return logits[:, 0]


class _Found:
    """Weights that can be called: images (n, h, w, 3), uint8 or float32 in [0, 1], become probabilities (n, h, w)."""

    def __init__(self, tensors: Mapping[str, np.ndarray], asked: _Asked) -> None:
        self.asked = asked
        self.network = _network(asked, weights=False)
        given = _filled(self.network.state_dict(), tensors, asked.path)
        self.network.load_state_dict(given)
        self.network.eval().to(asked.device)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import numpy as np
        import torch

        scale = 255.0 if images.dtype.kind == "u" else 1.0
        parts = [images[start : start + self.asked.batch] for start in range(0, len(images), self.asked.batch)]
        with torch.inference_mode():
            found = [self._logits(torch.tensor(part).to(self.asked.device).float() / scale) for part in parts]
        return np.concatenate([logits.sigmoid().cpu().numpy() for logits in found])

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return _logits(self.network, type(self.network).forward, images)


def _filled(
    wanted: Mapping[str, torch.Tensor], tensors: Mapping[str, np.ndarray], path: Path
) -> dict[str, torch.Tensor]:
    """Returns the weights under all names that the network has; one that is tied to another may be missing."""
    import torch

    tied = {tensor.data_ptr(): name for name, tensor in wanted.items() if name in tensors}
    names = {name: name if name in tensors else tied.get(tensor.data_ptr(), name) for name, tensor in wanted.items()}
    found = {name: tensors.get(source) for name, source in names.items()}
    faults = [
        f"{name}: found {'nothing' if array is None else tuple(array.shape)}, wanted {tuple(wanted[name].shape)}"
        for name, array in found.items()
        if array is None or tuple(array.shape) != tuple(wanted[name].shape)
    ]
    if faults:
        raise CheckpointError(f"these are not the weights of the SAM that {path} describes", faults)
    return {name: torch.tensor(array.astype("float32")) for name, array in found.items() if array is not None}


# ── activations ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _activations(model: _Found, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the inputs of every linear layer in the order in which they are reached; convolutions are left out."""
    import numpy as np

    seen: dict[str, list[np.ndarray]] = {}
    with _watched(model.network, seen):
        model(inputs)
    return {name: _spread(np.concatenate(parts)) for name, parts in seen.items()}


def _spread(rows: np.ndarray) -> np.ndarray:
    """Returns at most `ROWS` rows, evenly spread; the same ones for every model."""
    import numpy as np

    return rows if len(rows) <= ROWS else rows[np.arange(ROWS) * len(rows) // ROWS]


@contextmanager
def _watched(network: Any, seen: dict[str, list[np.ndarray]]) -> Iterator[None]:
    """Notes what reaches linear layers for as long as the block runs."""
    from torch import nn

    def note(name: str) -> Callable[..., None]:
        def hook(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            seen.setdefault(f"{name}.weight", []).append(given[0].flatten(0, -2).float().cpu().numpy())

        return hook

    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
