import doctest
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minerua.merge import groups, tensors
from minerua.merge import plan as module
from minerua.merge.ingredients import ModelRef
from minerua.merge.plan import plan
from minerua.merge.recipe import parse_recipes
from minerua.values import MergeMethodSpec, MergeParameter, TensorSpec

WEIGHT = MergeParameter("weight", per_model=True)
LINEAR = MergeMethodSpec(
    "linear", print, parameters=(WEIGHT, MergeParameter("normalize", "flag", default=True)), base="ignored"
)
TASK = MergeMethodSpec("task-arithmetic", print, parameters=(WEIGHT, MergeParameter("lambda", default=1.0)))
SLERP = MergeMethodSpec("slerp", print, parameters=(MergeParameter("t"),), most=1)
STOCK = MergeMethodSpec("model-stock", print, parameters=(), fewest=2)
PASS = MergeMethodSpec(
    "passthrough", print, parameters=(MergeParameter("scale", per_model=True, default=1.0),), base="ignored", most=1
)
NUSLERP = MergeMethodSpec("nuslerp", print, parameters=(WEIGHT,), base="optional", fewest=2, most=2)
KARCHER = MergeMethodSpec("karcher", print, parameters=(), base="ignored")


def _specs(shapes, dtype="bfloat16"):
    return {
        name: TensorSpec(name, shape if isinstance(shape, tuple) else (4,), dtype)
        for name, shape in (shapes.items() if isinstance(shapes, dict) else dict.fromkeys(shapes).items())
    }


def _llama(layers=3, vocabulary=10, *, dtype="bfloat16", prefix="model.", head=True):
    names = {f"{prefix}embed_tokens.weight": (vocabulary, 4), f"{prefix}norm.weight": (4,)}
    names |= {f"{prefix}layers.{i}.mlp.up.weight": (8, 4) for i in range(layers)}
    names |= {"lm_head.weight": (vocabulary, 4)} if head else {}
    return _specs(names, dtype)


def _recipe(text):
    (found,) = parse_recipes(text, where="r.yml")
    return found


def _plan(text, method, models, **options):
    recipe = _recipe(text)
    given = {reference: models.get(reference.text, _llama()) for reference in recipe.references}
    return plan(recipe, method, given, **options)


def _planned(text, method=LINEAR, models=None, **options):
    found = _plan(text, method, models or {}, **options)
    assert found.faults == ()
    return found


def _job(found, name):
    return next(job for job in found.jobs if job.name == name)


def _layer(index):
    return f"model.layers.{index}.mlp.up.weight"


TWO = "merge_method: m\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"


@pytest.mark.parametrize("which", [module, groups, tensors])
def test_examples_run(which):
    assert doctest.testmod(which).failed == 0


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_tensor_is_merged_with_its_namesakes():
    found = _planned(TWO)
    assert [job.name for job in found.jobs] == sorted(_llama())
    job = _job(found, _layer(0))
    assert job.experts == ((ModelRef("a"), _layer(0)), (ModelRef("b"), _layer(0)))
    assert (job.shape, job.dtype, job.base, job.kind) == ((8, 4), "bfloat16", None, "merge")
    assert job.parameters == {"weight": (1.0, 1.0), "normalize": True}
    assert job.nbytes == 64
    assert found.layer_counts == {"model.layers": 3}


def test_numbers_do_not_depend_on_the_order_of_the_files():
    models = {"a": _llama(12), "b": _llama(12)}
    turned = {name: dict(reversed(specs.items())) for name, specs in models.items()}
    plans = [_planned(TWO, LINEAR, given) for given in (models, turned)]
    assert plans[0] == plans[1]
    assert [job.number for job in plans[0].jobs] == list(range(len(plans[0].jobs)))
    assert _job(plans[0], _layer(2)).number < _job(plans[0], _layer(10)).number


def test_a_gradient_runs_over_the_layers_and_starts_outside_of_them():
    text = "merge_method: m\nmodels: [{model: a, parameters: {weight: [0, 1]}}, {model: b, parameters: {weight: 2}}]"
    found = _planned(text)
    assert [_job(found, _layer(i)).parameters["weight"] for i in range(3)] == [(0.0, 2.0), (0.5, 2.0), (1.0, 2.0)]
    assert _job(found, "lm_head.weight").parameters["weight"] == (0.0, 2.0)
    assert _job(found, "model.embed_tokens.weight").parameters["weight"] == (0.0, 2.0)


