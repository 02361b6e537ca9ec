"""What `bench_chain_onnx.py` runs in processes of their own: the models, the hand-made choices, the planned chain.

`python chain_onnx_world.py FOLDER CHOICE` loads one choice and then answers every line on its standard input, a
question in JSON, with a line in JSON on its standard output: only there can a choice be made that holds for a whole
process. What a choice costs is asked of all processes in turns.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minerua.chain.plan import ExecutionPlan
from minerua.chain.planning.optimizer import ChainOptimizer
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.writing.chain import SkillChain
from minerua.values import JoinedStep, Setup, SkillContext

HAND_MADE = {
    "default in a row": (Setup(), "row"),
    "default side by side": (Setup(), "beside"),
    "default merged": (Setup(), "merged"),
    "1 thread in a row": (Setup(threads=1), "row"),
    "1 thread side by side": (Setup(threads=1), "beside"),
    "1 thread merged": (Setup(threads=1), "merged"),
    "2 threads in a row": (Setup(threads=2), "row"),
    "2 threads side by side": (Setup(threads=2), "beside"),
    "2 threads merged": (Setup(threads=2), "merged"),
    "shared threads in a row": (Setup(shared_threads=True), "row"),
    "shared threads side by side": (Setup(shared_threads=True), "beside"),
    "shared threads merged": (Setup(shared_threads=True), "merged"),
}
"""What a person might write by hand. Two threads and more do not spin; the default does."""

REST_SECONDS = 0.15
"""How long the threads of a session may still spin after a call: nobody else is asked before they sleep."""

Answer = Callable[[Mapping[str, Any]], Any]
Call = Callable[..., np.ndarray]


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_models(folder: Path) -> None:
    """Writes a CNN (3 × 64 × 64 → 64), a transformer of one layer (16 tokens → 64) and an MLP (128 → 10)."""
    import torch
    from minerua_onnx.networks import export_one
    from torch import nn

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(1000, 64)
            self.layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.layer(self.words(tokens)).mean(1)
            return features

    class Fusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

        def forward(self, vision: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.layers(torch.cat([vision, language], 1))
            return scores

    torch.manual_seed(0)
    widths = (3, 16, 32, 64)
    convolutions = [nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths)]
    layers = [layer for one in convolutions for layer in (one, nn.ReLU())]
    vision = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    rows = torch.export.Dim("batch")
    export_one(vision, folder / "vision.onnx", {"image": torch.randn(2, 3, 64, 64)}, "features", rows)
    tokens = torch.randint(0, 1000, (2, 16))
    export_one(Language(), folder / "language.onnx", {"tokens": tokens}, "features", rows)
    features = {"vision": torch.randn(2, 64), "language": torch.randn(2, 64)}
    export_one(Fusion(), folder / "fusion.onnx", features, "scores", rows)


def inputs_of(batch: int) -> dict[str, np.ndarray]:
    """Returns the inputs of one call."""
    generator = np.random.default_rng(batch)
    image = generator.standard_normal((batch, 3, 64, 64), np.float32)
    return {"image": image, "tokens": generator.integers(0, 1000, (batch, 16))}


def skills_of(folder: Path) -> dict[str, Any]:
    """Returns the three models as skills."""
    from minerua_onnx import minerua_skills

    (family,) = (skill for skill in minerua_skills() if skill.name == "onnx-model")
    names = ("vision", "language", "fusion")
    return {name: family.configure({"file": f"{name}.onnx"}, SkillContext(folder)) for name in names}  # type: ignore[misc]


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_hand(folder: Path, setup: Setup, how: str) -> Call:
    """Returns the chain as a person writes it: three sessions called in a row or side by side, or one merged graph."""
    skills = skills_of(folder)
    if how == "merged":
        steps = [
            JoinedStep("see", skills["vision"], {"image": (None, "image")}, ()),
            JoinedStep("read", skills["language"], {"tokens": (None, "tokens")}, ()),
            JoinedStep(
                "fuse", skills["fusion"], {"vision": ("see", "features"), "language": ("read", "features")}, ("scores",)
            ),
        ]
        merged = skills["vision"].join(steps).load(setup)
        return lambda image, tokens: merged(image=image, tokens=tokens)["fuse_scores"]
    see, read, fuse = (skills[name].load(setup) for name in ("vision", "language", "fusion"))

    def in_a_row(image: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        vision, language = see(image=image)["features"], read(tokens=tokens)["features"]
        return fuse(vision=vision, language=language)["scores"]

    second = ThreadPoolExecutor(1)

    def side_by_side(image: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        pending = second.submit(read, tokens=tokens)
        vision = see(image=image)["features"]
        return fuse(vision=vision, language=pending.result()["features"])["scores"]

    return in_a_row if how == "row" else side_by_side


# ── planned ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def chain_of(folder: Path) -> Any:
    """Returns the graph of the chain as it is written."""
    skills = skills_of(folder)
    chain = SkillChain(
        "look-and-read", inputs={n: skills[m].inputs[n] for m, n in (("vision", "image"), ("language", "tokens"))}
    )
    chain.add_stage(skills["vision"], name="see", inputs={"image": "image"})
    chain.add_stage(skills["language"], name="read", inputs={"tokens": "tokens"})
    chain.add_stage(skills["fusion"], name="fuse", inputs={"vision": "see.features", "language": "read.features"})
    return chain.graph({})


def planned(folder: Path, batch: int, seconds: float) -> tuple[Call, ExecutionPlan]:
    """Returns the chain as the optimizer plans it, from measurements on one example."""
    plan = ChainOptimizer().tune(chain_of(folder), [inputs_of(batch)], seconds=seconds)
    executor = ChainExecutor(plan)
    return (lambda image, tokens: executor.run({"image": image, "tokens": tokens})["scores"]), plan


def described(plan: ExecutionPlan) -> str:
    """Returns what a plan chose, in a line."""
    steps = [f"{one.step.name}: {one.setup} {unit.place}" for unit in plan.units for one in unit.steps]
    return "; ".join(steps).replace("Setup", "")


# ── many clients ─────────────────────────────────────────────────────────────────────────────────────────────────────


def serving(folder: Path, seconds: float) -> Answer:
    """Returns what measures 32 clients in a closed loop, with or without calls made one."""
    graph = chain_of(folder)
    plan = ChainOptimizer(concurrency=32).tune(graph, [inputs_of(1)], seconds=seconds)
    alone = ChainOptimizer().tune(graph, [inputs_of(1)], seconds=seconds)
    apart = [replace(u, steps=tuple(replace(s, batch_rows=0) for s in u.steps)) for u in plan.units]
    executors = {
        "batched": ChainExecutor(plan),
        "same, one by one": ChainExecutor(replace(plan, units=tuple(apart))),
        "planned for one client": ChainExecutor(alone),
    }
    expected = by_hand_plain(graph)

    def answer(question: Mapping[str, Any]) -> Any:
        if "plan" in question:
            return {"plan": described(plan), "batched": any(s.batch_rows for u in plan.units for s in u.steps)}
        return asyncio.run(_clients(executors[question["way"]], expected, question["requests"]))

    return answer


def by_hand_plain(graph: Any) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Returns inputs of one row with what the chain as it is written makes of them."""
    rows = inputs_of(64)
    several = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(64)]
    with ChainExecutor(ExecutionPlan.plain(graph)) as plain:
        return [(inputs, plain.run(inputs)["scores"]) for inputs in several]


