"""`svd_mutation`: agreement with the reference where the operation is unique, and its laws everywhere."""

import numpy as np
import pytest
import torch

from minerua import kernels
from minerua.errors import KernelError
from minerua.kernels import cuda

SHAPES = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 7), (10, 128), (64, 33), (128, 64), (65, 65), (128, 128), (200, 150)]


def compiled(matrices, multipliers):
    return kernels.svd_mutation(matrices, multipliers, precision="float64", backend="compiled")


def compiled_in_single(matrices, multipliers):
    return kernels.svd_mutation(matrices, multipliers, precision="float32", backend="compiled")


def by_reference(matrices, multipliers):
    return kernels.svd_mutation(matrices, multipliers, backend="reference")


def by_torch(matrices, multipliers):
    """The route of CUDA tensors too wide for the kernel; runs on any device."""
    return cuda.wide_svd_mutation(torch.from_numpy(matrices), np.asarray(multipliers, np.float32)).numpy()


def by_torch_in_single(matrices, multipliers):
    numbers = np.asarray(multipliers, np.float32)
    return cuda.wide_svd_mutation(torch.from_numpy(matrices), numbers, precision="float32").numpy()


@pytest.fixture(params=[compiled, by_reference, by_torch], ids=lambda f: f.__name__)
def mutate(request):
    return request.param


@pytest.fixture(params=[compiled_in_single, by_torch_in_single], ids=lambda f: f.__name__)
def mutate_in_single(request):
    return request.param


def with_spectrum(rng, m, n, sigma):
    """A matrix with these singular values and random singular vectors."""
    u, _ = np.linalg.qr(rng.standard_normal((m, len(sigma))))
    v, _ = np.linalg.qr(rng.standard_normal((n, len(sigma))))
    return (u * sigma) @ v.T


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_agrees_with_the_reference_on_spectra_with_gaps(rng, mutate, m, n):
    r = min(m, n)
    spectra = [np.linspace(1.0, 0.1, r), np.geomspace(1.0, 1e-4, r), 1.0 / np.arange(1, r + 1)]
    matrices = np.stack([with_spectrum(rng, m, n, sigma) for sigma in spectra]).astype(np.float32)
    w = rng.uniform(0.0, 1.5, (3, r)).astype(np.float32)
    np.testing.assert_allclose(mutate(matrices, w), by_reference(matrices, w), atol=1e-6)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_in_single_precision_the_error_stays_within_its_bound(rng, mutate_in_single, m, n):
    r = min(m, n)
    spectra = [np.linspace(1.0, 0.1, r), np.geomspace(1.0, 1e-6, r), 1.0 / np.arange(1, r + 1)]
    matrices = np.stack([with_spectrum(rng, m, n, sigma) for sigma in spectra]).astype(np.float32)
    w = rng.uniform(0.0, 0.3, (3, r)).astype(np.float32)
    error = np.linalg.norm(mutate_in_single(matrices, w) - by_reference(matrices, w), ord=2, axis=(1, 2))
    # (max w - min w) · σ₁ times some √ε; LAPACK's divide and conquer takes most of it.
    assert (error < 0.3 * 3e-3).all()


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_in_single_precision_the_laws_hold_to_its_rounding(rng, mutate_in_single, m, n):
    matrices = rng.standard_normal((3, m, n)).astype(np.float32)
    largest = np.linalg.norm(matrices, ord=2, axis=(1, 2)).max()
    constant = mutate_in_single(matrices, np.full((3, min(m, n)), -0.3))
    np.testing.assert_allclose(constant, np.float32(-0.3) * matrices, atol=3e-6 * largest)
    w = rng.uniform(0.5, 1.5, (3, min(m, n))).astype(np.float32)
    expected = np.linalg.svd(matrices.astype(np.float64), compute_uv=False) * w
    got = np.linalg.svd(mutate_in_single(matrices, w).astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(got, -np.sort(-expected, axis=1), atol=1e-5 * largest)
    np.testing.assert_array_equal(mutate_in_single(np.zeros((1, m, n), np.float32), w[:1]), 0.0)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_matrices_of_many_shapes_go_in_one_call(rng, precision):
    shapes = [(3, 5), (64, 64), (1, 1), (90, 7), (64, 64), (7, 90), (20, 500)]
    matrices = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    w = [rng.random(min(shape)) for shape in shapes]
    alone = [kernels.svd_mutation(x[None], [y], precision=precision)[0] for x, y in zip(matrices, w, strict=True)]
    for got, expected in zip(kernels.svd_mutation(matrices, w, precision=precision), alone, strict=True):
        np.testing.assert_array_equal(got, expected)
    flat = np.concatenate([matrix.ravel() for matrix in matrices])
    ends = np.cumsum([matrix.size for matrix in matrices])
    views = [flat[end - x.size : end].reshape(x.shape) for x, end in zip(matrices, ends, strict=True)]
    assert kernels.svd_mutation(views, w, precision=precision, out=views) is views  # where they lie
    np.testing.assert_array_equal(flat, np.concatenate([matrix.ravel() for matrix in alone]))


def test_a_matrix_that_even_the_reference_cannot_decompose_is_named(rng, monkeypatch):
    def refuse(*arguments, **named):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", refuse)
    with pytest.raises(KernelError, match="svd_mutation: matrix 0: SVD did not converge"):
        by_reference(rng.standard_normal((2, 3, 4)).astype(np.float32), np.ones((2, 3)))


def test_a_stack_may_be_written_over(rng):
    matrices, w = rng.standard_normal((4, 6, 9)).astype(np.float32), rng.random((4, 6))
    expected = kernels.svd_mutation(matrices, w)
    tensor = torch.from_numpy(matrices.copy())
    assert kernels.svd_mutation(tensor, w, out=tensor) is tensor
    np.testing.assert_array_equal(tensor.numpy(), expected)
    kernels.svd_mutation(matrices, w, out=matrices)
    np.testing.assert_array_equal(matrices, expected)


@pytest.mark.parametrize("shape", [(300, 300), (270, 700), (700, 270)])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_large_matrices_are_mutated_by_torch(rng, shape, precision):
    sigma = np.geomspace(1.0, 1e-3, min(shape))
    matrix = with_spectrum(rng, *shape, sigma).astype(np.float32)
    w = rng.uniform(0.0, 0.3, (1, min(shape)))
    error = kernels.svd_mutation(matrix[None], w, precision=precision) - by_reference(matrix[None], w)
    assert np.linalg.norm(error[0], ord=2) < (0.3 * 3e-3 if precision == "float32" else 1e-6)


def test_several_large_matrices_are_mutated_side_by_side_and_torch_keeps_its_threads(rng, threads):
    matrices = [rng.standard_normal(shape).astype(np.float32) for shape in ((260, 270), (30, 30), (300, 258))]
    w = [rng.random(min(matrix.shape)) for matrix in matrices]
    alone = [kernels.svd_mutation([x], [y], precision="float64")[0] for x, y in zip(matrices, w, strict=True)]
    before = torch.get_num_threads()
    for count in (1, 2):
        threads(count)
        together = kernels.svd_mutation(matrices, w, precision="float64")
        for got, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-4)  # LAPACK's bits depend on its threads
        assert torch.get_num_threads() == before


