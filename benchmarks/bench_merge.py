"""How long does a whole merge take, beside mergekit's and beside a plain copy of the same bytes?

Whole processes on the same files in one run: a base and three fine-tunes with the layout of Llama, 374 million
parameters, bfloat16, in the page cache. Bound: a merge reads its inputs and writes its output, so it cannot be faster
than a copy that does. `floor` is that copy: `cat` reads all inputs but the last, `cp` copies the last; nobody waits for
the disk. Expected: at most twice the floor, at most 600 MB of memory beyond the files' maps, and ahead of mergekit by
the factors in METHODS. mergekit runs with the fastest of its options on a CPU; what of its time is start-up shows in
the row of `mergekit-yaml --help`.

The answers are checked first: minerua's against float64 (every element one rounding away, the error at most
mergekit's), all tensors against mergekit's; merges at random by what their masks can give, and in all by how much
they change.

    pytest benchmarks/bench_merge.py            # some 15 minutes on two cores, 6 GB of disk
    pytest benchmarks/bench_merge.py --smoke    # tiny models: that it runs, and that the answers are right
"""

from __future__ import annotations

import os
import select
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import yaml

from minerua.weights import Checkpoint, open_checkpoint

from .merge_oracles import ORACLES, share_explained
from .merge_world import EXPERTS, FULL, SMALL, write_world

FLOORS = 2.0
"""At most so many times the floor."""

LIMIT_BYTES = 600_000_000
"""Of memory beyond file maps."""

MERGEKIT_OPTIONS = (("--quiet", "-j", "1"), ("--quiet",))
"""Of the first round and of the second: with one thread, and with all; which is faster depends on the method. Its other
options for a CPU (`--lazy-unpickle`, `--async-write`, `--clone-tensors`, `--no-copy-tokenizer`) made no difference."""

WEIGHTS = (0.5, 0.75, 0.25)
"""Exact in every format, so that sums that are zero are zero in all of them."""

MATRICES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight")
SAMPLES = (*MATRICES, "model.norm.weight")

ROUNDS = {"floor": 7, "mergekit": 2, "minerua": 7}


@dataclass(frozen=True)
class Method:
    """One merge, and how far ahead of mergekit it has to be.

    Args:
        ahead: Times as fast; `None` for rows that only inform, in which mergekit runs once.
        base: Whether there is a base, and which.
        experts: The models.
        each: Parameter name → one number per expert.
        all: Parameter name → one value for all.
    """

    ahead: float | None
    base: str | None = "base"
    experts: tuple[str, ...] = EXPERTS
    each: Mapping[str, Sequence[float]] = field(default_factory=dict)
    all: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        """All of them, by name."""
        return {**self.each, **self.all}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every model that is read."""
        return self.experts if self.base is None else (self.base, *self.experts)


_WEIGHT = {"weight": WEIGHTS}
_HALF = {"weight": WEIGHTS, "density": (0.5, 0.5, 0.5)}

METHODS: Mapping[str, Method] = {
    "linear": Method(12, base=None, each=_WEIGHT),
    "task_arithmetic": Method(12, each=_WEIGHT),
    "ties": Method(40, each=_HALF, all={"normalize": True}),
    "dare_ties": Method(20, each=_HALF, all={"normalize": False}),
    "slerp": Method(10, base="first", experts=("second",), all={"t": 0.25}),
    "model_stock": Method(20),
    "breadcrumbs": Method(None, each=_HALF, all={"gamma": 0.01}),
    "della": Method(None, each=_HALF, all={"normalize": False, "epsilon": 0.125}),
    "karcher": Method(None, base=None),
}


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Run:
    """What one process took: wall time, processor time, and the most memory that was its own, not a file's map."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def run_alone(command: Sequence[str | Path], log: Path) -> Run:
    """Runs a command to its end, which must be a good one; looks at its memory every 2 ms."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # or mergekit may ask the network
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    with log.open("wb") as output:
        begin = perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        ended, peak = os.pidfd_open(process.pid), 0
        while not select.select([ended], [], [], 0.002)[0]:
            peak = max(peak, _own_bytes(process.pid))
        seconds = perf_counter() - begin
    os.close(ended)
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone; getrusage would give the largest of all
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command}\n{log.read_text(errors='replace')[-4000:]}"
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak)


def _own_bytes(pid: int) -> int:
    """Returns the resident bytes that no file stands behind; 0 once the process has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


