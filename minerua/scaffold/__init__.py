"""Writes the plugin that an author starts from: a small package that installs and passes its exam as it is."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from string import Template

from minerua.errors import ConfigError, StorageError, unknown
from minerua.registry import KINDS

__all__ = ["KIND_NAMES", "Written", "write_plugin"]

_TEMPLATES = Path(__file__).parent / "templates"
_GROUP = "minerua"
_TORCH = ("optimizer", "loss", "model")
"""Kinds whose template needs torch by itself."""
_SUMMARIES = {
    "skill": "counts the words of a text",
    "optimizer": "gradient descent with a momentum",
    "loss": "the logarithm of the hyperbolic cosine of every error",
    "evaluator": "sums of two numbers",
    "model": "two layers that take eight numbers to four",
    "merge-method": "a weighted mean without outliers",
}

KIND_NAMES = tuple(_SUMMARIES)
"""What a plugin can be started as."""


@dataclass(frozen=True)
class Written:
    """A plugin that was written.

    Args:
        folder: Where it lies.
        files: What was written, relative to the folder, sorted.
        commands: What its author does next, in this order.
    """

    folder: Path
    files: tuple[str, ...]
    commands: tuple[str, ...]


def write_plugin(name: str, kind: str, *, out: Path | None = None) -> Written:
    """Writes a package with one plugin, its test, and what a repository of its own needs.

    Args:
        name: The distribution, the entry point and the thing that it provides: lower case, words joined by `-`. Its
            module has `_` for `-`.
        kind: One of `KIND_NAMES`.
        out: The folder to make; it must not exist. Default: the name, in the working directory.

    Raises:
        ConfigError: The name, the kind or the folder cannot be used; lists every fault. Nothing is written then.
        StorageError: The folder cannot be written; nothing is left of it.
    """
    folder = Path(name) if out is None else out
    faults = [*_name_faults(name), *_kind_faults(kind), *_folder_faults(folder)]
    if faults:
        raise ConfigError("the plugin cannot be written", faults)
    texts = _texts(name, kind)
    _write(folder, texts)
    commands = (f"cd {folder}", 'pip install -e ".[test]"', "pytest")
    return Written(folder, tuple(sorted(texts)), commands)


# ── what can be wrong ────────────────────────────────────────────────────────────────────────────────────────────────


def _name_faults(name: str) -> list[str]:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        return [f"the name {name!r} is not lower-case words joined by '-', such as 'acme-loss'"]
    module, faults = name.replace("-", "_"), list[str]()
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        faults.append(f"the name {name!r} is a keyword of Python; add a word, such as '{name}-plugin'")
    if module in sys.stdlib_module_names or module == _GROUP:
        faults.append(f"the name {name!r} is that of a module that Python or minerua has; add a word of your own")
    owner = _owner_of(name)
    if owner:
        faults.append(
            f"the name {name!r} is taken by the installed distribution {owner}; choose another, or uninstall it"
        )
    return faults


def _owner_of(name: str) -> str | None:
    """Returns the installed distribution that has the name, or an entry point of it."""
    for distribution in importlib.metadata.distributions():
        own = distribution.metadata["Name"] or ""
        entries = [entry.name for entry in distribution.entry_points if entry.group == _GROUP]
        if name in entries or re.sub(r"[-_.]+", "-", own).lower() == name:
            return f"{own} {distribution.version}"
    return None


def _kind_faults(kind: str) -> list[str]:
    return [] if kind in KIND_NAMES else [unknown("kind of plugin", kind, KIND_NAMES)]


def _folder_faults(folder: Path) -> list[str]:
    if folder.exists() or folder.is_symlink():
        return [f"{folder} exists; nothing is overwritten: name another folder with --out, or move it away"]
    if not folder.absolute().parent.is_dir():
        return [f"the folder {folder.absolute().parent} does not exist; make it first, or name another with --out"]
    return []


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _texts(name: str, kind: str) -> dict[str, str]:
    """Returns path → text of every file."""
    module, hook = name.replace("-", "_"), next(one.hook for one in KINDS if one.singular == kind.replace("-", " "))
    needs = ["minerua>=0.1", *(["torch>=2.4"] if kind in _TORCH else [])]
    words = {
        "name": name,
        "module": module,
        "hook": hook,
        "what": f"{'An' if kind[0] in 'aeiou' else 'A'} {kind.replace('-', ' ')}",
        "summary": _SUMMARIES[kind],
        "dependencies": ", ".join(f'"{one}"' for one in needs),
    }
    sources = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".gitignore": "gitignore",
        ".github/workflows/tests.yml": "tests.yml",
        f"{module}.py": f"{kind}.py",
        f"tests/test_{module}.py": f"test_{kind}.py",
    }
    return {
        path: Template((_TEMPLATES / f"{source}.txt").read_text("utf-8")).substitute(words)
        for path, source in sources.items()
    }


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Writes beside the folder first, so that it appears whole or not at all."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.absolute().parent))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error
    try:
        for path, text in texts.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_text(text, encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(folder)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise StorageError(f"{folder} cannot be written: {error}") from error
