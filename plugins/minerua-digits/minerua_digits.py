"""Three skills over scikit-learn's handwritten digits: base, experts, evaluators and a model, through public hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua import EvaluatorSpec, ModelSpec, Skill, hookimpl

if TYPE_CHECKING:
    import numpy as np
    import torch

LAYERS = (64, 128, 128, 10)
LEARNED_IMAGES = 900  # of 1,797; the rest are items
GLIMPSES = 200  # images of each view that the base has seen

VIEWS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "rotated": lambda images: images.swapaxes(1, 2)[:, ::-1],  # a quarter turn
    "inverted": lambda images: 1.0 - images,
    "mirrored": lambda images: images[:, :, ::-1],
}
"""What each skill does to images of shape (n, 8, 8) with values in [0, 1]."""


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


def _learn(
    tensors: dict[str, torch.Tensor],
    x: np.ndarray,
    y: np.ndarray,
    *,
    steps: int,
    rate: float,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Returns the weights after some steps of AdamW on batches of 64; the given ones stay as they are."""
    import torch

    learned = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    optimizer = torch.optim.AdamW(learned.values(), lr=rate)
    inputs, digits = torch.from_numpy(x), torch.from_numpy(y)
    with _one_thread():
        for _ in range(steps):
            batch = torch.randint(len(digits), (64,), generator=generator)
            loss = torch.nn.functional.cross_entropy(_forward(learned, inputs[batch]), digits[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return {name: tensor.detach() for name, tensor in learned.items()}


def _initial(generator: torch.Generator) -> dict[str, torch.Tensor]:
    import torch

    tensors = {}
    for i, (n, m) in enumerate(pairwise(LAYERS)):
        bound = n**-0.5
        tensors[f"layers.{i}.weight"] = torch.empty(m, n).uniform_(-bound, bound, generator=generator)
        tensors[f"layers.{i}.bias"] = torch.empty(m).uniform_(-bound, bound, generator=generator)
    return tensors


def learn_base(seed: int) -> dict[str, np.ndarray]:
    """Returns a base that reads upright digits and has glimpsed each view.

    Args:
        seed: Seed of the first weights and of the batches.
    """
    import numpy as np
    import torch

    images, digits = _digits()
    images, digits = images[:LEARNED_IMAGES], digits[:LEARNED_IMAGES]
    x = np.concatenate([_view("upright", images), *(_view(view, images[:GLIMPSES]) for view in VIEWS)])
    y = np.concatenate([digits, *(digits[:GLIMPSES] for _ in VIEWS)])
    generator = torch.Generator().manual_seed(seed)
    base = _learn(_initial(generator), x, y, steps=400, rate=2e-3, generator=generator)
    return {name: tensor.numpy() for name, tensor in base.items()}


def learn_expert(base: Mapping[str, np.ndarray], views: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Returns a fine-tune of the base on some views: one for an expert, all for the reference above every merge.

    Args:
        base: Tensor name → float32 array.
        views: Names from `VIEWS`.
        seed: Seed of the batches.
    """
    import numpy as np
    import torch

    images, digits = _digits()
    x = np.concatenate([_view(view, images[:LEARNED_IMAGES]) for view in views])
    y = np.concatenate([digits[:LEARNED_IMAGES] for _ in views])
    generator = torch.Generator().manual_seed(seed)
    start = {name: torch.tensor(array) for name, array in base.items()}
    expert = _learn(start, x, y, steps=200 * len(views), rate=1e-3, generator=generator)
    return {name: tensor.numpy() for name, tensor in expert.items()}


def learn_experts(out_dir: str, seed: int) -> dict[str, Any]:
    """Learns a base and one expert per view, and writes them as safetensors below a folder.

    Args:
        out_dir: An existing folder; gets `base.safetensors` and `experts/VIEW.safetensors`.
        seed: Seed of everything random.

    Returns:
        `base` and `experts` (view → path), relative to the folder.
    """
    from minerua.weights import write_checkpoint

    folder = Path(out_dir)
    base = learn_base(seed)
    write_checkpoint(folder / "base.safetensors", base)
    (folder / "experts").mkdir(exist_ok=True)
    experts = {}
    for number, view in enumerate(VIEWS, 1):
        experts[view] = f"experts/{view}.safetensors"
        write_checkpoint(folder / experts[view], learn_expert(base, [view], seed=1000 * seed + number))
    return {"base": "base.safetensors", "experts": experts}


# ── the hooks ────────────────────────────────────────────────────────────────────────────────────────────────────────


@hookimpl
def minerua_skills() -> list[Skill]:
    """Provides the skill of learning the experts."""
    return [
        Skill(
            name="digits-experts",
            call=learn_experts,
            inputs={"out_dir": str, "seed": int},
            outputs={"base": str, "experts": dict},
        )
    ]


@hookimpl
def minerua_models() -> list[ModelSpec]:
    """Provides the network."""
    return [ModelSpec(name="digits-mlp", build=_Network, activations=_activations)]


@hookimpl
def minerua_evaluators() -> list[EvaluatorSpec]:
    """Provides one task per view."""
    return [_evaluator(view) for view in VIEWS]
