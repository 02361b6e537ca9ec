r"""What people are shown of a model: a text or a picture per item; a word of the vocabulary in `minerua.values`.

Nothing here imports numpy or torch; that bytes are a picture is seen by how they begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minerua.errors import BrokenPlugin

__all__ = ["Exhibit"]

_SIGNATURE, _FIRST_CHUNK, _FEWEST_BYTES = b"\x89PNG\r\n\x1a\n", b"IHDR", 33
"""How a PNG file begins, and the length of what must stand there: W3C, PNG Specification, sections 5.2 and 11.2.2."""


@dataclass(frozen=True)
class Exhibit:
    r"""What a model makes of one item, for people to look at: a text, a picture, or both.

    Args:
        item: The item's id.
        title: One line above it, such as the item's outcome; may be empty.
        text: Shown as it is, in letters of one width; `None`: there is none.
        png: A picture, the bytes of a PNG file; `None`: there is none.

    Raises:
        BrokenPlugin: It has neither text nor picture, a field has another type, the title has several lines, or the
            picture is no PNG; all faults at once.

    Example:
        >>> Exhibit("7", "right", text="2 + 2 = 4").png is None
        True
        >>> Exhibit("7", png=b"\xff\xd8\xff")
        Traceback (most recent call last):
        minerua.errors.BrokenPlugin: the exhibit of item '7' cannot be shown
          - png begins with b'\xff\xd8\xff'; the bytes of a PNG file are needed
    """

    item: str
    title: str = ""
    text: str | None = None
    png: bytes | None = None

    def __post_init__(self) -> None:
        faults = [*_text_faults(self.item, self.title, self.text), *_picture_faults(self.png)]
        if self.text is None and self.png is None:
            faults.append("it has neither a text nor a png; give one of them, or both")
        if faults:
            raise BrokenPlugin(f"the exhibit of item {self.item!r:.60} cannot be shown", faults)


def _text_faults(item: Any, title: Any, text: Any) -> list[str]:
    named = {"item": item, "title": title} | ({} if text is None else {"text": text})
    faults = [
        f"{name} is {value!r:.60}; expected a text" for name, value in named.items() if not isinstance(value, str)
    ]
    lines = len(title.splitlines()) if isinstance(title, str) else 0
    return faults if lines < 2 else [*faults, f"title has {lines} lines; what is longer than one belongs into text"]


def _picture_faults(png: Any) -> list[str]:
    if png is None:
        return []
    if not isinstance(png, bytes):
        return [f"png is {png!r:.60}; expected bytes"]
    if png.startswith(_SIGNATURE) and png[12:16] == _FIRST_CHUNK and len(png) >= _FEWEST_BYTES:
        return []
    return [f"png begins with {png[:8]!r}; the bytes of a PNG file are needed"]
