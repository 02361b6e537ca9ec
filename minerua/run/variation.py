"""A variant's crossover and mutation, made of its draws and the subspace's algebra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minerua.evolution.cycle import Crossover, Mutation
from minerua.evolution.operators import READINGS, crossover_coefficients, directed_coefficients
from minerua.evolution.variants import Variant
from minerua.values import Genome
from minerua.weights import Subspace


def crossover_of(variant: Variant, subspace: Subspace) -> Crossover:
    """Returns the variant's crossover on genomes of a subspace."""
    rows = len(subspace.segments) if variant.crossover_per_tensor else 1

    def crossover(parents: Sequence[Genome], generator: np.random.Generator) -> Genome:
        if variant.crossover == "directed":
            coefficients = directed_coefficients(generator, rows=rows, width=variant.crossover_width)
        else:
            coefficients = crossover_coefficients(generator, rows=rows, deviation=variant.crossover_width)
        return subspace.combine(parents, coefficients)

    return crossover


def mutation_of(variant: Variant, subspace: Subspace, experts: Sequence[Genome]) -> Mutation:
    """Returns the variant's mutation on genomes of a subspace.

    `expert` is the public code's reading: the active task's expert, its singular values multiplied by w ~ U[0,
    strength), is added to the child. It differs from that code in three documented ways: the SVD is computed here
    instead of read from a file that was never published, in float32 instead of bfloat16, and 1-D biases pass through
    instead of failing. `gaussian` is the public code's default: noise on every value, here on the cores only.

    Args:
        variant: The settings.
        subspace: The space of all genomes.
        experts: One expert per task, in the order of the tasks; used by `expert`.
    """
    change = _change_of(variant, subspace, experts)

    def mutate(genome: Genome, generator: np.random.Generator, task: int) -> Genome:
        if not np.isfinite(genome.values).all():
            return genome  # has no singular values; its evaluation fails with the reason
        mutated = generator.random() < variant.mutation_probability
        return change(genome, generator, task) if mutated else genome

    return mutate


def _change_of(variant: Variant, subspace: Subspace, experts: Sequence[Genome]) -> Mutation:
    strength = variant.mutation_strength
    if variant.mutation == "none":
        return lambda genome, generator, task: genome
    if variant.mutation == "gaussian":
        return lambda genome, generator, task: subspace.add_noise(genome, generator, strength)
    draw = READINGS["literal" if variant.mutation == "expert" else variant.mutation]

    def scaled(genome: Genome, generator: np.random.Generator) -> Genome:
        return subspace.scale_spectrum(genome, lambda count: draw(generator, count, strength))

    if variant.mutation == "expert":
        return lambda genome, generator, task: subspace.add_cores(genome, scaled(experts[task], generator))
    return lambda genome, generator, task: scaled(genome, generator)
