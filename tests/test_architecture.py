"""The house, held to its plan: who imports whom, what import costs, how long files and functions may be."""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "minerua"

EVERYTHING = frozenset({"*"})
BASE = frozenset({"errors", "values"})
MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "exhibits": frozenset({"errors"}),
    "values": frozenset({"errors", "exhibits"}),
    "settings": frozenset({"errors"}),
    "hookspecs": BASE,
    "kernels": BASE | {"_core"},
    "registry": BASE | {"hookspecs"},
    "weights": BASE | {"kernels"},
    "chain": BASE | {"kernels"},
    "merge": BASE | {"weights", "kernels", "hookspecs"},
    "learning": BASE | {"settings", "weights", "hookspecs"},
    "evaluation": BASE | {"chain", "weights", "hookspecs"},
    "evolution": BASE,
    "report": BASE | {"evolution"},
    "conformance": BASE | {"registry", "chain", "hookspecs", "kernels"},
    "scaffold": frozenset({"errors", "registry"}),
    "config": BASE,
    "run": EVERYTHING,
    "skills": EVERYTHING,
    "cli": EVERYTHING,
    "__main__": frozenset({"cli"}),
    "__init__": BASE | {"hookspecs", "settings"},
}
"""Room → rooms that it may import. A room that is not here fails; `minerua/README.md` prints the same table."""

ONLY_MODULES = {
    ("chain", "kernels"): {"minerua.kernels.pool"},
    ("conformance", "kernels"): {"minerua.kernels.sources"},
}
"""(room, imported room) → the only modules of it that may be imported: chains need the pool and no arithmetic, exams
the types that merge methods are handed."""

NEVER_TORCH = {
    "errors",
    "exhibits",
    "values",
    "settings",
    "hookspecs",
    "registry",
    "evolution",
    "config",
    "report",
    "scaffold",
}
"""Rooms that import torch nowhere, not even inside a function."""

TORCH_WHEN_ASKED = {"kernels", "weights", "merge", "chain", "conformance", "cli", "__init__", "__main__"}
"""Rooms that import torch only inside functions, so that merging and the plugin commands start without it."""

PYTHON_FILES = sorted(
    path
    for folder in ("minerua", "plugins", "tests", "benchmarks")
    for path in (REPOSITORY / folder).rglob("*.py")
    if not {"build", "dist", ".venv"} & set(path.relative_to(REPOSITORY).parts)
)
NATIVE_FILES = sorted(p for p in (REPOSITORY / "csrc").rglob("*") if p.suffix in {".h", ".hpp", ".cpp", ".cu", ".cuh"})
SHIPPED_FILES = [path for path in PYTHON_FILES if "tests" not in path.parts and "benchmarks" not in path.parts]
MAX_LINES, MAX_BODY_LINES_P90, MAX_BODY_LINES_MEDIAN = 500, 40, 10
IMPORT_BUDGET_SECONDS = 0.15


# ── reading imports ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Import:
    """One imported module, absolute; `deferred` if the import is inside a function."""

    module: str
    line: int
    deferred: bool


