"""Do experts of segmentation whose spectra are alike merge better? Expected, from the paper: yes, with r = 0.83.

CycleQD's section 4.2 and its table 4, on four small worlds instead of four data sets: a base and four experts per seed,
a population of each pair of experts and one of all four. Scores are Dice on test items, divided by those of the task's
own expert; s is minerua's spectral similarity. The correlation is over the six pairs of a seed, then its mean and 95 %
interval over the seeds; beside it stands the same for the plain mean of the two experts, where nothing was searched.

    pytest benchmarks/bench_segmentation.py -s            # 5 seeds
    pytest benchmarks/bench_segmentation.py -s --smoke    # one seed, few evaluations: that it runs
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import minerua_segmentation
import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from minerua_segmentation import writing

from minerua.learning import plugin
from minerua.merge import methods
from minerua.registry import Registry
from minerua.run import execute
from minerua.run.demo import RECIPES, make_ready

SEEDS = 5
PAIR_EVALUATIONS = 40
EVALUATIONS = 100
WORLDS = ("camouflage", "polyp", "lesion", "leaf")


@dataclass(frozen=True)
class Merged:
    """What became of some experts, in the order of the tasks.

    Args:
        names: The experts, and the tasks.
        best: The chosen model's test scores, each divided by that of the task's own expert.
        mean: The same of the plain mean of the experts.
        alike: Pair of experts → s.
    """

    names: tuple[str, ...]
    best: tuple[float, ...]
    mean: tuple[float, ...]
    alike: Mapping[tuple[str, ...], float]


def registry() -> Registry:
    """Returns what the benchmark needs, and no other plugin."""
    return Registry.of(minerua_segmentation, plugin, methods)


def merged(run_file: Path) -> Merged:
    """Carries out a run and returns its scores."""
    execute(run_file, registry=registry())
    table = json.loads((run_file.parent / "table.json").read_text())
    rows = {row["name"]: {task: score["mean"] for task, score in row["tasks"].items()} for row in table["rows"]}
    names = tuple(table["experts"])
    own = [rows[name][name] for name in names]
    relative = {
        row: tuple(rows[row][name] / score for name, score in zip(names, own, strict=True)) for row in ("best", "mean")
    }
    alike = {tuple(pair["experts"]): pair["similarity"] for pair in table["preflight"]["pairs"]}
    return Merged(names, relative["best"], relative["mean"], alike)


def learned(folder: Path, seed: int, *, smoke: bool) -> Path:
    """Learns a seed's base and experts; returns the run file of all four."""
    evaluations = 4 if smoke else EVALUATIONS
    with pytest.MonkeyPatch.context() as patch:
        if smoke:
            patch.setattr(writing, "write_worlds", partial(writing.write_worlds, learned=128, items=24))
        return make_ready(RECIPES["segmentation"], folder, registry=registry(), seed=seed, evaluations=evaluations)


def pair_file(run_file: Path, names: tuple[str, str], *, smoke: bool) -> Path:
    """Writes the run file of two of the four."""
    said = yaml.safe_load(run_file.read_text())
    root = str(run_file.parent.resolve())
    for task in said["tasks"]:
        task["settings"]["path"] = f"{root}/{task['settings']['path']}"
    said |= {
        "base": f"{root}/{said['base']}",
        "experts": {name: f"{root}/{said['experts'][name]}" for name in names},
        "tasks": [task for task in said["tasks"] if task["name"] in names],
        "evolution": {**said["evolution"], "evaluations": 4 if smoke else PAIR_EVALUATIONS},
    }
    folder = run_file.parent / "pairs" / "-".join(names)
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    return folder / "run.yaml"


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def interval(values: Sequence[float]) -> str:
    """Returns mean ± half a 95 % interval; the mean alone of a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def correlation(pairs: Sequence[Merged], row: str) -> float:
    """Returns the correlation of s with the mean relative score over one seed's pairs."""
    alike = [pair.alike[pair.names] for pair in pairs]
    return float(np.corrcoef(alike, [np.mean(getattr(pair, row)) for pair in pairs])[0, 1])


def table(seeds: Sequence[tuple[Merged, Sequence[Merged]]]) -> str:
    """Returns the table of the paper's section 4.2, then all four together, then the correlations."""
    lines = ["| A | B | A score | B score | both | plain mean of the two | s |", "|---|---|---|---|---|---|---|"]
    for k, names in enumerate(combinations(WORLDS, 2)):
        pairs = [pairs[k] for _, pairs in seeds]
        cells = [interval([pair.best[i] for pair in pairs]) for i in range(2)]
        cells += [interval([float(np.mean(getattr(pair, row))) for pair in pairs]) for row in ("best", "mean")]
        cells.append(interval([pair.alike[pair.names] for pair in pairs]))
        lines.append("| " + " | ".join([*names, *cells]) + " |")
    lines += ["", f"| all four | {' | '.join(WORLDS)} | mean |", "|---" * (len(WORLDS) + 2) + "|"]
    for row, title in (("best", "evolved"), ("mean", "plain mean")):
        scores = np.array([getattr(four, row) for four, _ in seeds])
        cells = [interval(column) for column in [*scores.T, scores.mean(1)]]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    for row, title in (("best", "evolved pairs"), ("mean", "plain means of pairs")):
        lines += ["", f"correlation with s, {title}: {interval([correlation(pairs, row) for _, pairs in seeds])}"]
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def one_thread():
    """On pictures this small a second thread costs more than it computes, most of all where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_pairs_and_all_four(tmp_path, smoke, capsys):
    seeds = []
    for seed in range(1 if smoke else SEEDS):
        run_file = learned(tmp_path / str(seed), seed, smoke=smoke)
        pairs = [merged(pair_file(run_file, names, smoke=smoke)) for names in combinations(WORLDS, 2)]
        seeds.append((merged(run_file), pairs))
        for one in (seeds[-1][0], *pairs):
            assert all(0 < score < 2 for score in one.best + one.mean), one
            assert min(one.best) > 0.5, one
            assert np.mean(one.best) > np.mean(one.mean), one
            assert all(0 < alike <= 1 for alike in one.alike.values()), one
    with capsys.disabled():
        print(f"\n{table(seeds)}")
