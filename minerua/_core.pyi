"""The compiled core of minerua. Private: use minerua.kernels, which checks what it passes."""

from collections.abc import Sequence
from typing import SupportsIndex, SupportsInt

from typing_extensions import Buffer

compiler: str

def combine(
    sources: Sequence[
        tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    ],
    base: tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    | None,
    coefficients: Buffer,
    target: tuple[str, Buffer | None, SupportsInt | SupportsIndex, SupportsInt | SupportsIndex],
) -> list[int]: ...
def gram(
    sources: Sequence[
        tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    ],
    base: tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    | None,
    out: Buffer,
) -> None: ...
def instruction_set() -> str: ...
def load(
    source: tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None],
    begin: SupportsInt | SupportsIndex,
    out: Buffer,
) -> None: ...
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
