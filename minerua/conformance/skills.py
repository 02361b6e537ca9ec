"""What every skill keeps: its ports say what a call takes and returns, and what it claims of itself is so."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from minerua.conformance.report import Check, Found, NotJudged
from minerua.conformance.subject import Subject, same
from minerua.values import Skill, TensorSpec

_EXTENT = 2
"""How long an extent is that has a name."""


# ── calling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def result_of(call: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """Returns what a skill's call returns; of a coroutine its result, of a generator what it yields last."""
    result = call(**inputs)
    if inspect.isawaitable(result):
        return asyncio.run(_awaited(result))
    if inspect.isasyncgen(result):
        return asyncio.run(_last(result))
    if inspect.isgenerator(result):
        parts = list(result)
        return parts[-1] if parts else None
    return result


async def _awaited(result: Any) -> Any:
    return await result


async def _last(parts: Any) -> Any:
    last = None
    async for part in parts:
        last = part
    return last


def _call(subject: Subject) -> Callable[..., Any]:
    spec = subject.spec
    call: Callable[..., Any] = spec.call
    if spec.load is not None:
        call = subject.once("loaded", lambda: spec.load(spec.setups[0]))
    return call


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def made_inputs(skill: Skill, *, extent: int = _EXTENT, seed: int = 0) -> dict[str, Any] | NotJudged:
    """Returns inputs made from the ports: small numbers, short texts, arrays with 2 along extents that have names."""
    from minerua.chain.writing.ports import described

    made = {name: _made(port, extent, seed + number) for number, (name, port) in enumerate(skill.inputs.items())}
    missing = [name for name, value in made.items() if value is None]
    if missing:
        told = ", ".join(f"{name} ({described(skill.inputs[name])})" for name in missing)
        return NotJudged(f"no value can be made up for {told}; hand inputs over as Sample(inputs={{…}})")
    return made


def _made(port: type | TensorSpec, extent: int, seed: int) -> Any:
    if isinstance(port, TensorSpec):
        return _array(port, extent, seed)
    ready: dict[type, Any] = {bool: True, int: 1, float: 0.5, str: "a text", bytes: b"bytes", list: [], dict: {}}
    return ready.get(port)


def _array(port: TensorSpec, extent: int, seed: int) -> Any:
    import numpy as np

    from minerua.chain.writing.ports import dtype_of

    dtype = dtype_of(port.dtype)
    shape = tuple(extent if isinstance(one, str) else one for one in port.shape)
    generator = np.random.default_rng(seed)
    if dtype is None or dtype.kind in "USOM":
        return None
    whole = dtype.kind in "iub"
    return (generator.integers(0, 2, shape) if whole else generator.uniform(0.0, 1.0, shape)).astype(dtype)


def _inputs(subject: Subject) -> dict[str, Any] | NotJudged:
    """Returns the author's inputs, or made-up ones: those only of what is pure, since the rest acts on the world."""
    given = subject.sample.inputs
    if given is None and not subject.spec.pure:
        return NotJudged("it is not pure, and might act on made-up inputs; hand some over as Sample(inputs={…})")
    return subject.once("inputs", lambda: made_inputs(subject.spec) if given is None else dict(given))


def _answer(subject: Subject) -> Any:
    """Returns what a call with the inputs returns, or that nothing can be said: made-up inputs may be refused."""
    inputs = _inputs(subject)
    if isinstance(inputs, NotJudged):
        return inputs
    try:
        lent = subject.once("lent", lambda: deepcopy(inputs))  # what the call does to it is looked at by `borrows`
        return subject.once("answer", lambda: result_of(_call(subject), lent))
    except (ValueError, LookupError, OSError) as error:
        if subject.sample.inputs is not None:
            raise
        told = f"{type(error).__name__}: {error!s:.100}"
        return NotJudged(f"it refused made-up inputs ({told}); hand some over as Sample(inputs={{…}})")


# ── the checks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _takes(subject: Subject) -> Found:
    spec = subject.spec
    if spec.configure is not None:
        return ["configure returned a family again; it returns a skill with call or load"]
    try:
        signature = inspect.signature(_call(subject))
    except (TypeError, ValueError):
        return NotJudged("its call has no signature that can be read")
    least = [name for name in spec.inputs if name not in spec.optional]
    return _misfit(signature, list(spec.inputs)) or _misfit(signature, least)


