"""Tiny models and methods to plan with, made of specs alone."""

from minerua.merge.planning.plan import plan
from minerua.merge.recipes.recipe import parse_recipes
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


def specs(shapes, dtype="bfloat16"):
    """Returns specs by name: a mapping of shapes, or names of vectors."""
    return {
        name: TensorSpec(name, shape if isinstance(shape, tuple) else (4,), dtype)
        for name, shape in (shapes.items() if isinstance(shapes, dict) else dict.fromkeys(shapes).items())
    }


def llama(layers=3, vocabulary=10, *, dtype="bfloat16", prefix="model.", head=True):
    """Returns the specs of a tiny Llama."""
    names = {f"{prefix}embed_tokens.weight": (vocabulary, 4), f"{prefix}norm.weight": (4,)}
    names |= {f"{prefix}layers.{i}.mlp.up.weight": (8, 4) for i in range(layers)}
    names |= {"lm_head.weight": (vocabulary, 4)} if head else {}
    return specs(names, dtype)


def recipe_of(text):
    """Returns the only recipe of a text."""
    (found,) = parse_recipes(text, where="r.yml")
    return found


def planning(text, method, models, **options):
    """Plans a recipe; a model that is not given is a tiny Llama."""
    recipe = recipe_of(text)
    given = {reference: models.get(reference.text, llama()) for reference in recipe.references}
    return plan(recipe, method, given, **options)


def planned(text, method=LINEAR, models=None, **options):
    """Plans a recipe that has no faults."""
    found = planning(text, method, models or {}, **options)
    assert found.faults == ()
    return found


def job_of(found, name):
    """Returns the job of a name."""
    return next(job for job in found.jobs if job.name == name)


def layer(index):
    """Returns a name in a layer of a tiny Llama."""
    return f"model.layers.{index}.mlp.up.weight"


TWO = "merge_method: m\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"

STACK = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 3]}]
"""

VISION = llama(4, prefix="language_model.") | specs(
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
