"""Skills of Python functions and torch modules."""

from __future__ import annotations

import collections.abc
import functools
import hashlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, overload

import numpy as np

from minerua.chain.graph import PortType
from minerua.chain.writing.ports import described
from minerua.errors import ChainError
from minerua.values import Setup, Skill, TensorSpec

if TYPE_CHECKING:
    import torch

RESULT = "result"
"""What the output of a function is called whose annotation has no names."""

_NO_DEFAULT = inspect.Parameter.empty
_YIELDS = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


# ── functions ────────────────────────────────────────────────────────────────────────────────────────────────────────


@overload
def skill(function: Callable[..., Any], /) -> Skill: ...


@overload
def skill(
    function: None = None,
    /,
    *,
    name: str | None = None,
    inputs: Mapping[str, PortType] | None = None,
    outputs: Mapping[str, PortType] | str | None = None,
    version: str | None = None,
    optional: Sequence[str] | None = None,
    resources: Mapping[str, int] | None = None,
    pure: bool = False,
    batchable: bool = False,
    thread_safe: bool = True,
) -> Callable[[Callable[..., Any]], Skill]: ...


def skill(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    inputs: Mapping[str, PortType] | None = None,
    outputs: Mapping[str, PortType] | str | None = None,
    version: str | None = None,
    optional: Sequence[str] | None = None,
    resources: Mapping[str, int] | None = None,
    pure: bool = False,
    batchable: bool = False,
    thread_safe: bool = True,
) -> Skill | Callable[[Callable[..., Any]], Skill]:
    """Makes a skill of an annotated function, as a decorator or called.

    Inputs are the parameters; those with a default are optional. The outputs are the fields of a `TypedDict`; any
    other return type is one output named `result`. An array is described by `Annotated[np.ndarray, TensorSpec(...)]`.
    The function may be async, or a generator: what it yields are partial outputs, the last of them is the result, and
    it is annotated `Iterator[T]` or `AsyncIterator[T]`.

    Args:
        function: The function.
        name: The skill's name; default: the function's, `-` for `_`.
        inputs: Input name → type, in place of the annotations.
        outputs: Output name → type, in place of the annotation: the function then returns a mapping. Or a name for its
            single output, in place of `result`.
        version: Changes whenever the results may; default: a digest of the function's own code, which knows nothing
            of what the function calls.
        optional: The inputs that a call can do without, in place of those with a default.
        resources: What one call holds.
        pure: Whether the same inputs give the same outputs and nothing else happens.
        batchable: Whether calls can be joined along the first axis of all arrays.
        thread_safe: Whether two threads may call it at a time.

    Raises:
        ChainError: If annotations are missing or cannot be read; lists all.

    Example:
        >>> @skill(pure=True)
        ... def count_words(text: str, least: int = 1) -> int:
        ...     return sum(len(word) >= least for word in text.split())
        >>> count_words.name, count_words.optional, count_words.call(text="to be or not")
        ('count-words', ('least',), {'result': 4})
    """

    def make(function: Callable[..., Any]) -> Skill:
        faults: list[str] = []
        hints = _hints(function, faults)
        signature = inspect.signature(function)
        taken = dict(inputs) if inputs is not None else _inputs(signature, hints, faults)
        label = outputs if isinstance(outputs, str) else RESULT
        given, single = (dict(outputs), None) if isinstance(outputs, Mapping) else _outputs(hints, label, faults)
        own = getattr(function, "__name__", type(function).__name__)
        if faults:
            raise ChainError(f"the function {own!r} cannot become a skill", dict.fromkeys(faults))
        defaults = [
            p for p in taken if p in signature.parameters and signature.parameters[p].default is not _NO_DEFAULT
        ]
        return Skill(
            name=name or own.strip("_").replace("_", "-").lower(),
            call=_mapping(function, single) if single is not None else function,
            inputs=taken,
            outputs=given,
            version=_code_digest(function) if version is None else version,
            optional=tuple(defaults if optional is None else optional),
            resources=dict(resources or {}),
            pure=pure,
            batchable=batchable,
            thread_safe=thread_safe,
        )

    return make if function is None else make(function)


