"""The examples in the docstrings of the kernels run and give what they say."""

import doctest

import pytest

from minerua import kernels
from minerua.kernels import diagnosis, passes, pool, reference


@pytest.mark.parametrize("module", [kernels, passes, reference, diagnosis, pool], ids=lambda module: module.__name__)
def test_the_examples_hold(module, threads):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
