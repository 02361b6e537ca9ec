"""What a command line says of a run, as values; and what a run gives, for people and for programs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np

from minerua.chain.graph import Graph, PortType
from minerua.chain.planning.passes import requested
from minerua.chain.writing.chain import SkillChain, SkillTask
from minerua.chain.writing.checking import MOST_SECONDS
from minerua.chain.writing.ports import described, dtype_of, short, value_faults
from minerua.errors import ConfigError, StorageError, unknown
from minerua.values import TensorSpec

if TYPE_CHECKING:
    from minerua.chain.running.trace import Trace

FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
SHOWN_VALUES = 6
"""How many numbers of an array are shown to a person."""

TRACE_BEGINS = b'{"traceEvents"'


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
    given: dict[str, Any] = {}
    unread: set[str] = set()
    for name, text in _pairs(texts, "--input", "image=cat.png", faults):
        if name not in graph.inputs:
            faults.append(f"--input {name}: {unknown('input of the chain', name, tuple(graph.inputs))}")
        elif name in given or name in unread:
            faults.append(f"--input {name} is given twice; leave one out")
        else:
            try:
                given[name] = _read(text, graph.inputs[name])
            except (ValueError, OSError, OverflowError, RecursionError) as error:
                unread.add(name)
                faults.append(f"--input {name}: {_unreadable(text, graph.inputs[name], error)}")
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


def _unreadable(text: str, port: PortType, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{short(text, longest=200)} cannot be read as {described(port)}: {reason}"


def _read(text: str, port: PortType) -> Any:
    if isinstance(port, TensorSpec):
        return _array(text, dtype_of(port.dtype))
    return _READERS.get(port, _json)(text)


def _array(text: str, dtype: np.dtype[Any] | None = None) -> np.ndarray:
    if text.endswith(".npy"):
        return _stored_array(text)
    try:
        array = np.asarray(json.loads(text), dtype)
    except (ValueError, TypeError):
        array = np.asarray(None)
    if array.dtype == object:
        raise ValueError("an array is a .npy file, or lists of numbers of equal length, such as [[1, 2.5], [3, 4]]")
    return array


def _stored_array(path: str) -> np.ndarray:
    magic = np.lib.format.MAGIC_PREFIX
    with open(path, "rb") as file:
        if file.read(len(magic)) != magic:  # numpy would take it for a pickle or an archive
            raise ValueError("the file is no .npy file; numpy.save writes one")
        file.seek(0)
        try:
            loaded: np.ndarray = np.load(file, allow_pickle=False)
        except (ValueError, SyntaxError, TokenError, MemoryError) as error:  # what damaged headers come to
            what = "holds Python objects" if "allow_pickle" in str(error) else f"is damaged: {error}"
            raise ValueError(f"the .npy file {what}; save numbers with numpy.save") from error
    return loaded


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("write a whole number, such as 3") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("write a number, such as 0.5") from None


def _flag(text: str) -> bool:
    if text.lower() not in FLAGS:
        raise ValueError("write true or false")
    return FLAGS[text.lower()]


def _path(text: str) -> Path:
    if not text or not Path(text).exists():
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
    int: _whole,
    float: _number,
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


def check_timeout(seconds: float | None) -> None:
    """Makes sure that a time limit is one.

    Args:
        seconds: What stands behind `--timeout`; `None` for none.

    Raises:
        ConfigError: If it is no number of seconds that can pass.
    """
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        wanted = f"expected seconds above 0 and up to {MOST_SECONDS:g}; leave it out to wait for ever"
        raise ConfigError(f"--timeout is {seconds:g}; {wanted}")


def check_place(path: Path, what: str) -> None:
    """Makes sure that a file can be written, before the work whose result it is to hold; changes nothing.

    Args:
        path: The file, which may be there already.
        what: What it is to hold, for messages.

    Raises:
        StorageError: If it cannot be written.
    """
    try:
        if path.is_file() or path.is_dir():
            path.open("r+b").close()
        elif not path.exists():  # and no pipe or device either, which opening would change
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise _unwritable(path, what, error) from error


def check_trace(path: Path) -> None:
    """Makes sure that a trace can be written, and takes the place of nothing but an older trace; changes nothing.

    Raises:
        StorageError: If it cannot be written.
        ConfigError: If another file is there.
    """
    check_place(path, "trace")
    if path.is_file():
        with path.open("rb") as file:
            found = file.read(len(TRACE_BEGINS))
        if found not in (b"", TRACE_BEGINS):
            raise ConfigError(f"--trace {path}: this file is there and is no trace; choose another, or delete it")


def write_trace(trace: Trace, path: Path) -> None:
    """Writes what ran when to a file that Chrome's and Perfetto's viewers show.

    Raises:
        StorageError: If the file cannot be written.
    """
    try:
        path.write_text(json.dumps(trace.chrome()), "utf-8")
    except OSError as error:
        raise _unwritable(path, "trace", error) from error


def _unwritable(path: Path, what: str, error: OSError) -> StorageError:
    return StorageError(f"cannot write the {what} {path}: {error.strerror or error}; choose another file")


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