def _hints(function: Callable[..., Any], faults: list[str]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        faults.append(f"its annotations cannot be read: {error}; give inputs and outputs instead")
        return {}


def _inputs(signature: inspect.Signature, hints: Mapping[str, Any], faults: list[str]) -> dict[str, PortType]:
    taken: dict[str, PortType] = {}
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            faults.append(
                f"parameter {parameter.name!r} cannot be an input, because inputs are passed by keyword, one by one"
            )
        elif parameter.name not in hints:
            faults.append(f"parameter {parameter.name!r} has no annotation; write a type such as {parameter.name}: str")
        else:
            taken[parameter.name] = _port(parameter.name, hints[parameter.name])
    return taken


def _outputs(hints: Mapping[str, Any], label: str, faults: list[str]) -> tuple[dict[str, PortType], str | None]:
    """Returns the outputs, and the name of a single one, which the function returns without its name."""
    if "return" not in hints:
        faults.append("its return value has no annotation; write -> str, or a TypedDict for several outputs")
        return {}, None
    hint = hints["return"]
    if typing.get_origin(hint) in _YIELDS:
        hint = typing.get_args(hint)[0]
    if typing.is_typeddict(hint):
        fields = typing.get_type_hints(hint, include_extras=True)
        return {name: _port(name, field) for name, field in fields.items()}, None
    return {label: _port(label, hint)}, label


def _port(name: str, hint: Any) -> PortType:
    """Returns what a type annotation means for a port; what is no single class is `object`."""
    if typing.get_origin(hint) is Annotated:
        tensors = [extra for extra in hint.__metadata__ if isinstance(extra, TensorSpec)]
        return tensors[0] if tensors else _port(name, hint.__origin__)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = {_port(name, one) for one in typing.get_args(hint) if one is not types.NoneType}
        return kinds.pop() if len(kinds) == 1 else object
    if typing.get_origin(hint) is typing.Literal:
        kinds = {type(one) for one in typing.get_args(hint)}
        return kinds.pop() if len(kinds) == 1 else object
    if hint is Any:  # a class since Python 3.11
        return object
    kind = getattr(hint, "__supertype__", None) or typing.get_origin(hint) or hint  # NewType; list[int]; a class
    return kind if isinstance(kind, type) else object


def _mapping(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Returns a function of the same kind that gives its value a name."""
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def stream(**inputs: Any) -> Any:
            async for part in function(**inputs):
                yield {name: part}

        return stream
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def parts(**inputs: Any) -> Any:
            for part in function(**inputs):
                yield {name: part}

        return parts
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(**inputs: Any) -> Any:
            return {name: await function(**inputs)}

        return awaited

    @functools.wraps(function)
    def call(**inputs: Any) -> Any:
        return {name: function(**inputs)}

    return call


def _code_digest(function: Callable[..., Any]) -> str:
    """Returns 12 hexadecimal digits of a function's code and defaults, the same in every process of one Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return "1"
    defaults = (getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None))
    return hashlib.sha256("\n".join([*_code_parts(code), _stable(defaults)]).encode()).hexdigest()[:12]


def _code_parts(code: types.CodeType) -> Iterator[str]:
    yield from (code.co_code.hex(), repr(code.co_names), repr(code.co_varnames))
    for constant in code.co_consts:
        yield from _code_parts(constant) if isinstance(constant, types.CodeType) else [_stable(constant)]


def _stable(value: object) -> str:
    """Returns a text of a constant without addresses, and with sets in an order that no hash seed changes."""
    if isinstance(value, frozenset | set):
        return f"set {sorted(map(_stable, value))}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} {[_stable(one) for one in value]}"
    if isinstance(value, dict):
        return f"dict {[(_stable(key), _stable(one)) for key, one in value.items()]}"
    return repr(value) if isinstance(value, bool | int | float | complex | str | bytes | None) else type(value).__name__


# ── torch ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def torch_skill(
    module: torch.nn.Module,
    *,
    name: str,
    inputs: Mapping[str, PortType],
    outputs: Mapping[str, PortType],
    version: str = "1",
    optional: Sequence[str] = (),
    resources: Mapping[str, int] | None = None,
    pure: bool = True,
    batchable: bool = False,
    thread_safe: bool = True,
    setups: Sequence[Setup] | None = None,
) -> Skill:
    """Makes a skill of a torch module: numpy in, numpy out, in inference mode, without copies on the CPU.

    The module gets its inputs by position, in the order of `inputs`, arrays as tensors that share their memory,
    `None` for an optional one that is absent, and nothing for those after the last that is there; it must not change
    them in place. It returns a tensor, a sequence in the
    order of `outputs`, or a mapping with their names. Loading puts it into evaluation mode; on another device than the
    CPU a copy of it is used.

    Args:
        module: The module; borrowed.
        name: The skill's name.
        inputs: Input name → its type, in the order of `forward`.
        outputs: Output name → its type.
        version: Changes whenever the results may, with the weights for example.
        optional: The inputs that a call can do without.
        resources: What one call holds.
        pure: Whether the same inputs give the same outputs; not if it draws random numbers.
        batchable: Whether calls can be joined along the first axis of all arrays.
        thread_safe: Whether two threads may call it at a time.
        setups: What a plan may choose from; default: torch's own number of threads, then 1, 2, 4 and so on, as many
            as the machine has cores.

    Example:
        >>> import torch
        >>> row = TensorSpec("x", ("batch", 2), "float32")
        >>> double = torch_skill(torch.nn.Identity(), name="same", inputs={"x": row}, outputs={"y": row})
        >>> double.load(Setup(threads=1))(x=np.ones((1, 2), np.float32))
        {'y': array([[1., 1.]], dtype=float32)}
    """
    return Skill(
        name=name,
        load=functools.partial(_load_module, module, tuple(inputs), tuple(outputs)),
        inputs=dict(inputs),
        outputs=dict(outputs),
        version=version,
        optional=tuple(optional),
        resources=dict(resources or {}),
        pure=pure,
        batchable=batchable,
        thread_safe=thread_safe,
        setups=tuple(setups) if setups is not None else _thread_setups(),
        loaded_bytes=sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())),
    )