def test_float64_matrices_are_decomposed_accurately(rng):
    matrix = with_spectrum(rng, 30, 20, np.geomspace(1.0, 1e-9, 20))
    w = rng.uniform(0.0, 2.0, 20)
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    got = kernels.svd_mutation([matrix], [w])[0]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, (u * (w * sigma)) @ vt, rtol=0, atol=1e-15)


def test_a_matrix_without_convergence_is_computed_by_the_reference_and_named(rng, monkeypatch):
    matrices, w = rng.standard_normal((4, 6, 9)).astype(np.float32), rng.random((4, 6))
    expected = by_reference(matrices, w)
    monkeypatch.setattr(kernels.compiled, "svd_mutation", lambda *given, precision: [1, 3])
    with pytest.warns(RuntimeWarning, match="no convergence for matrix 1, 3; computed again by LAPACK's SVD"):
        got = kernels.svd_mutation(matrices, w, out=matrices)
    np.testing.assert_array_equal(got[[1, 3]], expected[[1, 3]])


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_a_constant_multiplier_scales_the_matrix(rng, mutate, m, n):
    matrices = rng.standard_normal((4, m, n)).astype(np.float32)
    got = mutate(matrices, np.full((4, min(m, n)), -0.3))
    np.testing.assert_allclose(got, np.float32(-0.3) * matrices, atol=2e-6)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_singular_values_are_multiplied_as_a_set(rng, mutate, m, n):
    matrices = rng.standard_normal((2, m, n)).astype(np.float32)
    w = rng.uniform(0.5, 1.5, (2, min(m, n))).astype(np.float32)
    expected = np.linalg.svd(matrices.astype(np.float64), compute_uv=False) * w
    got = np.linalg.svd(mutate(matrices, w).astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(got, -np.sort(-expected, axis=1), atol=2e-6 * expected.max())


def test_multipliers_of_zero_and_one_project_orthogonally(rng, mutate):
    matrices = rng.standard_normal((3, 40, 25)).astype(np.float32)
    w = (np.arange(25) < 10).astype(np.float32)[None].repeat(3, axis=0)
    head = mutate(matrices, w)
    tail = mutate(matrices, 1 - w)
    np.testing.assert_allclose(head + tail, matrices, atol=3e-6)
    np.testing.assert_allclose(np.einsum("bij,bkj->bik", head, tail), 0.0, atol=1e-4)  # (B, m, m)
    np.testing.assert_allclose(mutate(head, w), head, atol=3e-6)


def test_orthogonal_input_stays_orthogonal_up_to_signs(rng, mutate):
    # All singular values are equal: the basis is free, but with |w| = 1 the result must be orthogonal in any basis.
    q, _ = np.linalg.qr(rng.standard_normal((30, 30)))
    w = rng.choice([-1.0, 1.0], (1, 30))
    got = mutate(q[None].astype(np.float32), w)[0].astype(np.float64)
    np.testing.assert_allclose(got @ got.T, np.eye(30), atol=2e-6)


def test_transposing_before_or_after_is_the_same(rng, mutate):
    matrices = rng.standard_normal((3, 20, 33)).astype(np.float32)
    w = rng.random((3, 20))
    left = mutate(np.ascontiguousarray(matrices.transpose(0, 2, 1)), w)
    np.testing.assert_allclose(left.transpose(0, 2, 1), mutate(matrices, w), atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1, 7])
