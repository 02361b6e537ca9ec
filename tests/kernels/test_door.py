"""The door: what it refuses and in which words, which backend it chooses and why."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from minerua import kernels
from minerua.errors import CoreUnavailable, KernelError
from minerua.kernels import compiled, cuda

ONES = np.ones((2, 3), np.float32)
BATCH = np.ones((4, 3, 2), np.float32)


def refusal(operation, *args, **kwargs):
    with pytest.raises(KernelError) as caught:
        operation(*args, **kwargs)
    return str(caught.value)


MERGE_FAULTS = [
    (([], [[1.0]]), {}, "there are 0 experts; pass at least one"),
    (([ONES, [1.0]], [[1, 1]]), {}, "expert 1 is a list; pass numpy arrays or torch tensors"),
    (([ONES.astype(int)], [[1]]), {}, "expert 0 has dtype int64; convert it to one of float32, float16, bfloat16"),
    (
        ([ONES, ONES[:1]], [[1, 1]]),
        {},
        "expert 1 is numpy float32 (1, 3) on cpu, expert 0 is numpy float32 (2, 3) on cpu; all experts must be alike",
    ),
    (
        ([ONES, torch.ones(2, 3)], [[1, 1]]),
        {},
        "expert 1 is torch float32 (2, 3) on cpu, expert 0 is numpy float32 (2, 3) on cpu; all experts must be alike",
    ),
    (([ONES], [[1]]), {"base": 3}, "base is a int; pass a numpy array or a torch tensor, or None"),
    (
        ([ONES], [[1]]),
        {"base": ONES.astype(bool)},
        "base has dtype bool; convert it to one of float32, float16, bfloat16",
    ),
    (
        ([ONES], [[1]]),
        {"base": ONES[:1]},
        "base is numpy float32 (1, 3) on cpu, expert 0 is numpy float32 (2, 3) on cpu; only their dtypes may differ",
    ),
    (([ONES], [[1]]), {"out_dtype": "int8"}, "out_dtype is 'int8'; use one of float32, float16, bfloat16"),
    (([ONES], [[1]]), {"backend": "gpu"}, "backend is 'gpu'; use one of auto, compiled, reference, cuda"),
    (
        ([ONES], [[1]]),
        {"backend": "cuda"},
        "backend='cuda' needs CUDA tensors, the experts are numpy on cpu; move them",
    ),
    (([ONES], "many"), {}, "coefficients are not numbers; pass an array of shape (children, experts)"),
    (([ONES], [[1j]]), {}, "coefficients are not numbers; pass an array of shape (children, experts)"),
    (
        ([ONES], [1.0, 2.0]),
        {},
        "coefficients have shape (2,), must have (P, 1): P >= 1 children, one coefficient for each of the 1 experts",
    ),
    (
        ([ONES], np.empty((0, 1))),
        {},
        "coefficients have shape (0, 1), must have (P, 1): P >= 1 children, one coefficient for each of the 1 experts",
    ),
    (([ONES], [[np.nan], [1e300]]), {}, "coefficients at (0, 0), (1, 0) are not finite float32 numbers"),
]


@pytest.mark.parametrize(("args", "kwargs", "sentence"), MERGE_FAULTS, ids=[f[2][:40] for f in MERGE_FAULTS])
def test_merge_says_what_it_cannot_take(args, kwargs, sentence):
    assert f"  - {sentence}\n" in refusal(kernels.merge, *args, **kwargs) + "\n"


READ_ONLY = np.frombuffer(BATCH.tobytes(), np.float32).reshape(BATCH.shape)
EMPTY = np.ones((0, 2), np.float32)

SVD_FAULTS = [
    ((3, [[1.0]]), {}, "matrices are a int; pass an array of shape (B, m, n), or a list of matrices"),
    (([[1.0]], [[1.0]]), {}, "matrix 0 is a list; pass a numpy array or a torch tensor of shape (m, n)"),
    ((BATCH.astype(np.float16), np.ones((4, 2))), {}, "matrix 0 has dtype float16 on cpu; convert it to float32"),
    ((BATCH[0], np.ones((4, 2))), {}, "matrices have shape (3, 2), must have (B, m, n) with no extent 0"),
    ((BATCH[:0], np.ones((0, 2))), {}, "matrices have shape (0, 3, 2), must have (B, m, n) with no extent 0"),
    (([BATCH[0], EMPTY], np.ones((2, 2))), {}, "matrix 1 has shape (0, 2), must have (m, n) with no extent 0"),
    (
        ([BATCH[0], BATCH[0].astype(np.float64)], np.ones((2, 2))),
        {},
        "matrix 1 is numpy float64 (3, 2) on cpu, matrix 0 is numpy float32 (3, 2) on cpu; "
        "only their shapes may differ",
    ),
    (
        (BATCH, "many"),
        {},
        "multipliers are not numbers; pass an array of shape (B, min(m, n)), or a list of vectors",
    ),
    ((BATCH, np.ones((4, 3))), {}, "multipliers of matrix 0 have shape (3,), must have (2,)"),
    ((BATCH, np.ones((3, 2))), {}, "there are multipliers for 3 matrices, and 4 matrices; one row for each"),
    (
        (BATCH, np.array([[1, 1], [1, np.inf], [1, 1], [np.nan, 1]])),
        {},
        "NaN or infinity in the multipliers of matrix 1, 3; they must be finite in float32",
    ),
    ((BATCH, np.ones((4, 2))), {"precision": "half"}, "precision is 'half'; use one of float32, float64"),
    ((BATCH, np.ones((4, 2))), {"out": BATCH[:3]}, "out has 3 places for 4 matrices"),
    (
        (BATCH, np.ones((4, 2))),
        {"out": BATCH.transpose(0, 2, 1)},
        "out 0 is numpy float32 (2, 3) on cpu, matrix 0 is numpy float32 (3, 2) on cpu; they must be alike",
    ),
    (
        (BATCH, np.ones((4, 2))),
        {"out": READ_ONLY},
        "out 0 is not contiguous, writable memory; pass an array that is",
    ),
    ((BATCH, np.ones((4, 2))), {"backend": "gpu"}, "backend is 'gpu'; use one of auto, compiled, reference, cuda"),
    (
        (BATCH, np.ones((4, 2))),
        {"backend": "cuda"},
        "backend='cuda' needs CUDA tensors, the matrices are numpy on cpu; move them",
    ),
]


@pytest.mark.parametrize(("args", "kwargs", "sentence"), SVD_FAULTS, ids=[f[2][:40] for f in SVD_FAULTS])
def test_svd_mutation_says_what_it_cannot_take(args, kwargs, sentence):
    assert f"  - {sentence}\n" in refusal(kernels.svd_mutation, *args, **kwargs) + "\n"


def test_matrices_that_are_not_finite_are_named_up_to_eight():
    matrices = np.ones((12, 2, 2), np.float32)
    matrices[1:11, 0, 1] = np.nan
    text = refusal(kernels.svd_mutation, matrices, np.ones((12, 2)))
    assert "NaN or infinity in matrix 1, 2, 3, 4, 5, 6, 7, 8 and 2 more; mend or drop them" in text


def test_all_faults_are_reported_at_once():
    text = refusal(kernels.merge, [ONES, ONES[:1]], [[np.inf]], base=ONES[:, :1], out_dtype="int8", backend="gpu")
    assert text.startswith("merge cannot take these arguments (5 faults):\n")
    assert text.count("\n  - ") == 5
    text = refusal(kernels.svd_mutation, BATCH[0], "many", backend="gpu")
    assert text.startswith("svd_mutation cannot take these arguments (")
    assert text.count("\n  - ") >= 2


def test_a_cpu_array_goes_to_the_compiled_core():
    kernels.merge([ONES], [[1.0]])
    kernels.svd_mutation(BATCH, np.ones((4, 2)))
    for choice, operation in zip(kernels.explain(), ["merge", "svd_mutation"], strict=True):
        assert (choice.operation, choice.backend) == (operation, "compiled")
        assert choice.reason.startswith("CPU arrays, ")


def test_a_named_backend_is_obeyed_and_remembered():
    kernels.merge([ONES], [[1.0]], backend="reference")
    assert kernels.explain()[0] == ("merge", "reference", "backend='reference' was asked for")


def test_the_environment_forces_the_reference(monkeypatch):
    monkeypatch.setenv("MINERUA_BACKEND", "reference")
    kernels.merge([ONES], [[1.0]])
    assert kernels.explain()[0] == ("merge", "reference", "the environment variable MINERUA_BACKEND forces it")
    monkeypatch.setenv("MINERUA_BACKEND", "fast")
    assert refusal(kernels.merge, [ONES], [[1.0]]) == (
        "the environment variable MINERUA_BACKEND is 'fast'; it may be 'reference', or unset"
    )


def test_without_the_core_the_reference_is_used_and_the_reason_kept(monkeypatch):
    monkeypatch.setattr(compiled, "core", None)
    monkeypatch.setattr(compiled, "absence_reason", "minerua._core cannot be imported: no such file")
    np.testing.assert_array_equal(kernels.merge([ONES], [[2.0]])[0], 2 * ONES)
    assert kernels.explain()[0] == ("merge", "reference", "minerua._core cannot be imported: no such file")
    assert kernels.num_threads() == 1
    with pytest.raises(CoreUnavailable, match="no such file; reinstall minerua, or use backend='reference'"):
        kernels.merge([ONES], [[2.0]], backend="compiled")


def test_a_cuda_tensor_without_the_library_is_copied_and_the_reason_kept(monkeypatch):
    monkeypatch.setattr(cuda, "absence_reason", lambda: "no library")
    assert kernels._choice("merge", "auto", True, "") == (
        "merge",
        "compiled",
        "CUDA tensors are copied to the CPU and back: no library",
    )


def test_what_the_kernels_cannot_take_goes_elsewhere(monkeypatch):
    monkeypatch.setattr(cuda, "absence_reason", str)
    assert kernels._choice("merge", "auto", True, "")[1:] == ("cuda", "CUDA tensors")
    assert kernels._choice("svd_mutation", "auto", True, "side 200 is above 128")[1:] == (
        "torch",
        "torch.linalg on the device: side 200 is above 128",
    )
    assert kernels._choice("merge", "auto", True, "65 experts are more than its 64").backend == "compiled"
    assert refusal(kernels._choice, "merge", "cuda", True, "65 experts are more than its 64") == (
        "merge with backend='cuda': 65 experts are more than its 64; use backend='auto'"
    )


@pytest.fixture
def fresh_library():
    """Lets a test open the CUDA library anew, and the tests after it too."""
    cuda.library.cache_clear()
    yield
    cuda.library.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_a_missing_or_broken_cuda_library_says_what_to_do(monkeypatch, tmp_path):
    path = tmp_path / "libminerua_cuda.so"
    monkeypatch.setattr(cuda, "library_path", lambda: path)
    assert cuda.absence_reason() == (
        f"{path} does not exist: minerua was built without CUDA; reinstall it with nvcc on PATH"
    )
    path.write_text("not a library")
    assert cuda.absence_reason().startswith(f"{path} cannot be loaded: ")
    assert cuda.absence_reason().endswith("; reinstall minerua")


def test_a_cuda_library_of_another_version_is_refused(monkeypatch, tmp_path):
    class Older:
        def __getattr__(self, name):
            return lambda *arguments: cuda.ABI - 1

    path = tmp_path / "libminerua_cuda.so"
    path.touch()
    monkeypatch.setattr(cuda, "library_path", lambda: path)
    monkeypatch.setattr(cuda, "library", cuda.library.__wrapped__)  # without what another test has opened
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Older())
    expected = f"{path} has ABI {cuda.ABI - 1}, this minerua needs {cuda.ABI}; reinstall minerua"
    assert cuda.absence_reason() == expected


@pytest.mark.skipif(
    not cuda.library_path().exists(), reason="needs libminerua_cuda.so: this minerua was built without nvcc"
)
class TestCudaLibrary:
    """What the CUDA library answers on any machine, with or without a device."""

    def test_loads_and_counts_devices_or_says_why_not(self):
        assert cuda.absence_reason() == ""
        if torch.cuda.is_available():
            assert cuda.device_count() >= 1
        else:
            with pytest.raises(CoreUnavailable, match=r"device_count failed: cudaGetDeviceCount\(count\): cudaError"):
                cuda.device_count()

    def test_refuses_wrong_arguments_before_it_touches_a_device(self):
        with pytest.raises(CoreUnavailable, match=r"merge: 0 experts; takes 1 to 64"):
            cuda._call("minerua_cuda_merge", None, 0, 0, None, 0, None, 1, 5, None, 0, None)
        with pytest.raises(CoreUnavailable, match=r"merge: dtypes 7, 0, 0; each must be 0, 1 or 2"):
            cuda._call("minerua_cuda_merge", None, 1, 7, None, 0, None, 1, 5, None, 0, None)
        with pytest.raises(CoreUnavailable, match=r"merge: a pointer is null"):
            cuda._call("minerua_cuda_merge", None, 1, 0, None, 0, None, 1, 5, None, 0, None)
        with pytest.raises(CoreUnavailable, match=r"the smaller side of 200 x 300 is above 128"):
            cuda._call("minerua_cuda_svd_mutation", None, None, None, 1, 200, 300, None, None, None)
        with pytest.raises(CoreUnavailable, match=r"svd_mutation: a pointer is null"):
            cuda._call("minerua_cuda_svd_mutation", None, None, None, 1, 20, 30, None, None, None)

    def test_tells_the_largest_side_or_why_there_is_none(self):
        side = cuda._INT(0)
        if torch.cuda.is_available():
            cuda._call("minerua_cuda_svd_mutation_side", side)
            assert 0 < side.value <= cuda.MAX_SIDE
            assert side.value % 2 == 0
        else:
            with pytest.raises(CoreUnavailable, match=r"svd_mutation_side failed: .*: cudaError"):
                cuda._call("minerua_cuda_svd_mutation_side", side)

    def test_tells_its_workspace(self):
        needed = cuda._LONG(0)
        cuda._call("minerua_cuda_svd_mutation_workspace", 1000, 7, 300, needed)
        assert needed.value == 528 * 8 * 8 * 8


@pytest.fixture
def fresh_fitness(monkeypatch):
    """Lets a test pretend devices."""
    cuda.fitness.cache_clear()
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    yield
    cuda.fitness.cache_clear()


@pytest.mark.usefixtures("fresh_fitness")
def test_a_device_with_little_shared_memory_takes_smaller_sides(monkeypatch):
    def answer(name, side):
        assert name == "minerua_cuda_svd_mutation_side"
        side._obj.value = 104

    monkeypatch.setattr(cuda, "absence_reason", str)
    monkeypatch.setattr(cuda, "_call", answer)
    assert cuda.svd_mutation_limit("cuda:1", 104) == ""
    assert cuda.svd_mutation_limit("cuda:1", 105) == "side 105 is above 104"
    assert cuda.merge_limit("cuda:1", 64) == ""
    assert cuda.merge_limit("cuda:1", 65) == "65 experts are more than its 64"


@pytest.mark.usefixtures("fresh_fitness")
def test_a_device_that_cannot_run_the_kernels_sends_the_work_elsewhere(monkeypatch):
    def too_old(name, side):
        raise CoreUnavailable("the driver is too old")

    monkeypatch.setattr(cuda, "absence_reason", str)
    monkeypatch.setattr(cuda, "_call", too_old)
    obstacle = "cuda:0 cannot run the kernels, the driver is too old"
    assert cuda.merge_limit("cuda:0", 2) == cuda.svd_mutation_limit("cuda:0", 2) == obstacle
    assert kernels._choice("merge", "auto", True, obstacle).backend == "compiled"
    assert kernels._choice("svd_mutation", "auto", True, obstacle).backend == "torch"


@pytest.mark.usefixtures("fresh_fitness")
def test_without_the_library_no_device_is_asked(monkeypatch):
    monkeypatch.setattr(cuda, "absence_reason", lambda: "no library")
    assert cuda.merge_limit("cuda:0", 2) == cuda.svd_mutation_limit("cuda:0", 128) == ""


def test_outcomes_of_the_device_become_one_error():
    cuda.expect_done([0, 0])
    with pytest.raises(KernelError) as caught:
        cuda.expect_done([1, 0, 2, 1])
    assert caught.value.message == "svd_mutation failed on the device:"
    assert caught.value.faults == (
        "NaN or infinity in matrix, or in the multipliers of matrix, 0, 3",
        "no convergence for matrix 2",
    )


@pytest.mark.parametrize("count", [0, 1025, -1, 2.0, "two"])
def test_a_wrong_number_of_threads_is_refused(count):
    assert refusal(kernels.set_num_threads, count) == f"set_num_threads takes 1 to 1024 threads, not {count!r}"


def test_the_core_checks_again_for_itself():
    core, weights = compiled.require_core(), np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="dtype int8 is not one of float32, float16, bfloat16"):
        core.merge([ONES], "int8", None, "float32", ONES, ONES, "float32")
    with pytest.raises(ValueError, match="items of 4 bytes, its dtype needs 2"):
        core.merge([ONES], "float16", None, "float32", ONES, ONES, "float32")
    with pytest.raises(ValueError, match="3 coefficients per child for 1 experts"):
        core.merge([ONES], "float32", None, "float32", ONES, ONES.copy(), "float32")
    with pytest.raises(ValueError, match="not contiguous"):
        core.svd_mutation([BATCH[0].T], [weights[0]], [BATCH[0].T.copy()], False)
    with pytest.raises(ValueError, match="has 3 dimensions and format f, must have 2 and float32"):
        core.svd_mutation([BATCH], [weights[0]], [BATCH.copy()], False)
    with pytest.raises(ValueError, match="NaN or infinity in matrix 0, 1, 2, 3"):
        core.svd_mutation(list(BATCH * np.float32("nan")), list(weights), list(BATCH.copy()), False)
    with pytest.raises(ValueError, match="NaN or infinity in the multipliers of matrix 1"):
        core.svd_mutation(list(BATCH[:2]), [weights[0], weights[1] * np.inf], list(BATCH[:2].copy()), True)
    with pytest.raises(ValueError, match="2 matrices, 1 multipliers and 2 places for results"):
        core.svd_mutation(list(BATCH[:2]), [weights[0]], list(BATCH[:2].copy()), False)
    with pytest.raises(ValueError, match="matrix 0 is 3 x 2 with 3 multipliers and a result of 6 elements"):
        core.svd_mutation([BATCH[0]], [np.ones(3, np.float32)], [BATCH[0].copy()], False)
    with pytest.raises(ValueError, match="1 to 1024 threads, not 0"):
        core.set_num_threads(0)


def test_importing_the_kernels_imports_no_torch():
    script = "import sys, minerua.kernels.diagnosis as d; d.diagnose(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