def facade(source: str) -> dict[str, str]:
    """What `minerua` re-exports → the module it comes from, so that nobody reaches a room through the front door."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    homes = {f"minerua.{alias.name}": str(node.module) for node in nodes for alias in node.names}
    return {**homes, "minerua.__version__": "minerua.__version__"}


FACADE = facade((PACKAGE / "__init__.py").read_text("utf-8"))


def imports_of(source: str, *, module: str, is_package: bool, known: frozenset[str]) -> list[Import]:
    """Every import in a source except those under `if TYPE_CHECKING`; `from a import b` is `a.b` if that is known."""
    package = module if is_package else module.rpartition(".")[0]
    return list(_walk(ast.parse(source, module), package, known, deferred=False))


def _walk(node: ast.AST, package: str, known: frozenset[str], *, deferred: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        origin = ".".join([*parents, *([node.module] if node.module else [])])
        names = [FACADE.get(f"{origin}.{alias.name}", f"{origin}.{alias.name}") for alias in node.names]
        yield from (
            Import(name if name in known or name in FACADE.values() else origin, node.lineno, deferred)
            for name in names
        )
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = list(node.orelse)
    inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in children:
        yield from _walk(child, package, known, deferred=inside)


def modules_of(root: Path) -> dict[str, Path]:
    """Module name → file, for every Python file of the package in the folder `root`."""
    names = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def all_imports(root: Path) -> dict[str, list[Import]]:
    """Module name → its imports, for the package in the folder `root`."""
    modules = modules_of(root)
    known = frozenset(modules) | {f"{root.name}._core"}
    return {
        name: imports_of(path.read_text("utf-8"), module=name, is_package=path.name == "__init__.py", known=known)
        for name, path in modules.items()
    }


def room_of(module: str) -> str:
    """`minerua.weights.header` → `weights`; the package itself → `__init__`."""
    return [*module.split("."), "__init__"][1]


def trespasses(imports: dict[str, list[Import]]) -> list[str]:
    """Every import that the table does not allow, one sentence each."""
    found = []
    for module, its_imports in imports.items():
        room = room_of(module)
        if room not in MAY_IMPORT:
            found.append(f"{module}: the room {room!r} is not in the table; decide who may import whom and add it")
            continue
        found += [
            f"{module}:{one.line} imports {one.module}; {room} may import {sorted(MAY_IMPORT[room])}"
            for one in its_imports
            if one.module.split(".")[0] == "minerua" and not _is_allowed(room, one.module)
        ]
    return found


def _is_allowed(room: str, module: str) -> bool:
    other = room_of(module)
    if other == "_core":
        return room == "kernels"
    if other == room:
        return True
    if other == "__version__":
        return True
    if other == "__init__":  # `import minerua` without naming what is meant: only for those who may have all of it
        return BASE | {"hookspecs"} <= MAY_IMPORT[room] or MAY_IMPORT[room] == EVERYTHING
    only = ONLY_MODULES.get((room, other))
    return (MAY_IMPORT[room] == EVERYTHING or other in MAY_IMPORT[room]) and (only is None or module in only)


def cycle_in(imports: dict[str, list[Import]]) -> list[str]:
    """The modules of one cycle of imports at module level, first and last the same; empty if there is none."""
    graph = {
        module: {
            one.module for one in its_imports if not one.deferred and one.module in imports and one.module != module
        }
        for module, its_imports in imports.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def torch_imports(imports: dict[str, list[Import]]) -> list[str]:
    """Every import of torch in a room that must not have it."""
    return [
        f"{module}:{one.line} imports {one.module}"
        for module, its_imports in imports.items()
        for one in its_imports
        if one.module.split(".")[0] == "torch"
        and (room_of(module) in NEVER_TORCH or (room_of(module) in TORCH_WHEN_ASKED and not one.deferred))
    ]


# ── the house ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_import_is_allowed_by_the_table() -> None:
    assert trespasses(all_imports(PACKAGE)) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle_in(all_imports(PACKAGE)) == []


def test_torch_stays_out_of_the_rooms_that_do_without_it() -> None:
    assert torch_imports(all_imports(PACKAGE)) == []


def test_the_table_has_no_circle() -> None:
    rooms = {room: others - {"*", "_core"} for room, others in MAY_IMPORT.items()}
    assert len(list(TopologicalSorter(rooms).static_order())) == len(rooms)


def test_the_readme_prints_the_table_that_is_checked() -> None:
    text = (PACKAGE / "README.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, flags=re.MULTILINE))
    printed = {room: frozenset(re.findall(r"`([\w*]+)`", cell)) for room, cell in rows.items()}
    checked = {room: frozenset({"*"}) if names == EVERYTHING else names for room, names in MAY_IMPORT.items()}
    assert printed == checked


def test_the_readme_maps_every_room_that_exists() -> None:
    text = (PACKAGE / "README.md").read_text("utf-8")
    rooms = {room_of(module) for module in modules_of(PACKAGE)}
    assert [room for room in sorted(rooms) if f"`{room}`" not in text] == []


@pytest.mark.parametrize("path", PYTHON_FILES + NATIVE_FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_is_longer_than_can_be_read(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


def test_functions_are_short() -> None:
    lengths = [length for path in SHIPPED_FILES for length in body_lengths(path.read_text("utf-8"))]
    assert statistics.median(lengths) <= MAX_BODY_LINES_MEDIAN
    assert statistics.quantiles(lengths, n=10)[-1] <= MAX_BODY_LINES_P90


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_bare_except_and_no_assert(path: Path) -> None:
    assert careless_lines(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_a_module_lists_as_public_is_what_it_has(path: Path) -> None:
    listed, defined, imported = names_of(path.read_text("utf-8"))
    if listed is not None:
        assert sorted(set(listed)) == sorted(listed), "a name is listed twice"
        assert defined - set(listed) == set(), "defined without an underscore, but not listed"
        assert set(listed) - defined - imported - {"__version__"} == set(), "listed, but neither defined nor imported"


# ── what import costs and does ───────────────────────────────────────────────────────────────────────────────────────


def test_importing_minerua_is_quick(run_python: Any, hold_to_budget: Any) -> None:
    script = "import time; start = time.process_time(); import minerua; print(time.process_time() - start)"
    hold_to_budget(lambda: float(run_python("-c", script).stdout), IMPORT_BUDGET_SECONDS)


@pytest.mark.parametrize("module", ["minerua", "minerua.registry", "minerua.cli"])
def test_import_loads_neither_torch_nor_numpy(module: str, run_python: Any) -> None:
    script = f"import sys, {module}; print([name for name in ('torch', 'numpy', 'rich') if name in sys.modules])"
    assert run_python("-c", script).stdout == "[]\n"


EFFECTS = """
import gc, logging, os, signal, sys, threading, warnings
sys.dont_write_bytecode = True
acts = []
def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event.split(".")[0] in {"socket", "subprocess", "shutil", "tempfile", "ctypes"} or event in {
        "os.system", "os.mkdir", "os.remove", "os.rename", "os.putenv", "os.unsetenv", "os.chdir", "os.fork"}:
        acts.append((event, str(arguments)))
