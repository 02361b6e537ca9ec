import math
import re

import ml_dtypes
import numpy as np
import pytest

from minerua.errors import CheckpointError, ConfigError
from minerua.merge.adapters.extract import EMBEDDINGS, extract
from minerua.weights import Factors, apply, open_adapter, open_checkpoint, write_checkpoint
from minerua.weights.truncation import nearest_of_rank

SHAPES = {"m.down.weight": (30, 70), "m.q.weight": (40, 40), "m.up.weight": (80, 40)}


def _random(shape, *, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _with_spectrum(shape, sigma, *, seed=0):
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.normal(size=(extent, len(sigma)))).Q for extent in shape)
    return ((left * sigma) @ right.T).astype(np.float32)


def _write(folder, name, tensors):
    write_checkpoint(folder / f"{name}.safetensors", tensors)
    return open_checkpoint(folder / f"{name}.safetensors")


def _models(folder, changes, *, base=None, dtype=np.float32):
    """Writes a base of all `SHAPES`, a norm and a bias, and a fine-tune with these changes."""
    tensors = {name: _random(shape, seed=7).astype(dtype) for name, shape in SHAPES.items()}
    tensors |= {"m.norm.weight": np.ones(4, dtype), "m.q.bias": np.zeros(40, dtype), **(base or {})}
    tuned = {
        **tensors,
        **{name: (tensors[name] + change).astype(tensors[name].dtype) for name, change in changes.items()},
    }
    return _write(folder, "base", tensors), _write(folder, "tuned", tuned)


def _pair(rank, shape, *, seed=0):
    return Factors(_random((shape[0], rank), seed=seed), _random((rank, shape[1]), seed=seed + 1))


def _share_lost(matrix, rank):
    sigma = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return (sigma[rank:] ** 2).sum() / (sigma**2).sum()


# ── the nearest matrix of a rank ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(400, 400), (700, 300), (300, 700)])
@pytest.mark.parametrize("fall", [0.3, 1.0, 3.0])
def test_a_random_krylov_space_comes_close_to_the_full_decomposition(shape, fall):
    matrix = _with_spectrum(shape, np.arange(1.0, 301) ** -fall)
    left, sigma, right = nearest_of_rank(matrix, 8)
    full = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    assert np.square(matrix - (left * sigma) @ right.T).sum() <= 1.001 * (full[8:] ** 2).sum() + 1e-9
    assert (sigma <= full[:8] * (1 + 1e-5)).all()
    for vectors in (left, right):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(8), atol=1e-5)


def test_iterations_and_oversampling_bring_it_closer():
    matrix = _random((500, 400))

    def lost(**given):
        left, sigma, right = nearest_of_rank(matrix, 8, **given)
        return np.square(matrix - (left * sigma) @ right.T).sum()

    none, some, more = (lost(iterations=number) for number in (0, 1, 4))
    assert none > some > more
    assert lost(oversampling=0, iterations=1) > lost(oversampling=30, iterations=1)


@pytest.mark.parametrize("rank", [20, 39, 40, 100])
def test_where_the_space_would_be_half_of_the_matrix_it_is_exact(rank):
    matrix = _random((60, 40))
    left, sigma, right = nearest_of_rank(matrix, rank)
    np.testing.assert_allclose(sigma, np.linalg.svd(matrix, compute_uv=False)[:rank], rtol=1e-5)
    if rank >= 40:
        np.testing.assert_allclose((left * sigma) @ right.T, matrix, atol=1e-5)


def test_the_seed_decides_what_is_drawn():
    matrix = _random((500, 400))
    one, again, other = (nearest_of_rank(matrix, 4, seed=seed, iterations=1) for seed in (1, 1, 2))
    for part, same in zip(one, again, strict=True):
        np.testing.assert_array_equal(part, same)
    assert (one[1] != other[1]).any()


