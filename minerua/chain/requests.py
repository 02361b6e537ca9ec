"""What a command line says of a run, as values; and what a run gives, for people and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minerua.chain.graph import Graph, PortType
from minerua.chain.planning.passes import requested
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.chain.writing.ports import described, dtype_of, short, value_faults
from minerua.errors import ConfigError, StorageError, unknown
from minerua.values import TensorSpec

if TYPE_CHECKING:
    from minerua.chain.running.trace import Trace

FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
SHOWN_VALUES = 6
"""How many numbers of an array are shown to a person."""


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_inputs(graph: Graph, texts: Sequence[str]) -> dict[str, Any]:
    """Returns the inputs of a run that `NAME=VALUE` texts describe, each as its port wants it.

    Arrays come from `.npy` files or JSON, bytes from files, lists and mappings from JSON; texts, numbers, flags and
    paths are written as they are.

    Args:
        graph: The chain.
        texts: What stands behind every `--input`.

    Raises:
        ConfigError: If anything is wrong with them; lists all faults.
    """
    faults: list[str] = []
    values: dict[str, Any] = {}
    for name, text in _pairs(texts, "--input", "image=cat.png", faults):
        if name not in graph.inputs:
            faults.append(f"--input {name}: {unknown('input of the chain', name, tuple(graph.inputs))}")
        elif name in values:
            faults.append(f"--input {name} is given twice; leave one out")
        else:
            values[name] = _value(name, text, graph.inputs[name], faults)
    given = {name: value for name, value in values.items() if value is not None}
    unread = {name for name, value in values.items() if value is None}
    wanted = {name: port for name, port in graph.inputs.items() if name not in unread}
    where = f"an input of the chain {graph.name!r}"
    faults += value_faults(wanted, given, where=where, optional=graph.optional)
    if faults:
        raise ConfigError(f"the inputs of the chain {graph.name!r} are not in order", faults)
    return given


def _pairs(texts: Sequence[str], option: str, example: str, faults: list[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if equals and name:
            yield name, value
        else:
            faults.append(f"{option} {short(text)} has no name and value; write {option} {example}")


def _value(name: str, text: str, port: PortType, faults: list[str]) -> Any:
    """Returns a text as the port wants it; `None`, and a fault, if that cannot be."""
    try:
        return _read(text, port)
    except (ValueError, OSError, OverflowError, EOFError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        faults.append(f"--input {name}: {short(text)} cannot be read as {described(port)}: {reason}")
        return None


def _read(text: str, port: PortType) -> Any:
    if isinstance(port, TensorSpec):
        return _array(text, dtype_of(port.dtype))
    return _READERS.get(port, json.loads)(text)


def _array(text: str, dtype: np.dtype[Any] | None = None) -> np.ndarray:
    if text.endswith(".npy"):
        loaded: np.ndarray = np.load(text, allow_pickle=False)
        return loaded
    return np.asarray(json.loads(text), dtype)


def _flag(text: str) -> bool:
    if text.lower() not in FLAGS:
        raise ValueError("write true or false")
    return FLAGS[text.lower()]


def _path(text: str) -> Path:
    if not Path(text).exists():
        raise ValueError("there is no such file")
    return Path(text)


def _object(text: str) -> Any:
    """Returns what JSON says, and the text itself where it is none: anything may stand there."""
    try:
        return json.loads(text)
    except ValueError:
        return text


_READERS: dict[type, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    bool: _flag,
    Path: _path,
    bytes: lambda text: Path(text).read_bytes(),
    np.ndarray: _array,
    object: _object,
}


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_settings(chain: SkillChain, texts: Sequence[str]) -> SkillChain:
    """Returns the chain with other settings, as `STEP.KEY=VALUE` texts say; values are JSON, or else texts.

    Args:
        chain: As it is written.
        texts: What stands behind every `--set`.

    Raises:
        ConfigError: If anything is wrong with them; lists all faults.
    """
    faults: list[str] = []
    changes: dict[str, dict[str, Any]] = {}
    known = tuple(task.title for task in chain.tasks)
    for place, text in _pairs(texts, "--set", "see.model=vision.onnx", faults):
        step, dot, key = place.partition(".")
        if not dot or not key:
            faults.append(f"--set {place}: write the step and the setting, such as see.model")
        elif step not in known:
            faults.append(f"--set {place}: {unknown('step', step, known)}")
        else:
            changes.setdefault(step, {})[key] = _object(text)
    if faults:
        raise ConfigError(f"the settings of the chain {chain.name!r} are not in order", faults)

    def changed(task: SkillTask) -> SkillTask:
        new = changes.get(task.title, {})
        constants = {key: value for key, value in new.items() if key in task.constants}
        settings = {key: value for key, value in new.items() if key not in constants}
        return replace(task, constants={**task.constants, **constants}, settings={**task.settings, **settings})

    chain.stages = [tuple(map(changed, stage)) for stage in chain.stages]
    return chain


# ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def requested_outputs(graph: Graph, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns the names of the outputs to print, `None` for all.

    Raises:
        ChainError: If the chain has no output of such a name; every one is named.
    """
    return tuple(requested(graph, names)) if names else None


def write_trace(trace: Trace, path: Path) -> None:
    """Writes what ran when to a file that Chrome's and Perfetto's viewers show.

    Raises:
        StorageError: If the file cannot be written.
    """
    try:
        path.write_text(json.dumps(trace.chrome()), "utf-8")
    except OSError as error:
        raise StorageError(f"cannot write the trace {path}: {error.strerror or error}; choose another file") from error


def as_json(value: Any) -> Any:
    """Returns a value in what JSON knows: arrays as dtype, shape and nested lists, anything strange as its text."""
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "values": as_json(value.tolist())}
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for it
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def as_text(value: Any) -> str:
    """Returns a value in one line for a person: of arrays the kind and the first numbers.

    Example:
        >>> as_text(np.arange(9, dtype="int64"))
        'int64[9]: 0 1 2 3 4 5 …'
    """
    if not isinstance(value, np.ndarray):
        return str(value)
    kind = f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    few = " ".join(
        f"{one:.4g}" if isinstance(one, float) else str(one) for one in value.ravel()[:SHOWN_VALUES].tolist()
    )
    return f"{kind}: {few}{' …' if value.size > SHOWN_VALUES else ''}"
