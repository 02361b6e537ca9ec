"""Conversations become ids: completion prompts as they are, messages by the tokenizer's template or in a plain form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from minerua.errors import ConfigError
from minerua_transformers.settings import Settings

Conversation = str | Sequence[Mapping[str, str]]
"""A prompt to go on with, or messages `{"role": "system" | "user" | "assistant", "content": text}`."""

ROLES = ("system", "user", "assistant")


@final
class Prompts:
    """Makes ids of conversations.

    Args:
        tokenizer: transformers' tokenizer.
        settings: Which form, and what stands at the head.

    Raises:
        ConfigError: If the template is asked for, and the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, settings: Settings) -> None:
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if settings.chat == "template" and not has_template:
            raise ConfigError("chat is 'template', and the tokenizer has no chat template; 'auto' needs none")
        self._tokenizer, self._system = tokenizer, settings.system
        self._uses_template = has_template and settings.chat != "plain"
        self._wraps_texts = settings.chat == "template"

    def ids(self, conversation: Conversation) -> list[int]:
        """Returns what the model reads.

        Args:
            conversation: As above.

        Raises:
            ValueError: If it is neither a text nor a list of messages, or the template refuses it.
        """
        if isinstance(conversation, str) and not self._wraps_texts:
            text = conversation if self._system is None else f"{self._system}\n\n{conversation}"
            return self._encoded(text, special=True)
        messages = self._messages(conversation)
        if not self._uses_template:
            return self._encoded(plain(messages), special=True)
        return self._encoded(self._templated(messages), special=False)

    def _messages(self, conversation: Conversation) -> list[dict[str, str]]:
        if isinstance(conversation, str):
            messages = [{"role": "user", "content": conversation}]
        else:
            messages = checked_messages(conversation)
        if self._system is not None and all(message["role"] != "system" for message in messages):
            messages.insert(0, {"role": "system", "content": self._system})
        return messages

    def _templated(self, messages: Sequence[Mapping[str, str]]) -> str:
        import jinja2

        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(f"the chat template takes no conversation of {roles}: {error}") from error

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids or [one for one in (start_token(self._tokenizer),) if one is not None]


def plain(messages: Sequence[Mapping[str, str]]) -> str:
    """Returns messages as one text for models without a chat template: each with its role, an empty line between two.

    Example:
        >>> print(plain([{"role": "user", "content": "Hello"}]))
        User: Hello
        <BLANKLINE>
        Assistant:
    """
    said = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*said, "Assistant:"])


def checked_messages(conversation: Any) -> list[dict[str, str]]:
    """Returns a copy of a list of messages.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(conversation, Sequence) or isinstance(conversation, bytes) or not conversation:
        raise ValueError(f"a conversation is a text or a list of messages; found {conversation!r:.120}")
    for message in conversation:
        good = isinstance(message, Mapping) and message.get("role") in ROLES
        if not good or not isinstance(message.get("content"), str):
            raise ValueError(
                f"a message has a role of {', '.join(ROLES)} and a text as content; found {message!r:.120}"
            )
    return [{"role": message["role"], "content": message["content"]} for message in conversation]


def start_token(tokenizer: Any) -> int | None:
    """Returns what stands before a text of nothing: the token for a beginning, else for an end."""
    for one in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if one is not None:
            return int(one)
    return None
