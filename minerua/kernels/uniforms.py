"""Random numbers that depend on nothing but a key and a place, so that every machine and device draws the same.

Source: Salmon 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.3 (Philox4x32, ten rounds).
"""

from __future__ import annotations

import numpy as np

from minerua.errors import KernelError
from minerua.kernels import compiled
from minerua.kernels.reference_passes import random_words
from minerua.kernels.sources import Mask

_LIMIT = 1 << 32


def uniform(seed: int, count: int, *, model: int = 0, tensor: int = 0) -> np.ndarray:
    """Draws numbers in [0, 1): multiples of 2⁻²⁴, which float32 holds exactly.

    Number i is the upper 24 bits of the word that a random mask would draw element i by; they are those of
    `reference_passes.random_words`.

    Args:
        seed: The key: 0 to 2⁶⁴ − 1.
        count: How many; at least 0, below 2³².
        model: Of which child: 0 to 2³² − 1.
        tensor: Of which tensor: 0 to 2³² − 1.

    Returns:
        Shape (count,), float32.

    Raises:
        KernelError: A number is out of its range; lists all faults.

    Example:
        >>> uniform(1, 3)
        array([0.17569983, 0.3500369 , 0.6093018 ], dtype=float32)
    """
    ranges = {"seed": (seed, 1 << 64), "count": (count, _LIMIT), "model": (model, _LIMIT), "tensor": (tensor, _LIMIT)}
    faults = [
        f"{name} is {value!r}; it must be a whole number from 0 to {limit - 1}"
        for name, (value, limit) in ranges.items()
        if not isinstance(value, int | np.integer) or not 0 <= value < limit
    ]
    if faults:
        raise KernelError("uniform cannot draw with these arguments:", faults)
    if compiled.core is None or compiled.forced_reference():
        words = random_words(Mask(seed=int(seed), model=int(model), tensor=int(tensor)), 0, int(count))
        return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    numbers = np.empty(int(count), np.float32)
    compiled.core.uniform(int(seed), int(model), int(tensor), numbers)
    return numbers
