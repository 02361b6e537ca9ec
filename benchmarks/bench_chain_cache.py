"""What does a hit in the content cache cost, and a call in a worker process?

Expected: a hit costs the digest, which is bound by reading the inputs once: 600 kB ÷ some 20 GB/s = 30 µs; SHA-256 of
the same bytes and a plain copy of them stand beside it. A call in a warm process: under 1 ms with small inputs; large
arrays are copied twice, once each way.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from minerua.chain.keeping.cache import ContentCache
from minerua.chain.running.workers import WorkerProcesses
from minerua.values import Skill

SKILL = Skill("see", pure=True)
SIZES = {"2 kB": 512, "49 kB": 12_544, "602 kB": 150_528, "20 MB": 5_000_000}
WAYS = ["hit", "hit, every second element", "SHA-256", "copy (floor)"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_a_hit_costs_what_reading_the_inputs_costs(benchmark, smoke, size, way):
    image = np.random.default_rng(0).random(512 if smoke else SIZES[size], np.float32)
    strided = np.repeat(image, 2)[::2]
    cache, result = ContentCache(1 << 20), {"y": np.ones(64, np.float32)}

    def hit(array: np.ndarray) -> dict[str, np.ndarray] | None:
        return cache.get(cache.key(SKILL, {"image": array}))

    cache.put(cache.key(SKILL, {"image": image}), result)
    assert np.array_equal(hit(strided)["y"], result["y"])
    assert hit(image + 1) is None
    functions = {
        "hit": lambda: hit(image),
        "hit, every second element": lambda: hit(strided),
        "SHA-256": lambda: hashlib.sha256(image.data).digest(),
        "copy (floor)": image.copy,
    }
    benchmark.group = size
    if smoke:
        benchmark.pedantic(functions[way], rounds=3)
    else:
        benchmark(functions[way])


@pytest.mark.parametrize("size", ["2 kB", "602 kB", "20 MB"])
def test_a_call_in_a_warm_process(benchmark, smoke, size):
    image = np.random.default_rng(0).random(512 if smoke else SIZES[size], np.float32)
    with WorkerProcesses() as workers:
        assert np.array_equal(workers.run("builtins:dict", {"image": image})["image"], image)
        benchmark.group = f"process, {size}"
        benchmark.pedantic(
            lambda: workers.run("builtins:dict", {"image": image}), rounds=3 if smoke else 200, warmup_rounds=2
        )
