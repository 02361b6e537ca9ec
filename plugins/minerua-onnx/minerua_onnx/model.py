"""The skill `onnx-model`: an ONNX file, its ports read from the model, its session set up by the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, final

from minerua import Skill, TensorSpec
from minerua.errors import ChainError, StepFailed, unknown
from minerua.settings import Settings
from minerua.values import Setup, SkillContext
from minerua_onnx.files import inputs_of, open_model
from minerua_onnx.ports import Port, identifiers, is_batchable, port_of, symbols_of
from minerua_onnx.sessions import OPTIMIZATIONS, SessionChoice, first_line, open_session, provider_faults, setups

if TYPE_CHECKING:
    import onnx

MOST_THREADS, MOST_EXTENT = 1024, 2**31 - 1


class Model(Protocol):
    """What a session can be made of: a file, or several models in one graph."""

    @property
    def title(self) -> str:
        """What messages call it."""

    def content(self) -> str | bytes:
        """Returns a path, or the bytes of the model."""

    def proto(self) -> onnx.ModelProto:
        """Returns the model with all its weights."""


@final
@dataclass(frozen=True)
class Loader:
    """Loads a model: what stands in `Skill.load`. Can be pickled.

    Args:
        model: What is loaded.
        inputs: Input name → the model's name for it, as pairs.
        outputs: Output name → the same.
        choice: What the chain says about the session.
    """

    model: Model
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    choice: SessionChoice

    def __call__(self, setup: Setup) -> Callable[..., dict[str, Any]]:
        """Opens a session.

        Returns:
            A function that takes arrays by port name and returns a mapping; any number of threads may call it. Arrays
            are read where they are if they are contiguous, read-only ones too; outputs are arrays of their own.

        Raises:
            ChainError: If that is not possible; the message says why.
        """
        title = self.model.title
        run = open_session(self.model.content(), setup, self.choice, title).run
        names, ports, outputs = dict(self.inputs), tuple(dict(self.outputs)), [name for _, name in self.outputs]
        is_renamed = any(port != name for port, name in self.inputs)

        def call(**values: Any) -> dict[str, Any]:
            feed = {names.get(port, port): value for port, value in values.items()} if is_renamed else values
            try:
                return dict(zip(ports, run(outputs, feed), strict=True))
            except Exception as error:  # its errors have no parent of their own but Exception
                given = ", ".join(f"{port} {_described(value)}" for port, value in values.items()) or "nothing"
                raise StepFailed(f"{title} failed on {given}: {first_line(error)}") from error

        return call


def _described(value: Any) -> str:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    return f"{dtype}{list(shape)}" if shape is not None else type(value).__name__


# ── from settings ────────────────────────────────────────────────────────────────────────────────────────────────────


def configure(settings: Mapping[str, Any], context: SkillContext) -> Skill:
    """Returns the skill that a model's file is.

    Args:
        settings: `file`, relative to the chain's folder; and, if wanted, `rename` (the model's name → port), `extents`
            (name of an extent → the count that it has in this chain; lets policies make zeros of it), `threads` and
            `device` (instead of the plan's choice), `providers` (onnxruntime's names), `optimization` (one of
            `OPTIMIZATIONS`), `batchable` (false where the rows of a batch depend on one another).
        context: Where the chain lies.

    Raises:
        ChainError: If a setting or the file cannot be used; lists all faults.
    """
    told = Settings("the skill 'onnx-model'", settings, context.folder, error=ChainError)
    path, named, counted = told.file("file"), told.section("rename"), told.section("extents")
    rename = {name: named.text(name) for name in named.names}
    extents = {name: counted.whole(name, most=MOST_EXTENT) for name in counted.names}
    threads, device = told.whole("threads", None, most=MOST_THREADS), told.text("device", "cpu")
    choice = SessionChoice(told.texts("providers", ()), told.choice("optimization", OPTIMIZATIONS, "all"))
    may_batch = told.flag("batchable", True)
    told.fault(*provider_faults(device, choice))
    told.done()
    file, proto = open_model(path)
    inputs, outputs = inputs_of(proto), tuple(proto.graph.output)
    names = _port_names([value.name for value in (*inputs, *outputs)], rename, told)
    symbols = symbols_of((*inputs, *outputs))
    told.fault(*(unknown("extent of the model", name, tuple(symbols)) for name in extents if name not in symbols))
    told.done()
    loader = Loader(
        file,
        tuple((names[value.name], value.name) for value in inputs),
        tuple((names[value.name], value.name) for value in outputs),
        choice,
    )
    return model_skill(
        "onnx-model",
        loader,
        inputs=_ports(inputs, names, symbols, extents),
        outputs=_ports(outputs, names, symbols, extents),
        parts=(file.digest,),
        setups=setups() if (threads, device) == (None, "cpu") else (Setup(threads=threads, device=device),),
        may_batch=may_batch,
        loaded_bytes=file.weight_bytes,
    )


def _ports(
    values: Iterable[onnx.ValueInfoProto],
    names: Mapping[str, str],
    symbols: Mapping[str, str],
    fixed: Mapping[str, int],
) -> dict[str, Port]:
    """Returns name → port for some values, with the extents that the chain fixes."""
    counts = {symbols[name]: count for name, count in fixed.items()}
    found = {}
    for value in values:
        port = port_of(value, names[value.name], symbols)
        if isinstance(port, TensorSpec):
            port = replace(port, shape=tuple(counts.get(str(e), e) for e in port.shape))
        found[names[value.name]] = port
    return found


def model_skill(
    name: str,
    loader: Loader,
    *,
    inputs: Mapping[str, Port],
    outputs: Mapping[str, Port],
    parts: Iterable[str],
    setups: tuple[Setup, ...],
    may_batch: bool,
    loaded_bytes: int,
) -> Skill:
    """Returns the skill of a model.

    Args:
        name: The skill's.
        loader: What loads it.
        inputs: Input name → port.
        outputs: Output name → port.
        parts: What its version depends on, beside the loader's own choices and onnxruntime's version.
        setups: What a plan may choose from.
        may_batch: Whether calls may be made one where all ports have rows.
        loaded_bytes: What its weights take.
    """
    import onnxruntime

    from minerua_onnx.joining import join

    told = repr((tuple(parts), onnxruntime.__version__, loader.choice, loader.inputs, loader.outputs))
    return Skill(
        name=name,
        load=loader,
        inputs=dict(inputs),
        outputs=dict(outputs),
        version=hashlib.sha256(told.encode()).hexdigest()[:32],
        resources={"cpu": setups[0].threads or 1},
        pure=True,
        batchable=may_batch and is_batchable((*inputs.values(), *outputs.values())),
        setups=setups,
        loaded_bytes=loaded_bytes,
        join=join,
    )


def _port_names(names: list[str], rename: Mapping[str, str], told: Settings) -> dict[str, str]:
    """Returns the model's name → port for all inputs and outputs."""
    told.fault(*(unknown("input or output of the model", name, names) for name in rename if name not in names))
    told.fault(*(f"rename: {port!r} is not a Python identifier" for port in rename.values() if not port.isidentifier()))
    left = identifiers(name for name in names if name not in rename)
    found = {**left, **rename}
    twice = sorted({port for port in found.values() if list(found.values()).count(port) > 1})
    told.fault(*(f"rename: two inputs or outputs would be called {port!r}" for port in twice))
    return found
