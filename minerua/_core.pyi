"""The compiled core of minerua. Private: use minerua.kernels, which checks what it passes."""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, SupportsFloat, SupportsIndex, SupportsInt, final

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

class Pool:
    def __init__(self, names: tuple[str, ...], capacity: Sequence[int], backfill: int) -> None: ...
    @property
    def closed(self) -> bool: ...
    def acquire(
        self,
        requirements: Mapping[str, int] | Requirements,
        *,
        timeout_seconds: float | None = None,
        priority: int = 0,
        cancel: CancelToken | None = None,
        name: str = "",
        nested: bool = False,
    ) -> Lease: ...
    def try_acquire(self, requirements: Mapping[str, int] | Requirements, *, name: str = "") -> Lease | None: ...
    def request(
        self,
        requirements: Mapping[str, int] | Requirements,
        on_grant: Callable[[Lease], object],
        on_refuse: Callable[[Exception], object] | None = None,
        *,
        priority: int = 0,
        name: str = "",
    ) -> Pending: ...
    def close(self) -> None: ...
    def _requirements(self, pairs: Sequence[tuple[int, int]], amounts: dict[str, int]) -> Requirements: ...
    def _resize(self, pairs: Sequence[tuple[int, int]]) -> None: ...
    def _snapshot(self) -> dict[str, Any]: ...
    def _memory_snapshot(self, place: int) -> tuple[int, int, int] | None: ...
    def _use_memory(self, arguments: tuple[int, str, int, int, Sequence[int]]) -> None: ...
    def _thread_holds(self) -> bool: ...

@final
class Requirements:
    @property
    def amounts(self) -> dict[str, int]: ...

@final
class CancelToken:
    @property
    def cancelled(self) -> bool: ...
    def cancel(self) -> None: ...

@final
class Pending:
    def cancel(self) -> bool: ...
    def _time_out(self) -> bool: ...

@final
class Lease:
    @property
    def requirements(self) -> dict[str, int]: ...
    @property
    def released(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def pool(self) -> Pool: ...
    def release(self) -> None: ...
    def allocate(self, nbytes: int, resource: str = "host_bytes", alignment: int = 64, *, stream: int = 0) -> Block: ...
    def try_extend(self, requirements: Mapping[str, int] | Requirements) -> bool: ...
    def hand_over(self) -> None: ...
    def _mark_task(self) -> None: ...
    def _is_task_s(self) -> bool: ...
    def __enter__(self) -> Lease: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[None]: ...

@final
class Block(Buffer):
    @property
    def nbytes(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def resource(self) -> str: ...
    @property
    def freed(self) -> bool: ...
    def free(self) -> None: ...
