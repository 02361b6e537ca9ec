"""A population to measure: Llama-3-8B's shapes, three LoRA experts of random numbers, and the process that breeds them.

The base is a file with the model's header and no content: it takes no disk, and all that is read of it is its shapes.

    python population_world.py WORLD stored CHILDREN    # breeds some at a time, stores and reopens all; prints JSON
    python population_world.py WORLD held CHILDREN      # breeds all at once and keeps them in memory; prints JSON
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from minerua import kernels
from minerua.evolution.operators import READINGS, crossover_coefficients, multipliers
from minerua.values import Genome, TensorSpec
from minerua.weights import Checkpoint, Delta, Factors, GenomeStore, Population, Subspace, TaskVector, open_checkpoint
from minerua.weights.header import encode_header

EXPERTS = ("first", "second", "third")

STRENGTH = 0.3
"""Of the mutation."""

AT_ONCE = 4
"""Children that are bred before they are stored: what an evolution that evaluates on a few devices holds."""

DRAWS = (1 << 22) - 3
"""How many normal numbers an expert is made of, read in a circle; a prime, so that no row repeats another."""


@dataclass(frozen=True)
class Size:
    """The extents of a Llama with grouped queries, and the rank of its experts; `layers` is a multiple of 8."""

    vocabulary: int
    hidden: int
    key_value: int
    intermediate: int
    layers: int
    rank: int


FULL = Size(vocabulary=128_256, hidden=4096, key_value=1024, intermediate=14_336, layers=32, rank=64)
"""Llama-3-8B: 8.03 billion parameters."""

SMALL = Size(vocabulary=256, hidden=64, key_value=32, intermediate=96, layers=8, rank=4)


def matrices_of(size: Size, layers: int) -> dict[str, tuple[int, int]]:
    """Returns the seven matrices of each of the first layers, which the experts change."""
    h, kv, i = size.hidden, size.key_value, size.intermediate
    attention = {"q": (h, h), "k": (kv, h), "v": (kv, h), "o": (h, h)}
    mlp = {"gate": (i, h), "up": (i, h), "down": (h, i)}
    layer = {
        **{f"self_attn.{name}_proj.weight": shape for name, shape in attention.items()},
        **{f"mlp.{name}_proj.weight": shape for name, shape in mlp.items()},
    }
    return {f"model.layers.{number}.{name}": shape for number in range(layers) for name, shape in layer.items()}


def shapes_of(size: Size) -> dict[str, tuple[int, ...]]:
    """Returns all tensors of the model."""
    norms = {
        f"model.layers.{number}.{name}_layernorm.weight": (size.hidden,)
        for number in range(size.layers)
        for name in ("input", "post_attention")
    }
    ends = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (size.vocabulary, size.hidden))
    return {**matrices_of(size, size.layers), **norms, **ends, "model.norm.weight": (size.hidden,)}


def parameters_of(size: Size) -> int:
    """Returns how many weights the model has."""
    return sum(map(prod, shapes_of(size).values()))


# ── the world ────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_world(folder: Path, size: Size, *, eighths: int = 8) -> Subspace:
    """Writes the base's header, and the subspace that three experts span; the same bytes every time.

    Args:
        folder: Is made; `base.safetensors` and `subspace` go into it.
        size: How large the model is.
        eighths: How many eighths of its layers the experts change.

    Returns:
        The subspace, its bases read through maps.
    """
    folder.mkdir()
    specs = [TensorSpec(name, shape, "bfloat16") for name, shape in shapes_of(size).items()]
    header = encode_header(specs, {"format": "pt"})
    with (folder / "base.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * parameters_of(size))  # a hole: zeros that take no disk
    matrices = matrices_of(size, size.layers * eighths // 8)
    founders = {name: TaskVector(name, _Drawn(number, matrices, size.rank)) for number, name in enumerate(EXPERTS)}
    return Subspace(open_base(folder), founders, folder=folder / "subspace")


def open_base(folder: Path) -> Checkpoint:
    """Opens the base; its digest is said instead of computed, as 16 GB of zeros would be read for it."""
    base = open_checkpoint(folder / "base.safetensors")
    base.__dict__["digest"] = "0" * 32
    return base


def open_world(folder: Path) -> Subspace:
    """Opens what `write_world` wrote."""
    return Subspace.open(folder / "subspace", open_base(folder))


class _Drawn(Mapping[str, Delta]):
    """An expert's factors, drawn when they are asked for."""

    def __init__(self, expert: int, matrices: Mapping[str, tuple[int, int]], rank: int) -> None:
        self._expert, self._matrices, self._rank = expert, matrices, rank
        self._places = {name: place for place, name in enumerate(matrices)}

    def __getitem__(self, name: str) -> Factors:
        m, n = self._matrices[name]
        start = int(np.random.default_rng([self._expert, self._places[name]]).integers(DRAWS))
        numbers = _circle()[start : start + min((m + n) * self._rank, DRAWS)]
        left, right = np.split(numbers, [m * self._rank])
        return Factors(left.reshape(m, self._rank), right.reshape(self._rank, n))

    def __iter__(self) -> Iterator[str]:
        return iter(self._matrices)

    def __len__(self) -> int:
        return len(self._matrices)


