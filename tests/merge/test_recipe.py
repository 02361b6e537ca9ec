import contextlib
import doctest
import json
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.errors import ConfigError
from minerua.merge.recipes import ingredients, recipe, stages
from minerua.merge.recipes.ingredients import (
    Input,
    ModelRef,
    ModelToken,
    Rule,
    Setting,
    Slice,
    TokenizerRecipe,
    TokenRule,
)
from minerua.merge.recipes.recipe import parse_recipes, parse_reference
from minerua.merge.recipes.stages import ordered
from tests.merge.recipes import GRADIENT_SLERP, STACKED, STAGES, TIES

LINEAR = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"

ALL_KEYS = """
merge_method: della_linear
models:
  - {model: {model: {path: a+b@c, revision: v1}, lora: l@2, override_architecture: LlamaForCausalLM}}
  - {model: b, parameters: {weight: 3e-4}}
base_model: base@main
parameters: {lambda: 1.0}
dtype: torch.bfloat16
out_dtype: fp16
tokenizer:
  source: union
  tokens:
    <|im_start|>: {source: b, force: true}
    "7": {source: {kind: model_token, model: b, token_id: 7}}
    x: {source: {kind: model_token, model: c, token: y}}
    z: {source: {kind: zero}}
    plain: {}
  pad_to_multiple_of: 64
chat_template: auto
name: stage
semantics: paper
space: core
rank: 16
activations: {model: kind, tasks: [one, two]}
"""


def _one(text):
    (found,) = parse_recipes(text, where="r.yml")
    return found


def _faults(text):
    with pytest.raises(ConfigError) as caught:
        parse_recipes(text, where="r.yml")
    return caught.value.faults


@pytest.mark.parametrize("module", [recipe, ingredients, stages])
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0


# ── what recipes say ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gradient_slerp_is_read():
    found = _one(GRADIENT_SLERP)
    (piece,) = found.slices
    assert found.method == "slerp"
    assert [source.layers for source in piece.sources] == [(0, 40), (0, 40)]
    assert found.parameters["t"] == Setting(
        (Rule((0, 0.5, 0.3, 0.7, 1), "self_attn"), Rule((1, 0.5, 0.7, 0.3, 0), "mlp"), Rule(0.5))
    )
    assert found.dtype == "float16"
    assert found.text == GRADIENT_SLERP


def test_settings_of_models_and_of_the_whole_are_read():
    found = _one(TIES)
    assert [given.parameters["weight"].rules for given in found.models] == [
        (Rule(1.0),),
        (Rule((0, 0.3, 0.7, 1)),),
        (Rule(0.5, "mlp"), Rule(0)),
    ]
    assert found.parameters["normalize"].rules == (Rule(True),)
    assert found.models[2].parameters["weight"].place == "models[2].parameters.weight"


def test_slices_are_stacked_in_the_order_of_the_recipe():
    found = _one(STACKED)
    assert [piece.sources[0].layers for piece in found.slices] == [(0, 16), (8, 24), (17, 32)]
    assert [piece.count for piece in found.slices] == [16, 16, 15]
    assert [reference.text for reference in found.references] == [
        "Sao10K/Euryale-1.3-L2-70B",
        "Xwin-LM/Xwin-LM-70B-V0.1",
    ]


def test_every_key_is_read():
    found = _one(ALL_KEYS)
    assert found.method == "della-linear"
    assert found.models[0].model == ModelRef("a+b@c", "v1", ModelRef("l", "2"), "LlamaForCausalLM")
    assert found.models[1] == Input(ModelRef("b"), None, {"weight": Setting((Rule("3e-4"),))})
    assert (found.base, found.dtype, found.out_dtype) == (ModelRef("base", "main"), "bfloat16", "float16")
    assert found.tokenizer == TokenizerRecipe(
        "union",
        {
            "<|im_start|>": TokenRule(ModelRef("b"), force=True),
            "7": TokenRule(ModelToken(ModelRef("b"), token_id=7)),
            "x": TokenRule(ModelToken(ModelRef("c"), token="y")),
            "z": TokenRule("zero"),
            "plain": TokenRule(None),
        },
        64,
    )
    assert [reference.text for reference in found.tokenizer.references] == ["b", "c"]
    assert (found.chat_template, found.name, found.semantics) == ("auto", "stage", "paper")
    assert (found.space, found.rank) == ("core", 16)
    assert (found.activations.model, found.activations.tasks) == ("kind", ("one", "two"))


