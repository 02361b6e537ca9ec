"""Does evolving language models on real executions beat the alternatives, at equal evaluations?

The paper's table in a small world: that of `minerua evolve agent-skills`, over several seeds. Each seed writes its own
tasks and examples, learns its own base and experts, and deals the items anew into search, select and test. Every
searching row may evaluate EVALUATIONS models on the search items (seeds of a population count) and is then judged on
the test items, which no row has seen. The rows and ablations are those of Kuroki et al. 2024 (arXiv 2410.14735), tables
1 and 2. "On select" means that the model is chosen among 20, the best on search, by the select items; all other
searches take the best on search.

Forgetting: the mean loss per token on plain sentences that nobody has learned from, divided by the base's.

    pytest benchmarks/bench_agent_skills.py -s            # 5 seeds, some hours on two cores
    pytest benchmarks/bench_agent_skills.py -s --keep benchmarks/results    # goes on where an earlier run was stopped
    pytest benchmarks/bench_agent_skills.py -s --smoke    # one seed, few evaluations: that it runs
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from minerua_agent_tasks.world import writing

from minerua.evaluation import Evaluation
from minerua.evolution import Journal, aggregation_weights, read_journal
from minerua.evolution.journal import decode_outcome
from minerua.merge.engine import merge_arrays
from minerua.registry import Registry
from minerua.run import Prepared, execute, prepare
from minerua.run.demo import RECIPES, make_ready
from minerua.run.evolve import evolve
from minerua.run.models import Models
from minerua.run.record import Record
from minerua.run.seeds import found
from minerua.run.train import execute_training
from minerua.values import Genome, Scores
from minerua.weights import apply, dense, materialise, open_checkpoint

from .rivals import Accuracy, Search, cma_es, interval, nsga2, table, taken_over, text

SEEDS = 5
EVALUATIONS = 120
TASKS = ("coding", "database", "shell")
PAPER = {"variant": "paper"}
UNIFORM = {**PAPER, "sampling": "uniform"}
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "CycleQD minerua": {"variant": "minerua"},
    "CycleQD paper": PAPER,
    "CycleQD repo": {"variant": "repo"},
}
ABLATIONS: Mapping[str, Mapping[str, object]] = {
    "CycleQD paper, random sampling": UNIFORM,
    "CycleQD paper, random sampling, Gaussian mutation": {**UNIFORM, "mutation": "gaussian", "mutation_strength": 3e-4},
    "CycleQD paper, random sampling, no mutation": {**UNIFORM, "mutation": "none"},
}


class World:
    """One seed's base, experts and items, and the scores of genomes or whole weights on them."""

    def __init__(self, run_file: Path, registry: Registry) -> None:
        self.folder, self.registry = run_file.parent, registry
        self.prepared: Prepared = prepare(self.run_file("plain", {"variant": "paper"}), registry)
        self.evaluation = Evaluation(self.prepared.tasks)
        self.subspace, founders = found(self.prepared)
        self.experts = [founder.genome for founder in founders]
        self.models = Models(self.prepared.model, self.subspace)

    def run_file(self, name: str, evolution: Mapping[str, object]) -> Path:
        """Writes a run file with other settings of the evolution."""
        content = yaml.safe_load((self.folder / "run.yaml").read_text())
        path = self.folder / f"{name.replace(' ', '-').replace(',', '')}.yaml"
        path.write_text(yaml.safe_dump(content | {"evolution": {"batch": 8, **evolution}}))
        return path

    def score(self, model: Genome | Mapping[str, np.ndarray], split: str, digest: str) -> Accuracy:
        """Returns the accuracy of a model on one split, per task."""
        if isinstance(model, Genome):
            outcome = self.models.score(self.evaluation, model, split=split)
        else:
            outcome = self.evaluation.score(digest, lambda: self.prepared.model.build(model), split=split)
        assert isinstance(outcome, Scores), outcome
        return outcome.means

    def prefetch(self, models: Sequence[Any], split: str) -> None:
        """Scores genomes together, over one base."""
        genomes = [model for model in models if isinstance(model, Genome)]
        for start in range(0, len(genomes), 8):
            self.models.prefetch(self.evaluation, genomes[start : start + 8], split=split)

    def child(self, coefficients: np.ndarray) -> Genome:
        """Returns base plus Σ_k c[k] τ_k."""
        return self.subspace.combine(self.experts, np.asarray(coefficients, np.float64)[None])

    def merged(self, method: str, *, weight: float, density: float) -> dict[str, np.ndarray]:
        """Returns a merge of the experts by one of minerua's methods, each tensor by itself."""
        spec = self.registry.merge_methods[method]
        settings = {"weight": (weight,) * len(TASKS), "density": (density,) * len(TASKS)}
        known = {parameter.name for parameter in spec.parameters}
        settings = {name: value for name, value in settings.items() if name in known}
        vectors = [expert.task_vector for expert in self.prepared.experts]
        deltas = {}
        for name in sorted({name for vector in vectors for name in vector}):
            zero = np.zeros(self.prepared.base.tensor(name).shape, np.float32)
            parts = [dense(vector.get(name, zero)) for vector in vectors]
            deltas[name] = merge_arrays(spec, parts, name=name, settings=settings)
        return apply(self.prepared.base, deltas)

    @cached_property
    def sentences(self) -> list[str]:
        """Plain text that nobody has learned from."""
        lines = (self.folder / "general.jsonl").read_text().splitlines()
        return [json.loads(line)["text"] for line in lines]

    @cached_property
    def base_loss(self) -> float:
        """The base's loss on plain sentences."""
        return self.loss(apply(self.prepared.base, {}))

    def loss(self, tensors: Mapping[str, np.ndarray]) -> float:
        """Returns the mean loss per token on plain sentences."""
        losses = self.prepared.model.build(tensors).losses(self.sentences)
        return float(np.mean([loss for loss in losses if loss is not None]))

    def weights(self, genome: Genome) -> Mapping[str, np.ndarray]:
        """Returns a genome as whole weights."""
        return materialise(self.subspace, genome).tensors


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