def test_a_single_layer_is_the_last():
    found = _planned(TWO.replace("1}", "[0, 1]}"), LINEAR, {"a": _llama(1), "b": _llama(1)})
    assert _job(found, _layer(0)).parameters["weight"] == (1.0, 1.0)


def test_two_families_of_layers_have_gradients_of_their_own():
    both = _specs([f"e.{i}.w" for i in range(3)] + [f"d.{i}.w" for i in range(5)])
    found = _planned(TWO.replace("1}", "[0, 1]}"), LINEAR, {"a": both, "b": both})
    assert _job(found, "e.1.w").parameters["weight"] == _job(found, "d.2.w").parameters["weight"] == (0.5, 0.5)
    assert found.layer_counts == {"e": 3, "d": 5}


def test_filters_look_at_the_tensors_names():
    rules = "parameters: {weight: [{filter: mlp, value: 0.25}, {filter: layers.2, value: 0.5}, {value: 1}]}"
    found = _planned(TWO.replace("parameters: {weight: 1}", rules))
    assert _job(found, _layer(2)).parameters["weight"] == (0.25, 0.25)
    assert _job(found, "model.norm.weight").parameters["weight"] == (1.0, 1.0)


# ── the base ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("listed", ["", "{model: base}, "])
def test_a_base_is_no_expert_whether_it_is_listed_or_not(listed):
    found = _planned(TWO.replace("{model: a}", listed + "{model: a}") + "base_model: base", TASK)
    job = _job(found, _layer(1))
    assert [model.text for model, _ in job.experts] == ["a", "b"]
    assert job.base == (ModelRef("base"), _layer(1))
    assert job.parameters == {"weight": (1.0, 1.0), "lambda": 1.0}


def test_settings_of_a_listed_base_are_noted():
    weight = "parameters: {weight: 1}"
    text = f"merge_method: m\nbase_model: a\nmodels: [{{model: a, {weight}}}, {{model: b, {weight}}}]"
    assert _planned(text, TASK).notes == ("models[0].parameters has no effect: the model is the base",)


def test_a_method_that_merges_differences_needs_a_base():
    found = _plan(TWO, TASK, {})
    assert found.faults == ("models: task-arithmetic merges what differs from a base; set base_model",)


def test_a_method_that_may_have_a_base_does_without():
    assert _job(_planned(TWO, NUSLERP), _layer(0)).base is None
    assert _job(_planned(TWO + "base_model: c", NUSLERP), _layer(0)).base == (ModelRef("c"), _layer(0))


def test_where_no_model_is_base_a_listed_one_is_an_expert():
    job = _job(_planned(TWO + "base_model: a"), _layer(0))
    assert ([model.text for model, _ in job.experts], job.base) == (["a", "b"], None)


def test_where_no_model_is_base_an_unlisted_one_joins_as_in_mergekit():
    found = _planned(TWO + "base_model: c")
    assert [model.text for model, _ in _job(found, _layer(0)).experts] == ["a", "b", "c"]
    assert found.notes == ("base_model: c is merged like the others: linear treats no model as base",)
    assert len(_job(_planned("merge_method: m\nbase_model: b\nmodels: [{model: a}]", KARCHER), _layer(0)).experts) == 2


WITH_OWN_WEIGHTS = "merge_method: m\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}]"


@pytest.mark.parametrize(
    ("text", "method"), [(WITH_OWN_WEIGHTS, LINEAR), (WITH_OWN_WEIGHTS.replace("weight", "scale"), PASS)]
)
def test_where_mergekit_would_fail_over_an_unlisted_base_it_is_left_out(text, method):
    found = _planned(text, method)
    assert [model.text for model, _ in _job(found, _layer(0)).experts] == ["a"]
    assert found.notes == ("base_model: c gives only configuration and tokenizer; it is none of the models",)


