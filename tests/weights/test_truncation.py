import math

import ml_dtypes
import numpy as np
import pytest

from minerua.errors import CheckpointError, ConfigError
from minerua.weights import (
    Core,
    Factors,
    Subspace,
    TaskVector,
    apply,
    dense,
    open_checkpoint,
    open_expert,
    truncated,
    truncation,
    write_checkpoint,
)
from minerua.weights.truncation import leading, nearest_of_rank, squared_norm

from ..worlds import MATRICES, SMALL, base_tensors, low_rank, tuned_tensors, write_lora, write_model

SHAPES = {"embed_tokens.weight": (90, 20), "layer.weight": (40, 60), "lm_head.weight": (90, 20), "norm.weight": (20,)}


def _falling(shape, *, seed, power=1.0):
    """Returns a matrix whose singular values are 1, 2⁻ᵖ, 3⁻ᵖ, …"""
    generator = np.random.default_rng(seed)
    rank = min(shape)
    left, right = (np.linalg.qr(generator.normal(size=(extent, rank))).Q for extent in shape)
    return (left * np.arange(1, rank + 1.0) ** -power) @ right.T


@pytest.fixture
def models(tmp_path):
    """A base and a fine-tune, with embeddings and a head, in bfloat16."""
    generator = np.random.default_rng(0)
    base = {name: generator.normal(size=shape) for name, shape in SHAPES.items()}
    changes = {n: _falling(s, seed=k) if len(s) == 2 else np.ones(s) for k, (n, s) in enumerate(SHAPES.items())}
    for name, tensors in (("base", base), ("tuned", {n: base[n] + changes[n] for n in SHAPES})):
        cast = {n: tensor.astype(ml_dtypes.bfloat16) for n, tensor in tensors.items()}
        write_checkpoint(tmp_path / f"{name}.safetensors", cast)
    return open_checkpoint(tmp_path / "base.safetensors"), open_checkpoint(tmp_path / "tuned.safetensors")


def _change(models, name):
    base, tuned = (model.tensor(name).astype(np.float64) for model in models)
    return tuned - base


