import doctest
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerua.merge.planning import plan as module
from minerua.merge.planning import tensors
from minerua.merge.planning.plan import plan
from minerua.merge.recipes.ingredients import ModelRef
from minerua.values import TensorSpec
from tests.merge.planning import (
    KARCHER,
    LINEAR,
    MODULES,
    NUSLERP,
    PASS,
    SLERP,
    STACK,
    STOCK,
    TASK,
    TWO,
    job_of,
    layer,
    llama,
    planned,
    planning,
    recipe_of,
    specs,
)


@pytest.mark.parametrize("which", [module, tensors])
def test_examples_run(which):
    assert doctest.testmod(which).failed == 0


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_tensor_is_merged_with_its_namesakes():
    found = planned(TWO)
    assert [job.name for job in found.jobs] == sorted(llama())
    job = job_of(found, layer(0))
    assert job.experts == ((ModelRef("a"), layer(0)), (ModelRef("b"), layer(0)))
    assert (job.shape, job.dtype, job.base, job.kind) == ((8, 4), "bfloat16", None, "merge")
    assert job.parameters == {"weight": (1.0, 1.0), "normalize": True}
    assert job.nbytes == 64
    assert found.layer_counts == {"model.layers": 3}


def test_the_plan_does_not_depend_on_the_order_of_the_files():
    models = {"a": llama(12), "b": llama(12)}
    turned = {name: dict(reversed(specs.items())) for name, specs in models.items()}
    plans = [planned(TWO, LINEAR, given) for given in (models, turned)]
    assert plans[0] == plans[1]
    names = [job.name for job in plans[0].jobs]
    assert names.index(layer(2)) < names.index(layer(10))


def test_a_gradient_runs_over_the_layers_and_starts_outside_of_them():
    text = "merge_method: m\nmodels: [{model: a, parameters: {weight: [0, 1]}}, {model: b, parameters: {weight: 2}}]"
    found = planned(text)
    assert [job_of(found, layer(i)).parameters["weight"] for i in range(3)] == [(0.0, 2.0), (0.5, 2.0), (1.0, 2.0)]
    assert job_of(found, "lm_head.weight").parameters["weight"] == (0.0, 2.0)
    assert job_of(found, "model.embed_tokens.weight").parameters["weight"] == (0.0, 2.0)


def test_a_single_layer_is_the_last():
    found = planned(TWO.replace("1}", "[0, 1]}"), LINEAR, {"a": llama(1), "b": llama(1)})
    assert job_of(found, layer(0)).parameters["weight"] == (1.0, 1.0)


def test_two_families_of_layers_have_gradients_of_their_own():
    both = specs([f"e.{i}.w" for i in range(3)] + [f"d.{i}.w" for i in range(5)])
    found = planned(TWO.replace("1}", "[0, 1]}"), LINEAR, {"a": both, "b": both})
    assert job_of(found, "e.1.w").parameters["weight"] == job_of(found, "d.2.w").parameters["weight"] == (0.5, 0.5)
    assert found.layer_counts == {"e": 3, "d": 5}


def test_filters_look_at_the_tensors_names():
    rules = "parameters: {weight: [{filter: mlp, value: 0.25}, {filter: layers.2, value: 0.5}, {value: 1}]}"
    found = planned(TWO.replace("parameters: {weight: 1}", rules))
    assert job_of(found, layer(2)).parameters["weight"] == (0.25, 0.25)
    assert job_of(found, "model.norm.weight").parameters["weight"] == (1.0, 1.0)


# ── element types ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("addition", "first", "second", "wanted"),
    [
        ("", "bfloat16", "bfloat16", "bfloat16"),
        ("", "bfloat16", "float16", "float32"),
        ("", "float16", "float32", "float32"),
        ("", "float64", "float64", "float32"),
        ("dtype: float16", "bfloat16", "bfloat16", "float16"),
        ("dtype: float16\nout_dtype: bf16", "float32", "float32", "bfloat16"),
    ],
)
def test_the_output_has_the_type_that_is_asked_for_or_holds_the_inputs(addition, first, second, wanted):
    found = planned(TWO + addition, LINEAR, {"a": llama(dtype=first), "b": llama(dtype=second)})
    assert {job.dtype for job in found.jobs} == {wanted}


def test_whole_numbers_are_copied_and_have_no_parameters():
    held = llama() | specs(["bn.num_batches_tracked"], "int64")
    job = job_of(planned(TWO + "dtype: float16", LINEAR, {"a": held, "b": held}), "bn.num_batches_tracked")
    assert (job.kind, job.dtype, job.parameters, len(job.experts)) == ("copy", "int64", {}, 2)


