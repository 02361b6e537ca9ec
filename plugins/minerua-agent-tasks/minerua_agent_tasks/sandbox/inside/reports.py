"""What is told to the outside: a line of JSON, written by hand, for what `json` imports would be a third of a start."""

from __future__ import annotations


def line(fields: dict[str, str | int | float | bool | None]) -> bytes:
    """Returns fields as one line of JSON, in ASCII."""
    return ("{" + ", ".join(f"{_text(name)}: {_value(value)}" for name, value in fields.items()) + "}\n").encode()


def _value(value: str | int | float | bool | None) -> str:
    if value is None:
        return "null"
    return _text(value) if isinstance(value, str) else str(value).lower()  # True is true there


def _text(text: str) -> str:
    return '"' + "".join(c if " " <= c <= "~" and c not in '"\\' else _escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    """Returns a character as one escape or, beyond 16 bits, as the two of its surrogates."""
    code = ord(character)
    if code < 1 << 16:
        return f"\\u{code:04x}"
    return f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
