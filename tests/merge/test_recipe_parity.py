"""Held against mergekit 0.1.5: what it reads, what it makes of a setting, which tensors it knows."""

import importlib.util
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minerua.errors import ConfigError
from minerua.merge.planning.layers import families, is_after, may_count_tokens, module_of
from minerua.merge.recipes.recipe import parse_recipes, parse_reference
from minerua.merge.recipes.settings import evaluate, resolve
from minerua.values import MergeParameter
from tests.merge.recipes import GRADIENT_SLERP, STACKED, STAGES, TIES

FOUND = importlib.util.find_spec("mergekit")
pytestmark = pytest.mark.skipif(FOUND is None, reason="mergekit is not installed")
FOLDER = Path(FOUND.origin).parent if FOUND is not None else Path("nowhere")
DEFINITIONS = sorted((FOLDER / "_data" / "architectures").glob("*.json"))

NUMBER = MergeParameter("weight", per_model=True)
FLAG = MergeParameter("normalize", "flag")
TEXT = MergeParameter("mode", "text")


@pytest.fixture(scope="module")
def mergekit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit")
        from mergekit import common, config, parameter_resolver
        from mergekit.merge_methods import base

    return SimpleNamespace(common=common, config=config, resolver=parameter_resolver, base=base)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

NUMBERS = st.one_of(st.floats(-3, 3), st.integers(-3, 3), st.sampled_from(["1e-4", "2E3", "-0.5"]))
FLAGS = st.one_of(st.booleans(), st.sampled_from(["true", "off", "Y", "0", 0, 1]))
TEXTS = st.sampled_from(["a", "b", "1e-4", "true"])
NAMES = st.sampled_from(["model.layers.3.mlp.up_proj.weight", "model.norm.weight", "x.self_attn.q_proj.bias"])
FILTERS = st.sampled_from([None, "*", "mlp", "self_attn", "weight", "model.layers.3", ""])


def _settings_of(scalars):
    plain = scalars | st.lists(scalars, max_size=5)
    rule = st.fixed_dictionaries({"value": plain}, optional={"filter": FILTERS})
    return plain | rule | st.lists(rule, min_size=1, max_size=4)


def _ours(content):
    (recipe,) = parse_recipes(
        json.dumps({"merge_method": "m", "models": [{"model": "a"}], "parameters": {"p": content}}), where="r.yml"
    )
    return recipe.parameters["p"]


def _theirs(mergekit, content):
    config = mergekit.config.MergeConfiguration.model_validate(
        {"merge_method": "m", "models": [{"model": "a"}], "parameters": {"p": content}}
    )
    return config.parameters["p"]


def _compare(mergekit, content, parameter, kind, name, t):
    specification = mergekit.base.ParameterSpec(name="p", value_type=kind, scope=mergekit.base.ParameterScope.SHARED)
    wanted = mergekit.config.evaluate_setting(name, _theirs(mergekit, content), t, validate=specification.validate)
    assert evaluate(_ours(content), parameter, tensor=name, t=t) == wanted


@given(_settings_of(NUMBERS), NAMES, st.integers(0, 40).map(lambda layer: layer / 40))
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_numbers_come_to_exactly_what_mergekit_makes_of_them(mergekit, content, name, t):
    _compare(mergekit, content, NUMBER, float, name, t)


@given(_settings_of(FLAGS), NAMES, st.floats(0, 1))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_flags_come_to_what_mergekit_makes_of_them(mergekit, content, name, t):
    _compare(mergekit, content, FLAG, bool, name, t)


@given(_settings_of(TEXTS), NAMES, st.floats(0, 1))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_texts_come_to_what_mergekit_makes_of_them(mergekit, content, name, t):
    _compare(mergekit, content, TEXT, str, name, t)


@given(st.lists(st.none() | _settings_of(NUMBERS), min_size=4, max_size=4), NAMES, st.floats(0, 1))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_places_override_one_another_as_in_mergekit(mergekit, contents, name, t):
    specification = mergekit.base.ParameterSpec(
        name="p", value_type=float, scope=mergekit.base.ParameterScope.INPUT, default=7.0
    )
    theirs = [None if content is None else {"p": _theirs(mergekit, content)} for content in contents]
    wanted = mergekit.resolver.resolve_parameter(specification, theirs, tensor_name=name, t=t)
    ours = [{} if content is None else {"p": _ours(content)} for content in contents]
    assert resolve(MergeParameter("p", default=7.0), ours, tensor=name, t=t) == wanted


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text("ab/@+.-", max_size=8))
@settings(max_examples=300, deadline=None)
def test_models_are_read_as_mergekit_reads_them(mergekit, text):
    try:
        ours = parse_reference(text)
    except ConfigError:
        return  # what mergekit takes besides: empty paths, empty revisions
    theirs = mergekit.common.ModelReference.parse(text)
    assert (ours.path, ours.revision) == (theirs.model.path, theirs.model.revision)
    assert (ours.lora is None) == (theirs.lora is None)
    assert ours.text == str(theirs) == text


