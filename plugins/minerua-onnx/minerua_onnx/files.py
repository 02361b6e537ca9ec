"""ONNX files: read, checked without running anything, named by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

from minerua.errors import ChainError
from minerua_onnx.ports import port_faults

if TYPE_CHECKING:
    import onnx

MOST_BYTES = 2**31 - 1
"""What protobuf can read as one message."""


class Stamp(NamedTuple):
    """A file as it was seen: whether it changed since is told by size and time."""

    path: str
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Returns a file's stamp as it is now."""
        status = path.stat()
        return cls(str(path), status.st_size, status.st_mtime_ns)


@final
@dataclass(frozen=True)
class ModelFile:
    """A model on disk that was checked.

    Args:
        stamps: The model's file, then those that hold its weights, if they lie apart.
        digest: Of the bytes of all these files.
        weight_bytes: What its initializers take.
    """

    stamps: tuple[Stamp, ...]
    digest: str
    weight_bytes: int

    @property
    def path(self) -> Path:
        """Where the model lies."""
        return Path(self.stamps[0].path)

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.path.name

    def verify(self) -> None:
        """Makes sure that the files are still those that were checked.

        Raises:
            ChainError: If one was changed or is gone.
        """
        for stamp in self.stamps:
            path = Path(stamp.path)
            if not path.is_file() or Stamp.of(path) != stamp:
                raise ChainError(f"{path} was changed since the chain was checked; check the chain again")

    def content(self) -> str:
        """Returns what a session is made of: the path."""
        self.verify()
        return str(self.path)

    def proto(self) -> onnx.ModelProto:
        """Returns the model with all its weights."""
        import onnx

        self.verify()
        return onnx.load(str(self.path))


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_model(path: Path) -> tuple[ModelFile, onnx.ModelProto]:
    """Returns a model that is sound, and its description without the weights that lie in other files.

    Raises:
        ChainError: If it is not; lists all faults.
    """
    proto = _parsed(path)
    faults = [*_version_faults(proto), *_graph_faults(proto)]
    stored = [tensor for tensor in tensors_of(proto) if is_external(tensor)]
    files = dict.fromkeys(file for tensor in stored for file in _external_file(tensor, path.parent, faults))
    if not faults:
        faults = _checker_faults(proto, path, bool(stored))
    if faults:
        raise ChainError(f"{path} cannot be used", faults)
    stamps = tuple(Stamp.of(file) for file in (path, *files))
    weight_bytes = sum(map(tensor_bytes, proto.graph.initializer))
    return ModelFile(stamps, _digest(stamps), weight_bytes), proto


def _parsed(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    size_bytes = path.stat().st_size
    if not 0 < size_bytes <= MOST_BYTES:
        what = "is empty" if not size_bytes else f"has {size_bytes} bytes, more than the {MOST_BYTES} of one ONNX file"
        raise ChainError(f"{path} {what}; export it again, with large weights in a file beside it")
    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ChainError(f"{path} is not an ONNX model, or was cut off: {error}; export it again") from error


def _version_faults(proto: onnx.ModelProto) -> Iterator[str]:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if proto.ir_version > onnx.IR_VERSION:
        yield f"its IR version is {proto.ir_version}; onnx {onnx.__version__} knows those up to {onnx.IR_VERSION}"
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            known = f"onnx {onnx.__version__} knows up to {newest}: export it with one of those"
            yield f"its opset is {opset.version}; {known}"


def _graph_faults(proto: onnx.ModelProto) -> Iterator[str]:
    if not proto.HasField("graph") or not proto.graph.output:
        yield "it has no graph with an output: it is not an ONNX model, or was cut off"
    for side, values in (("input", inputs_of(proto)), ("output", tuple(proto.graph.output))):
        for value in values:
            yield from port_faults(value, side)


def _checker_faults(proto: onnx.ModelProto, path: Path, has_external: bool) -> list[str]:
    """Returns what onnx's own checker finds; with weights in other files it has to look at the folder."""
    import onnx

    open_shapes = [v for v in (*proto.graph.input, *proto.graph.output) if not v.type.tensor_type.HasField("shape")]
    for value in open_shapes:  # the checker insists on one, onnxruntime does not
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(str(path) if has_external else proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        return [f"onnx's checker says: {_in_one_line(error)}"]
    finally:
        for value in open_shapes:
            value.type.tensor_type.ClearField("shape")
    return []


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


# ── what is in a model ───────────────────────────────────────────────────────────────────────────────────────────────


def inputs_of(proto: onnx.ModelProto) -> tuple[onnx.ValueInfoProto, ...]:
    """Returns the inputs that a caller gives: those without a value of their own in the model."""
    given = {tensor.name for tensor in proto.graph.initializer}
    given |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    return tuple(value for value in proto.graph.input if value.name not in given)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yields a graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from graphs_of(inner)


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields every tensor that is stored in a model."""
    nodes = [node for function in proto.functions for node in function.node]
    for graph in graphs_of(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's values lie in another file."""
    return bool(tensor.data_location == tensor.EXTERNAL)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Returns what a tensor takes in memory."""
    import math

    import onnx

    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:  # a dtype that numpy has no width for; such models are rare and small here
        width = 4
    return int(max(math.prod(tensor.dims), 0) * width)


def _external_file(tensor: onnx.TensorProto, folder: Path, faults: list[str]) -> list[Path]:
    """Returns the file with a tensor's values, if it is where it may be and long enough."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"the values of {tensor.name!r} lie in {location!r:.200}"
    try:
        file, home = (folder / location).resolve(), folder.resolve()
        offset_bytes = int(entries.get("offset") or 0)
        end_bytes = offset_bytes + int(entries.get("length") or tensor_bytes(tensor))
        is_inside, exists = bool(location) and file.is_relative_to(home), file.is_file()
    except (OSError, ValueError) as error:
        faults.append(f"{where}, which cannot be read: {error}")
        return []
    if not is_inside:
        faults.append(f"{where}, outside the model's folder; only files below {folder} are read")
    elif not exists:
        faults.append(f"{where}, which does not exist in {folder}; copy it there")
    elif min(offset_bytes, end_bytes) < 0 or end_bytes > file.stat().st_size:
        faults.append(f"{where} up to byte {end_bytes}; the file has {file.stat().st_size}, so it was cut off")
    else:
        return [file]
    return []


@lru_cache(maxsize=256)
def _digest(stamps: tuple[Stamp, ...]) -> str:
    """Returns the digest of the files' bytes; read once as long as the files do not change."""
    digest = hashlib.sha256()
    for stamp in stamps:
        digest.update(f"{stamp.size_bytes}:".encode())
        with open(stamp.path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def metadata_of(proto: onnx.ModelProto) -> Mapping[str, str]:
    """Returns a model's metadata."""
    return {entry.key: entry.value for entry in proto.metadata_props}