Rows = dict[str, Accuracy]


def plain_rows(world: World, tuned: Mapping[str, np.ndarray]) -> tuple[Rows, dict[str, float]]:
    """Returns every row that searches for nothing, and what each has forgotten; `tuned` is the fine-tune on all."""
    K = len(TASKS)
    models: dict[str, Any] = {
        "base": world.child(np.zeros(K)),
        **{f"expert: {TASKS[k]}": world.child(np.eye(K)[k]) for k in range(K)},
        "mean of task vectors": world.child(np.full(K, 1 / K)),
        "TIES": world.merged("ties", weight=1.0, density=0.5),
        "DARE-TIES": world.merged("dare-ties", weight=1.0, density=0.5),
        "fine-tuning on all data (reference)": tuned,
    }
    rows = {name: world.score(model, "test", name) for name, model in models.items()}
    losses = {
        name: world.loss(world.weights(model) if isinstance(model, Genome) else model) for name, model in models.items()
    }
    return rows, {name: loss / world.base_loss for name, loss in losses.items()}


def searched_rows(world: World, seed: int, evaluations: int) -> Rows:
    """Returns every row that searches over coefficients."""
    K = len(TASKS)
    rows: Rows = {}

    def searched(label: str, run: Callable[[Search], object], budget: int = evaluations) -> None:
        search = Search(world, label, budget)
        run(search)
        rows.update(search.rows())

    lambdas = np.linspace(0.1, 1.5, min(15, evaluations))
    searched("best λ of task arithmetic", lambda s: [s(world.child(np.full(K, x))) for x in lambdas], len(lambdas))
    searched("CMA-ES over coefficients", lambda s: cma_es(s, world.child, (K,), 1 / K, seed))
    searched("NSGA-II over coefficients", lambda s: nsga2(s, world.child, K, np.random.default_rng(seed)))
    return rows


def cycleqd_rows(world: World, label: str, evolution: Mapping[str, object], evaluations: int) -> tuple[Rows, float]:
    """Returns the rows of one setting, its aggregate and its final model, and what the latter has forgotten."""
    ours = evolution["variant"] == "minerua"
    seeds = 12 if ours else len(TASKS)
    path = world.run_file(label, {**evolution, "evaluations": max(evaluations - seeds, 1)})
    out = world.folder / path.stem
    execute(path, registry=world.registry, out=out)
    events = read_journal(out / "journal.jsonl")
    assert sum(event["event"] == "seed" for event in events) == seeds
    tested = {e["row"]: decode_outcome(e).means for e in events if e["event"] == "final" and e["split"] == "test"}
    rows = {f"{label}, aggregate": tested["aggregate"], label: tested["best"]}
    best = open_checkpoint(out / "best.safetensors")
    loss = world.loss({name: best.tensor(name) for name in best.specs}) / world.loss(
        world.weights(world.child(np.zeros(3)))
    )
    return rows | ({"layer matching": tested["layer-match"]} if ours else {}), loss


