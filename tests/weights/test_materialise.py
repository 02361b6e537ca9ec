import base64
import importlib
import json

import ml_dtypes
import numpy as np
import pytest

from minerua.errors import CheckpointError, StorageError
from minerua.values import Genome
from minerua.weights import (
    Factors,
    Mix,
    Subspace,
    TaskVector,
    apply,
    changes_of,
    dense,
    materialise,
    open_adapter,
    open_checkpoint,
    open_expert,
    read_genome,
    save_adapter,
    save_child,
    write_checkpoint,
)
from minerua.weights.materialise import GENOME_KEY

from ..worlds import COUNTER, DTYPES, LINEAR, SHAPES, base_tensors, low_rank, tuned_tensors, write_lora, write_model

MANTISSA_BITS = {"float32": 23, "float16": 10, "bfloat16": 7}
LEAST_EXPONENT = {"float32": -126, "float16": -14, "bfloat16": -126}


def _world(folder, kind="full", dtype="float32", count=3):
    """Returns a subspace of `count` experts of a kind, and their task vectors."""
    base = open_checkpoint(write_model(folder / "base", base_tensors(dtype=dtype)))
    vectors = {}
    for k in range(count):
        path = folder / f"expert-{k}"
        if kind == "full" or (kind == "mixed" and not k % 2):
            write_model(path, tuned_tensors(base_tensors(dtype=dtype), seed=k))
        else:
            write_lora(path, {"body.weight": 1 + k % 2, "head.weight": 1}, seed=10 * k)
        vectors[path.name] = open_expert(path.name, path, base).task_vector
    return Subspace(base, vectors), vectors


def _child(subspace, *, seed=0):
    founders = list(subspace.founders.values())
    return subspace.combine(founders, np.random.default_rng(seed).normal(1, 0.5, (1, len(founders))))


def _half_ulp(values, dtype):
    exponents = np.floor(np.log2(np.maximum(np.abs(values), 2.0 ** LEAST_EXPONENT[dtype])))
    return 2.0 ** (exponents - MANTISSA_BITS[dtype] - 1)


# ── in memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["full", "lora", "mixed"])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_child_is_rounded_once(tmp_path, kind, dtype):
    subspace, vectors = _world(tmp_path, kind, dtype)
    weights = np.random.default_rng(1).normal(1, 0.5, len(vectors))
    tensors = materialise(subspace, subspace.combine(list(subspace.founders.values()), weights[None])).tensors
    for name in SHAPES:
        changes = [w * dense(v[name]) for w, v in zip(weights, vectors.values(), strict=True) if name in v]
        exact = subspace.base.tensor(name).astype(np.float64) + sum(changes)
        assert tensors[name].dtype == DTYPES[dtype]
        error = np.abs(tensors[name].astype(np.float64) - exact)
        assert (error <= _half_ulp(exact, dtype) * 1.0001 + 2e-6).all()


def test_unchanged_tensors_are_borrowed_and_counters_kept(tmp_path):
    subspace, _ = _world(tmp_path)
    tensors = materialise(subspace, _child(subspace)).tensors
    assert list(tensors) == list(subspace.base.specs)
    for name in ("untouched.weight", COUNTER):
        assert np.shares_memory(tensors[name], subspace.base.tensor(name))
    assert tensors[COUNTER].tolist() == [0, 1, 2]
    assert tensors[COUNTER].dtype == np.int64


def test_the_zero_genome_is_the_base_to_the_bit(tmp_path):
    subspace, _ = _world(tmp_path, dtype="bfloat16")
    for name, tensor in materialise(subspace, subspace.zero()).tensors.items():
        np.testing.assert_array_equal(tensor, subspace.base.tensor(name))