@pytest.mark.parametrize("text", ["a+b+c", "a@b@c", "a+b@c@d"])
def test_models_that_mergekit_refuses_are_refused(mergekit, text):
    with pytest.raises(RuntimeError):
        mergekit.common.ModelReference.parse(text)
    with pytest.raises(ConfigError):
        parse_reference(text)


VISION = """
merge_method: slerp
base_model: a
modules:
  text_decoder: {models: [{model: a}, {model: b}], parameters: {t: [0, 1]}}
  vision_tower: {models: [{model: a}, {model: b}], parameters: {t: 0.0}}
tokenizer: {source: b, tokens: {x: {source: {kind: model_token, model: a, token: y}, force: true}}}
"""


@pytest.mark.parametrize("text", [GRADIENT_SLERP, TIES, STACKED, VISION, *STAGES.split("---")])
def test_recipes_say_the_same_to_mergekit(mergekit, text):
    (ours,) = parse_recipes(text, where="r.yml")
    content = yaml.safe_load(text)
    content.pop("name", None)
    theirs = mergekit.config.MergeConfiguration.model_validate(content)
    assert ours.method == theirs.merge_method.replace("_", "-")
    assert {reference.text for reference in ours.references} == {str(model) for model in theirs.referenced_models()}
    assert (ours.base.text if ours.base else None) == (str(theirs.base_model) if theirs.base_model else None)
    assert [list(piece.sources[0].layers) for piece in ours.slices] == [
        list(piece.sources[0].layer_range) for piece in theirs.slices or []
    ]
    assert [module.name for module in ours.modules] == list(theirs.modules or {})


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: linear",
        "merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {t: null}",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {t: [{value: 1}, 2]}",
        "merge_method: linear\nmodels: [{model: a}]\ntokenizer: {}\ntokenizer_source: base",
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0]}]}]",
        "merge_method: linear\nmodels: [{model: 3}]",
        "models: [{model: a}]",
    ],
)
def test_recipes_that_mergekit_refuses_are_refused(mergekit, text):
    with pytest.raises((RuntimeError, ValueError)):
        mergekit.config.MergeConfiguration.model_validate(yaml.safe_load(text))
    with pytest.raises(ConfigError):
        parse_recipes(text, where="r.yml")


# ── tensors' names, against mergekit's table of architectures ────────────────────────────────────────────────────────

SPECIAL = {
    "phi-1": "counts the embedding and the head as layers",
    "whisper": "lacks the dot between model.decoder and what follows",
}
"""Architectures whose table tells nothing about names as they are in checkpoints."""

TOLD = [path for path in DEFINITIONS if path.stem not in SPECIAL]


def _parts(path):
    """Yields module, weights before, one layer's, after, of an architecture."""
    definition = json.loads(path.read_text("utf-8"))
    modules = definition.get("modules") or {"": {"architecture": definition}}
    for name, module in modules.items():
        architecture, prefix = module["architecture"], module.get("weight_prefix") or ""
        lists = [architecture["pre_weights"], architecture["layer_templates"]["weights"], architecture["post_weights"]]
        yield name, *([{**weight, "name": prefix + weight["name"]} for weight in weights] for weights in lists)


@pytest.mark.parametrize("path", TOLD, ids=lambda path: path.stem)
def test_layers_and_what_stands_around_them_are_told_as_in_mergekit_s_table(path):
    for module, before, layer, after in _parts(path):
        if not layer or module == "multi_modal_projector":  # its steps are no layers
            continue
        names = [weight["name"].replace("${layer_index}", str(i)) for weight in layer for i in range(3)]
        family = layer[0]["name"].partition(".${layer_index}")[0]
        assert families(names) == {family: 3}
        assert [weight["name"] for weight in before if is_after(weight["name"])] == []
        assert [weight["name"] for weight in after if not is_after(weight["name"])] == []


@pytest.mark.parametrize("path", TOLD, ids=lambda path: path.stem)
def test_tensors_with_a_row_per_token_are_told_as_in_mergekit_s_table(path):
    for _, before, layer, after in _parts(path):
        tokens = [weight["name"] for weight in (*before, *after) if weight.get("vocabulary_axis") is not None]
        assert [name for name in tokens if not may_count_tokens(name)] == []
        assert [weight["name"] for weight in layer if weight.get("vocabulary_axis") is not None] == []


@pytest.mark.parametrize("path", TOLD, ids=lambda path: path.stem)
def test_modules_are_told_as_in_mergekit_s_table(path):
    parts = list(_parts(path))
    modules = [name for name, *_ in parts]
    for name, *groups in parts if len(modules) > 1 else ():
        weights = [weight["name"].replace("${layer_index}", "0") for group in groups for weight in group]
        assert {weight: module_of(weight, modules) for weight in weights} == dict.fromkeys(weights, name)
