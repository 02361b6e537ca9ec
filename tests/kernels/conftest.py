import gc

import ml_dtypes
import numpy as np
import pytest

from minerua import kernels
from minerua.kernels.pool import ResourcePool

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


@pytest.fixture(params=DTYPES, ids=lambda dtype: dtype.name)
def dtype(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)


@pytest.fixture
def threads():
    """Sets the number of threads; afterwards the former number is back."""
    before = kernels.num_threads()
    yield kernels.set_num_threads
    kernels.set_num_threads(before)


@pytest.fixture
def pool():
    """A pool that must be at rest afterwards."""
    made = ResourcePool({"cpu": 2, "host_bytes": 64 << 20, "tokens": 5})
    yield made
    gc.collect()
    assert set(made.in_use.values()) == {0}
    assert made.statistics().live == {}
    assert made.statistics().waiting == 0
