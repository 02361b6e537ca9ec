"""Masks drawn over images: as PNG for a run's report, and as a page that needs nothing but itself."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LEGEND", "LINE", "LINE_SIDE", "OUTLINES", "STYLE", "TITLE", "outlined", "page", "panel", "strip"]

BLUE, ORANGE, WHITE, BLACK = (0, 114, 178), (230, 159, 0), (255, 255, 255), (0, 0, 0)
"""Of Okabe and Ito's palette: told apart by everybody."""

LINE = 3
"""Pixels of a line."""

SIDE, GAP = 96, 4
"""Pixels of a panel's longer side, at least, and between panels."""

OUTLINES = "white: there, orange: found"
"""What the two lines of `outlined` mean."""

LINE_SIDE = 288
"""Pixels of the longer side on which lines are drawn: two such pictures are below 512 KiB, whatever they show."""

TITLE = "What the models find"
LEGEND = (
    "Blue: found, and there. Orange: found, and not there. White: there, and not found. Scores are means over all "
    "items of a task, those that evolution has seen among them; the run's report has the test items alone."
)
STYLE = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
img{max-width:100%;height:auto;image-rendering:pixelated}table{border-collapse:collapse}
td,th{padding:.2rem .8rem .2rem 0;text-align:right}td:first-child,th:first-child{text-align:left}
.box{overflow-x:auto}
"""


def panel(image: np.ndarray, mask: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Returns an image with a mask on it: blue what was found rightly, orange what wrongly, white what is missing.

    Args:
        image: Shape (h, w, 3), uint8.
        mask: Shape (h, w), bool: what is there.
        found: The same: what was found.

    Example:
        >>> import numpy as np
        >>> one = np.ones((1, 1), bool)
        >>> panel(np.zeros((1, 1, 3), np.uint8), one, one).tolist()
        [[[0, 63, 98]]]
    """
    import numpy as np

    drawn = image.astype(np.float64)
    for part, colour in ((mask & found, BLUE), (found & ~mask, ORANGE), (mask & ~found, WHITE)):
        drawn[part] = 0.45 * drawn[part] + 0.55 * np.array(colour)
    return np.asarray(drawn.round().astype(np.uint8))


def outlined(image: np.ndarray, mask: np.ndarray, found: np.ndarray) -> bytes:
    """Returns an image beside itself with two outlines on it, as one PNG.

    White runs around what is there, on its outside; orange around what was found, on its inside. So where both have
    the same border both are seen, side by side.

    Args:
        image: Shape (h, w, 3), uint8.
        mask: Shape (h, w), bool: what is there.
        found: The same: what was found.
    """
    import numpy as np
    from PIL import Image

    height, width = mask.shape
    scale = LINE_SIDE / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))

    def sized(array: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(array).resize(size, how))

    plain = sized(image, Image.Resampling.BICUBIC)
    there, seen = (sized(part * np.uint8(255), Image.Resampling.BILINEAR) > 127 for part in (mask, found))
    drawn = plain.copy()
    drawn[_widened(there, LINE + 1) & ~there] = BLACK  # a rim, so that lines are seen on what has their colour
    drawn[_widened(~seen, LINE + 1) & seen] = BLACK
    drawn[_widened(there, LINE) & ~there] = WHITE
    drawn[_widened(~seen, LINE) & seen] = ORANGE
    between = np.full((size[1], GAP, 3), 128, np.uint8)
    written = io.BytesIO()
    both = Image.fromarray(np.concatenate([plain, between, drawn], 1))
    both.save(written, "PNG", compress_level=4)  # 3 % longer than Pillow's `optimize`, and 15 times as fast
    return written.getvalue()


def _widened(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Returns a mask with everything that is so near to it, counted in steps to the four sides."""
    import numpy as np

    wide = mask.copy()
    for _ in range(pixels):
        grown = np.pad(wide, 1)
        wide = grown[1:-1, 1:-1] | grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
    return wide


def strip(rows: Sequence[Sequence[np.ndarray]]) -> bytes:
    """Returns pictures in rows as one PNG; all have one shape, (h, w, 3), uint8, and small ones are enlarged."""
    import numpy as np
    from PIL import Image

    height, width = rows[0][0].shape[:2]
    scale = -(-SIDE // max(height, width))
    gap = max(GAP // scale, 1)
    sheet = np.full((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), 128, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            sheet[y : y + height, x : x + width] = picture
    image = Image.fromarray(sheet)
    written = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(written, "PNG")
    return written.getvalue()


def page(pictures: Mapping[str, bytes], columns: Sequence[str], scores: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a page with the pictures in it; it may ask for nothing, and all text is escaped.

    Args:
        pictures: Task → PNG.
        columns: What the pictures show from left to right.
        scores: Task → model → mean outcome over all of the task's items.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    parts = "".join(_section(task, picture, columns, scores[task]) for task, picture in pictures.items())
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{TITLE}</title><style>{STYLE}</style>"
    )
    body = f"<h1>{TITLE}</h1><p>{LEGEND}</p>{parts}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _section(task: str, picture: bytes, columns: Sequence[str], scores: Mapping[str, float]) -> str:
    shown = ", ".join(columns)
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{score:.3f}</td></tr>" for name, score in scores.items())
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    alt = html.escape(f"Images of the task {task}; from left to right: {shown}")
    return (
        f"<h2>{html.escape(task)}</h2><p>From left to right: {html.escape(shown)}.</p>"
        f'<div class="box"><img src="{source}" alt="{alt}"></div>'
        f"<table><tr><th>model</th><th>score</th></tr>{rows}</table>"
    )
