"""The ways in and out of a chain of models: image files, words, labels."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerua import Skill, TensorSpec
from minerua.errors import ChainError, StepFailed
from minerua.settings import Settings
from minerua.values import SkillContext

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
"""What image files are read: formats that every Pillow has, without those that start other programs."""

MODES = {"RGB": 3, "L": 1}
"""Pillow's mode → channels: colours, or grey."""

MOST_PIXELS = 64_000_000
"""Larger images are refused before they are unpacked; a setting raises it up to Pillow's own limit."""

MOST_SIDE, MOST_WORDS, MOST_ENTRIES = 16_384, 65_536, 10_000_000
PADDING, UNKNOWN = "<padding>", "<unknown>"
_WORD = re.compile(r"[^\W_]+")


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def image_file(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    """Returns a skill that reads an image: `path` → `image`, shape (1, height, width, channels).

    The image is turned as its camera says, made `mode`, and scaled to the size. Not pure: files change.

    Args:
        settings: `height` and `width`; if wanted `mode` (`RGB` or `L`), `dtype` (`float32` in [0, 1], or `uint8`) and
            `most_pixels`.
        context: Where relative paths that a caller gives do *not* begin: those begin where the program runs.

    Raises:
        ChainError: If the settings cannot be used.
    """
    told = Settings("the skill 'image-file'", settings, context.folder, error=ChainError)
    height, width = told.whole("height", most=MOST_SIDE), told.whole("width", most=MOST_SIDE)
    mode, dtype = told.choice("mode", tuple(MODES), "RGB"), told.choice("dtype", ("float32", "uint8"), "float32")
    most_pixels = told.whole("most_pixels", MOST_PIXELS, most=2_000_000_000)
    told.done()

    def call(path: Path) -> dict[str, np.ndarray]:
        return {"image": _read_image(path, (width, height), mode, dtype, most_pixels)}

    shape = (1, height, width, MODES[mode])
    return Skill(
        name="image-file",
        call=call,
        inputs={"path": Path},
        outputs={"image": TensorSpec("image", shape, dtype)},
        version=f"{height}x{width} {mode} {dtype}",
    )


def _read_image(path: Path, size: tuple[int, int], mode: str, dtype: str, most_pixels: int) -> np.ndarray:
    """Reads an image.

    Raises:
        StepFailed: If it cannot be read, or is too large.
    """
    import numpy as np
    from PIL import Image, ImageOps

    _must_be_file(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > most_pixels:
                raise StepFailed(f"{path} has {pixels} pixels; at most {most_pixels} are read (setting most_pixels)")
            scaled = ImageOps.exif_transpose(image).convert(mode).resize(size, Image.Resampling.BILINEAR)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise StepFailed(f"{path} would unpack to far more than an image should: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's readers raise on damaged files
        raise StepFailed(f"{path} is not an image that can be read, or was cut off: {error}") from error
    pixels_array = np.asarray(scaled).reshape(1, size[1], size[0], MODES[mode])
    return pixels_array if dtype == "uint8" else (pixels_array / np.float32(255)).astype(np.float32)


def _must_be_file(path: Path) -> None:
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        raise StepFailed(f"there is no image file {str(path)[:200]!r}; relative paths begin in {Path.cwd()}")


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def word_tokens(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    """Returns a skill that makes numbers of words: `text` → `tokens`, shape (1, length), int64.

    Words are runs of letters and digits, in lower case. What is not in the vocabulary gets the number of `<unknown>`;
    after the last word stand numbers of `<padding>`; words beyond the length are left out.

    Args:
        settings: `vocabulary`, a JSON file with an object word → number, `<padding>` and `<unknown>` among them;
            `length`.
        context: Where relative paths begin.

    Raises:
        ChainError: If the settings or the file cannot be used.
    """
    import numpy as np

    told = Settings("the skill 'word-tokens'", settings, context.folder, error=ChainError)
    length = told.whole("length", most=MOST_WORDS)
    path, entries, digest = _json(told, "vocabulary")
    if told.has("vocabulary"):
        told.fault(*_vocabulary_faults(entries, path))
    told.done()
    numbers: dict[str, int] = entries

    def call(text: str) -> dict[str, np.ndarray]:
        tokens = np.full((1, length), numbers[PADDING], np.int64)
        words = (match[0].lower() for match in _WORD.finditer(text))
        for place, word in enumerate(islice(words, length)):
            tokens[0, place] = numbers.get(word, numbers[UNKNOWN])
        return {"tokens": tokens}

    return Skill(
        name="word-tokens",
        call=call,
        inputs={"text": str},
        outputs={"tokens": TensorSpec("tokens", (1, length), "int64")},
        version=f"{digest} {length}",
        pure=True,
    )


def _vocabulary_faults(entries: Any, path: Path) -> list[str]:
    if not isinstance(entries, dict) or not 0 < len(entries) <= MOST_ENTRIES:
        return [f"{path} must hold a JSON object word → number"]
    wrong = [word for word, number in entries.items() if type(number) is not int or not 0 <= number < 2**63]
    faults = [f"{path}: the number of {word!r:.80} is {entries[word]!r:.80}, not a count" for word in wrong[:5]]
    return faults + [f"{path} has no {word}" for word in (PADDING, UNKNOWN) if word not in entries]


def _json(told: Settings, name: str) -> tuple[Path, Any, str]:
    """Returns the JSON file that a setting names, what it holds, and its digest; notes what is wrong with it."""
    path = told.file(name)
    if not told.has(name):
        return path, None, ""
    try:
        content = path.read_bytes()
        return path, json.loads(content), hashlib.sha256(content).hexdigest()[:32]
    except (OSError, ValueError, RecursionError) as error:
        told.fault(f"{path} is not JSON: {error}")
        return path, None, ""


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def label(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    """Returns a skill that names the largest score: `scores`, shape (1, count) → `label` and `confidence`.

    Of equal scores the first counts. The confidence is the label's softmax.

    Args:
        settings: `labels`, a JSON file with a list of texts, in the order of the scores.
        context: Where relative paths begin.

    Raises:
        ChainError: If the settings or the file cannot be used.
    """
    told = Settings("the skill 'label'", settings, context.folder, error=ChainError)
    path, labels, digest = _json(told, "labels")
    is_list = isinstance(labels, list) and 0 < len(labels) <= MOST_ENTRIES
    if told.has("labels") and not (is_list and all(isinstance(text, str) for text in labels)):
        told.fault(f"{path} must hold a JSON list of texts")
    told.done()

    def call(scores: np.ndarray) -> dict[str, Any]:
        row = scores[0].tolist()
        if not all(map(math.isfinite, row)):
            raise StepFailed(f"the scores are not finite: {row!r:.200}; the model's weights or inputs are broken")
        best = max(range(len(row)), key=row.__getitem__)
        return {"label": labels[best], "confidence": 1 / sum(math.exp(score - row[best]) for score in row)}

    return Skill(
        name="label",
        call=call,
        inputs={"scores": TensorSpec("scores", (1, len(labels)), "float32")},
        outputs={"label": str, "confidence": float},
        version=digest,
        pure=True,
    )
