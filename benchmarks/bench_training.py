"""What does a step of training cost beyond plain torch? Asked: at most 30 µs, with a bar and logs on.

The model is so small that a step of plain torch takes some 240 µs on a quiet core, nearly all of it Python: what a
framework adds stands out. Two figures per loop, all loops in turn, several rounds in one process:

- whole: the fastest round, set-up and end included, divided by the steps. Of minerua that is a run as users have it:
  data, model and loss are tried first, and in the end a checkpoint and a model are brought to the disk, checked by
  digest. Of the others only Lightning with bar and table writes a checkpoint, without waiting for the disk.
- step: from one look at the data to the next. Of all steps whose numbers end in the same digit the fastest twentieth
  counts, over all rounds; of the ten figures the mean, as every tenth step is logged. That leaves out what other work
  on the machine costs, and with it the bar's drawings, which come at no fixed step: of minerua's they take a hundredth
  of the time at most.

Peers run where they are installed: Lightning and its Fabric, Accelerate, Ignite. All weights are compared with the
plain loop's before anything is timed. The time until there is a first step, imports included, is measured in processes
of their own.
"""

from __future__ import annotations

import gc
import itertools
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from .training_loops import LOOPS, Batches, Loop, alone, weights

STEPS, FEW_STEPS, ROUNDS = 1500, 30, 9
PERIOD = 10  # minerua's and Lightning's logs have a row of every tenth step
ALLOWED_SECONDS = 30e-6
INSTALLED = {name: loop for name, loop in LOOPS.items() if loop.is_installed}


def _run(loop: Loop, batches: Batches, folder: Path) -> tuple[float, list[float], dict[str, torch.Tensor]]:
    """Returns the seconds in all, those of each step but the last, and what was learned."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    gc.collect()
    with alone():
        start = time.perf_counter()
        module = loop.train(batches, folder)
        seconds = time.perf_counter() - start
    looks = batches.looks[-len(batches) :]
    batches.looks.clear()
    return seconds, [after - before for before, after in itertools.pairwise(looks)], weights(module)


def _refuse_other_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], *, name: str) -> None:
    for key, tensor in wanted.items():
        if name.startswith("minerua"):
            assert torch.equal(found[key], tensor), f"{name}: {key} is not bit for bit the plain loop's"
        torch.testing.assert_close(found[key], tensor, msg=f"{name}: {key} is not the plain loop's")


def undisturbed(rounds: list[list[float]]) -> float:
    """Returns what a step takes while nothing else wants the core: see the top of the file."""
    fast = []
    for digit in range(PERIOD):
        alike = sorted(seconds for each in rounds for seconds in each[digit::PERIOD])
        fast.append(alike[len(alike) // 20])
    return sum(fast) / PERIOD


def test_overhead_per_step(benchmark, smoke, tmp_path):
    batches = Batches(FEW_STEPS if smoke else STEPS)
    _, _, wanted = _run(LOOPS["plain torch"], batches, tmp_path / "run")
    for name, loop in INSTALLED.items():
        _refuse_other_weights(_run(loop, batches, tmp_path / "run")[2], wanted, name=name)
    wholes: dict[str, float] = dict.fromkeys(INSTALLED, float("inf"))
    steps: dict[str, list[list[float]]] = {name: [] for name in INSTALLED}

    def turn() -> None:
        for name, loop in INSTALLED.items():
            whole, each, _ = _run(loop, batches, tmp_path / "run")
            wholes[name] = min(wholes[name], whole)
            steps[name].append(each)

    benchmark.pedantic(turn, rounds=1 if smoke else ROUNDS)
    means = {name: undisturbed(rounds) for name, rounds in steps.items()}
    for name in INSTALLED:
        benchmark.extra_info[f"{name}: whole, µs"] = 1e6 * wholes[name] / len(batches)
        benchmark.extra_info[f"{name}: step, µs"] = 1e6 * means[name]
        benchmark.extra_info[f"{name}: over plain, µs"] = 1e6 * (means[name] - means["plain torch"])
    for name in LOOPS.keys() - INSTALLED.keys():
        benchmark.extra_info[name] = f"left out, {LOOPS[name].needs} is not installed"
    if not smoke:
        assert means["minerua, bar and tables"] - means["plain torch"] <= ALLOWED_SECONDS


@pytest.mark.parametrize("name", [name for name in LOOPS if "plain," not in name])
def test_first_step_is_taken_soon(benchmark, smoke, tmp_path, name):
    if not LOOPS[name].is_installed:
        pytest.skip(f"{LOOPS[name].needs} is not installed")
    program = str(Path(__file__).with_name("training_loops.py"))
    folders = (tmp_path / str(number) for number in range(100))

    def begin() -> None:
        folder = next(folders)
        folder.mkdir()
        subprocess.run([sys.executable, program, name, str(folder)], cwd=tmp_path, capture_output=True, check=True)

    benchmark.pedantic(begin, rounds=1 if smoke else 5, warmup_rounds=0 if smoke else 1)
