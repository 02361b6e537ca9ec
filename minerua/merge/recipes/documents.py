"""Recipes' YAML, read from anybody: what `yaml.safe_load` reads, bounded in every direction.

Aliases, anchors and merge keys are allowed, because mergekit's recipes use them, and counted as if they were written
out; tags are not. A key that stands twice is a fault, and a date stays a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from minerua.errors import ConfigError

MAX_CHARACTERS = 1 << 20
"""The longest text that is read; a recipe has a few thousand characters."""

MAX_NODES = 100_000
"""The most keys and values of all documents, aliases written out."""

MAX_DEPTH = 32
"""How deep values may be nested, aliases written out; a recipe needs eight levels."""

_LONGEST_NUMBER = 100
"""Digits of a longer word are a text: turning many digits into a number takes quadratic time."""

_LINES = re.compile("[^\r\n\x85\u2028\u2029]*(?:\r\n|[\r\n\x85\u2028\u2029]|$)")


class Document(NamedTuple):
    """One document of a text.

    Args:
        content: Mappings with text keys, lists, texts, numbers, booleans, `None`; parts may be shared, none is cyclic.
        text: Its lines, comments included, without the line that separates it from the one before.
    """

    content: Any
    text: str


def read_documents(text: str, *, where: str) -> tuple[Document, ...]:
    r"""Reads all documents of a YAML text.

    Args:
        text: YAML 1.1, from anybody.
        where: What messages call it, for example its path.

    Returns:
        The documents that are not empty.

    Raises:
        ConfigError: The text is no YAML, uses tags, repeats a key, holds itself, or exceeds a limit.

    Example:
        >>> read_documents("a: &x {b: 1e-4}\nc: {<<: *x, d: 2026-11-22}", where="r.yml")[0].content
        {'a': {'b': '1e-4'}, 'c': {'b': '1e-4', 'd': '2026-11-22'}}
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{where} has {len(text)} characters, and a recipe may have {MAX_CHARACTERS}")
    try:
        found = _Reader(text).documents()
    except _Refused as refused:
        raise ConfigError(f"{where}, {_at(refused.mark)}: {refused}") from refused
    except (yaml.YAMLError, UnicodeError) as error:  # UnicodeError: halves of characters
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    return tuple(document for document in found if document.content is not None)


class _Refused(Exception):
    """Leaves this module only as a `ConfigError`."""

    def __init__(self, message: str, mark: Any) -> None:
        super().__init__(message)
        self.mark = mark


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


@dataclass
class _Node:
    """A value, with what it would take if its aliases were written out."""

    value: Any
    nodes: int = 1
    depth: int = 0
    parts: list[_Node] | dict[str, _Node] | None = None


_OPEN = _Node(None)
"""Stands for an anchored value that is still being read."""


class _Reader:
    """Turns the parser's events into values; counts while it reads, so that nothing large is ever built."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._events: Iterator[Any] = yaml.parse(text, Loader=_loader())
        self._anchors: dict[str, _Node] = {}
        self._nodes = 0

    def documents(self) -> list[Document]:
        contents: list[Any] = []
        first_lines: list[int] = []
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                mark: Any = event.start_mark
                first_lines.append(mark.line)
                self._anchors = {}
                contents.append(self._node(next(self._events), 0).value)
        return [Document(*pair) for pair in zip(contents, self._texts(first_lines), strict=True)]

    def _texts(self, first_lines: Sequence[int]) -> Iterator[str]:
        lines = _LINES.findall(self._text)
        begins = [0, *first_lines[1:]] if first_lines else []
        for begin, end in zip(begins, [*begins[1:], len(lines)], strict=False):
            first = begin + (lines[begin].strip() == "---") if begin < len(lines) else begin
            yield "".join(lines[first:end])

    def _node(self, event: Any, depth: int) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        if event.tag is not None:
            raise _Refused(f"the tag {event.tag!r} is not taken in a recipe", event.start_mark)
        self._count(1, event)
        if depth > MAX_DEPTH:
            raise _Refused(f"values are nested more than {MAX_DEPTH} levels deep", event.start_mark)
        if event.anchor is not None:
            self._anchors[event.anchor] = _OPEN
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(_scalar(event))
        else:
            node = self._list(depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, depth: int) -> _Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            raise _Refused(f"the alias {event.anchor!r} has no anchor before it", event.start_mark)
        if node is _OPEN:
            raise _Refused(f"the alias {event.anchor!r} stands inside its own value", event.start_mark)
        if depth + node.depth > MAX_DEPTH:
            raise _Refused(f"with aliases written out, values are deeper than {MAX_DEPTH} levels", event.start_mark)
        self._count(node.nodes, event)
        return node

    def _count(self, nodes: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _Refused(f"more than {MAX_NODES} values, aliases written out", event.start_mark)

    def _list(self, depth: int) -> _Node:
        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return _Node([item.value for item in items], *_extent(items), items)

    def _mapping(self, depth: int) -> _Node:
        own: dict[str, _Node] = {}
        merged: dict[str, _Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            value = self._node(next(self._events), depth + 1)
            if key is None:
                for name, inherited in self._merged(value, event):
                    merged.setdefault(name, inherited)
            elif key in own:
                raise _Refused(f"the key {key!r} is given a second time", event.start_mark)
            else:
                own[key] = value
        both = {**{name: node for name, node in merged.items() if name not in own}, **own}
        return _Node({name: node.value for name, node in both.items()}, *_extent(both.values()), both)

    def _key(self, event: Any) -> str | None:
        """Returns a key, or `None` for the merge key."""
        if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor is not None:
            raise _Refused("a key must be a plain word", event.start_mark)
        self._count(1, event)
        if event.implicit[0] and event.value == "<<":
            return None
        key = _scalar(event)
        if not isinstance(key, str):
            raise _Refused(f"the key {event.value!r} is read as {_kind(key)}; put it in quotes", event.start_mark)
        return key

    def _merged(self, node: _Node, event: Any) -> Iterator[tuple[str, _Node]]:
        """Yields what a merge key brings in: the keys of a mapping, or of several, the first of which win."""
        for mapping in node.parts if isinstance(node.parts, list) else [node]:
            if not isinstance(mapping.parts, dict):
                raise _Refused(f"the key '<<' merges mappings, and found {_kind(mapping.value)}", event.start_mark)
            yield from mapping.parts.items()


def _extent(parts: Any) -> tuple[int, int]:
    """Returns nodes and depth of what is made of these parts."""
    depth, nodes = 0, 1
    for part in parts:
        nodes, depth = nodes + part.nodes, max(depth, part.depth + 1)
    return nodes, depth


def _loader() -> Any:
    return yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


_RESOLVER = yaml.resolver.Resolver()
_NUMBERS = yaml.constructor.SafeConstructor()
_SCALARS = {
    "tag:yaml.org,2002:null": lambda node: None,
    "tag:yaml.org,2002:bool": _NUMBERS.construct_yaml_bool,
    "tag:yaml.org,2002:int": _NUMBERS.construct_yaml_int,
    "tag:yaml.org,2002:float": _NUMBERS.construct_yaml_float,
}


def _scalar(event: Any) -> Any:
    """Returns a word as YAML 1.1 reads it, with two differences: dates and absurdly long numbers stay texts."""
    if not event.implicit[0] or len(event.value) > _LONGEST_NUMBER:
        return event.value
    tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (True, False))  # type: ignore[no-untyped-call]
    construct = _SCALARS.get(tag)
    if construct is None:
        return event.value
    try:
        return construct(yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark))
    except ValueError:  # what looks like a number and is none, such as 0x or 08
        return event.value


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")
