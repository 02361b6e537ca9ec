"""Makes a folder with a chain that runs: data, three trained models in ONNX, what goes with them, and samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from minerua.chain.multimodal import Modality, MultiModalSystem
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.values import Setup
from minerua_onnx.drawing import LENGTH, NAMES, SIDE, Examples, examples, vocabulary
from minerua_onnx.sessions import SessionChoice, open_session

TEST_SEED, SAMPLE_SEED = 1_000_003, 2_000_003
"""Added to a world's seed: what is tested and shown is drawn apart from what is learned."""


@final
@dataclass(frozen=True)
class Size:
    """How much is drawn and learned.

    Args:
        learned: Examples that are learned from.
        tested: Examples for the table of accuracies.
        passes: How often the learned ones are gone through.
        samples: Image files with sentences.
    """

    learned: int = 10_000
    tested: int = 3_000
    passes: int = 8
    samples: int = 6


def make_world(folder: Path, *, seed: int = 0, size: Size | None = None) -> dict[str, float]:
    """Makes the world; the same seed on the same machine gives the same files.

    Args:
        folder: Made if it does not exist; gets `vision.onnx`, `language.onnx`, `fusion.onnx`, `vocabulary.json`,
            `labels.json`, `chain.yaml`, `samples/`, `samples.json` and `accuracies.json`.
        seed: Of everything random.
        size: How much; default: what the README's table was made with.

    Returns:
        Accuracy of the exported models on examples that nothing was learned from: `both`, `image only`, `text only`.
    """
    from minerua_onnx import networks

    size = size or Size()
    folder.mkdir(parents=True, exist_ok=True)
    models = networks.build(seed)
    networks.learn(models, examples(size.learned, seed), passes=size.passes, seed=seed)
    networks.export(models, folder)
    found = accuracies(folder, examples(size.tested, seed + TEST_SEED))
    _write(folder / "vocabulary.json", vocabulary())
    _write(folder / "labels.json", NAMES)
    _write(folder / "accuracies.json", found)
    write_samples(folder, examples(size.samples, seed + SAMPLE_SEED))
    (folder / "chain.yaml").write_text(system().chain.dump(), encoding="utf-8")
    return found


def accuracies(folder: Path, shown: Examples) -> dict[str, float]:
    """Returns the share of numbers that the exported models tell right: with both senses, and with each alone."""
    choice, ports = SessionChoice(), {"vision": "image", "language": "tokens"}
    sessions = {name: open_session(str(folder / f"{name}.onnx"), Setup(), choice, name) for name in (*ports, "fusion")}
    pixels = shown.images[..., None] / np.float32(255)  # rows × 16 × 16 × 1
    given = {"vision": pixels, "language": shown.tokens}
    features = {name: sessions[name].run(None, {port: given[name]})[0] for name, port in ports.items()}
    absent = {name: np.zeros_like(found) for name, found in features.items()}
    cases = {
        "both": features,
        "image only": {**absent, "vision": features["vision"]},
        "text only": {**absent, "language": features["language"]},
    }
    scores = {name: sessions["fusion"].run(None, senses)[0] for name, senses in cases.items()}
    return {name: float((found.argmax(1) == shown.numbers).mean()) for name, found in scores.items()}


def write_samples(folder: Path, shown: Examples) -> None:
    """Writes images as PNG, and what is said of them, and what they are, as JSON."""
    from PIL import Image

    (folder / "samples").mkdir(exist_ok=True)
    told = []
    for place, (pixels, sentence) in enumerate(zip(shown.images, shown.sentences, strict=True)):
        path = f"samples/{place}.png"
        Image.fromarray(pixels).save(folder / path)
        told.append({"image": path, "text": sentence, "label": NAMES[int(shown.numbers[place])]})
    _write(folder / "samples.json", told)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def system() -> MultiModalSystem:
    """Returns the system that the world's chain is: an image and a text, one of which may be missing, to a label."""
    image = Modality(
        Path,
        (
            SkillTask("image-file", "load", {"path": "image"}, settings={"height": SIDE, "width": SIDE, "mode": "L"}),
            SkillTask("onnx-model", "see", {"image": "load.image"}, settings={"file": "vision.onnx"}),
        ),
    )
    text = Modality(
        str,
        (
            SkillTask("word-tokens", "read", settings={"vocabulary": "vocabulary.json", "length": LENGTH}),
            SkillTask("onnx-model", "understand", {"tokens": "read.tokens"}, settings={"file": "language.onnx"}),
        ),
    )
    fusion = SkillTask(
        "onnx-model",
        "fuse",
        {"vision": "see.features", "language": "understand.features"},
        settings={
            "file": "fusion.onnx",
            "extents": {"batch": 1},
        },  # one at a time: so zeros can stand for what is missing,
    )
    name = SkillTask("label", "name", {"scores": "fuse.scores"}, settings={"labels": "labels.json"})
    return MultiModalSystem(
        "numbers-seen-and-told",
        {"image": image, "text": text},
        (fusion, name),
        outputs={"label": "name.label", "confidence": "name.confidence"},
    )


def chain_of(folder: Path) -> SkillChain:
    """Returns the chain of a world that was made."""
    return SkillChain.load(folder / "chain.yaml")