@pytest.mark.parametrize(("m", "n"), [(20, 30), (30, 20), (128, 128)])
def test_rank_deficient_matrices_are_harmless(rng, mutate, m, n, rank):
    matrix = with_spectrum(rng, m, n, np.linspace(2.0, 1.0, rank)) if rank else np.zeros((m, n))
    matrices = matrix.astype(np.float32)[None]
    w = rng.uniform(0.0, 2.0, (1, min(m, n)))
    np.testing.assert_allclose(mutate(matrices, w), by_reference(matrices, w), atol=2e-6)


def test_a_row_or_column_of_zeros_stays_zero(rng):
    matrices = rng.standard_normal((1, 12, 9)).astype(np.float32)
    matrices[0, 3] = 0.0
    np.testing.assert_array_equal(compiled(matrices, rng.random((1, 9)))[0, 3], 0.0)


@pytest.mark.parametrize("exponent", [-126, -60, 60, 120])
def test_powers_of_two_pass_through_exactly(rng, exponent):
    matrices = rng.standard_normal((2, 10, 6)).astype(np.float32)
    w = rng.uniform(0.5, 1.0, (2, 6))
    scaled = np.ldexp(matrices, exponent)
    np.testing.assert_allclose(compiled(scaled, w), np.ldexp(compiled(matrices, w), exponent), rtol=0, atol=2.0**-149)


def test_denormal_matrices_are_mutated(rng):
    matrices = (rng.integers(-50, 50, (1, 6, 6)) * 2.0**-149).astype(np.float32)
    np.testing.assert_array_equal(compiled(matrices, np.ones((1, 6))), matrices)


def test_the_number_of_threads_and_the_batch_do_not_change_a_bit(rng, threads):
    matrices, w = rng.standard_normal((30, 40, 25)).astype(np.float32), rng.random((30, 25))
    threads(1)
    alone = compiled(matrices, w)
    for count in (2, 5):
        threads(count)
        np.testing.assert_array_equal(compiled(matrices, w), alone)
    for b in (0, 7, 29):
        np.testing.assert_array_equal(compiled(matrices[b : b + 1], w[b : b + 1])[0], alone[b])


def test_torch_tensors_give_torch_tensors_with_the_same_bits(rng):
    matrices, w = rng.standard_normal((2, 5, 8)).astype(np.float32), rng.random((2, 5))
    tensor = torch.from_numpy(matrices.transpose(0, 2, 1).copy()).mT  # not contiguous
    got = kernels.svd_mutation(tensor, torch.from_numpy(w))
    assert isinstance(got, torch.Tensor)
    np.testing.assert_array_equal(got.numpy(), compiled_in_single(matrices, w))


def test_the_route_through_torch_names_matrices_that_are_not_finite():
    matrices = torch.ones(3, 2, 2)
    matrices[1, 0, 0] = torch.nan
    with pytest.raises(KernelError, match="NaN or infinity in matrix, or in the multipliers of matrix, 1"):
        cuda.wide_svd_mutation(matrices, np.ones((3, 2), np.float32))