def test_a_child_has_the_genome_s_name_and_cannot_be_changed(tmp_path):
    subspace, _ = _world(tmp_path)
    child = materialise(subspace, _child(subspace))
    assert child.digest == _child(subspace).digest
    for tensor in child.tensors.values():
        assert isinstance(tensor, np.ndarray)  # numpy would turn a scalar's sum into a number
        assert not tensor.flags.writeable


def test_a_base_in_double_precision_stays_in_double_precision(tmp_path):
    base = open_checkpoint(write_model(tmp_path / "base", {"w": np.full((2, 2), 1 / 3)}))
    one = Factors(np.ones((2, 1), np.float32), np.full((1, 2), 0.5, np.float32))
    (child,) = apply(base, {"w": one}).values()
    assert child.dtype == np.float64
    assert (child == 1 / 3 + 0.5).all()


def test_a_child_too_large_for_its_dtype_is_infinite_without_a_warning(tmp_path):
    base = open_checkpoint(write_model(tmp_path / "base", {"w": np.full((2, 2), 6e4, np.float16)}))
    (child,) = apply(base, {"w": np.full((2, 2), 1e4, np.float32)}).values()
    assert np.isinf(child).all()


@pytest.mark.parametrize("kind", ["full", "lora", "mixed"])
def test_the_changes_of_a_child_are_what_it_adds_to_the_base(tmp_path, kind):
    subspace, _ = _world(tmp_path, kind)
    genome = _child(subspace)
    changes = changes_of(subspace, genome)
    for name, tensor in materialise(subspace, genome).tensors.items():
        change = changes.get(name)
        if change is None:
            assert tensor is subspace.base.tensor(name) or (tensor == subspace.base.tensor(name)).all()
            continue
        added = change.core if change.left is None else change.left @ change.core
        added = added if change.right is None else added @ change.right.T
        np.testing.assert_allclose(subspace.base.tensor(name) + added, tensor, rtol=0, atol=2e-6)


def test_children_share_their_bases_and_nothing_else(tmp_path):
    subspace, _ = _world(tmp_path, "lora")
    one, other = (changes_of(subspace, _child(subspace, seed=seed)) for seed in (1, 2))
    assert one.keys() == other.keys()
    assert all(one[name].left is other[name].left and one[name].right is other[name].right for name in one)
    assert any((one[name].core != other[name].core).any() for name in one)


def test_genomes_of_another_subspace_are_refused_everywhere(tmp_path):
    subspace, _ = _world(tmp_path)
    stranger = Genome("elsewhere", np.zeros(subspace.size, np.float32))
    writing = (lambda s, g: save_child(tmp_path / "x", s, g), lambda s, g: save_adapter(tmp_path, s, g))
    for use in (materialise, changes_of, *writing):
        with pytest.raises(CheckpointError, match="genomes of another subspace cannot be used here"):
            use(subspace, stranger)
    assert not (tmp_path / "x").exists()


# ── a checkpoint on disk ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_saved_child_holds_its_weights_and_its_genome(tmp_path, dtype):
    subspace, _ = _world(tmp_path, "mixed", dtype)
    genome = _child(subspace)
    save_child(tmp_path / "child.safetensors", subspace, genome, history={"parents": [1, 2]})
    opened = open_checkpoint(tmp_path / "child.safetensors")
    for name, tensor in materialise(subspace, genome).tensors.items():
        np.testing.assert_array_equal(opened.tensor(name), tensor)
        assert opened.tensor(name).dtype == tensor.dtype
    found = read_genome(opened)
    assert (found.digest, found.subspace) == (genome.digest, subspace.digest)
    np.testing.assert_array_equal(found.values, genome.values)
    assert materialise(subspace, found).digest == genome.digest
    record = json.loads(opened.metadata[GENOME_KEY])
    assert record["base"] == subspace.base.digest
    assert record["history"] == {"parents": [1, 2]}


