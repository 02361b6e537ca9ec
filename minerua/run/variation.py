"""A variant's crossover and mutation, made of its draws and the population's algebra.

A cycle breeds one child at a time: a population of one, on the same road as many. What is random comes from the child's
generator; the multipliers of its spectra from Philox, keyed by 64 bits of that generator and counted by the number of
the tensor, so that a processor and a GPU draw the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minerua import kernels
from minerua.evolution.cycle import Crossover, Mutation
from minerua.evolution.operators import READINGS, crossover_coefficients, directed_coefficients, multipliers
from minerua.evolution.variants import Variant
from minerua.values import Genome
from minerua.weights import Population, Subspace
from minerua.weights.population import Draw


def crossover_of(variant: Variant, subspace: Subspace) -> Crossover:
    """Returns the variant's crossover on genomes of a subspace."""
    rows = len(subspace.segments) if variant.crossover_per_tensor else 1

    def crossover(parents: Sequence[Genome], generator: np.random.Generator) -> Genome:
        if variant.crossover == "directed":
            coefficients = directed_coefficients(generator, rows=rows, width=variant.crossover_width)
        else:
            coefficients = crossover_coefficients(generator, rows=rows, deviation=variant.crossover_width)
        one_child = coefficients[None] if variant.crossover_per_tensor else coefficients
        return Population.crossed(subspace, parents, one_child).genomes()[0]

    return crossover


def mutation_of(
    variant: Variant, subspace: Subspace, experts: Sequence[Genome], *, precision: str = "float32"
) -> Mutation:
    """Returns the variant's mutation on genomes of a subspace.

    `expert` is the public code's reading: the active task's expert, its singular values multiplied by w ~ U[0,
    strength), is added to the child. It differs from that code in three documented ways: the SVD is computed here
    instead of read from a file that was never published, in float32 instead of bfloat16, and 1-D biases pass through
    instead of failing. `gaussian` is the public code's default: noise on every value, here on the cores only.

    Args:
        variant: The settings.
        subspace: The space of all genomes.
        experts: One expert per task, in the order of the tasks; used by `expert`.
        precision: In which singular vectors are found: `float32` or `float64`; the kernel's.
    """
    change = _change_of(variant, subspace, experts, precision)

    def mutate(genome: Genome, generator: np.random.Generator, task: int) -> Genome:
        if not np.isfinite(genome.values).all():
            return genome  # has no singular values; its evaluation fails with the reason
        mutated = generator.random() < variant.mutation_probability
        return change(genome, generator, task) if mutated else genome

    return mutate


def _change_of(variant: Variant, subspace: Subspace, experts: Sequence[Genome], precision: str) -> Mutation:
    if variant.mutation == "none":
        return lambda genome, generator, task: genome
    if variant.mutation == "gaussian":
        return lambda genome, generator, task: subspace.add_noise(genome, generator, variant.mutation_strength)

    def scaled(genome: Genome, generator: np.random.Generator) -> Population:
        population = Population(subspace, [genome])
        population.mutate(draws_of(variant, [generator]), precision=precision)
        return population

    def towards_expert(genome: Genome, generator: np.random.Generator, task: int) -> Genome:
        child = Population(subspace, [genome])
        child.add_cores(scaled(experts[task], generator))
        return child.genomes()[0]

    if variant.mutation == "expert":
        return towards_expert
    return lambda genome, generator, task: scaled(genome, generator).genomes()[0]


def draws_of(variant: Variant, generators: Sequence[np.random.Generator]) -> Draw:
    """Returns the multipliers of a population's spectra, for `Population.mutate`.

    Args:
        variant: Its reading, strength and top are used; the mutation must be one of `READINGS`.
        generators: One per member; from each 64 bits are taken, its member's key.
    """
    keys = [int(generator.integers(1 << 64, dtype=np.uint64)) for generator in generators]
    reading, strength, top = READINGS[variant.mutation], variant.mutation_strength, variant.mutation_top

    def draw(member: int, number: int, count: int) -> np.ndarray:
        def uniforms(how_many: int) -> np.ndarray:
            return kernels.uniform(keys[member], count=how_many, tensor=number)

        return multipliers(uniforms, count, reading=reading, strength=strength, top=top)

    return draw