def test_modules_have_models_or_slices_of_their_own():
    found = _one("""
        merge_method: linear
        modules:
          text_decoder: {slices: [{sources: [{model: a, layer_range: [0, 2]}], base_model: c, parameters: {weight: 1}}]}
          vision_tower: {models: [{model: b}, {model: a}], parameters: {weight: 0.5}}
    """)
    assert [module.name for module in found.modules] == ["text_decoder", "vision_tower"]
    assert found.modules[0].slices == (
        Slice((Input(ModelRef("a"), (0, 2)),), ModelRef("c"), {"weight": Setting((Rule(1),))}),
    )
    assert [reference.text for reference in found.references] == ["a", "b", "c"]
    assert [getattr(part, "place", "") for part in found.parts()][:3] == [
        "",
        "modules.text_decoder",
        "modules.vision_tower",
    ]


@pytest.mark.parametrize(
    ("source", "wanted"), [("base", "base"), ("union", "union"), ("m@v+l", ModelRef("m", "v", ModelRef("l")))]
)
def test_the_older_key_for_tokenizers_is_read_too(source, wanted):
    assert _one(LINEAR + f"tokenizer_source: {source}").tokenizer == TokenizerRecipe(wanted)


def test_a_key_without_a_value_is_as_good_as_none():
    plain = _one(LINEAR)
    same = _one(LINEAR + "slices:\nbase_model: ~\nparameters:\ntokenizer:\nmodules: {}")
    assert (same.models, same.base, same.parameters, same.tokenizer) == (plain.models, None, {}, None)


def test_models_are_hashable_and_equal_however_they_are_written():
    long = _one("merge_method: linear\nmodels: [{model: {model: {path: a, revision: v}, lora: {path: l}}}]")
    assert long.references == (parse_reference("a@v+l"),)
    assert long.references[0].text == "a@v+l"


def test_what_is_read_and_not_used_is_noted():
    found = _one("merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}], residual_weight: 0.5}]")
    assert found.notes == ("slices[0].residual_weight has no effect, as in mergekit",)


def test_whole_numbers_may_be_texts_or_have_a_point():
    text = "merge_method: linear\nrank: 8.0\nslices: [{sources: [{model: a, layer_range: ['0', 2.0]}]}]"
    assert _one(text).slices[0].sources[0].layers == (0, 2)
    assert _one(text).rank == 8


def test_an_anchor_spares_repetition():
    text = "x: &m {model: a}\nmerge_method: linear\nmodels: [*m]"
    assert _faults(text)[0].startswith("x: no key of this place is named 'x'")
    shared = _one("merge_method: linear\nmodels: [{model: a, parameters: &p {weight: 1}}, {model: b, parameters: *p}]")
    assert shared.models[0].parameters == shared.models[1].parameters


# ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stages_are_read_with_their_own_texts():
    first, last = parse_recipes(STAGES, where="r.yml")
    assert (first.name, last.name) == ("first", None)
    assert last.text.startswith("# the last stage\nmerge_method: slerp")


def test_stages_are_ordered_by_what_they_need():
    first, last = parse_recipes(STAGES, where="r.yml")
    assert ordered([last, first]) == (first, last)
    assert ordered([first, last]) == (first, last)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"{LINEAR}name: x\n---\n{LINEAR}name: x\n", "document 2: the name 'x' belongs to document 1 already"),
        (f"{LINEAR}---\n{LINEAR}", "document 2: has no name, as document 1; only the last stage goes without"),
        (
            "{name: x, merge_method: m, models: [{model: y}]}\n---\n{name: y, merge_method: m, models: [{model: x@1}]}",
            "stages that need each other in a circle: ",
        ),
        ("{name: x, merge_method: m, models: [{model: x@1}]}", "stages that need each other in a circle: x → x"),
    ],
)
def test_stages_that_cannot_follow_one_another_are_refused(text, fault):
    assert any(one.startswith(fault) for one in _faults(text))


def test_an_adapter_of_a_stage_s_name_is_no_stage():
    assert _one("{name: x, merge_method: m, models: [{model: a+x}]}").references[0].text == "a+x"


