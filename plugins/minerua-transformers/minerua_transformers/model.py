"""A language model that evaluators and skills call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from minerua_transformers.answers import Desk
from minerua_transformers.prompts import Conversation
from minerua_transformers.scoring import Continuation, continuation, whole_text

Likelihood = tuple[float, bool]
"""The sum of a continuation's log-probabilities, and whether each of its tokens is the likeliest."""


@final
class LanguageModel:
    """One model, or one child among several of a base.

    Args:
        desk: Where its base is.
        child: Its number among the children.
    """

    def __init__(self, desk: Desk, child: int = 0) -> None:
        self.desk, self.child = desk, child
        self._generation = desk.resident.generation

    def __call__(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """Returns one answer per conversation, in order.

        Args:
            conversations: Texts to go on with, or lists of messages with `role` and `content`.

        Returns:
            Answers without their prompts; `None` where prompt and answer do not fit into the context.

        Raises:
            ValueError: If a conversation is none.
            ConfigError: If memory runs out.
        """
        return self.together([self], [conversations])[0]

    def together(
        self, models: Sequence[LanguageModel], conversations: Sequence[Sequence[Conversation]]
    ) -> list[list[str | None]]:
        """Returns the answers of several models; those over one base are asked in joint batches.

        Args:
            models: Of this class, in any number.
            conversations: `conversations[k]` for `models[k]`.
        """
        return _by_desk(models, conversations, lambda desk, children, given: desk.answers(children, given))

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | None]:
        """Returns how likely continuations are.

        Args:
            pairs: Context and continuation; the context may be empty.

        Returns:
            Per pair the sum of the continuation's log-probabilities, and whether greedy generation would have produced
            it; `None` where it has no tokens or both do not fit into the context.
        """
        return self.together_log_likelihoods([self], [pairs])[0]

    def together_log_likelihoods(
        self, models: Sequence[LanguageModel], pairs: Sequence[Sequence[tuple[str, str]]]
    ) -> list[list[Likelihood | None]]:
        """Returns the log-likelihoods of several models: `pairs[k]` for `models[k]`."""

        def scored(desk: Desk, children: Sequence[int], given: Any) -> list[list[Likelihood | None]]:
            found = desk.scores(
                children, [[continuation(desk.described.tokenizer, *pair) for pair in p] for p in given]
            )
            return [[None if one is None else (one[0], one[2]) for one in some] for some in found]

        return _by_desk(models, pairs, scored)

    def losses(self, texts: Sequence[str]) -> list[float | None]:
        """Returns the mean negative log-probability per token of texts; its exponential is the perplexity.

        Args:
            texts: Each on its own.

        Returns:
            Per text its loss; `None` where it has no tokens to ask for or does not fit into the context.
        """
        return self.together_losses([self], [texts])[0]

    def together_losses(
        self, models: Sequence[LanguageModel], texts: Sequence[Sequence[str]]
    ) -> list[list[float | None]]:
        """Returns the losses of several models: `texts[k]` for `models[k]`."""

        def scored(desk: Desk, children: Sequence[int], given: Any) -> list[list[float | None]]:
            asked: list[list[Continuation | None]] = [
                [whole_text(desk.described.tokenizer, text) for text in some] for some in given
            ]
            found = desk.scores(children, asked)
            return [[None if one is None else -one[0] / one[1] for one in some] for some in found]

        return _by_desk(models, texts, scored)

    def check(self) -> None:
        """Raises where the base has become other children since.

        Raises:
            RuntimeError: If it has.
        """
        if self._generation != self.desk.resident.generation:
            raise RuntimeError(
                "this model was one of an earlier generation, whose base has become other children since; "
                "ask for children anew"
            )


def _by_desk(models: Sequence[LanguageModel], asked: Sequence[Any], answer: Any) -> list[list[Any]]:
    """Returns what is asked of models, those of one base together."""
    if len(models) != len(asked):
        raise ValueError(f"there are {len(models)} models and {len(asked)} lists of questions; one for each is needed")
    answers: list[list[Any]] = [[] for _ in models]
    for desk in dict.fromkeys(model.desk for model in models):
        own = [k for k, model in enumerate(models) if model.desk is desk]
        for k in own:
            models[k].check()
        found = answer(desk, [models[k].child for k in own], [asked[k] for k in own])
        for k, one in zip(own, found, strict=True):
            answers[k] = one
    return answers
