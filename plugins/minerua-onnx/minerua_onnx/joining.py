"""Neighbouring models made one graph, so that one session runs them and nothing passes through Python between them.

`onnx.compose` has a function for this, which is not used: it does not rename weights that are used inside the branches
of a condition (onnx 1.23), cannot give one input to two models, and keeps extents of the same name apart by nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from minerua import Skill, TensorSpec
from minerua.values import JoinedStep
from minerua_onnx.extents import Extents
from minerua_onnx.files import MOST_BYTES, graphs_of, metadata_of
from minerua_onnx.model import Loader, Model, model_skill
from minerua_onnx.ports import Port

if TYPE_CHECKING:
    import onnx

OLDEST_IR = 4
"""Since this IR version weights need not be inputs as well."""


@final
@dataclass(frozen=True)
class Part:
    """One model in a joined one.

    Args:
        step: The step's name.
        model: Its model.
        links: The model's name of an input → what is there in the joined graph, as pairs.
    """

    step: str
    model: Model
    links: tuple[tuple[str, str], ...]

    def renamed(self, name: str) -> str:
        """Returns what a value of the model is called in the joined graph."""
        return dict(self.links).get(name) or f"step/{self.step}/{name}"

    def output(self, loader: Loader, port: str) -> str:
        """Returns what an output of the model is called in the joined graph."""
        return self.renamed(dict(loader.outputs)[port])


@final
@dataclass(frozen=True)
class JoinedModel:
    """Several models as one graph, merged whenever it is loaded: nothing but the parts is kept.

    Args:
        parts: In the order in which they run.
        inputs: Name in the joined graph → port, as pairs.
        outputs: The same.
    """

    parts: tuple[Part, ...]
    inputs: tuple[tuple[str, Port], ...]
    outputs: tuple[tuple[str, Port], ...]

    @property
    def title(self) -> str:
        """What messages call it."""
        return "+".join(part.model.title for part in self.parts)

    def content(self) -> bytes:
        """Returns the bytes of the merged model."""
        return bytes(self.proto().SerializeToString())

    def proto(self) -> onnx.ModelProto:
        """Returns the merged model, checked.

        Raises:
            Exception: What onnx raises where the models cannot be brought to one opset, or the result is not valid.
        """
        import onnx

        protos = _converted([part.model.proto() for part in self.parts])
        merged = onnx.helper.make_model(
            onnx.GraphProto(name="joined"),
            ir_version=max(OLDEST_IR, *(proto.ir_version for proto in protos)),
            opset_imports=[onnx.helper.make_opsetid(*pair) for pair in _opsets(protos).items()],
            producer_name="minerua-onnx",
        )
        for part, proto in zip(self.parts, protos, strict=True):
            _add(merged, part, proto)
        _describe(merged.graph, self.inputs, self.outputs)
        onnx.checker.check_model(merged)
        return merged


def outer_name(name: str) -> str:
    """Returns what an input of the joined skill is called in the joined graph."""
    return f"input/{name}"


# ── joining skills ───────────────────────────────────────────────────────────────────────────────────────────────────


def join(steps: Sequence[JoinedStep]) -> Skill | None:
    """Makes one skill of neighbouring models.

    Args:
        steps: In the order in which they run.

    Returns:
        The skill, which can be joined again; `None` where a step is not a model, the models' sessions are set up
        differently by the chain, ports do not fit, the opsets cannot be made one, or the result is over two gigabytes.
    """
    loaders = [step.skill.load for step in steps]
    models = [loader for loader in loaders if isinstance(loader, Loader)]
    if len(models) < len(loaders) or len({(m.choice, s.skill.setups) for m, s in zip(models, steps, strict=True)}) != 1:
        return None
    if any(step.inputs.keys() != step.skill.inputs.keys() for step in steps):
        return None
    extents = Extents.of(steps)
    if extents is None or sum(step.skill.loaded_bytes or 0 for step in steps) > MOST_BYTES:
        return None
    skill = _joined_skill(steps, models, extents)
    loader = skill.load
    try:
        size_bytes = loader.model.proto().ByteSize() if isinstance(loader, Loader) else 0
    except Exception:  # noqa: BLE001 - onnx raises whatever its C++ raises; then the models run by themselves
        return None
    return skill if size_bytes <= MOST_BYTES else None


def _joined_skill(steps: Sequence[JoinedStep], loaders: Sequence[Loader], extents: Extents) -> Skill:
    by_step = {step.name: loader for step, loader in zip(steps, loaders, strict=True)}
    parts = _parts(steps, by_step)
    inputs = {name: extents.port(step, port, name) for step, port, name in _outer_inputs(steps)}
    outputs = {f"{s.name}_{o}": extents.port(s, s.skill.outputs[o], f"{s.name}_{o}") for s in steps for o in s.outputs}
    places = {
        f"{s.name}_{o}": p.output(by_step[s.name], o) for s, p in zip(steps, parts, strict=True) for o in s.outputs
    }
    model = JoinedModel(
        parts,
        tuple((outer_name(name), port) for name, port in inputs.items()),
        tuple((places[name], port) for name, port in outputs.items()),
    )
    return model_skill(
        "-".join(re.sub(r"[^a-z0-9]+", "-", step.name.lower()).strip("-") or "step" for step in steps),
        Loader(model, tuple((name, outer_name(name)) for name in inputs), tuple(places.items()), loaders[0].choice),
        inputs=inputs,
        outputs=outputs,
        parts=[text for s, p in zip(steps, parts, strict=True) for text in (s.name, s.skill.version, repr(p.links))],
        setups=steps[0].skill.setups,
        may_batch=all(step.skill.batchable for step in steps),
        loaded_bytes=sum(step.skill.loaded_bytes or 0 for step in steps),
    )


def _parts(steps: Sequence[JoinedStep], by_step: dict[str, Loader]) -> tuple[Part, ...]:
    found: dict[str, Part] = {}
    for step in steps:
        loader = by_step[step.name]
        names = dict(loader.inputs)
        links = [
            (names[port], outer_name(name) if source is None else found[source].output(by_step[source], name))
            for port, (source, name) in step.inputs.items()
        ]
        found[step.name] = Part(step.name, loader.model, tuple(links))
    return tuple(found.values())


def _outer_inputs(steps: Sequence[JoinedStep]) -> Iterator[tuple[JoinedStep, Port, str]]:
    """Yields each input of the joined skill once, with the step and the port that are the first to take it."""
    seen: set[str] = set()
    for step in steps:
        for port, (source, name) in step.inputs.items():
            if source is None and name not in seen:
                seen.add(name)
                yield step, step.skill.inputs[port], name


# ── merging graphs ───────────────────────────────────────────────────────────────────────────────────────────────────


def _opsets(protos: Sequence[onnx.ModelProto]) -> dict[str, int]:
    """Returns the newest opset of each domain."""
    found: dict[str, int] = {}
    for proto in protos:
        for opset in proto.opset_import:
            domain = "" if opset.domain == "ai.onnx" else opset.domain
            found[domain] = max(opset.version, found.get(domain, 0))
    return found


def _converted(protos: Sequence[onnx.ModelProto]) -> list[onnx.ModelProto]:
    """Returns the models with their local functions written out, all in the newest opset among them.

    Raises:
        ValueError: If two versions of another domain meet, which nobody can convert.
        Exception: If onnx cannot convert one.
    """
    import onnx
    from onnx import inliner, version_converter

    found, wanted = [], _opsets(protos)
    for proto in protos:
        model = inliner.inline_local_functions(proto) if proto.functions else proto
        versions = _opsets([model])
        if any(version != wanted[domain] for domain, version in versions.items() if domain):
            raise ValueError(f"opsets {versions} and {wanted} of domains that onnx cannot convert")
        if versions.get("", wanted.get("", 0)) != wanted.get("", 0):
            model = version_converter.convert_version(model, wanted[""])
            onnx.checker.check_model(model)
        found.append(model)
    return found


def _add(merged: onnx.ModelProto, part: Part, proto: onnx.ModelProto) -> None:
    """Adds a model's nodes and weights to the merged one, under names that nothing else has."""
    for graph in graphs_of(proto.graph):
        _rename(graph, part)
    merged.graph.node.extend(proto.graph.node)
    merged.graph.initializer.extend(proto.graph.initializer)
    merged.graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    merged.graph.quantization_annotation.extend(proto.graph.quantization_annotation)
    for key, value in metadata_of(proto).items():
        merged.metadata_props.add(key=f"{part.step}.{key}", value=value)