async def _clients(executor: ChainExecutor, pairs: list[Any], requests: int) -> dict[str, float]:
    """Returns requests per second, the 95th percentile of their times, and the largest error."""
    left, times, errors = iter(range(requests)), list[float](), list[float]()

    async def client() -> None:
        for number in left:
            inputs, expected = pairs[number % len(pairs)]
            began = time.perf_counter()
            result = await executor.arun(inputs)
            times.append(time.perf_counter() - began)
            errors.append(float(np.abs(result["scores"] - expected).max()))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(32)))
    seconds = time.perf_counter() - began
    return {
        "requests per second": requests / seconds,
        "p95": statistics.quantiles(times, n=20)[-1],
        "error": max(errors),
    }


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def timing(call: Call, plan: ExecutionPlan | None = None) -> Answer:
    """Returns what times a chain: median seconds per call over a time of given length; or what gives its result."""

    def answer(question: Mapping[str, Any]) -> Any:
        inputs = inputs_of(question["batch"])
        if "seconds" not in question:
            return {"result": call(**inputs).tolist(), "plan": described(plan) if plan else ""}
        times, until = list[float](), time.perf_counter() + question["seconds"]
        while (began := time.perf_counter()) < until:
            call(**inputs)
            times.append(time.perf_counter() - began)
        time.sleep(REST_SECONDS)
        return statistics.median(times)  # of single calls: most lie between two interruptions by other work

    return answer


def main() -> None:
    """Loads one choice and answers questions until there are no more."""
    folder, choice, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    if choice == "serving":
        answer = serving(folder, seconds)
    elif choice.startswith("planned"):
        answer = timing(*planned(folder, int(choice.split()[-1]), seconds))
    else:
        answer = timing(by_hand(folder, *HAND_MADE[choice]))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
