"""What was known before the run: how alike the experts are, and which of them will hardly merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from minerua.errors import JournalError


@dataclass(frozen=True)
class Pair:
    """Two experts side by side.

    Args:
        experts: Their names, in the order of the run.
        similarity: s, how alike their spectra are, in (0, 1]; `None` where no matrix has a rank above one in both.
        cosine: Cosine of their task vectors, in [−1, 1]; 0 for an expert that is equal to the base.
        norm_ratio: The longer task vector's norm divided by the other's, from 1; `None` if one of them is 0.
    """

    experts: tuple[str, str]
    similarity: float | None
    cosine: float
    norm_ratio: float | None


@dataclass(frozen=True)
class Preflight:
    """What a run's experts say before it starts.

    Args:
        matrices: Over how many matrices s was taken at most.
        matrices_in_all: How many the population has.
        norms: Expert → norm of its task vector.
        pairs: Every two experts, in the order of the run.
        concerns: One sentence per thing that a person should know before the run; empty if there is none.
    """

    matrices: int
    matrices_in_all: int
    norms: Mapping[str, float]
    pairs: tuple[Pair, ...]
    concerns: tuple[str, ...]

    def fields(self) -> dict[str, Any]:
        """Returns it as plain JSON values: the fields of the event, and what `table.json` holds of it."""
        pairs = [asdict(pair) | {"experts": list(pair.experts)} for pair in self.pairs]
        return asdict(self) | {"pairs": pairs, "concerns": list(self.concerns)}


def read_preflight(event: Mapping[str, Any]) -> Preflight:
    """Returns what `Preflight.fields` put into an event; fields that this version does not know are ignored.

    Raises:
        JournalError: If a pair has not two experts.
        KeyError: If a field is missing.
        TypeError: If a field has another type.
    """
    return Preflight(
        int(event["matrices"]),
        int(event["matrices_in_all"]),
        {str(name): float(norm) for name, norm in dict(event["norms"]).items()},
        tuple(map(_pair, event["pairs"])),
        tuple(map(str, event["concerns"])),
    )


def _pair(field: Mapping[str, Any]) -> Pair:
    names = tuple(map(str, field["experts"]))
    if len(names) != 2:
        raise JournalError(f"a pair before the run has two experts, this one has {len(names)}; restore the journal")
    similarity, ratio = (None if field[key] is None else float(field[key]) for key in ("similarity", "norm_ratio"))
    return Pair((names[0], names[1]), similarity, float(field["cosine"]), ratio)
