"""Chains in YAML: read without trust, with all faults and their lines at once; written so that an equal one is read."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from minerua.chain.graph import PortType, Retry
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.chain.writing.ports import described, parse_port, short
from minerua.errors import ChainError

FORMAT = 1
LARGEST_CHARACTERS = 1 << 18
"""How long a file may be. YAML is read at a few hundred kilobytes a second; a chain of a thousand steps is shorter."""
MOST_NODES = 20_000
MOST_DEPTH = 40
"""How many values a file may hold, and how deep in each other: a few characters make many, and recursion is finite."""


# ── the form ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _number(value: Any) -> Any:
    """Refuses `yes` and `true`, which Python would take for 1; texts pass, because YAML reads `3e-4` as one."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _references(value: Any) -> Any:
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
        raise ValueError("must be a reference such as image or see.embedding, or a list; put values into constants")
    return tuple(several)


def _input(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


def _port(value: str) -> str:
    parse_port(value)  # its error is a ValueError, which pydantic collects with the others
    return value


def _policy(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, dict) and list(value) == ["default"]):
        return value
    raise ValueError("must be skip, omit, zeros, fail or {default: VALUE}")


def _retry(value: Any) -> Any:
    return {"attempts": value} if isinstance(value, int) and not isinstance(value, bool) else value


def _some(steps: tuple[_Step, ...]) -> tuple[_Step, ...]:
    if not steps:
        raise ValueError("must hold at least one step")
    return steps


def _connection(value: Any) -> Any:
    parts = [part.strip() for part in value.split("->")] if isinstance(value, str) else []
    if len(parts) != 2:
        raise ValueError("must be an output and an input, such as see.embedding -> fuse.vision")
    return tuple(parts)


_Real = Annotated[float, pydantic.BeforeValidator(_number)]
_References = Annotated[tuple[str, ...], pydantic.BeforeValidator(_references)]
_Values = dict[str, Any]


class _Input(_Section):
    type: Annotated[str, pydantic.AfterValidator(_port)]
    optional: bool = False


class _Retry(_Section):
    attempts: Annotated[int, pydantic.BeforeValidator(_number)] = 1
    delay_seconds: _Real = 0.1
    factor: _Real = 2.0
    most_seconds: _Real = 30.0


class _Step(_Section):
    skill: str
    step: str | None = None
    inputs: dict[str, _References] = {}
    constants: _Values = {}
    settings: _Values = {}
    when: _References = ()
    missing: dict[str, Annotated[Any, pydantic.BeforeValidator(_policy)]] = {}
    timeout_seconds: _Real | None = None
    retry: Annotated[_Retry, pydantic.BeforeValidator(_retry)] = _Retry()
    isolated: bool = False


class _Stage(_Section):
    parallel: Annotated[tuple[_Step, ...], pydantic.AfterValidator(_some)]


def _kind(value: Any) -> str:
    return "parallel" if isinstance(value, dict) and "parallel" in value else "step"


class _Chain(_Section):
    minerua: Annotated[Literal[1], pydantic.BeforeValidator(_number)]
    name: str
    inputs: dict[str, Annotated[_Input, pydantic.BeforeValidator(_input)]] = {}
    steps: tuple[
        Annotated[
            Annotated[_Step, pydantic.Tag("step")] | Annotated[_Stage, pydantic.Tag("parallel")],
            pydantic.Discriminator(_kind),
        ],
        ...,
    ]
    connections: tuple[Annotated[tuple[str, str], pydantic.BeforeValidator(_connection)], ...] = ()
    outputs: dict[str, _References] | None = None


