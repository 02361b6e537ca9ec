"""After the last child: the final model is chosen on the select split, every row is tested, the files are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minerua.evolution import aggregation_weights
from minerua.evolution.journal import Event
from minerua.report import render, summarise, table_json
from minerua.run.evolve import Population
from minerua.run.prepare import Prepared
from minerua.run.record import Record
from minerua.values import SPLITS, Genome, Scores
from minerua.weights import save_child, write_bytes

CANDIDATES = 20
"""How many children, the best by mean search score, may be chosen from on the select split."""

Row = tuple[str, Genome]


@dataclass(frozen=True, eq=False)
class Final:
    """What a run ends with.

    Args:
        best: The chosen genome.
        rows: Name → genome of everything that is tested beside it.
    """

    best: Genome
    rows: Mapping[str, Genome]


def finish(prepared: Prepared, record: Record, population: Population) -> Final:
    """Chooses the final model on the select split and journals the scores of every row on every split.

    The candidates are the best children by mean search score, the aggregate and the seeds; the highest mean over the items of
    search and select together wins, and of equals the first.

    Args:
        prepared: The checked parts.
        record: The journal.
        population: The population after its last child.
    """
    rows: dict[str, Genome] = _rows(population)
    candidates = _candidates(population) + [rows["aggregate"]] + [founder.genome for founder in population.founders]
    best = max(candidates, key=lambda genome: _standing(record, population, genome))
    rows["best"] = best
    for name, genome in rows.items():
        for split in SPLITS:
            event = {"event": "final", "row": name, "digest": genome.digest, "split": split}
            record.outcome(event, lambda genome=genome, split=split: population.score(genome, split=split))  # type: ignore[misc]
    record.confirm({"event": "end", "best": best.digest, "evaluations": population.cycle.evaluations})
    return Final(best, rows)
