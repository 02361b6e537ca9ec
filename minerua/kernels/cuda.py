"""The CUDA half of the core, opened with ctypes when the first CUDA tensor arrives.

Work is queued on torch's current stream; nothing here waits for the device, except to read whether an SVD mutation
succeeded. Temporary memory comes from torch's caching allocator on that stream: reused only after the work queued.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minerua.errors import CoreUnavailable, KernelError
from minerua.kernels import compiled

ABI = 3  # MINERUA_CUDA_ABI in capi.h
MAX_EXPERTS = 64  # MINERUA_CUDA_MAX_EXPERTS
MAX_SIDE = 128  # MINERUA_CUDA_MAX_SIDE
CODES = {"float32": 0, "float16": 1, "bfloat16": 2}  # enum minerua_dtype
OUTCOMES = {1: "NaN or infinity in matrix, or in the multipliers of matrix,", 2: "no convergence for matrix"}

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_SIGNATURES: dict[str, list[Any]] = {
    "minerua_cuda_abi": [],
    "minerua_cuda_device_count": [ctypes.POINTER(_INT)],
    "minerua_cuda_merge": [
        *(_POINTER, _INT, _INT, _POINTER, _INT),  # experts, their count and dtype, base and its dtype
        *(_POINTER, _INT, _LONG, _POINTER, _INT, _POINTER),  # coefficients, children, size, out and its dtype, stream
    ],
    "minerua_cuda_svd_mutation_side": [ctypes.POINTER(_INT)],
    "minerua_cuda_svd_mutation_workspace": [_LONG, _LONG, _LONG, ctypes.POINTER(_LONG)],
    "minerua_cuda_svd_mutation": [_POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER, _POINTER],
}


class Pass(ctypes.Structure):
    """`minerua_pass` of capi.h: where the tables of a pass over many tensors are, and how long."""

    _fields_ = (
        ("sources", _POINTER),
        ("tensors", _POINTER),
        ("pieces", _POINTER),
        ("piece_count", _LONG),
        ("most_sources", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


_PASS = ctypes.POINTER(Pass)
PASS_SIGNATURES: dict[str, list[Any]] = {
    "minerua_cuda_combine": [_PASS, _POINTER, _POINTER, _POINTER],
    "minerua_cuda_gram": [_PASS, _POINTER, _POINTER],
    "minerua_cuda_sum_pieces": [_POINTER, _LONG, _POINTER, _POINTER, _POINTER],
    "minerua_cuda_histogram": [_PASS, _POINTER, _POINTER, _POINTER],
    "minerua_cuda_narrow": [_POINTER, _LONG, _POINTER, _INT, _POINTER],
    "minerua_cuda_count_equal": [_PASS, _POINTER, _POINTER, _POINTER],
    "minerua_cuda_cut_ties": [_PASS, _POINTER, _LONG, _POINTER, _POINTER, _POINTER],
    "minerua_cuda_masked_sums": [_PASS, _POINTER, _POINTER, _POINTER],
    "minerua_cuda_merge_masked": [_PASS, _POINTER, _POINTER, _POINTER, _POINTER],
}
"""The functions for passes, and their arguments; each returns a status, and takes the stream last."""


def library_path() -> Path:
    """Returns where the library would be: beside the compiled module, or in the package."""
    beside = compiled.core.__file__ if compiled.core is not None else None
    folder = Path(beside).parent if beside else Path(__file__).parents[1]
    return folder / "libminerua_cuda.so"


@functools.cache
def library() -> ctypes.CDLL:
    """Returns the opened library; opened once per process.

    Raises:
        CoreUnavailable: It was not built, cannot be loaded, or speaks another ABI.
    """
    path = library_path()
    if not path.exists():
        raise CoreUnavailable(f"{path} does not exist: minerua was built without CUDA; reinstall it with nvcc on PATH")
    try:
        opened = ctypes.CDLL(str(path))
        if (found := opened.minerua_cuda_abi()) == ABI:
            declare(opened, _SIGNATURES | PASS_SIGNATURES)
    except (OSError, AttributeError) as error:
        raise CoreUnavailable(f"{path} cannot be loaded: {error}; reinstall minerua") from error
    if found != ABI:
        raise CoreUnavailable(f"{path} has ABI {found}, this minerua needs {ABI}; reinstall minerua")
    return opened


def declare(opened: ctypes.CDLL, signatures: Mapping[str, list[Any]]) -> None:
    """Tells ctypes what functions of a library take.

    Raises:
        AttributeError: The library lacks one.
    """
    for name, arguments in signatures.items():
        getattr(opened, name).argtypes = arguments
    opened.minerua_cuda_last_error.restype = ctypes.c_char_p


def absence_reason() -> str:
    """Returns why the library cannot be used; empty if it can."""
    try:
        library()
    except CoreUnavailable as error:
        return str(error)
    return ""


def device_count() -> int:
    """Returns how many CUDA devices the library sees.

    Raises:
        CoreUnavailable: The library is missing, or the driver is missing or too old.
    """
    count = _INT(0)
    _call("minerua_cuda_device_count", ctypes.byref(count))
    return count.value


class Fitness(NamedTuple):
    """What a device can do with the library.

    Args:
        obstacle: Why it can do nothing: no code for its architecture, a driver older than the library. Else empty.
        side: The largest min(m, n) that the SVD mutation takes on it.
    """

    obstacle: str
    side: int


@functools.cache
def fitness(device: str) -> Fitness:
    """Returns what a device (torch's name of it) can do, asked once per process; says nothing of a missing library."""
    if absence_reason():
        return Fitness("", MAX_SIDE)
    torch: Any = sys.modules["torch"]
    side = _INT(0)
    try:
        with torch.cuda.device(device):
            _call("minerua_cuda_svd_mutation_side", ctypes.byref(side))
    except CoreUnavailable as error:
        return Fitness(f"{device} cannot run the kernels, {error}", MAX_SIDE)
    return Fitness("", side.value)


def merge_limit(device: str, experts: int) -> str:
    """Returns why the kernel cannot merge so many experts on a device; empty if it can."""
    if experts > MAX_EXPERTS:
        return f"{experts} experts are more than its {MAX_EXPERTS}"
    return fitness(device).obstacle


def svd_mutation_limit(device: str, side: int) -> str:
    """Returns why the kernel cannot take matrices of this smaller side on a device; empty if it can."""
    obstacle, largest = fitness(device)
    return obstacle or (f"side {side} is above {largest}" if side > largest else "")


def merge(experts: Sequence[Any], coefficients: np.ndarray, *, base: Any, out_dtype: np.dtype) -> Any:
    """Returns the children, as `reference.merge` does, bit for bit, on the experts' device.

    Raises:
        CoreUnavailable: The library is missing, or the launch failed.
    """
    torch: Any = sys.modules["torch"]
    taken = [expert.detach().contiguous() for expert in experts]
    start = None if base is None else base.detach().contiguous()
    with torch.cuda.device(taken[0].device):
        weights = queued(coefficients, taken[0].device)
        out = torch.empty(
            (len(coefficients), *taken[0].shape), dtype=getattr(torch, out_dtype.name), device=taken[0].device
        )
        pointers = (_POINTER * len(taken))(*[expert.data_ptr() for expert in taken])
        _call(
            "minerua_cuda_merge",
            *(pointers, len(taken), _code(taken[0])),
            *((None, 0) if start is None else (start.data_ptr(), _code(start))),
            *(weights.data_ptr(), len(coefficients), taken[0].numel(), out.data_ptr(), CODES[out_dtype.name]),
            torch.cuda.current_stream().cuda_stream,
        )
    return out


def svd_mutation(matrices: Any, multipliers: np.ndarray) -> Any:
    """Returns the mutated matrices, as `reference.svd_mutation` does, up to rounding, on their device.

    Raises:
        KernelError: Values are not finite, or an iteration did not converge; names the matrices.
        CoreUnavailable: The library is missing, or the launch failed.
    """
    torch: Any = sys.modules["torch"]
    taken = matrices.detach().contiguous()
    with torch.cuda.device(taken.device):
        weights = queued(multipliers, taken.device)
        needed = _LONG(0)
        _call("minerua_cuda_svd_mutation_workspace", *taken.shape, ctypes.byref(needed))
        workspace = torch.empty(needed.value, dtype=torch.uint8, device=taken.device)
        outcomes = torch.empty(len(taken), dtype=torch.int32, device=taken.device)
        out = torch.empty_like(taken)
        _call(
            "minerua_cuda_svd_mutation",
            *(taken.data_ptr(), weights.data_ptr(), out.data_ptr(), *taken.shape),
            *(workspace.data_ptr(), outcomes.data_ptr(), torch.cuda.current_stream().cuda_stream),
        )
    expect_done(outcomes.tolist())
    return out


def wide_svd_mutation(matrices: Any, multipliers: np.ndarray, *, precision: str = "float64") -> Any:
    """Returns the mutated matrices by torch.linalg, for sides that the kernel does not take; any device.

    The same route as the kernels: Gram matrix of the smaller side in the precision, eigenvectors, no division.

    Raises:
        KernelError: Values are not finite (names the matrices), or no convergence.
    """
    torch: Any = sys.modules["torch"]
    taken = matrices.detach()
    expect_done((~taken.isfinite().flatten(1).all(dim=1)).int().tolist())
    wide = taken.shape[1] < taken.shape[2]
    dtype = getattr(torch, precision)
    exponents = torch.frexp(taken.abs().amax(dim=(1, 2), keepdim=True))[1].clamp(-100, 100)
    shift = torch.exp2(-exponents.to(dtype))  # a power of two: exact, and no square overflows
    tall = (taken.mT if wide else taken).to(dtype) * shift
    try:
        vectors = torch.linalg.eigh(tall.mT @ tall).eigenvectors.flip(-1)  # descending
    except torch.linalg.LinAlgError as error:
        raise KernelError(f"svd_mutation: {error}") from error
    weights = torch.tensor(multipliers, device=taken.device).to(dtype)
    mutated = (tall @ (vectors * weights[:, None, :])) @ vectors.mT / shift
    return (mutated.mT if wide else mutated).float().contiguous()


def expect_done(outcomes: Sequence[int]) -> None:
    """Raises unless every outcome is 0.

    Raises:
        KernelError: Names what happened to which matrices.
    """
    faults = []
    for code, text in OUTCOMES.items():
        found = [str(b) for b, outcome in enumerate(outcomes) if outcome == code]
        faults += [f"{text} {', '.join(found)}"] if found else []
    if faults:
        raise KernelError("svd_mutation failed on the device:", faults)


def queued(numbers: np.ndarray, device: Any) -> Any:
    """Copies to the device on the current stream without waiting for it.

    From pinned memory, which torch keeps until the copy is done: a copy from ordinary memory would first wait for the
    stream to come so far.
    """
    torch: Any = sys.modules["torch"]
    return torch.tensor(numbers, pin_memory=True).to(device, non_blocking=True)


def _code(tensor: Any) -> int:
    return CODES[str(tensor.dtype).removeprefix("torch.")]


def call_pass(name: str, *arguments: Any) -> None:
    """Calls one of PASS_SIGNATURES.

    Raises:
        CoreUnavailable: The library is missing, or the launch failed; carries the library's own text.
    """
    _call(name, *arguments)


@contextmanager
def on(device: Any) -> Iterator[int | None]:
    """Makes a device the current one, and gives the address of torch's current stream on it."""
    torch: Any = sys.modules["torch"]
    with torch.cuda.device(device):
        yield torch.cuda.current_stream().cuda_stream


def _call(name: str, *arguments: Any) -> None:
    """Calls a function of the library that returns a status.

    Raises:
        CoreUnavailable: The library is missing, or the call failed; carries the library's own text.
    """
    opened = library()
    if getattr(opened, name)(*arguments) != 0:
        raise CoreUnavailable(f"{name} failed: {opened.minerua_cuda_last_error().decode()}")
