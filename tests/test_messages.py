"""Messages are tests: of every text that minerua says when something is wrong, some test reads a part.

Nothing is imported here, sources are read. A *message* is a text in a `raise`, and, outside the rooms that write
pages, any text of three words or more: faults, reasons of failures and remedies are built far from where they are
raised. It is *read* if a test expects at least `READ` letters in a row of it: in a `match=`, in a comparison, in
`startswith` or `endswith`, or among the cases of a parametrised test; directly, or by a name that holds it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

READ = 12
"""How many letters in a row of a message a test must expect: about two words."""

SEGMENTATION = "plugins/minerua-segmentation/minerua_segmentation/"
PAGES = (
    "minerua/report/",
    "minerua/cli/",
    *(f"{SEGMENTATION}{name}.py" for name in ("__main__", "drawing", "overlays")),
)
"""Where texts are pages, tables and help; there only the texts of a `raise` are messages."""

BOOT = "import sys;sys.path.insert(0,sys.argv[1]);from inside.zygote import main;main(sys.argv[2:])"
EXCEPTIONS: dict[str, str] = {BOOT: "what Python is started with: no message"}
"""A message that no test reads → why not."""


@dataclass(frozen=True)
class Message:
    """A text as the source has it: its literal parts, without what is filled in."""

    place: str
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {'…'.join(self.parts)}"


# ── reading sources ──────────────────────────────────────────────────────────────────────────────────────────────────


def texts(node: ast.AST) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields line and literal parts of every text below a node, docstrings left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr):
            yield child.lineno, tuple(str(v.value) for v in child.values if isinstance(v, ast.Constant))
            for value in child.values:
                if isinstance(value, ast.FormattedValue):
                    yield from texts(value)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.lineno, (child.value,)
        elif not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            yield from texts(child)


def is_sentence(parts: tuple[str, ...]) -> bool:
    text = " ".join(parts)
    return " " in text and len(re.findall(r"[A-Za-z]{2,}", text)) >= 3


def messages(source: str, path: str) -> list[Message]:
    """Returns the messages of a source, each once."""
    tree = ast.parse(source)
    raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    found = [text for node in raised for text in texts(node) if len("".join(text[1])) >= READ]
    if not path.startswith(PAGES):
        found += [text for text in texts(tree) if is_sentence(text[1])]
    return [Message(f"{path}:{line}", parts) for line, parts in dict.fromkeys(found)]


def expectations(source: str) -> Iterator[str]:
    """Yields every text that a test expects, regular expressions without their escapes."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        for place in expecting(node, constants):
            for _, parts in texts(ast.Tuple([place])):
                yield re.sub(r"\\(\W)", r"\1", "…".join(parts))


def expecting(node: ast.AST, constants: dict[str, ast.expr]) -> Iterator[ast.expr]:
    """Yields the expressions at a node whose texts are compared with what was said."""
    if isinstance(node, ast.keyword) and node.arg == "match":
        yield node.value
    elif isinstance(node, ast.Compare):
        sides = (node.left, *node.comparators)
        yield from sides
        yield from (constants[side.id] for side in sides if isinstance(side, ast.Name) and side.id in constants)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ("startswith", "endswith", "fullmatch", "search"):
            yield from node.args
        elif node.func.attr == "parametrize":
            yield from node.args[1:]
            yield from (constants[n.id] for a in node.args for n in ast.walk(a) if getattr(n, "id", "") in constants)


def runs(text: str) -> set[str]:
    return {text[i : i + READ] for i in range(len(text) - READ + 1)}


def unread(found: list[Message], expected: list[str]) -> list[Message]:
    """Returns the messages that nothing expects.

    What several messages share tells none of them: one that has words of its own must be expected with some of them.
    One without a long part must be expected with all its parts.
    """
    known = {run for text in expected for run in runs(text)}
    owners = Counter(run for parts in {m.parts for m in found} for run in set().union(*map(runs, parts)))
    return [m for m in found if not (own_runs(m, owners) & known or is_short_and_read(m, expected))]


def own_runs(message: Message, owners: Counter[str]) -> set[str]:
    """Returns the runs that no other message has; all of them if it shares each."""
    every = set().union(*map(runs, message.parts))
    return {run for run in every if owners[run] == 1} or every


