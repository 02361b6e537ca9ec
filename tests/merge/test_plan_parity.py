"""Plans held against those of mergekit 0.1.5: the same tensors, sources, bases and parameters."""

import json
import logging
import re
import warnings
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import yaml

from minerua.merge.planning.plan import plan
from minerua.merge.recipes.recipe import parse_recipes
from minerua.values import MergeMethodSpec, MergeParameter, TensorSpec

LAYERS = {"a": 4, "b": 4, "c": 4, "long": 6}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 12,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SHAPES = {
    **dict.fromkeys(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"], (8, 8)),
    **{"mlp.up_proj": (16, 8), "mlp.gate_proj": (16, 8), "mlp.down_proj": (8, 16)},
    **dict.fromkeys(["input_layernorm", "post_attention_layernorm"], (8,)),
}

T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    **{"d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2, "vocab_size": 12, "feed_forward_proj": "gated-gelu"},
    **{"num_layers": 3, "num_decoder_layers": 2},
}


@pytest.fixture(scope="module")
def mergekit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit")
        from mergekit import architecture, config, merge_methods, options
        from mergekit import plan as planning
        from mergekit.io.tasks import LoaderCache
        from mergekit.merge_methods.base import BasePolicy, ParameterScope
    logging.getLogger("mergekit").setLevel(logging.ERROR)
    return SimpleNamespace(
        architecture=architecture,
        config=config,
        methods=merge_methods,
        options=options,
        planning=planning,
        cache=LoaderCache,
        policy=BasePolicy,
        scope=ParameterScope,
    )


def _shapes(name):
    """Returns the tensors of one of the tiny models on the disk."""
    if name.startswith("t5"):
        return _t5_shapes()
    shapes = {"model.embed_tokens.weight": (12, 8), "model.norm.weight": (8,), "lm_head.weight": (12, 8)}
    layers = range(LAYERS[name])
    return shapes | {f"model.layers.{i}.{part}.weight": shape for i in layers for part, shape in SHAPES.items()}


def _t5_shapes():
    shapes = {"shared.weight": (12, 8), "lm_head.weight": (12, 8)}
    feeds = {"DenseReluDense.wi_0": (16, 8), "DenseReluDense.wi_1": (16, 8), "DenseReluDense.wo": (8, 16)}
    for stack, count, kinds in (
        ("encoder", 3, ["SelfAttention"]),
        ("decoder", 2, ["SelfAttention", "EncDecAttention"]),
    ):
        shapes |= {f"{stack}.final_layer_norm.weight": (8,)}
        shapes |= {f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2)}
        parts = {f"{j}.{kind}.{letter}": (8, 8) for j, kind in enumerate(kinds) for letter in "qkvo"}
        parts |= {f"{len(kinds)}.{part}": shape for part, shape in feeds.items()}
        parts |= {f"{j}.layer_norm": (8,) for j in range(len(kinds) + 1)}
        shapes |= {f"{stack}.block.{i}.layer.{part}.weight": s for i in range(count) for part, s in parts.items()}
    return shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models on disk, whose headers mergekit reads too."""
    from safetensors.numpy import save_file

    place = tmp_path_factory.mktemp("models")
    configs = {name: {**LLAMA, "num_hidden_layers": layers} for name, layers in LAYERS.items()}
    for name, config in {**configs, "t5a": T5, "t5b": T5}.items():
        (place / name).mkdir()
        (place / name / "config.json").write_text(json.dumps(config))
        tensors = {key: np.zeros(shape, ml_dtypes.bfloat16) for key, shape in _shapes(name).items()}
        save_file(tensors, place / name / "model.safetensors")
    return place


def _method(mergekit, name):
    """mergekit's own description of a method, as one of ours."""
    theirs = mergekit.methods.get(name).spec
    parameters = tuple(
        MergeParameter(
            parameter.name,
            "flag" if parameter.value_type is bool else "number",
            per_model=parameter.scope != mergekit.scope.SHARED,
            default=None if parameter.required else 1.0 if parameter.default is None else parameter.default,
        )
        for parameter in theirs.parameters
    )
    bases = {"optional": "optional", "required": "required", "ignored": "ignored"}
    contract = theirs.contract
    base = bases[contract.base.value]
    listed = base == "required"
    most = contract.max_non_base if contract.max_inputs is None else contract.max_inputs - listed
    fewest = contract.min_non_base or max(1, contract.min_inputs - listed)
    return MergeMethodSpec(name.replace("_", "-"), print, parameters=parameters, base=base, fewest=fewest, most=most)