@pytest.mark.parametrize("other", ["int32", "float32"])
def test_types_that_cannot_be_mixed_are_a_fault(other):
    models = {"a": llama() | specs(["x"], "int64"), "b": llama() | specs(["x"], other)}
    faults = planning(TWO, LINEAR, models).faults
    assert faults == (f"tensor 'x' has element types that cannot be mixed: a int64, b {other}",)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("l.0.qweight", "int32"),
        ("l.0.weight", "float8_e4m3fn"),
        ("l.0.weight", "uint8"),
        ("l.0.weight_scale_inv", "float32"),
    ],
)
def test_quantised_models_are_a_fault_that_hides_what_follows_from_it(name, dtype):
    found = planning(TWO, LINEAR, {"b": specs([name], dtype)})
    assert found.faults == (f"b is quantised (1 tensors, such as {name} of {dtype}); dequantise it first",)


def test_complex_numbers_are_a_fault():
    found = planning(TWO, LINEAR, {"b": specs(["w"], "complex64")})
    assert "b holds complex numbers in w, which no method merges" in found.faults


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────────


def test_missing_tensors_are_a_fault_of_the_model_that_lacks_them():
    models = {"a": llama() | specs([f"extra{i}" for i in range(9)]), "b": llama()}
    wanted = "b lacks extra0, extra1, extra2 and 6 more, found in a; every model needs the same tensors"
    assert planning(TWO, LINEAR, models).faults == (wanted,)


def test_different_shapes_are_a_fault():
    models = {"a": llama(), "b": llama() | specs({layer(1): (8, 5)})}
    assert planning(TWO, LINEAR, models).faults == (
        f"tensor '{layer(1)}' has different shapes: a [8, 4], b [8, 5]; only models of one architecture can be merged",
    )


def test_different_vocabularies_are_a_fault_that_says_how_to_align_them():
    found = planning(TWO, LINEAR, {"a": llama(vocabulary=10), "b": llama(vocabulary=12)})
    assert found.faults[0] == (
        "tensor 'lm_head.weight' has different shapes: a [10, 4], b [12, 4]; if the vocabularies differ, align them "
        "with 'tokenizer: {source: base}' or 'union'"
    )
    assert len(found.faults) == 2


def test_models_without_a_tensor_in_common_are_a_fault():
    found = planning(TWO, LINEAR, {"b": specs(["h.0.w"])})
    assert found.faults == (
        "models: the models have no tensor in common; the first of each: a model.embed_tokens.weight, b h.0.w",
    )


def test_models_of_different_depth_are_one_fault_and_not_one_per_tensor():
    found = planning(TWO, LINEAR, {"b": llama(5)})
    assert found.faults == ("models: the models have different numbers of model.layers: a 3, b 5; use slices",)


def test_empty_models_are_a_fault():
    found = planning("merge_method: m\nmodels: [{model: a}]", PASS, {"a": {}})
    assert found.faults == ("the models hold no tensors that could be merged",)


def test_a_required_parameter_that_is_not_set_is_a_fault_with_its_model():
    text = "merge_method: m\nmodels: [{model: a, parameters: {weight: {value: 1, filter: mlp}}}, {model: b}]"
    assert planning(text, LINEAR, {}).faults == (
        "models: weight is not set for a at lm_head.weight, model.embed_tokens.weight, model.norm.weight; "
        "set it under parameters",
        "models: weight is not set for b at lm_head.weight, model.embed_tokens.weight, model.layers.0.mlp.up.weight "
        "and 3 more; set it under parameters",
    )
    assert (
        "models: t is not set for the merge at lm_head"
        in planning("merge_method: m\nbase_model: a\nmodels: [{model: b}]", SLERP, {}).faults[0]
    )


def test_faults_of_every_kind_are_reported_at_once():
    text = "merge_method: m\nmodels: [{model: a}, {model: b}]\nparameters: {wieght: 1, normalize: 3}"
    faults = planning(text, LINEAR, {"b": llama(vocabulary=12) | specs(["x"])}).faults
    assert [fault.split(":")[0] for fault in faults] == [
        "parameters.wieght",
        "parameters.normalize",
        "tensor 'lm_head.weight' has different shapes",
        "tensor 'model.embed_tokens.weight' has different shapes",
        "a lacks x, found in b; every model needs the same tensors",
    ]


def test_a_hundred_faults_are_enough():
    other = {name: replace(spec, shape=(1, 1)) for name, spec in llama(200).items()}
    faults = planning(TWO, LINEAR, {"a": llama(200), "b": other}).faults
    assert (len(faults), faults[-1]) == (101, "and 103 more of this kind")