def test_a_child_keeps_its_base_s_metadata(tmp_path):
    (tmp_path / "base").mkdir()
    write_checkpoint(tmp_path / "base" / "model.safetensors", base_tensors(), metadata={"licence": "free"})
    base = open_checkpoint(tmp_path / "base")
    write_model(tmp_path / "e", tuned_tensors(base_tensors(), seed=0))
    subspace = Subspace(base, {"e": open_expert("e", tmp_path / "e", base).task_vector})
    save_child(tmp_path / "child.safetensors", subspace, subspace.zero())
    assert open_checkpoint(tmp_path / "child.safetensors").metadata["licence"] == "free"


def test_saving_twice_writes_the_same_bytes(tmp_path):
    subspace, _ = _world(tmp_path)
    for name in ("one", "two"):
        save_child(tmp_path / f"{name}.safetensors", subspace, _child(subspace), history={"run": "r"})
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_a_child_that_cannot_be_written_leaves_nothing(tmp_path):
    subspace, _ = _world(tmp_path)
    with pytest.raises(StorageError, match="create the folder first"):
        save_child(tmp_path / "no" / "child.safetensors", subspace, _child(subspace))
    assert not (tmp_path / "no").exists()


def test_of_a_large_genome_only_the_name_is_written(tmp_path, monkeypatch):
    module = importlib.import_module("minerua.weights.materialise")  # its name in the package is the function's
    monkeypatch.setattr(module, "LARGEST_EMBEDDED_BYTES", 8)
    subspace, _ = _world(tmp_path)
    save_child(tmp_path / "child.safetensors", subspace, _child(subspace))
    opened = open_checkpoint(tmp_path / "child.safetensors")
    assert json.loads(opened.metadata[GENOME_KEY])["digest"] == _child(subspace).digest
    with pytest.raises(CheckpointError, match=r"carries no genome .* too large, so only its name was written"):
        read_genome(opened)


def _tampered(folder, change):
    """Returns a checkpoint whose genome record went through `change`."""
    values = np.arange(3, dtype=np.float32)
    genome = Genome("s", values)
    encoded = base64.b64encode(values.tobytes()).decode()
    record = {"digest": genome.digest, "subspace": "s", "base": "b", "values": encoded, "history": {}}
    folder.mkdir(exist_ok=True)
    write_checkpoint(folder / "model.safetensors", {"w": np.zeros(1)}, metadata={GENOME_KEY: change(record)})
    return open_checkpoint(folder)


def test_an_intact_genome_is_read(tmp_path):
    assert read_genome(_tampered(tmp_path, json.dumps)).values.tolist() == [0, 1, 2]


OTHER_VALUES = base64.b64encode(np.float32([0, 1, 3]).tobytes()).decode()


@pytest.mark.parametrize("key", ["values", "subspace", "digest"])
def test_an_altered_genome_is_refused(tmp_path, key):
    altered = _tampered(tmp_path, lambda record: json.dumps({**record, key: OTHER_VALUES}))
    with pytest.raises(CheckpointError, match=r"the genome in .* is \w{32} and is said to be .*: it was altered"):
        read_genome(altered)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: "no json",
        lambda record: "[1, 2]",
        lambda record: "3",
        lambda record: "[" * 100_000,
        lambda record: json.dumps({**record, "values": "no base64!"}),
        lambda record: json.dumps({**record, "values": 7}),
        lambda record: json.dumps({**record, "values": "AAAA"}),  # three bytes are no float32
        lambda record: json.dumps({**record, "subspace": 7}),
        lambda record: json.dumps({key: record[key] for key in record if key != "subspace"}),
        lambda record: json.dumps({key: record[key] for key in record if key != "digest"}),
    ],
)
def test_a_genome_that_cannot_be_read_is_refused(tmp_path, change):
    with pytest.raises(CheckpointError, match="carries no genome that can be read"):
        read_genome(_tampered(tmp_path, change))


def test_a_checkpoint_without_a_genome_says_so(tmp_path):
    opened = open_checkpoint(write_model(tmp_path / "base", base_tensors()))
    with pytest.raises(CheckpointError, match=f"carries no genome that can be read: KeyError.*{GENOME_KEY}"):
        read_genome(opened)