def test_faults_of_stages_name_the_document():
    assert _faults(f"{LINEAR}name: x\n---\n{LINEAR}rank: 0") == (
        "document 2: rank: must be a whole number from 1 to 1048576, found 0",
    )


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_text_without_a_recipe_is_refused():
    with pytest.raises(ConfigError, match=r"r\.yml holds no recipe; start with 'merge_method: ' and 'models: '"):
        parse_recipes("# nothing yet", where="r.yml")


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError, match=r"r\.yml cannot be carried out") as caught:
        parse_recipes("merge_metod: linear\nmodels: [{modl: a}]\ndtype: int4\nrank: many", where="r.yml")
    assert caught.value.faults == (
        "merge_metod: no key of this place is named 'merge_metod'; did you mean 'merge_method'? Known: "
        + ", ".join(sorted(recipe._KEYS)),
        "merge_method: is missing, and has to be given",
        "models[0].modl: no key of this place is named 'modl'; did you mean 'model'? Known: model, parameters",
        "models[0].model: is missing, and has to be given",
        "dtype: must be one of float32, float16, bfloat16, fp32, fp16, bf16, found 'int4'",
        "rank: must be a whole number from 1 to 1048576, found 'many'",
    )


@pytest.mark.parametrize(
    ("addition", "fault"),
    [
        ("slices: [{sources: [{model: a, layer_range: [0, 1]}]}]", "is merged, found models and slices"),
        ("tokenizer: {}\ntokenizer_source: base", "tokenizer_source: stands beside tokenizer; keep one of the two"),
        ("parameters: 3", "parameters: must be a mapping of parameters' names to values, found 3"),
        (
            "parameters: {t: null}",
            "parameters.t: must be a number, a text, true or false, or a list of them, found None",
        ),
        (
            "parameters: {t: [1, [2]]}",
            "parameters.t[1]: must be a number, a text, true or false, or a list of them, found [2]",
        ),
        ("parameters: {t: .nan}", "parameters.t: is not a finite number: nan"),
        ("parameters: {t: [0, -.inf]}", "parameters.t[1]: is not a finite number: -inf"),
        (
            "parameters: {t: [{value: 1}, 2]}",
            "parameters.t[1]: must be a mapping with value and filter, as its neighbours are",
        ),
        ("parameters: {t: [{filter: x}]}", "parameters.t[0].value: is missing, and has to be given"),
        (
            "parameters: {t: [{value: 1, filter: 3}]}",
            "parameters.t[0].filter: must be a text that tensors' names contain",
        ),
        ("parameters: {t: [{value: 1, fliter: a}]}", "parameters.t[0].fliter: no key of this place is named 'fliter'"),
        ("parameters: {t: {value: {value: 1}}}", "parameters.t.value: must be a number, a text, true or false"),
        ("base_model: a+b+c", "base_model: names more than one adapter: 'a+b+c'; write model and lora as keys"),
        ("base_model: a@b@c", "base_model: names more than one revision: 'a@b@c'; write path and revision as keys"),
        ("base_model: '@main'", "base_model: leaves out the path or the revision beside '@': '@main'"),
        ("base_model: a+", "base_model: must be a text, found ''"),
        ("base_model: 13", "base_model: must be a model: path[@revision][+adapter[@revision]], found 13"),
        ("base_model: {model: a, pth: b}", "base_model.pth: no key of this place is named 'pth'"),
        ("base_model: {model: {path: 3}}", "base_model.model.path: must be a text, found 3"),
        ("semantics: papers", "semantics: must be one of mergekit, paper, found 'papers'"),
        ("space: [core]", "space: must be one of core, knots, full, found ['core']"),
        ("name: a/b", "name: must be a name without / \\ @ and +, found 'a/b'"),
        ("name: ..", "name: must be a name without / \\ @ and +, found '..'"),
        ("chat_template: [x]", "chat_template: must be a text, found ['x']"),
        ("tokenizer: {tokens: [a]}", "tokenizer.tokens: must be a mapping of tokens to how their embeddings are made"),
        ("tokenizer: {tokens: {a: {force: 1}}}", "tokenizer.tokens.a.force: must be true or false, found 1"),
        (
            "tokenizer: {pad_to_multiple_of: 0}",
            "tokenizer.pad_to_multiple_of: must be a whole number from 1 to 1048576",
        ),
        (
            "tokenizer: {tokens: {a: {source: {kind: model_token, model: m}}}}",
            "tokenizer.tokens.a.source: needs a token or its token_id, one of the two",
        ),
        (
            "tokenizer: {tokens: {a: {source: {kind: none, model: m, token: b}}}}",
            "tokenizer.tokens.a.source.kind: must be one of model_token, zero, found 'none'",
        ),
        ("tokenizer: {tokens: {a: {source: {kind: zero, model: m}}}}", "tokenizer.tokens.a.source.model: no key"),
        ("activations: {model: m, tasks: digits}", "activations.tasks: must be a list, found 'digits'"),
        ("activations: {model: m}", "activations.tasks: is missing, and has to be given"),
    ],
)
def test_each_mistake_is_named_with_its_place(addition, fault):
    assert [fault in found for found in _faults(LINEAR + addition)] == [True]


