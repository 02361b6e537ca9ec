"""Asking language models: conversations, and the answers of one or several models to many of them at once.

A conversation is a text, or a list of messages `{"role": "system" | "user" | "assistant", "content": text}`. A model is
a callable: conversations → one answer each, a text, or `None` where it has none to give, such as a conversation longer
than what it can read. Models over one base may have `together(models, conversations)`, which answers for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from minerua.errors import MineruaError

__all__ = ["UNANSWERED", "AnswersError", "Conversation", "answers", "continued", "messages"]

Conversation: TypeAlias = str | Sequence[Mapping[str, str]]

UNANSWERED = "the model gave no answer; the conversation may be longer than it can read"
"""Why an answer that is `None` is worth nothing."""

_ROLES = ("system", "user", "assistant")


class AnswersError(MineruaError, TypeError):
    """A model that does not answer as models do: a fault of the model kind, never of the weights."""


def answers(models: Sequence[Any], conversations: Sequence[Sequence[Conversation]]) -> list[list[str | None]]:
    """Asks several models, in joint batches where they have `together`.

    Args:
        models: Callables: conversations → answers.
        conversations: One sequence per model.

    Returns:
        One list per model with one answer per conversation, in order.

    Raises:
        AnswersError: Something else came back than one text or `None` per conversation.

    Example:
        >>> answers([lambda asked: [text.upper() for text in asked]], [["a", "b"]])
        [['A', 'B']]
    """
    if not models:
        return []
    together = getattr(models[0], "together", None)
    if together is None:
        given: Any = [model(asked) if asked else [] for model, asked in zip(models, conversations, strict=True)]
    else:
        given = together(models, conversations)
    return _checked(given, conversations)


def _checked(given: Any, conversations: Sequence[Sequence[Conversation]]) -> list[list[str | None]]:
    if not _is_list(given) or len(given) != len(conversations):
        raise AnswersError(
            f"{len(conversations)} models were asked together, and {_described(given)} came back; "
            "`together` returns one list of answers per model"
        )
    return [_of_one(k, said, len(asked)) for k, (said, asked) in enumerate(zip(given, conversations, strict=True))]


def _of_one(model: int, said: Any, count: int) -> list[str | None]:
    if not _is_list(said) or len(said) != count:
        raise AnswersError(
            f"model {model} was asked {count} conversations and returned {_described(said)}; "
            "a model returns a list with one answer per conversation"
        )
    for number, answer in enumerate(said):
        if answer is not None and not isinstance(answer, str):
            raise AnswersError(
                f"model {model} answered conversation {number} with a {type(answer).__name__}; "
                "an answer is a text, or None where there is none"
            )
    return list(said)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _described(value: Any) -> str:
    return f"{len(value)} answers" if _is_list(value) else f"a {type(value).__name__}"


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


def messages(conversation: Conversation) -> list[dict[str, str]]:
    """Returns a conversation as messages of its own; a text is what a user says.

    Raises:
        AnswersError: It is neither a text nor messages; all faults listed.

    Example:
        >>> messages("Hello.")
        [{'role': 'user', 'content': 'Hello.'}]
    """
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]
    faults = [fault for number, message in enumerate(conversation) if (fault := _fault(number, message))]
    if faults or not conversation:
        raise AnswersError("a conversation is a text, or a list of messages with a role and a content", faults)
    return [{"role": message["role"], "content": message["content"]} for message in conversation]


def _fault(number: int, message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return f"message {number} is a {type(message).__name__}, not a mapping"
    if message.get("role") not in _ROLES:
        return f"message {number} has the role {message.get('role')!r}; it is one of {', '.join(_ROLES)}"
    if not isinstance(message.get("content"), str):
        return f"the content of message {number} is no text"
    return None


def continued(conversation: Conversation, answer: str, reply: str) -> list[dict[str, str]]:
    """Returns a conversation after one more turn: what the model said, and what it is told.

    Example:
        >>> [message["role"] for message in continued("How many?", "Two.", "Sure?")]
        ['user', 'assistant', 'user']
    """
    return [
        *messages(conversation),
        {"role": "assistant", "content": answer},
        {"role": "user", "content": reply},
    ]
