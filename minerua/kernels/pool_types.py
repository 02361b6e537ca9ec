"""The types of the compiled pool, or what says that they are missing: `minerua.kernels.pool` gives them to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minerua.kernels import compiled

if TYPE_CHECKING:
    from minerua._core import Block as Block
    from minerua._core import CancelToken as CancelToken
    from minerua._core import Lease as Lease
    from minerua._core import Pending as Pending
    from minerua._core import Pool as Pool
    from minerua._core import Requirements as Requirements
else:

    class _Absent:
        """Stands where a type of the compiled core would: there is no pool without it."""

        def __init__(self, *arguments: object, **named: object) -> None:
            compiled.require_core()

    Block, CancelToken, Lease, Pending, Pool, Requirements = (
        getattr(compiled.core, name, _Absent)
        for name in ("Block", "CancelToken", "Lease", "Pending", "Pool", "Requirements")
    )