# ── an adapter on disk ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_a_child_of_adapters_is_an_adapter_that_opens_to_the_same_task_vector(tmp_path, seed):
    subspace, _ = _world(tmp_path, "lora")
    genome = _child(subspace, seed=seed)
    assert save_adapter(tmp_path / "child", subspace, genome) == 0.0
    adapter = open_adapter(tmp_path / "child", subspace.base)
    assert sorted(adapter.factors) == sorted(LINEAR)
    for name, change in subspace.task_vector(genome).items():
        np.testing.assert_allclose(dense(adapter.factors[name]), change, rtol=0, atol=2e-6)


def test_a_child_of_full_fine_tunes_is_an_adapter_where_only_matrices_changed(tmp_path):
    base = open_checkpoint(write_model(tmp_path / "base", base_tensors(dtype="bfloat16")))
    write_model(tmp_path / "e", tuned_tensors(base_tensors(dtype="bfloat16"), seed=0, names=LINEAR))
    subspace = Subspace(base, {"e": open_expert("e", tmp_path / "e", base).task_vector})
    assert save_adapter(tmp_path / "child", subspace, subspace.founders["e"]) == 0.0
    for name, factors in open_adapter(tmp_path / "child", base).factors.items():
        np.testing.assert_allclose(dense(factors), subspace.task_vector(subspace.founders["e"])[name], atol=1e-6)


