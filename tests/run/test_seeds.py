import numpy as np
import pytest

from minerua.errors import BrokenPlugin
from minerua.run import prepare
from minerua.run.seeds import found
from minerua.values import MergeMethodSpec
from minerua.weights import Core, Mix, dense, materialise

from ..worlds import LINEAR, SHAPES, Toys, activations, build, inputs, make_world, registry_of


def _prepared(folder, *, merges=(), methods=(), **settings):
    world = make_world(folder, evolution={"merges": list(merges)}, **settings)
    return prepare(world.run, registry_of(Toys(settings.get("tasks", 3), merges=methods)))


def _founders(prepared):
    subspace, founders = found(prepared)
    return subspace, {founder.name: founder for founder in founders}


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["full", "lora", "mixed"])
def test_the_first_population_is_the_experts_then_their_merges(tmp_path, kind, tasks):
    prepared = _prepared(tmp_path, kind=kind, tasks=tasks, merges=["mean", "regmean", "layer-match"])
    subspace, founders = _founders(prepared)
    experts = [f"expert-{k}" for k in range(tasks)]
    hungry = [[name, *(f"{name}+{expert}" for expert in experts)] for name in ("regmean", "layer-match")]
    assert list(founders) == [*experts, "mean", *hungry[0], *hungry[1]]
    assert [name for name, founder in founders.items() if founder.expert] == experts
    for expert in prepared.experts:
        vector = subspace.task_vector(founders[expert.name].genome)
        for name, change in expert.task_vector.items():
            expected = dense(change)
            np.testing.assert_allclose(vector.get(name, np.zeros_like(expected)), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("kind", ["full", "lora", "mixed"])
def test_the_mean_is_the_mean_of_the_experts_genomes(tmp_path, kind):
    subspace, founders = _founders(_prepared(tmp_path, kind=kind, merges=["mean"]))
    experts = [founder.genome for founder in founders.values() if founder.expert]
    middle = subspace.task_vector(subspace.combine(experts, np.full((1, 3), 1 / 3)))
    for name, change in subspace.task_vector(founders["mean"].genome).items():
        np.testing.assert_allclose(change, middle[name], rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", ["regmean", "regmean+expert-1"])
def test_regmean_uses_the_inputs_of_each_expert_s_own_search_items(tmp_path, name):
    prepared = _prepared(tmp_path, merges=["regmean"])
    subspace, founders = _founders(prepared)
    weights = [1, 2, 1] if name.endswith("1") else [1, 1, 1]
    total, pulled = np.zeros((8, 8)), np.zeros((5, 8))
    for weight, expert, task in zip(weights, prepared.experts, prepared.tasks, strict=True):
        tensors = {n: prepared.base.tensor(n) + expert.task_vector.get(n, 0) for n in prepared.base.specs}
        x = activations(build(tensors), inputs(task.ids["search"]))["head.weight"].astype(np.float64)
        total += weight * x.T @ x
        pulled += weight * expert.task_vector["head.weight"] @ (x.T @ x)
    found_ = subspace.task_vector(founders[name].genome)["head.weight"]
    np.testing.assert_allclose(found_, pulled @ np.linalg.inv(total), atol=2e-3)  # the ridge


def test_a_merge_that_counts_an_expert_twice_lies_nearer_to_it(tmp_path):
    subspace, founders = _founders(_prepared(tmp_path, merges=["regmean"]))
    vectors = {name: subspace.task_vector(founder.genome)["body.weight"] for name, founder in founders.items()}
    for k in range(3):
        expert = vectors[f"expert-{k}"]
        near = np.linalg.norm(vectors[f"regmean+expert-{k}"] - expert)
        assert near < np.linalg.norm(vectors["regmean"] - expert)


def test_merges_that_keep_the_columns_of_adapters_keep_the_genome_small(tmp_path):
    subspace, _ = found(_prepared(tmp_path, kind="lora", tasks=2, merges=["mean"]))
    assert [segment.name for segment in subspace.segments] == list(LINEAR)
    for core in subspace.segments:
        assert isinstance(core, Core)
        assert core.shape[0] < SHAPES[core.name][0]
        assert core.left is not None


def test_a_merge_of_adapters_is_projected_onto_the_columns_that_they_span(tmp_path):
    noise = np.random.default_rng(0).normal(size=SHAPES["body.weight"]).astype(np.float32)

    def wild(vectors, weights):
        return noise if vectors[0].shape == noise.shape else vectors[0]

    prepared = _prepared(tmp_path, kind="lora", merges=["wild"], methods=[MergeMethodSpec("wild", wild)])
    subspace, founders = _founders(prepared)
    spans = np.concatenate([e.task_vector["body.weight"].left for e in prepared.experts], axis=1)
    nearest = spans @ np.linalg.lstsq(spans, noise, rcond=None)[0]
    found = subspace.task_vector(founders["wild"].genome)["body.weight"]
    np.testing.assert_allclose(found, nearest, atol=1e-4)
    assert not np.allclose(found, noise, atol=1e-2)


def test_layer_matching_of_adapters_stays_low_rank_and_leaves_what_no_adapter_changes(tmp_path):
    prepared = _prepared(tmp_path, kind="lora", merges=["layer-match"])
    subspace, _ = _founders(prepared)
    assert all(isinstance(segment, Core) and segment.left is not None for segment in subspace.segments)


def test_the_same_run_file_founds_the_same_population(tmp_path):
    prepared = _prepared(tmp_path, kind="mixed", merges=["mean", "regmean", "layer-match"])
    (one, first), (two, second) = found(prepared), found(prepared)
    assert one.digest == two.digest
    assert [founder.genome.digest for founder in first] == [founder.genome.digest for founder in second]


def test_a_founder_s_weights_are_the_expert_s_own(tmp_path):
    prepared = _prepared(tmp_path, dtype="bfloat16", merges=["mean"])
    subspace, founders = _founders(prepared)
    child = materialise(subspace, founders["expert-1"].genome)
    vector = prepared.experts[1].task_vector
    for name, tensor in child.tensors.items():
        base = prepared.base.tensor(name)
        exact = (base.astype(np.float64) + vector.get(name, 0)).astype(base.dtype)
        np.testing.assert_array_equal(tensor.astype(np.float64), exact.astype(np.float64))


def test_small_tensors_of_merges_have_coefficients_of_their_own(tmp_path):
    subspace, founders = _founders(_prepared(tmp_path, merges=["mean"]))
    for mix in (segment for segment in subspace.segments if isinstance(segment, Mix)):
        assert founders["mean"].genome.values[mix.part].tolist() == [0, 0, 0, 1]


def _raise(*_):
    raise IndexError("list index out of range")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MergeMethodSpec("odd", _raise), "failed: IndexError: list index out of range; mend it, or leave it"),
        (MergeMethodSpec("odd", _raise, uses="model"), "merge method 'odd' failed: IndexError: "),
        (MergeMethodSpec("odd", lambda v, w: v[0] * np.nan), "body.bias: NaN or infinity"),
        (
            MergeMethodSpec("odd", lambda v, w: v[0][..., None]),
            r"head.weight: shape \[5, 8, 1\], the base has \[5, 8\]",
        ),
        (MergeMethodSpec("odd", lambda v, w: "text"), "merge method 'odd' failed: ValueError: could not convert"),
        (
            MergeMethodSpec("odd", lambda inputs, w: {"stranger": np.zeros(2)}, uses="model"),
            r"stranger: shape \[2\], the base has no such tensor",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["full", "mixed"])
def test_a_merge_method_that_fails_is_blamed_by_name(tmp_path, kind, spec, message):
    prepared = _prepared(tmp_path, kind=kind, merges=["odd"], methods=[spec])
    with pytest.raises(BrokenPlugin, match=message) as caught:
        found(prepared)
    if caught.value.faults:
        assert caught.value.message.endswith("returned what cannot be used; leave it out of evolution.merges")