def separate_axes(world: World, evaluations: int) -> Rows:
    """Returns the aggregate of three runs with one active archive each: the paper's ablation without a cycle."""
    chosen, scores = [], []
    for k, task in enumerate(TASKS):
        settings = {**UNIFORM, "mutation": "none", "active": [task], "evaluations": max(evaluations // 3 - 3, 1)}
        path = world.run_file(f"axis {task}", settings)
        folder = world.folder / path.stem
        folder.mkdir()
        with Journal(folder / "journal.jsonl", fresh=True) as journal:
            population = evolve(prepare(path, world.registry), Record(journal))
        elite = population.cycle.archives[k].best()
        chosen.append(population.cycle.genome(elite.digest))
        scores.append(elite.means[k])
    merged = world.subspace.combine(chosen, aggregation_weights(scores)[None])
    return {"no cycle, no mutation, random sampling": world.score(merged, "test", "axes")}


def tuned_on_all(world: World, seed: int) -> Mapping[str, np.ndarray]:
    """Returns a fine-tune of the base on the examples of all skills: the reference."""
    content = yaml.safe_load((world.folder / "experts.yaml").read_text())
    shell = content.pop("experts")["database"]  # the one that is fine-tuned whole
    lines = [line for task in TASKS for line in (world.folder / "examples" / f"{task}.jsonl").read_text().splitlines()]
    np.random.default_rng(seed).shuffle(lines)
    (world.folder / "examples" / "all.jsonl").write_text("\n".join(lines) + "\n")
    content["data"]["settings"]["file"] = "examples/all.jsonl"
    content |= {"seed": 1000 * seed + 999, "optimizer": shell["optimizer"], "epochs": 2}
    training_file = world.folder / "all.yaml"
    training_file.write_text(yaml.safe_dump(content))
    (learned,) = execute_training(training_file, registry=world.registry)
    return apply(open_checkpoint(learned.model), {})


def make_world(folder: Path, registry: Registry, *, seed: int, smoke: bool) -> Path:
    """Writes the recipe's world, learns its base and experts, and returns the run file; tiny for a smoke run."""
    with pytest.MonkeyPatch.context() as patch:
        if smoke:
            patch.setattr(writing, "Sizes", partial(writing.Sizes, items=30, examples=96, sentences=20))
        run_file = make_ready(RECIPES["agent-skills"], folder, registry=registry, seed=seed, evaluations=24)
    if smoke:  # models that have learned next to nothing would go on to the last token
        content = yaml.safe_load(run_file.read_text())
        content["model"]["settings"]["max_new_tokens"] = 6
        run_file.write_text(yaml.safe_dump(content))
    return run_file


def rows_of_seed(seed: int, *, smoke: bool, keep: Path | None) -> tuple[Rows, dict[str, float]]:
    """Returns every row's test accuracy per task, and what each model has forgotten, for one seed."""
    evaluations = 24 if smoke else EVALUATIONS
    made = taken_over(
        keep,
        f"agent-skills-{evaluations}-evaluations-seed-{seed}",
        lambda: dict(zip(("rows", "forgotten"), measured(seed, evaluations, smoke=smoke), strict=True)),
    )
    return {name: tuple(row) for name, row in made["rows"].items()}, made["forgotten"]


def measured(seed: int, evaluations: int, *, smoke: bool) -> tuple[Rows, dict[str, float]]:
    """Measures one seed, in a world of its own."""
    torch.set_num_threads(1)
    registry = Registry.load()
    with tempfile.TemporaryDirectory() as folder:
        world = World(make_world(Path(folder) / "run", registry, seed=seed, smoke=smoke), registry)
        rows, forgotten = plain_rows(world, tuned_on_all(world, seed))
        rows |= searched_rows(world, seed, evaluations)
        settings = {
            "CycleQD minerua": {"variant": "minerua"},
            "CycleQD paper": PAPER,
            "CycleQD repo": {"variant": "repo"},
        }
        for label, evolution in {**settings, **ABLATIONS}.items():
            more, loss = cycleqd_rows(world, label, evolution, evaluations)
            rows |= more
            forgotten[label] = loss
        rows |= separate_axes(world, evaluations)
    return rows, forgotten


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────

OURS = "CycleQD minerua"
ABOVE = "fine-tuning on all data (reference)"
PARTS_OF_OURS = ("layer matching", "CycleQD minerua, aggregate")


def forgetting(found: Sequence[Mapping[str, float]]) -> str:
    """Returns what every model has forgotten, as Markdown."""
    lines = ["| model | loss on plain sentences, of the base's |", "|---|---|"]
    for name in found[0]:
        mean, half = interval([each[name] for each in found])
        lines.append(f"| {name} | {mean:.3f} ± {half:.3f} |")
    return "\n".join(lines)


def test_ours_is_ahead_of_every_merge(benchmark, smoke, keep):
    seeds = [0] if smoke else list(range(SEEDS))

    def compare() -> list[tuple[Rows, dict[str, float]]]:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            return list(pool.map(partial(rows_of_seed, smoke=smoke, keep=keep), seeds))

    found = benchmark.pedantic(compare, rounds=1)
    benchmark.extra_info["accuracy per seed"] = [rows for rows, _ in found]
    benchmark.extra_info["forgetting per seed"] = [forgotten for _, forgotten in found]
    rows = table([accuracy for accuracy, _ in found], ours=OURS)
    print("\n" + text(rows, TASKS, ours=OURS))
    print("\n" + forgetting([forgotten for _, forgotten in found]))
    assert {row["row"] for row in rows} > {OURS, ABOVE, *PARTS_OF_OURS, *ABLATIONS}
    if not smoke:
        rivals = [row for row in rows if row["row"] not in (OURS, ABOVE, *PARTS_OF_OURS)]
        behind = [row["row"] for row in rivals if not float(row["lead"]) > 0]
        assert not behind, f"behind {behind} on average"
