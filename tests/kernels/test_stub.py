"""minerua/_core.pyi says what the compiled module has: names, signatures and docstring."""

import ast
import re
from pathlib import Path

import minerua
from minerua.kernels import compiled

STUB = ast.parse(Path(minerua.__file__).with_name("_core.pyi").read_text(encoding="utf-8"))
PREFIXES = re.compile(r"\b(?:collections\.abc|typing|typing_extensions)\.")


def own_names(module):
    return {name for name in vars(module) if not name.startswith("__")}


def test_the_stub_has_the_names_of_the_module():
    functions = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef)}
    values = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
    assert functions | values == own_names(compiled.require_core())


def test_the_stub_has_the_signatures_of_the_module():
    core = compiled.require_core()
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            generated = PREFIXES.sub("", getattr(core, node.name).__doc__.splitlines()[0])
            assert generated == f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


def test_the_stub_has_the_docstring_of_the_module():
    assert ast.get_docstring(STUB) == compiled.require_core().__doc__
