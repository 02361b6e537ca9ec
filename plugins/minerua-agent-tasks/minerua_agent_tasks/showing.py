"""What was said about an item, and what it was worth, as a text for a run's report."""

from __future__ import annotations

from minerua.values import Exhibit

from .asking import Conversation, messages
from .verdict import Verdict

__all__ = ["MOST_LETTERS", "MOST_MESSAGES", "shown"]

MOST_LETTERS = 2000
"""Of one message."""

MOST_MESSAGES = 16
"""Of one conversation: the first ones, which ask, and the last ones, which end it."""

_FIRST = 4
_TITLE_LETTERS = 120


def shown(id: str, conversation: Conversation, answer: str | None, verdict: Verdict) -> Exhibit:
    r"""Returns a conversation with its verdict as a text; long messages and long conversations are cut.

    Args:
        id: The item's id.
        conversation: What was said up to the last answer.
        answer: The last answer; `None` if none was given.
        verdict: What it was worth; its outcome is the title.

    Example:
        >>> print(shown("7", "Add 2 and 2.", "4", Verdict(1.0, "all 3 tests passed", 3, 3)).text)
        [user]
        Add 2 and 2.
        <BLANKLINE>
        [assistant]
        4
        <BLANKLINE>
        [verdict]
        1: all 3 tests passed
    """
    said = [(message["role"], message["content"]) for message in messages(conversation)]
    said += [] if answer is None else [("assistant", answer)]
    left = len(said) - MOST_MESSAGES
    parts = [f"[{role}]\n{_cut(content, MOST_LETTERS)}" for role, content in said]
    if left > 0:
        parts[_FIRST : _FIRST + left] = [f"[{left} more messages]"]
    reason = f"{verdict.outcome:.3g}: {verdict.reason}"
    title = " ".join(_cut(reason, _TITLE_LETTERS).split())
    return Exhibit(id, title, text="\n\n".join([*parts, f"[verdict]\n{_cut(reason, MOST_LETTERS)}"]))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … {len(text) - most:,} more letters"