def test_a_quantised_model_that_gives_only_its_configuration_is_no_fault():
    specs = _specs(["model.embed_tokens.qweight"], "int32")
    assert len(_planned(WITH_OWN_WEIGHTS, LINEAR, {"c": specs}).jobs) == 6


@pytest.mark.parametrize(
    ("text", "method", "fault"),
    [
        (TWO + "base_model: c", SLERP, "models: slerp takes at most 1 models besides the base, found 2"),
        (TWO + "base_model: b", STOCK, "models: model-stock needs at least 2 models besides the base, found 1"),
        (TWO, PASS, "models: passthrough takes at most 1 models, found 2"),
        (TWO.replace("b}", "a}"), LINEAR, "models: a is listed more than once; one model has one place in a merge"),
    ],
)
def test_numbers_of_models_are_checked(text, method, fault):
    assert fault in _plan(text, method, {}, known_parameters={"weight"}).faults


def test_a_model_at_another_revision_is_another_model():
    assert len(_planned(TWO.replace("b}", "a@v2}")).jobs[0].experts) == 2


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
    found = _planned(TWO + addition, LINEAR, {"a": _llama(dtype=first), "b": _llama(dtype=second)})
    assert {job.dtype for job in found.jobs} == {wanted}


def test_whole_numbers_are_copied_and_have_no_parameters():
    specs = _llama() | _specs(["bn.num_batches_tracked"], "int64")
    job = _job(_planned(TWO + "dtype: float16", LINEAR, {"a": specs, "b": specs}), "bn.num_batches_tracked")
    assert (job.kind, job.dtype, job.parameters, len(job.experts)) == ("copy", "int64", {}, 2)


@pytest.mark.parametrize("other", ["int32", "float32"])
def test_types_that_cannot_be_mixed_are_a_fault(other):
    models = {"a": _llama() | _specs(["x"], "int64"), "b": _llama() | _specs(["x"], other)}
    wanted = f"tensor 'x' has element types that cannot be mixed: a int64, b {other}"
    assert _plan(TWO, LINEAR, models).faults == (wanted,)


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
    found = _plan(TWO, LINEAR, {"b": _specs([name], dtype)})
    assert found.faults == (f"b is quantised (1 tensors, such as {name} of {dtype}); dequantise it first",)


def test_complex_numbers_are_a_fault():
    found = _plan(TWO, LINEAR, {"b": _specs(["w"], "complex64")})
    assert "b holds complex numbers in w, which no method merges" in found.faults


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────────


def test_missing_tensors_are_a_fault_of_the_model_that_lacks_them():
    models = {"a": _llama() | _specs([f"extra{i}" for i in range(9)]), "b": _llama()}
    wanted = "b lacks extra0, extra1, extra2 and 6 more, found in a; every model needs the same tensors"
    assert _plan(TWO, LINEAR, models).faults == (wanted,)


def test_different_shapes_are_a_fault():
    models = {"a": _llama(), "b": _llama() | _specs({_layer(1): (8, 5)})}
    assert _plan(TWO, LINEAR, models).faults == (
        f"tensor '{_layer(1)}' has different shapes: a [8, 4], b [8, 5]; only models of one architecture can be merged",
    )


def test_different_vocabularies_are_a_fault_that_says_how_to_align_them():
    found = _plan(TWO, LINEAR, {"a": _llama(vocabulary=10), "b": _llama(vocabulary=12)})
    assert found.faults[0] == (
        "tensor 'model.embed_tokens.weight' has different shapes: a [10, 4], b [12, 4]; if the vocabularies differ, align them "
        "with 'tokenizer: {source: base}' or 'union'"
    )
    assert len(found.faults) == 2


def test_models_without_a_tensor_in_common_are_a_fault():
    found = _plan(TWO, LINEAR, {"b": _specs(["h.0.w"])})
    assert found.faults == (
        "models: the models have no tensor in common; the first of each: a model.embed_tokens.weight, b h.0.w",
    )


def test_models_of_different_depth_are_one_fault_and_not_one_per_tensor():
    found = _plan(TWO, LINEAR, {"b": _llama(5)})
    assert found.faults == ("models: the models have different numbers of model.layers: a 3, b 5; use slices",)