def _misfit(signature: inspect.Signature, names: list[str]) -> list[str]:
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        return [f"a call with {', '.join(names) or 'no inputs'} does not fit {signature}: {error}"]
    return []


def _returns(subject: Subject) -> Found:
    from minerua.chain.writing.ports import value_faults

    answer, inputs = _answer(subject), _inputs(subject)
    if isinstance(answer, NotJudged) or isinstance(inputs, NotJudged):
        return answer if isinstance(answer, NotJudged) else []
    extents: dict[str, int] = {}
    spec = subject.spec
    found = value_faults(spec.inputs, inputs, where="an input", optional=spec.optional, extents=extents)
    return found + value_faults(spec.outputs, answer, where="an output", extents=extents)


def _optional(subject: Subject) -> Found:
    answer, inputs = _answer(subject), _inputs(subject)
    if isinstance(answer, NotJudged) or isinstance(inputs, NotJudged):
        return answer if isinstance(answer, NotJudged) else []
    return [fault for name in subject.spec.optional for fault in _missed(subject, inputs, name)]


def _missed(subject: Subject, inputs: Mapping[str, Any], name: str) -> list[str]:
    """Calls without one input; tells what it raised."""
    try:
        result_of(_call(subject), {key: deepcopy(value) for key, value in inputs.items() if key != name})
    except Exception as error:  # noqa: BLE001 - whatever it raises, it cannot do without
        return [f"without {name!r}, which is optional, it raised {type(error).__name__}: {error!s:.200}"]
    return []


def _borrows(subject: Subject) -> Found:
    answer, inputs = _answer(subject), _inputs(subject)
    if isinstance(answer, NotJudged) or isinstance(inputs, NotJudged):
        return answer if isinstance(answer, NotJudged) else []
    lent: dict[str, Any] = subject.once("lent", dict)
    changed = [name for name in inputs if not same(lent[name], inputs[name])]
    return [f"the call changed its input {name!r}" for name in changed]


def _pure(subject: Subject) -> Found:
    answer, inputs = _answer(subject), _inputs(subject)
    if isinstance(answer, NotJudged) or isinstance(inputs, NotJudged):
        return answer if isinstance(answer, NotJudged) else []
    again = result_of(_call(subject), deepcopy(inputs))
    return [] if same(answer, again) else ["called twice with the same inputs it returned different outputs"]


def _batchable(subject: Subject) -> Found:
    import numpy as np

    spec = subject.spec
    arrays = all(
        isinstance(port, TensorSpec) and port.shape for port in (*spec.inputs.values(), *spec.outputs.values())
    )
    pairs = [made_inputs(spec, extent=extent, seed=extent) for extent in (_EXTENT, _EXTENT + 1)]
    if (
        not arrays
        or not spec.pure
        or any(isinstance(pair, NotJudged) for pair in pairs)
        or subject.sample.inputs is not None
    ):
        return NotJudged("only arrays with made-up values can be joined")
    first, second = (pair for pair in pairs if not isinstance(pair, NotJudged))
    joined = result_of(_call(subject), {name: np.concatenate([first[name], second[name]]) for name in first})
    parts = [result_of(_call(subject), part) for part in (first, second)]
    expected = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    equal = same(dict(joined), expected, tolerance=1e-4)
    return [] if equal else ["two calls joined along the first axis gave other outputs than each by itself"]


CHECKS: tuple[Check, ...] = (
    Check(
        "takes",
        "a call takes the inputs by their names, with and without the optional ones",
        "give the function one parameter per input, with a default for each optional one",
        _takes,
    ),
    Check(
        "returns",
        "a call returns a mapping with the outputs, of the types, dtypes and extents that its ports say",
        "correct the ports, or what is returned",
        _returns,
    ),
    Check(
        "optional",
        "a call can do without each optional input",
        "take the input out of optional, or give it a default that works",
        _optional,
        lambda subject: bool(subject.spec.optional),
    ),
    Check(
        "borrows", "a call leaves its inputs as they are", "change a copy; in a chain arrays are read-only", _borrows
    ),
    Check(
        "pure",
        "what says that it is pure gives the same outputs for the same inputs",
        "leave pure out, or draw random numbers from a seed among the inputs",
        _pure,
        lambda subject: bool(subject.spec.pure),
    ),
    Check(
        "batchable",
        "what says that it can be batched gives joined calls what it gives each",
        "leave batchable out, or treat every row by itself",
        _batchable,
        lambda subject: bool(subject.spec.batchable),
    ),
)
