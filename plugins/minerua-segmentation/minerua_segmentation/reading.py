"""An image and its mask from their files to arrays of one size; a file that cannot be used says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minerua.errors import MineruaError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from .layouts import Pair

__all__ = ["MOST_PIXELS", "BadPair", "Form", "read_pair"]

MOST_PIXELS = 64_000_000
"""A larger picture is bad, whatever it would be resized to: a small file can claim any size."""


class BadPair(MineruaError, ValueError):
    """An image or a mask that cannot be used."""


@dataclass(frozen=True)
class Form:
    """What pictures become.

    Args:
        size: Height and width.
        threshold: A mask's grey above this share of the brightest grey is foreground.
        classes: How many labels masks have, from 0, which is background; `None`: masks are grey.
    """

    size: tuple[int, int]
    threshold: float = 0.5
    classes: int | None = None


def read_pair(pair: Pair, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image and its mask, resized.

    Args:
        pair: Where they are.
        form: What they become.

    Returns:
        The image, shape (h, w, 3), uint8, bilinear; the mask, shape (h, w), bool: made yes or no at its own size first,
        then foreground where half a pixel's area is.

    Raises:
        BadPair: A file is no picture, too large, or broken; the two have different sizes; the mask has colours, labels
            outside the range, or greys of which none reaches the threshold.
    """
    import numpy as np
    from PIL import Image

    image, mask = _opened(pair.image), _opened(pair.mask)
    if image.size != mask.size:
        sides = " and ".join(f"{p.name} is {i.height} × {i.width}" for p, i in ((pair.image, image), (pair.mask, mask)))
        raise BadPair(f"{sides} pixels (height × width); an image and its mask have one size")
    height, width = form.size
    shown = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    area = Image.fromarray(_foreground(mask, pair.mask, form).astype(np.float32))
    return shown, np.asarray(area.resize((width, height), Image.Resampling.BOX)) >= 0.5


def _opened(path: Path) -> Image.Image:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise BadPair(
                    f"{path.name} has {picture.width * picture.height} pixels; at most {MOST_PIXELS} are read"
                )
            picture.load()
            return picture.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        if isinstance(error, BadPair):
            raise
        raise BadPair(f"{path.name} is no picture that can be read: {str(error).splitlines()[0]:.120}") from error


def _foreground(mask: Image.Image, path: Path, form: Form) -> np.ndarray:
    """Returns which pixels of a mask, at its own size, are foreground."""
    values = _values(mask, path, labels=form.classes is not None)
    largest = int(values.max(initial=0))
    if form.classes is not None:
        if largest >= form.classes:
            raise BadPair(
                f"{path.name} has the label {largest}; with classes: {form.classes} labels end at {form.classes - 1}"
            )
        return values > 0
    cut = form.threshold * 255
    if 0 < largest <= cut:
        raise BadPair(
            f"{path.name} has values up to {largest} of 255, none above the threshold {form.threshold:g}; if they are "
            f"labels, set classes: {largest + 1}, else lower the threshold"
        )
    return values > cut


def _values(mask: Image.Image, path: Path, *, labels: bool) -> np.ndarray:
    """Returns a mask's greys from 0 to 255, or its labels."""
    import numpy as np

    if mask.mode == "1":
        return np.asarray(mask) * np.uint8(1 if labels else 255)
    if mask.mode == "P" and not labels:
        mask = mask.convert("RGB")
    found = np.asarray(mask)
    if mask.mode in ("RGB", "RGBA", "LA"):
        colours = found[..., : 1 if mask.mode == "LA" else 3]
        if (np.ptp(colours.astype(np.int16), axis=-1) > 8).any():  # JPEG blurs greys by a few steps
            raise BadPair(f"{path.name} has colours; a mask is grey, or holds labels (classes: how many)")
        return colours[..., 0]
    if found.dtype.kind not in "ui" or found.min() < 0:
        raise BadPair(
            f"{path.name} holds {mask.mode} values down to {found.min():g}; a mask is grey or holds labels from 0"
        )
    return found if labels or mask.mode == "L" else np.minimum(found // 257, 255).astype(np.uint8)  # 16 bits