def _theirs(mergekit, text):
    """Returns tensor name → (its name in each model, base, shared parameters, each model's parameters)."""
    configuration = mergekit.config.MergeConfiguration.model_validate(yaml.safe_load(text))
    options = mergekit.options.MergeOptions()
    mergekit.cache().setup(options)
    architecture = mergekit.architecture.get_architecture_info(configuration, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.merge import _model_out_config

        output = _model_out_config(configuration, architecture)
        planner = mergekit.planning.MergePlanner(configuration, architecture, options, output)
        planner._plan()  # its plan_in_memory cannot build the tasks that it returns
    found = {}
    for _, task in planner._tensors:
        names = {str(model): weight.name for model, weight in task.gather_tensors.weight_info.items()}
        each = {str(model): dict(values.items()) for model, values in task.input_parameters.items()}
        order = [str(model) for model in task.model_order]
        base = str(task.base_model) if task.base_model is not None else None
        found[task.output_weight.name] = (order, names, base, dict(task.parameters.items()), each)
    return found


def _ours(mergekit, text):
    (recipe,) = parse_recipes(text, where="r.yml")
    method = _method(mergekit, yaml.safe_load(text)["merge_method"])
    specs = {
        reference: {
            name: TensorSpec(name, shape, "bfloat16")
            for name, shape in _shapes(reference.path.rpartition("/")[2]).items()
        }
        for reference in recipe.references
    }
    found = plan(recipe, method, specs)
    assert found.faults == ()
    return method, {job.name: job for job in found.jobs}


def _compare(mergekit, text):
    method, ours = _ours(mergekit, text)
    theirs = _theirs(mergekit, text)
    assert ours.keys() == theirs.keys()
    for name, (order, names, base, shared, each) in theirs.items():
        job = ours[name]
        is_used = method.base != "ignored" and base is not None
        experts = [model for model in order if not (is_used and model == base)]
        assert [(model.text, its_name) for model, its_name in job.experts] == [(m, names[m]) for m in experts]
        assert (job.base and (job.base[0].text, job.base[1])) == ((base, names[base]) if is_used else None)
        for parameter in method.parameters:
            if parameter.per_model:
                wanted = [each[model][parameter.name] for model in experts]
                assert [1.0 if value is None else value for value in wanted] == list(job.parameters[parameter.name])
            else:
                assert job.parameters[parameter.name] == shared[parameter.name]


RECIPES = {
    "linear": """
        merge_method: linear
        models:
          - {model: A, parameters: {weight: [0, 0.5, 1]}}
          - {model: B, parameters: {weight: [{filter: mlp, value: [1, 0]}, {filter: q_p, value: 0.3}, {value: 2e-1}]}}
    """,
    "linear with a base that is listed": """
        merge_method: linear
        base_model: B
        models: [{model: A}, {model: B}]
        parameters: {weight: [{filter: norm, value: 1}, {value: [0.2, 0.8, 0.1]}]}
    """,
    "linear with a base that is not listed": """
        merge_method: linear
        base_model: C
        models: [{model: A}, {model: B}]
        parameters: {weight: 0.5, normalize: false}
    """,
    "karcher with a base": "{merge_method: karcher, base_model: C, models: [{model: A}, {model: B}]}",
    "gradient slerp": """
        merge_method: slerp
        base_model: A
        slices: [{sources: [{model: A, layer_range: [0, 4]}, {model: B, layer_range: [0, 4]}]}]
        parameters:
          t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0]}, {value: 0.5}]
    """,
    "slerp of models": """
        {merge_method: slerp, base_model: B, models: [{model: A}], parameters: {t: [0, 1]}}
    """,
    "ties": """
        merge_method: ties
        base_model: C
        models:
          - {model: C}
          - {model: A, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
          - {model: B, parameters: {density: 0.33, weight: [{filter: mlp, value: 0.5}, {value: 0}]}}
        parameters: {normalize: true, int8_mask: yes, lambda: [0.5, 1]}
    """,
    "stacked": """
        merge_method: passthrough
        slices:
          - sources: [{model: A, layer_range: [0, 3]}]
          - sources:
              - model: B
                layer_range: [1, 4]
                parameters: {scale: [{filter: o_proj, value: 0.0}, {value: [1.0, 2.0]}]}
            parameters: {scale: 5}
          - sources: [{model: LONG, layer_range: [5, 6]}]
        parameters: {scale: [1, 3]}
    """,
    "slices with bases of their own": """
        merge_method: task_arithmetic
        base_model: A
        slices:
          - sources:
              - {model: A, layer_range: [0, 2]}
              - {model: B, layer_range: [2, 4], parameters: {weight: [0.1, 0.2]}}
          - sources: [{model: C, layer_range: [0, 3]}, {model: LONG, layer_range: [3, 6]}]
            base_model: C
            parameters: {lambda: 0.5}
        parameters: {weight: 0.7}
    """,
    "a module": """
        merge_method: nuslerp
        modules:
          default:
            models: [{model: A, parameters: {weight: 1}}, {model: B}]
            parameters: {weight: [{filter: mlp, value: 0.4}]}
        parameters: {weight: 0.6}
    """,
    "two kinds of layers": """
        merge_method: linear
        models: [{model: T5A, parameters: {weight: [0, 1]}}, {model: T5B, parameters: {weight: [1, 0.5, 0]}}]
    """,
    "modules of two kinds of layers": """
        merge_method: slerp
        base_model: T5A
        modules:
          encoder:
            slices:
              - sources: [{model: T5A, layer_range: [0, 2]}, {model: T5B, layer_range: [0, 2]}]
              - sources: [{model: T5A, layer_range: [1, 3]}, {model: T5B, layer_range: [1, 3]}]
                parameters: {t: [0.1, 0.2]}
          decoder: {models: [{model: T5A}, {model: T5B}], parameters: {t: [{filter: EncDec, value: [1, 0]}]}}
          shared: {models: [{model: T5B}]}
        parameters: {t: 0.5}
    """,
    "nuslerp with a base": """
        merge_method: nuslerp
        base_model: C
        models: [{model: A, parameters: {weight: 0.3}}, {model: B, parameters: {weight: [0.7, 0]}}]
        parameters: {nuslerp_row_wise: true}
    """,
}


@pytest.mark.parametrize("name", RECIPES)
def test_plans_say_what_mergekit_s_say(mergekit, folder, name):
    text = RECIPES[name]
    for model in (*LAYERS, "t5a", "t5b"):
        text = re.sub(rf"model: {model.upper()}\b", f"model: {folder / model}", text)
    _compare(mergekit, text)
