"""The three small networks of the example world, in plain torch: they see, read, and bring both together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua_onnx.drawing import GLYPHS, LENGTH, SIDE, Examples, vocabulary

if TYPE_CHECKING:
    import torch

WIDTH = 64
OPSET = 20
ROWS, PEAK_RATE = 128, 4e-3
ABSENT_SHARE = 0.25
"""How often each sense is taken away while they learn; never both at a time."""


def build(seed: int) -> dict[str, torch.nn.Module]:
    """Returns the untrained networks: `vision`, `language` and `fusion`.

    A sense that is absent is all zeros where the fusion expects its 64 features; no network gives that by itself, so
    the fusion reads from it whether the sense is there, and puts that flag beside the features.

    Args:
        seed: Of the first weights.
    """
    import torch
    from torch import nn

    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                *(nn.Conv2d(1, 24, 5, stride=2, padding=2), nn.ReLU()),
                *(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.ReLU()),
                *(nn.Flatten(), nn.Linear(48 * (SIDE // 4) ** 2, WIDTH), nn.Tanh()),
            )

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.layers(image.permute(0, 3, 1, 2))
            return features

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(len(vocabulary()), 32)
            self.layers = nn.Sequential(nn.Linear(32, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Tanh())

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            said = (tokens != 0).to(torch.float32).unsqueeze(2)  # batch × words × 1
            mean = (self.words(tokens) * said).sum(1) / said.sum(1).clamp(min=1.0)
            features: torch.Tensor = self.layers(mean)
            return features

    class Fusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2 * WIDTH + 2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, len(GLYPHS)))

        def forward(self, vision: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
            there = [(x.abs().sum(1, keepdim=True) > 0).to(torch.float32) for x in (vision, language)]
            scores: torch.Tensor = self.layers(torch.cat([vision, language, *there], 1))
            return scores

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"vision": Vision(), "language": Language(), "fusion": Fusion()}


def learn(networks: Mapping[str, torch.nn.Module], examples: Examples, *, passes: int, seed: int) -> None:
    """Trains all three together with AdamW; now and then one sense is taken away.

    Args:
        networks: From `build`; changed in place.
        examples: What is learned from.
        passes: How often all of them are gone through.
        seed: Of the batches, and of what is taken away.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    images, tokens, numbers = tensors_of(examples)
    parameters = [p for network in networks.values() for p in network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, weight_decay=0.02)
    steps = passes * (len(numbers) // ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    with _one_thread():
        for _ in range(steps):
            batch = torch.randint(len(numbers), (ROWS,), generator=generator)
            draw = torch.rand(ROWS, 1, generator=generator)
            vision = networks["vision"](images[batch]) * (draw >= ABSENT_SHARE)
            language = networks["language"](tokens[batch]) * (draw < 1 - ABSENT_SHARE)
            loss = torch.nn.functional.cross_entropy(networks["fusion"](vision, language), numbers[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


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


def tensors_of(examples: Examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns images in [0, 1], shape (n, 16, 16, 1), tokens and numbers."""
    import torch

    images = torch.from_numpy(examples.images).to(torch.float32).unsqueeze(3) / 255
    return images, torch.from_numpy(examples.tokens), torch.from_numpy(examples.numbers)


def export(networks: Mapping[str, torch.nn.Module], folder: Path) -> None:
    """Writes `vision.onnx`, `language.onnx` and `fusion.onnx`, any number of rows, all of one opset.

    The examples that torch traces with are different tensors: of one that is given twice it would make one input.
    """
    import torch

    forms: dict[str, tuple[dict[str, Any], str]] = {
        "vision": ({"image": torch.zeros(2, SIDE, SIDE, 1)}, "features"),
        "language": ({"tokens": torch.zeros(2, LENGTH, dtype=torch.int64)}, "features"),
        "fusion": ({"vision": torch.zeros(2, WIDTH), "language": torch.zeros(2, WIDTH)}, "scores"),
    }
    rows = torch.export.Dim("batch")
    for name, (inputs, output) in forms.items():
        export_one(networks[name], folder / f"{name}.onnx", inputs, output, rows)


def export_one(network: torch.nn.Module, path: Path, inputs: Mapping[str, Any], output: str, rows: Any) -> None:
    """Writes one network with one output.

    Args:
        network: What is written.
        path: Where.
        inputs: Input name → an example, in the order that `forward` takes them.
        output: What its output is called.
        rows: The `torch.export.Dim` of every input's first axis.
    """
    import logging
    import warnings

    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports that torchvision is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations inside torch, and of two inputs whose rows share a name
        program = torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple({0: rows} for _ in inputs),
        )
        if program is None:
            raise RuntimeError(f"torch returned no program for {path.name}")
        program.save(str(path))
