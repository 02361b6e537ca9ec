"""Worlds on disk, each in the layout of a data set that it looks like."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from minerua.errors import ConfigError, StorageError

from .worlds import WORLDS, draw

__all__ = ["PLACES", "RECORD", "write_worlds"]

RECORD = "worlds.json"
"""Says what a folder was filled with."""

PLACES: Mapping[str, tuple[str, str]] = {
    "camouflage": ("Imgs/{}.png", "GT/{}.png"),
    "polyp": ("images/{}.jpg", "masks/{}.jpg"),
    "lesion": ("ISIC-2017_Training_Data/{}.jpg", "ISIC-2017_Training_Part1_GroundTruth/{}_segmentation.png"),
    "leaf": ("images/{}.jpg", "masks/{}.png"),
}
"""World → where images and masks lie, as in COD10K, Kvasir, ISIC 2017 and leaf sets; Kvasir's masks are JPEGs."""


def write_worlds(
    folder: str | Path, *, seed: int = 0, learned: int = 240, items: int = 200, size: int = 64
) -> dict[str, int]:
    """Writes four worlds; the same arguments give the same bytes with the same version of Pillow.

    `learn/WORLD` holds what is learned from, `items/WORLD` what models are scored on; no image is in both. A folder
    that a call with the same arguments has left, whole or in part, is completed: files that are there stay.

    Args:
        folder: Where; made if it is not there.
        seed: Of everything random, from 0.
        learned: How many images per world to learn from.
        items: How many to score on.
        size: Height and width, in pixels.

    Returns:
        Folder, relative to `folder` → how many pairs it holds.

    Raises:
        ConfigError: A number is too small, or the folder holds other worlds.
        StorageError: Something cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_worlds(folder, learned=1, items=1, size=16)["items/leaf"]
        1
    """
    asked = {"seed": seed, "learned": learned, "items": items, "size": size}
    fewest = {"seed": 0, "learned": 1, "items": 1, "size": 16}
    faults = [
        f"{name} is {asked[name]}; it is a whole number from {least}"
        for name, least in fewest.items()
        if asked[name] < least
    ]
    if faults:
        raise ConfigError("these worlds cannot be written", faults)
    counts = {f"{part}/{world}": count for part, count in (("learn", learned), ("items", items)) for world in WORLDS}
    try:
        _claim(Path(folder), asked, list(counts))
        for name, count in counts.items():
            first = learned if name.startswith("items") else 0
            for number in range(first, first + count):
                _write(Path(folder) / name, number, size, seed)
    except OSError as error:
        raise StorageError(f"the worlds in {folder} cannot be written: {error.strerror or error}") from error
    return counts


def _claim(folder: Path, asked: Mapping[str, int], names: Sequence[str]) -> None:
    """Writes down what the folder is filled with, or refuses one that is filled with something else."""
    record, text = folder / RECORD, json.dumps(asked)
    if record.exists():
        if (found := record.read_text("utf-8")) != text:
            raise ConfigError(f"{folder} holds the worlds of {found}, asked for {text}; name another folder")
        return
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ConfigError(f"{folder} has {', '.join(there)} of its own, which would be mixed up; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(text, "utf-8")


def _write(folder: Path, number: int, size: int, seed: int) -> None:
    """Writes an image and its mask; under another name first, so that what has its name is whole."""
    from PIL import Image

    name = f"{'ISIC' if folder.name == 'lesion' else folder.name}_{number:07}"
    paths = [folder / place.format(name) for place in PLACES[folder.name]]
    if all(path.exists() for path in paths):
        return
    image, mask = draw(folder.name, number, size=size, seed=seed)
    for path, array in zip(paths, (image, mask * image.dtype.type(255)), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.stem}.{os.getpid()}.half")
        Image.fromarray(array).save(half, "JPEG" if path.suffix == ".jpg" else "PNG", quality=92)
        half.replace(path)
