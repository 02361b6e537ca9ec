"""Three skills over scikit-learn's handwritten digits: images, evaluators and a model, through public hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from minerua import EvaluatorSpec, ModelSpec, Skill, hookimpl

if TYPE_CHECKING:
    import numpy as np
    import torch

LAYERS = (64, 128, 128, 10)
LEARNED_IMAGES = 900  # of 1,797; the rest are items

VIEWS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "rotated": lambda images: images.swapaxes(1, 2)[:, ::-1],  # a quarter turn
    "inverted": lambda images: 1.0 - images,
    "mirrored": lambda images: images[:, :, ::-1],
}
"""What each skill does to images of shape (n, 8, 8) with values in [0, 1]."""

SHOWN = ("upright", *VIEWS)
"""What a network can learn from: images as they are, and each view of them."""


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns images (1797, 8, 8) in [0, 1], float32, and their digits, in one fixed shuffled order."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.Generator(np.random.Philox(20240)).permutation(len(digits.target))
    return (digits.images[order] / 16.0).astype(np.float32), digits.target[order]


def _view(name: str, images: np.ndarray) -> np.ndarray:
    """Returns images as a skill sees them, flat: shape (n, 64), float32."""
    import numpy as np

    view = VIEWS[name](images) if name in VIEWS else images
    return np.ascontiguousarray(view).reshape(len(images), -1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs torch on one thread: on tensors this small, waking a second one costs more than it computes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _forward(
    tensors: Mapping[str, torch.Tensor], x: torch.Tensor, seen: dict[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Runs the network on (n, 64) inputs; fills `seen` with each layer's inputs if it is given."""
    import torch

    layers = len(LAYERS) - 1
    for i in range(layers):
        if seen is not None:
            seen[f"layers.{i}.weight"] = x
        x = torch.nn.functional.linear(x, tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"])
        x = torch.nn.functional.gelu(x) if i < layers - 1 else x
    return x


class _Network:
    """Weights that can be called: images (n, 64), float32, become logits (n, 10)."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        import torch

        self.tensors = {name: torch.tensor(array) for name, array in tensors.items()}

    def __call__(self, images: np.ndarray, seen: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        import torch

        with _one_thread(), torch.inference_mode():
            return _forward(self.tensors, torch.as_tensor(images), seen)


def _module() -> torch.nn.Module:
    """Returns the network with fresh weights, to be learned."""
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(LAYERS))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _forward(dict(self.named_parameters()), x)

    return Network()


def _activations(model: _Network, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the inputs of every layer, in forward order."""
    seen: dict[str, torch.Tensor] = {}
    model(inputs, seen)
    return {name: x.numpy() for name, x in seen.items()}


# ── the tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _items() -> list[str]:
    """Names the images that nothing is learned from."""
    return [f"image-{i}" for i in range(LEARNED_IMAGES, len(_digits()[1]))]


@lru_cache(maxsize=32)
def _load(view: str, ids: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs and the digits of some items."""
    images, digits = _digits()
    indices = [int(id.removeprefix("image-")) for id in ids]
    return _view(view, images[indices]), digits[indices]


def _evaluator(view: str) -> EvaluatorSpec:
    def evaluate(model: _Network, ids: Sequence[str], seed: int) -> np.ndarray:
        inputs, digits = _load(view, tuple(ids))
        logits = model(inputs)
        right: np.ndarray = (logits.argmax(dim=1).numpy() == digits).astype("float64")
        right[logits.isnan().any(dim=1).numpy()] = float("nan")  # no answer: argmax would read it as a digit
        return right

    def inputs(ids: Sequence[str]) -> np.ndarray:
        return _load(view, tuple(ids))[0]

    return EvaluatorSpec(name=f"digits-{view}", items=_items, evaluate=evaluate, inputs=inputs)


# ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def images_to_learn_from(**counts: int) -> dict[str, Any]:
    """Returns images with their digits, as views show them.

    Args:
        counts: `upright` or a name from `VIEWS` → how many of the 900 images, the first ones; views that are not named
            show none.

    Returns:
        `dataset`: `inputs` of shape (n, 64), float32, and `targets` of shape (n,), int64; view after view.

    Raises:
        ValueError: If a view is unknown, or would show images that are items; if there is none.
    """
    import numpy as np

    if not counts or any(view not in SHOWN or not 1 <= count <= LEARNED_IMAGES for view, count in counts.items()):
        raise ValueError(
            f"name one or more of {', '.join(SHOWN)}, each with a count from 1 to {LEARNED_IMAGES} "
            f"(the other images are items); found {counts}"
        )
    images, digits = _digits()
    shown = [view for view in SHOWN if view in counts]  # in one order, so that the same counts are the same rows
    inputs = np.concatenate([_view(view, images[: counts[view]]) for view in shown])
    targets = np.concatenate([digits[: counts[view]] for view in shown])
    return {"dataset": {"inputs": inputs, "targets": targets}}


# ── the hooks ────────────────────────────────────────────────────────────────────────────────────────────────────────


@hookimpl
def minerua_skills() -> list[Skill]:
    """Provides what the network learns from."""
    return [
        Skill(
            name="digits-images",
            call=images_to_learn_from,
            inputs=dict.fromkeys(SHOWN, int),
            outputs={"dataset": dict},
            optional=SHOWN,
            pure=True,
        )
    ]


@hookimpl
def minerua_models() -> list[ModelSpec]:
    """Provides the network."""
    return [ModelSpec(name="digits-mlp", build=_Network, activations=_activations, module=_module)]


@hookimpl
def minerua_evaluators() -> list[EvaluatorSpec]:
    """Provides one task per view."""
    return [_evaluator(view) for view in VIEWS]