def test_empty_models_are_a_fault():
    found = _plan("merge_method: m\nmodels: [{model: a}]", PASS, {"a": {}})
    assert found.faults == ("the models hold no tensors that could be merged",)


def test_a_required_parameter_that_is_not_set_is_a_fault_with_its_model():
    text = "merge_method: m\nmodels: [{model: a, parameters: {weight: {value: 1, filter: mlp}}}, {model: b}]"
    assert _plan(text, LINEAR, {}).faults == (
        "models: weight is not set for a at lm_head.weight, model.embed_tokens.weight, model.norm.weight; "
        "set it under parameters",
        "models: weight is not set for b at lm_head.weight, model.embed_tokens.weight, model.layers.0.mlp.up.weight "
        "and 3 more; set it under parameters",
    )
    assert (
        "models: t is not set for the merge at lm_head"
        in _plan("merge_method: m\nbase_model: a\nmodels: [{model: b}]", SLERP, {}).faults[0]
    )


def test_faults_of_every_kind_are_reported_at_once():
    text = "merge_method: m\nmodels: [{model: a}, {model: b}]\nparameters: {wieght: 1, normalize: 3}"
    faults = _plan(text, LINEAR, {"b": _llama(vocabulary=12) | _specs(["x"])}).faults
    assert [fault.split(":")[0] for fault in faults] == [
        "parameters.wieght",
        "parameters.normalize",
        "tensor 'lm_head.weight' has different shapes",
        "tensor 'model.embed_tokens.weight' has different shapes",
        "a lacks x, found in b; every model needs the same tensors",
    ]


def test_a_hundred_faults_are_enough():
    other = {name: replace(spec, shape=(1, 1)) for name, spec in _llama(200).items()}
    faults = _plan(TWO, LINEAR, {"a": _llama(200), "b": other}).faults
    assert (len(faults), faults[-1]) == (101, "and 103 more of this kind")


def test_parameters_of_other_methods_are_noted():
    found = _planned(
        "merge_method: m\nparameters: {weight: 1}\nmodels: [{model: a}]", PASS, known_parameters={"weight"}
    )
    assert found.notes == ("parameters.weight has no effect: passthrough does not take it",)


def test_buffers_that_every_library_computes_are_left_out_with_a_note():
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": (2,),
        "h.0.attn.bias": (1, 1, 4, 4),
        "h.0.attn.masked_bias": (),
    }
    found = _planned(TWO, LINEAR, {"a": _llama() | _specs(buffers)})
    assert len(found.jobs) == 6
    assert found.notes == ("left out, because every library computes them itself: 3 buffers such as h.0.attn.bias",)


def test_a_bias_that_looks_like_a_buffer_by_its_name_alone_is_merged():
    specs = _llama() | _specs({"h.0.attn.bias": (4,)})
    assert _job(_planned(TWO, LINEAR, {"a": specs, "b": specs}), "h.0.attn.bias").kind == "merge"


# ── tied embeddings, vocabularies ────────────────────────────────────────────────────────────────────────────────────


def test_a_tied_embedding_stands_in_for_the_missing_head():
    models = {"b": _llama(head=False)}
    assert _plan(TWO, LINEAR, models).faults == (
        "b lacks lm_head.weight, found in a; every model needs the same tensors",
    )
    found = _planned(TWO, LINEAR, models, tied={ModelRef("b"): "model.embed_tokens.weight"})
    assert _job(found, "lm_head.weight").experts[1] == (ModelRef("b"), "model.embed_tokens.weight")


def test_where_all_are_tied_no_head_is_merged():
    found = _planned(TWO, LINEAR, {"a": _llama(head=False), "b": _llama(head=False)})
    assert "lm_head.weight" not in [job.name for job in found.jobs]


def test_aligned_vocabularies_give_the_merged_one_its_rows():
    models = {"a": _llama(vocabulary=10), "b": _llama(vocabulary=12)}
    sizes = {ModelRef("a"): 10, ModelRef("b"): 12}
    found = _planned(TWO, LINEAR, models, vocabulary=sizes, merged_vocabulary=16)
    rows = {job.name: job.shape for job in found.jobs if job.vocabulary}
    assert rows == {"lm_head.weight": (16, 4), "model.embed_tokens.weight": (16, 4)}
    assert _job(found, _layer(0)).shape == (8, 4)