@functools.lru_cache(maxsize=1)
def _circle() -> np.ndarray:
    return np.tile(np.random.default_rng(0).standard_normal(DRAWS, np.float32), 2)


# ── breeding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def coefficients_of(children: Sequence[int], parents: int) -> np.ndarray:
    """Returns each child's crossover coefficients, shape (children, parents): they depend on its number alone."""
    rows = [crossover_coefficients(np.random.default_rng(child), parents=parents)[0] for child in children]
    return np.stack(rows)


def multipliers_of(children: Sequence[int]) -> Callable[[int, int, int], np.ndarray]:
    """Returns what draws the multipliers of a mutation, two-sided, for `Population.mutate`."""

    def draw(member: int, number: int, rank: int) -> np.ndarray:
        uniforms = functools.partial(kernels.uniform, 1, model=children[member], tensor=number)
        return multipliers(lambda count: uniforms(count), rank, reading=READINGS["two-sided"], strength=STRENGTH)

    return draw


def breed(
    subspace: Subspace, parents: Sequence[Genome], children: Sequence[int], *, precision: str = "float32"
) -> Population:
    """Crosses the parents and mutates what comes of it: one child per number, in the precision of the kernel."""
    population = Population.crossed(subspace, parents, coefficients_of(children, len(parents)))
    population.mutate(multipliers_of(children), precision=precision)
    return population


def breed_and_store(subspace: Subspace, folder: Path, children: int) -> dict[str, float]:
    """Breeds children of the founders, some at a time, stores them, and opens all of them in a store that is new.

    First one after the other, as an evaluation does, then all at once, which maps every byte that the store holds.
    """
    store, bred, stored = GenomeStore(folder), 0.0, 0.0
    parents = tuple(subspace.founders.values())
    for first in range(0, children, AT_ONCE):
        begin = perf_counter()
        population = breed(subspace, parents, range(first, min(first + AT_ONCE, children)))
        middle = perf_counter()
        for genome in population.genomes():
            store.add(genome)
        bred, stored = bred + middle - begin, stored + perf_counter() - middle
    begin, again = perf_counter(), GenomeStore(folder)
    first_values = {float(again.open(name).values[0]) for name in store}  # held against its name, so every byte is read
    reopened, one_at_a_time = perf_counter() - begin, most_resident_bytes()
    held = [again.open(name) for name in store]
    assert np.isfinite(sum(float(genome.values.sum()) for genome in held))
    assert len(held) == len(first_values) == children
    assert breed(subspace, parents, [0]).genome(0).digest in again  # bred alone, a child is what it was among others
    return {
        "seconds to breed": bred,
        "seconds to store": stored,
        "seconds to reopen": reopened,
        "bytes on disk": sum(file.stat().st_size for file in folder.iterdir()),
        "most resident bytes, one open": one_at_a_time,
        "most resident bytes, all open": most_resident_bytes(),
    }


def breed_and_hold(subspace: Subspace, children: int) -> dict[str, float]:
    """Breeds all children at once."""
    parents = tuple(subspace.founders.values())
    begin, started = perf_counter(), process_time()
    population = breed(subspace, parents, range(children))
    return {
        "seconds to breed": perf_counter() - begin,
        "processor seconds to breed": process_time() - started,
        "bytes of the population": population.values.nbytes,
        "most resident bytes": most_resident_bytes(),
    }


def most_resident_bytes() -> int:
    """Returns the most memory that this process has had at a time, file maps included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(world: str, way: str, children: str) -> None:
    """Breeds in the way named, and prints what it took."""
    folder = Path(world)
    subspace = open_world(folder)
    if way == "stored":
        print(json.dumps(breed_and_store(subspace, folder / "genomes", int(children))))
    else:
        print(json.dumps(breed_and_hold(subspace, int(children))))


if __name__ == "__main__":
    main(*sys.argv[1:])
