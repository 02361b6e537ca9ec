"""How a step that runs in a thread learns that nobody wants its result any more."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

GRACE_SECONDS: Final = 1.0
"""How long a run that failed waits for its other steps to stop before it tells its caller."""


class StopFlag:
    """Is set once, when a run ends before its steps do."""

    __slots__ = ("cancelled",)

    def __init__(self) -> None:
        self.cancelled = False


current_flag: ContextVar[StopFlag | None] = ContextVar("minerua_stop_flag", default=None)
"""The flag of the run that this thread or coroutine works for."""


def cancelled() -> bool:
    """Tells a step whether its run was cancelled, failed or took too long, so that its result is for nobody.

    Nothing can stop a thread from outside: a long step in Python asks now and then and returns early, or raises.
    Coroutines are cancelled and processes are killed without asking. Outside a chain the answer is `False`.

    Example:
        >>> def search(text):
        ...     for line in text.splitlines():
        ...         if cancelled():
        ...             break
        >>> cancelled()
        False
    """
    flag = current_flag.get()
    return flag is not None and flag.cancelled
