"""`merge`: the compiled core against the reference, bit for bit, and the laws of merging."""

import os
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua import kernels

BACKENDS = ["compiled", "reference"]


def drawn(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def as_bits(array):
    return array.view(f"u{array.dtype.itemsize}")


def assert_same_bits(left, right):
    assert left.dtype == right.dtype
    np.testing.assert_array_equal(as_bits(left), as_bits(right))


# (shape, number of experts): scalars, empty arrays, tails around 32, several tasks of the pool, more experts than a
# block of the usual size holds.
CASES = [((), 2), ((1,), 1), ((31,), 3), ((33,), 9), ((3, 0), 2), ((7, 130), 70), ((2, 3, 5), 300), ((70000,), 2)]


@pytest.mark.parametrize(("shape", "count"), CASES)
def test_compiled_merge_equals_the_reference_bit_for_bit(rng, dtype, shape, count):
    experts = [drawn(rng, shape, dtype) for _ in range(count)]
    coefficients = rng.standard_normal((3, count))
    for base in (None, drawn(rng, shape, dtype), drawn(rng, shape, np.float32)):
        for out in ("float32", "float16", "bfloat16"):
            got = [kernels.merge(experts, coefficients, base=base, out_dtype=out, backend=b) for b in BACKENDS]
            assert got[0].shape == (3, *shape)
            assert_same_bits(*got)


@settings(deadline=None, max_examples=30)
@given(
    size=st.integers(0, 5000), experts=st.integers(1, 12), children=st.integers(1, 5), seed=st.integers(0, 2**32 - 1)
)
def test_any_sizes_give_the_bits_of_the_reference(size, experts, children, seed):
    rng = np.random.default_rng(seed)
    given_experts = [drawn(rng, size, ml_dtypes.bfloat16) for _ in range(experts)]
    coefficients = rng.standard_normal((children, experts))
    base = drawn(rng, size, np.float32)
    assert_same_bits(*[kernels.merge(given_experts, coefficients, base=base, backend=b) for b in BACKENDS])


def test_every_pattern_of_bits_passes_through_like_in_the_reference(dtype):
    if dtype.itemsize == 2:
        values = np.arange(65536, dtype=np.uint16).view(dtype)
    else:
        values = np.random.default_rng(3).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    for out in ("float32", "float16", "bfloat16"):
        got, expected = (kernels.merge([values], [[1.0]], out_dtype=out, backend=b)[0] for b in BACKENDS)
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(got), nan)
        assert_same_bits(got[~nan], expected[~nan])


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_expert_with_coefficient_one_is_that_expert(rng, dtype, backend):
    expert = drawn(rng, (50, 70), dtype)
    assert_same_bits(kernels.merge([expert], [[1.0]], backend=backend)[0], expert)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_expert_with_coefficient_one_over_a_base_is_that_expert_up_to_one_rounding(rng, dtype, backend):
    base, change = drawn(rng, (50, 70), dtype), drawn(rng, (50, 70), dtype)
    expert = (base.astype(np.float32) + 0.01 * change.astype(np.float32)).astype(dtype)
    got = kernels.merge([expert], [[1.0]], base=base, out_dtype="float32", backend=backend)[0]
    largest = np.maximum(abs(base.astype(np.float32)), abs(expert.astype(np.float32)))
    assert (abs(got - expert.astype(np.float32)) <= 2.0**-23 * largest).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_coefficients_of_zero_give_the_base(rng, dtype, backend):
    base = drawn(rng, 1000, dtype)
    got = kernels.merge([drawn(rng, 1000, dtype)] * 3, np.zeros((1, 3)), base=base, backend=backend)[0]
    assert_same_bits(got, base)


def test_children_do_not_depend_on_their_siblings(rng, dtype):
    experts = [drawn(rng, 3000, dtype) for _ in range(4)]
    coefficients = rng.standard_normal((6, 4))
    together = kernels.merge(experts, coefficients)
    for p in range(6):
        assert_same_bits(together[p], kernels.merge(experts, coefficients[p : p + 1])[0])