def test_a_matrix_of_lower_rank_is_found_whole():
    matrix = _with_spectrum((500, 400), [5.0, 3.0, 1e-3])
    left, sigma, right = nearest_of_rank(matrix, 16)
    np.testing.assert_allclose(sigma[:3], [5, 3, 1e-3], rtol=1e-3)
    np.testing.assert_allclose((left * sigma) @ right.T, matrix, atol=1e-6)


# ── extraction ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_that_was_merged_into_its_base_is_extracted_again(tmp_path):
    pairs = {name: _pair(rank, SHAPES[name]) for name, rank in (("m.q.weight", 3), ("m.down.weight", 5))}
    base, tuned = _models(tmp_path, {name: left @ right for name, (left, right) in pairs.items()})
    found = extract(base, tuned, tmp_path / "adapter", rank=5)
    assert [(matrix.name, matrix.rank >= len(pairs[matrix.name].right)) for matrix in found.matrices] == [
        ("m.down.weight", True),
        ("m.q.weight", True),
    ]
    assert found.unchanged == ("m.up.weight",)
    assert found.left_out == {}
    assert found.lost_fraction < 1e-12
    adapter = open_adapter(tmp_path / "adapter", base)
    for name, (left, right) in pairs.items():
        np.testing.assert_allclose(np.matmul(*adapter.factors[name]), left @ right, atol=3e-6)


def test_a_large_enough_rank_gives_the_fine_tune_back(tmp_path):
    base, tuned = _models(tmp_path, {name: _random(shape) for name, shape in SHAPES.items()})
    found = extract(base, tuned, tmp_path / "adapter", rank=64)
    assert [matrix.rank for matrix in found.matrices] == [30, 40, 40]
    assert found.lost_fraction < 1e-11
    restored = apply(base, open_adapter(tmp_path / "adapter", base).factors)
    for name in tuned.specs:
        np.testing.assert_allclose(restored[name], tuned.tensor(name), atol=2e-5)


def test_what_is_lost_is_what_the_rank_must_lose(tmp_path):
    changes = {name: _random(shape) for name, shape in SHAPES.items()}
    base, tuned = _models(tmp_path, changes)
    found = extract(base, tuned, tmp_path / "adapter", rank=6)
    for matrix in found.matrices:
        change = tuned.tensor(matrix.name) - base.tensor(matrix.name)
        assert matrix.rank == 6
        assert matrix.norm == pytest.approx(np.linalg.norm(change), rel=1e-6)
        assert matrix.lost_fraction == pytest.approx(_share_lost(change, 6), rel=1e-3)
        assert matrix.error_bound == pytest.approx(math.sqrt(_share_lost(change, 6)) * matrix.norm, rel=1e-3)
    norms = {matrix.name: matrix.norm**2 for matrix in found.matrices}
    lost = sum(norms[name] * _share_lost(tuned.tensor(name) - base.tensor(name), 6) for name in norms)
    assert found.lost_fraction == pytest.approx(lost / sum(norms.values()), rel=1e-3)


def test_the_lost_fraction_is_that_of_the_file_that_was_written(tmp_path):
    base, tuned = _models(tmp_path, {"m.up.weight": _random((80, 40))})
    (matrix,) = extract(base, tuned, tmp_path / "adapter", rank=3).matrices
    change = tuned.tensor("m.up.weight").astype(np.float64) - base.tensor("m.up.weight")
    rest = change - np.matmul(*open_adapter(tmp_path / "adapter", base).factors["m.up.weight"])
    assert matrix.lost_fraction == pytest.approx((rest**2).sum() / (change**2).sum(), rel=1e-5)


def test_energy_takes_the_least_rank_that_is_enough(tmp_path):
    spectra = {"m.q.weight": [3.0, 2, 1], "m.up.weight": [1.0, 1, 1], "m.down.weight": [9.0, 1e-2, 1e-2]}
    base, tuned = _models(tmp_path, {name: _with_spectrum(SHAPES[name], s) for name, s in spectra.items()})
    found = extract(base, tuned, tmp_path / "some", rank=8, energy=0.9)
    assert {matrix.name: matrix.rank for matrix in found.matrices} == {
        "m.down.weight": 1,
        "m.q.weight": 2,
        "m.up.weight": 3,
    }
    assert all(matrix.lost_fraction <= 0.1 for matrix in found.matrices)
    capped = extract(base, tuned, tmp_path / "capped", rank=1, energy=0.9)
    assert [matrix.rank for matrix in capped.matrices] == [1, 1, 1]


