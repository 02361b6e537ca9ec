"""What models of one base are asked together: answers, probabilities, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from minerua.errors import ConfigError
from minerua_transformers.batches import batches
from minerua_transformers.folders import Described
from minerua_transformers.generation import Ending, Row, generate
from minerua_transformers.prompts import Conversation, Prompts
from minerua_transformers.resident import Resident
from minerua_transformers.sampling import draws
from minerua_transformers.scoring import Continuation, score
from minerua_transformers.settings import Settings

Work = Callable[[list[Any], Callable[[Sequence[int]], None]], None]
"""`work(rows, assign)` fills in the results of the rows of one batch."""


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Computes with so many threads, and then with as many as before."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class Desk:
    """Where the questions to one resident model are answered.

    Args:
        described: Configuration and tokenizer.
        resident: The model.
        settings: How it answers.
        prompts: Makes ids of conversations.
        ending: When answers end.
        context: The most tokens of prompt and answer together.
        batch_size: The most rows of a batch.
    """

    described: Described
    resident: Resident
    settings: Settings
    prompts: Prompts
    ending: Ending
    context: int
    batch_size: int

    def answers(
        self, children: Sequence[int], conversations: Sequence[Sequence[Conversation]]
    ) -> list[list[str | None]]:
        """Returns each child's answers to its conversations, in order; `None` to one that is too long."""
        known: dict[str, list[int]] = {}  # mostly all children are asked the same
        asked = [self._rows(child, said, known) for child, said in zip(children, conversations, strict=True)]
        rows = [row for row in _by_item(asked) if row.budget > 0]

        def work(batch: list[Row], assign: Callable[[Sequence[int]], None]) -> None:
            generate(self.resident.loaded.module, batch, self.settings, self.ending, assign)

        self._run(rows, [len(row.ids) for row in rows], work)
        return [[self.ending.text(row) if row.budget > 0 else None for row in some] for some in asked]

    def scores(
        self, children: Sequence[int], continuations: Sequence[Sequence[Continuation | None]]
    ) -> list[list[tuple[float, int, bool] | None]]:
        """Returns each child's log-likelihoods of its continuations.

        Returns:
            Sum of the log-probabilities, how many tokens there are, and whether each is the likeliest; `None` for what
            is `None` or longer than the context.
        """
        asked = [
            [None if one is None or len(one.ids) > self.context else one.of(child) for one in some]
            for child, some in zip(children, continuations, strict=True)
        ]
        rows = [row for row in _by_item(asked) if row is not None]

        def work(batch: list[Continuation], assign: Callable[[Sequence[int]], None]) -> None:
            assign([row.child for row in batch])
            score(self.resident.loaded.module, batch)

        self._run(rows, [len(row.ids) for row in rows], work, most_ids=self._most_scored_ids())
        return [[None if row is None else row.result for row in some] for some in asked]

    def _rows(self, child: int, conversations: Sequence[Conversation], known: dict[str, list[int]]) -> list[Row]:
        if isinstance(conversations, str | Mapping):
            raise TypeError(f"conversations are a sequence of texts or lists of messages; found {conversations!r:.120}")
        prompts = [self._ids(one, known) for one in conversations]
        longest = self.settings.max_new_tokens
        numbers = draws(prompts, self.settings.seed, longest) if self.settings.temperature else None
        rows = []
        for k, ids in enumerate(prompts):
            row = Row(child, ids, budget=min(longest, self.context - len(ids)) if ids else 0)
            if numbers is not None:
                row.numbers = numbers[k]
            rows.append(row)
        return rows

    def _ids(self, conversation: Conversation, known: dict[str, list[int]]) -> list[int]:
        key = repr(conversation)
        if key not in known:
            known[key] = self.prompts.ids(conversation)
        return known[key]

    def _most_scored_ids(self) -> int:
        """Returns how many ids may be scored at a time: each needs a row of logits."""
        return max(1, SCORED_VALUES // int(self.resident.loaded.module.config.get_text_config().vocab_size))

    def _run(self, rows: Sequence[Any], lengths: Sequence[int], work: Work, *, most_ids: int | None = None) -> None:
        """Works on rows in batches: all children's together, or one child after another."""
        import torch

        def batched(own: Sequence[int]) -> list[list[Any]]:
            found = batches([lengths[k] for k in own], self.batch_size, most_ids=most_ids)
            return [[rows[own[k]] for k in batch] for batch in found]

        together = batched(range(len(rows)))
        apart = {
            child: batched([k for k, row in enumerate(rows) if row.child == child])
            for child in sorted({row.child for row in rows})
        }
        saved = 1 - len(together) / max(1, sum(map(len, apart.values())))
        with torch.inference_mode(), _threads(self.settings.threads):
            if self.resident.is_joint and not (self.resident.is_small and saved < WORTHWHILE_SHARE):
                with self.resident.beside():
                    for batch in together:
                        self._tried(work, sorted(batch, key=lambda row: row.child), self.resident.assign)
                if self.resident.all_ways_ran():
                    return
                for row in rows:
                    row.reset()
            for child, own in apart.items():
                with self.resident.child(child):
                    for batch in own:
                        self._tried(work, batch, _nobody)

    def _tried(self, work: Work, batch: list[Any], assign: Callable[[Sequence[int]], None]) -> None:
        with memory_told(len(batch)):
            work(batch, assign)


def _by_item(asked: Sequence[Sequence[Any]]) -> list[Any]:
    """Returns all rows, the first of every child before the second of any, so that a batch has some of each."""
    longest = max(map(len, asked), default=0)
    return [some[k] for k in range(longest) for some in asked if k < len(some)]


WORTHWHILE_SHARE = 0.25
"""How many batches must be saved by asking small models together: where one child's rows fill a batch, its own matrices
alone stay in the caches, and nothing is gained by the others'."""

SCORED_VALUES = 1 << 27
"""Logits that are in memory at a time when probabilities are asked for: half a gigabyte in float32."""


@contextmanager
def memory_told(rows: int) -> Iterator[None]:
    """Says which batch did not fit where memory runs out.

    Raises:
        ConfigError: If it does.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError)
        if not is_memory and "allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"memory ran out with {rows} rows in a batch; set batch_size below that, or max_new_tokens lower"
        ) from error


def _nobody(children: Sequence[int]) -> None:
    """Stands for `assign` where one child has the whole model."""