def test_aligned_vocabularies_do_not_hide_other_widths():
    models = {"a": _llama(), "b": _llama() | _specs({"lm_head.weight": (10, 5)})}
    sizes = {ModelRef("a"): 10, ModelRef("b"): 10}
    faults = _plan(TWO, LINEAR, models, vocabulary=sizes, merged_vocabulary=16).faults
    assert faults == (
        "tensor 'lm_head.weight' has different shapes: a [10, 4], b [10, 5]; "
        "only models of one architecture can be merged",
    )


# ── slices ───────────────────────────────────────────────────────────────────────────────────────────────────────────

STACK = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 3]}]
"""


def test_slices_are_stacked_and_their_layers_renumbered():
    found = _planned(STACK, PASS)
    assert [_job(found, _layer(i)).experts[0] for i in range(5)] == [
        *((ModelRef("a"), _layer(i)) for i in range(3)),
        *((ModelRef("b"), _layer(i)) for i in (1, 2)),
    ]
    assert found.layer_counts == {"model.layers": 5}
    assert found.layer_origins["model.layers"][3:] == ((ModelRef("b"), 1), (ModelRef("b"), 2))


def test_what_comes_before_is_the_first_slice_s_and_what_comes_after_the_last_s():
    found = _planned(STACK, PASS)
    owners = {name: _job(found, name).experts[0][0].text for name in _llama() if "layers" not in name}
    assert owners == {"model.embed_tokens.weight": "a", "model.norm.weight": "b", "lm_head.weight": "b"}


def test_slices_may_have_different_numbers_of_sources():
    text = """
        merge_method: linear
        parameters: {weight: 1}
        slices:
          - sources: [{model: a, layer_range: [0, 1]}]
          - sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [0, 2]}]
    """
    found = _planned(text)
    assert [len(_job(found, name).experts) for name in ("model.embed_tokens.weight", _layer(0), _layer(1))] == [1, 1, 2]
    assert len(_job(found, "lm_head.weight").experts) == 2
    assert _job(found, _layer(1)).experts[1] == (ModelRef("b"), _layer(0))


def test_a_gradient_runs_over_each_slice():
    found = _planned(STACK + "parameters: {scale: [0, 1]}", PASS)
    assert [_job(found, _layer(i)).parameters["scale"] for i in range(5)] == [(0.0,), (0.5,), (1.0,), (0.0,), (1.0,)]


def test_filters_of_a_source_look_at_the_name_it_has_there():
    rules = "parameters: {scale: [{filter: layers.2., value: 0.5}, {value: 1}]}"
    found = _planned(STACK + rules, PASS)
    assert [_job(found, _layer(i)).parameters["scale"][0] for i in range(5)] == [1.0, 1.0, 0.5, 1.0, 0.5]


def test_settings_of_a_slice_override_those_of_the_recipe():
    text = """
        merge_method: slerp
        base_model: a
        parameters: {t: 0.1}
        slices:
          - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
          - sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]
            parameters: {t: 0.9}
    """
    found = _planned(text, SLERP)
    assert [_job(found, _layer(i)).parameters["t"] for i in range(3)] == [0.1, 0.9, 0.9]
    assert _job(found, "lm_head.weight").parameters["t"] == 0.9


def test_a_slice_may_have_a_base_of_its_own():
    text = "merge_method: m\nbase_model: a\nslices: [{sources: [{model: b, layer_range: [0, 3]}], base_model: c}]"
    found = _planned(text + "\nparameters: {weight: 1}", TASK)
    assert _job(found, _layer(2)).base == (ModelRef("c"), _layer(2))
    assert found.layer_origins["model.layers"][0] == (ModelRef("c"), 0)


def test_a_base_that_is_no_source_takes_the_layers_that_all_sources_take():
    sources = "[{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]"
    text = f"merge_method: m\nparameters: {{weight: 1}}\nbase_model: c\nslices: [{{sources: {sources}}}]"
    assert _job(_planned(text, TASK), _layer(0)).base == (ModelRef("c"), _layer(1))
    found = _plan(text.replace("b, layer_range: [1, 3]", "b, layer_range: [0, 2]"), TASK, {})
    assert found.faults == ("slices[0]: the base c is no source, and the sources take different layers",)


def test_layers_that_a_model_does_not_have_are_a_fault():
    found = _plan(STACK.replace("[1, 3]", "[1, 9]"), PASS, {})
    assert found.faults == ("slices[1].sources[0]: asks for layers up to 9, b has 3 model.layers",)


def test_slices_of_models_with_several_kinds_of_layers_are_a_fault():
    both = _specs(["encoder.block.0.w", "decoder.block.0.w"])
    found = _plan(STACK, PASS, {"a": both, "b": both})
    assert found.faults == (
        "slices: there are several kinds of layers, encoder.block, decoder.block; "
        "choose the layers of each under modules",
    )


def test_slices_of_models_without_layers_are_a_fault():
    found = _plan(STACK, PASS, {"b": _specs(["w"])})
    assert found.faults == ("slices: the models have no numbered layers in common; a: model.layers; b: none",)


def test_an_empty_slice_adds_no_layer():
    assert _planned(STACK.replace("[1, 3]", "[3, 3]"), PASS).layer_counts == {"model.layers": 3}


# ── modules ──────────────────────────────────────────────────────────────────────────────────────────────────────────

VISION = _llama(4, prefix="language_model.") | _specs(
    {
        **{f"vision_tower.encoder.layers.{i}.w": (2, 2) for i in range(2)},
        "multi_modal_projector.linear_1.weight": (2, 2),
    }
)
MODULES = """
merge_method: linear
parameters: {weight: 1}
modules:
  text_decoder:
    slices:
      - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [2, 4]}]
  vision_tower: {models: [{model: a}], parameters: {weight: 0.5}}
  multi_modal_projector: {models: [{model: a}, {model: b}]}
