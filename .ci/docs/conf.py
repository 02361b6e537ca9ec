"""How Sphinx makes the site out of what build.py lays before it."""

from __future__ import annotations

import itertools
from typing import Any

project = "minerua"
copyright = "the minerua authors, Apache-2.0"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
templates_path: list[str] = []
html_theme = "furo"
html_title = "minerua"
html_copy_source = False
html_show_sphinx = False

default_role = "literal"  # docstrings put code in single backticks, as Markdown does
myst_heading_anchors = 3
# A document may begin below its first level of headings; two rooms may have one name for two things.
suppress_warnings = ["myst.header", "ref.python"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]


def setup(app: Any) -> dict[str, bool]:
    """Lets docstrings be written as they are read in a terminal."""
    app.connect("autodoc-process-docstring", _escape, priority=0)
    app.connect("autodoc-process-docstring", _align, priority=900)  # after napoleon's
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}


def _escape(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Takes from stars and bars what they mean to Sphinx."""
    lines[:] = [line if ">>>" in line else line.replace("*", r"\*").replace("|", r"\|") for line in lines]


def _skip(app: Any, what: str, name: str, thing: Any, is_skipped: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, which the docstring of their class describes."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None


def _align(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Lets the lines of a paragraph hang as they like: deeper ones are taken back to where its text begins."""
    aligned: list[str] = []
    for is_text, paragraph in itertools.groupby(lines, key=lambda line: bool(line.strip())):
        block = list(paragraph)
        aligned += _aligned(block) if is_text else block
    lines[:] = aligned


def _aligned(paragraph: list[str]) -> list[str]:
    if any(line.lstrip().startswith((">>>", "..")) for line in paragraph):
        return paragraph
    aligned, most, was_item = [], 0, True
    for line in paragraph:
        indent = len(line) - len(line.lstrip())
        is_item = line.lstrip().startswith((":", "- ", "+ "))
        if is_item or was_item:
            most = indent
        aligned.append(line[max(0, indent - most) :])
        was_item = is_item
    return aligned
