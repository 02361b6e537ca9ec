"""Builds the site: every document of the repository, and a reference of every room made from its docstrings.

    python .ci/docs/build.py build/site

A warning is an error. Nothing is fetched; minerua and what `.[docs]` names must be installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACKAGE = REPOSITORY / "minerua"
SHELVES = ("minerua", "csrc", "benchmarks", "tests", "plugins")
"""Folders whose documents are pages."""

IMPORTED = "   :imported-members:\n"
"""A door passes on what its room's modules define; which of it, `__all__` says."""

LINK = re.compile(r"\[([^]]*)\]\((?![a-z]+:|#)([^)#\s]+)([^)]*)\)")


def main() -> int:
    """Writes the site to the folder that the command line names."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in pages().items():
            page = Path(folder, name)
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
        options = [
            "-W",
            "--keep-going",
            "-q",
            "-j",
            "auto",
            "-c",
            str(Path(__file__).parent),
            "-d",
            f"{folder}/.doctrees",
        ]
        return subprocess.call([sys.executable, "-m", "sphinx", *options, folder, sys.argv[1]])


def pages() -> dict[str, str]:
    """Returns path → text of every page. A document keeps its path, so that links lead where they should."""
    texts = {named(path): with_links(path) for path in documents()}
    for room in rooms():
        texts[f"minerua/{room.name}/reference.rst"] = reference(f"minerua.{room.name}", modules_of(room))
    for name in single_modules():
        texts[f"minerua/{name}.rst"] = reference(f"minerua.{name}", [f"minerua.{name}"])
    texts["index.rst"] = index()
    return texts


# ── what there is ────────────────────────────────────────────────────────────────────────────────────────────────────


def documents() -> list[Path]:
    """Returns every document in the tree; what a build left there is none."""
    found = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md"]
    for shelf in SHELVES:
        found += [path for path in sorted((REPOSITORY / shelf).rglob("*.md")) if "build" not in named(path).split("/")]
    return found


def rooms() -> list[Path]:
    """Returns the folders with code, in the order of their names."""
    return sorted(path for path in PACKAGE.iterdir() if (path / "README.md").is_file() and any(path.rglob("*.py")))


def single_modules() -> list[str]:
    """Returns the modules that are files of the package itself."""
    return sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))


def modules_of(room: Path) -> list[str]:
    """Returns what users import from: the room's door if it lists names, otherwise the modules beside it."""
    if "__all__" in (room / "__init__.py").read_text("utf-8"):
        return [f"minerua.{room.name}"]
    return [f"minerua.{room.name}.{path.stem}" for path in sorted(room.glob("*.py")) if not path.stem.startswith("_")]


def named(path: Path) -> str:
    """Returns a path as the repository knows it."""
    return path.relative_to(REPOSITORY).as_posix()


# ── what is on a page ────────────────────────────────────────────────────────────────────────────────────────────────


def index() -> str:
    """Returns the page that holds the others together."""
    others = [named(path) for path in documents() if named(path).split("/")[0] in ("csrc", "benchmarks", "tests")]
    plugins = [named(path) for path in documents() if named(path).startswith("plugins/")]
    about = [page for room in rooms() for page in (*map(named, room.rglob("*.md")), f"{named(room)}/reference.rst")]
    modules = [f"minerua/{name}.rst" for name in single_modules()]
    parts = [
        contents("Start", ["README.md", "CHANGELOG.md"]),
        contents("Plugins", plugins),
        contents("Rooms", ["minerua/README.md", *about, "minerua/recipes/README.md"]),
        contents("Modules", modules),
        contents("Behind the scenes", others),
    ]
    return "\n".join([titled("minerua"), *parts])


def contents(caption: str, names: list[str]) -> str:
    """Returns one part of the navigation."""
    entries = "".join(f"   {name.rpartition('.')[0]}\n" for name in names)
    return f".. toctree::\n   :caption: {caption}\n   :maxdepth: 1\n\n{entries}"


def reference(title: str, modules: list[str]) -> str:
    """Returns the page with everything public of some modules."""
    sections = [f".. automodule:: {module}\n{IMPORTED if is_door(module) else ''}" for module in modules]
    return "\n".join([titled(f"{title}: reference"), *sections])


def is_door(module: str) -> bool:
    """Whether a module is the door of a room."""
    return (REPOSITORY / module.replace(".", "/")).is_dir()


def titled(text: str) -> str:
    """Returns a heading."""
    return f"{text}\n{'=' * len(text)}\n"


def with_links(path: Path) -> str:
    """Returns a document whose links to files that are no pages have become plain names."""
    known = set(documents())

    def followed(link: re.Match[str]) -> str:
        target = (path.parent / link[2]).resolve()
        page = target / "README.md" if target.is_dir() else target
        return f"[{link[1]}]({os.path.relpath(page, path.parent)}{link[3]})" if page in known else link[1]

    return LINK.sub(followed, path.read_text("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