def test_epsilon_leaves_small_singular_values_out(tmp_path):
    changes = {
        "m.q.weight": _with_spectrum((40, 40), [3.0, 2, 0.5]),
        "m.up.weight": _with_spectrum((80, 40), [0.5, 0.1]),
    }
    base, tuned = _models(tmp_path, changes)
    found = extract(base, tuned, tmp_path / "adapter", rank=8, epsilon=1.0)
    assert [(matrix.name, matrix.rank) for matrix in found.matrices] == [("m.q.weight", 2), ("m.up.weight", 0)]
    assert found.matrices[1].lost_fraction == 1
    assert list(open_adapter(tmp_path / "adapter", base).factors) == ["m.q.weight"]
    with pytest.raises(CheckpointError) as caught:
        extract(base, tuned, tmp_path / "none", epsilon=10.0)
    assert caught.value.faults == ("no singular value of the 2 changed matrices is above epsilon 10.0; lower it",)


def test_a_checkpoint_in_bfloat16_is_extracted_as_its_numbers_are(tmp_path):
    base, tuned = _models(tmp_path, {"m.q.weight": _random((40, 40))}, dtype=ml_dtypes.bfloat16)
    extract(base, tuned, tmp_path / "adapter", rank=40)
    restored = apply(base, open_adapter(tmp_path / "adapter", base).factors)
    np.testing.assert_array_equal(restored["m.q.weight"], tuned.tensor("m.q.weight"))


