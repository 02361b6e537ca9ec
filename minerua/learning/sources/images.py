"""Folders of images with a CSV file of labels: read by Pillow, inside the folder, and no larger than allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np

from minerua.errors import ConfigError
from minerua.learning.data_config import ImagesConfig, LabelsConfig, TransformsConfig
from minerua.learning.rows import BadRows, RowError, seen
from minerua.learning.sources.block import Row, singly
from minerua.learning.sources.index import Stamp
from minerua.learning.sources.labels import Labels
from minerua.learning.sources.source import Hashes, Scanned, check_inputs
from minerua.learning.sources.text_rows import CsvRows
from minerua.learning.splitting import key_hash

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What is read: formats that are pictures and nothing more."""

LONGEST_ROW_BYTES = 1 << 16


@final
class ImageRows:
    """Images named by a CSV file.

    Args:
        labels_file: The CSV file.
        config: Where the images are and which columns name them.
        labels: What targets are.
        transforms: Their size.
        check: Whether every image is read before the first is used; otherwise only that it is there.

    Raises:
        ConfigError: If Pillow is missing, or the folder or the CSV file cannot be read.
    """

    def __init__(
        self,
        labels_file: Path,
        config: ImagesConfig,
        labels: LabelsConfig,
        transforms: TransformsConfig,
        *,
        check: bool,
    ) -> None:
        check_pillow()
        self._config, self._labels_config, self._resize, self._check = config, labels, transforms.resize, check
        self._folder = config.folder.resolve()
        if not self._folder.is_dir():
            raise ConfigError(f"cannot read images from {config.folder}: no folder is there")
        self._stamp = Stamp(labels_file, labels_file.name)
        needed = [config.file, *([] if labels.kind == "inputs" else [config.label])]
        with open(labels_file, "rb") as file:
            self._rows = CsvRows(file, self._stamp.name, needed, delimiter=",", longest=LONGEST_ROW_BYTES)
        self._labels = Labels(labels)
        self._files: list[str] = []
        self._targets: list[str] = []

    def scan(self, bad: BadRows) -> Scanned:
        """Reads the CSV file, and every image unless that was asked not to be done."""
        labels, found, blank_lines = Labels(self._labels_config), Hashes(), 0
        shape: tuple[int, ...] | None = None
        self._files, self._targets = [], []
        with open(self._stamp.path, "rb") as file:
            for row in singly(self._rows.find(file)):
                if row.values == ():
                    blank_lines += 1
                    continue
                shape = self._taken(row, labels, found, shape, bad)
        return found.scanned(labels.names, blank_lines=blank_lines, checked=self._check)

    def _taken(
        self, row: Row, labels: Labels, found: Hashes, shape: tuple[int, ...] | None, bad: BadRows
    ) -> tuple[int, ...] | None:
        """Takes a row if it is usable; returns the shape of the images so far."""
        try:
            if row.error is not None:
                raise row.error
            return self._take(row.values or (), labels, found, shape)
        except RowError as error:
            bad.add(f"{self._stamp.name}:{row.line}", error)
            return shape

    def _take(
        self, values: Any, labels: Labels, found: Hashes, shape: tuple[int, ...] | None
    ) -> tuple[int, ...] | None:
        name, raw = values[0], values[1] if len(values) > 1 else None
        path = self._inside(name)
        code = labels.check(raw)
        if self._check:
            pixels = self._pixels(path)
            check_inputs(pixels, shape)
            shape = pixels.shape
        elif not path.is_file():
            raise RowError("no such image", seen(path.name))
        found.add(key_hash(name), code)
        self._files.append(name)
        if self._labels.kind != "class":  # classes are known by their codes
            self._targets.append(raw or "")
        return shape

    def _inside(self, name: str) -> Path:
        """Returns where an image lies; links and `..` are followed, and may not lead out of the folder."""
        if not name.strip():
            raise RowError("no such image", "the row names no file")
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder):
            raise RowError("outside the folder", f"{seen(name)} leads out of {self._config.folder.name}")
        return path

    def read(self, i: int) -> tuple[np.ndarray, Any]:
        """Returns pixels, shape (channels, height, width), uint8, and the target of usable row i."""
        target = self._labels.target(self._targets[i]) if self._targets else None
        return self._pixels(self._inside(self._files[i])), target

    def place(self, i: int) -> str:
        """Returns the path of usable row i within the folder."""
        return self._files[i]

    def _pixels(self, path: Path) -> np.ndarray:
        from PIL import Image, ImageOps, UnidentifiedImageError

        if not path.is_file():  # a pipe would be waited for
            raise RowError("no such image", seen(path.name))

        try:
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > self._config.most_pixels:
                    raise RowError("image too large", f"{path.name} has {image.width} × {image.height} pixels")
                turned = ImageOps.exif_transpose(image).convert(self._config.mode)
                if self._resize is not None:
                    turned = turned.resize((self._resize[1], self._resize[0]), Image.Resampling.BILINEAR)
                pixels = np.asarray(turned)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise RowError("image too large", f"{path.name}: {error}") from None
        except UnidentifiedImageError:
            raise RowError("unreadable image", f"{path.name} is none of {', '.join(FORMATS)}") from None
        except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
            if isinstance(error, RowError):
                raise
            raise RowError("unreadable image", f"{path.name}: {seen(str(error))}") from None
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None])


def check_pillow() -> None:
    """Refuses images where Pillow is missing.

    Raises:
        ConfigError: If it is.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ConfigError("images are read by Pillow, which is not installed: pip install pillow") from error
