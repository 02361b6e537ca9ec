"""Quality-diversity evolution over task scores: archives, selection, the cycle, the journal. Knows no tensors."""

from minerua.evolution.archive import AddStatus, Archive, ArchiveStats, Bounds
from minerua.evolution.cycle import Cycle, Proposal, Result
from minerua.evolution.journal import Journal, decode_outcome, encode_outcome, read_journal
from minerua.evolution.operators import (
    READINGS,
    aggregation_weights,
    crossover_coefficients,
    directed_coefficients,
    multipliers,
)
from minerua.evolution.selection import SAMPLERS, elite_probabilities, elite_probabilities_of_repository

__all__ = [
    "READINGS",
    "SAMPLERS",
    "AddStatus",
    "Archive",
    "ArchiveStats",
    "Bounds",
    "Cycle",
    "Journal",
    "Proposal",
    "Result",
    "aggregation_weights",
    "crossover_coefficients",
    "decode_outcome",
    "directed_coefficients",
    "elite_probabilities",
    "elite_probabilities_of_repository",
    "encode_outcome",
    "multipliers",
    "read_journal",
]