def test_parameters_of_other_methods_are_noted():
    found = planned("merge_method: m\nparameters: {weight: 1}\nmodels: [{model: a}]", PASS, known_parameters={"weight"})
    assert found.notes == ("parameters.weight has no effect: passthrough does not take it",)


def test_buffers_that_every_library_computes_are_left_out_with_a_note():
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": (2,),
        "h.0.attn.bias": (1, 1, 4, 4),
        "h.0.attn.masked_bias": (),
    }
    found = planned(TWO, LINEAR, {"a": llama() | specs(buffers)})
    assert len(found.jobs) == 6
    assert found.notes == ("left out, because every library computes them itself: 3 buffers such as h.0.attn.bias",)


def test_a_bias_that_looks_like_a_buffer_by_its_name_alone_is_merged():
    held = llama() | specs({"h.0.attn.bias": (4,)})
    assert job_of(planned(TWO, LINEAR, {"a": held, "b": held}), "h.0.attn.bias").kind == "merge"


# ── tied embeddings, vocabularies ────────────────────────────────────────────────────────────────────────────────────


def test_a_tied_embedding_stands_in_for_the_missing_head():
    models = {"b": llama(head=False)}
    assert planning(TWO, LINEAR, models).faults == (
        "b lacks lm_head.weight, found in a; every model needs the same tensors",
    )
    found = planned(TWO, LINEAR, models, tied={ModelRef("b"): "model.embed_tokens.weight"})
    assert job_of(found, "lm_head.weight").experts[1] == (ModelRef("b"), "model.embed_tokens.weight")


def test_where_all_are_tied_no_head_is_merged():
    found = planned(TWO, LINEAR, {"a": llama(head=False), "b": llama(head=False)})
    assert "lm_head.weight" not in [job.name for job in found.jobs]


def test_aligned_vocabularies_give_the_merged_one_its_rows():
    models = {"a": llama(vocabulary=10), "b": llama(vocabulary=12)}
    sizes = {ModelRef("a"): 10, ModelRef("b"): 12}
    found = planned(TWO, LINEAR, models, vocabulary=sizes, merged_vocabulary=16)
    rows = {job.name: job.shape for job in found.jobs if job.vocabulary}
    assert rows == {"lm_head.weight": (16, 4), "model.embed_tokens.weight": (16, 4)}
    assert job_of(found, layer(0)).shape == (8, 4)


def test_aligned_vocabularies_do_not_hide_other_widths():
    models = {"a": llama(), "b": llama() | specs({"lm_head.weight": (10, 5)})}
    sizes = {ModelRef("a"): 10, ModelRef("b"): 10}
    faults = planning(TWO, LINEAR, models, vocabulary=sizes, merged_vocabulary=16).faults
    assert faults == (
        "tensor 'lm_head.weight' has different shapes: a [10, 4], b [10, 5]; "
        "only models of one architecture can be merged",
    )


# ── anything at all ──────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = st.sampled_from(["h.0.w", "h.1.w", "h.2.w", "e.0.w", "norm.weight", "lm_head.weight", "wte.weight", "x.weight"])
SPECS = st.dictionaries(
    NAMES,
    st.tuples(
        st.sampled_from([(), (4,), (4, 2), (6, 2)]),
        st.sampled_from(["float32", "bfloat16", "int64", "uint8", "float8_e5m2", "complex64"]),
    ),
).map(lambda held: {name: TensorSpec(name, shape, dtype) for name, (shape, dtype) in held.items()})
RECIPES = st.sampled_from([TWO, STACK, TWO + "base_model: a", MODULES, TWO.replace("1}", "[0, 1]}")])


@given(RECIPES, st.sampled_from([LINEAR, TASK, SLERP, PASS, NUSLERP, STOCK, KARCHER]), SPECS, SPECS)
def test_any_models_areplanned_or_refused(text, method, first, second):
    found = planning(text, method, {"a": first, "b": second}, known_parameters={"weight", "t", "scale"})
    assert found.faults or found.jobs
    for job in found.jobs if not found.faults else ():
        holders = [*job.experts, *([job.base] if job.base else [])]
        assert all(name in {"a": first, "b": second}[model.text] for model, name in holders)
        assert all(len(value) == len(job.experts) for value in job.parameters.values() if isinstance(value, tuple))


def test_plans_do_not_depend_on_the_order_of_references():
    recipe = recipe_of(TWO + "base_model: c")
    models = dict.fromkeys(recipe.references, llama())
    plans = [plan(recipe, TASK, dict(items)) for items in permutations(models.items())]
    assert all(found == plans[0] for found in plans)
