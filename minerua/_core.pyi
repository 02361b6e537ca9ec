"""The compiled core of minerua. Private: use minerua.kernels, which checks what it passes."""

from collections.abc import Sequence
from typing import SupportsIndex, SupportsInt

from typing_extensions import Buffer

compiler: str

def instruction_set() -> str: ...
def merge(
    experts: Sequence[Buffer],
    expert_dtype: str,
    base: Buffer | None,
    base_dtype: str,
    coefficients: Buffer,
    out: Buffer,
    out_dtype: str,
) -> None: ...
def num_threads() -> int: ...
def set_num_threads(count: SupportsInt | SupportsIndex) -> None: ...
def svd_mutation(matrices: Buffer, multipliers: Buffer, out: Buffer) -> None: ...
