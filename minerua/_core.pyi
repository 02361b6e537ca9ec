"""The compiled core of minerua. Private: use minerua.kernels, which checks what it passes."""

from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex, SupportsInt

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
def count_keys(
    sources: Sequence[
        tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    ],
    base: tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    | None,
    lows: Sequence[SupportsInt | SupportsIndex],
    highs: Sequence[SupportsInt | SupportsIndex],
    shift: SupportsInt | SupportsIndex,
    out: Buffer,
) -> None: ...
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
def draw(
    mask: tuple[
        tuple[SupportsInt | SupportsIndex, SupportsInt | SupportsIndex] | None,
        tuple[SupportsInt | SupportsIndex, SupportsInt | SupportsIndex] | None,
        SupportsFloat | SupportsIndex | None,
        SupportsFloat | SupportsIndex,
        SupportsInt | SupportsIndex,
        bool,
        SupportsInt | SupportsIndex,
        SupportsInt | SupportsIndex,
        SupportsInt | SupportsIndex,
        SupportsInt | SupportsIndex,
    ],
    size: SupportsInt | SupportsIndex,
    out: Buffer,
) -> None: ...
def masked_sums(
    sources: Sequence[
        tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    ],
    base: tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    | None,
    masks: Sequence[
        tuple[
            tuple[SupportsInt | SupportsIndex, SupportsInt | SupportsIndex] | None,
            tuple[SupportsInt | SupportsIndex, SupportsInt | SupportsIndex] | None,
            SupportsFloat | SupportsIndex | None,
            SupportsFloat | SupportsIndex,
            SupportsInt | SupportsIndex,
            bool,
            SupportsInt | SupportsIndex,
            SupportsInt | SupportsIndex,
            SupportsInt | SupportsIndex,
            SupportsInt | SupportsIndex,
        ]
    ],
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
def merge_masked(
    sources: Sequence[
        tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    ],
    base: tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    | None,
    masks: Sequence[
        tuple[
            tuple[SupportsInt | SupportsIndex, SupportsInt | SupportsIndex] | None,
            tuple[SupportsInt | SupportsIndex, SupportsInt | SupportsIndex] | None,
            SupportsFloat | SupportsIndex | None,
            SupportsFloat | SupportsIndex,
            SupportsInt | SupportsIndex,
            bool,
            SupportsInt | SupportsIndex,
            SupportsInt | SupportsIndex,
            SupportsInt | SupportsIndex,
            SupportsInt | SupportsIndex,
        ]
    ],
    factors: Sequence[SupportsFloat | SupportsIndex],
    votes: Sequence[SupportsFloat | SupportsIndex] | None,
    shares: Sequence[SupportsFloat | SupportsIndex] | None,
    scale: SupportsFloat | SupportsIndex,
    target: tuple[str, Buffer | None, SupportsInt | SupportsIndex, SupportsInt | SupportsIndex],
) -> list[int]: ...
def num_threads() -> int: ...
def select_largest(
    sources: Sequence[
        tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    ],
    base: tuple[Buffer, str, SupportsInt | SupportsIndex, Buffer | None, Buffer | None, Buffer | None, Buffer | None]
    | None,
    counts: Sequence[SupportsInt | SupportsIndex],
) -> list[tuple[int, int]]: ...
def set_num_threads(count: SupportsInt | SupportsIndex) -> None: ...
def svd_mutation(
    matrices: Sequence[Buffer], multipliers: Sequence[Buffer], outs: Sequence[Buffer], twofold: bool
) -> list[int]: ...
def uniform(
    seed: SupportsInt | SupportsIndex,
    model: SupportsInt | SupportsIndex,
    tensor: SupportsInt | SupportsIndex,
    out: Buffer,
) -> None: ...
