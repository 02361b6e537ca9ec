"""numpy arrays and torch tensors, seen the same way.

torch is never imported here: whoever passes a tensor has done it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The element types of the core, by numpy's name."""


@dataclass(frozen=True)
class Described:
    """What the checks need to know of an array.

    Args:
        kind: `"numpy"`, `"torch"`, or the name of a type that is neither.
        shape: Its extents.
        dtype: numpy's name of the element type.
        device: torch's name of the device; numpy arrays are on `"cpu"`.
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    device: str = "cpu"

    @property
    def is_array(self) -> bool:
        """Whether the core could take it at all."""
        return self.kind in ("numpy", "torch")

    @property
    def is_cuda(self) -> bool:
        """Whether it lies on a CUDA device."""
        return self.device.startswith("cuda")


def described(array: Any) -> Described:
    """Returns the description of anything at all."""
    if isinstance(array, np.ndarray):
        return Described("numpy", array.shape, array.dtype.name)
    if is_tensor(array):
        return Described("torch", tuple(array.shape), dtype_name(array.dtype), str(array.device))
    return Described(type(array).__name__)


def is_tensor(value: Any) -> bool:
    """Whether the value is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def dtype_name(dtype: Any) -> str:
    """Returns numpy's name of a dtype given as a name, a numpy dtype or a torch dtype; unknown things as text."""
    text = str(dtype)
    if text.startswith("torch."):
        return text.removeprefix("torch.")
    try:
        return np.dtype(dtype).name
    except TypeError:
        return text


def on_host(array: Any) -> np.ndarray:
    """Returns the array as a numpy array: contiguous, native byte order, on the CPU; without a copy where possible."""
    if not is_tensor(array):
        return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    tensor = array.detach().cpu().contiguous()
    if dtype_name(tensor.dtype) == "bfloat16":
        return np.asarray(tensor.view(sys.modules["torch"].int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy())


def host_view(array: Any) -> np.ndarray:
    """Returns where to write results: the array itself, a CPU tensor's memory, for other tensors a new array."""
    if not is_tensor(array):
        return np.asarray(array)
    tensor = array.detach()
    return np.asarray(tensor.numpy() if tensor.device.type == "cpu" else np.empty(tuple(tensor.shape), np.float32))


def restored(array: np.ndarray, like: Any) -> Any:
    """Returns a fresh array as the kind of array that `like` is, on the same device; on the CPU without a copy."""
    if not is_tensor(like):
        return array
    torch: Any = sys.modules["torch"]
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(like.device)
    return torch.from_numpy(array).to(like.device)


def as_float32(values: Any) -> np.ndarray | None:
    """Returns coefficients or multipliers as a contiguous float32 array; `None` if they are not real numbers."""
    return as_numbers(values, "float32")


def as_numbers(values: Any, dtype: str) -> np.ndarray | None:
    """Returns numbers as a contiguous array of a floating dtype; `None` if they are not real numbers."""
    try:
        numbers = np.asarray(values.detach().cpu().double().numpy() if is_tensor(values) else values)
        if numbers.dtype.kind == "c":
            return None
        with np.errstate(over="ignore"):  # beyond the dtype becomes infinity, which the checks then report
            return np.asarray(numbers, dtype=dtype, order="C")
    except (TypeError, ValueError):
        return None