def test_a_founder_saved_as_an_adapter_and_opened_again_has_the_same_genome(tmp_path):
    subspace, _ = _world(tmp_path, "lora")
    genome = _child(subspace)
    save_adapter(tmp_path / "child", subspace, genome)
    vector = open_expert("child", tmp_path / "child", subspace.base).task_vector
    cores = np.concatenate([core.project(vector[core.name]).ravel() for core in subspace.segments])
    np.testing.assert_allclose(cores, genome.values, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_smaller_rank_keeps_the_largest_singular_values_and_tells_what_it_leaves_out(tmp_path, rank):
    subspace, _ = _world(tmp_path, "lora")
    genome = _child(subspace)
    lost = save_adapter(tmp_path / "child", subspace, genome, rank=rank)
    adapter = open_adapter(tmp_path / "child", subspace.base)
    dropped = total = 0.0
    for name, change in subspace.task_vector(genome).items():
        sigma = np.linalg.svd(change.astype(np.float64), compute_uv=False)
        rest = np.linalg.norm(change - dense(adapter.factors[name]))
        assert rest == pytest.approx(np.sqrt((sigma[rank:] ** 2).sum()), abs=1e-5)
        assert np.linalg.matrix_rank(dense(adapter.factors[name]), tol=1e-5) == min(rank, (sigma > 1e-5).sum())
        dropped, total = dropped + (sigma[rank:] ** 2).sum(), total + (sigma**2).sum()
    assert lost == pytest.approx(dropped / total, abs=1e-6)
    assert (lost > 0) == (rank < 4)  # body.weight has rank 4


def test_a_rank_above_the_exact_one_loses_nothing(tmp_path):
    subspace, _ = _world(tmp_path, "lora")
    assert save_adapter(tmp_path / "child", subspace, _child(subspace), rank=64) == 0.0
    for name, change in subspace.task_vector(_child(subspace)).items():
        factors = open_adapter(tmp_path / "child", subspace.base).factors[name]
        np.testing.assert_allclose(dense(factors), change, rtol=0, atol=2e-6)


def test_the_base_itself_is_an_adapter_that_loses_nothing(tmp_path):
    subspace, _ = _world(tmp_path, "lora")
    assert save_adapter(tmp_path / "child", subspace, subspace.zero()) == 0.0
    assert not any(dense(f).any() for f in open_adapter(tmp_path / "child", subspace.base).factors.values())


def test_what_an_adapter_cannot_hold_is_told_at_once(tmp_path):
    subspace, _ = _world(tmp_path, "full")
    with pytest.raises(CheckpointError, match=r"genome \w{32} cannot be .* an adapter; write a checkpoint") as caught:
        save_adapter(tmp_path / "child", subspace, _child(subspace), rank=0)
    assert caught.value.faults == (
        "body.bias: LoRA adapters hold changes of linear layers only",
        "conv.weight: LoRA adapters hold changes of linear layers only",
        "norm.weight: LoRA adapters hold changes of linear layers only",
        "temperature: LoRA adapters hold changes of linear layers only",
        "rank 0: at least 1 is needed",
    )
    assert not (tmp_path / "child").exists()


def test_layers_that_lie_both_ways_are_refused_as_one_adapter(tmp_path):
    shapes = {"a.weight": (4, 6), "a.bias": (6,), "b.weight": (6, 4), "b.bias": (6,)}
    base = open_checkpoint(write_model(tmp_path / "base", {n: np.zeros(s, np.float32) for n, s in shapes.items()}))
    vector = TaskVector("0", {n: np.ones(s, np.float32) for n, s in shapes.items() if n.endswith("weight")})
    subspace = Subspace(base, {"e": vector})
    with pytest.raises(CheckpointError, match=r"b\.weight: lies as \(outputs, inputs\), others lie transposed"):
        save_adapter(tmp_path / "child", subspace, subspace.founders["e"])


def test_small_tensors_that_a_child_leaves_alone_do_not_keep_it_from_being_an_adapter(tmp_path):
    subspace, _ = _world(tmp_path, "full")
    values = np.zeros(subspace.size, np.float32)
    for segment in subspace.segments:
        if segment.name in LINEAR:
            values[segment.part] = np.random.default_rng(0).normal(size=segment.part.stop - segment.part.start)
    assert any(isinstance(segment, Mix) for segment in subspace.segments)
    save_adapter(tmp_path / "child", subspace, Genome(subspace.digest, values))
    assert sorted(open_adapter(tmp_path / "child", subspace.base).factors) == sorted(LINEAR)


def test_a_genome_with_nan_is_refused_as_an_adapter(tmp_path):
    subspace, _ = _world(tmp_path, "lora")
    values = np.zeros(subspace.size, np.float32)
    values[0] = np.nan
    with pytest.raises(CheckpointError, match=r"body\.weight: holds NaN or infinity"):
        save_adapter(tmp_path / "child", subspace, Genome(subspace.digest, values))


@pytest.mark.parametrize("name", ["a:b.bias", "projection"])
def test_a_subspace_without_weight_matrices_makes_no_adapter(tmp_path, name):
    shape = (3, 4) if name == "projection" else (3,)
    base = open_checkpoint(write_model(tmp_path / "base", {name: np.zeros(shape, ml_dtypes.bfloat16)}))
    subspace = Subspace(base, {"e": TaskVector("0", {name: np.ones(shape, np.float32)})})
    with pytest.raises(CheckpointError, match="no weight matrix that an adapter could hold") as caught:
        save_adapter(tmp_path / "child", subspace, subspace.founders["e"])
    assert caught.value.faults[0] == f"{name}: LoRA adapters hold changes of linear layers only"


def test_a_folder_in_use_is_refused(tmp_path):
    subspace, _ = _world(tmp_path, "lora")
    with pytest.raises(StorageError, match="not empty"):
        save_adapter(tmp_path / "base", subspace, subspace.zero())


def test_a_factor_s_product_is_added_as_it_is(tmp_path):
    base = open_checkpoint(write_model(tmp_path / "base", {"w": np.zeros((8, 6), np.float32)}))
    factors = low_rank((8, 6), 2, seed=0)
    np.testing.assert_array_equal(apply(base, {"w": factors})["w"], factors.left @ factors.right)
