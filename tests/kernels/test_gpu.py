"""The CUDA kernels against the reference; needs a device."""

import numpy as np
import pytest
import torch

from minerua import kernels
from minerua.errors import KernelError
from minerua.kernels import cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device that torch can use; there is none"),
    pytest.mark.skipif(bool(cuda.absence_reason()), reason=f"needs libminerua_cuda.so: {cuda.absence_reason()}"),
]

NAMES = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 3, 8, 9, 64])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 4096, 100_003])
def test_merge_has_the_bits_of_the_reference(rng, name, count, size):
    host = [
        torch.from_numpy(rng.standard_normal(size).astype(np.float32)).to(getattr(torch, name)) for _ in range(count)
    ]
    coefficients = rng.standard_normal((3, count))
    for base in (None, torch.from_numpy(rng.standard_normal(size).astype(np.float32)).to(torch.bfloat16)):
        for out in NAMES:
            expected = kernels.merge(host, coefficients, base=base, out_dtype=out, backend="reference")
            moved = None if base is None else base.cuda()
            got = kernels.merge([x.cuda() for x in host], coefficients, base=moved, out_dtype=out, backend="cuda")
            assert got.is_cuda
            assert got.cpu().view(torch.uint8).equal(expected.view(torch.uint8))


def test_merge_takes_tensors_that_are_not_aligned(rng):
    host = torch.from_numpy(rng.standard_normal(1001).astype(np.float32))
    got = kernels.merge([host.cuda()[1:], host.cuda()[:-1]], [[0.5, 0.25], [1.0, 2.0]], backend="cuda")
    expected = kernels.merge([host[1:], host[:-1]], [[0.5, 0.25], [1.0, 2.0]], backend="reference")
    assert got.cpu().equal(expected)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 9), (9, 1), (10, 128), (33, 64), (128, 128), (128, 3000), (200, 300)])
def test_svd_mutation_agrees_with_the_reference(rng, m, n):
    r = min(m, n)
    u, _ = np.linalg.qr(rng.standard_normal((5, m, r)))
    v, _ = np.linalg.qr(rng.standard_normal((5, n, r)))
    matrices = np.einsum("bir,r,bjr->bij", u, np.linspace(1.0, 0.1, r), v).astype(np.float32)
    matrices[2] = 0.0
    w = rng.uniform(0.0, 1.5, (5, r)).astype(np.float32)
    got = kernels.svd_mutation(torch.from_numpy(matrices).cuda(), w)
    expected = kernels.svd_mutation(matrices, w, backend="reference")
    np.testing.assert_allclose(got.cpu().numpy(), expected, atol=2e-6)


def test_svd_mutation_names_matrices_that_are_not_finite():
    matrices = torch.ones(4, 3, 2, device="cuda")
    matrices[2, 1, 1] = torch.inf
    with pytest.raises(KernelError, match=r"NaN or infinity in matrix, or in the multipliers of matrix, 2"):
        kernels.svd_mutation(matrices, np.ones((4, 2)))
