"""`uniform`: the numbers of the authors' generator, equal everywhere, and independent of one another."""

import numpy as np
import pytest

from minerua import kernels
from minerua.errors import KernelError
from minerua.kernels import passes
from minerua.kernels.passes import Mask


def test_numbers_are_the_words_that_masks_are_drawn_by():
    drawn = kernels.uniform(7, 1000, model=3, tensor=5)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for share in (0.25, 0.5, 0.75):  # the compiled core draws the same words
        bits = passes.draw(Mask(keep=share, seed=7, model=3, tensor=5), 1000)
        kept = np.unpackbits(bits.view(np.uint8), bitorder="little")[:1000].astype(bool)
        np.testing.assert_array_equal(drawn < share, kept)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1023, 1025, 3000])
def test_the_compiled_numbers_are_those_of_the_reference(monkeypatch, count):
    drawn = kernels.uniform((1 << 63) + 5, count, model=2**32 - 1, tensor=9)
    monkeypatch.setenv("MINERUA_BACKEND", "reference")
    np.testing.assert_array_equal(drawn, kernels.uniform((1 << 63) + 5, count, model=2**32 - 1, tensor=9))


def test_numbers_are_uniform_and_differ_by_seed_model_and_tensor():
    draws = [
        kernels.uniform(seed, 4096, model=model, tensor=tensor)
        for seed, model, tensor in [(0, 0, 0), (1, 0, 0), (1 << 40, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    for draw in draws:
        counts = np.histogram(draw, bins=16, range=(0, 1))[0]
        assert ((counts - 256) ** 2 / 256).sum() < 40  # chi-squared with 15 degrees of freedom: 1 in 2000
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert abs(correlations).max() < 0.08  # five standard deviations


def test_a_longer_draw_begins_with_the_shorter():
    np.testing.assert_array_equal(kernels.uniform(5, 100)[:33], kernels.uniform(5, 33))
    assert kernels.uniform(5, 0).shape == (0,)


def test_numbers_out_of_range_are_refused_together():
    with pytest.raises(KernelError) as caught:
        kernels.uniform(-1, 2.5, model=1 << 32, tensor="a")
    assert str(caught.value).startswith("uniform cannot draw with these arguments:\n")
    faults = caught.value.faults
    assert faults[0] == f"seed is -1; it must be a whole number from 0 to {2**64 - 1}"
    assert faults[1] == f"count is 2.5; it must be a whole number from 0 to {2**32 - 1}"
    assert len(faults) == 4
