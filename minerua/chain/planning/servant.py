"""A process of its own for measurements: what is loaded there leaves no trace here.

Some libraries let a process choose only once how its models get their threads. Whoever wants to compare the choices
needs a process for each, and keeps its own choice for the plan that wins.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, final

from minerua.errors import ChainError

if TYPE_CHECKING:
    from typing_extensions import Self

END_SECONDS = 5.0


def can_fork() -> bool:
    """Whether this system can copy a process as it is."""
    return "fork" in multiprocessing.get_all_start_methods()


@final
class Servant:
    """A copy of this process that answers one question after the other; a context manager.

    Args:
        answer: `answer(question)` is called in the copy; it finds everything as it was when the copy was made.
    """

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._ours, theirs, answer), daemon=True)
        with warnings.catch_warnings():
            # Copying a process with threads is warned of, since locks that they hold stay locked: the copy takes none
            # but those of the models that it loads itself.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()

    def ask(self, question: Any) -> Any:
        """Returns the answer to a question.

        Args:
            question: Anything but `None` that can be pickled.

        Raises:
            ChainError: If the process ended without an answer.
            Exception: What `answer` raised.
        """
        self._ours.send(question)
        try:
            answer, error = self._ours.recv()
        except EOFError:
            self._process.join(END_SECONDS)
            raise ChainError(
                f"the process that measured a plan ended with code {self._process.exitcode} and without an answer; "
                "run the chain without measuring to see why"
            ) from None
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):  # it may have ended by itself
            self._ours.send(None)
        self._ours.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(ours: Connection, theirs: Connection, answer: Callable[[Any], Any]) -> None:
    ours.close()  # else its end would stay open here, and nobody would learn that the asker has gone
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # the asker has gone, or everybody was interrupted
        while (question := theirs.recv()) is not None:
            reply: tuple[Any, Exception | None]
            try:
                reply = (answer(question), None)
            except Exception as error:  # noqa: BLE001 - raised again where the question was asked
                reply = (None, _portable(error))
            theirs.send(reply)


def _portable(error: Exception) -> Exception:
    """Returns the error if it can travel, else one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - a stranger's error may fail at this in any way
        return ChainError(f"{type(error).__name__}: {error}")
    return error