def state():
    return [dict(os.environ), os.getcwd(), list(sys.path), list(sys.meta_path), list(sys.path_hooks), sys.excepthook,
        sys.stdout, sys.stderr, list(warnings.filters), list(logging.root.handlers), logging.root.level, gc.isenabled(),
        threading.active_count(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
before = state()
sys.addaudithook(watch)
import minerua
import minerua.registry
after = state()
print([was for was, now in zip(before, after) if was != now], acts)
"""


def test_import_has_no_effects(run_python: Any) -> None:
    done = run_python("-W", "error", "-c", EFFECTS)
    assert (done.stdout, done.stderr) == ("[] []\n", "")


# ── the readers themselves ───────────────────────────────────────────────────────────────────────────────────────────


def body_lengths(source: str) -> list[int]:
    """How many lines each function has, from its first statement after the docstring to its last."""
    lengths = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lengths.append(body[-1].end_lineno - body[0].lineno + 1 if body else 0)  # type: ignore[operator]
    return lengths


def careless_lines(source: str) -> list[str]:
    """Every bare `except` and every `assert`."""
    nodes = ast.walk(ast.parse(source))
    bare = [n for n in nodes if (isinstance(n, ast.ExceptHandler) and n.type is None) or isinstance(n, ast.Assert)]
    return [f"line {node.lineno}: {ast.unparse(node).splitlines()[0]}" for node in bare]


def names_of(source: str) -> tuple[list[str] | None, set[str], set[str]]:
    """The names in `__all__` (`None` without one), the public names that are defined here, and the imported ones."""
    listed, defined, imported = None, set[str](), set[str]()
    body = ast.parse(source).body
    if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in body):
        body += [inner for node in body if isinstance(node, ast.If) for inner in node.body]  # imported when used
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if "__all__" in names:
            listed = ast.literal_eval(node.value)  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = {node.name}
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
        defined |= {name for name in names if not name.startswith("_")}
    return listed, defined, imported


def read(source: str, module: str = "minerua.evolution.cycle") -> list[Import]:
    known = frozenset({"minerua", "minerua.kernels", "minerua.kernels.pool", "minerua.evolution", "minerua.values"})
    return imports_of(source, module=module, is_package=False, known=known)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import minerua.values", [("minerua.values", False)]),
        ("from minerua import values, hookimpl", [("minerua.values", False), ("minerua.hookspecs", False)]),
        ("from minerua import __version__, MineruaError", [("minerua.__version__", False), ("minerua.errors", False)]),
        ("import minerua", [("minerua", False)]),
        ("from minerua.values import Genome", [("minerua.values", False)]),
        ("from ..values import Genome", [("minerua.values", False)]),
        ("from .. import values", [("minerua.values", False)]),
        ("from . import selection", [("minerua.evolution", False)]),
        ("def f():\n    import torch.linalg", [("torch.linalg", True)]),
        ("class A:\n    import torch", [("torch", False)]),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None", [("torch", False)]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import json", [("json", False)]),
        ("import typing\nif typing.TYPE_CHECKING:\n    import torch", [("typing", False)]),
    ],
)
def test_the_reader_sees_imports_wherever_they_are(source: str, expected: list[tuple[str, bool]]) -> None:
    assert [(one.module, one.deferred) for one in read(source)] == expected


@pytest.mark.parametrize(
    ("module", "source", "is_allowed"),
    [
        ("minerua.evolution.cycle", "from minerua.values import Genome", True),
        ("minerua.evolution.cycle", "from minerua.evolution import archive", True),
        ("minerua.evolution.cycle", "def f():\n    from minerua.kernels import merge", False),
        ("minerua.weights.subspace", "from minerua.kernels import merge", True),
        ("minerua.weights.subspace", "import minerua._core", False),
        ("minerua.kernels.pool", "from minerua import _core", True),
        ("minerua.chain.running.executor", "from minerua.kernels.pool import ResourcePool", True),
        ("minerua.chain.running.executor", "from minerua.kernels import merge", False),
        ("minerua.merge.methods", "from minerua import MergeMethodSpec, hookimpl", True),
        ("minerua.config", "from minerua import hookimpl", False),
        ("minerua.config", "from minerua import MineruaError, Skill, __version__", True),
        ("minerua.config", "import minerua", False),
        ("minerua.merge.methods", "import minerua", True),
        ("minerua.cli", "from minerua.evolution.cycle import Cycle", True),
        ("minerua.helpers", "", False),
    ],
)
def test_the_table_is_applied_to_a_single_import(module: str, source: str, is_allowed: bool) -> None:
    known = frozenset({"minerua._core", "minerua.kernels", "minerua.evolution", "minerua.kernels.pool"})
    imports = imports_of(source, module=module, is_package=False, known=known)
    assert (trespasses({module: imports}) == []) is is_allowed


def test_circles_are_found_at_module_level_only() -> None:
    there, back = Import("minerua.b", 1, deferred=False), Import("minerua.a", 1, deferred=False)
    assert set(cycle_in({"minerua.a": [there], "minerua.b": [back]})) == {"minerua.a", "minerua.b"}
    assert cycle_in({"minerua.a": [there], "minerua.b": [Import("minerua.a", 1, deferred=True)]}) == []


def test_torch_is_found_where_it_may_not_be() -> None:
    now, later = Import("torch.linalg", 3, deferred=False), Import("torch", 4, deferred=True)
    assert torch_imports({"minerua.evolution.cycle": [later]}) == ["minerua.evolution.cycle:4 imports torch"]
    assert torch_imports({"minerua.kernels": [now, later]}) == ["minerua.kernels:3 imports torch.linalg"]
    assert torch_imports({"minerua.learning.trainer": [now, later]}) == []


def test_the_readers_of_style_see_what_they_should() -> None:
    source = 'def f():\n    """Doc."""\n    assert 1\n    try:\n        g()\n    except:\n        pass\n'
    assert body_lengths(source) == [5]
    assert careless_lines(source) == ["line 3: assert 1", "line 6: except:"]
    module = '__all__ = ["A"]\nimport os\nfrom minerua.b import B\nA: int = 1\n_c = 2\nclass D: ...\n'
    assert names_of(module) == (["A"], {"A", "D"}, {"os", "B"})
    assert names_of("x = 1")[0] is None


def test_third_party_imports_are_declared_dependencies() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    project = text.split("[project]")[1].split("[project.scripts]")[0]
    declared = {
        re.sub(r"[-.]", "_", name).lower() for name in re.findall(r'^\s+"([A-Za-z0-9_.-]+)', project, re.MULTILINE)
    }
    declared |= {module for module, name in (("yaml", "pyyaml"), ("PIL", "pillow")) if name in declared}
    found = {one.module.split(".")[0] for its_imports in all_imports(PACKAGE).values() for one in its_imports}
    assert sorted(found - set(sys.stdlib_module_names) - {"minerua"} - declared) == []