# ── merges ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Field:
    """The models, and every run so far; outputs are kept until the last who looks at them is done."""

    def __init__(self, world: Path, scratch: Path) -> None:
        self.world = world
        self.scratch = scratch
        self.runs: dict[tuple[str, str], list[Run]] = {}

    def run(self, name: str, tool: str) -> Path:
        """Runs one merge with one tool, into a new folder; returns the folder."""
        out = self.out(name, tool)
        shutil.rmtree(out, ignore_errors=True)
        run = run_alone(self._command(name, tool, out), self.scratch / "log.txt")
        self.runs.setdefault((name, tool), []).append(run)
        return out

    def output(self, name: str, tool: str) -> Checkpoint:
        """Returns what the tool made of it; runs it unless it has."""
        out = self.out(name, tool)
        return open_checkpoint(out if out.exists() else self.run(name, tool))

    def out(self, name: str, tool: str) -> Path:
        """Returns where a tool's output goes."""
        return self.scratch / f"{name}-{tool}"

    def seconds(self, name: str, tool: str) -> list[float]:
        """Returns the wall times so far."""
        return [run.seconds for run in self.runs[name, tool]]

    def _command(self, name: str, tool: str, out: Path) -> list[str | Path]:
        if tool == "floor":
            files = [self.world / model / "model.safetensors" for model in METHODS[name].inputs]
            read_and_copy = 'out=$1; last=$2; shift 2; cat "$@" > /dev/null && mkdir "$out" && cp "$last" "$out"'
            return ["sh", "-c", read_and_copy, "floor", out, files[-1], *files[:-1]]
        recipe = self._written_recipe(name)
        if tool == "mergekit":
            options = MERGEKIT_OPTIONS[len(self.runs.get((name, tool), ())) % len(MERGEKIT_OPTIONS)]
            return [sys.executable, "-m", "mergekit.scripts.run_yaml", recipe, out, *options]
        return [sys.executable, "-m", "minerua", "merge", recipe, out]

    def run_all_of_mergekit(self) -> None:
        """Makes all of mergekit's outputs in one process: of tiny merges, nearly all is start-up."""
        calls = [[str(self._written_recipe(name)), str(self.out(name, "mergekit"))] for name in METHODS]
        code = f"from mergekit.scripts.run_yaml import main\nfor c in {calls}:\n    main(c, standalone_mode=False)"
        run_alone([sys.executable, "-c", code], self.scratch / "log.txt")

    def _written_recipe(self, name: str) -> Path:
        recipe = self.scratch / f"{name}.yml"
        recipe.write_text(yaml.safe_dump(self._recipe(name)), encoding="utf-8")
        return recipe

    def _recipe(self, name: str) -> dict[str, Any]:
        method = METHODS[name]
        models = [
            {"model": str(self.world / expert), "parameters": {key: each[k] for key, each in method.each.items()}}
            for k, expert in enumerate(method.experts)
        ]
        recipe = {"merge_method": name, "models": models, "parameters": dict(method.all), "dtype": "bfloat16"}
        if method.base is None:
            return recipe
        base = str(self.world / method.base)
        return {**recipe, "models": [{"model": base}, *models], "base_model": base}