"""


def test_modules_are_merged_each_in_its_own_way():
    found = _planned(MODULES, LINEAR, {"a": VISION, "b": VISION})
    assert found.layer_counts == {"language_model.layers": 2, "vision_tower.encoder.layers": 2}
    assert _job(found, "language_model.layers.1.mlp.up.weight").experts[1][1] == "language_model.layers.3.mlp.up.weight"
    assert _job(found, "vision_tower.encoder.layers.1.w").parameters["weight"] == (0.5,)
    assert len(_job(found, "multi_modal_projector.linear_1.weight").experts) == 2
    assert len(_job(found, "lm_head.weight").experts) == 2


def test_tensors_of_no_module_are_a_fault():
    lines = MODULES.replace("text_decoder", "language_model.model").splitlines()
    found = _plan("\n".join(lines[:-1]).replace("language_model.model", "layers"), LINEAR, {"a": VISION, "b": VISION})
    assert any(
        fault.startswith("modules: 4 tensors belong to none of layers, vision_tower, such as ")
        for fault in found.faults
    )


def test_a_module_without_tensors_is_a_fault():
    found = _plan(MODULES + "  audio: {models: [{model: a}]}", LINEAR, {"a": VISION, "b": VISION})
    assert found.faults == ("modules.audio: no tensor belongs to this module; its name has to be a part of theirs",)


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
def test_any_models_are_planned_or_refused(text, method, first, second):
    found = _plan(text, method, {"a": first, "b": second}, known_parameters={"weight", "t", "scale"})
    assert found.faults or found.jobs
    for job in found.jobs if not found.faults else ():
        holders = [*job.experts, *([job.base] if job.base else [])]
        assert all(name in {"a": first, "b": second}[model.text] for model, name in holders)
        assert all(len(value) == len(job.experts) for value in job.parameters.values() if isinstance(value, tuple))


def test_plans_do_not_depend_on_the_order_of_references():
    recipe = _recipe(TWO + "base_model: c")
    models = dict.fromkeys(recipe.references, _llama())
    plans = [plan(recipe, TASK, dict(items)) for items in permutations(models.items())]
    assert all(found == plans[0] for found in plans)