def test_the_same_extraction_writes_the_same_bytes(tmp_path):
    base, tuned = _models(tmp_path, {"m.q.weight": _random((40, 40)), "m.up.weight": _random((80, 40))})
    for name in ("one", "two"):
        extract(base, tuned, tmp_path / name, rank=2, seed=5)
    extract(base, tuned, tmp_path / "part", rank=2, seed=5, include=["q$"])
    one, two = (tmp_path / name / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    whole, part = (open_adapter(tmp_path / name, base).factors["m.q.weight"] for name in ("one", "part"))
    np.testing.assert_array_equal(whole.left, part.left)


def test_each_matrix_is_told_of_when_it_is_done(tmp_path):
    base, tuned = _models(tmp_path, {"m.q.weight": _random((40, 40)), "m.up.weight": _random((80, 40))})
    told = []
    found = extract(base, tuned, tmp_path / "adapter", on_matrix=told.append)
    assert tuple(told) == found.matrices


def test_a_base_that_stores_its_weights_transposed_gets_its_factors_so(tmp_path):
    base, tuned = _models(tmp_path, {"m.up.weight": _random((80, 40))})
    extract(base, tuned, tmp_path / "adapter", rank=40, fan_in_fan_out=True, base_name="gpt2")
    written = open_checkpoint(tmp_path / "adapter" / "adapter_model.safetensors")
    assert written.specs["base_model.model.m.up.lora_A.weight"].shape == (40, 80)
    adapter = open_adapter(tmp_path / "adapter", base)
    assert adapter.config["base_model_name_or_path"] == "gpt2"
    restored = apply(base, adapter.factors)
    np.testing.assert_allclose(restored["m.up.weight"], tuned.tensor("m.up.weight"), atol=2e-5)


# ── what an adapter cannot hold ──────────────────────────────────────────────────────────────────────────────────────

UNDECOMPOSABLE = {
    "m.norm.weight": (np.ones(4, np.float32), "its shape is [4], and factors make matrices"),
    "m.q.bias": (np.zeros(40, np.float32), "its shape is [40], and factors make matrices"),
    "m.conv.weight": (np.zeros((2, 2, 2, 2), np.float32), "its shape is [2, 2, 2, 2], and factors make matrices"),
    "m.table": (np.zeros((3, 3), np.float32), "its name does not end in .weight, as those of linear layers do"),
    "m.embed_tokens.weight": (np.zeros((9, 3), np.float32), "it is an embedding by its name"),
    "m.count.weight": (np.zeros((3, 3), np.int64), "its dtype is int64, the base's int64, not both real numbers"),
}


@pytest.mark.parametrize("name", sorted(UNDECOMPOSABLE))
def test_a_change_that_an_adapter_cannot_hold_is_refused_or_skipped(tmp_path, name):
    array, reason = UNDECOMPOSABLE[name]
    changes = {"m.q.weight": _random((40, 40)), name: np.ones_like(array)}
    base, tuned = _models(tmp_path, changes, base={name: array})
    with pytest.raises(CheckpointError, match="cannot be extracted as an adapter for") as caught:
        extract(base, tuned, tmp_path / "adapter")
    (fault,) = caught.value.faults
    assert fault.startswith(f"tensor {name!r} has changed and an adapter cannot hold it: {reason}; exclude it, or skip")
    assert not (tmp_path / "adapter").exists()
    skipped = extract(base, tuned, tmp_path / "adapter", skip_undecomposable=True)
    assert skipped.left_out == {name: reason}
    excluded = extract(base, tuned, tmp_path / "other", exclude=[re.escape(name.removesuffix(".weight"))])
    assert list(excluded.left_out) == [name]
    assert excluded.left_out[name].startswith("excluded by 'm")


def test_what_cannot_be_held_and_has_not_changed_does_not_matter(tmp_path):
    base = {name: array for name, (array, _) in UNDECOMPOSABLE.items()}
    checkpoints = _models(tmp_path, {"m.q.weight": _random((40, 40))}, base=base)
    assert extract(*checkpoints, tmp_path / "adapter").left_out == {}


def test_tensors_that_only_one_model_has_or_of_another_shape_are_refused_or_skipped(tmp_path):
    base = _write(
        tmp_path, "base", {"q.weight": _random((4, 3)), "old.weight": _random((2, 2)), "w.weight": _random((3, 3))}
    )
    tuned = _write(
        tmp_path,
        "tuned",
        {"q.weight": _random((4, 3), seed=1), "new.weight": _random((2, 2)), "w.weight": _random((5, 3))},
    )
    with pytest.raises(CheckpointError) as caught:
        extract(base, tuned, tmp_path / "adapter")
    assert len(caught.value.faults) == 3
    assert extract(base, tuned, tmp_path / "adapter", skip_undecomposable=True).left_out == {
        "new.weight": "the base has no such tensor",
        "old.weight": "the fine-tune has no such tensor",
        "w.weight": "its shape is [5, 3], the base's [3, 3]",
    }


def test_only_what_is_included_is_extracted(tmp_path):
    base, tuned = _models(tmp_path, {name: _random(shape) for name, shape in SHAPES.items()})
    found = extract(base, tuned, tmp_path / "adapter", include=[r"\.up$", r"\.down$"], exclude=["down"])
    assert [matrix.name for matrix in found.matrices] == ["m.up.weight"]
    assert found.left_out == {
        "m.down.weight": "excluded by 'down'",
        "m.q.weight": "not among what is included",
    }


@pytest.mark.parametrize(
    "module",
    [
        "model.embed_tokens",
        "transformer.wte",
        "transformer.wpe",
        "bert.embeddings.word_embeddings",
        "shared",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "model.decoder.embed_positions",
    ],
)
def test_embeddings_are_known_by_their_names(module):
    assert re.search(EMBEDDINGS, module)


@pytest.mark.parametrize("module", ["lm_head", "model.layers.0.mlp.shared_expert.up_proj", "embed.proj", "model.q"])
def test_other_layers_are_no_embeddings(module):
    assert not re.search(EMBEDDINGS, module)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_models_are_refused(tmp_path):
    base, tuned = _models(tmp_path, {})
    with pytest.raises(CheckpointError, match="has nothing to extract") as caught:
        extract(base, tuned, tmp_path / "adapter")
    assert caught.value.faults == ("all 3 matrices that were looked at equal the base's: these are one model",)
    with pytest.raises(CheckpointError) as caught:
        extract(base, tuned, tmp_path / "adapter", include=["nothing"])
    assert caught.value.faults[0].endswith("ends in .weight is left to look at; widen what is included")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    change = _random((40, 40))
    change[3, 4] = np.nan
    base, tuned = _models(tmp_path, {"m.q.weight": change, "m.norm.weight": np.ones(4, np.float32)})
    with pytest.raises(CheckpointError) as caught:
        extract(base, tuned, tmp_path / "adapter")
    assert caught.value.faults[0].startswith("fine-tune: tensor 'm.q.weight': 1 of 1600 numbers are NaN or infinite")
    assert len(caught.value.faults) == 2
    with pytest.raises(CheckpointError) as caught:
        extract(tuned, base, tmp_path / "adapter")
    assert caught.value.faults[0].startswith("base: tensor 'm.q.weight'")


def test_a_change_beyond_float32_is_refused(tmp_path):
    base = _write(tmp_path, "base", {"q.weight": np.full((2, 2), 3e38, np.float32)})
    tuned = _write(tmp_path, "tuned", {"q.weight": np.full((2, 2), -3e38, np.float32)})
    with pytest.raises(CheckpointError) as caught:
        extract(base, tuned, tmp_path / "adapter")
    assert caught.value.faults == ("tensor 'q.weight': its change overflows float32",)


def test_all_faults_of_the_settings_are_reported_at_once(tmp_path):
    base, tuned = _models(tmp_path, {"m.q.weight": _random((40, 40))})
    with pytest.raises(ConfigError, match="an adapter cannot be extracted with these settings") as caught:
        extract(
            base,
            tuned,
            tmp_path / "adapter",
            rank=0,
            energy=1.5,
            epsilon=math.nan,
            seed=-1,
            oversampling=-2,
            iterations=-3,
            include=["a("],
            exclude=["[b"],
            embeddings="*",
        )
    assert caught.value.faults[:6] == (
        "rank is 0; factors have at least 1",
        "energy is 1.5; it is a share, above 0 and up to 1",
        "epsilon is nan; singular values are not negative",
        "seed is -1; it counts from 0",
        "oversampling is -2; it counts from 0",
        "iterations is -3; it counts from 0",
    )
    starts = ["include: 'a('", "exclude: '[b'", "embeddings: '*'"]
    for fault, start in zip(caught.value.faults[6:], starts, strict=True):
        assert fault.startswith(f"{start} is no regular expression that can be searched for: ")


# ── PEFT ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_peft_reads_an_extracted_adapter_and_merges_it_to_the_same_model(tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.down = torch.nn.Linear(70, 30, bias=False)
            self.q = torch.nn.Linear(40, 40)
            self.up = torch.nn.Linear(40, 80, bias=False)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = Layers()

    model = Model()
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    change = {
        "m.down.weight": _with_spectrum((30, 70), [3.0, 2, 1]),
        "m.q.weight": _random((40, 40)),
        "m.up.weight": _with_spectrum((80, 40), [1.0]),
    }
    base = _write(tmp_path, "base", tensors)
    tuned = _write(tmp_path, "tuned", {**tensors, **{name: tensors[name] + delta for name, delta in change.items()}})
    found = extract(base, tuned, tmp_path / "adapter", rank=4, energy=0.9999)
    assert [matrix.rank for matrix in found.matrices] == [3, 4, 1]  # of different ranks, as rank_pattern says
    merged = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).merge_and_unload()
    ours = apply(base, open_adapter(tmp_path / "adapter", base).factors)
    for name, tensor in merged.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), ours[name], atol=1e-6)
    exact = tuned.tensor("m.down.weight")
    np.testing.assert_allclose(ours["m.down.weight"], exact, atol=1e-5)