@pytest.fixture(scope="module")
def field_of_tools(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """Models that are written once; they and what is left of the outputs go when the last benchmark is done."""
    folder = tmp_path_factory.mktemp("merge")
    (folder / "world").mkdir()
    (folder / "scratch").mkdir()
    smoke = request.config.getoption("--smoke")
    field = Field(write_world(folder / "world", SMALL if smoke else FULL), folder / "scratch")
    if smoke:
        field.run_all_of_mergekit()
    yield field
    shutil.rmtree(folder)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_answers(field: Field, name: str) -> dict[str, float]:
    """Holds minerua's output against mergekit's and against float64; returns what was found, for the table."""
    ours, theirs = field.output(name, "minerua"), field.output(name, "mergekit")
    assert ours.specs == theirs.specs
    models = {model: open_checkpoint(field.world / model) for model in METHODS[name].inputs}
    if name not in ORACLES:
        return _check_random(name, ours, theirs, models)
    apart = max(_distance(ours.tensor(tensor), theirs.tensor(tensor)) for tensor in ours.specs)
    assert apart < 2**-5  # mergekit rounds every step to bfloat16; the experts themselves are 8 to 12 % apart
    errors = [_errors(name, sample, ours, theirs, models) for sample in SAMPLES]
    return {"error": max(own for own, _ in errors), "mergekit's error": max(other for _, other in errors)}


def _errors(
    name: str, sample: str, ours: Checkpoint, theirs: Checkpoint, models: Mapping[str, Checkpoint]
) -> tuple[float, float]:
    """Returns the relative errors of both against float64; ours has to be one rounding, and no larger than theirs."""
    exact = ORACLES[name](*_operands(name, sample, models), METHODS[name].parameters)
    np.testing.assert_allclose(ours.tensor(sample).astype(np.float64), exact, rtol=1.001 * 2**-8, atol=1e-6)
    own, other = (_distance(model.tensor(sample), exact) for model in (ours, theirs))
    assert own <= 1.001 * other
    return own, other


def _check_random(
    name: str, ours: Checkpoint, theirs: Checkpoint, models: Mapping[str, Checkpoint]
) -> dict[str, float]:
    for sample in MATRICES:
        merged = ours.tensor(sample).astype(np.float64)
        assert share_explained(merged, *_operands(name, sample, models), METHODS[name].parameters) > 0.999
    changed, size = _changes(ours, models["base"])
    np.testing.assert_allclose((changed, size), _changes(theirs, models["base"]), rtol=0.01)
    return {"share changed": changed}


def _operands(name: str, tensor: str, models: Mapping[str, Checkpoint]) -> tuple[list[np.ndarray], np.ndarray]:
    loaded = {model: checkpoint.tensor(tensor).astype(np.float64) for model, checkpoint in models.items()}
    method = METHODS[name]
    return [loaded[expert] for expert in method.experts], loaded[method.inputs[0]]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    other = other.astype(np.float64)
    return float(np.linalg.norm(one.astype(np.float64) - other) / np.linalg.norm(other))


def _changes(merged: Checkpoint, base: Checkpoint) -> tuple[float, float]:
    """Returns the share of the weights that are not the base's, and the length of what was added, over all tensors."""
    changed, squares, size = 0, 0.0, 0
    for tensor in merged.specs:
        added = merged.tensor(tensor).astype(np.float32) - base.tensor(tensor).astype(np.float32)
        changed, size = changed + np.count_nonzero(added), size + added.size
        squares += float(np.vdot(added, added))
    return changed / size, squares**0.5


# ── benchmarks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_start_of_mergekit(benchmark, smoke, tmp_path):
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", "--help"]
    benchmark.group = "start-up"
    benchmark.pedantic(lambda: run_alone(command, tmp_path / "log.txt"), rounds=1 if smoke else 3)


@pytest.mark.parametrize("tool", ROUNDS)
@pytest.mark.parametrize("name", METHODS)
def test_merge(benchmark, smoke, field_of_tools, name, tool):
    if smoke and tool == "mergekit":
        pytest.skip("its tiny merges are done at once, in one process")
    field, method = field_of_tools, METHODS[name]
    benchmark.group = name
    if tool == "minerua":
        benchmark.extra_info.update(check_answers(field, name))
        shutil.rmtree(field.out(name, "mergekit"))
        field.runs.pop((name, tool), None)  # the run that was checked warmed up the files and the interpreter's caches

    def before() -> None:
        shutil.rmtree(field.out(name, tool), ignore_errors=True)
        if tool == "minerua":  # in turns, so that both meet the machine in the same state
            field.run(name, "floor")
            shutil.rmtree(field.out(name, "floor"))

    rounds = 1 if smoke or (tool == "mergekit" and method.ahead is None) else ROUNDS[tool]
    warmups = 1 if tool == "floor" else 0
    benchmark.pedantic(lambda: field.run(name, tool), setup=before, rounds=rounds, warmup_rounds=warmups)
    _note(benchmark, field.runs[name, tool])
    if tool != "mergekit":
        shutil.rmtree(field.out(name, tool))
    if tool == "minerua" and not smoke:
        _compare(benchmark, field, name)


def _note(benchmark: Any, runs: Sequence[Run]) -> None:
    benchmark.extra_info["processor s"] = statistics.median(run.processor_seconds for run in runs)
    benchmark.extra_info["peak MB"] = max(run.peak_bytes for run in runs) / 1e6


def _compare(benchmark: Any, field: Field, name: str) -> None:
    """Notes the ratios, minimum to minimum, with the range of all pairs, and holds them to their bounds."""
    own, floor, mergekit = (field.seconds(name, tool) for tool in ("minerua", "floor", "mergekit"))
    ahead, floors = min(mergekit) / min(own), min(own) / min(floor)
    benchmark.extra_info["times mergekit"] = f"{ahead:.1f} ({_range(mergekit, own)})"
    benchmark.extra_info["times floor"] = f"{floors:.2f} ({_range(own, floor)})"
    assert max(run.peak_bytes for run in field.runs[name, "minerua"]) <= LIMIT_BYTES
    assert floors <= FLOORS
    assert ahead >= (METHODS[name].ahead or 1)


def _range(over: Sequence[float], under: Sequence[float]) -> str:
    return f"{min(over) / max(under):.2f} to {max(over) / min(under):.2f}"
