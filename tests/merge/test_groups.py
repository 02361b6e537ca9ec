import doctest

import pytest

from minerua.merge.planning import groups
from minerua.merge.recipes.ingredients import ModelRef
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
    VISION,
    job_of,
    layer,
    llama,
    planned,
    planning,
    specs,
)


def test_examples_run():
    assert doctest.testmod(groups).failed == 0


# ── the base ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("listed", ["", "{model: base}, "])
def test_a_base_is_no_expert_whether_it_is_listed_or_not(listed):
    found = planned(TWO.replace("{model: a}", listed + "{model: a}") + "base_model: base", TASK)
    job = job_of(found, layer(1))
    assert [model.text for model, _ in job.experts] == ["a", "b"]
    assert job.base == (ModelRef("base"), layer(1))
    assert job.parameters == {"weight": (1.0, 1.0), "lambda": 1.0}


def test_settings_of_a_listed_base_are_noted():
    weight = "parameters: {weight: 1}"
    text = f"merge_method: m\nbase_model: a\nmodels: [{{model: a, {weight}}}, {{model: b, {weight}}}]"
    assert planned(text, TASK).notes == ("models[0].parameters has no effect: the model is the base",)


def test_a_method_that_merges_differences_needs_a_base():
    found = planning(TWO, TASK, {})
    assert found.faults == ("models: task-arithmetic merges what differs from a base; set base_model",)


def test_a_method_that_may_have_a_base_does_without():
    assert job_of(planned(TWO, NUSLERP), layer(0)).base is None
    assert job_of(planned(TWO + "base_model: c", NUSLERP), layer(0)).base == (ModelRef("c"), layer(0))


def test_where_no_model_is_base_a_listed_one_is_an_expert():
    job = job_of(planned(TWO + "base_model: a"), layer(0))
    assert ([model.text for model, _ in job.experts], job.base) == (["a", "b"], None)


def test_where_no_model_is_base_an_unlisted_one_joins_as_in_mergekit():
    found = planned(TWO + "base_model: c")
    assert [model.text for model, _ in job_of(found, layer(0)).experts] == ["a", "b", "c"]
    assert found.notes == ("base_model: c is merged like the others: linear treats no model as base",)
    assert len(job_of(planned("merge_method: m\nbase_model: b\nmodels: [{model: a}]", KARCHER), layer(0)).experts) == 2


WITH_OWN_WEIGHTS = "merge_method: m\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1}}]"


@pytest.mark.parametrize(
    ("text", "method"), [(WITH_OWN_WEIGHTS, LINEAR), (WITH_OWN_WEIGHTS.replace("weight", "scale"), PASS)]
)
def test_where_mergekit_would_fail_over_an_unlisted_base_it_is_left_out(text, method):
    found = planned(text, method)
    assert [model.text for model, _ in job_of(found, layer(0)).experts] == ["a"]
    assert found.notes == ("base_model: c gives only configuration and tokenizer; it is none of the models",)


def test_a_quantised_model_that_gives_only_its_configuration_is_no_fault():
    quantised = specs(["model.embed_tokens.qweight"], "int32")
    assert len(planned(WITH_OWN_WEIGHTS, LINEAR, {"c": quantised}).jobs) == 6


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
    assert fault in planning(text, method, {}, known_parameters={"weight"}).faults


def test_a_model_at_another_revision_is_another_model():
    assert len(planned(TWO.replace("b}", "a@v2}")).jobs[0].experts) == 2


# ── slices ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_slices_are_stacked_and_their_layers_renumbered():
    found = planned(STACK, PASS)
    assert [job_of(found, layer(i)).experts[0] for i in range(5)] == [
        *((ModelRef("a"), layer(i)) for i in range(3)),
        *((ModelRef("b"), layer(i)) for i in (1, 2)),
    ]
    assert found.layer_counts == {"model.layers": 5}
    assert found.layer_origins["model.layers"][3:] == ((ModelRef("b"), 1), (ModelRef("b"), 2))


def test_what_comes_before_is_the_first_slice_s_and_what_comes_after_the_last_s():
    found = planned(STACK, PASS)
    owners = {name: job_of(found, name).experts[0][0].text for name in llama() if "layers" not in name}
    assert owners == {"model.embed_tokens.weight": "a", "model.norm.weight": "b", "lm_head.weight": "b"}


def test_slices_may_have_different_numbers_of_sources():
    text = """
        merge_method: linear
        parameters: {weight: 1}
        slices:
          - sources: [{model: a, layer_range: [0, 1]}]
          - sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [0, 2]}]
    """
    found = planned(text)
    assert [len(job_of(found, name).experts) for name in ("model.embed_tokens.weight", layer(0), layer(1))] == [1, 1, 2]
    assert len(job_of(found, "lm_head.weight").experts) == 2
    assert job_of(found, layer(1)).experts[1] == (ModelRef("b"), layer(0))