Place = tuple[int | str, ...]
"""Where a value stands in a file: keys and numbers from the top."""


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_text(path: Path) -> str:
    """Reads the text of a chain's file.

    Raises:
        ChainError: If it cannot be read, is no UTF-8, or is longer than a chain can be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(4 * LARGEST_CHARACTERS + 1)
        return content.decode("utf-8")
    except OSError as error:
        raise ChainError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ChainError(f"{path} is no UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error


def read_chain(text: str, *, where: str) -> SkillChain:
    """Reads a chain.

    Args:
        text: YAML in the form that the README of this room describes.
        where: What messages call it.

    Raises:
        ChainError: If it is no such form; lists all faults with their lines.
    """
    content, lines, faults = _content(text, where)
    if not isinstance(content, dict):
        found = "nothing" if content is None else short(content)
        raise ChainError(f"{where} must hold a mapping with the keys of a chain, found {found}", faults)
    try:
        form = _Chain.model_validate(content)
    except pydantic.ValidationError as error:
        faults += [_fault(fault, lines) for fault in error.errors()]
        in_order = sorted(dict.fromkeys(faults), key=lambda fault: int(fault.split()[1].rstrip(",:")))  # line 7, …
        raise ChainError(f"{where} holds no chain that can be read", in_order) from None
    if faults:
        raise ChainError(f"{where} holds no chain that can be read", faults)
    return _chain(form)


def _chain(form: _Chain) -> SkillChain:
    ports = {name: parse_port(port.type, name) for name, port in form.inputs.items()}
    optional = [name for name, port in form.inputs.items() if port.optional]
    chain = SkillChain(form.name, inputs=ports, optional=optional, outputs=form.outputs)
    for stage in form.steps:
        chain.add_parallel_stage(*map(_task, stage.parallel if isinstance(stage, _Stage) else (stage,)))
    for source, target in form.connections:
        chain.connect(source, target)
    return chain


def _task(step: _Step) -> SkillTask:
    return SkillTask(
        step.skill,
        step.step,
        inputs=step.inputs,
        constants=step.constants,
        settings=step.settings,
        when=step.when,
        missing={port: policy for port, policy in step.missing.items() if isinstance(policy, str)},  # type: ignore[misc]
        defaults={port: policy["default"] for port, policy in step.missing.items() if isinstance(policy, dict)},
        timeout_seconds=step.timeout_seconds,
        retry=Retry(**step.retry.model_dump()),
        isolated=step.isolated,
    )


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


_WORDS = {
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "string_type": "must be a text; put it into quotes",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
}
"""Kind of fault → what pydantic says of it in Python's words, in YAML's."""


def _fault(fault: Any, lines: Mapping[Place, int]) -> str:
    """Says in one line where a mistake is and what to do about it."""
    place = tuple(fault["loc"])
    model = _model_at(place[:-1])
    if place[0] == "steps" and len(place) > 2:
        place = (*place[:2], *place[3:])  # without the tag that told a step from a parallel stage
    where = _at(place, lines)
    if fault["type"] == "extra_forbidden":
        known = list(model.model_fields)
        nearest = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{where}: missing; this key is required"
    message, given = _WORDS.get(fault["type"], fault["msg"].removeprefix("Value error, ")), short(fault["input"])
    if fault["type"] in ("model_type", "model_attributes_type"):
        message = f"must be a mapping with the keys {', '.join(_model_at(tuple(fault['loc'])).model_fields)}"
    return f"{where}: {message}" + (f", found {given}" if given not in message else "")


def _model_at(place: Place) -> type[_Section]:
    """Returns the section that stands at a place, as pydantic names it."""
    if place[:1] == ("inputs",):
        return _Input
    if place[-1:] == ("retry",):
        return _Retry
    if place[:1] == ("steps",):
        return _Stage if place[-1] == "parallel" and len(place) == 3 else _Step
    return _Chain


def _at(place: Place, lines: Mapping[Place, int]) -> str:
    """Returns the line of a place, or of the nearest thing around it that has one, and the place itself."""
    known = next(place[:end] for end in range(len(place), -1, -1) if place[:end] in lines)
    return f"line {lines[known]}, {'.'.join(map(str, place)) or 'the file'}"


# ── YAML without trust ───────────────────────────────────────────────────────────────────────────────────────────────


class _Loader(yaml.SafeLoader):
    """Makes nodes and no values; refuses aliases, tags, and more than a chain can need."""

    nodes = 0
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent):
            raise _refusal("aliases are refused: write the value out", event)
        if tag is not None:
            raise _refusal(f"the tag {short(tag)} is refused: values are plain", event)
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise _refusal(f"there are more than {MOST_NODES} values", event)
        if self.depth >= MOST_DEPTH:
            raise _refusal(f"values are nested more than {MOST_DEPTH} deep", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _refusal(message: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(None, None, message, event.start_mark)


_SCALARS: Mapping[str, Callable[[Any, yaml.Node], Any]] = {
    f"tag:yaml.org,2002:{kind}": getattr(yaml.constructor.SafeConstructor, f"construct_yaml_{kind}")
    for kind in ("null", "bool", "int", "float")
}
"""How values are made; what is none of these, such as a date, stays the text that it is."""


def _content(text: str, where: str) -> tuple[Any, dict[Place, int], list[str]]:
    """Returns the plain value that a text holds, place → line, and faults that do not keep it from being read."""
    if len(text) > LARGEST_CHARACTERS:
        raise ChainError(f"{where} has more than {LARGEST_CHARACTERS} characters, which no chain needs")
    lines: dict[Place, int] = {(): 1}
    faults: list[str] = []
    try:
        loader = _Loader(text)
        loader.name = where  # what its messages call the text
        node = loader.get_single_node()
        return (None if node is None else _value(loader, node, (), lines, faults)), lines, faults
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: numbers of thousands of digits
        hint = "; indent with spaces" if "found character '\\t'" in str(error) else ""
        raise ChainError(f"{where} is no valid YAML: {' '.join(str(error).split())}{hint}") from error


def _value(loader: _Loader, node: yaml.Node, place: Place, lines: dict[Place, int], faults: list[str]) -> Any:
    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, child, (*place, index), lines, faults) for index, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        make = _SCALARS.get(node.tag)
        return node.value if make is None else make(loader, node)
    content: dict[str, Any] = {}
    for key, child in node.value:  # keys are texts as they stand there, so that an input may be called `on`
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
        if key.value in content:
            faults.append(f"line {key.start_mark.line + 1}: the key {key.value!r} stands here twice")
        content[key.value] = _value(loader, child, (*place, key.value), lines, faults)
    return content


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Writes everything out, because aliases are refused when it is read."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    """Puts the rarer line breaks into double quotes, where PyYAML escapes them; elsewhere it reads them as others."""
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def write_chain(chain: SkillChain) -> str:
    """Writes a chain.

    Raises:
        ChainError: If it has what YAML cannot hold; lists all.
    """
    form = _form(chain)
    faults = list(_writing_faults(chain, form))
    if faults:
        raise ChainError(f"the chain {chain.name!r} cannot be written as YAML", faults)
    text: str = yaml.dump(form, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    if read_chain(text, where=chain.name) != chain:
        raise ChainError(f"the chain {chain.name!r} cannot be written as YAML: it would be read as a different one")
    return text


def _form(chain: SkillChain) -> dict[str, Any]:
    inputs = {name: _input_form(chain, name, port) for name, port in chain.inputs.items()}
    form = {
        "minerua": FORMAT,
        "name": chain.name,
        "inputs": inputs,
        "steps": [
            _step_form(stage[0]) if len(stage) == 1 else {"parallel": [_step_form(task) for task in stage]}
            for stage in chain.stages
        ],
        "connections": [f"{source} -> {target}" for source, target in chain.connections],
        "outputs": None if chain.outputs is None else _references_form(chain.outputs),
    }
    dropped: Mapping[str, Any] = {"inputs": {}, "connections": [], "outputs": None}
    return {key: value for key, value in form.items() if key not in dropped or value != dropped[key]}


def _input_form(chain: SkillChain, name: str, port: PortType) -> Any:
    return {"type": described(port), "optional": True} if name in chain.optional else described(port)


def _references_form(references: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {name: several[0] if len(several) == 1 else list(several) for name, several in references.items()}


def _step_form(task: SkillTask) -> dict[str, Any]:
    plain, retry = Retry(), task.retry
    missing = {**task.missing, **{port: {"default": value} for port, value in task.defaults.items()}}
    form = {
        "step": task.title,
        "skill": task.skill,
        "settings": task.settings,
        "inputs": _references_form(task.inputs),
        "constants": task.constants,
        "when": _references_form({"when": task.when})["when"],
        "missing": missing,
        "timeout_seconds": task.timeout_seconds,
        "retry": {key: value for key, value in dataclasses.asdict(retry).items() if value != getattr(plain, key)},
        "isolated": task.isolated,
    }
    return {
        key: value
        for key, value in form.items()
        if key == "skill" or not (value is None or value is False or value in ({}, []))
    }


def _writing_faults(chain: SkillChain, form: Mapping[str, Any]) -> Iterator[str]:
    for task in chain.tasks:
        if not isinstance(task.skill, str):
            yield (
                f"step {task.title!r}: skill {task.skill.name!r} was given as an object; provide it through a plugin "
                "and name it here"
            )
    for name, port in chain.inputs.items():
        try:
            fits = parse_port(described(port), name) == port
        except ChainError:
            fits = False
        if not fits:
            yield f"input {name!r} of the chain: {described(port)} has no word in files; object takes everything"
    for place, value in _leaves({key: value for key, value in form.items() if key != "steps"}, ()):
        yield f"{'.'.join(map(str, place))}: {short(value)} is nothing that YAML holds"
    for task, step in zip(chain.tasks, map(_step_form, chain.tasks), strict=True):
        for place, value in _leaves({**step, "skill": ""}, ()):
            where = ".".join(map(str, place))
            yield f"step {task.title!r}, {where}: {short(value)} is nothing that YAML holds; use texts, numbers, lists"


def _leaves(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """Yields what is neither text, number, truth value, `None`, nor a list or mapping of such."""
    if len(place) > MOST_DEPTH:
        yield place[:3], "something too deep"
    elif type(value) is dict:
        for key, child in value.items():
            yield from [((*place, key), key)] if type(key) is not str else _leaves(child, (*place, key))
    elif type(value) is list:
        for index, child in enumerate(value):
            yield from _leaves(child, (*place, index))
    elif type(value) not in (str, int, float, bool, type(None)) or (type(value) is str and _UNSAFE.search(value)):
        yield place, value


_UNSAFE = re.compile(r"[\ud800-\udfff]")
"""Halves of characters, which no UTF-8 file can hold."""