def test_the_number_of_threads_does_not_change_a_bit(rng, dtype, threads):
    experts, coefficients = [drawn(rng, 200_003, dtype) for _ in range(3)], rng.standard_normal((2, 3))
    threads(1)
    alone = kernels.merge(experts, coefficients, base=experts[0])
    for count in (2, 3, 7):
        threads(count)
        assert_same_bits(kernels.merge(experts, coefficients, base=experts[0]), alone)


def test_values_that_are_not_finite_travel_on(dtype):
    expert = np.array([np.inf, -np.inf, np.nan, 1.0]).astype(dtype)
    for backend in BACKENDS:
        got = kernels.merge([expert], [[2.0]], backend=backend)[0].astype(np.float32)
        np.testing.assert_array_equal(got, np.array([np.inf, -np.inf, np.nan, 2.0], np.float32))


def test_arrays_that_are_not_contiguous_or_not_native_are_taken(rng):
    values = rng.standard_normal((20, 30)).astype(np.float32)
    expected = kernels.merge([np.ascontiguousarray(values.T)], [[0.5]])
    assert_same_bits(kernels.merge([values.T], [[0.5]]), expected)
    assert_same_bits(kernels.merge([values.T.astype(">f4")], [[0.5]]), expected)


def test_inputs_are_not_written_to_and_may_be_read_only(rng):
    expert = drawn(rng, 100, np.float32)
    before = expert.copy()
    expert.setflags(write=False)
    kernels.merge([expert, expert], [[0.5, 0.5]], base=expert)
    assert_same_bits(expert, before)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_torch_tensors_give_torch_tensors_with_the_same_bits(rng, name):
    arrays = [rng.standard_normal((5, 7)).astype(np.float32) for _ in range(3)]
    tensors = [torch.from_numpy(a).to(getattr(torch, name)).requires_grad_() for a in arrays]
    got = kernels.merge(tensors, [[0.1, 0.2, 0.3]], base=tensors[0], out_dtype=torch.float32)
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else name
    rounded = [a.astype(dtype) for a in arrays]
    expected = kernels.merge(rounded, torch.tensor([[0.1, 0.2, 0.3]]), base=rounded[0], out_dtype="float32")
    assert isinstance(got, torch.Tensor)
    assert_same_bits(got.numpy(), expected)
    assert kernels.merge(tensors, [[1, 0, 0]])[0].equal(tensors[0])


def test_several_python_threads_merge_at_once(rng):
    experts, coefficients = [drawn(rng, 100_000, np.float32) for _ in range(3)], rng.standard_normal((2, 3))
    expected = kernels.merge(experts, coefficients, backend="reference")
    results = [None] * 4

    def run(slot):
        results[slot] = [kernels.merge(experts, coefficients) for _ in range(10)]

    callers = [threading.Thread(target=run, args=(slot,)) for slot in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for result in results:
        for got in result:
            assert_same_bits(got, expected)


FORK = """
import os, sys
import numpy as np
from minerua import kernels
kernels.set_num_threads(3)
expert = np.ones(300_000, np.float32)
merged = kernels.merge([expert], [[2.0]])
child = os.fork()
if child == 0:
    os._exit(0 if (kernels.merge([expert], [[2.0]]) == merged).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_the_core_works_in_the_child_of_a_fork():
    # In a process of its own: a fork of the test runner would carry its other threads' locks along.
    done = subprocess.run([sys.executable, "-c", FORK], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bits(isa):
    script = (
        "import hashlib, numpy as np; from minerua import kernels; r = np.random.default_rng(1);"
        "m = r.standard_normal((5, 37, 50)).astype('f4'); w = r.random((5, 37));"
        "a = kernels.svd_mutation(m, w, backend='compiled');"
        "b = kernels.merge(list(m), w[:, :5], out_dtype='float16', backend='compiled');"
        "print(hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest())"
    )

    def digest(**extra):
        environment = {k: v for k, v in os.environ.items() if k != "MINERUA_ISA"} | extra
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    got = digest(MINERUA_ISA=isa)
    if "does not run it" in got.stderr or "of those built for this machine" in got.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert got.stdout == digest().stdout != ""
