"""HTML and SVG as text that cannot be broken by what stands in a journal: whatever is not `Markup` is escaped."""

from __future__ import annotations

import html
import json
from typing import Any

VOID = frozenset({"meta", "br", "hr", "link", "input", "col", "img"})
"""HTML elements without an end tag."""


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def element(name: str, /, *content: object, **attributes: object) -> Markup:
    """Returns one element.

    Args:
        name: The element's name.
        content: Its children, in order; `Markup` as it is, `None` left out, anything else as escaped text.
        attributes: Its attributes; a trailing underscore is dropped and others become hyphens (`class_`, `data_c`). An
            attribute that is `None` or `False` is left out, `True` has no value.

    Example:
        >>> element("p", "1 < 2", class_="note")
        '<p class="note">1 &lt; 2</p>'
    """
    start = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    return Markup(start if name in VOID else f"{start}{join(*content)}</{name}>")


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(number(value))}"'


def number(value: object) -> str:
    """Returns a value as text; a coordinate keeps two decimals, so that pictures stay small.

    Example:
        >>> number(1 / 3), number(2.0), number("a")
        ('0.33', '2', 'a')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def join(*content: object) -> Markup:
    """Returns the contents one after the other, escaped unless they are `Markup`; `None` is left out."""
    return Markup(
        "".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in content if part is not None)
    )


def embedded_json(value: Any) -> Markup:
    r"""Returns JSON that is safe inside a `<script>` element: no `<`, `>` or `&` is left in it.

    Example:
        >>> embedded_json("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