def _rename(graph: onnx.GraphProto, part: Part) -> None:
    """Renames what a graph itself mentions; the graphs inside its nodes are renamed by themselves."""
    for node in graph.node:
        if node.name:
            node.name = f"step/{part.step}/{node.name}"
        for names in (node.input, node.output):
            names[:] = [part.renamed(name) if name else "" for name in names]
    sparse = [tensor for one in graph.sparse_initializer for tensor in (one.values, one.indices)]
    for named in (*graph.initializer, *sparse, *graph.input, *graph.output):
        named.name = part.renamed(named.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = part.renamed(annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = part.renamed(entry.value)
    del graph.value_info[:]  # extents of one name in two models need not be the same count; onnxruntime finds shapes


def _describe(graph: onnx.GraphProto, inputs: Sequence[tuple[str, Port]], outputs: Sequence[tuple[str, Port]]) -> None:
    """Says what the inputs and outputs of the merged graph are."""
    import onnx

    for side, ports in ((graph.input, inputs), (graph.output, outputs)):
        for name, port in ports:
            if not isinstance(port, TensorSpec):
                raise ValueError(f"{name} has no described shape")
            side.append(onnx.helper.make_tensor_value_info(name, _element_type(port.dtype), port.shape))


def _element_type(dtype: str) -> int:
    from minerua_onnx.ports import DTYPES

    return next(number for number, name in DTYPES.items() if name == dtype)
