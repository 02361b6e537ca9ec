"""Masks drawn over images, as PNG and as a page that needs nothing but itself."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LEGEND", "STYLE", "TITLE", "page", "panel", "strip"]

BLUE, ORANGE, WHITE = (0, 114, 178), (230, 159, 0), (255, 255, 255)
"""Of Okabe and Ito's palette: told apart by everybody."""

SIDE, GAP = 96, 4
"""Pixels of a panel's longer side, at least, and between panels."""

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