def is_short_and_read(message: Message, expected: list[str]) -> bool:
    if any(len(part) >= READ for part in message.parts):
        return False
    pattern = re.compile(".*?".join(re.escape(part.strip()) for part in message.parts), re.DOTALL)
    return any(pattern.search(text) for text in expected)


# ── the rule ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def all_messages() -> list[Message]:
    paths = [*(REPOSITORY / "minerua").rglob("*.py"), *plugin_files()]
    return [m for p in sorted(paths) for m in messages(p.read_text("utf-8"), p.relative_to(REPOSITORY).as_posix())]


def plugin_files() -> list[Path]:
    """Returns what plugins ship, wherever it lies in their folders; not their tests, nor what a build left there."""
    plugins = REPOSITORY / "plugins"
    aside = {"tests", "build", "dist", ".venv"}
    return [path for path in plugins.rglob("*.py") if not aside & set(path.relative_to(plugins).parts[1:])]


def all_expectations() -> list[str]:
    paths = [*(REPOSITORY / "tests").rglob("*.py"), *(REPOSITORY / "plugins").glob("*/tests/*.py")]
    return [text for p in sorted(paths) if p != Path(__file__) for text in expectations(p.read_text("utf-8"))]


def test_every_message_is_read_by_a_test() -> None:
    left = [m for m in unread(all_messages(), all_expectations()) if "…".join(m.parts) not in EXCEPTIONS]
    assert not left, "no test reads:\n" + "\n".join(map(str, left))


def test_every_exception_is_still_needed() -> None:
    left = {"…".join(message.parts) for message in unread(all_messages(), all_expectations())}
    assert EXCEPTIONS.keys() <= left


def test_messages_of_every_room_are_found() -> None:
    rooms = {Path(message.place.partition(":")[0]).parts[1] for message in all_messages()}
    assert {"config.py", "evaluation", "evolution", "kernels", "registry", "report", "run", "weights"} <= rooms


def test_messages_of_plugins_are_found_whether_they_are_modules_or_packages() -> None:
    found = {message.place.rpartition(":")[0] for message in all_messages()}
    assert {"plugins/minerua-digits/minerua_digits.py", "plugins/minerua-onnx/minerua_onnx/files.py"} <= found
    assert not [place for place in found if "/tests/" in place]


# ── the reader itself ────────────────────────────────────────────────────────────────────────────────────────────────

SOURCE = '''
"""A docstring of many words is no message."""

def check(found, path):
    """Neither is this one, long as it may be."""
    faults = [f"tensor {found!r} has the wrong shape; cut it"]
    if faults:
        raise ValueError(f"{path} cannot be read") from None
    return "float32", "two words"
'''


def test_messages_are_sentences_and_what_is_raised() -> None:
    assert [message.parts for message in messages(SOURCE, "minerua/room.py")] == [
        (" cannot be read",),
        ("tensor ", " has the wrong shape; cut it"),
    ]
    assert [message.parts for message in messages(SOURCE, "minerua/report/page.py")] == [(" cannot be read",)]


@pytest.mark.parametrize(
    "test",
    [
        "with pytest.raises(E, match=r'x cannot be re\\.?'): pass",
        "assert f'{path} cannot be read' in str(error)",
        "assert str(error).endswith('cannot be read')",
        "def test():\n    wanted = 'x cannot be read'\n    assert wanted in error.faults",
        "CASES = [(1, 'cannot be read')]\n@pytest.mark.parametrize('a', CASES)\ndef test(a): pass",
    ],
)
def test_a_message_is_read_where_a_test_expects_it(test: str) -> None:
    assert not unread([Message("here", (" cannot be read",))], list(expectations(test)))


@pytest.mark.parametrize("test", ["write('x cannot be read')", "assert 'cannot' in text", "# x cannot be read"])
def test_a_message_is_not_read_where_it_only_stands_or_is_cut_short(test: str) -> None:
    assert unread([Message("here", (" cannot be read",))], list(expectations(test)))


def test_what_two_messages_share_reads_neither() -> None:
    both = [Message("here", (" cannot be written: it is full",)), Message("there", (" cannot be written: it is gone",))]
    assert unread(both, ["x cannot be written"]) == both
    assert unread(both, ["cannot be written: it is gone"]) == both[:1]


def test_a_message_of_short_parts_must_be_expected_with_all_of_them() -> None:
    message = Message("here", ("the tag ", " is refused"))
    assert not unread([message], ["the tag '!!x' is refused in run.yaml"])
    assert unread([message], ["the tag '!!x'"])
