"""What one step holds or waits for, in one place, so that nothing is forgotten when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

from minerua.chain.running.compiling import Turn
from minerua.chain.running.crew import Alarm

if TYPE_CHECKING:
    from minerua.chain.running.batching import Request
    from minerua.kernels.pool import Lease, Pending


@final
class Holding:
    """The lease, the model, the turn, and requests for them.

    Args:
        turn: Of a skill that is called by one thread at a time.
        on_turn: What waits for the turn.
    """

    __slots__ = ("alarm", "has_turn", "lease", "on_turn", "pending", "request", "told", "turn", "use")

    def __init__(self, turn: Turn | None, on_turn: Callable[[], object] | None) -> None:
        self.turn, self.on_turn, self.has_turn = turn, on_turn, False
        self.lease: Lease | None = None
        self.pending: Pending | None = None
        self.use: Any = None
        self.alarm: Alarm | None = None
        self.request: Request | None = None
        self.told: tuple[Any, BaseException | None] = (None, None)

    def release(self) -> None:
        """Gives everything back, and withdraws what is asked for."""
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.cancel()
        if self.request is not None:
            request, self.request = self.request, None
            request.cancel()
        if self.lease is not None:
            lease, self.lease = self.lease, None
            lease.release()
        if self.use is not None:
            use, self.use = self.use, None
            use.__exit__(None, None, None)
        self._leave_turn()

    def _leave_turn(self) -> None:
        if self.turn is None or self.on_turn is None:
            return
        if self.has_turn:
            self.has_turn = False
            self.turn.give()
        else:
            self.turn.withdraw(self.on_turn)
