"""A small world of two senses: numbers drawn badly, and sentences that tell only something of them. numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from minerua_onnx.edges import PADDING, UNKNOWN

SIDE, LENGTH = 16, 12
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

GLYPHS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "01110 10001 00001 00110 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
"""Five columns and seven rows each."""

PROPERTIES = {
    "an even number": (0, 2, 4, 6, 8),
    "an odd number": (1, 3, 5, 7, 9),
    "a number below five": (0, 1, 2, 3, 4),
    "a number above four": (5, 6, 7, 8, 9),
    "a multiple of three": (0, 3, 6, 9),
    "a prime number": (2, 3, 5, 7),
    "a square number": (0, 1, 4, 9),
}
"""What a sentence may say → the numbers of which that is true."""

OPENINGS = ("this is", "here you see", "it shows", "behold")


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """Numbers, drawn and described.

    Args:
        images: Shape (n, 16, 16), uint8.
        sentences: n texts.
        tokens: Shape (n, 12), int64: the sentences by the vocabulary.
        numbers: Shape (n,), int64, from 0 to 9.
    """

    images: np.ndarray
    sentences: tuple[str, ...]
    tokens: np.ndarray
    numbers: np.ndarray


def vocabulary() -> dict[str, int]:
    """Returns word → number, for all words that sentences are made of."""
    words = sorted({word for text in (*OPENINGS, *PROPERTIES, "and") for word in text.split()})
    return {PADDING: 0, UNKNOWN: 1} | {word: number for number, word in enumerate(words, 2)}


def examples(count: int, seed: int) -> Examples:
    """Draws and describes numbers; the same seed gives the same.

    Args:
        count: How many.
        seed: Of everything random.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    numbers = generator.integers(0, len(GLYPHS), count)
    images = np.stack([_drawn(int(number), generator) for number in numbers])
    sentences = tuple(_described(int(number), generator) for number in numbers)
    return Examples(images, sentences, tokens_of(sentences), numbers)


def tokens_of(sentences: Sequence[str]) -> np.ndarray:
    """Returns the sentences as the skill `word-tokens` would give them, shape (n, 12)."""
    known, tokens = vocabulary(), np.zeros((len(sentences), LENGTH), np.int64)
    for row, sentence in zip(tokens, sentences, strict=True):
        words = sentence.split()[:LENGTH]
        row[: len(words)] = [known[word] for word in words]
    return tokens


def _drawn(number: int, generator: np.random.Generator) -> np.ndarray:
    """Draws a number twice its size, somewhere; hides a part of it behind a bar; adds noise."""
    glyph = np.array([[int(dot) for dot in row] for row in GLYPHS[number].split()], float).repeat(2, 0).repeat(2, 1)
    image = np.zeros((SIDE, SIDE))
    top, left = generator.integers(0, SIDE - glyph.shape[0] + 1), generator.integers(0, SIDE - glyph.shape[1] + 1)
    image[top : top + glyph.shape[0], left : left + glyph.shape[1]] = glyph
    bar = generator.integers(1, SIDE - 6)
    rows = slice(bar, bar + 6)
    image[(rows, slice(None)) if generator.random() < 0.5 else (slice(None), rows)] = 0.5
    noisy = image * generator.uniform(0.5, 1.0) + generator.normal(0, 0.25, image.shape)
    return (noisy.clip(0, 1) * 255).astype(np.uint8)


def _described(number: int, generator: np.random.Generator) -> str:
    """Says one or two true things about a number."""
    true = [text for text, numbers in PROPERTIES.items() if number in numbers]
    said = generator.permutation(true)[: generator.integers(1, 3)]
    return f"{generator.choice(OPENINGS)} {' and '.join(said)}"