def _thread_setups() -> tuple[Setup, ...]:
    cores = os.cpu_count() or 1
    return (Setup(), *(Setup(threads=1 << power) for power in range(cores.bit_length())))


def _load_module(
    module: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], setup: Setup
) -> Callable[..., Any]:
    import copy

    import torch

    device = torch.device(setup.device)
    model = (module if device.type == "cpu" else copy.deepcopy(module).to(device)).eval()

    def call(**given: Any) -> dict[str, Any]:
        with torch.inference_mode():
            last = max((place for place, name in enumerate(inputs, 1) if name in given), default=0)
            tensors = [_to_torch(given.get(name), device) for name in inputs[:last]]
            return _named_outputs(_threaded(model, tensors, setup.threads), outputs)

    return call


def _threaded(model: Callable[..., Any], tensors: Sequence[Any], threads: int | None) -> Any:
    """Calls a model with this many threads; torch counts them for each calling thread by itself."""
    import torch

    before = torch.get_num_threads()
    if threads is None or threads == before:
        return model(*tensors)
    torch.set_num_threads(threads)
    try:
        return model(*tensors)
    finally:
        torch.set_num_threads(before)


class _Writable:
    """Shows an array's memory as writable, which torch asks for and nobody makes use of; keeps the array alive."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _to_torch(value: Any, device: torch.device) -> Any:
    """Returns an array as a tensor that shares its memory where torch can; other values as they are."""
    import torch

    if not isinstance(value, np.ndarray):
        return value
    if any(stride < 0 for stride in value.strides) or not value.dtype.isnative:
        value = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
    narrow = value.dtype.name == "bfloat16"  # which torch does not know from numpy
    bits = value.view(np.int16) if narrow else value
    tensor = torch.from_numpy(bits if bits.flags.writeable else np.asarray(_Writable(bits)))
    return (tensor.view(torch.bfloat16) if narrow else tensor).to(device)


def to_numpy(value: Any) -> Any:
    """Returns a torch tensor as an array that shares its memory where it is on the CPU; other values as they are."""
    torch = sys.modules.get("torch")  # whoever made a tensor has imported it
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _named_outputs(returned: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(returned, Mapping):
        return {name: to_numpy(value) for name, value in returned.items()}
    several = returned if isinstance(returned, tuple | list) else (returned,)
    if len(several) != len(names):
        shown = ", ".join(described(type(value)) for value in several)
        raise ChainError(f"the module returned {len(several)} values ({shown}) for the outputs {', '.join(names)}")
    return {name: to_numpy(value) for name, value in zip(names, several, strict=True)}