def test_a_gradient_runs_over_each_slice():
    found = planned(STACK + "parameters: {scale: [0, 1]}", PASS)
    assert [job_of(found, layer(i)).parameters["scale"] for i in range(5)] == [(0.0,), (0.5,), (1.0,), (0.0,), (1.0,)]


def test_filters_of_a_source_look_at_the_name_it_has_there():
    rules = "parameters: {scale: [{filter: layers.2., value: 0.5}, {value: 1}]}"
    found = planned(STACK + rules, PASS)
    assert [job_of(found, layer(i)).parameters["scale"][0] for i in range(5)] == [1.0, 1.0, 0.5, 1.0, 0.5]


def test_settings_of_a_slice_override_those_of_therecipe_of():
    text = """
        merge_method: slerp
        base_model: a
        parameters: {t: 0.1}
        slices:
          - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
          - sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]
            parameters: {t: 0.9}
    """
    found = planned(text, SLERP)
    assert [job_of(found, layer(i)).parameters["t"] for i in range(3)] == [0.1, 0.9, 0.9]
    assert job_of(found, "lm_head.weight").parameters["t"] == 0.9


def test_a_slice_may_have_a_base_of_its_own():
    text = "merge_method: m\nbase_model: a\nslices: [{sources: [{model: b, layer_range: [0, 3]}], base_model: c}]"
    found = planned(text + "\nparameters: {weight: 1}", TASK)
    assert job_of(found, layer(2)).base == (ModelRef("c"), layer(2))
    assert found.layer_origins["model.layers"][0] == (ModelRef("c"), 0)


def test_a_base_that_is_no_source_takes_the_layers_that_all_sources_take():
    sources = "[{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]"
    text = f"merge_method: m\nparameters: {{weight: 1}}\nbase_model: c\nslices: [{{sources: {sources}}}]"
    assert job_of(planned(text, TASK), layer(0)).base == (ModelRef("c"), layer(1))
    found = planning(text.replace("b, layer_range: [1, 3]", "b, layer_range: [0, 2]"), TASK, {})
    assert found.faults == ("slices[0]: the base c is no source, and the sources take different layers",)


def test_layers_that_a_model_does_not_have_are_a_fault():
    found = planning(STACK.replace("[1, 3]", "[1, 9]"), PASS, {})
    assert found.faults == ("slices[1].sources[0]: asks for layers up to 9, b has 3 model.layers",)


def test_slices_of_models_with_several_kinds_of_layers_are_a_fault():
    both = specs(["encoder.block.0.w", "decoder.block.0.w"])
    found = planning(STACK, PASS, {"a": both, "b": both})
    assert found.faults == (
        "slices: there are several kinds of layers, encoder.block, decoder.block; "
        "choose the layers of each under modules",
    )


def test_slices_of_models_without_layers_are_a_fault():
    found = planning(STACK, PASS, {"b": specs(["w"])})
    assert found.faults == ("slices: the models have no numbered layers in common; a: model.layers; b: none",)


def test_an_empty_slice_adds_nolayer():
    assert planned(STACK.replace("[1, 3]", "[3, 3]"), PASS).layer_counts == {"model.layers": 3}


# ── modules ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_modules_are_merged_each_in_its_own_way():
    found = planned(MODULES, LINEAR, {"a": VISION, "b": VISION})
    assert found.layer_counts == {"language_model.layers": 2, "vision_tower.encoder.layers": 2}
    assert (
        job_of(found, "language_model.layers.1.mlp.up.weight").experts[1][1] == "language_model.layers.3.mlp.up.weight"
    )
    assert job_of(found, "vision_tower.encoder.layers.1.w").parameters["weight"] == (0.5,)
    assert len(job_of(found, "multi_modal_projector.linear_1.weight").experts) == 2
    assert len(job_of(found, "lm_head.weight").experts) == 2


def test_tensors_of_no_module_are_a_fault():
    text = MODULES.replace("text_decoder", "layers").replace("multi_modal_projector", "linear_1")
    faults = planning(text, LINEAR, {"a": VISION, "b": VISION}).faults
    assert any(
        fault.startswith("modules: 3 tensors belong to none of layers, vision_tower, linear_1, such as language_model.")
        and fault.endswith("; add their module")
        for fault in faults
    )


def test_a_module_without_tensors_is_a_fault():
    found = planning(MODULES + "  audio: {models: [{model: a}]}", LINEAR, {"a": VISION, "b": VISION})
    assert found.faults == ("modules.audio: no tensor belongs to this module; its name has to be a part of theirs",)