@pytest.mark.parametrize(
    ("slices", "fault"),
    [
        ("[{}]", "slices[0].sources: is missing, and has to be given"),
        ("[{sources: []}]", "slices[0].sources: is empty; name at least one model"),
        ("[{sources: [{model: a}]}]", "slices[0].sources[0].layer_range: is missing, and has to be given"),
        (
            "[{sources: [{model: a, layer_range: [0]}]}]",
            "slices[0].sources[0].layer_range: must be [first layer, one past the last], found [0]",
        ),
        ("[{sources: [{model: a, layer_range: [-1, 2]}]}]", "must be [first layer, one past the last], found [-1, 2]"),
        (
            "[{sources: [{model: a, layer_range: [0, 1.5]}]}]",
            "must be [first layer, one past the last], found [0, 1.5]",
        ),
        (
            "[{sources: [{model: a, layer_range: [true, 2]}]}]",
            "must be [first layer, one past the last], found [True, 2]",
        ),
        ("[{sources: [{model: a, layer_range: [4, 2]}]}]", "layer_range: ends before it begins: [4, 2]"),
        (
            "[{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]",
            "slices[0]: all sources of a slice need as many layers, found a [0, 2], b [0, 3]",
        ),
        ("{a: b}", "slices: must be a list, found {'a': 'b'}"),
    ],
)
def test_each_mistake_in_slices_is_named_with_its_place(slices, fault):
    found = _faults(f"merge_method: linear\nslices: {slices}")
    assert len(found) == 1
    assert found[0].endswith(fault) or found[0].startswith(fault)


@pytest.mark.parametrize(
    ("modules", "fault"),
    [
        ("[a]", "modules: must be a mapping of modules' names to models or slices, found ['a']"),
        ("{text: {}}", "modules.text: needs models or slices, one of the two"),
        ("{text: 3}", "modules.text: must be a mapping with the keys models, slices, parameters, found 3"),
    ],
)
def test_each_mistake_in_modules_is_named_with_its_place(modules, fault):
    assert fault in _faults(f"merge_method: linear\nmodules: {modules}")


def test_nothing_to_merge_is_refused():
    assert _faults("merge_method: linear\nmodels: []") == (
        "exactly one of models, slices and modules says what is merged, found none of them",
    )


def test_a_reference_on_a_command_line_is_refused_with_its_faults():
    with pytest.raises(ConfigError, match=r"'a\+b\+c' names no model") as caught:
        parse_reference("a+b+c")
    assert caught.value.faults == ("the model: names more than one adapter: 'a+b+c'; write model and lora as keys",)


def test_a_hundred_faults_are_enough():
    faults = _faults(LINEAR + "\n".join(f"unknown{i}: 1" for i in range(200)))
    assert len(faults) == 101
    assert faults[-1] == "and 100 more of this kind"


# ── anything at all ──────────────────────────────────────────────────────────────────────────────────────────────────

KEYS = st.sampled_from(
    [
        *(
            "models",
            "slices",
            "modules",
            "sources",
            "model",
            "layer_range",
            "parameters",
            "value",
            "filter",
            "tokenizer",
        ),
        *("merge_method", "base_model", "dtype", "tokens", "source", "kind", "force", "token", "name", "rank", "lora"),
        *("path", "revision", "activations", "tasks", "tokenizer_source", "weight", "residual_weight", "other"),
    ]
)
WORDS = st.sampled_from(
    ["a", "a@b", "a+b", "+", "@", "", "linear", "model_token", "zero", "union", "float16", "1e-4", "x"]
)
LEAVES = st.one_of(WORDS, st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=5))
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=30
)


@given(st.dictionaries(KEYS, ANYTHING, max_size=8))
@settings(max_examples=120, deadline=timedelta(seconds=2))
def test_any_structure_is_read_or_refused(content):
    try:
        (found,) = parse_recipes(json.dumps({"merge_method": "linear", **content}), where="r.yml")
    except ConfigError:
        return
    assert bool(found.models) + bool(found.slices) + bool(found.modules) == 1
    assert all(reference.path for reference in found.references)
    hash(found.references)


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda b: b.decode("utf-8", "surrogateescape"))))
@settings(max_examples=300, deadline=timedelta(seconds=2))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        assert parse_recipes(text, where="r.yml")