@pytest.mark.parametrize("rank", [1, 5, 19])
def test_every_matrix_is_the_nearest_of_its_rank_and_the_share_left_out_is_reported(models, rank):
    vector = truncated(models[1], models[0], rank=rank)
    lost = total = 0.0
    for matrix in vector.report().matrices:
        change = _change(models, matrix.name)
        sigma = np.linalg.svd(change, compute_uv=False)
        assert isinstance(vector[matrix.name], Factors)
        assert (matrix.shape, matrix.rank) == (SHAPES[matrix.name], rank)
        assert matrix.squared_norm == pytest.approx((sigma**2).sum(), rel=1e-6)
        assert matrix.lost_fraction == pytest.approx((sigma[rank:] ** 2).sum() / (sigma**2).sum(), rel=1e-3, abs=1e-9)
        left_out = ((dense(vector[matrix.name]) - change) ** 2).sum()
        assert matrix.lost_fraction == pytest.approx(left_out / (sigma**2).sum(), rel=1e-4, abs=1e-9)
        lost, total = lost + left_out, total + (sigma**2).sum()
    assert [matrix.name for matrix in vector.report().matrices] == [n for n in SHAPES if len(SHAPES[n]) == 2]
    assert vector.report().lost_fraction == pytest.approx(lost / total, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_an_energy_is_kept_by_the_least_rank_that_can(models, energy):
    vector = truncated(models[1], models[0], energy=energy)
    for matrix in vector.report().matrices:
        shares = np.cumsum(np.linalg.svd(_change(models, matrix.name), compute_uv=False) ** 2)
        least = int((shares < energy * shares[-1]).sum()) + 1
        assert matrix.rank == least
        assert matrix.lost_fraction <= 1 - energy + 1e-6


def test_rank_bounds_what_an_energy_asks_for(models):
    ranks = {m.name: m.rank for m in truncated(models[1], models[0], rank=3, energy=0.999).report().matrices}
    assert set(ranks.values()) == {3}


def test_small_tensors_and_matrices_of_which_all_is_kept_stay_as_they_are(models):
    vector = truncated(models[1], models[0], rank=40)
    for name in SHAPES:
        assert isinstance(vector[name], np.ndarray)
        np.testing.assert_allclose(vector[name], _change(models, name), atol=1e-6)
    assert vector.report().lost_fraction == 0
    assert list(truncated(models[1], models[0], rank=1)) == list(models[0].specs)


def test_the_search_for_an_energy_goes_on_to_larger_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(truncation, "_FIRST_RANK", 3)
    change = _falling((400, 300), seed=0, power=0.5).astype(np.float32)
    write_checkpoint(tmp_path / "base.safetensors", {"w": np.zeros_like(change)})
    base = open_checkpoint(tmp_path / "base.safetensors")
    vector = truncated(TaskVector("v", {"w": change}), base, energy=0.45)
    shares = np.cumsum(np.linalg.svd(change, compute_uv=False) ** 2)
    least = int((shares < 0.45 * shares[-1]).sum()) + 1
    assert 6 < least <= 12
    (matrix,) = vector.report().matrices
    assert least <= matrix.rank <= least + 2
    assert matrix.lost_fraction == pytest.approx(0.55, abs=0.02)


def test_a_seed_determines_the_factors(tmp_path):
    change = _falling((300, 250), seed=0, power=0.5).astype(np.float32)
    write_checkpoint(tmp_path / "base.safetensors", {"w": np.zeros_like(change)})
    base = open_checkpoint(tmp_path / "base.safetensors")
    vectors = [truncated(TaskVector("v", {"w": change}), base, rank=8, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (vector["w"].left.tobytes() for vector in vectors)
    assert one == again != other
    assert vectors[0].digest == vectors[1].digest != vectors[2].digest
    assert len(bytes.fromhex(vectors[0].digest)) == 16


def test_an_adapter_is_truncated_without_its_product(models):
    base, name = models[0], "layer.weight"
    pair = low_rank(SHAPES[name], 6, seed=0)
    vector = truncated(TaskVector("lora", {name: pair}), base, rank=2)
    sigma = np.linalg.svd(dense(pair).astype(np.float64), compute_uv=False)
    rest = np.linalg.norm(dense(vector[name]) - dense(pair))
    assert rest == pytest.approx(np.sqrt((sigma[2:] ** 2).sum()), rel=1e-4)
    (matrix,) = vector.report().matrices
    assert (matrix.rank, matrix.shape) == (2, SHAPES[name])
    assert matrix.lost_fraction == pytest.approx((sigma[2:] ** 2).sum() / (sigma**2).sum(), rel=1e-5)
    assert truncated(TaskVector("lora", {name: pair}), base, rank=6)[name] is pair


def test_nothing_is_computed_before_it_is_asked_for(models):
    asked = []

    class Watched(TaskVector):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    whole = open_expert("tuned", models[1].path, models[0]).task_vector
    vector = truncated(Watched("v", whole), models[0], rank=2)
    assert asked == []
    assert isinstance(vector["layer.weight"], Factors)
    assert asked == ["layer.weight"]
    assert len(vector.report().matrices) == 3
    assert sorted(asked) == ["embed_tokens.weight", "layer.weight", "lm_head.weight"]


def test_truncated_fine_tunes_span_a_small_subspace_in_which_they_lie(models):
    base, tuned = models
    vectors = {"a": truncated(tuned, base, rank=3), "b": truncated(tuned, base, rank=2, seed=1)}
    subspace = Subspace(base, vectors)
    cores = {segment.name: segment for segment in subspace.segments if isinstance(segment, Core)}
    assert set(cores) == {name for name, shape in SHAPES.items() if len(shape) == 2}
    assert all(max(core.shape) <= 5 for core in cores.values())
    for name, vector in vectors.items():
        found = subspace.task_vector(subspace.founders[name])
        for tensor in SHAPES:
            np.testing.assert_allclose(found[tensor], dense(vector[tensor]), atol=2e-6)


def test_tensors_of_more_axes_and_equal_matrices_are_left_alone(tmp_path):
    base = open_checkpoint(write_model(tmp_path / "base", base_tensors()))
    tuned = open_checkpoint(write_model(tmp_path / "tuned", tuned_tensors(base_tensors(), seed=0)))
    vector = truncated(tuned, base, rank=2)
    assert vector["conv.weight"].shape == (4, 3, 2, 2)
    assert not vector["untouched.weight"].any()
    found = {matrix.name: matrix for matrix in vector.report().matrices}
    assert (found["untouched.weight"].rank, found["untouched.weight"].lost_fraction) == (0, 0.0)
    child = apply(base, vector)
    assert {name for name in child if not np.array_equal(child[name], base.tensor(name))} == {*MATRICES, *SMALL}


def test_settings_out_of_range_are_told_at_once(models):
    with pytest.raises(ConfigError, match="a task vector cannot be truncated with these settings") as caught:
        truncated(models[1], models[0], rank=0, energy=1.5, seed=-1)
    assert caught.value.faults == (
        "rank is 0; factors have at least 1",
        "energy is 1.5; it is a share, above 0 and up to 1",
        "seed is -1; it counts from 0",
    )
    with pytest.raises(ConfigError, match="neither rank nor energy is given; name one of them, or both"):
        truncated(models[1], models[0])
    with pytest.raises(
        ConfigError, match=r"rank is 41, and the largest matrix, 'layer.weight', is \[40, 60\]: no matr"
    ):
        truncated(models[1], models[0], rank=41)


def test_a_fine_tune_that_does_not_fit_is_refused(models, tmp_path):
    other = open_checkpoint(write_model(tmp_path / "other", {"w": np.zeros((2, 2), np.float32)}))
    with pytest.raises(CheckpointError, match=r"the expert 'the expert' at .*other does not fit the base") as caught:
        truncated(other, models[0], rank=1)
    assert "the expert has tensor 'w' of shape [2, 2], which the base lacks" in caught.value.faults


def test_what_is_not_finite_is_left_for_the_subspace_to_name(models):
    change = np.zeros(SHAPES["layer.weight"], np.float32)
    change[3, 4] = np.nan
    vector = truncated(TaskVector("v", {"layer.weight": change}), models[0], rank=2)
    with pytest.raises(CheckpointError, match=r"founder 'v': tensor 'layer.weight': 1 of 2400 numbers are NaN"):
        Subspace(models[0], {"v": vector})


def test_an_adapter_may_be_truncated_to_an_energy(tmp_path):
    base = open_checkpoint(write_model(tmp_path / "base", base_tensors()))
    expert = open_expert("e", write_lora(tmp_path / "e", {"body.weight": 3}, seed=0), base)
    vector = truncated(expert.task_vector, base, energy=0.6)
    (matrix,) = vector.report().matrices
    assert 0 < matrix.lost_fraction <= 0.4
    assert vector["body.weight"].left.shape[1] == matrix.rank < 3


@pytest.mark.parametrize("shape", [(50, 30), (30, 50), (160, 140)])
def test_leading_triplets_are_those_of_a_full_decomposition(shape):
    matrix = _falling(shape, seed=1).astype(np.float32)
    U, sigma, V = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    for left, found, right in (leading(matrix, 4), nearest_of_rank(matrix, 4)):
        np.testing.assert_allclose(found, sigma[:4], rtol=1e-4)
        np.testing.assert_allclose((left * found) @ right.T, (U[:, :4] * sigma[:4]) @ V[:4], atol=2e-3)
    assert squared_norm(matrix) == pytest.approx(math.fsum(sigma**2), rel=1e-5)
    assert len(leading(np.diag([3.0, 1, 0]), 3)[1]) == 2
    assert leading(np.diag([3.0, 2, 1]), 3, noise=1.5)[1].tolist() == pytest.approx([3, 2])
