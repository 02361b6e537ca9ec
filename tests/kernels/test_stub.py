"""minerua/_core.pyi says what the compiled module has: names, signatures and docstring."""

import ast
import inspect
import re
from pathlib import Path

import minerua
from minerua.kernels import compiled

STUB = ast.parse(Path(minerua.__file__).with_name("_core.pyi").read_text(encoding="utf-8"))
CLASSES = [node for node in STUB.body if isinstance(node, ast.ClassDef)]
PREFIXES = re.compile(r"\b(?:collections\.abc|typing|typing_extensions)\.")


def own_names(module):
    return {name for name in vars(module) if not name.startswith("__")}


def test_the_stub_has_the_names_of_the_module():
    functions = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef)}
    values = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
    assert functions | values | {node.name for node in CLASSES} == own_names(compiled.require_core())


def test_the_stub_has_the_members_of_every_type_and_no_other():
    for node in CLASSES:
        said = {member.name for member in node.body if isinstance(member, ast.FunctionDef)} - {"__init__"}
        there = set(vars(getattr(compiled.require_core(), node.name)))
        plain = {"__doc__", "__module__", "__repr__", "__init__", "__new__", "__buffer__", "__release_buffer__"}
        assert said == there - plain, node.name


def test_the_stub_has_the_signatures_of_every_type():
    for node in CLASSES:
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and not (member.decorator_list or member.name.startswith("_")):
                there = inspect.signature(getattr(getattr(compiled.require_core(), node.name), member.name))
                for argument in (*member.args.args, *member.args.kwonlyargs):
                    argument.annotation = None
                said = ast.unparse(member.args)
                assert said.replace(" ", "") == str(there).strip("()").replace(", /", "").replace(" ", ""), member.name


def test_the_stub_has_the_signatures_of_the_module():
    core = compiled.require_core()
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            generated = PREFIXES.sub("", getattr(core, node.name).__doc__.splitlines()[0])
            assert generated == f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


def test_the_stub_has_the_docstring_of_the_module():
    assert ast.get_docstring(STUB) == compiled.require_core().__doc__
